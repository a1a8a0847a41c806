"""Linear CKA against Gram matrices in float64, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.evaluation import linear_cka


def pair(n: int, d: int, e: int) -> tuple[jax.Array, jax.Array]:
    """Two representations that share something, off the origin."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (n, d)) + 1
    return x, x @ jax.random.normal(keys[1], (d, e)) + 2 * jax.random.normal(keys[2], (n, e))


def oracle(x, y, debiased: bool) -> float:
    """The definition by Gram matrices; Song et al.'s estimator as they write it, not centred."""
    k, m = (np.asarray(v, np.float64) @ np.asarray(v, np.float64).T for v in (x, y))
    n = len(k)
    center = np.eye(n) - 1 / n
    ones = np.ones(n)

    def hsic(a, b):
        if not debiased:
            return np.trace(center @ a @ center @ b)
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        return (
            np.trace(a @ b)
            + (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (ones @ a @ b @ ones)
        )

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.slow
@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(("n", "d", "e"), [(30, 4, 7), (30, 4, 50), (10, 20, 20), (5, 5, 3)])
def test_equals_gram_matrices(n, d, e, debiased):
    x, y = pair(n, d, e)
    np.testing.assert_allclose(
        linear_cka(x, y, debiased=debiased), oracle(x, y, debiased), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("n", [8, 30])  # by Gram matrices, by features
def test_rotation_scale_and_offset_do_not_matter(n, debiased):
    x, y = pair(n, 10, 10)
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (10, 10)))[0]
    np.testing.assert_allclose(linear_cka(x, 1e6 * x @ rotation, debiased=debiased), 1, rtol=1e-5)
    np.testing.assert_allclose(
        linear_cka(1e-9 * (x - 3) @ rotation, y, debiased=debiased),
        linear_cka(x, y, debiased=debiased),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        linear_cka(x, y, debiased=debiased), linear_cka(y, x, debiased=debiased), rtol=1e-5
    )


@pytest.mark.parametrize("n", [8, 30])
@pytest.mark.parametrize("scale", [2.0**66, 2.0**-72])
def test_squares_beyond_the_range_do_not_matter(n, scale):
    x, y = pair(n, 10, 10)
    np.testing.assert_array_equal(linear_cka(scale * x, y), linear_cka(x, y))


@pytest.mark.slow
def test_independent_wide_features_are_similar_only_with_bias():
    keys = jax.random.split(jax.random.key(0), 2)
    x, y = (jax.random.normal(key, (20, 500)) for key in keys)
    assert float(linear_cka(x, y)) > 0.9
    assert abs(float(linear_cka(x, y, debiased=True))) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 40])
def test_equidistant_rows_have_no_unbiased_similarity(n):
    """Off the diagonal their centred Gram matrix is constant, so that the estimate is 0 / 0."""
    other = jax.random.normal(jax.random.key(1), (n, 3))
    assert np.isnan(linear_cka(jnp.eye(n), other, debiased=True))
    assert np.isnan(linear_cka(3 * jnp.eye(n), jnp.eye(n), debiased=True))
    assert np.isfinite(linear_cka(jnp.eye(n), other))


@pytest.mark.slow
def test_half_precision_inside_jit():
    x, y = (v.astype(jnp.bfloat16) for v in pair(30, 4, 7))
    result = jax.jit(linear_cka)(x, y)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, oracle(x, y, debiased=False), rtol=1e-4)


@pytest.mark.parametrize("debiased", [False, True])
def test_a_constant_representation_inside_jit_has_no_similarity(debiased):
    """The mean of its rows lies beside them, by rounding."""
    constant, other = np.full((7, 3), 0.1, np.float32), np.eye(7, 2, dtype=np.float32)
    for given in ((constant, other), (other, constant), (constant, constant)):
        assert np.isnan(jax.jit(linear_cka, static_argnames="debiased")(*given, debiased=debiased))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "debiased", "message"),
    [
        (lambda x: x.at[0, 0].set(jnp.nan), False, "x must be finite, got 1 NaN"),
        (lambda x: jnp.full_like(x, 0.1), False, "undefined for the constant representation x"),
        (lambda x: x[:1], False, "at least 2 examples, got 1"),
        (lambda x: x[:3], True, "at least 4 examples, got 3"),
    ],
)
def test_errors_name_what_is_wrong(change, debiased, message):
    x, y = pair(6, 3, 2)
    x = change(x)
    with pytest.raises(ValueError, match=message):
        linear_cka(x, y[: len(x)], debiased=debiased)


def test_examples_must_be_the_same(unchecked):
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(5, 2\)"):
        linear_cka(jnp.ones((6, 3)), jnp.ones((5, 2)))


@pytest.mark.parametrize(("x", "y"), [((6, 3, 2), (6, 2)), ((6, 3), (6,))])
def test_representations_must_be_matrices(unchecked, x, y):
    wrong = f"{'x' if len(x) != 2 else 'y'} must have the shape \\[n, d\\]"
    x, y = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x, y)))
    with pytest.raises(ValueError, match=wrong):
        linear_cka(x, y)
