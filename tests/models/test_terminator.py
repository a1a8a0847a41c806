"""Terminator: its operators, slow nets and blocks against float64 loops, and its invariances."""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from scipy.special import erf, expit

from rml.models.hyperzzw import hyperzzw_gate, hyperzzw_global, hyperzzw_local
from rml.models.implicit_kernel import LocalMagnet, Magnet, adaptive_mean, coordinate_grid
from rml.models.terminator import Block, Terminator, slow_neural_loss, weight_norms
from rml.models.terminator_units import HCI, GroupStandard, standardize
from rml.training import kar

RNG = np.random.default_rng(0)
SMALL = {
    "factors": (6, 2), "layers": (1, 2), "local_sizes": (3, 1, 5, 3), "hidden": 5,
    "local_hidden": 4, "omega": 1.0,
}  # fmt: skip
TINY = SMALL | {"local_sizes": (3, 1, 1, 3), "hidden": 2, "local_hidden": 2}
HYPER, WIDE, NEAR = 0.6, 0.7, 1.3
READS = {2: [0], 3: [1], 4: [2, 1]}
"""By block of the public code the earlier ones that it reads beside the last one."""
SHAPES = {"images": (4, 6, 6, 2), "sequences": (4, 7, 2)}
GOLDEN = np.load(Path(__file__).parent / "golden" / "terminator.npz")
"""Numbers in float64 of lalalune/Terminator at 98873b5, its modules moved to the CPU: `SFNEBlock`
with the weights and inputs of the test below, `LnLoss` of that block, `cal_slow_loss_channel_sum`,
`cal_slow_loss` and four steps of `Kar3`. They were computed once beside this repository; no script
makes them anew, since that code is no package and needs `.cuda()` taken out of its modules."""


def draw(*shape):
    return RNG.normal(size=shape)


def variables_of(module, x, *sizes, **options):
    """Variables of the right shapes, far from where they start, and without compiling."""
    rng = np.random.default_rng(1)

    def of_leaf(path, leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        values = rng.normal(size=leaf.shape) / fan_in**0.5
        values = values**2 if path[-1].key == "var" else values
        return jax.device_put(values.astype(np.float32))

    shapes = jax.eval_shape(
        lambda key, x: nn.meta.unbox(module.init(key, x, *sizes, **options)), jax.random.key(0), x
    )
    return jax.tree_util.tree_map_with_path(of_leaf, shapes)


slow_loss = jax.jit(slow_neural_loss, static_argnames="reduce")
adaptive_mean_of = jax.jit(adaptive_mean, static_argnums=1)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def gelu(x):
    return x * (1 + erf(x / 2**0.5)) / 2


def layer(p, x):
    return x @ p["kernel"] + p["bias"]


def standard_of(x, axes):
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5)


def each(x):
    return standard_of(x, tuple(range(1, x.ndim - 1)))


def slow_net(p, shape, context=None):
    """A kernel by its definition; with a context that of a local slow net."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    sines = [
        np.sin(grid @ weights + bias)
        for weights, bias in zip(p["frequencies"], p["phase_bias"], strict=True)
    ]
    h = sines[0]
    for i, own in enumerate(sines[1:]):
        h = own * layer(p[f"hidden{i}"], h) + p["position"][..., None]
        if context is not None:
            norm = np.sqrt((h**2).sum(tuple(range(len(shape))), keepdims=True))
            h = p[f"kept_scale{i}"] * h + p[f"unit_scale{i}"] * h / norm
            h = h * layer(p[f"context{i}"], context)
    return layer(p["out"], h)


def pooled(x, size):
    """Adaptive means of [b, n, ...] along the second axis, by PyTorch's rule."""
    n = x.shape[1]
    parts = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
    return np.stack([x[:, low:high].mean(1) for low, high in parts], axis=1)


def local_kernel(p, x, size):
    u = pooled(x, size)
    if x.ndim == 4:
        u = pooled(u.swapaxes(1, 2), size).swapaxes(1, 2)
    u = gelu(layer(p["mix"], layer(p["reduce"], u).mean(0)))
    return slow_net(p, (size,) * (x.ndim - 2), u)


