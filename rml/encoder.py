"""A trained encoder as a function: images or texts in, one row of features each out."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from rml.data.given import GivenImages
from rml.data.tokens import check_texts
from rml.embedding import TextEmbedder, batch_devices, collect, compiled, on_mesh
from rml.errors import UserError
from rml.ops.precision import use_precision
from rml.training.mesh import batch_sharding, make_mesh, use_mesh
from rml.training.processes import global_arrays, part_of_batch

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ImageEmbedder:
    """An image encoder with its variables: a function from images to features.

    Attributes:
      function: Pure `function(variables, images [b, ...]) -> [b, d]` of uint8 images or floats.
      variables: Its variables.
      batch_size: Images that are encoded at a time; fewer are filled up to a power of two, so that
        few programs are compiled.
      mesh: Mesh over whose batch axes images are split, each of several processes reading its own;
        one of one device of each process if not given. Variables stay as they lie on it.
    """

    function: Callable[[PyTree, Any], Array]
    variables: PyTree
    batch_size: int = 256
    mesh: Mesh | None = None

    def __call__(
        self, images: Any, *, progress: Progress | None = None
    ) -> Float[np.ndarray, "n d"]:
        """Features of images that are sliced as `images[a:b]`, in float32, in their order.

        `progress(done, of)` is called after each batch.
        """
        mesh = make_mesh(devices=jax.local_devices()[:1]) if self.mesh is None else self.mesh
        rows, variables = batch_sharding(mesh), on_mesh(self.variables, mesh)
        encode, count = compiled(self.function, mesh), len(images)
        size = min(self.batch_size, 1 << max(count - 1, 0).bit_length())
        size += -size % batch_devices(rows)
        part, parts = part_of_batch(rows, size)
        share = size // parts
        first_image = np.asarray(images[:1])
        spec = jax.ShapeDtypeStruct((size, *first_image.shape[1:]), first_image.dtype)

        def results() -> Iterator[tuple[slice, Array]]:
            for first in range(0, count, size):
                start = min(first + part * share, count - 1)  # one that is there, to fill up with
                batch = np.asarray(images[start : start + share])
                filled = np.concatenate([batch, np.repeat(batch[-1:], share - len(batch), axis=0)])
                members = slice(first, min(first + size, count))
                yield members, encode(variables, global_arrays(filled, rows, spec))

        with use_mesh(mesh):
            width = jax.eval_shape(encode, variables, spec).shape[-1]
            return collect(np.zeros((count, width), np.float32), results(), progress)


@dataclass(frozen=True, eq=False)
class Encoder:
    """The trained encoder of a run, with the run's own preprocessing.

        encoder = rml.load("runs/simclr")
        features = encoder(images)  # float32 [n, encoder.width]

    Attributes:
      kind: "images" or "texts".
      config: The run's config; of published weights what is known of them.
      run: The run directory, or the name of published weights.
      step: Number of batches that the encoder was trained on, as checkpoints count them; of
        published weights None.
      embedder: The function of arrays, or of strings, that is applied.
    """

    kind: str
    config: Mapping[str, Any] = field(repr=False)
    run: Path | str
    step: int | None
    embedder: ImageEmbedder | TextEmbedder = field(repr=False)

    def __call__(
        self, inputs: Any, *, progress: Progress | None = None
    ) -> Float[np.ndarray, "n d"]:
        """Features of images or texts, in their order.

        Args:
          inputs: Texts; or images: uint8 or floats in 0..1 of [n, h, w] or [n, h, w, c], or a list
            of arrays, PIL images and paths, see `rml.data.given`.
          progress: Called as `progress(done, of)` after each batch.

        Returns:
          One row an input, float32.

        Raises:
          UserError: An input has a wrong type, shape or range, or a file cannot be read.
        """
        inputs = self.read(inputs)
        with use_precision(self.precision):
            return self.embedder(inputs, progress=progress)

    def read(self, inputs: Any) -> Any:
        """Checks inputs and gives them the run's own preprocessing, as `embedder` takes them."""
        if isinstance(inputs, GivenImages):
            return inputs
        if self.kind == "texts":
            inputs = inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
            if not isinstance(inputs, Sequence):
                raise UserError(f"got {inputs!r:.80}, expected a list of texts")
            check_texts(inputs)
            return inputs
        dtype = self.config["data"]["image_dtype"]
        return GivenImages(inputs, shape=self.input_shape, dtype=dtype)

    @property
    def precision(self) -> str:
        """Of products of float32, as the run's config says; see `rml.ops.use_precision`."""
        return self.config.get("precision", "default")

    @cached_property
    def function(self) -> Callable[..., Array]:
        """The pure function: of variables and images, or of variables, tokens and their mask."""

        def function(variables: PyTree, *inputs: Array) -> Array:
            with use_precision(self.precision):
                return self.embedder.function(variables, *inputs)

        return function

    @property
    def variables(self) -> PyTree:
        """The trained variables of `function`."""
        return self.embedder.variables

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an image that `function` takes; of texts none is fixed."""
        return tuple(self.config["data"].get("image_shape", ()))

    @cached_property
    def width(self) -> int:
        """Number of features."""
        inputs = self.abstract_inputs(2, 8)
        return int(jax.eval_shape(self.function, self.variables, *inputs).shape[-1])

    def abstract_inputs(self, rows: Any, length: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns shapes and types of the arrays that `function` takes beside its variables.

        Args:
          rows: Number of images or texts, which may be symbolic.
          length: Number of tokens of a text, likewise; images have none.

        Returns:
          Images, or tokens and their mask.
        """
        if self.kind == "images":
            dtype = np.dtype(self.config["data"]["image_dtype"])
            return (jax.ShapeDtypeStruct((rows, *self.input_shape), dtype),)
        return tuple(jax.ShapeDtypeStruct((rows, length), kind) for kind in (np.int32, np.bool_))


def load(
    run_directory: str | Path,
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Encoder:
    """Loads the encoder of a run, trained or still training, or published weights.

    The run is only read. The recipe that its config names builds the encoder, one of `experiments`
    in the repository.

    Args:
      run_directory: The run directory; where methods were compared, that of one of them,
        `methods/NAME` in it. Or the name of weights that `make weights` brings:
        "weights:efficientnet_lite0", "weights:mobilenet_v2/stage3@96" (features of an earlier
        layer, images whose shorter side is 96 pixels instead of 64), "weights:minilm",
        "weights:minilm_l3", "weights:smollm2".
      step: Step of the checkpoint; the newest if not given.
      mesh: Mesh over whose batch axes inputs are split, such as `rml.training.make_mesh()` of all
        devices; one of one device if not given.
      **options: What the recipe's encoder takes beside, such as `pair=(3, 5)` of Hydra's: the
        projections in the subspace of two classes.

    Returns:
      The encoder.

    Raises:
      UserError: There is no run or its directory is a URL, it learns no encoder or has no such
        checkpoint, an option is unknown, weights are not on this machine, or `experiments` cannot
        be imported.
    """
    try:
        encoders = importlib.import_module("experiments.common.encoders")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("experiments"):
            raise
        raise UserError(
            f"the encoder of {run_directory} cannot be built: there is no {error.name}; start "
            "Python in the root of the repository, or put it on PYTHONPATH"
        ) from None
    found: Encoder = encoders.open_encoder(run_directory, step=step, mesh=mesh, **options)
    return found
