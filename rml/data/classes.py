"""Classes of a data set split into three parts: for base training, for validation, and novel.

Few-shot learning is judged on classes of which no example was seen before. A part's examples are
those of its classes in its split of the data, numbered from 0.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rml.data.npz import read_arrays
from rml.data.oddities import require_labels
from rml.data.source import ArraySource, Source
from rml.data.splits import overlap
from rml.errors import UserError

PARTS = ("base", "validation", "novel")
SAME = "base"
"""Value of `validation` for held-out examples of the base classes."""


def split_classes(
    wanted: Mapping[str, Any],
    present: Mapping[str, Int[np.ndarray, " c"]],
    splits: Mapping[str, str],
    *,
    seed: int | None = None,
) -> dict[str, Int[np.ndarray, " k"]]:
    """Chooses the classes of each part.

    Args:
      wanted: Classes of each of `PARTS` as a list, or their number. A number is taken from
        the classes that no earlier part has. `validation` may be "base": the base classes again.
      present: Classes that the part's split of the data holds.
      splits: Name of the part's split, for messages.
      seed: Seed of the shuffle in which a number of classes is taken; None takes them in
        ascending order.

    Returns:
      Class numbers of each part.

    Raises:
      UserError: Parts overlap, or name more classes or other classes than there are.
    """
    same = wanted["validation"] == SAME
    parts = [part for part in PARTS if not (same and part == "validation")]
    chosen: dict[str, np.ndarray] = {}
    for part in parts:
        value = wanted[part]
        if isinstance(value, str):
            raise UserError(
                f"classes.{part} is {value!r}, expected a number of classes, a list of them"
                + (f" or {SAME!r}" if part == "validation" else "")
            )
        if isinstance(value, int):
            continue
        chosen[part] = np.asarray(value, int)
        missing = np.setdiff1d(chosen[part], present[part]).tolist()
        if missing:
            raise UserError(
                f"classes.{part} names {missing[:8]}, expected classes that data.{part}="
                f"{splits[part]!r} holds: {_shorten(present[part])}"
            )
    taken = {int(c): part for part, classes in chosen.items() for c in classes}
    for part in (part for part in parts if part not in chosen):
        free = np.array([c for c in np.unique(present[part]) if int(c) not in taken], int)
        if not 0 < wanted[part] <= len(free):
            raise UserError(
                f"classes.{part} is {wanted[part]}, expected 1 to {len(free)}: data.{part}="
                f"{splits[part]!r} holds {len(present[part])} classes, of which other parts have "
                f"{len(present[part]) - len(free)}"
            )
        if seed is not None:
            free = np.random.default_rng(seed).permutation(free)
        chosen[part] = np.sort(free[: wanted[part]])
        taken |= {int(c): part for c in chosen[part]}
    for part, classes in chosen.items():
        stolen = [int(c) for c in classes if taken[int(c)] != part]
        if stolen or len(set(classes.tolist())) < len(classes):
            other = taken[stolen[0]] if stolen else part
            raise UserError(
                f"classes.{part} and classes.{other} share {_shorten(stolen or classes)}; expected "
                "every class in one part, once"
            )
    if same:
        chosen["validation"] = chosen["base"]
    return chosen


def select_classes(source: Source, classes: Int[np.ndarray, " k"]) -> ArraySource:
    """Selects the examples of some classes, which become classes 0 to k - 1 in that order."""
    arrays = source.arrays()
    number = np.full(source.num_classes, -1)
    number[classes] = np.arange(len(classes))
    label = np.where(arrays["label"] >= 0, number[arrays["label"]], -1)
    kept = label >= 0
    return ArraySource(
        arrays["image"][kept],
        label[kept],
        class_names=[source.class_names[c] for c in classes],
        name=source.name,
        split=source.split,
    )


def open_parts(
    open_part: Callable[[str], Source],
    wanted: Mapping[str, Any],
    splits: Mapping[str, str],
    *,
    seed: int | None = None,
) -> dict[str, ArraySource]:
    """Opens the parts of a data set.

    Args:
      open_part: `open_part(part)` opens a part's split; called once for each split.
      wanted: Classes of each part, see `split_classes`.
      splits: Names of the splits of `PARTS` and of "held_out", which has base classes too.
      seed: See `split_classes`.

    Returns:
      The examples of each part.

    Raises:
      UserError: As `split_classes`, or there are no labels, or validation on base classes would see
        training examples, or might.
    """
    opened: dict[str, Source] = {}
    for part, split in splits.items():
        if split not in opened:
            opened[split] = require_labels(open_part(part), "a split of the classes")
    found = {part: np.unique(opened[split].arrays()["label"]) for part, split in splits.items()}
    present = {part: labels[labels >= 0] for part, labels in found.items()}
    classes = split_classes(wanted, present, splits, seed=seed)
    if wanted["validation"] == SAME:
        _check_held_out(splits)
    classes["held_out"] = classes["base"]
    return {part: select_classes(opened[split], classes[part]) for part, split in splits.items()}


def _check_held_out(splits: Mapping[str, str]) -> None:
    """Raises `UserError` unless validation shares no example with base training."""
    base, validation = (splits[part] for part in ("base", "validation"))
    shared = overlap({"data.base": base, "data.validation": validation})
    if shared is not False:
        raise UserError(
            f"classes.validation is {SAME!r} and data.validation={validation!r} "
            f"{'shares' if shared else 'may share'} examples with data.base={base!r}, expected "
            "another split: held-out images of the base classes"
        )


def first_of_each_class(labels: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    """Finds positions of the first `count` examples of each class, in ascending order.

    Examples with a negative label are of no class.
    """
    sizes = np.bincount(labels[labels >= 0])
    order = np.argsort(labels, kind="stable")[len(labels) - sizes.sum() :]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < count])


def read_feature_parts(
    path: Path,
) -> dict[str, tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]]:
    """Reads features from an `.npz` file that says itself which part each is.

    Args:
      path: File with `x_base`, `x_validation` and `x_novel` [n, d] and `y_base`, `y_validation`
        and `y_novel` [n]; labels are numbers or strings, disjoint or not.

    Returns:
      float32 features and labels of each part; labels count from 0 in sorted order.

    Raises:
      UserError: An array is missing, or has another shape, another width, NaN or infinite values.
    """
    arrays = read_arrays(path)
    names = [f"{kind}_{part}" for part in PARTS for kind in "xy"]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UserError(
            f"features {path} lack {', '.join(missing)}, hold {', '.join(sorted(arrays))}; "
            f"expected {', '.join(names)}, or x and y with config.features.of='pixels'"
        )
    width = arrays["x_base"].shape[-1] if arrays["x_base"].ndim else "d"
    found = {}
    for part in PARTS:
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.dtype.kind not in "biuf":
            raise UserError(f"features {path}: x_{part} has type {x.dtype}, expected numbers")
        if x.ndim != 2 or x.shape[1] != width or y.shape != x.shape[:1] or not len(x):
            raise UserError(
                f"features {path}: x_{part} is {list(x.shape)} and y_{part} {list(y.shape)}, "
                f"expected [n, {width}] and [n]"
            )
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise UserError(f"features {path}: x_{part} holds NaN, or infinite values in float32")
        labels = np.unique(y, return_inverse=True)[1]
        found[part] = x, labels.astype(np.int32)
    return found


def _shorten(classes: Any) -> str:
    shown = ", ".join(str(int(c)) for c in classes[:8])
    return shown + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