def near(x, kernel):
    """Cross-correlation of each channel, place by place."""
    half, places = kernel.shape[0] // 2, x.shape[1:-1]
    padded = np.pad(x, ((0, 0), *((half, half) for _ in places), (0, 0)))
    out = np.zeros_like(x)
    for at in np.ndindex(places):
        window = tuple(slice(i, i + kernel.shape[0]) for i in at)
        axes = tuple(range(1, x.ndim - 1))
        out[(slice(None), *at)] = (padded[(slice(None), *window)] * kernel).sum(axes)
    return out


def over_all(x, kernel, z):
    """The global operator, sum by sum."""
    weights, out = x * kernel, np.zeros_like(x)
    n = x.shape[1]
    for i, j in np.ndindex(n, n):
        if x.ndim == 4:
            for w in range(n):
                out[:, i, j] += weights[:, i, w] * z[:, w, j]
        elif 0 <= (at := i - j + (n - 1) // 2) < n:
            out[:, i] += weights[:, j] * z[:, at]
    return out


def rgu(p, x):
    product = layer(p["key"], x) * layer(p["query"], layer(p["value"], x))
    return layer(p["out"], gelu(each(product)) + p["position"][..., None])


def over_places(x):
    return x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)


def block(p, x, options, earlier=(), mix=(1.0, 1.0, 1.0)):
    """Features before the last GELU, the global kernel, and outputs of all branches and f."""
    c, y = x.shape[-1], over_places(x)
    hyper, wide_factor, near_factor = mix
    slow = slow_net(p["slow"], x.shape[1:-1])
    kernel = hyper * slow + (1 - hyper)
    fast = each(rgu(p["rgu_kernel"], x * kernel) + rgu(p["rgu"], x))
    mixed = each(layer(p["mixer"], x))
    gated = each(x * expit(slow_net(p["hci"]["channels"], (c,))[:, 0] * y**2))
    first, second, third = (over_all(x, kernel, z) for z in (fast, mixed, gated))
    of_channels = slow_net(p["hi"]["channels"], (c,))[:, 0] * over_places(first) ** 2
    of_places = slow_net(p["hi"]["places"], x.shape[1:-1]) * first.mean(-1, keepdims=True) ** 2
    joint = x * expit(of_channels * of_places)
    local = []
    for i, (source, z) in enumerate(((x, gated), (gated, x), (mixed, x), (x, mixed))):
        found = near(z, local_kernel(p[f"local_kernel{i}"], source, options["local_sizes"][i]))
        found = standard_of(layer(p[f"local_mixer{i}"], found), tuple(range(x.ndim - 1)))
        local.append(gelu(found) + p[f"local_bias{i}"])
    near_by = [near_factor * one for one in local]
    wide_by = [wide_factor * one for one in (first, second, expit(first) * first, third, joint)]
    tiled = [np.concatenate([one] * (c // one.shape[-1]), -1) for one in earlier]
    parts = [wide_by[0], near_by[1], *tiled[:1], fast, wide_by[1], near_by[0], wide_by[2],
             near_by[2], wide_by[3], near_by[3], *tiled[1:], wide_by[4]]  # fmt: skip
    out = layer(p["bottleneck"], np.concatenate(parts, -1))
    size = out.shape[-1] // 12
    for group in range(12):
        own = slice(group * size, (group + 1) * size)
        axes = tuple(range(group % 2, x.ndim - 1))
        out[..., own] = standard_of(out[..., own], axes)
    return out, slow, [*wide_by, *near_by, fast]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_a_network_is_that_of_the_definition(kind):
    x = draw(*SHAPES[kind])
    mix = {"hyper": HYPER, "wide": WIDE, "near": NEAR}
    net = Terminator(statistics="batch", trained_scales=True, **mix, **SMALL)
    variables = variables_of(net, np.float32(x))

    @jax.jit
    def apply(variables, x):
        return net.apply(variables, x, train=True, mutable=["intermediates"])

    features, left = apply(variables, np.float32(x))
    p = wide(variables["params"])
    want, found = x, []
    for i in range(2):
        own = p[f"block{i}"]
        want, *rest = block(own, want, SMALL, mix=(HYPER, WIDE, NEAR))
        found.append(rest)
        want = gelu(want) + own["bias"] + p[f"offset{i}"]
    np.testing.assert_allclose(features, over_places(want).squeeze(), rtol=2e-3, atol=2e-4)
    for i, (kernel, branches) in enumerate(found):
        own = left["intermediates"][f"block{i}"]
        np.testing.assert_allclose(own["kernel"][0], kernel, rtol=1e-4, atol=1e-5)
        for one, branch in zip(own["branches"][0], branches, strict=True):
            np.testing.assert_allclose(one, branch, rtol=1e-2, atol=2e-3)
        # Features have mean zero in each channel, by construction.
        before = np.asarray(own["standardized"][0], np.float64)
        assert np.abs(before.mean(tuple(range(before.ndim - 1)))).max() < 1e-5


@pytest.mark.slow
def test_blocks_read_earlier_ones_and_drop_whole_channels():
    """Five blocks in training, each beside the definition on what the blocks before it gave."""
    rate, x = 0.3, draw(6, 3, 1)
    sizes = {"factors": (12, 1, 2, 1, 1), "layers": (1,) * 5}
    net = Terminator(statistics="batch", trained_scales=True, dropout=rate, **TINY | sizes)
    variables = variables_of(net, np.float32(x))

    @jax.jit
    def apply(variables, x):
        return net.apply(
            variables, x, train=True, rngs={"dropout": jax.random.key(0)},
            mutable=["intermediates"], capture_intermediates=lambda m, _: isinstance(m, nn.Dropout),
        )  # fmt: skip

    features, left = apply(variables, np.float32(x))
    p, left = wide(variables["params"]), left["intermediates"]
    outputs, before = [wide(left[f"block{i}"]["Dropout_0"]["__call__"][0]) for i in range(5)], x
    kept = []
    for i, out in enumerate(outputs):
        own = p[f"block{i}"]
        standard = block(own, before, TINY, [outputs[j] for j in READS.get(i, [])])[0]
        want, before = gelu(standard) + own["bias"], out + p[f"offset{i}"]
        kept.append((out != 0).all(1))
        np.testing.assert_array_equal(kept[i], (out != 0).any(1))
        scale = 1 / (1 - rate) if i else 1.0
        np.testing.assert_allclose(out, scale * want * kept[i][:, None], rtol=5e-3, atol=2e-3)
    assert kept[0].all()
    of_examples = np.concatenate(kept[1:], axis=1)
    assert of_examples.mean() == pytest.approx(1 - rate, abs=0.08)
    assert (of_examples[0] != of_examples[1]).any()
    np.testing.assert_allclose(features, before.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_trained_scales_keep_the_type_of_the_computation():
    sizes = {"factors": (12, 1, 2, 1, 1), "layers": (1,) * 5}
    net = Terminator(trained_scales=True, dtype=jnp.bfloat16, **TINY | sizes)
    x = jax.ShapeDtypeStruct((2, 3, 1), jnp.float32)
    features, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert features.dtype == jnp.bfloat16


@pytest.mark.slow
def test_a_block_of_two_earlier_ones_gives_the_numbers_of_the_authors_code():
    rng = np.random.default_rng(2)
    x, *earlier = (jnp.asarray(np.float32(rng.normal(size=(3, 5, 5, c)))) for c in (12, 6, 3))
    module = Block(
        factor=2, layers=2, local_sizes=(3, 1, 5, 3), hidden=64, local_hidden=4, omega=1.0,
        hyper=1.0, wide=1.0, near=1.0, standard="alternate", statistics="batch", pool_batch=True,
        trained_scales=False, dropout=0.0, dtype=None, param_dtype=jnp.float32,
    )  # fmt: skip
    apply = partial(module.apply, train=True)
    variables = variables_of(module, x, earlier, train=True)
    found = np.asarray(jax.jit(apply)(variables, x, earlier))
    np.testing.assert_allclose(found[:, 1::2, ::2], GOLDEN["block"], atol=2e-5)
    norms = jax.jit(weight_norms)({"block0": variables["params"]})
    assert norms == pytest.approx(GOLDEN["norms"], rel=1e-5)


def test_losses_and_steps_give_the_numbers_of_the_authors_code():
    rng = np.random.default_rng(3)
    kernels = [np.float32(rng.normal(size=(3, 4, c))) for c in (2, 4, 8)]
    assert slow_loss(kernels) == pytest.approx(GOLDEN["slow"], rel=1e-5)
    assert slow_loss(kernels, reduce="tile") == pytest.approx(GOLDEN["tile"], rel=1e-5)
    optimizer = kar(0.1)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    params = np.zeros(6, np.float32)
    state = optimizer.init(params)
    for gradient in rng.normal(size=(4, 6)):
        params, state = step(params, state, np.float32(gradient))
    np.testing.assert_allclose(params, GOLDEN["kar"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pool_batch", [True, False])
def test_an_evaluation_depends_on_other_images_only_as_the_authors_have_it(pool_batch):
    x = np.float32(draw(*SHAPES["images"]))
    own = {"pool_batch": pool_batch, **SMALL, "factors": (6,), "layers": (1,)}
    net = Terminator(dropout=0.5, **own)
    variables = variables_of(net, x)
    others = x + np.float32(np.arange(4) >= 2)[:, None, None, None]
    evaluate = jax.jit(net.apply)
    found, beside = (np.asarray(evaluate(variables, images)) for images in (x, others))
    np.testing.assert_array_equal(found[:2], beside[:2])
    if pool_batch:
        authors = jax.jit(Terminator(statistics="batch", **own).apply)
        params = {"params": variables["params"]}
        found, beside = (np.asarray(authors(params, images)) for images in (x, others))
        assert np.abs(found[:2] - beside[:2]).max() > 0.05


def test_running_averages_follow_the_batches_and_serve_evaluations():
    x = np.float32(draw(4, 6, 6, 2))
    net = LocalMagnet(2, hidden=3, layers=1, omega=1.0)
    variables = variables_of(net, x, 3)

    @jax.jit
    def train(variables, x):
        return net.apply(variables, x, 3, train=True, mutable=["batch_stats"])

    kernel, changed = train(variables, x)
    before = variables["batch_stats"]["pooled"]
    batch = np.asarray(adaptive_mean_of(x, 3)).mean(0)
    wanted = 0.9 * np.asarray(before) + 0.1 * batch
    np.testing.assert_allclose(changed["batch_stats"]["pooled"], wanted, atol=1e-6)
    there = {**variables, "batch_stats": {"pooled": batch}}
    evaluated = jax.jit(lambda v, x: net.apply(v, x, 3))(there, 2 * x)
    np.testing.assert_allclose(evaluated, kernel, atol=1e-5)


def test_the_running_average_keeps_its_type_beside_wider_inputs():
    with jax.enable_x64(True):
        x = jnp.asarray(draw(4, 6, 6, 2))
        net = LocalMagnet(
            2, hidden=3, layers=1, omega=1.0, momentum=0.7, param_dtype=jnp.float64
        )  # fmt: skip
        variables = variables_of(net, x, 3)

        def step(stats, _):
            own = {**variables, "batch_stats": stats}
            changed = net.apply(own, x, 3, train=True, mutable=["batch_stats"])[1]
            return changed["batch_stats"], None

        # A scan's state keeps its types.
        start = {"pooled": jnp.zeros_like(variables["batch_stats"]["pooled"])}
        stats, _ = jax.jit(lambda start: jax.lax.scan(step, start, length=2))(start)
        assert x.dtype == jnp.float64
        assert stats["pooled"].dtype == jnp.float32
        batch = np.asarray(adaptive_mean_of(x, 3)).mean(0)
        np.testing.assert_allclose(stats["pooled"], 0.51 * batch, rtol=1e-5, atol=1e-6)


def test_each_image_has_a_kernel_without_the_batch():
    x = np.float32(draw(3, 6, 6, 2))
    pooled_net = LocalMagnet(2, hidden=3, layers=2, omega=1.0, statistics="batch")
    net = pooled_net.clone(pool_batch=False)
    variables = variables_of(net, x, 3)
    found = np.asarray(jax.jit(lambda v, x: net.apply(v, x, 3))(variables, x))
    alone = jax.jit(lambda v, x: pooled_net.apply(v, x, 3))
    for i in range(3):
        np.testing.assert_allclose(found[i], alone(variables, x[i : i + 1]), atol=1e-5)


def test_no_gradient_passes_the_kept_part_of_the_renormalisation():
    x = jnp.asarray(np.float32(draw(2, 6, 6, 2)))
    net = LocalMagnet(2, hidden=3, layers=1, omega=1.0, trained_scales=True)
    variables = variables_of(net, x, 3)
    grad = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(variables | {"params": p}, x, 3) ** 2)))
    params = variables["params"]
    found = jax.device_get(grad(params))
    assert np.abs(found["hidden0"]["kernel"]).max() > 0
    # Along h itself its direction does not change, and what is kept has no gradient.
    without = jax.device_get(grad(params | {"unit_scale0": np.zeros(3, np.float32)}))
    assert not np.any(without["hidden0"]["kernel"])
    assert np.abs(without["context0"]["kernel"]).max() > 0


@pytest.mark.parametrize(("places", "size"), [(7, 3), (6, 3), (4, 5)])
def test_adaptive_means_are_those_of_pytorch(places, size):
    x = draw(2, places, places + 1, 3)
    want = pooled(pooled(x, size).swapaxes(1, 2), size).swapaxes(1, 2)
    np.testing.assert_allclose(adaptive_mean_of(np.float32(x), size), want, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 5, 3), (2, 7, 3), (2, 8, 3)])
def test_the_global_operator_is_a_product_of_planes_or_a_convolution(shape):
    x, kernel, z = draw(*shape), draw(*shape[1:]), draw(*shape)
    found = jax.jit(hyperzzw_global)(*map(np.float32, (x, kernel, z)))
    np.testing.assert_allclose(found, over_all(x, kernel, z), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (2, 7, 3)])
