"""Calibrated thresholds of gates, against NumPy in float64."""

import itertools
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.models import Llama, Probe, Thresholds
from rml.sparsity import (
    Calibration,
    Moments,
    binned_quantile,
    calibrate,
    channel_scale,
    importance,
    kth_smallest,
    load_thresholds,
    observe,
    random_channels,
    save_thresholds,
    thresholds_of,
)
from rml.sparsity.thresholds import bin_counts

MODULE = Llama(vocabulary=40, width=16, depth=2, heads=2, mlp=32)
WINDOWS = np.random.default_rng(0).integers(0, 40, (5, 24)).astype(np.int32)
RULES = ("uniform", "abs", "rms", "abs_down", "rms_down", "product", "product_down")
GOLDEN = np.load(Path(__file__).parent / "golden" / "chess.npz")
"""Numbers of the authors' code at a share of 0.45, its model that of `variables`, in float64.

Names say the texts and the rule, or the place of attention: the first of `WINDOWS`, or all of them
as documents, by junhuihe-hjh/CHESS at 293ca88 (notebooks/thresholds.py), which averages quantiles
of documents; all of them as one group ("group") by ZeonfaiHo/CHESS at 49802b1
(llama_3_8b/statistics.ipynb). "logits" are the last ones of each window with the thresholds of
"documents", by the forward functions of models/llama.py ("CHESS+")."""


@pytest.fixture(scope="module")
def variables():
    shapes = nn.unbox(jax.eval_shape(MODULE.init, jax.random.key(0), jnp.zeros((1, 2), int)))
    rng = np.random.default_rng(1)
    made = jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )
    # Channels of very different sizes, else all rules agree.
    size = jnp.asarray(np.exp(rng.normal(size=32)), jnp.float32)
    made["params"]["blocks"]["mlp_in"]["kernel"] *= size
    return made


@pytest.fixture(scope="module")
def seen(variables):
    """Gates, inputs and attention's inputs of all tokens [layers, tokens, width], float64."""
    probe = Probe(lambda a, _: (a.gate, a.up, a.attention_input, a.heads))
    states = jax.jit(lambda: MODULE.apply(variables, jnp.asarray(WINDOWS), probe=probe))()
    return [np.asarray(x, np.float64).reshape(2, 120, -1) for x in states.probed]


@pytest.fixture(scope="module")
def found(variables):
    return observe(MODULE, variables, WINDOWS, rules=RULES)


@pytest.mark.slow
def test_thresholds_are_those_of_the_definition(variables, seen, found):
    gate, up, query, heads = seen
    norms = np.linalg.norm(np.asarray(variables["params"]["blocks"]["mlp_out"]["kernel"]), axis=-1)
    size, root = np.abs(up).mean(1), np.sqrt((up**2).mean(1))
    scales = {
        "uniform": np.ones((2, 32)), "abs": size, "rms": root, "abs_down": size * norms,
        "rms_down": root * norms,
    }  # fmt: skip
    k = int(0.45 * 120 * 32)
    for rule, m in scales.items():
        least = np.sort((np.abs(gate) * m[:, None]).reshape(2, -1), -1)[:, k - 1]
        own = thresholds_of(found, sparsity=0.45, rule=rule)
        np.testing.assert_allclose(own.gate, least[:, None] / m, rtol=0.011)
        assert own.hidden is None
        assert own.query is None
    for rule, m in (("product", np.ones((2, 32))), ("product_down", norms)):
        least = np.sort((np.abs(gate * up) * m[:, None]).reshape(2, -1), -1)[:, k - 1]
        own = thresholds_of(found, sparsity=0.45, rule=rule)
        np.testing.assert_allclose(own.hidden, least[:, None] / m, rtol=0.011)
        assert own.gate is None
    places = thresholds_of(found, sparsity=0.45, rule=None, attention=("query", "value", "output"))
    k = int(0.45 * 120 * 16)
    for name, own in (("query", query), ("value", query), ("output", heads)):
        least = np.sort(np.abs(own).reshape(2, -1), -1)[:, k - 1]
        np.testing.assert_allclose(getattr(places, name), least, rtol=0.011)
    assert places.gate is None
    assert places.key is None


