"""Shares by layer: divergences against a float64 oracle, allocation against sorting all entries."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from rml.models import Llama
from rml.models.block_hooks import Thresholds
from rml.sparsity import Calibration, layer_divergence, shares_by_sensitivity, thresholds_of
from rml.sparsity.thresholds import bin_counts

DIVERGENCE = np.array([0.5, 2.0, 0.1])


@pytest.fixture(scope="module")
def sizes():
    """Importances of three layers, of different spread."""
    rng = np.random.default_rng(0)
    return np.exp(rng.normal(size=(3, 4000)) * np.array([[1.0], [0.5], [1.5]]))


@pytest.fixture(scope="module")
def calibration(sizes):
    units = np.array([0.7, 1.0, 2.0])
    count = jax.jit(bin_counts)
    counts = [np.asarray(count(jnp.asarray(own / u, jnp.float32)), np.int64)
              for own, u in zip(sizes, units, strict=True)]  # fmt: skip
    return Calibration({"abs": np.ones((3, 5))}, {"abs": units}, {"abs": np.stack(counts)})


def test_what_costs_least_over_all_layers_is_left_out(sizes, calibration):
    measured = 0.6
    ordered = np.sort(sizes, axis=1) ** 2
    sensitivity = DIVERGENCE / ordered[:, : int(measured * 4000)].sum(1)
    cost = sensitivity[:, None] * ordered
    for sparsity in (0.2, 0.7):
        level = np.sort(cost.ravel())[int(sparsity * cost.size)]
        want = (cost < level).mean(1)
        found = shares_by_sensitivity(calibration, DIVERGENCE, measured=measured, sparsity=sparsity)
        np.testing.assert_allclose(found, want, atol=0.01)
        assert found.mean() == pytest.approx(sparsity, abs=1e-9)
        assert np.ptp(found) > 0.1
        # Another share of the same mean costs more.

        def spent(shares, cost=cost):
            pairs = zip(cost, shares, strict=True)
            return sum(np.sort(own)[: int(q * 4000)].sum() for own, q in pairs)

        assert spent(found) < spent(np.full(3, sparsity))
        assert spent(found) < spent(found + np.array([0.05, -0.05, 0.0]))


def test_ends_and_thresholds_of_shares(calibration):
    nothing, everything = (
        shares_by_sensitivity(calibration, DIVERGENCE, measured=0.5, sparsity=float(share))
        for share in (0, 1)
    )
    assert not nothing.any()
    assert (everything == 1).all()
    shares = np.array([0.0, 0.4, 1.0])
    gate = np.asarray(thresholds_of(calibration, sparsity=shares).gate)
    alone = np.asarray(thresholds_of(calibration, sparsity=0.4).gate)
    assert not gate[0].any()
    np.testing.assert_array_equal(gate[1], alone[1])
    assert np.isinf(gate[2]).all()
    # A layer that measured nothing gives nearly all before the others give any.
    found = shares_by_sensitivity(
        calibration, np.array([0.0, 1.0, 1.0]), measured=0.5, sparsity=1 / 3
    )
    assert found[0] > 0.9


@pytest.mark.slow
def test_divergence_is_that_of_one_layer_thinned_out_alone():
    module = Llama(vocabulary=20, width=8, depth=3, heads=2, mlp=12, tied=True)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.7 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )
    windows = rng.integers(20, size=(2, 5)).astype(np.int32)
    gate = rng.uniform(0, 0.6, (3, 12)).astype(np.float32)
    found = layer_divergence(module, variables, windows, Thresholds(gate=jnp.asarray(gate)))

    @jax.jit
    def logits(gate):
        own = Thresholds(gate=gate)
        hidden = module.apply(variables, jnp.asarray(windows), thresholds=own)
        return module.apply(variables, hidden, method="logits")

    def log_p(gate):
        return log_softmax(np.asarray(logits(jnp.asarray(gate)), np.float64), axis=-1)

    dense, want = log_p(0 * gate), []
    for layer in range(3):
        own = log_p(gate * (np.arange(3) == layer)[:, None])
        want.append((np.exp(dense) * (dense - own)).sum(-1).mean())
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-6)


def test_bad_input_is_named(calibration):
    good = {"measured": 0.5, "sparsity": 0.5}
    with pytest.raises(ValueError, match=r"measured=0.0 and sparsity=0.5, expected above 0 to 1"):
        shares_by_sensitivity(calibration, DIVERGENCE, **good | {"measured": 0.0})
    with pytest.raises(ValueError, match="rule 'rms' was not calibrated, only abs"):
        shares_by_sensitivity(calibration, DIVERGENCE, rule="rms", **good)
    for wrong in (-DIVERGENCE, 0 * DIVERGENCE, DIVERGENCE * np.nan):
        with pytest.raises(ValueError, match="expected numbers that are not negative, one above 0"):
            shares_by_sensitivity(calibration, wrong, **good)
    module = Llama(vocabulary=9, width=8, depth=1, heads=2, mlp=4)
    with pytest.raises(ValueError, match="no windows to measure layers on"):
        layer_divergence(module, {}, np.zeros((0, 4), np.int32), Thresholds())