def test_the_local_operator_is_a_correlation_of_each_channel(shape):
    x, kernel = draw(*shape), draw(*(3,) * (len(shape) - 2), 3)
    arrays = [np.float32(a) for a in (x, kernel)]
    local = jax.jit(hyperzzw_local)
    np.testing.assert_allclose(local(*arrays), near(x, kernel), atol=1e-5)
    own = np.stack([kernel, 2 * kernel + 1])
    want = np.concatenate([near(x[i : i + 1], own[i]) for i in range(2)])
    np.testing.assert_allclose(local(arrays[0], np.float32(own)), want, atol=1e-5)


def test_gates():
    x, kernel = draw(2, 3, 4), draw(3, 4)
    found = jax.jit(hyperzzw_gate)(*map(np.float32, (x, kernel)))
    np.testing.assert_allclose(found, x * kernel * x, atol=1e-6)
    # Without a kernel half of the input passes.
    net, images = HCI(hidden=3), np.float32(draw(2, 4, 4, 3))
    variables = jax.tree.map(np.zeros_like, variables_of(net, images))
    np.testing.assert_allclose(jax.jit(net.apply)(variables, images), images / 2, atol=1e-6)


def test_standardisation_is_finite_where_nothing_varies():
    x = np.ones((2, 3, 3, 24), np.float32)
    norm = GroupStandard("batch")
    value, grad = jax.jit(jax.value_and_grad(lambda x: norm.apply({}, x, train=True).sum()))(x)
    assert value == 0
    assert np.isfinite(np.asarray(grad)).all()
    assert not np.any(np.asarray(jax.jit(standardize)(x)))


