"""The pair-conditioned loss against a direct loop in float64, its limits, its mesh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.hydra.loss import hydra_loss
from rml.losses.supcon import sup_con

N, D = 14, 6
OPTIONS = list(itertools.product(("partner", "both"), ("own", "all"), (True, False)))


def oracle(x, gates, labels, partners, temperature, positives, denominator, renormalize):
    """Loops over anchors, positives and negatives."""
    losses = []
    for a in range(len(x)):
        z = x / np.linalg.norm(x, axis=1, keepdims=True)
        if renormalize:
            z = z * gates[a]
            z = z / np.linalg.norm(z, axis=1, keepdims=True)
            s = [z[a] @ z[k] / temperature for k in range(len(x))]
        else:
            s = [(z[a] * gates[a]) @ (z[k] * gates[a]) / temperature for k in range(len(x))]
        chosen = {partners[a]} | ({labels[a]} if positives == "both" else set())
        p = [k for k in range(len(x)) if k != a and labels[k] in chosen]
        m = [k for k in range(len(x)) if labels[k] not in (labels[a], partners[a])]
        if not p:
            continue
        terms = []
        for k in p:
            others = [k] if denominator == "own" else p
            terms.append(np.log(sum(np.exp(s[q]) for q in others + m)) - s[k])
        losses.append(np.mean(terms))
    return np.mean(losses)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5])
    partners = np.array([0, 1, 2, 0, 1, 5, 6, 3, 3, 3, 1, 4, 0, 5])  # 6 is absent, 5 is alone
    gates = rng.uniform(0.05, 1, (N, D))
    return rng.standard_normal((N, D)), gates, jnp.asarray(labels), jnp.asarray(partners)


@pytest.mark.slow
@pytest.mark.parametrize(("positives", "denominator", "renormalize"), OPTIONS)
def test_value_and_gradients_are_those_of_a_direct_loop(batch, positives, denominator, renormalize):
    x, gates, labels, partners = batch
    options = dict(positives=positives, denominator=denominator, renormalize=renormalize)

    def loss(x, gates, temperature):
        return hydra_loss(x, labels, partners, gates, temperature=temperature, **options)

    def reference(x, gates, temperature):
        return oracle(x, gates, labels.tolist(), partners.tolist(), temperature, **options)

    args = [np.asarray(a, np.float32) for a in (x, gates, 0.3)]
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*args)
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


@pytest.mark.slow
@pytest.mark.parametrize(("positives", "denominator", "renormalize"), OPTIONS)
def test_strips_equal_the_dense_computation(batch, positives, denominator, renormalize):
    x, gates, labels, partners = batch
    options = dict(
        positives=positives, denominator=denominator, renormalize=renormalize, temperature=0.2
    )

    def run(block_size):
        return jax.jit(
            jax.value_and_grad(
                lambda x, g: hydra_loss(x, labels, partners, g, block_size=block_size, **options),
                (0, 1),
            )
        )(jnp.asarray(x, jnp.float32), jnp.asarray(gates, jnp.float32))

    expected = run(None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), run(5), expected)


@pytest.mark.slow
@pytest.mark.parametrize("gate", [1.0, 0.01])
def test_identical_pairs_with_equal_gates_are_supcon(batch, gate):
    x, _, labels, _ = batch
    x = jnp.asarray(x, jnp.float32)
    value = hydra_loss(
        x, labels, labels, jnp.full((N, D), gate), temperature=0.1, denominator="all"
    )
    np.testing.assert_allclose(value, sup_con(x, labels, temperature=0.1), rtol=1e-5)


def test_identical_pairs_with_a_class_gate_are_supcon_in_the_gated_space(batch):
    """Gates common to all rows: SupCon of the gated features, anchor by anchor."""
    x, gates, labels, _ = batch
    x, gate = jnp.asarray(x, jnp.float32), jnp.asarray(gates[0], jnp.float32)
    ours = hydra_loss(
        x, labels, labels, jnp.tile(gate, (N, 1)), temperature=0.1, denominator="all",
        reduction="none",
    )  # fmt: skip
    theirs = sup_con(x * gate, labels, temperature=0.1, reduction="none")
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


def test_closed_dimensions_do_not_matter(batch):
    x, _, labels, partners = batch
    gates = jnp.tile(jnp.array([1.0, 1, 1, 0, 0, 0]), (N, 1))
    x = jnp.asarray(x, jnp.float32)
    whole = hydra_loss(x, labels, partners, gates, temperature=0.1)
    part = hydra_loss(x[:, :3], labels, partners, gates[:, :3], temperature=0.1)
    np.testing.assert_allclose(whole, part, rtol=1e-5)


def test_scale_of_gates_and_features_does_not_matter(batch):
    x, gates, labels, partners = (jnp.asarray(a) for a in batch)
    value = hydra_loss(x, labels, partners, gates, temperature=0.1)
    scaled = hydra_loss(1e4 * x, labels, partners, 0.01 * gates, temperature=0.1)
    np.testing.assert_allclose(value, scaled, rtol=1e-4)


def test_order_of_the_rows_does_not_matter(batch):
    x, gates, labels, partners = (jnp.asarray(a) for a in batch)
    order = np.random.default_rng(3).permutation(N)
    value = hydra_loss(x, labels, partners, gates, temperature=0.1)
    shuffled = hydra_loss(x[order], labels[order], partners[order], gates[order], temperature=0.1)
    np.testing.assert_allclose(value, shuffled, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("denominator", ["own", "all"])
def test_anchors_without_positive_weigh_nothing(batch, denominator):
    x, gates, labels, _ = (jnp.asarray(a) for a in batch)
    absent = jnp.full(N, 99)

    def loss(x):
        return hydra_loss(x, labels, absent, gates, temperature=0.1, denominator=denominator)

    value, grad = jax.jit(jax.value_and_grad(loss))(x)
    assert value == 0
    assert not np.any(grad)


@pytest.mark.parametrize("denominator", ["own", "all"])
def test_extremes_stay_finite(batch, denominator):
    """Two classes have no negatives; closed gates have no direction; cold bfloat16 is coarse."""
    x, gates, labels, _ = (jnp.asarray(a) for a in batch)
    labels, x = labels % 2, x.astype(jnp.bfloat16)
    for gate in (gates, jnp.zeros_like(gates)):

        def loss(x, gate):
            return hydra_loss(
                x, labels, 1 - labels, gate, temperature=0.01, denominator=denominator
            )

        value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, gate)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(np.asarray(g, np.float32))) for g in grads)
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

def local(x, gates, labels, partners):
    return hydra_loss(
        x, labels, partners, gates, temperature=0.1, axis_name="data", block_size=3
    )

def whole(x, gates, labels, partners):
    return hydra_loss(x, labels, partners, gates, temperature=0.1)

sharded = jax.shard_map(local, mesh=mesh, in_specs=(rows,) * 4, out_specs=P())
expected = jax.jit(jax.value_and_grad(whole, (0, 1)))(x, gates, labels, partners)
explicit = jax.jit(jax.value_and_grad(sharded, (0, 1)))(x, gates, labels, partners)
placed = [jax.device_put(a, jax.NamedSharding(mesh, rows)) for a in (x, gates, labels, partners)]
automatic = jax.jit(jax.value_and_grad(whole, (0, 1)))(*placed)
for run in (explicit, automatic):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), run, expected)
print(jax.device_count())
"""


@pytest.mark.slow
def test_four_devices_give_the_value_and_gradients_of_one(forked):
    assert forked(SHARDED, devices=4) == 4


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
