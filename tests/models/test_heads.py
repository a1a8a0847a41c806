import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import Classifier, PredictionHead, ProjectionHead
from rml.models.layers import Norm


def features(shape=(16, 6)):
    return jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, shape), jnp.float32)


def init(head, x):
    return nn.unbox(jax.jit(head.init)(jax.random.key(0), x))


def test_projection_is_the_mlp_it_says():
    x = features()
    head = ProjectionHead(features=3, hidden=5)
    p = init(head, x)["params"]
    hidden = np.maximum(np.asarray(x) @ p["dense0"]["kernel"] + p["dense0"]["bias"], 0)
    truth = hidden @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(head.apply({"params": p}, x), truth, rtol=1e-5, atol=1e-5)


def test_a_batch_norm_has_the_usual_floor_and_memory():
    x = 1e-2 * features((50, 3))
    norm = Norm("batch")
    variables = init(norm, x)
    out, new = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, variance = np.asarray(x, np.float64).mean(0), np.asarray(x, np.float64).var(0)
    truth = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(out, truth, atol=1e-3)
    found = new["batch_stats"]["bn"]
    np.testing.assert_allclose(found["mean"], 0.1 * mean, rtol=1e-3)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * variance, rtol=1e-5)


def test_projection_options():
    x = features()
    assert set(init(ProjectionHead(layers=1), x)["params"]) == {"out"}
    three = init(ProjectionHead(layers=3, norm=True, last_norm=True), x)
    assert set(three["params"]) == {"dense0", "norm0", "dense1", "norm1", "out"}
    assert three["params"]["dense0"]["kernel"].shape == (6, 6)  # hidden=None keeps the width
    assert set(three["params"]["out"]) == {"kernel"}
    assert set(three["batch_stats"]) == {"norm0", "norm1", "out_norm"}


def test_the_statistics_of_a_batch_norm_lie_as_its_scale_does():
    head = ProjectionHead(features=3, hidden=5, norm=True)
    specs = nn.get_partition_spec(jax.eval_shape(head.init, jax.random.key(0), features()))
    scale = specs["params"]["norm0"]["bn"]["scale"]
    assert scale == jax.sharding.PartitionSpec("mlp")
    assert specs["batch_stats"]["norm0"]["bn"] == {"mean": scale, "var": scale}


@pytest.mark.slow
def test_last_norm_standardises_the_batch():
    x = features()
    head = ProjectionHead(features=4, norm=True, last_norm=True)
    y, _ = head.apply(init(head, x), x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), 1.0, atol=1e-3)


def test_prediction_head_keeps_the_width():
    x = features()
    head = PredictionHead(hidden=2)
    variables = init(head, x)
    assert head.apply(variables, x).shape == x.shape
    assert variables["params"]["mlp"]["dense0"]["kernel"].shape == (6, 2)


def test_linear_classifier():
    x = features()
    head = Classifier(3)
    p = init(head, x)["params"]["out"]
    np.testing.assert_allclose(
        head.apply({"params": {"out": p}}, x), x @ p["kernel"] + p["bias"], rtol=1e-5
    )
    zero = Classifier(3, zero_init=True)
    assert not jnp.any(zero.apply(init(zero, x), x))


@pytest.mark.slow
def test_cosine_classifier():
    x = features()
    head = Classifier(3, cosine=True, scale=7.0)
    variables = init(head, x)
    logits = head.apply(variables, x)
    k = np.asarray(variables["params"]["kernel"], np.float64)
    x64 = np.asarray(x, np.float64)
    norms = np.linalg.norm(x64, axis=1)[:, None] * np.linalg.norm(k, axis=0)
    np.testing.assert_allclose(logits, 7.0 * (x64 @ k) / norms, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(head.apply(variables, 100 * x), logits, rtol=1e-5, atol=1e-5)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(head.apply(variables, x))))(jnp.zeros_like(x))
    assert jnp.isfinite(grad).all()


@pytest.mark.slow
def test_bfloat16_heads_keep_float32_parameters():
    x = features()
    for head in (
        ProjectionHead(norm=True, dtype=jnp.bfloat16),
        PredictionHead(dtype=jnp.bfloat16),
        Classifier(3, dtype=jnp.bfloat16),
        Classifier(3, cosine=True, dtype=jnp.bfloat16),
    ):
        variables = init(head, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        assert head.apply(variables, x).dtype == jnp.bfloat16


def test_misuse():
    with pytest.raises(ValueError, match="layers=0"):
        init(ProjectionHead(layers=0), features())
    with pytest.raises(ValueError, match="did you mean 'gelu'"):
        init(ProjectionHead(activation="gellu"), features())


@pytest.mark.slow
def test_cosines_of_short_rows_and_of_half_precision():
    x = features()
    head = Classifier(3, cosine=True, scale=7.0)
    variables = init(head, x)
    logits = head.apply(variables, x)
    np.testing.assert_allclose(head.apply(variables, 1e-12 * x), logits, rtol=1e-5, atol=1e-5)
    kernel = variables["params"]["kernel"]
    short = {"params": {**variables["params"], "kernel": 1e-12 * kernel}}
    np.testing.assert_allclose(head.apply(short, x), logits, rtol=1e-5, atol=1e-5)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (variables, x))
    ours = Classifier(3, cosine=True, dtype=jnp.bfloat16).apply(*half)
    wider = head.apply(*jax.tree.map(lambda a: a.astype(jnp.float32), half))
    np.testing.assert_array_equal(ours, wider.astype(jnp.bfloat16))