def test_shares_of_both_standardisations():
    x = draw(3, 5, 24)

    @jax.jit
    def found(even, odd):
        norm = GroupStandard("batch", {"even": even, "odd": odd})
        return norm.apply({}, jnp.asarray(np.float32(x)), train=True)

    batch, each = (standard_of(x, axes).reshape(3, 5, 6, 2, 2) for axes in ((0, 1), (1,)))
    for even, odd in ((1.0, 0.0), (0.7, 0.2)):
        share = np.array([even, odd])[:, None]
        want = (share * batch + (1 - share) * each).reshape(x.shape)
        np.testing.assert_allclose(found(even, odd), want, atol=1e-5)
    norm = jax.jit(lambda x: GroupStandard("batch").apply({}, x, train=True))
    np.testing.assert_allclose(norm(np.float32(x)), found(1.0, 0.0), atol=1e-5)


def test_weights_are_penalised_by_their_norms():
    def net(kind):
        slow = {
            "frequencies": draw(3, 2, 4), "phase_bias": draw(3, 4), "position": draw(2, 2),
            "hidden0": {"kernel": draw(4, 4), "bias": draw(4)},
            "out": {"kernel": draw(4, 5), "bias": draw(5)},
        }  # fmt: skip
        local = {name: {"kernel": draw(4, 4), "bias": draw(4)} for name in ("reduce", "context0")}
        return slow | (local if kind == "local" else {})

    fast = {
        "mixer": {"kernel": draw(5, 5), "bias": np.zeros(5)}, "local_bias0": draw(1),
        "local_mixer0": {"kernel": draw(5, 5), "bias": draw(5)},
        "bottleneck": {"kernel": draw(9, 3), "bias": draw(3)},
    }  # fmt: skip
    rgu = {"key": {"kernel": draw(5, 5), "bias": draw(5)}, "position": draw(2, 2)}
    slow = {"slow": net("wide"), "local_kernel0": net("local")}
    ignored = {"bias": draw(1), "hci": {"channels": net("wide")}}
    hyper = {"hi": {"places": net("wide"), "channels": net("wide")}}
    params = {"block0": {**fast, "rgu": rgu, **slow, **ignored, **hyper}, "offset0": draw(1)}

    def weights(net):
        kernels = [own["kernel"] for own in net.values() if isinstance(own, dict)]
        return sum(map(np.linalg.norm, [*net.get("frequencies", ()), *map(np.ravel, kernels)]))

    want = sum(np.linalg.norm(x) for x in jax.tree.leaves(fast))
    for own in (rgu, slow["slow"], slow["local_kernel0"], hyper["hi"]["places"]):
        want += 0.01 * weights(own)
    arrays = jax.tree.map(np.float32, params)
    penalty = jax.jit(jax.value_and_grad(lambda own: weight_norms(own, slow=0.01)))
    found, grad = jax.device_get(penalty(arrays))
    assert found == pytest.approx(want, rel=1e-5)
    assert not np.any(grad["block0"]["mixer"]["bias"])
    kernel = fast["bottleneck"]["kernel"]
    own = grad["block0"]["bottleneck"]["kernel"]
    np.testing.assert_allclose(own, kernel / np.linalg.norm(kernel), atol=1e-5)


