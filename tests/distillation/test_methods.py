"""What every distillation loss of the table must do, and what some are in their authors' code."""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.distillation import METHODS, Projected
from rml.ops.pairwise import euclidean

B, K = 6, 5
LABELS = np.array([0, 3, 3, 1, 4, 2], np.int32)
OPTIONS = {
    "kd": {"temperature": 2.5},
    "soft_cross_entropy": {"temperature": 2.5},
    "dkd": {"temperature": 2.5, "target_weight": 1.5, "others_weight": 3.0},
    "dist": {"temperature": 2.5, "inter": 1.5, "intra": 0.7},
    "cc": {"gamma": 0.9, "order": 3},
    "ofa": {"temperature": 2.5},  # with another exponent a copy is not its least
    "crd": {"temperature": 0.4, "size": 40.0},
    "scalekd": {"temperature": 2.5, "direct": 1.5, "alternative": 0.7, "share": 0.3},
}
"""Options away from neutral values."""


def loss_of(name):
    """A loss of rows of a student and of its teacher, of which tokens are made for one on tokens.

    They are exact in any type, have their channels in the order of the rows, and are no multiples
    of one another.
    """
    row = METHODS[name]
    if row.reads != "tokens":
        return row.loss

    def tokens(x):
        return jnp.stack([x, jnp.abs(x), -2 * jnp.maximum(x, 0)], axis=1)

    def loss(student, teacher, labels, **options):
        views = jnp.stack([tokens(student)] * 2)
        found = Projected(student, student, views, views)
        return row.loss(found, teacher, tokens(teacher), labels, **options)

    return loss


@cache
def compiled(name):
    """Values and the gradient of their sum, of logits or rows of one shape: one program a loss."""
    loss = partial(loss_of(name), **OPTIONS.get(name, {}))

    def run(student, teacher, labels):
        total = lambda s, t: loss(s, t, labels).sum()  # noqa: E731
        return loss(student, teacher, labels), *jax.grad(total, (0, 1))(student, teacher)

    return jax.jit(run)


def measure(name, student, teacher, labels=LABELS, dtype=jnp.float32):
    found = compiled(name)(
        jnp.asarray(student, dtype), jnp.asarray(teacher, dtype), jnp.asarray(labels)
    )
    return tuple(np.asarray(x, np.float64) for x in found)


