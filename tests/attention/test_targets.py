import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from rml.attention import targets
from rml.errors import UserError

KEY = jax.random.key(0)


def test_inputs_are_uniform_on_the_sphere():
    query, keys = targets.draw_inputs(KEY, 4000, keys=2, d=3)
    assert (query.shape, keys.shape) == ((4000, 3), (4000, 2, 3))
    np.testing.assert_allclose(jnp.linalg.norm(keys, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(query.T @ query / 4000, np.eye(3) / 3, atol=0.02)
    np.testing.assert_allclose(jnp.mean(keys, axis=0), 0, atol=0.04)


@pytest.mark.slow
def test_targets_are_their_definitions():
    query, keys = (np.asarray(x, np.float64) for x in targets.draw_inputs(KEY, 5, keys=4, d=3))
    beta = np.asarray(targets.sphere(jax.random.key(1), 3), np.float64)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    for p in (1, 2, 3):
        average, correlation, weighted, mixed = np.zeros((4, 5))
        for n in range(5):
            for x in keys[n]:
                average[n] += (beta @ x) ** p / 4
                correlation[n] += (query[n] @ x) ** p / 4
                weighted[n] += (query[n] @ x) ** p * (beta @ x) / 4
                mixed[n] += (query[n] @ (0.8 * rotation @ x + 0.6 * x)) ** p / 4
        given = jnp.asarray(query), jnp.asarray(keys)
        direction, turn = jnp.asarray(beta), jnp.asarray(rotation)
        for value, expected in (
            (targets.average_power(*given, direction=direction, degree=p), average),
            (targets.correlation_power(*given, degree=p), correlation),
            (targets.weighted_correlation(*given, direction=direction, degree=p), weighted),
            (targets.mixed_correlation(*given, rotation=turn, weight=0.6, degree=p), mixed),
        ):
            np.testing.assert_allclose(value, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("degree", range(5))
def test_harmonics_are_gegenbauer_polynomials_that_are_1_at_1(degree):
    query, keys = targets.draw_inputs(KEY, 20, keys=3, d=5)
    direction = targets.sphere(jax.random.key(1), 5)
    found = targets.average_harmonic(query, keys, direction=direction, degree=degree)
    cosines = np.asarray(keys, np.float64) @ np.asarray(direction, np.float64)
    expected = special.eval_gegenbauer(degree, 1.5, cosines) / special.eval_gegenbauer(
        degree, 1.5, 1.0
    )
    np.testing.assert_allclose(found, expected.mean(1), atol=1e-6)


@pytest.mark.slow
def test_targets_and_a_users_function_are_invariant():
    beta = targets.sphere(KEY, 4)
    for fn in (
        lambda q, k: targets.average_power(q, k, direction=beta, degree=2),
        lambda q, k: targets.correlation_power(q, k, degree=3),
        lambda q, k: jnp.max(jnp.einsum("nd,nkd->nk", q, k), axis=1),
    ):
        targets.check_permutation_invariant(fn, KEY, keys=3, d=4)


def test_functions_of_the_order_are_refused():
    with pytest.raises(ValueError, match="not invariant to the order"):
        targets.check_permutation_invariant(lambda q, k: k[:, 0, 0], KEY, keys=3, d=4)
    with pytest.raises(ValueError, match="one number an example"):
        targets.check_permutation_invariant(lambda q, k: k[:, 0], KEY, keys=3, d=4)


@pytest.mark.parametrize("name", ["average_-1", "weighted_-1", "mixed_0.5_-1"])
def test_degrees_below_0_are_named(name):
    message = "degree is -1, expected a number at least 0"
    with pytest.raises(ValueError, match=message):
        targets.build_targets([name], KEY, keys=3, d=4)
    query, keys = targets.draw_inputs(KEY, 2, keys=3, d=4)
    for call in (
        lambda: targets.average_harmonic(query, keys, direction=query[0], degree=-1),
        lambda: targets.correlation_power(query, keys, degree=-1),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("weight", ["-1.5", "2.0", "nan"])
def test_weights_that_mix_nothing_are_named(weight):
    with pytest.raises(ValueError, match=f"weight is {weight}, expected a number between -1 and"):
        targets.build_targets([f"mixed_{weight}_2"], KEY, keys=3, d=4)


@pytest.mark.parametrize("wrong", ["n", "keys", "d"])
def test_inputs_of_nothing_are_named(wrong):
    with pytest.raises(ValueError, match=f"{wrong} is 0, expected a number above 0"):
        targets.draw_inputs(KEY, **{"n": 2, "keys": 3, "d": 4, wrong: 0})


@pytest.mark.parametrize(
    "name",
    ["average", "average_x", "average_3_4", "weighted_1.5", "mixed_3", "mixed_x_2", "mean_2"],
)
def test_names_without_their_numbers_are_unknown(name):
    with pytest.raises(UserError, match=f"unknown target '{name}'"):
        targets.build_targets([name], KEY, keys=3, d=4)


@pytest.mark.slow
def test_names_give_degree_and_weight():
    names = ("average_3", "weighted_2", "mixed_0.6_2")
    built = targets.build_targets(names, KEY, keys=3, d=4)
    assert {name: (own.func, own.keywords["degree"]) for name, own in built.items()} == {
        "average_3": (targets.average_power, 3),
        "weighted_2": (targets.weighted_correlation, 2),
        "mixed_0.6_2": (targets.mixed_correlation, 2),
    }
    assert built["mixed_0.6_2"].keywords["weight"] == 0.6
