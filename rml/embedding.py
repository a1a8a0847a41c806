"""Vectors of texts: any number of strings in, one array out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, PyTree

from rml.data import tokens
from rml.models.text_encoder import TextEncoder
from rml.training.mesh import batch_sharding, make_mesh, use_mesh

Encode = Callable[..., Any]

BATCH_TOKENS = 2048
"""Tokens of a batch on each device, padding included; a CPU is as fast with few."""

WINDOW = 32
"""Batches' worth of text that is tokenised at a time, while the one before is encoded."""

CHARACTERS = 4
"""Of a token, roughly; decides how much text makes a window, and nothing else."""

IN_FLIGHT = 2
"""Batches that wait for the device before results are fetched."""


def embed(
    encode: Encode,
    variables: PyTree,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_tokens: int = BATCH_TOKENS,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "n d"]:
    """Encodes texts, in batches of similar length, split over the devices of a mesh.

    Texts are tokenised in a thread while others are encoded. Each shape of a batch is compiled
    once for an `encode`, for all calls that pass the same function.

    Args:
      encode: `encode(variables, tokens [b, t], mask [b, t]) -> [b, d]`, such as
        `TextEncoder(...).apply`; compiled here.
      variables: Its parameters; where they are not yet on the mesh, every device has them whole.
      tokenizer: A `tokenizers.Tokenizer`.
      texts: Any strings; an empty one is what the tokenizer makes of it.
      max_length: The most tokens of a text; what is longer is cut.
      batch_tokens: Tokens of a batch on each device, padding included.
      mesh: Rows are split over its batch axes; one of one device, the first, if not given.
      progress: Called as `progress(done, of)` after each batch, in texts.

    Returns:
      The vectors of the texts in their order, float32.

    Raises:
      DataError: A text is no string, or `max_length` holds no more than special tokens.
    """
    tokens.check_texts(texts)
    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    rows = batch_sharding(mesh)
    program = compiled(encode, mesh)
    variables = on_mesh(variables, mesh)

    def results() -> Iterator[tuple[np.ndarray, jax.Array]]:
        for members, numbers, mask in _batches(
            tokenizer, texts, max_length, batch_tokens, batch_devices(rows)
        ):
            yield members, program(variables, *jax.device_put((numbers, mask), rows))

    with use_mesh(mesh):
        one = jax.ShapeDtypeStruct((rows.num_devices, 8), np.int32)
        width = jax.eval_shape(encode, variables, one, jax.ShapeDtypeStruct(one.shape, bool))
        return collect(np.zeros((len(texts), width.shape[-1]), np.float32), results(), progress)


@dataclass(frozen=True)
class TextEmbedder:
    """A text encoder with its variables and tokenizer: a function from texts to vectors.

    Attributes:
      module: `(tokens, mask, *, train=False) -> [b, d]`.
      variables: Its variables.
      tokenizer: A `tokenizers.Tokenizer`.
      max_length: The most tokens of a text; what is longer is cut.
      batch_tokens: Tokens of a batch on each device.
      mesh: Mesh over whose batch axes texts are split; one of one device if not given.
    """

    module: TextEncoder
    variables: PyTree
    tokenizer: Any
    max_length: int
    batch_tokens: int = BATCH_TOKENS
    mesh: Mesh | None = None

    @property
    def function(self) -> Encode:
        """The pure function `(variables, tokens [b, t], mask [b, t]) -> [b, d]`."""
        return applied(self.module)

    def __call__(
        self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None
    ) -> Float[np.ndarray, "n d"]:
        """Vectors of texts; `progress(done, of)` is called after each batch."""
        return embed(
            self.function,
            self.variables,
            self.tokenizer,
            texts,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            mesh=self.mesh,
            progress=progress,
        )


def applied(module: TextEncoder) -> Encode:
    """Returns a module's function of variables and texts, by which equal ones share programs."""
    try:
        hash(module)
    except TypeError:  # an attribute is a list
        return module.apply
    return _applied(module)


@lru_cache(maxsize=8)
def _applied(module: TextEncoder) -> Encode:
    return module.apply


