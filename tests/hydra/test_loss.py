"""The pair-conditioned loss against a direct loop in float64, its limits, its mesh."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.hydra.loss import hydra_loss
from rml.losses.supcon import sup_con

N, D = 14, 6
OPTIONS = list(itertools.product(("partner", "both"), ("own", "all"), (True, False)))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def oracle(
    x, gates, labels, partners, temperature, positives, denominator, renormalize,
    keys=None, itself=False, ungated=0.0, reduction="mean",
):  # fmt: skip
    """Loops over anchors, positives and negatives."""
    losses, numbers = [], []
    keys = unit(x if keys is None else keys)
    x = unit(x)
    for a in range(len(x)):
        za, z = x[a] * gates[a], keys * gates[a]
        if renormalize:
            za, z = za / np.linalg.norm(za), unit(z)
        s = [za @ z[k] / temperature - ungated * (x[a] @ keys[k]) for k in range(len(x))]
        chosen = {partners[a]} | ({labels[a]} if positives == "both" else set())
        p = [k for k in range(len(x)) if (itself or k != a) and labels[k] in chosen]
        m = [k for k in range(len(x)) if labels[k] not in (labels[a], partners[a])]
        if not p:
            continue
        terms = []
        for k in p:
            others = [k] if denominator == "own" else p
            terms.append(np.log(sum(np.exp(s[q]) for q in others + m)) - s[k])
        losses.append(np.mean(terms))
        numbers.append(len(p))
    return np.average(losses, weights=numbers if reduction == "positives" else None)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5])
    partners = np.array([0, 1, 2, 0, 1, 5, 6, 3, 3, 3, 1, 4, 0, 5])  # 6 is absent, 5 is alone
    gates = rng.uniform(0.05, 1, (N, D))
    return rng.standard_normal((N, D)), gates, jnp.asarray(labels), jnp.asarray(partners)


@partial(jax.jit, static_argnums=range(5, 9))
def program(x, gates, temperature, labels, partners, positives, denominator, renormalize, block):
    def loss(x, gates, temperature):
        return hydra_loss(
            x, labels, partners, gates, temperature=temperature, positives=positives,
            denominator=denominator, renormalize=renormalize, block_size=block,
        )  # fmt: skip

    return jax.value_and_grad(loss, (0, 1, 2))(x, gates, temperature)


def value_and_slopes(
    *given, positives="partner", denominator="own", renormalize=True, block_size=None
):
    """The loss and its gradients by features, gates and temperature; tests share its programs."""
    return program(*given, positives, denominator, renormalize, block_size)


@pytest.mark.slow
@pytest.mark.parametrize(("positives", "denominator", "renormalize"), OPTIONS)
def test_value_and_gradients_are_those_of_a_direct_loop(batch, positives, denominator, renormalize):
    x, gates, labels, partners = batch
    options = dict(positives=positives, denominator=denominator, renormalize=renormalize)

    def reference(x, gates, temperature):
        return oracle(x, gates, labels.tolist(), partners.tolist(), temperature, **options)

    args = [np.asarray(a, np.float32) for a in (x, gates, 0.3)]
    value, grads = value_and_slopes(*args[:2], 0.3, labels, partners, **options)
    exact = [np.asarray(a, np.float64) for a in args]
    np.testing.assert_allclose(value, reference(*exact), rtol=1e-5)
    for i, grad in enumerate(grads):
        for at in list(np.ndindex(grad.shape))[::5]:
            shift = np.zeros(grad.shape)
            shift[at] = 1e-6
            up, down = (
                reference(*exact[:i], exact[i] + sign * shift, *exact[i + 1 :]) for sign in (1, -1)
            )
            np.testing.assert_allclose(grad[at], (up - down) / 2e-6, rtol=2e-3, atol=2e-5)


PUBLISHED = dict(itself=True, reduction="positives")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positives", "denominator", "own"),
    [("both", "all", dict(itself=True)), ("partner", "own", PUBLISHED)],
)
@pytest.mark.parametrize("block_size", [None, 5])
def test_the_authors_options_are_those_of_a_direct_loop(
    batch, positives, denominator, own, block_size
):
    x, gates, labels, partners = batch
    options = dict(positives=positives, denominator=denominator, renormalize=True) | own
    keys = x + 0.7 * np.random.default_rng(5).standard_normal(x.shape)

    def loss(x, gates, keys, temperature, ungated):
        return hydra_loss(
            x, labels, partners, gates, keys, temperature=temperature, ungated=ungated,
            block_size=block_size, **options,
        )  # fmt: skip

    def reference(x, gates, keys, temperature, ungated):
        lists = labels.tolist(), partners.tolist()
        return oracle(x, gates, *lists, temperature, keys=keys, ungated=ungated, **options)

    args = [np.asarray(a, np.float32) for a in (x, gates, keys, 0.3, 0.7)]
    value, grads = jax.jit(jax.value_and_grad(loss, tuple(range(5))))(*args)
    exact = [np.asarray(a, np.float64) for a in args]
    np.testing.assert_allclose(value, reference(*exact), rtol=1e-5)
    for i, grad in enumerate(grads):
        for at in list(np.ndindex(grad.shape))[::9]:
            shift = np.zeros(grad.shape)
            shift[at] = 1e-6
            up, down = (
                reference(*exact[:i], exact[i] + sign * shift, *exact[i + 1 :]) for sign in (1, -1)
            )
            np.testing.assert_allclose(grad[at], (up - down) / 2e-6, rtol=2e-3, atol=2e-5)


# Values and gradients' lengths of the authors' own code on the batch below, in float64.
AUTHORS = {
    "v1": (2.493626208302443, 0.6888011337733617, 0.8982111191022596),
    "identical": (2.102562353939476, 0.6673074868433699, 0.4376015334947077),
    "later": (
        2.372272874486688, 0.14026873060059075, 0.525536041763532, 0.1753161994140598,
        0.42667064317846565, 0.08509591828875075,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", AUTHORS)
def test_the_published_forms_give_the_numbers_of_the_authors_code(form):
    rng = np.random.default_rng(7)
    x, keys = rng.standard_normal((2, 12, 5))
    gates = rng.uniform(0.1, 1, (12, 5))
    labels = jnp.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4])
    partners = jnp.array([0, 1, 2, 1, 0, 2, 3, 0, 4, 3, 1, 4])
    if form == "identical":
        partners = labels

    def first(x, gates):
        return hydra_loss(x, labels, partners, gates, temperature=0.3, **PUBLISHED)

    def later(x, gates, keys, log_scale, ungated):
        return hydra_loss(
            x, labels, partners, gates, keys, temperature=jnp.exp(-log_scale), ungated=ungated,
            renormalize=False, **PUBLISHED,
        )  # fmt: skip

    args = [x, gates] if form != "later" else [x, gates, keys, -np.log(0.3), 0.7]
    function = jax.value_and_grad(later if form == "later" else first, tuple(range(len(args))))
    value, grads = jax.jit(function)(*(jnp.asarray(a, jnp.float32) for a in args))
    lengths = [float(jnp.linalg.norm(grad)) for grad in grads]
    np.testing.assert_allclose([value, *lengths], AUTHORS[form], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("positives", "denominator", "renormalize"), OPTIONS)
def test_strips_equal_the_dense_computation(batch, positives, denominator, renormalize):
    x, gates, labels, partners = batch
    args = np.float32(x), np.float32(gates), 0.2, labels, partners
    options = dict(positives=positives, denominator=denominator, renormalize=renormalize)
    (value, slopes), (expected, dense) = (
        value_and_slopes(*args, block_size=block_size, **options) for block_size in (5, None)
    )
    np.testing.assert_allclose(value, expected, atol=2e-6)
    for found, same in zip(slopes[:2], dense[:2], strict=True):
        np.testing.assert_allclose(found, same, atol=2e-6)
    np.testing.assert_allclose(slopes[2], dense[2], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("gate", [1.0, 0.01])
def test_identical_pairs_with_equal_gates_are_supcon(batch, gate):
    x, _, labels, _ = batch
    x = jnp.asarray(x, jnp.float32)
    value, _ = value_and_slopes(x, jnp.full((N, D), gate), 0.1, labels, labels, denominator="all")
    expected = jax.jit(sup_con)(x, labels, temperature=0.1)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.slow
def test_identical_pairs_with_a_class_gate_are_supcon_in_the_gated_space(batch):
    """Gates common to all rows: SupCon of the gated features, anchor by anchor."""
    x, gates, labels, _ = batch
    x, gate = jnp.asarray(x, jnp.float32), jnp.asarray(gates[0], jnp.float32)
    loss = jax.jit(hydra_loss, static_argnames=("denominator", "reduction"))
    ours = loss(
        x, labels, labels, jnp.tile(gate, (N, 1)), temperature=0.1, denominator="all",
        reduction="none",
    )  # fmt: skip
    theirs = jax.jit(sup_con, static_argnames="reduction")(
        x * gate, labels, temperature=0.1, reduction="none"
    )
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_closed_dimensions_do_not_matter(batch):
    x, _, labels, partners = batch
    gates = jnp.tile(jnp.array([1.0, 1, 1, 0, 0, 0]), (N, 1))
    x = jnp.asarray(x, jnp.float32)
    whole, _ = value_and_slopes(x, gates, 0.1, labels, partners)
    part, _ = value_and_slopes(x[:, :3], gates[:, :3], 0.1, labels, partners)
    np.testing.assert_allclose(whole, part, rtol=1e-5)


def test_scale_of_gates_and_features_does_not_matter(batch):
    x, gates, labels, partners = (jnp.asarray(a) for a in batch)
    value, _ = value_and_slopes(x, gates, 0.1, labels, partners)
    scaled, _ = value_and_slopes(1e4 * x, 0.01 * gates, 0.1, labels, partners)
    np.testing.assert_allclose(value, scaled, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1e-7, 1e-12, 1e-20])
def test_gates_that_are_all_but_closed_have_the_cosines_of_open_ones(batch, scale):
    x, gates, labels, partners = (jnp.asarray(a) for a in batch)

    def loss(gates):
        value, slopes = value_and_slopes(x, gates, 0.1, labels, partners)
        return value, slopes[1]

    value, slope = loss(gates)
    # Rows of other scales too, which no other row may see.
    for each in (scale, jnp.where(jnp.arange(N) % 2, scale, 1)[:, None]):
        found, steep = loss(each * gates)
        np.testing.assert_allclose(found, value, rtol=1e-5)
        np.testing.assert_allclose(
            steep * each, slope, rtol=1e-4, atol=1e-5 * np.max(np.abs(slope))
        )


def test_order_of_the_rows_does_not_matter(batch):
    x, gates, labels, partners = (jnp.asarray(a) for a in batch)
    order = np.random.default_rng(3).permutation(N)
    value, _ = value_and_slopes(x, gates, 0.1, labels, partners)
    shuffled, _ = value_and_slopes(x[order], gates[order], 0.1, labels[order], partners[order])
    np.testing.assert_allclose(value, shuffled, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("denominator", ["own", "all"])
def test_anchors_without_positive_weigh_nothing(batch, denominator):
    x, gates, labels, _ = (jnp.asarray(a) for a in batch)
    absent = jnp.full(N, 99)
    value, slopes = value_and_slopes(x, gates, 0.1, labels, absent, denominator=denominator)
    assert value == 0
    assert not np.any(slopes[0])


@pytest.mark.slow
@pytest.mark.parametrize("denominator", ["own", "all"])
def test_extremes_stay_finite(batch, denominator):
    """Two classes have no negatives; closed gates have no direction; cold bfloat16 is coarse."""
    x, gates, labels, _ = (jnp.asarray(a) for a in batch)
    labels, x = labels % 2, x.astype(jnp.bfloat16)
    for gate in (gates, jnp.zeros_like(gates)):
        value, slopes = value_and_slopes(x, gate, 0.01, labels, 1 - labels, denominator=denominator)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(np.asarray(slope, np.float32))) for slope in slopes[:2])
        if denominator == "own":
            assert value == 0  # nothing to tell the positives from


SHARDED = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from rml.hydra.loss import hydra_loss

rng = np.random.default_rng(0)
x, gates = (f(size=(16, 6)).astype(np.float32) for f in (rng.normal, rng.uniform))
labels, partners = rng.integers(0, 4, (2, 16))
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = P("data")

options = dict(itself=True, reduction="positives")

def local(x, gates, labels, partners):
    one = hydra_loss(x, labels, partners, gates, temperature=0.1, axis_name="data", block_size=3)
    other = hydra_loss(
        x, labels, partners, gates, x[::-1], temperature=0.1, axis_name="data", **options
    )
    return one + 2 * other

def whole(x, gates, labels, partners):
    one = hydra_loss(x, labels, partners, gates, temperature=0.1)
    # Reversed on each device, as its keys are there.
    keys = x.reshape(4, 4, 6)[:, ::-1].reshape(16, 6)
    return one + 2 * hydra_loss(x, labels, partners, gates, keys, temperature=0.1, **options)

sharded = jax.shard_map(local, mesh=mesh, in_specs=(rows,) * 4, out_specs=P())
expected = jax.jit(jax.value_and_grad(whole, (0, 1)))(x, gates, labels, partners)
explicit = jax.jit(jax.value_and_grad(sharded, (0, 1)))(x, gates, labels, partners)
placed = [jax.device_put(a, jax.NamedSharding(mesh, rows)) for a in (x, gates, labels, partners)]
automatic = jax.jit(jax.value_and_grad(whole, (0, 1)))(*placed)
# Devices add in the order in which they come: some last bits of a value of 24, which are 2e-6 each.
for run in (explicit, automatic):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6), run, expected
    )
print(jax.device_count())
"""


@pytest.mark.slow
def test_four_devices_give_the_value_and_gradients_of_one(forked):
    assert forked(SHARDED, devices=4, quickly=False) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(positives="parnter"), "did you mean 'partner'"),
        (dict(denominator="none"), "denominator of hydra_loss 'none'"),
        (dict(reduction="sum"), "reduction"),
        (dict(block_size=0), "block_size must be positive"),
    ],
)
def test_unknown_options(batch, change, message):
    x, gates, labels, partners = (jnp.asarray(a) for a in batch)
    with pytest.raises(ValueError, match=message):
        hydra_loss(x, labels, partners, gates, temperature=0.1, **change)
