"""Features in the plane, for figures; computed on the host."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rml.evaluation.checks import require_finite
from rml.evaluation.collapse import collapsed


def embed_2d(
    features: Float[Array, "n d"],
    *,
    method: Literal["pca", "tsne"] = "pca",
    seed: int = 0,
    perplexity: float = 30.0,
) -> Float[Array, "n 2"]:
    """Places every row in the plane; rows that are all equal, up to rounding, at the origin.

    Args:
      features: One row per example, n and d at least 2.
      method: "pca", the two principal axes, or "tsne", started from them.
      seed: Seed of t-SNE.
      perplexity: Perplexity of t-SNE; lowered to (n - 1) / 3 where n is small.

    Returns:
      Coordinates in float32.

    Raises:
      ValueError: If there are fewer than two rows or features, a feature is not finite, or the
        method is unknown.
    """
    # scikit-learn takes as long to import as JAX, and only figures need it.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    n, d = features.shape
    if n < 2 or d < 2:
        raise ValueError(f"features must have at least 2 rows and 2 columns, got {features.shape}")
    if method not in ("pca", "tsne"):
        raise ValueError(f"method must be 'pca' or 'tsne', got {method!r}")
    require_finite("features", features)
    if collapsed(features):  # t-SNE crashes the process otherwise
        return jnp.zeros((n, 2), jnp.float32)
    x = np.asarray(features, np.float32)
    if method == "pca":
        plane = PCA(n_components=2, svd_solver="full").fit_transform(x)
    else:
        perplexity = min(perplexity, (n - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
        # Its short parallel loops spin: more threads than free cores cost several times the work.
        with threadpool_limits(1):
            plane = tsne.fit_transform(x)
    return jnp.asarray(plane, jnp.float32)
