"""Features of a whole data set, batch by batch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def extract_features(
    encode: Callable[[Any], Array], batches: Iterable[Mapping[str, Any]], *, batch_size: int
) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
    """Encodes every image of a data set once; a jitted encoder is compiled once.

    Args:
      encode: Images [batch_size, h, w, c] to features [batch_size, d].
      batches: Batches of `image` and `label`; the last may be smaller and is padded.
      batch_size: Rows of a full batch.

    Returns:
      Features and labels, in the order of the batches.
    """
    features, labels = [], []
    for batch in batches:
        images, count = np.asarray(batch["image"]), len(batch["label"])
        if count < batch_size:
            images = np.concatenate([images, np.repeat(images[-1:], batch_size - count, axis=0)])
        features.append(encode(images)[:count])
        labels.append(np.asarray(batch["label"]))
    return jnp.concatenate(features), jnp.asarray(np.concatenate(labels))
