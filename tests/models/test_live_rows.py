"""Decoding by the rows of live channels, against NumPy and against the dense computation."""

import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import Llama, Probe, Thresholds, generate, live_rows
from rml.models.live_rows import LiveRows, from_live_rows

# The package has a function of that name.
FILE = importlib.import_module("rml.models.live_rows")
SMALL = {"vocabulary": 20, "width": 16, "depth": 2, "heads": 4, "mlp": 24, "kv_heads": 2}
MODULE = Llama(**SMALL)
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 20, (1, 5)), jnp.int32)
LEAST = Thresholds(
    gate=jnp.asarray(RNG.uniform(0, 0.6, (2, 24)), jnp.float32),
    hidden=jnp.asarray(RNG.uniform(0, 0.4, (2, 24)), jnp.float32),
    query=jnp.array([0.4, 0.8]),
    output=jnp.array([0.6, 0.1]),
)
F, D, LAYERS = 40, 8, 3
GIVEN = RNG.normal(size=(2, LAYERS, F, D)) / 3


@pytest.fixture(scope="module")
def variables():
    shapes = nn.unbox(jax.eval_shape(MODULE.init, jax.random.key(0), TOKENS))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


@functools.partial(jax.jit, static_argnums=0)
def apply(module, variables, tokens, **options):
    return module.apply(variables, tokens, **options)


def decoded(module, variables, rows, thresholds=LEAST):
    """Last hidden states of one token after another."""
    cache, found = module.init_cache(1, TOKENS.shape[1]), []
    for i in range(TOKENS.shape[1]):
        token = np.asarray(TOKENS)[:, i : i + 1]
        states = apply(module, variables, token, cache=cache, thresholds=thresholds, rows=rows)
        cache = states.cache
        found.append(states.last[:, 0])
    return np.stack(found, 1)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 15, 40])
def test_rows_of_a_layer_give_the_definition_and_no_other_is_read(budget, monkeypatch):
    monkeypatch.setattr(FILE, "PIECE", 4 * D * 7)  # seven rows at a time
    x, least = RNG.normal(size=D), RNG.uniform(0.4, 1.6, F)
    call = jax.jit(
        lambda gate, up, down, layer: from_live_rows(
            jnp.asarray(x, jnp.float32),
            gate,
            LiveRows(up, down, budget),
            layer=layer,
            least=jnp.asarray(least, jnp.float32),
        )
    )
    for layer, live in ((0, 0), (2, 15), (1, 14), (2, 16), (1, 40)):
        gate = np.zeros(F)
        gate[np.r_[0, 1 + RNG.permutation(F - 1)][:live]] = RNG.normal(size=live) + 3
        up, down = GIVEN[:, layer]
        hidden = gate * (up @ x)
        hidden = np.where(np.abs(hidden) >= least, hidden, 0)
        assert live < 5 or 0 < (hidden != 0).sum() < live
        # A row that is not live is not read: not a number would show.
        poisoned = GIVEN.copy()
        if live <= budget:
            poisoned[:, layer, gate == 0] = np.nan
            poisoned[:, np.arange(LAYERS) != layer] = np.nan
        matrices = (jnp.asarray(own.reshape(-1, D), jnp.float32) for own in poisoned)
        close(call(jnp.asarray(gate, jnp.float32), *matrices, layer), hidden @ down)


