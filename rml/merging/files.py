"""Checkpoints merged from file to file, a part at a time, in the memory of one model."""

import contextlib
import functools
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rml.errors import UserError, unknown
from rml.merging.averages import scaled_weights
from rml.merging.dare import check_rate
from rml.merging.methods import METHODS, check_variance, compiled
from rml.models.pretrained.extra import require
from rml.models.pretrained.files import read_file
from rml.models.pretrained.tensors import FLOATS, Tensor
from rml.ops import shapes
from rml.ops.trees import check_distances, check_finite, check_trees

ENDING = ".safetensors"
NO_BASE = ("average", "weighted_average")
"""Methods that need no base."""
METHODS_OF_FILES = (*NO_BASE, "dare", "task_arithmetic", "ties")
"""Methods that take entries after others."""
OWN = ("least",)
"""Options of methods that are computed here."""
ENTRIES = 1 << 19
"""Entries that are merged at a time, of several tensors or of a part of one."""
THREADS = 2
"""Experts that are read at a time; TIES holds the changes of so many whole ones."""


def merge_files(
    method: str, base: Path | None, experts: Sequence[Path], out: Path, *,
    farthest: float = 1.0, **options: Any,
) -> None:  # fmt: skip
    """Merges checkpoints of any architecture and writes one; tensors keep names and types.

    Of the experts half a million entries are in memory at a time, and the merged model; for "ties"
    all changes of two experts. Tensors that are not floating point, such as counters, are the
    base's. Arithmetic is in float32, in float64 where a checkpoint stores a tensor so, and rounded
    once to the base's type; without a base types are the first expert's.

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
      UserError: The method is unknown, needs a base or an option, or has not an option that is
        given; an option is out of its range; a file is missing or damaged; a tensor stands in two
        files of a folder; one is of another floating-point type; tensors differ in a name or a
        shape, are floating point in the base alone, hold NaN or infinite values, also once merged
        and rounded, or lie too far from the base; a running variance would become negative; `out`
        exists, does not end in `.safetensors`, or cannot be written. Nothing is written then.
      ValueError: A scale is not finite.
    """
    if method not in METHODS_OF_FILES:
        raise unknown("method of files", method, METHODS_OF_FILES)
    if base is None and method not in NO_BASE:
        raise UserError(f"{method} needs a base, the checkpoint that all were fine-tuned from")
    if not experts:
        raise UserError("experts is empty, expected at least one checkpoint")
    if out.exists() or out.suffix != ENDING:
        raise UserError(f"{out} exists or does not end in {ENDING}; expected a new file of it")
    _check_options(method, options)
    if "weights" in options:
        options["weights"] = scaled_weights(options["weights"], len(experts))
    if "rate" in options:
        check_rate(options["rate"])
    shapes.check_finite(scale=options.get("scale"))
    paths, own = list(experts), experts[0] if base is None else base
    opened = {path: open_checkpoint(path) for path in dict.fromkeys((own, *paths))}
    start = opened[own]
    _check_types(opened)
    check_trees(_shapes(start), {str(path): _shapes(opened[path]) for path in paths})
    groups = _groups(start, {
        name: _common_type(name, opened)
        for name, tensor in start.items() if tensor.dtype in FLOATS
    })  # fmt: skip
    if method == "ties":
        keep = options.pop("keep", 0.2)
        if not 0 < keep <= 1:
            raise UserError(f"keep is {keep}, expected a share in (0, 1]")
        with ThreadPoolExecutor(THREADS) as pool:
            least = pool.map(
                lambda path: _least_kept(opened[own], opened[path], groups, keep), paths
            )
            options["least"] = np.asarray(list(least))
    merged = {
        name: np.empty(tensor.shape, FLOATS[tensor.dtype])
        if tensor.dtype in FLOATS
        else np.asarray(tensor.read(), order="C")  # bytes are written as they lie in memory
        for name, tensor in start.items()
    }
    apart, size, given = np.zeros(len(paths)), 0.0, dict(options)
    table = _table(0, 0, np.dtype(np.uint8))
    with ThreadPoolExecutor(THREADS) as pool:
        for number, group in enumerate(groups):
            dtype = group[0].dtype
            if table.dtype != dtype:  # one table, since fresh memory costs more than what is done
                table = _table(1 + len(paths), max(map(_entries, groups)), dtype)
            first, *rows = (row[: _entries(group)] for row in table)
            size += _read_square(own, opened[own], group, first)
            read = functools.partial(_read_square, group=group, base=first)
            apart += list(pool.map(lambda path, row, read=read: read(path, opened[path], out=row),
                                   paths, rows))  # fmt: skip
            if method == "dare":
                given["key"] = jax.random.fold_in(options["key"], number)
            # Entries do not mix, so that those of several tensors are one program's; columns beyond
            # them are left as they were. XLA may read the table itself, until all is computed.
            with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
                found = np.asarray(compiled(method)({"": table[0]}, {"": table[1:]}, **given)[""])
            pieces = zip(_parts(group, found), _parts(group, table[1:]), strict=True)
            for (piece, part), (_, given_parts) in pieces:
                with np.errstate(over="ignore"):  # it is told beneath
                    part = part.astype(merged[piece.name].dtype, copy=False)
                check_finite({str(out): {piece.name: part}})
                check_variance(piece.name, part, given_parts)
                merged[piece.name].reshape(-1)[piece.start : piece.stop] = part
    if base is not None:
        shares = np.sqrt(apart / max(size, 1e-30)).tolist()
        check_distances(dict(zip(map(str, paths), shares, strict=True)), farthest)
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            require("safetensors.numpy").save_file(merged, str(partial))
            partial.rename(out)
        finally:
            partial.unlink(missing_ok=True)
    except (require("safetensors").SafetensorError, OSError) as error:
        raise UserError(f"{out} cannot be written: {error}") from error


