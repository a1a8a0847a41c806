"""Features of the base, validation and novel images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.fewshot.common import PARTS, Parts
from rml import data, evaluation
from rml.data import augment
from rml.errors import UserError

Labelled = tuple[Float[Array, "n d"], Int[Array, " n"]]


class Features(NamedTuple):
    """Features and labels, from 0, of each part; base features give the mean to center by."""

    base: Labelled
    validation: Labelled
    novel: Labelled

    @classmethod
    def of(cls, parts: Parts, encoder: Callable[[Any], Array], *, batch_size: int) -> "Features":
        """Encodes every part.

        Args:
          parts: The images.
          encoder: Images [batch_size, h, w, c] to features [batch_size, d].
          batch_size: Images that are encoded at once.

        Returns:
          The features.
        """
        return cls(*(encode(encoder, parts[part], batch_size=batch_size) for part in PARTS))


def encode(encoder: Callable[[Any], Array], source: data.Source, *, batch_size: int) -> Labelled:
    """Features and labels of a source, in its order."""
    batches = data.batches(
        source, batch_size=batch_size, seed=0, shuffle=False, repeat=False, drop_remainder=False
    )
    return evaluation.extract_features(encoder, batches, batch_size=batch_size)


def pixels(parts: Parts, *, batch_size: int) -> Features:
    """The images themselves, or a user's vectors, as features."""
    return Features.of(
        parts,
        lambda images: augment.to_float(jnp.asarray(images)).reshape(len(images), -1),
        batch_size=batch_size,
    )


def read_npz(path: Path) -> Features:
    """Features of an `.npz` that says itself which part each is.

    Args:
      path: The file, with `x_base`, `x_validation` and `x_novel` [n, d] and `y_base`,
        `y_validation` and `y_novel` [n]; labels are numbers or strings, disjoint or not.

    Returns:
      The features, labels from 0 in sorted order within each part.

    Raises:
      UserError: An array is missing, or has another shape, another width, NaN or infinite values.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise UserError(f"features {path} cannot be read: {error}") from None
    names = [f"{kind}_{part}" for part in PARTS for kind in "xy"]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UserError(
            f"features {path} lack {', '.join(missing)}, hold {', '.join(sorted(arrays))}; "
            f"expected {', '.join(names)}, or x and y with config.features.of='pixels'"
        )
    width = arrays["x_base"].shape[-1]
    parts = []
    for part in PARTS:
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim != 2 or x.shape[1] != width or y.shape != x.shape[:1] or not len(x):
            raise UserError(
                f"features {path}: x_{part} is {list(x.shape)} and y_{part} {list(y.shape)}, "
                f"expected [n, {width}] and [n]"
            )
        if not np.isfinite(x).all():
            raise UserError(f"features {path}: x_{part} holds NaN or infinite values")
        labels = np.unique(y, return_inverse=True)[1].astype(np.int32)
        parts.append((jnp.asarray(x, jnp.float32), jnp.asarray(labels)))
    return Features(*parts)