@pytest.mark.slow
def test_one_token_at_a_time_is_the_dense_computation_with_the_same_thresholds(variables):
    dense = decoded(MODULE, variables, None)
    close(dense, apply(MODULE, variables, TOKENS, thresholds=LEAST))
    free = apply(MODULE, variables, TOKENS)
    assert np.abs(dense - free).max() > 0.1
    apart = MODULE.clone(scan=False)
    params = dict(variables["params"])
    blocks = params.pop("blocks")
    params |= {f"block{i}": jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(2)}
    # The matrices that rows stand for are not read: not a number would show.
    nothing = {name: {"kernel": blocks[name]["kernel"] * jnp.nan} for name in ("mlp_in", "mlp_out")}
    unread = {"params": dict(variables["params"]) | {"blocks": dict(blocks) | nothing}}
    for budget in (24, 12, 0):  # every token has fewer, some have, none has
        rows = live_rows(MODULE, variables, budget=budget)
        close(decoded(MODULE, unread, rows), dense)
    close(decoded(apart, {"params": params}, live_rows(apart, {"params": params})), dense)
    relu = MODULE.clone(activation="relu")  # it needs no thresholds
    at_once = apply(relu, variables, TOKENS)
    close(decoded(relu, unread, live_rows(relu, variables, budget=24), None), at_once)


@pytest.mark.slow
def test_texts_and_probes_are_read_as_without_and_are_continued_by_rows(variables):
    rows = live_rows(MODULE, variables)
    assert rows.budget == 14
    with_rows, without = (
        apply(MODULE, variables, TOKENS, thresholds=LEAST, rows=own) for own in (rows, None)
    )
    np.testing.assert_array_equal(with_rows, without)
    two, both = TOKENS[:, :2].T, MODULE.init_cache(2, 1)
    with_rows, without = (
        apply(MODULE, variables, two, cache=both, thresholds=LEAST, rows=own).last
        for own in (rows, None)
    )
    np.testing.assert_array_equal(with_rows, without)
    probe = Probe(lambda a, _: (a.hidden != 0).sum())
    probed = jax.jit(functools.partial(MODULE.apply, probe=probe))
    live = np.asarray(probed(variables, TOKENS[:, :1], thresholds=LEAST, rows=rows).probed)
    assert (live > 0).all()
    assert (live < 24).all()
    given = TOKENS[:, :3]
    by_rows, dense, plain = (
        np.asarray(generate(MODULE, variables, given, steps=8, **own))
        for own in ({"thresholds": LEAST, "rows": rows}, {"thresholds": LEAST}, {})
    )
    np.testing.assert_array_equal(by_rows, dense)
    assert (dense != plain).any()


@pytest.mark.slow
def test_half_precision_stays_so(variables):
    half = MODULE.clone(dtype=jnp.bfloat16)
    rows = live_rows(half, variables)
    assert rows.up.dtype == jnp.bfloat16
    states = apply(
        half, variables, TOKENS[:, :1], cache=half.init_cache(1, 1), thresholds=LEAST, rows=rows
    )
    wanted = apply(MODULE, variables, TOKENS[:, :1], thresholds=LEAST)
    assert states.last.dtype == jnp.bfloat16
    np.testing.assert_allclose(states.last.astype(jnp.float32), wanted, atol=0.2)


def test_sums_of_pieces_are_rounded_once_in_half_precision(monkeypatch):
    monkeypatch.setattr(FILE, "PIECE", 2 * 2)  # a row at a time
    count = 400
    up, down = np.ones((2, count, 2))
    rows = LiveRows(jnp.asarray(up, jnp.bfloat16), jnp.asarray(down, jnp.bfloat16), count)
    x, gate = jnp.asarray([1, 0], jnp.bfloat16), jnp.ones(count, jnp.bfloat16)
    found = jax.jit(from_live_rows)(x, gate, rows)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), [count, count])


def test_bad_rows_are_named(variables):
    with pytest.raises(ValueError, match="the MLPs have biases"):
        live_rows(MODULE.clone(mlp_bias=True), variables)
    with pytest.raises(ValueError, match="budget=-1, expected at least 0"):
        live_rows(MODULE, variables, budget=-1)
    rows = live_rows(MODULE, variables)
    assert live_rows(MODULE, variables, budget=99).budget == 24
    with pytest.raises(ValueError, match=r"shape \(48, 16\), got \(24, 16\) and \(48, 16\)"):
        MODULE.apply(variables, TOKENS, rows=rows.replace(up=rows.up[:24]))
