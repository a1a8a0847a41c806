"""Learning curves of ridge regression against refitting in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention import models
from rml.attention.targets import draw_inputs
from rml.errors import UserError


def refitted(gram, y, penalty):
    """Squared leave-one-out error of each target, one example after another."""
    n = len(gram)
    errors = []
    for i in range(n):
        rest = np.arange(n) != i
        dual = np.linalg.solve(gram[rest][:, rest] + penalty * np.eye(n - 1), y[rest])
        errors.append((gram[i, rest] @ dual - y[i]) ** 2)
    return np.mean(errors, axis=0)


@pytest.mark.slow
def test_penalties_are_chosen_by_leaving_training_examples_out():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 6))
    y = x @ rng.standard_normal((6, 2)) + 0.1 * rng.standard_normal((40, 2))
    y[20:] *= -1  # the best penalty of the test examples would be the largest
    gram = x @ x.T / 6
    penalties, sizes = (1e-2, 1.0, 100.0), (12, 20)
    errors, chosen = models.learning_curve(
        jnp.asarray(gram[:20, :20]), jnp.asarray(gram[20:, :20]), jnp.asarray(y), penalties, sizes
    )
    for row, n in enumerate(sizes):
        left_out = np.array([refitted(gram[:n, :n], y[:n], p) for p in penalties])
        best = np.array(penalties)[np.argmin(left_out, axis=0)]
        assert (best < 100).all()
        np.testing.assert_allclose(chosen[row], best, rtol=1e-6)
        for target, penalty in enumerate(best):
            dual = np.linalg.solve(gram[:n, :n] + penalty * np.eye(n), y[:n, target])
            expected = np.mean((gram[20:, :n] @ dual - y[20:, target]) ** 2)
            np.testing.assert_allclose(errors[row, target], expected, rtol=1e-3)


@pytest.mark.slow
def test_penalties_of_kernels_are_shares_of_their_diagonal():
    query, keys = draw_inputs(jax.random.key(0), 30, keys=3, d=4)
    y = jnp.asarray(np.random.default_rng(1).standard_normal((30, 1)), jnp.float32)
    gram = np.asarray(models.kernel("rfa", scale=0.5)(query, keys, query, keys), np.float64)
    given = models.kernel("rfa", scale=jnp.float32(0.5))(query, keys, query, keys)
    np.testing.assert_array_equal(given, gram)
    found = models.kernel_learning_curve(query, keys, y, 0.3, model="rfa", sizes=(8, 16), train=20)
    scale = np.mean(np.diag(gram)[:20])
    assert abs(scale - 1) > 0.1
    for row, n in enumerate((8, 16)):
        dual = np.linalg.solve(gram[:n, :n] + 0.3 * scale * np.eye(n), y[:n])
        expected = np.mean((gram[20:, :n] @ dual - y[20:]) ** 2)
        np.testing.assert_allclose(found[row, 0], expected, rtol=1e-3)


def test_unknown_models_are_named():
    key, (query, keys) = jax.random.key(0), draw_inputs(jax.random.key(1), 4, keys=2, d=3)
    weights = models.draw_weights("biased_rfa", key, count=5, keys=2, d=3, scale=0.5)
    for call in (
        lambda name: models.draw_weights(name, key, count=5, keys=2, d=3, scale=0.5),
        lambda name: models.features(name, weights, query, keys),
        lambda name: models.kernel(name, scale=0.5),
    ):
        with pytest.raises(UserError, match="unknown model 'biased_rfaa'; did you mean 'biased_rf"):
            call("biased_rfaa")
        call("biased_rfa")


def test_parts_of_grams_that_do_not_fit_are_named():
    inputs = draw_inputs(jax.random.key(0), 3, keys=2, d=3)
    weights = jnp.ones((4, 4, 4))
    for blocks in (0, 3):
        with pytest.raises(UserError, match=f"blocks is {blocks}, expected a divisor of 4 weights"):
            models.grams("rfa", weights, *inputs, train=1, blocks=blocks)
    for train in (0, 4):
        with pytest.raises(ValueError, match=f"train is {train}, expected a number between 1 and"):
            models.grams("rfa", weights, *inputs, train=train, blocks=2)