@pytest.mark.slow
def test_thresholds_are_those_of_the_authors_code(variables, seen, found):
    def compare(own, texts, rule):
        at = thresholds_of(own, sparsity=0.45, rule=rule, attention=("query", "output"))
        uniform = thresholds_of(own, sparsity=0.45, rule="uniform").gate
        for name, values in ((rule, at.gate), ("query", at.query), ("output", at.output)):
            np.testing.assert_allclose(values, GOLDEN[f"{texts}_{name}"], rtol=0.011)
        np.testing.assert_allclose(uniform.T, [GOLDEN[f"{texts}_uniform"]] * 32, rtol=0.011)

    compare(observe(MODULE, variables, WINDOWS[:1], rules=RULES), "first", "abs")
    compare(found, "group", "rms")

    # Their quantile of several documents is a mean of quantiles, not that of all tokens.
    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))  # documents
    @partial(jax.vmap, in_axes=(0, 0))  # layers
    def of_documents(gate, scale):
        return kth_smallest(importance(gate, scale).ravel(), 0.45) / scale

    gate = jnp.asarray(seen[0], jnp.float32).reshape(2, 5, 24, 32).swapaxes(0, 1)
    mean = of_documents(gate, jnp.asarray(found.scales["abs"])).mean(axis=0)
    np.testing.assert_allclose(mean, GOLDEN["documents_abs"], rtol=2e-5)
    own = thresholds_of(found, sparsity=0.45).gate
    assert np.abs(own / GOLDEN["documents_abs"] - 1).max() > 0.012


def test_outputs_with_thresholds_are_those_of_the_authors_code(variables):
    least = Thresholds(
        gate=GOLDEN["documents_abs"], query=GOLDEN["documents_query"],
        output=GOLDEN["documents_output"],
    )  # fmt: skip

    @jax.jit
    def logits(thresholds):
        hidden = MODULE.apply(variables, jnp.asarray(WINDOWS), thresholds=thresholds)
        return MODULE.apply(variables, hidden[:, -1], method="logits")

    np.testing.assert_allclose(logits(least), GOLDEN["logits"], atol=2e-5)


def test_the_share_left_out_is_that_asked_for_and_grows(seen, found):
    gate = np.abs(seen[0])
    before = np.zeros_like(gate, bool)
    for share in (0.2, 0.5, 0.8):
        least = np.asarray(thresholds_of(found, sparsity=share, rule="abs").gate)
        out = gate < least[:, None]
        np.testing.assert_allclose(out.mean((1, 2)), share, atol=0.01)
        assert np.ptp(out.mean(1)) > 0.2  # channels differ
        assert (out | ~before).all()
        before = out
    assert not np.asarray(thresholds_of(found, sparsity=0.0).gate).any()
    assert np.isinf(np.asarray(thresholds_of(found, sparsity=1.0).gate)).all()


def test_calibrate_is_both_steps(variables, found):
    own = calibrate(MODULE, variables, WINDOWS, sparsity=0.6, rule="rms", attention=("query",))
    both = thresholds_of(found, sparsity=0.6, rule="rms", attention=("query",))
    np.testing.assert_allclose(own.gate, both.gate, rtol=1e-5)
    np.testing.assert_allclose(own.query, both.query, rtol=1e-5)


def test_a_scale_that_the_function_does_not_see_changes_decisions_without_the_row_norm():
    rng = np.random.default_rng(2)
    c = np.exp(rng.normal(size=(1, 8)))
    up, norm = rng.uniform(0.5, 2, (2, 1, 8))
    for rule, same in (("abs", False), ("rms", False), ("abs_down", True), ("rms_down", True)):
        one, other = (
            np.asarray(channel_scale(rule, Moments(*map(jnp.asarray, given)), jnp.asarray(norms)))
            for given, norms in (
                ((up, (1.2 * up) ** 2, *np.ones((3, 1))), norm),
                ((c * up, (1.2 * c * up) ** 2, *np.ones((3, 1))), norm / c),
            )
        )
        # Importances are one of the other's times c, or the same.
        np.testing.assert_allclose(other, one if same else one * c, rtol=1e-5)


def with_mlp(variables, change):
    """The same weights with `change` of the name and the kernel of each matrix of the MLP."""
    blocks = dict(variables["params"]["blocks"])
    for name in ("gate", "mlp_in", "mlp_out"):
        blocks[name] = {"kernel": change(name, blocks[name]["kernel"])}
    return {"params": {**variables["params"], "blocks": blocks}}


