"""Exits beside float64 oracles written from their definition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from rml.models import ConvExit, Exits, TokenExit

RNG = np.random.default_rng(0)


def drawn(module, *args):
    """Variables away from neutral values, in float64."""
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *args))
    ends = {"params": (-0.7, 0.7), "batch_stats": (0.5, 1.5)}
    return {
        name: jax.tree.map(lambda x, ends=ends[name]: RNG.uniform(*ends, x.shape), tree)
        for name, tree in shapes.items()
    }


def single(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def depthwise(x, kernel, stride):
    """Of padded maps the sum over the nine shifted ones, every stride-th place."""
    h, w = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = sum(
        padded[:, i : i + h, j : j + w] * kernel[i, j, 0] for i in range(3) for j in range(3)
    )
    return found[:, ::stride, ::stride]


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def test_a_map_is_halved_by_separable_convolutions_and_averaged():
    x = RNG.standard_normal((2, 8, 7, 3))
    module = ConvExit(halvings=2, width=5, classes=4)
    variables = drawn(module, jnp.asarray(x, jnp.float32))
    params, kept = variables["params"], variables["batch_stats"]
    assert params["point0b"]["kernel"].shape == (1, 1, 3, 6)
    assert params["point1b"]["kernel"].shape == (1, 1, 6, 5)
    truth = x
    for name, stride in (("0a", 2), ("0b", 1), ("1a", 2), ("1b", 1)):
        truth = depthwise(truth, params[f"depth{name}"]["kernel"], stride)
        truth = truth @ params[f"point{name}"]["kernel"][0, 0]
        own, norm = kept[f"norm{name}"]["bn"], params[f"norm{name}"]["bn"]
        truth = (truth - own["mean"]) / np.sqrt(own["var"] + 1e-5) * norm["scale"] + norm["bias"]
        truth = np.maximum(truth, 0)
    assert truth.shape[1:3] == (2, 2)
    truth = linear(truth.mean((1, 2)), params["out"])
    found = jax.jit(module.apply)(single(variables), single(x))
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5)


def test_the_last_map_is_only_widened():
    x = RNG.standard_normal((2, 3, 3, 3))
    module = ConvExit(halvings=0, width=5, classes=4)
    params = drawn(module, jnp.asarray(x, jnp.float32))["params"]
    wide = x.mean((1, 2)) @ params["point"]["kernel"][0, 0] + params["point"]["bias"]
    found = jax.jit(module.apply)({"params": single(params)}, single(x))
    np.testing.assert_allclose(found, linear(wide, params["out"]), rtol=1e-4, atol=1e-5)


def still(params):
    """Blocks that change nothing."""
    blocks = {
        name: jax.tree.map(lambda leaf, name=name: leaf * (name not in ("out", "mlp_out")), tree)
        for name, tree in params["blocks"].items()
    }
    return {**params, "blocks": blocks}


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "token"), [(2, False), (1, False), (1, True)])
def test_neighbours_are_merged_and_the_class_token_is_not(grid, token):
    x = 0.01 * RNG.standard_normal((2, 16 + token, 4))  # so small that norms show what they add
    module = TokenExit(blocks=1, classes=3, grid=grid, heads=2)
    params = still(drawn(module, jnp.asarray(x, jnp.float32))["params"])
    found = jax.jit(module.apply)({"params": single(params)}, single(x))
    tokens, side = x[:, int(token) :], 4
    merges = {2: 1, 1: 2}[grid]
    for i in range(merges):
        side //= 2
        # [b, row, row in it, column, column in it, d], neighbours beside one another.
        parts = tokens.reshape(2, side, 2, side, 2, 4)
        rows = [parts[:, :, i, :, j] for i in range(2) for j in range(2)]
        tokens = np.concatenate(rows, axis=-1).reshape(2, side * side, 16)
        norm = params[f"merge_norm{i}"]
        tokens = tokens - tokens.mean(-1, keepdims=True)
        tokens = tokens / np.sqrt(tokens.var(-1, keepdims=True) + 1e-5)
        tokens = (tokens * norm["scale"] + norm["bias"]) @ params[f"merge{i}"]["kernel"]
        if i == 0:  # the last of several has no nonlinearity
            tokens = tokens * (1 + erf(tokens / np.sqrt(2))) / 2
    read = x[:, 0] if token else tokens.mean(1)
    np.testing.assert_allclose(found, linear(read, params["out"]), rtol=2e-4, atol=1e-5)


def test_blocks_attend_to_the_merged_tokens():
    """With blocks at work the class token tells of the tokens beside it."""
    x = RNG.standard_normal((1, 17, 4))
    module = TokenExit(blocks=2, classes=3, grid=2, heads=2)
    params = single(drawn(module, jnp.asarray(x, jnp.float32))["params"])
    apply = jax.jit(lambda x: module.apply({"params": params}, x))
    moved = x.copy()
    moved[:, 9] *= -4
    assert params["blocks"]["qkv"]["kernel"].shape[0] == 2
    assert np.abs(apply(single(x)) - apply(single(moved))).max() > 1e-3


@pytest.mark.slow
def test_every_stage_has_its_exit():
    maps = tuple(jnp.ones((2, n, n, c)) for n, c in ((8, 2), (4, 3), (2, 4)))
    tokens = tuple(jnp.ones((2, 16, 8)) for _ in range(4))

    def shapes(module, stages):
        found = jax.eval_shape(module.init_with_output, jax.random.key(0), stages)
        return found[0].shape, nn.meta.unbox(found[1])["params"]

    shape, params = shapes(Exits(classes=5, width=6), maps)
    assert shape == (3, 2, 5)
    halvings = [sum(name.startswith("depth") for name in params[f"exit{k}"]) // 2 for k in range(3)]
    assert halvings == [2, 1, 0]
    assert all(params[f"exit{k}"]["out"]["kernel"].shape == (6, 5) for k in range(3))
    shape, params = shapes(Exits(classes=5, width=6, stages=(1, 2, 3), grid=2), tokens)
    assert shape == (3, 2, 5)
    assert {name: depth(own) for name, own in params.items()} == {
        "exit1": 2,
        "exit2": 1,
        "exit3": 1,
    }
    # Sizes are those of a stage's place among all stages, whichever have exits.
    for chosen, depths in (((0,), [3]), ((0, 1), [3, 2]), ((1, 3), [2, 1])):
        shape, params = shapes(Exits(classes=5, width=6, chosen=chosen, grid=2), tokens)
        assert shape == (len(chosen), 2, 5)
        found = {name: depth(own) for name, own in params.items()}
        assert found == {f"exit{k}": d for k, d in zip(chosen, depths, strict=True)}
    _, params = shapes(Exits(classes=5, width=6, stages=(1, 3), chosen=(0,)), tokens)
    assert list(params) == ["exit1"]
    _, params = shapes(Exits(classes=5, width=6, chosen=(0,)), maps)
    assert sum(name.startswith("depth") for name in params["exit0"]) == 2 * 2


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(("dtype", "wanted"), [(None, jnp.float32), (jnp.bfloat16, jnp.bfloat16)])
def test_tokens_may_come_in_another_type_than_blocks_compute_in(merged, dtype, wanted):
    module = TokenExit(2, 3, grid=1 if merged else 7, heads=2, dtype=dtype)
    for own in (jnp.bfloat16, jnp.float32):
        x = jax.ShapeDtypeStruct((2, 5, 4), own)
        logits, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        assert (logits.shape, logits.dtype) == ((2, 3), wanted)


def depth(params):
    """Number of blocks of an exit from tokens."""
    return params["blocks"]["norm1"]["scale"].shape[0]


@pytest.mark.slow
def test_weights_begin_as_the_public_code_has_them():
    """Deviations of He's fan-out, which counts all channels, and of a truncated normal of 0.02."""
    keys = jax.random.split(jax.random.key(0))
    modules = ConvExit(halvings=1, width=64, classes=50), TokenExit(1, 50, grid=2)
    inputs = jnp.zeros((1, 4, 4, 64)), jnp.zeros((1, 16, 64))

    @jax.jit
    def deviations(keys):
        drawn = [m.init(k, x)["params"] for m, k, x in zip(modules, keys, inputs, strict=True)]
        return jax.tree.map(jnp.std, nn.meta.unbox(drawn))

    maps, tokens = deviations(keys)
    for name in ("depth0a", "depth0b"):
        assert maps[name]["kernel"] == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.15)
    assert maps["point0a"]["kernel"] == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    cut = 0.02 * 0.8796  # deviation of a normal that is cut at two of its own
    blocks = [tokens["blocks"][name] for name in ("qkv", "out", "mlp_in", "mlp_out")]
    for own in (maps["out"], tokens["out"], tokens["merge0"], *blocks):
        assert own["kernel"] == pytest.approx(cut, rel=0.1)


