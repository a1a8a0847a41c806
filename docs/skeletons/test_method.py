"""The alignment and uniformity loss against its definition in float64, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.contrastive import align_uniform


def reference(a, b, weight, t):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    total = np.mean(np.sum((a - b) ** 2, axis=1))
    for z in (a, b):
        squares = np.sum((z[:, None] - z[None]) ** 2, axis=-1)
        others = squares[~np.eye(len(z), dtype=bool)]
        total += weight / 2 * np.log(np.mean(np.exp(-t * others)))
    return total


@pytest.mark.parametrize(("weight", "t"), [(1.0, 2.0), (0.3, 5.0)])
def test_value_and_gradient_match_the_float64_definition(weight, t):
    rng = np.random.default_rng(0)
    a, b, direction = rng.standard_normal((3, 8, 5))
    loss = jax.jit(jax.value_and_grad(lambda a, b: align_uniform(a, b, weight=weight, t=t)))
    value, gradient = loss(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(value, reference(a, b, weight, t), rtol=2e-5)
    step = 1e-6
    ends = [reference(a + sign * step * direction, b, weight, t) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), slope, rtol=1e-4)


def test_collapsed_and_zero_rows_have_finite_gradients():
    gradient = jax.jit(jax.grad(align_uniform))
    for rows in (np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32)):
        assert np.isfinite(gradient(rows, rows)).all()


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        jax.eval_shape(align_uniform, jnp.ones((1, 3)), jnp.ones((1, 3)))
