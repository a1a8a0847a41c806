"""Checkpoints merged from file to file, a tensor at a time, in the memory of one model."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rml.errors import UserError, unknown
from rml.merging.methods import merge
from rml.models.pretrained.extra import require
from rml.models.pretrained.files import read_file
from rml.models.pretrained.tensors import FLOATS, Tensor
from rml.ops.trees import check_distances, check_trees, check_values

ENDING = ".safetensors"
NO_BASE = ("average", "weighted_average")
"""Methods that need no base."""
METHODS_OF_FILES = (*NO_BASE, "dare", "task_arithmetic", "ties")
"""Methods that take a tensor after another."""
BINS = 1 << 16


def merge_files(
    method: str, base: Path | None, experts: Sequence[Path], out: Path, *,
    farthest: float = 1.0, **options: Any,
) -> None:  # fmt: skip
    """Merges checkpoints of any architecture and writes one; tensors keep names and types.

    Of the experts one tensor is in memory at a time, and the merged model. Tensors that are not
    floating point, such as counters, are those of the base.

    Args:
      method: A name in `METHODS_OF_FILES`.
      base: File or folder of the checkpoint that all were fine-tuned from; None for methods in
        `NO_BASE`.
      experts: Files or folders of safetensors, or files of another kind that
        `rml.models.pretrained` reads.
      out: File to write, which must not exist.
      farthest: Largest distance of an expert from the base, as a share of the base's norm.
      **options: The method's own, as for `rml.merging.merge`.

    Raises:
      UserError: The method is unknown or needs a base; a file is missing or damaged; tensors
        differ in a name or a shape, hold NaN or infinite values, or lie too far from the base;
        `out` exists or does not end in `.safetensors`. Nothing is written then.
    """
    if method not in METHODS_OF_FILES:
        raise unknown("method of files", method, METHODS_OF_FILES)
    if base is None and method not in NO_BASE:
        raise UserError(f"{method} needs a base, the checkpoint that all were fine-tuned from")
    if not experts:
        raise UserError("experts is empty, expected at least one checkpoint")
    if out.exists() or out.suffix != ENDING:
        raise UserError(f"{out} exists or does not end in {ENDING}; expected a new file of it")
    opened = {str(path): open_checkpoint(path) for path in experts}
    start = next(iter(opened.values())) if base is None else open_checkpoint(base)
    check_trees(_shapes(start), {name: _shapes(own) for name, own in opened.items()})
    floats = [name for name, tensor in start.items() if tensor.dtype in FLOATS]
    if method == "ties":
        keep = options.pop("keep", 0.2)
        if not 0 < keep <= 1:
            raise UserError(f"keep is {keep}, expected a share in (0, 1]")
        options["least"] = jnp.asarray(
            _least_kept(lambda: _magnitudes(floats, start, opened), keep)
        )
    merged = {name: own.read() for name, own in start.items() if name not in set(floats)}
    apart, size = np.zeros(len(opened)), 0.0
    for place, name in enumerate(floats):
        own = start[name].read()
        stacked = np.stack([tensors[name].read() for tensors in opened.values()])
        rows = {path: {name: row} for path, row in zip(opened, stacked, strict=True)}
        check_values({name: own}, rows, farthest=math.inf)
        apart += _squares(stacked.astype(np.float32) - own.astype(np.float32))
        size += float(_squares(own[None].astype(np.float32))[0])
        given = dict(options)
        if method == "dare":
            given["key"] = jax.random.fold_in(options["key"], place)
        merged[name] = np.asarray(merge(method, {name: own}, {name: stacked}, **given)[name])
    if base is not None:
        shares = np.sqrt(apart / max(size, 1e-30))
        check_distances(dict(zip(opened, shares.tolist(), strict=True)), farthest)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    require("safetensors.numpy").save_file(merged, str(partial))
    partial.rename(out)


def open_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of all files of safetensors in a folder, not read yet.

    Raises:
      UserError: There is none, or one cannot be read.
    """
    if not path.is_dir():
        return read_file(path)
    found: dict[str, Tensor] = {}
    for file in sorted(path.glob(f"*{ENDING}")):
        found |= read_file(file)
    if not found:
        raise UserError(f"{path} has no files of {ENDING}, expected a checkpoint")
    return found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(tensor.shape, np.float32) for name, tensor in tensors.items()
    }


def _squares(rows: np.ndarray) -> np.ndarray:
    """Sums of the squares of every row [n, ...]."""
    flat = rows.reshape(len(rows), -1)
    return np.einsum("ni,ni->n", flat, flat, dtype=np.float64)


def _magnitudes(
    names: Sequence[str], start: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[np.ndarray]:
    """What fine-tuning changed, a tensor after another: magnitudes [n, size] in float32."""
    for name in names:
        own = start[name].read().astype(np.float32)
        yield np.stack([
            np.abs(tensors[name].read().astype(np.float32) - own).ravel()
            for tensors in experts.values()
        ])  # fmt: skip


def _least_kept(parts: Callable[[], Iterator[np.ndarray]], keep: float) -> np.ndarray:
    """The least of a share of largest magnitudes of every row, exactly, in two passes.

    The bits of floats that are not negative are ordered as they are, so that the upper and then
    the lower half of them are counted.

    Args:
      parts: Gives the rows [n, size] in parts, anew at each call.
      keep: The share, of which at least one is kept.

    Returns:
      Magnitudes [n].
    """
    found = np.zeros(0, np.uint32)
    wanted = np.zeros(0, np.int64)
    for shift in (16, 0):
        counts, size = np.zeros(0), 0
        for part in parts():
            bits = part.view(np.uint32)
            if not counts.size:
                counts = np.zeros((len(bits), BINS), np.int64)
            if shift and not size:
                found = np.zeros(len(bits), np.uint32)
            size += bits.shape[1]
            for row, own in enumerate(bits):
                if not shift:
                    own = own[own >> 16 == found[row]]
                counts[row] += np.bincount(own >> shift & (BINS - 1), minlength=BINS)
        if shift:
            wanted = np.full(len(counts), max(1, round(keep * size)))
        above = np.cumsum(counts[:, ::-1], axis=1)
        first = np.argmax(above >= wanted[:, None], axis=1)
        place = BINS - 1 - first
        before = above[np.arange(len(above)), first] - counts[np.arange(len(counts)), place]
        wanted = wanted - before
        found = place.astype(np.uint32) if shift else found << 16 | place.astype(np.uint32)
    return found.view(np.float32)
