import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses import smoothed_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_is_the_cross_entropy_with_the_smoothed_target(oracle, normal, smoothing):
    logits, labels = normal(0, 6, 4), np.array([0, 3, 1, 1, 2, 0])
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    log_p = logits - oracle.lse(logits)[:, None]
    loss = smoothed_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing)
    np.testing.assert_allclose(loss, -(target * log_p).sum(1), rtol=1e-5)


def test_is_least_at_the_smoothed_target():
    """The loss at logits log t of the smoothed target t is its entropy, the least there is."""
    target = np.full(5, 0.1 / 5)
    target[2] += 0.9
    entropy = -(target * np.log(target)).sum()

    def loss(logits):
        return smoothed_cross_entropy(logits[None], jnp.array([2]), smoothing=0.1)[0]

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.log(jnp.asarray(target)))
    assert float(value) == pytest.approx(entropy, rel=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    assert float(loss(jnp.array([0.0, 0, 9, 0, 0]))) > entropy


def test_half_precision_and_large_logits_stay_finite():
    logits = jnp.array([[3e4, -3e4, 0.0]], jnp.bfloat16)

    def loss(logits):
        return jnp.mean(smoothed_cross_entropy(logits, jnp.array([1]), smoothing=0.1))

    value, slope = jax.jit(jax.value_and_grad(loss))(logits)
    assert value.dtype == jnp.float32
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(slope.astype(jnp.float32)))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_class_that_is_masked_costs_nothing(compiled):
    """Where the target leaves it out, at whatever smoothing is traced."""
    logits, label = jnp.array([[1.0, 2.0, -jnp.inf]]), jnp.array([0])

    def loss(logits, smoothing):
        return smoothed_cross_entropy(logits, label, smoothing=smoothing)[0]

    call = jax.value_and_grad(loss)
    value, slope = (jax.jit(call) if compiled else call)(logits, jnp.float32(0))
    assert float(value) == pytest.approx(float(jnp.log1p(jnp.e)), rel=1e-6)
    odds = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(slope, [[-odds, odds, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("label", "smoothing", "message"),
    [
        (3, 0.1, "labels must lie between 0 and 2, got values from 1 to 3"),
        (-1, 0.1, "labels must lie between 0 and 2, got values from -1 to 1"),
        (2, -0.5, "smoothing must lie between 0 and 1, got -0.5"),
        (2, 1.5, "smoothing must lie between 0 and 1, got 1.5"),
    ],
)
def test_labels_and_smoothing_out_of_range_are_refused(label, smoothing, message):
    with pytest.raises(ValueError, match=message):
        smoothed_cross_entropy(jnp.eye(3)[:2], jnp.array([1, label]), smoothing=smoothing)