def test_channels_multiplied_by_equal_sizes_have_the_uniform_threshold(variables, found):
    signs = np.float32(np.random.default_rng(5).choice([-1, 1], 32))
    equal = with_mlp(variables, lambda name, x: x[..., 3:4] * signs if name == "mlp_in" else x)
    own = observe(MODULE, equal, WINDOWS, rules=RULES)
    scale = own.scales["abs"]
    np.testing.assert_allclose(scale, np.repeat(scale[:, :1], 32, axis=1), rtol=1e-5)
    assert (np.abs(scale - 1) > 0.1).all()  # equal, not 1
    for given, same in ((own, True), (found, False)):
        gates = [thresholds_of(given, sparsity=0.45, rule=rule).gate for rule in ("abs", "uniform")]
        assert np.allclose(*gates, rtol=1e-3) == same


def test_thresholds_move_with_their_channels(variables, found):
    order = np.random.default_rng(6).permutation(32)
    moved = with_mlp(variables, lambda name, x: x[:, order] if name == "mlp_out" else x[..., order])
    own = observe(MODULE, moved, WINDOWS, rules=RULES)
    for rule in ("abs", "rms", "abs_down", "rms_down"):
        before, after = (thresholds_of(x, sparsity=0.45, rule=rule).gate for x in (found, own))
        np.testing.assert_allclose(after, before[:, order], rtol=0.011)
        assert np.abs(after / before - 1).max() > 0.5


def test_decisions_with_the_row_norm_do_not_see_how_size_is_shared(variables, seen, found):
    c = 2.0 ** np.random.default_rng(7).integers(-3, 4, 32)  # powers of two round nothing

    def shared(name, kernel):
        return kernel * {"gate": 1, "mlp_in": c, "mlp_out": 1 / c[:, None]}[name]

    own = observe(MODULE, with_mlp(variables, shared), WINDOWS, rules=RULES)
    for rule in ("abs", "rms", "abs_down", "rms_down"):
        before, after = (
            np.abs(seen[0]) < thresholds_of(x, sparsity=0.45, rule=rule).gate[:, None]
            for x in (found, own)
        )
        changed = (before != after).mean((1, 2))
        assert (changed == 0).all() if rule.endswith("_down") else (changed > 0.1).all()


def test_pruning_is_the_best_of_its_count():
    rng = np.random.default_rng(3)
    gate, m = rng.normal(size=9), rng.uniform(0.3, 3, 9)
    size = np.asarray(importance(jnp.asarray(gate, jnp.float32), jnp.asarray(m, jnp.float32)))
    np.testing.assert_allclose(size, np.abs(gate) * m, rtol=1e-6)
    least = float(kth_smallest(jnp.asarray(size), 0.5))  # the 4th of 9
    out = size < least
    assert out.sum() == 3
    # With |u| = m in every channel no mask of as many channels changes the product less.
    errors = {
        mask: (np.abs(gate * m)[list(mask)] ** 2).sum()
        for mask in itertools.combinations(range(9), 3)
    }
    assert min(errors, key=errors.get) == tuple(np.flatnonzero(out))


def test_quantiles_of_bins_are_exact_to_a_bin():
    rng = np.random.default_rng(4)
    values = np.exp(rng.normal(0, 2, 5000)).astype(np.float32)
    values[:40] = 0
    counts = np.asarray(bin_counts(jnp.asarray(values)))
    assert counts.sum() == 5000
    assert counts[0] == 40
    for share in (0.01, 0.3, 0.5, 0.99):
        exact = float(kth_smallest(jnp.asarray(values), share))
        assert exact == np.sort(values)[int(share * 5000) - 1]
        np.testing.assert_allclose(binned_quantile(counts, share), exact or 2.0**-24, rtol=0.011)
    assert float(kth_smallest(jnp.asarray(values), 0.0001)) == 0.0 == binned_quantile(counts, 1e-4)
    assert float(kth_smallest(jnp.asarray(values), 1.0)) == np.inf == binned_quantile(counts, 1.0)
    one = np.zeros(2048, int)
    one[1024] = 100  # within a bin its logarithms are taken to lie evenly
    np.testing.assert_allclose(binned_quantile(one, 0.25), 2 ** (0.25 / 64 - 8), rtol=1e-6)
    both = binned_quantile(np.stack([counts, counts[::-1]]), 0.5)
    assert both.shape == (2,)
    assert both[0] == binned_quantile(counts, 0.5)


def test_what_a_share_is_short_of_a_whole_number_is_not_lost():
    values = jnp.arange(1.0, 101)  # of which 0.29, in floats, are fewer than 29
    assert float(kth_smallest(values, 0.29)) == 29
    gate = random_channels(jax.random.key(0), layers=2, channels=100, sparsity=0.29).gate
    assert np.isinf(gate).sum(1).tolist() == [29, 29]


