"""Projections to the plane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.evaluation import embed_2d


def clusters() -> jax.Array:
    centers = 20 * jax.random.normal(jax.random.key(1), (3, 6))
    return jnp.repeat(centers, 10, axis=0) + jax.random.normal(jax.random.key(0), (30, 6))


def test_pca_keeps_the_two_largest_variances():
    x = jax.random.normal(jax.random.key(0), (50, 6)) * jnp.arange(1, 7.0)
    plane = np.asarray(embed_2d(x), np.float64)
    x64 = np.asarray(x, np.float64)
    singular = np.linalg.svd(x64 - x64.mean(0), compute_uv=False)
    np.testing.assert_allclose(plane.T @ plane, np.diag(singular[:2] ** 2), rtol=1e-4, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_clusters_stay_apart_and_the_result_is_repeatable(method):
    plane = embed_2d(clusters(), method=method)
    assert plane.shape == (30, 2)
    assert plane.dtype == jnp.float32
    middle = plane.reshape(3, 10, 2).mean(1)
    distances = np.linalg.norm(np.asarray(plane)[:, None] - np.asarray(middle), axis=-1)
    np.testing.assert_array_equal(distances.argmin(1), np.repeat(np.arange(3), 10))
    np.testing.assert_array_equal(embed_2d(clusters(), method=method), plane)


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_equal_rows_lie_at_the_origin(method, noise):
    """t-SNE of such features crashes the process."""
    rng = np.random.default_rng(0)
    rows = 3 + noise * rng.standard_normal((40, 5))
    plane = embed_2d(jnp.asarray(rows, jnp.float32), method=method)
    np.testing.assert_array_equal(plane, np.zeros((40, 2)))


@pytest.mark.slow
def test_bfloat16_and_few_rows():
    x = clusters()[:4].astype(jnp.bfloat16)
    assert np.isfinite(np.asarray(embed_2d(x, method="tsne"))).all()


def test_errors_name_what_is_wrong(unchecked):
    with pytest.raises(ValueError, match=r"got \(4, 1\)"):
        embed_2d(jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="features must be finite, got 1 NaN"):
        embed_2d(jnp.ones((4, 3)).at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="'pca' or 'tsne', got 'umap'"):
        embed_2d(jnp.ones((4, 3)), method="umap")