def collect(
    found: Float[np.ndarray, "n d"],
    results: Iterable[tuple[Any, jax.Array]],
    progress: Callable[[int, int], None] | None,
) -> Float[np.ndarray, "n d"]:
    """Fills rows of an array with results of batches, a few of which wait for the device.

    Args:
      found: The array.
      results: Rows that each batch is for, and their values, which may be followed by those of
        filled-up rows.
      progress: Called as `progress(done, of)` after each batch, in rows.

    Returns:
      The array.
    """
    waiting: deque[tuple[Any, jax.Array]] = deque()
    done = 0

    def fetch(keep: int) -> None:
        nonlocal done
        while len(waiting) > keep:
            members, vectors = waiting.popleft()
            count = len(found[members])
            found[members] = np.asarray(vectors.addressable_data(0))[:count]
            done += count
            if progress is not None:
                progress(done, len(found))

    for result in results:
        waiting.append(result)
        fetch(IN_FLIGHT)
    fetch(0)
    return found


@lru_cache(maxsize=8)
def compiled(encode: Encode, mesh: Mesh) -> Encode:
    """Compiles `encode`; its result, small, is whole on every device and in every process."""
    return jax.jit(encode, out_shardings=NamedSharding(mesh, PartitionSpec()))


def batch_devices(rows: NamedSharding) -> int:
    """Counts the parts that a batch is split into."""
    axes = rows.spec[0]
    return int(np.prod([rows.mesh.shape[axis] for axis in axes]))


def on_mesh(variables: PyTree, mesh: Mesh) -> PyTree:
    """Unboxes variables: they stay where they are on a mesh's devices, else are whole on each.

    Of several processes each then gives a copy of its own, which are the same.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    devices = set(mesh.devices.flat)

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
            return leaf
        if whole.is_fully_addressable:
            return jax.device_put(leaf, whole)
        own = np.asarray(leaf)  # no process writes to the devices of another
        return jax.make_array_from_callback(own.shape, whole, own.__getitem__)

    return jax.tree.map(place, nn.meta.unbox(variables))


def _batches(
    tokenizer: Any, texts: Sequence[str], max_length: int, batch_tokens: int, devices: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions, tokens and mask of every batch, from long texts to short ones."""
    held: list[tuple[int, np.ndarray]] = []
    for positions, encoded, last in _windows(
        tokenizer, texts, max_length, WINDOW * batch_tokens * devices
    ):
        held += zip(positions, encoded, strict=True)
        buckets = tokens.length_buckets(
            np.array([len(sequence) for _, sequence in held]),
            batch_tokens=batch_tokens * devices,
            multiple=devices,
            max_width=max_length,
        )
        if not last:  # the last batch may be part of one: it waits for more texts
            buckets, waiting = buckets[:-1], buckets[-1].members
        for members, rows, width in buckets:
            filled, mask = tokens.pad([held[at][1] for at in members], width=width, rows=rows)
            yield np.array([held[at][0] for at in members]), filled, mask
        held = [] if last else [held[at] for at in waiting]


def _windows(
    tokenizer: Any, texts: Sequence[str], max_length: int, window_tokens: int
) -> Iterator[tuple[list[int], list[np.ndarray], bool]]:
    """Texts from long to short, encoded in a thread one window ahead; true with the last."""
    lengths = np.array([len(text) for text in texts], int)
    order = np.argsort(-lengths, kind="stable")
    sizes = np.minimum(lengths[order], CHARACTERS * max_length) + CHARACTERS
    window = np.cumsum(sizes) // (CHARACTERS * window_tokens)
    cuts = np.split(order, np.flatnonzero(np.diff(window)) + 1) if len(order) else []

    def work(positions: np.ndarray) -> list[np.ndarray]:
        return tokens.encode(tokenizer, [texts[at] for at in positions], max_length=max_length)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(work, cuts[0]) if cuts else None
        for at, positions in enumerate(cuts):
            assert ahead is not None
            encoded = ahead.result()
            if at + 1 < len(cuts):
                ahead = pool.submit(work, cuts[at + 1])
            yield positions.tolist(), encoded, at + 1 == len(cuts)