def draw(seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((B, K))


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


@pytest.mark.slow
def test_a_value_of_each_example_in_their_order(name):
    values, gradient, _ = measure(name, draw(0), draw(1))
    assert values.shape == (B,)
    assert (values > 0).all()
    assert values.std() > 1e-3
    assert np.abs(gradient).max() > 1e-3
    order = np.array([4, 0, 5, 1, 3, 2])
    moved, *_ = measure(name, draw(0)[order], draw(1)[order], LABELS[order])
    np.testing.assert_allclose(moved, values[order], rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_classes_or_features_have_no_order(name):
    order = np.array([2, 4, 1, 0, 3])
    values, gradient, _ = measure(name, draw(0), draw(1))
    own = LABELS if METHODS[name].reads == "features" else np.argsort(order)[LABELS]
    moved, turned, _ = measure(name, draw(0)[:, order], draw(1)[:, order], own.astype(np.int32))
    np.testing.assert_allclose(moved, values, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(turned, gradient[:, order], rtol=1e-4, atol=1e-6)


def test_a_copy_of_the_teacher_has_nothing_to_learn(name):
    values, gradient, _ = measure(name, draw(1), draw(1))
    if METHODS[name].copies:
        np.testing.assert_allclose(values, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-5)
    elif METHODS[name].reads == "logits":
        assert (values > 0.1).all()
        np.testing.assert_allclose(gradient, 0, atol=1e-5)
    else:
        # Among other rows a copy is found soonest, and of tokens it has the least loss.
        others, *_ = measure(name, draw(0), draw(1))
        assert values.mean() < others.mean() - 0.5


def test_a_frozen_teacher_gets_no_gradient(name):
    _, _, teacher = measure(name, draw(0), draw(1))
    assert (np.abs(teacher).max() > 0) == (METHODS[name].maps == "both")


EDGES = {
    "sure and wrong": (draw(0) * 0 + np.eye(K)[[1] * B] * 200, np.eye(K)[[2] * B] * 200),
    "zeros": (np.zeros((B, K)), np.zeros((B, K))),
    "duplicates": (np.repeat(draw(0)[:1], B, 0), np.repeat(draw(1)[:2], B // 2, 0)),
    "large": (draw(0, 300.0), draw(1, 300.0)),
    "tiny": (draw(0, 1e-8), draw(1, 1e-8)),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges_are_finite_with_their_gradient(name, edge):
    values, gradient, _ = measure(name, *EDGES[edge])
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()
    assert (values > -1e-5).all()


@pytest.mark.slow
def test_half_precision_computes_in_single(name):
    rounded = [np.asarray(jnp.asarray(draw(i), jnp.bfloat16), np.float64) for i in (0, 1)]
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in rounded]
    values = jax.eval_shape(loss_of(name), *arrays, jnp.asarray(LABELS))
    assert values.dtype == jnp.float32
    half, gradient, _ = measure(name, *rounded, dtype=jnp.bfloat16)
    np.testing.assert_allclose(half, measure(name, *rounded)[0], rtol=1e-5, atol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["kd", "soft_cross_entropy", "dkd"])
def test_the_factor_of_the_temperature_keeps_the_size_of_gradients(name):
    """As τ grows the gradient of kd goes to the difference of centred logits over k."""
    loss = METHODS[name].loss
    options = {"others_weight": 1.0} if name == "dkd" else {}

    @jax.jit
    def gradient(temperature):
        total = lambda s: loss(  # noqa: E731
            s, jnp.asarray(draw(1)), jnp.asarray(LABELS), temperature=temperature, **options
        ).sum()
        return jax.grad(total)(jnp.asarray(draw(0)))

    small, large = (np.asarray(gradient(jnp.asarray(t, jnp.float32))) for t in (40.0, 160.0))
    np.testing.assert_allclose(small, large, atol=0.02)
    centred = [x - x.mean(1, keepdims=True) for x in (draw(0), draw(1))]
    if name != "dkd":
        np.testing.assert_allclose(large, (centred[0] - centred[1]) / K, atol=0.01)
    assert np.abs(large).max() > 0.1


GOLDEN = np.load(Path(__file__).parent / "golden" / "ofakd.npz")
"""Losses and gradients in float64 of Hao840/OFAKD at f7bb896, see golden/make_ofakd.py."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "options"),
    [(f"ofa_{gamma}", {"gamma": gamma, "temperature": 1.7}) for gamma in (0.6, 1.0, 1.5)]
    + [
        ("dkd", {"temperature": 2.5, "target_weight": 1.3, "others_weight": 0.7}),
        ("dist", {"temperature": 2.5, "inter": 1.3, "intra": 0.7}),
        ("rkd_distance", {}),
        ("rkd_angle", {}),
    ],
)
def test_means_and_gradients_are_those_of_the_authors_code(key, options):
    """Of `ofa_loss`, `dkd_loss`, `dist_loss` and the class `RKD`.

    Theirs are means over the batch. `RKD` counts pairs and angles of a row with itself too, which
    add 0 to its sum; ours does not. `dist_loss` adds 1e-8 to what it divides by.
    """
    pair = ("rows", "known") if key.startswith("rkd") else ("student", "teacher")
    counted = {"rkd_distance": (B - 1) / B, "rkd_angle": (B - 1) * (B - 2) / B**2}.get(key, 1.0)
    loss = METHODS["ofa" if key.startswith("ofa") else key].loss
    with jax.enable_x64(True):
        student, teacher, labels = (jnp.asarray(GOLDEN[name]) for name in (*pair, "labels"))
        mean = lambda x: counted * loss(x, teacher, labels, **options).mean()  # noqa: E731
        value, gradient = jax.jit(jax.value_and_grad(mean))(student)
        assert value.dtype == jnp.float64
    tolerance = 2e-6 if key == "dist" else 1e-12
    np.testing.assert_allclose(value, GOLDEN[key], rtol=tolerance)
    np.testing.assert_allclose(gradient, GOLDEN[f"{key}_gradient"], rtol=tolerance, atol=tolerance)


def test_distances_are_those_of_the_authors_code():
    """Of `_pdist`, from which its `RKD` makes relations as ours does from `euclidean`."""
    with jax.enable_x64(True):
        rows = jnp.asarray(GOLDEN["rows"])
        np.testing.assert_allclose(euclidean(rows, rows), GOLDEN["distances"], atol=1e-12)