def _check_options(method: str, options: Mapping[str, Any]) -> None:
    """Raises `UserError` for an option that a method does not have, or one that it lacks."""
    own = {
        name: one for name, one in inspect.signature(METHODS[method].function).parameters.items()
        if one.kind == one.KEYWORD_ONLY and name not in OWN
    }  # fmt: skip
    for name in options:
        if name not in own:
            takes = ", ".join(own) or "none"
            raise UserError(f"{method} has no option {name!r}, expected one of: {takes}")
    for name, one in own.items():
        if one.default is one.empty and options.get(name) is None:
            raise UserError(f"{method} needs the option {name!r}")


def open_checkpoint(path: Path) -> dict[str, Tensor]:
    """Opens the tensors of a file, or of all safetensors files in a folder, without reading them.

    Raises:
      UserError: There is none, one cannot be read, or two have a tensor of one name.
    """
    if not path.is_dir():
        return read_file(path)
    found: dict[str, Tensor] = {}
    for file in sorted(path.glob(f"*{ENDING}")):
        own = read_file(file)
        for name in sorted(found.keys() & own.keys()):
            raise UserError(
                f"tensor {name!r} stands in {found[name].file} and {file}, expected in one file"
            )
        found |= own
    if not found:
        raise UserError(f"{path} has no files of {ENDING}, expected a checkpoint")
    return found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(tensor.shape, np.float32) for name, tensor in tensors.items()
    }


