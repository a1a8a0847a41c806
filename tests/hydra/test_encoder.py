"""The gated encoder: its gates are the filter's, its projections know no pair."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml import models
from rml.hydra import FeatureFilter, GatedEncoder, LearnedOptions

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 8, 8, 1)), jnp.float32)


@pytest.fixture(scope="module")
def built():
    model = GatedEncoder(
        models.build("convnet", features=4),
        models.ProjectionHead(hidden=5, features=6),
        FeatureFilter(classes=4, features=6, embed=3, hidden=5, gate="stochastic"),
    )
    return model, model.init(jax.random.key(0), IMAGES, train=True)


@pytest.mark.slow
def test_one_initialisation_makes_all_parts(built):
    assert set(built[1]["params"]) == {"encoder", "head", "filter"}
    assert built[1]["params"]["filter"]["embedding"].value.shape == (4, 3)


@pytest.mark.slow
def test_gates_are_the_filters(built):
    model, variables = built
    first, second, key = jnp.array([0, 3]), jnp.array([1, 3]), jax.random.key(1)
    own = {"params": variables["params"]["filter"]}
    for given in (None, key):
        np.testing.assert_array_equal(
            model.apply(variables, first, second, given, method="gates"),
            model.filter.apply(own, first, second, given),
        )
    drawn = model.apply(variables, first, second, key, method="gates")
    assert (drawn != model.apply(variables, first, second, method="gates")).any()


@pytest.mark.slow
def test_gates_of_all_pairs_stand_in_a_matrix(built):
    model, variables = built
    gates = model.apply(variables, method="pair_gates")
    assert gates.shape == (4, 4, 6)
    row = model.apply(variables, jnp.full(4, 1), jnp.arange(4), method="gates")
    np.testing.assert_allclose(gates[1], row, rtol=1e-5)
    np.testing.assert_array_equal(gates, gates.swapaxes(0, 1))


@pytest.mark.slow
def test_projections_are_the_heads_of_the_features_without_gates(built):
    model, variables = built
    features = model.apply(variables, IMAGES, method="features")
    head = {name: value["head"] for name, value in variables.items() if "head" in value}
    np.testing.assert_allclose(
        model.apply(variables, IMAGES, train=False),
        model.head.apply(head, features, train=False),
        rtol=1e-5,
    )


@pytest.mark.slow
def test_norm_probe_and_learned_options_are_the_authors(built):
    plain = built[0]
    model = plain.clone(
        norm=models.Norm("layer", axis="mlp"),
        probe=models.Classifier(4),
        options=LearnedOptions(temperature=0.2, ungated=0.7),
    )
    variables = nn.meta.unbox(model.init(jax.random.key(0), IMAGES, train=True))
    assert set(variables["params"]) == {"encoder", "head", "filter", "norm", "probe", "options"}
    shared = {
        c: {k: v for k, v in own.items() if k in ("encoder", "head", "filter")}
        for c, own in variables.items()
    }
    projections, logits = model.apply(variables, IMAGES, train=False, method="outputs")
    own = plain.apply(shared, IMAGES, train=False)
    centred = own - own.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(projections, expected, atol=1e-4)
    features = model.apply(variables, IMAGES, method="features")
    probe = variables["params"]["probe"]["out"]
    np.testing.assert_allclose(logits, features @ probe["kernel"] + probe["bias"], atol=1e-5)
    options = model.apply(variables, method="loss_options")
    np.testing.assert_allclose([options["temperature"], options["ungated"]], [0.2, 0.7], rtol=1e-6)

    def total(params):
        outputs = model.apply(
            {**variables, "params": params}, IMAGES, train=False, method="outputs"
        )
        return jnp.sum(outputs[1] ** 2)

    moved = {k: bool(any(map(jnp.any, jax.tree.leaves(g)))) for k, g in
             jax.jit(jax.grad(total))(variables["params"]).items()}  # fmt: skip
    assert {k for k, moves in moved.items() if moves} == {"probe"}