def test_the_slow_loss_compares_kernels_of_all_pairs_of_blocks():
    kernels = [draw(3, 4, c) for c in (2, 4, 8)]
    arrays = [np.float32(kernel) for kernel in kernels]
    sums, tiles = 0.0, 0.0
    for i in range(3):
        for j in range(i):
            sums += ((kernels[i].sum(-1) - kernels[j].sum(-1)) ** 2).mean()
            times = kernels[i].shape[-1] // kernels[j].shape[-1]
            tiles += ((np.concatenate([kernels[j]] * times, -1) - kernels[i]) ** 2).mean()
    assert slow_loss(arrays) == pytest.approx(sums, rel=1e-5)
    assert slow_loss(arrays, reduce="tile") == pytest.approx(tiles, rel=1e-5)
    for reduce in ("sum", "tile"):
        assert slow_loss([arrays[0]] * 3, reduce=reduce) == 0
    assert slow_loss(arrays[:1]) == 0


@pytest.mark.parametrize("reduce", ["sum", "tile"])
def test_the_gradient_of_the_slow_loss_is_its_difference_quotient(reduce):
    kernels = tuple(np.float32(draw(3, c)) for c in (2, 4))
    loss = jax.jit(lambda *kernels: slow_neural_loss(kernels, reduce=reduce))
    check_grads(loss, kernels, order=1, modes=("rev",), atol=5e-3, rtol=5e-3, eps=1e-2)