@pytest.mark.slow
def test_a_map_without_content_has_the_logits_of_the_bias():
    """Of tokens any constant is such; of maps padding tells of a constant, and zeros are."""
    token, conv = TokenExit(blocks=1, classes=3, grid=2, heads=2), ConvExit(1, 5, 3)
    x, y = np.full((2, 16, 4), 0.7), np.zeros((2, 4, 4, 3))
    params = still(drawn(token, single(x))["params"])
    params["merge_norm0"]["bias"] *= 0
    variables = drawn(conv, single(y))
    for name in ("norm0a", "norm0b"):
        variables["params"][name]["bn"]["bias"] *= 0

    @jax.jit
    def run(params, variables, x, y):
        maps, _ = conv.apply(variables, y, train=True, mutable=["batch_stats"])
        return token.apply({"params": params}, x), maps

    found = run(single(params), single(variables), single(x), single(y))
    for logits, own in zip(found, (params, variables["params"]), strict=True):
        np.testing.assert_allclose(logits, [own["out"]["bias"]] * 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "stages", "message"),
    [
        (Exits(classes=2, width=4), [(2, 5)], "stage 0 is .2, 5., expected a map or tokens"),
        (Exits(classes=2, width=4, stages=(3,)), [(2, 4, 8)], "output 3 of 1, expected 0 to 0"),
        (Exits(classes=2, width=4, chosen=(2,)), [(2, 4, 8)] * 2, "stage 2 of 2, expected 0 to 1"),
        (Exits(classes=2, width=4), [(2, 7, 8)], "square grid of tokens, got 7"),
        (Exits(classes=2, width=4, grid=1), [(2, 9, 8)], "side 3 cannot be halved down to 1"),
        (Exits(classes=2, width=4, heads=3), [(2, 4, 8)], "heads=3 must divide width=8"),
        (Exits(classes=2, width=4, chosen=()), [(2, 4, 8)], r"chosen is .., expected different"),
        (Exits(classes=2, width=4, chosen=(0, 0)), [(2, 4, 8)], r"chosen is .0, 0., expected"),
    ],
)
def test_wrong_stages_are_named(module, stages, message):
    shapes = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in stages)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), shapes)