class _Piece(NamedTuple):
    """Entries of one tensor, by their places in it, which are those of whole rows.

    Their type is that in which they are merged.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int

    def of(self, value: Any) -> np.ndarray:
        """The entries of a tensor, or of what reads its rows."""
        if not self.shape:
            return np.asarray(value[...]).reshape(-1)
        row = math.prod(self.shape[1:])
        return value[self.start // row : self.stop // row].reshape(-1)


_Group = Sequence[_Piece]


def _entries(group: _Group) -> int:
    return sum(piece.stop - piece.start for piece in group)


def _common_type(name: str, opened: Mapping[Path, Mapping[str, Tensor]]) -> np.dtype[Any]:
    """The narrowest type that holds what all checkpoints store in a tensor.

    Raises:
      UserError: One of them stores no floating point.
    """
    for path, tensors in opened.items():
        if tensors[name].dtype not in FLOATS:
            raise UserError(
                f"leaf {name!r} of {path} is {tensors[name].dtype}, "
                f"expected one of: {', '.join(FLOATS)}"
            )
    types = (FLOATS[tensors[name].dtype] for tensors in opened.values())
    return np.dtype(functools.reduce(jnp.promote_types, types))


def _groups(tensors: Mapping[str, Tensor], types: Mapping[str, np.dtype[Any]]) -> Sequence[_Group]:
    """What is merged at a time: entries of one type, of small tensors or of a part of a large one.

    A row of a tensor is not broken, even where it has more than `ENTRIES`.
    """
    found: list[list[_Piece]] = []
    for dtype in map(np.dtype, FLOATS.values()):
        room = 0
        for name in (name for name, own in types.items() if own == dtype):
            shape = tensors[name].shape
            size, row = math.prod(shape), math.prod(shape[1:])
            step = max(1, ENTRIES // max(1, row)) * row
            for start in range(0, size, max(1, step)):
                piece = _Piece(name, dtype, shape, start, min(size, start + step))
                if piece.stop - start > room:
                    found.append([])
                    room = ENTRIES
                found[-1].append(piece)
                room -= piece.stop - start
    return found


def _table(rows: int, columns: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Zeros whose rows begin where a cache's lines do, as XLA wants them to take them as they are.

    There may be more columns for that.
    """
    line = 64
    columns = -(-columns // line) * line
    raw = np.zeros(rows * columns * dtype.itemsize + line, np.uint8)
    start = -raw.ctypes.data % line
    return raw[start : start + rows * columns * dtype.itemsize].view(dtype).reshape(rows, columns)


def _parts(group: _Group, row: np.ndarray) -> Iterator[tuple[_Piece, np.ndarray]]:
    """A group's pieces, and where they lie in a row, or in each of several."""
    at = 0
    for piece in group:
        size = piece.stop - piece.start
        yield piece, row[..., at : at + size]
        at += size


def _read(tensors: Mapping[str, Tensor], group: _Group, out: np.ndarray) -> None:
    """Reads entries into a row, in its type.

    Safetensors are read from their places in the file, so that their pages do not stay in memory.

    Raises:
      UserError: A file has become shorter since it was opened.
    """
    with contextlib.ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for piece, part in _parts(group, out):
            tensor = tensors[piece.name]
            if tensor.start is None:
                part[:] = piece.of(tensor.read())
                continue
            if tensor.file not in opened:
                opened[tensor.file] = stack.enter_context(tensor.file.open("rb", buffering=0))
            own = np.dtype(FLOATS[tensor.dtype])
            row = part if own == part.dtype else np.empty(part.shape, own)
            opened[tensor.file].seek(tensor.start + piece.start * own.itemsize)
            rest = row.view(np.uint8).data
            while rest:
                count = opened[tensor.file].readinto(rest)
                if not count:
                    raise UserError(f"{tensor.file} ends within {piece.name}; it was cut meanwhile")
                rest = rest[count:]
            if row is not part:
                part[:] = row


def _read_square(
    path: Path, tensors: Mapping[str, Tensor], group: _Group, out: np.ndarray,
    base: np.ndarray | None = None,
) -> float:  # fmt: skip
    """Reads entries into a row; returns their squared norm, or that of what is not the base's.

    Raises:
      UserError: There are NaN or infinite values.
    """
    _read(tensors, group, out)
    wide = np.promote_types(out.dtype, np.float32)
    row = out.astype(wide, copy=False)
    if base is not None:
        row = row - base.astype(wide, copy=False)
    square = float(row @ row)
    if not math.isfinite(square):  # of finite values that are huge as well
        for piece, part in _parts(group, out):
            check_finite({str(path): {piece.name: part}})
        square = float(np.sum(np.square(row, dtype=np.float64)))
    return square


def _check_types(opened: Mapping[Path, Mapping[str, Tensor]]) -> None:
    """Raises `UserError` for floating-point tensors whose arithmetic is not known here."""
    for path, tensors in opened.items():
        for name, tensor in tensors.items():
            if tensor.dtype not in FLOATS and tensor.dtype.startswith(("F", "BF")):
                raise UserError(
                    f"tensor {name!r} of {path} has dtype {tensor.dtype}, expected one of "
                    f"{', '.join(FLOATS)}, or integers or truth values, which are the base's"
                )


def _least_kept(
    base: Mapping[str, Tensor], expert: Mapping[str, Tensor], groups: Sequence[_Group], keep: float
) -> float:
    """The least magnitude of a share of largest changes of one expert, at least one of them."""
    if not groups:
        return 0.0
    ends = np.cumsum([_entries(group) for group in groups])
    wide = np.float64 if any(group[0].dtype == np.float64 for group in groups) else np.float32
    size = np.empty(ends[-1], wide)
    start = np.empty(max(map(_entries, groups)), wide)
    for group, end in zip(groups, ends, strict=True):
        count = _entries(group)
        part = size[end - count : end]
        _read(expert, group, part)
        _read(base, group, start[:count])
        part -= start[:count]
        np.abs(part, out=part)
    place = len(size) - max(1, round(keep * len(size)))
    size.partition(place)
    return float(size[place])
