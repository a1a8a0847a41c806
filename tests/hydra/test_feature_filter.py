"""The feature filter: symmetric by construction, gates in range, random only with a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.hydra.feature_filter import COMBINE, FeatureFilter, gate_penalty

FIRST, SECOND = jnp.array([0, 1, 2, 3, 3]), jnp.array([1, 0, 3, 2, 3])
SMALL = dict(classes=4, features=6, embed=5, hidden=7)


def build(**options):
    module = FeatureFilter(**(SMALL | options))
    return module, module.init(jax.random.key(0), FIRST, SECOND)


@pytest.mark.slow
@pytest.mark.parametrize("combine", COMBINE)
def test_gates_of_a_pair_do_not_depend_on_its_order(combine):
    module, variables = build(combine=combine)
    gates = module.apply(variables, FIRST, SECOND)
    np.testing.assert_array_equal(gates[0], gates[1])
    np.testing.assert_array_equal(gates[2], gates[3])
    np.testing.assert_array_equal(gates, module.apply(variables, SECOND, FIRST))
    assert np.abs(gates[0] - gates[2]).max() > 1e-3  # other pairs, other gates
    assert gates.shape == (5, 6)
    assert bool(jnp.all((gates > 0) & (gates < 1)))


@pytest.mark.slow
def test_gates_combine_is_the_product_of_class_gates():
    module, variables = build(combine="gates")
    alone = jnp.sqrt(module.apply(variables, jnp.arange(4), jnp.arange(4)))
    np.testing.assert_allclose(
        module.apply(variables, FIRST, SECOND), alone[FIRST] * alone[SECOND], rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_depth_and_norm(layers, norm):
    module, variables = build(layers=layers, norm=norm)
    kernels = [k for k in variables["params"]["network"] if k.startswith("dense")]
    assert len(kernels) == layers
    assert module.apply(variables, FIRST, SECOND).shape == (5, 6)


@pytest.mark.slow
def test_a_low_temperature_makes_gates_binary():
    module, variables = build()
    cold, _ = build(temperature=1e-3)
    gates = module.apply(variables, FIRST, SECOND)
    assert float(gate_penalty(cold.apply(variables, FIRST, SECOND))) < float(gate_penalty(gates))
    np.testing.assert_allclose(cold.apply(variables, FIRST, SECOND) > 0.5, gates > 0.5)


@pytest.mark.slow
def test_straight_through_rounds_and_passes_the_gradient():
    module, variables = build(gate="straight_through")
    soft, _ = build()
    gates = module.apply(variables, FIRST, SECOND)
    assert set(np.unique(gates)) <= {0.0, 1.0}

    def total(module):
        return lambda v: jnp.sum(module.apply(v, FIRST, SECOND) * jnp.arange(6))

    hard_grad, soft_grad = (
        jax.jit(jax.grad(total(module)))(variables),
        jax.jit(jax.grad(total(soft)))(variables),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), hard_grad, soft_grad)


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["concrete", "stochastic"])
def test_random_gates_draw_with_a_key_only(gate):
    module, variables = build(gate=gate)
    still = module.apply(variables, FIRST, SECOND)
    np.testing.assert_array_equal(still, module.apply(variables, FIRST, SECOND))
    drawn = jax.jit(jax.vmap(lambda key: module.apply(variables, FIRST, SECOND, key)))(
        jax.random.split(jax.random.key(1), 2001)
    )
    assert bool(jnp.all((drawn >= 0) & (drawn <= 1)))
    assert float(drawn.std(0).min()) > 0.01
    np.testing.assert_allclose(jnp.median(drawn, 0), still, atol=0.08)


@pytest.mark.slow
def test_concrete_gates_open_as_often_as_their_probability():
    module, variables = build(gate="concrete")
    p = module.apply(variables, FIRST, SECOND)
    drawn = jax.jit(jax.vmap(lambda key: module.apply(variables, FIRST, SECOND, key)))(
        jax.random.split(jax.random.key(2), 4000)
    )
    np.testing.assert_allclose(jnp.mean(drawn > 0.5, 0), p, atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_concrete_gates_are_above_a_level_as_often_as_a_relaxed_bernoulli_variable(temperature):
    """σ((a + L) / τ) > t where L > τ logit(t) - a, L logistic (Maddison et al. 2017, eq. 16)."""
    module, variables = build(gate="concrete", temperature=temperature)
    still = np.asarray(module.apply(variables, FIRST, SECOND), np.float64)
    logit = temperature * np.log(still / (1 - still))
    drawn = jax.jit(jax.vmap(lambda key: module.apply(variables, FIRST, SECOND, key)))(
        jax.random.split(jax.random.key(5), 2000)
    )
    for level in (0.2, 0.9):
        least = temperature * np.log(level / (1 - level)) - logit
        expected = 1 / (1 + np.exp(least))
        np.testing.assert_allclose(np.mean(drawn > level, 0), expected, atol=0.055)


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["mean", "gates"])
def test_openness_is_how_often_a_stochastic_gate_is_above_zero(combine):
    module, variables = build(gate="stochastic", combine=combine, noise=0.8, temperature=0.6)
    given = module.apply(variables, FIRST, SECOND, jax.random.key(0), openness=True)
    drawn = jax.jit(jax.vmap(lambda key: module.apply(variables, FIRST, SECOND, key)))(
        jax.random.split(jax.random.key(2), 4000)
    )
    np.testing.assert_allclose(jnp.mean(drawn > 0, 0), given, atol=0.035)
    assert float(given.std()) > 0.2  # neither all open nor all closed
    soft, variables = build(gate="concrete")
    np.testing.assert_array_equal(
        soft.apply(variables, FIRST, SECOND, openness=True), soft.apply(variables, FIRST, SECOND)
    )
    with pytest.raises(ValueError, match=r"noise of the feature filter is 0.0"):
        build(gate="stochastic", noise=0.0)[0].apply(variables, FIRST, SECOND, openness=True)


# Mean, standard deviation and the second pair's gates of the authors' filter in training, float64.
AUTHORS = (
    0.6526558188531837, 0.3276360971898522, 0.654013346834191, 0.27879028348113255,
    0.38251453238804345, 0.9690744186594824, 0.24961975961779997,
)  # fmt: skip


@pytest.mark.slow
def test_the_papers_filter_gives_the_numbers_of_the_authors_code():
    rng = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape).round(3), jnp.float32)

    table, kernel0, bias0, kernel1, bias1 = draw(5, 4), draw(4, 6), draw(6), draw(6, 5), draw(5)
    norms = [{"scale": draw(n), "bias": draw(n)} for n in (4, 6)]
    network = {
        "dense0": {"kernel": kernel0, "bias": bias0}, "dense1": {"kernel": kernel1, "bias": bias1},
        "norm0": {"bn": norms[0]}, "norm1": {"bn": norms[1]},
    }  # fmt: skip
    labels = jnp.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4])
    partners = jnp.array([0, 1, 2, 1, 0, 2, 3, 0, 4, 3, 1, 4])
    module = FeatureFilter(5, 5, embed=4, hidden=6, norm="batch")
    start = module.init(jax.random.key(0), labels, partners)
    variables = {
        "params": {"embedding": table, "network": network}, "batch_stats": start["batch_stats"],
    }  # fmt: skip
    apply = jax.jit(lambda v: module.apply(v, labels, partners, train=True, mutable="batch_stats"))
    gates, changed = apply(variables)
    found = [gates.mean(), jnp.std(gates, ddof=1), *gates[1]]
    np.testing.assert_allclose(found, AUTHORS, rtol=1e-5)
    assert jax.tree.map(jnp.shape, changed) == jax.tree.map(
        jnp.shape, {"batch_stats": start["batch_stats"]}, is_leaf=lambda x: hasattr(x, "shape")
    )


def test_open_gates_are_one_and_have_no_parameters():
    module, variables = build(gate="open")
    assert not jax.tree.leaves(variables)
    np.testing.assert_array_equal(module.apply(variables, FIRST, SECOND), np.ones((5, 6)))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0, 4], [1, 1], "first classes must lie between 0 and 3, got values from 0 to 4"),
        ([0, 1], [1, -1], "second classes must lie between 0 and 3, got values from -1 to 1"),
        ([0, 1], [1], r"shapes do not fit: first \(2,\) as \[pairs\], second \(1,\)"),
    ],
)
def test_pairs_of_classes_that_there_are_not_are_refused(unchecked, first, second, message):
    module = FeatureFilter(**SMALL, gate="open")
    with pytest.raises(ValueError, match=message):
        module.apply({}, jnp.array(first), jnp.array(second))


def test_penalty_is_zero_for_binary_and_one_for_undecided_gates():
    assert float(gate_penalty(jnp.array([[0.0, 1.0], [1.0, 1.0]]))) == 0
    assert float(gate_penalty(jnp.full((2, 3), 0.5))) == 1
    # Its gradient pushes a gate to the nearer end.
    np.testing.assert_array_equal(
        jnp.sign(jax.jit(jax.grad(gate_penalty))(jnp.array([[0.2, 0.8]]))), [[1, -1]]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(combine="sum"), "combine of the feature filter 'sum'"),
        (dict(gate="sigmiod"), "did you mean 'sigmoid'"),
        (dict(norm="bacth"), "did you mean 'batch'"),
        (dict(layers=0), "layers of the feature filter is 0"),
        (dict(temperature=0.0), "temperature of the feature filter is 0.0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