@pytest.mark.slow
def test_slow_nets_start_as_the_authors_draw_them():
    net = Magnet(400, hidden=300, layers=3, omega=10.0)
    params = nn.meta.unbox(jax.jit(lambda key: net.init(key, (4, 5)))(jax.random.key(0)))["params"]
    params = jax.device_get(params)
    for i in range(4):
        # Even in ±1/√2 times 2π·10·γ, γ of mean and variance 6/(i+1).
        shape = 6 / (i + 1)
        wanted = 2 * np.pi * 10 * np.sqrt((shape + shape**2) / 6)
        assert np.std(params["frequencies"][i]) == pytest.approx(wanted, rel=0.12)
    assert np.abs(params["hidden0"]["kernel"]).max() == pytest.approx((3 / 300) ** 0.5, rel=0.01)
    out = np.abs(params["out"]["kernel"]).max()
    assert out == pytest.approx((3 / 300 / 20) ** 0.5, rel=0.01)
    assert not np.any(params["position"])
    assert np.all(params["hidden0"]["bias"] == 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2, 6, 5, 3), r"x has shape \(2, 6, 5, 3\), expected \[b, h, h, c\]"),
        ({"statistics": "batches"}, (2, 6, 6, 3), "did you mean 'batch'"),
        ({"standard": "layer"}, (2, 6, 6, 3), "unknown standard 'layer'"),
        ({"standard": {"even": 1.0}}, (2, 6, 6, 3), "expected shares even and odd"),
        ({"layers": (1,)}, (2, 6, 6, 3), "expected equally many, 1 to 5"),
        ({"local_sizes": (3, 5, 3)}, (2, 6, 6, 3), r"local_sizes=\(3, 5, 3\), expected the sizes"),
        ({"local_sizes": (3,) * 5}, (2, 6, 6, 3), "expected the sizes of 4 local kernels"),
        ({"local_hidden": 1}, (2, 6, 6, 3), "local_hidden=1, expected at least 2"),
        ({"factors": (5, 2)}, (2, 6, 6, 2), "x has 10 channels, expected a multiple of 12"),
    ],
)
def test_wrong_options_are_named(options, shape, message):
    net = Terminator(**SMALL | options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def test_wrong_shapes_are_named():
    x = jnp.zeros((2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"kernel \(4, 4, 2\) and z"):
        hyperzzw_global(x, jnp.zeros((4, 4, 2)), x)
    with pytest.raises(ValueError, match="as many rows as columns"):
        hyperzzw_global(x[:, :3], x[0, :3], x[:, :3])
    with pytest.raises(ValueError, match="kernel has size 4, expected an odd one"):
        hyperzzw_local(x, x[0])
    with pytest.raises(ValueError, match=r"kernel \(3, 5, 3\) does not fit x"):
        hyperzzw_local(x, jnp.zeros((3, 5, 3)))
    with pytest.raises(ValueError, match="expected channels that divide later's"):
        slow_neural_loss([x[0, ..., :2], x[0]], reduce="tile")
    with pytest.raises(ValueError, match="of equal places"):
        slow_neural_loss([x[0], x[0, :2]])
    with pytest.raises(ValueError, match="expected axes of at least 1 place"):
        coordinate_grid((3, 0))
