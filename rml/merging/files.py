"""Checkpoints merged from file to file, a tensor at a time, in the memory of one model."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rml.errors import UserError, unknown
from rml.merging.averages import check_weights
from rml.merging.methods import compiled
from rml.models.pretrained.extra import require
from rml.models.pretrained.files import read_file
from rml.models.pretrained.tensors import FLOATS, Tensor
from rml.ops.trees import check_distances, check_finite, check_trees

ENDING = ".safetensors"
NO_BASE = ("average", "weighted_average")
"""Methods that need no base."""
METHODS_OF_FILES = (*NO_BASE, "dare", "task_arithmetic", "ties")
"""Methods that take a tensor after another."""
ENTRIES = 1 << 20
"""Entries of a tensor that are merged at a time."""
THREADS = 2
"""Experts that are read at a time; TIES holds the changes of so many whole ones."""


def merge_files(
    method: str, base: Path | None, experts: Sequence[Path], out: Path, *,
    farthest: float = 1.0, **options: Any,
) -> None:  # fmt: skip
    """Merges checkpoints of any architecture and writes one; tensors keep names and types.

    Of the experts one tensor is in memory at a time, and the merged model; for "ties" all changes
    of two experts. Tensors that are not floating point, such as counters, are those of the base.

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
    check_weights(options.get("weights"), len(experts))
    paths, own = list(experts), experts[0] if base is None else base
    opened = {path: open_checkpoint(path) for path in (own, *paths)}
    start = opened[own]
    check_trees(_shapes(start), {str(path): _shapes(opened[path]) for path in paths})
    floats = [name for name, tensor in start.items() if tensor.dtype in FLOATS]
    if method == "ties":
        keep = options.pop("keep", 0.2)
        if not 0 < keep <= 1:
            raise UserError(f"keep is {keep}, expected a share in (0, 1]")
        with ThreadPoolExecutor(THREADS) as pool:
            least = pool.map(
                lambda path: _least_kept(opened[own], opened[path], floats, keep), paths
            )
            options["least"] = jnp.asarray(list(least))
    merged = {name: tensor.read() for name, tensor in start.items() if name not in set(floats)}
    apart, size = np.zeros(len(paths)), 0.0
    with ThreadPoolExecutor(THREADS) as pool:
        for place, name in enumerate(floats):
            first, *rows = pool.map(lambda path, n=name: _read(opened[path][n]), (own, *paths))
            size += _square(name, own, first)
            apart += list(pool.map(
                lambda path, row, n=name, x=first: _square(n, path, row, x), paths, rows
            ))  # fmt: skip
            given = dict(options)
            if method == "dare":
                given["key"] = jax.random.fold_in(options["key"], place)
            merged[name] = _merged(method, first, rows, given)
    if base is not None:
        shares = np.sqrt(apart / max(size, 1e-30)).tolist()
        check_distances(dict(zip(map(str, paths), shares, strict=True)), farthest)
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


def _read(tensor: Tensor) -> np.ndarray:
    """Reads one tensor; safetensors are opened anew, so that their pages do not stay in memory."""
    anew = tensor.file.suffix == ENDING
    return (read_file(tensor.file)[tensor.name] if anew else tensor).read()


def _square(name: str, path: Path, own: np.ndarray, base: np.ndarray | None = None) -> float:
    """The squared norm of a tensor, or of its difference from the base's.

    Raises:
      UserError: It holds NaN or infinite values.
    """
    flat = own.astype(np.float32, copy=False).ravel()
    if base is not None:
        flat = flat - base.astype(np.float32, copy=False).ravel()
    square = float(flat @ flat)
    if not math.isfinite(square):  # of finite values that are huge as well
        check_finite({str(path): {name: own}})
        square = float(np.sum(np.square(flat, dtype=np.float64)))
    return square


def _merged(
    method: str, base: np.ndarray, rows: Sequence[np.ndarray], options: Mapping[str, Any]
) -> np.ndarray:
    """Merges one tensor some entries at a time, all by one program: entries do not mix."""
    found = np.empty_like(base)
    flat = [x.reshape(-1) for x in (base, *rows, found)]
    given = dict(options)
    for number, at in enumerate(range(0, base.size, ENTRIES)):
        count = min(ENTRIES, base.size - at)
        part = np.zeros((1 + len(rows), ENTRIES), base.dtype)
        for row, x in zip(part, flat[:-1], strict=True):
            row[:count] = x[at : at + count]
        if "key" in given:
            given["key"] = jax.random.fold_in(options["key"], number)
        own = compiled(method)({"": part[0]}, {"": part[1:]}, **given)[""]
        flat[-1][at : at + count] = np.asarray(own)[:count]
    return found


def _least_kept(
    base: Mapping[str, Tensor], expert: Mapping[str, Tensor], names: Sequence[str], keep: float
) -> float:
    """The least magnitude of a share of largest changes of one expert, at least one of them."""
    ends = np.cumsum([math.prod(base[name].shape) for name in names])
    size = np.empty(ends[-1], np.float32)
    for name, end in zip(names, ends, strict=True):
        start, own = (
            _read(tensor).astype(np.float32, copy=False).ravel()
            for tensor in (base[name], expert[name])
        )
        part = size[end - len(own) : end]
        np.abs(np.subtract(own, start, out=part), out=part)
    place = len(size) - max(1, round(keep * len(size)))
    size.partition(place)
    return float(size[place])
