"""Normalised softmax: the definition, its margins, and the bounds that no network passes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses import minimum_loss, normalized_softmax, scale_for

LABELS = np.array([0, 2, 4, 1, 1, 3])


def definition(oracle, x, w, scale, turned):
    cosine = oracle.unit(x) @ oracle.unit(w).T
    rows = np.arange(len(x))
    own = turned(cosine[rows, LABELS])
    logits = scale * cosine
    logits[rows, LABELS] = scale * own
    return np.mean(oracle.lse(logits) - scale * own)


TURNED = {
    "none": lambda margin: lambda c: c,
    "cosine": lambda margin: lambda c: c - margin,
    # Angles of normal rows are small and large: beyond π - m it goes on as its authors' code does.
    "angle": lambda margin: (
        lambda c: np.where(
            np.arccos(c) <= np.pi - margin,
            np.cos(np.arccos(c) + margin),
            c - margin * np.sin(margin),
        )
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize(
    ("kind", "margin"), [("none", 0.0), ("cosine", 0.35), ("angle", 0.5), ("angle", 2.0)]
)
def test_is_the_cross_entropy_of_cosines(check, oracle, normal, kind, margin, block_size):
    x, w = normal(0, 6, 4), normal(1, 5, 4)
    cosine = (oracle.unit(x) @ oracle.unit(w).T)[np.arange(6), LABELS]
    beyond = np.arccos(cosine) > np.pi - margin
    assert kind != "angle" or margin < 1 or (beyond.any() and not beyond.all())

    def reference(x, w):
        return definition(oracle, x, w, 7.0, TURNED[kind](margin))

    def loss(x, w):
        return normalized_softmax(
            x, jnp.asarray(LABELS), w, scale=7.0, margin=margin, margin_kind=kind,
            block_size=block_size,
        )  # fmt: skip

    check(loss, reference, x, w)


@pytest.mark.parametrize("kind", ["none", "cosine", "angle"])
def test_values_of_examples_have_the_loss_as_their_mean(normal, kind):
    x, w = (jnp.asarray(normal(i, n, 4), jnp.float32) for i, n in ((0, 6), (1, 5)))
    options = dict(scale=3.0, margin=0.0 if kind == "none" else 0.3, margin_kind=kind)
    each = normalized_softmax(x, jnp.asarray(LABELS), w, reduction="none", **options)
    assert each.shape == (6,)
    assert jnp.mean(each) == pytest.approx(
        float(normalized_softmax(x, jnp.asarray(LABELS), w, **options)), rel=1e-6
    )


@pytest.mark.parametrize("kind", ["cosine", "angle"])
def test_without_a_margin_all_kinds_are_one(normal, kind):
    x, w = (jnp.asarray(normal(i, n, 4), jnp.float32) for i, n in ((0, 6), (1, 5)))
    plain = normalized_softmax(x, jnp.asarray(LABELS), w, scale=5.0)
    found = normalized_softmax(x, jnp.asarray(LABELS), w, scale=5.0, margin_kind=kind)
    np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_a_gradient_turns_a_row_and_does_not_stretch_it(normal):
    x, w = (jnp.asarray(normal(i, n, 4), jnp.float32) for i, n in ((0, 6), (1, 5)))
    slope = jax.grad(lambda x: normalized_softmax(x, jnp.asarray(LABELS), w, scale=5.0))(x)
    along = jnp.sum(x * slope, axis=1)
    assert jnp.max(jnp.abs(slope)) > 0.01
    np.testing.assert_allclose(along, 0, atol=1e-6)


def simplex(classes):
    """Corners of a simplex: unit rows whose cosines are -1 / (k - 1)."""
    corners = np.eye(classes) - 1 / classes
    return corners / np.linalg.norm(corners, axis=1, keepdims=True)


@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (5, 3.0), (10, 7.0)])
def test_rows_at_the_corners_of_a_simplex_reach_the_minimum(classes, scale):
    corners, labels = jnp.asarray(simplex(classes), jnp.float32), jnp.arange(classes)
    found = normalized_softmax(2.5 * corners, labels, 0.4 * corners, scale=scale)
    bound = minimum_loss(classes, scale)
    assert float(found) == pytest.approx(bound, abs=5e-7 * scale)  # a rounding of the logits
    nearby = corners + 0.1 * jax.random.normal(jax.random.key(0), corners.shape)
    for rows in (nearby, jax.random.normal(jax.random.key(1), corners.shape)):
        assert normalized_softmax(rows, labels, rows, scale=scale) > bound


@pytest.mark.parametrize(("classes", "probability"), [(2, 0.9), (10, 0.99), (1000, 0.5)])
def test_the_least_scale_reaches_the_probability(classes, probability):
    scale = scale_for(classes, probability)
    assert np.exp(-minimum_loss(classes, scale)) == pytest.approx(probability, rel=1e-12)
    assert np.exp(-minimum_loss(classes, 0.9 * scale)) < probability


@pytest.mark.parametrize("probability", [0.1, 1.0, float("nan")])
def test_probabilities_that_every_scale_or_none_reaches_are_refused(probability):
    with pytest.raises(ValueError, match=r"^probability is .*, expected a number above 0\.1,"):
        scale_for(10, probability)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -0.1, "margin_kind": "cosine"}, r"^margin is -0\.1, expected a number at"),
        ({"margin": np.inf, "margin_kind": "cosine"}, "^margin is inf, expected a finite number$"),
        ({"margin": 3.2, "margin_kind": "angle"}, r"^margin is 3\.2, expected a number between"),
        ({"margin": 0.1}, r"^margin is 0\.1 and margin_kind 'none', expected a kind of margin"),
        ({"margin_kind": "arc"}, "^margin_kind must be one of none, cosine, angle, got 'arc'"),
        ({"reduction": "sum"}, "^reduction must be 'mean' or 'none', got 'sum'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        normalized_softmax(jnp.eye(3), jnp.arange(3), jnp.eye(3), scale=2.0, **options)


def test_labels_without_a_class_vector_are_refused():
    with pytest.raises(ValueError, match="labels must lie between 0 and 1, got values from 0 to 2"):
        normalized_softmax(jnp.eye(3), jnp.arange(3), jnp.eye(3)[:2], scale=2.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_of_any_width_know_all_classes(normal, dtype):
    """Also those of NumPy, without a warning that 64 bits are not to be had."""
    x, w = (jnp.asarray(normal(i, n, 4), jnp.float32) for i, n in ((0, 6), (1, 300)))
    options = dict(scale=5.0, margin=0.3, margin_kind="cosine")
    expected = normalized_softmax(x, jnp.asarray(LABELS), w, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = normalized_softmax(x, LABELS.astype(dtype), w, **options)
    assert float(found) == float(expected)


@pytest.mark.parametrize("one", [minimum_loss, scale_for])
def test_one_class_is_refused(one):
    with pytest.raises(ValueError, match=r"^classes is 1, expected a number at least 2$"):
        one(1, 0.7)


MESH = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from rml.losses import normalized_softmax
from rml.training import make_mesh, over_batch, use_mesh
from tpu import hlo, work
from tpu.collectives import collectives

mesh = make_mesh({"data": 2, "model": 2})
n, k, d = 24, 20, 6
rng = np.random.default_rng(0)
rows, vectors = (rng.standard_normal((count, d)).astype("f") for count in (n, k))
labels, numbers = rng.integers(0, k, n), (7.0, 0.4)
sharded = [NamedSharding(mesh, P(*axes)) for axes in (("data", None), ("data",), ("model", None))]
given = (*jax.device_put((rows, labels, vectors), tuple(sharded)), numbers)
found = {}

for kind, block in (("none", None), ("none", 4), ("cosine", 4), ("angle", 4)):
    def loss(rows, labels, vectors, numbers, **how):
        scale, margin = numbers
        margin = {} if kind == "none" else {"margin": margin, "margin_kind": kind}
        return normalized_softmax(
            rows, labels, vectors, scale=scale, block_size=block, **margin, **how)

    def spread(rows, labels, vectors, numbers):
        return over_batch(lambda *own, axis_name: loss(*own, vectors, numbers, axis_name=axis_name)
            )(rows, labels)

    expected = jax.jit(jax.value_and_grad(loss, (0, 2, 3)))(rows, labels, vectors, numbers)
    for way, of in (("compiler", loss), ("rows", spread)):
        with use_mesh(mesh):
            whole = NamedSharding(mesh, P())
            step = jax.jit(jax.value_and_grad(of, (0, 2, 3)),
                           out_shardings=(whole, (sharded[0], sharded[2], whole)))
            program = step.lower(*given).compile()
        pairs = zip(*map(jax.tree.leaves, (program(*given), expected)))
        worst = max(float(abs(np.asarray(a) - b).max() / max(abs(b).max(), 1e-9)) for a, b in pairs)
        read = hlo.parse(program.as_text())
        flops = sum(times * work.flops(where, one) for where, one, times in read.executed())
        gathered = [one.shape for one in collectives(read) if one.kind == "all-gather"]
        found[f"{way}, {kind}, {block}"] = worst, flops / (2 * n * k * d), gathered

each = jax.shard_map(
    lambda *own: normalized_softmax(*own, vectors, scale=7.0, reduction="none", axis_name="data"),
    mesh=mesh, in_specs=P("data"), out_specs=P("data"))(rows, labels)
alone = normalized_softmax(rows, labels, vectors, scale=7.0, reduction="none")
print(json.dumps([found, float(abs(each - alone).max())]))
"""


@pytest.mark.slow
def test_vectors_over_one_axis_and_rows_over_another_give_the_loss_of_one_device(forked):
    """Each of the four devices has its part of the vectors, and with `over_batch` of the work."""
    found, each = forked(MESH, devices=4)
    assert len(found) == 8
    assert each < 1e-5
    for case, (worst, products, gathered) in found.items():
        way, kind, block = case.split(", ")
        assert worst < 2e-5, case
        assert not any("10" in shape for shape in gathered), case  # a device's part of the vectors
        passes = 3 if kind == "none" else 4
        if way == "rows" or block == "None":
            assert (products, gathered) == (passes / 4, []), case


def test_class_vectors_over_the_axis_of_the_rows_are_refused():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over = jax.sharding.PartitionSpec("data")
    loss = jax.shard_map(
        lambda *arrays: normalized_softmax(*arrays, scale=2.0, axis_name="data"),
        mesh=mesh, in_specs=over, out_specs=jax.sharding.PartitionSpec(),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^prototypes are sharded over 'data', expected the same"):
        loss(jnp.eye(3), jnp.arange(3), jnp.eye(3))