def test_a_channel_multiplied_by_nothing_is_left_out_only_where_some_are():
    unit, counts = np.ones(1), np.ones((1, 2048), int)
    own = Calibration({"abs": np.array([[2.0, 0.0]])}, {"abs": unit}, {"abs": counts})
    least = np.asarray(thresholds_of(own, sparsity=0.5).gate)
    np.testing.assert_allclose(least[0, 0], 2.0**-8 / 2, rtol=0.011)
    assert np.isinf(least[0, 1])
    assert not np.asarray(thresholds_of(own, sparsity=0.0).gate).any()


def test_thresholds_are_kept_in_a_file(tmp_path):
    own = random_channels(jax.random.key(0), layers=3, channels=10, sparsity=0.4)
    gate = np.asarray(own.gate)
    assert (np.isinf(gate).sum(1) == 4).all()
    assert set(gate[~np.isinf(gate)]) == {0.0}
    assert (gate[0] != gate[1]).any()
    given = own._replace(query=jnp.array([1.0, 2.0, 3.0]))
    file = tmp_path / "deep" / "t.safetensors"
    save_thresholds(file, given)
    back = load_thresholds(file)
    with pytest.raises(UserError, match=r"t.safetensors exists, expected a new file"):
        save_thresholds(file, given)
    np.testing.assert_array_equal(back.gate, gate)
    np.testing.assert_array_equal(back.query, [1, 2, 3])
    assert back.hidden is None
    import safetensors.numpy

    safetensors.numpy.save_file({"up": np.ones(2)}, tmp_path / "u.safetensors")
    with pytest.raises(UserError, match="has a tensor 'up', expected thresholds: gate"):
        load_thresholds(tmp_path / "u.safetensors")
    with pytest.raises(UserError, match=r"none.safetensors cannot be read as safetensors"):
        load_thresholds(tmp_path / "none.safetensors")
    whole = file.read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"cut cannot be read as safetensors"):
        load_thresholds(tmp_path / "cut")


@pytest.mark.parametrize(
    "layout", [np.asfortranarray, lambda x: x.T.copy().T, lambda x: np.repeat(x, 2, 1)[:, ::2]]
)
def test_thresholds_of_any_layout_in_memory_are_kept(tmp_path, layout):
    gate = layout(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
    assert not gate.flags.c_contiguous
    save_thresholds(tmp_path / "t.safetensors", Thresholds(gate=gate))
    np.testing.assert_array_equal(load_thresholds(tmp_path / "t.safetensors").gate, gate)


def test_a_file_that_was_not_written_to_its_end_is_not_there(tmp_path, monkeypatch):
    import safetensors.numpy

    file, given = tmp_path / "t.safetensors", Thresholds(query=jnp.array([1.0, 2.0]))

    def torn(tensors, path):
        Path(path).write_bytes(b"torn")
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.numpy, "save_file", torn)
        with pytest.raises(OSError, match="the disk is full"):
            save_thresholds(file, given)
    assert not file.exists()
    save_thresholds(file, given)
    np.testing.assert_array_equal(load_thresholds(file).query, [1, 2])
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_bad_input_is_named(variables):
    own = Calibration({"abs": np.ones((1, 2))}, {}, {"abs": np.ones((1, 2048), int)})
    with pytest.raises(ValueError, match=r"sparsity=1.5, expected 0 to 1"):
        thresholds_of(own, sparsity=1.5)
    with pytest.raises(ValueError, match="rule 'rms' was not calibrated, only abs"):
        thresholds_of(own, sparsity=0.5, rule="rms")
    with pytest.raises(ValueError, match="place 'query' was not calibrated, only abs"):
        thresholds_of(own, sparsity=0.5, rule=None, attention=("query",))
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=rf"sparsity={share}, expected 0 to 1"):
            random_channels(jax.random.key(0), layers=2, channels=4, sparsity=share)
    with pytest.raises(ValueError, match="unknown place of attention 'out'"):
        thresholds_of(own, sparsity=0.5, rule=None, attention=("out",))
    with pytest.raises(ValueError, match="unknown rule of thresholds 'mean'"):
        observe(MODULE, variables, WINDOWS, rules=("mean",))
    with pytest.raises(ValueError, match="no windows to calibrate on"):
        observe(MODULE, variables, WINDOWS[:0])
    assert Thresholds() == (None,) * 6
