import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml import models
from rml.models import ENCODERS, Classifier, ResNet, ViT, build
from rml.models.self_attention import HeadDense
from rml.training import DEFAULT_RULES

AXES = {None, *(name for name, _ in DEFAULT_RULES)}
# Small instances of every module, so that a test compiles in a second or two.
SMALL = {
    "mlp": lambda **o: models.MLP(hidden=(16, 16), features=8, norm="layer", **o),
    "convnet": lambda **o: models.ConvNet(widths=(4, 8), features=8, **o),
    "convnet-mean": lambda **o: models.ConvNet(
        widths=(4,), kernel_sizes=(3,), strides=(1,), pooling="mean", features=None, **o
    ),
    "resnet": lambda **o: ResNet(depths=(1,), width=4, **o),
    "resnet-bottleneck": lambda **o: ResNet(
        depths=(1,), width=4, bottleneck=True, stem="cifar", **o
    ),
    "vit": lambda **o: ViT(width=16, depth=2, heads=2, patch_size=4, **o),
    "vit-gap": lambda **o: ViT(
        width=16,
        depth=1,
        heads=2,
        patch_size=5,
        scan=False,
        pooling="gap",
        positions="sincos2d",
        **o,
    ),
    "mixer": lambda **o: models.Mixer(
        width=16, depth=2, token_hidden=8, channel_hidden=24, patch_size=4, **o
    ),
}
# A stage's blocks after its second one are alike.
SHALLOW = {
    "resnet18": {"depths": (2, 1, 1, 1)},
    "resnet34": {"depths": (1, 1, 2, 1)},
    "resnet50": {"depths": (2, 1, 1, 1)},
}
PUBLISHED = {  # parameters with a 1000-class head: torchvision, timm
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vit_ti": 5_717_416,
    "vit_s": 22_050_664,
    "vit_b": 86_567_656,
    "vit_l": 304_326_632,
    "mixer_s": 18_528_264,
    "mixer_b": 59_880_472,
}


def images(shape=(4, 8, 11, 2)):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def init(module, x):
    """Variables of the right shapes, drawn by NumPy: compiling many threefry draws is slow."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("bias", "mean"):
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype))
        if name in ("scale", "var"):
            return jax.device_put(np.ones(leaf.shape, leaf.dtype))
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jax.device_put((rng.normal(size=leaf.shape) / fan_in**0.5).astype(leaf.dtype))

    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    model = nn.Sequential([build(name), Classifier(1000)])
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert count == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ENCODERS if n != "mlp"])
@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 33, 9, 5)])
def test_any_image_size_and_channel_count(name, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    encoder = build(name, **SHALLOW.get(name, {}))
    y, _ = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x), x)
    assert y.shape[0] == 2
    assert y.ndim == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_compute_with_float32_parameters(name):
    x = images()
    full, half = SMALL[name](), SMALL[name](dtype=jnp.bfloat16)
    variables = init(half, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def loss(params, model):
        variables_now = {**variables, "params": params}
        y, _ = model.apply(variables_now, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y.astype(jnp.float32) ** 2), y

    grads, y = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(variables["params"], half)
    truth = np.asarray(jax.jit(loss, static_argnums=1)(variables["params"], full)[1])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    error = np.linalg.norm(np.asarray(y, np.float32) - truth) / np.linalg.norm(truth)
    assert error < 0.03  # bfloat16 keeps 8 bits: 2 ** -8 a rounding


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_names_its_axes(name):
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    encoder = build(name, **SHALLOW.get(name, {}))
    boxed = jax.eval_shape(encoder.init, jax.random.key(0), x)["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda v: isinstance(v, nn.LogicallyPartitioned))
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
        assert set(leaf.names) <= AXES
        named = [axis for axis in leaf.names if axis is not None]
        assert len(named) == len(set(named))  # else one mesh axis would shard two dimensions


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet", "resnet", "resnet-bottleneck"])
def test_batch_statistics(name):
    x = 3.0 + 2.0 * images()
    model = SMALL[name]()
    variables = init(model, x)
    with pytest.raises(Exception, match="batch_stats"):
        jax.eval_shape(functools.partial(model.apply, train=True), variables, x)

    @jax.jit
    def found(variables, x):
        _, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return new, model.apply(variables, x), model.apply(variables, x[:1])

    new, together, alone = found(variables, x)
    assert jax.tree.structure(new["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    changed = jax.tree.map(
        lambda a, b: np.any(np.asarray(a) != np.asarray(b)),
        new, {"batch_stats": variables["batch_stats"]},
    )  # fmt: skip
    assert all(jax.tree.leaves(changed))
    # Without training an example's features do not depend on its batch.
    np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_convolution_implementations_agree_in_an_encoder():
    x = images()
    variables = init(SMALL["convnet"](), x)

    def grad(implementation):
        model = SMALL["convnet"](implementation=implementation)

        def loss(params):
            now = {**variables, "params": params}
            return jnp.sum(model.apply(now, x, train=True, mutable=["batch_stats"])[0] ** 2)

        return jax.jit(jax.grad(loss))(variables["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        grad("matmul"),
        grad("xla"),
    )


def test_zero_init_makes_a_block_the_identity():
    x = jnp.abs(images((2, 8, 8, 4)))
    block = models.resnet.ResidualBlock(width=4)
    variables = nn.unbox(jax.jit(block.init)(jax.random.key(0), x))
    apply = jax.jit(block.apply)
    np.testing.assert_allclose(apply(variables, x), x)
    variables["params"]["norm1"]["bn"]["scale"] = jnp.ones(4)
    assert np.abs(apply(variables, x) - np.asarray(x)).max() > 0.1


@pytest.mark.slow
def test_scanned_and_remat_blocks_equal_a_loop():
    x = images((2, 8, 8, 3))
    scanned = SMALL["vit"]()
    variables = init(scanned, x)
    stacked = variables["params"]["blocks"]
    unrolled = {k: v for k, v in variables["params"].items() if k != "blocks"}
    for i in range(2):
        unrolled[f"block{i}"] = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], stacked)

    def grad(params, **options):
        model = SMALL["vit"](**options)
        return jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, x) ** 3)))(params)

    loop, plain = (
        jax.tree.map(np.asarray, found)
        for found in (grad(unrolled, scan=False), grad(variables["params"]))
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # noqa: E731
    for i in range(2):
        jax.tree.map(lambda a, b, i=i: close(a[i], b), plain["blocks"], loop[f"block{i}"])
    jax.tree.map(close, plain, grad(variables["params"], remat=True))


@pytest.mark.slow
def test_scanned_blocks_start_different():
    params = nn.unbox(jax.jit(SMALL["vit"]().init)(jax.random.key(0), images()))["params"]
    kernel = params["blocks"]["qkv"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])
    # Xavier's bound for one square matrix of query, key or value.
    assert 0.9 < jnp.abs(kernel).max() / (3 / 16) ** 0.5 <= 1.0


def test_frozen_patches_have_no_gradient():
    x = images((2, 8, 8, 3))

    def model(freeze):
        options = {"patch_size": 4, "pooling": "gap", "scan": False}
        return ViT(width=8, depth=0, heads=1, freeze_patches=freeze, **options)

    params = init(model(False), x)["params"]
    for freeze in (False, True):
        grads = jax.jit(
            jax.grad(lambda p, f=freeze: jnp.sum(model(f).apply({"params": p}, x) ** 3))
        )
        kernel, positions = grads(params)["patches"]["kernel"], grads(params)["positions"]
        assert bool(jnp.any(kernel != 0)) is not freeze
        assert jnp.any(positions != 0)


def test_patch_projection_is_a_product_with_flattened_patches():
    x = images((1, 8, 8, 3))
    model = ViT(
        width=8, depth=0, heads=1, patch_size=4, pooling="gap", positions="sincos2d", scan=False
    )
    params = init(model, x)["params"]
    patches = np.asarray(x).reshape(2, 4, 2, 4, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1)
    tokens = patches @ np.asarray(params["patches"]["kernel"]).reshape(-1, 8)
    tokens = tokens + np.asarray(models.vit.sincos2d(2, 2, 8))
    tokens = tokens - tokens.mean(1, keepdims=True)
    tokens = tokens / np.sqrt(tokens.var(1, keepdims=True) + 1e-6)
    found = np.asarray(jax.jit(model.apply)({"params": params}, x))
    np.testing.assert_allclose(found[0], tokens.mean(0), atol=1e-5)


def test_sincos2d_products_depend_on_displacement_alone():
    table = np.asarray(models.vit.sincos2d(4, 5, 16)).reshape(4, 5, 16)
    np.testing.assert_allclose((table**2).sum(-1), 8.0, rtol=1e-5)
    np.testing.assert_allclose(table[0, 0] @ table[1, 2], table[2, 1] @ table[3, 3], rtol=1e-5)
    assert len(np.unique(table.reshape(-1, 16).round(5), axis=0)) == 20


def test_the_fan_of_heads_is_that_of_their_matrix():
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    layer = HeadDense((3, 4, 8), ("embed", None, "heads", "kv"), kernel_init=init)
    kernel = nn.unbox(layer.init(jax.random.key(0), jnp.zeros((1, 64))))["params"]["kernel"]
    np.testing.assert_allclose(jnp.std(kernel), 64**-0.5, rtol=0.05)


def test_sincos2d_is_of_columns_then_rows():
    omega = 10_000.0 ** -(np.arange(4) / 4)
    at = np.concatenate([f(place * omega) for place in (3, 2) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(models.vit.sincos2d(4, 5, 16)[2 * 5 + 3], at, rtol=1e-5)


def test_the_class_token_has_no_fixed_position():
    model = ViT(width=8, depth=0, heads=1, patch_size=4, positions="sincos2d", scan=False)
    x = images((1, 8, 8, 3))
    params = init(model, x)["params"]
    token = np.asarray(params["cls"])[0, 0]
    token = (token - token.mean()) / np.sqrt(token.var() + 1e-6)
    found = np.asarray(jax.jit(model.apply)({"params": params}, x))
    np.testing.assert_allclose(found[0], token, atol=1e-4)


def test_build_options():
    net = build("convnet", widths=[8], kernel_sizes=[3], strides=[1], dtype="bfloat16")
    assert net.dtype == jnp.bfloat16
    assert build("vit_s").heads == 6
    assert build("vit_s", heads=12).heads == 12


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "did you mean 'resnet18'"),
        ("vit_s", {"patchsize": 8}, "did you mean 'patch_size'"),
        ("convnet", {"parent": None}, "unknown option of convnet 'parent'"),
        ("resnet18", {"dtype": "float33"}, "dtype of resnet18 must be a dtype, got 'float33'"),
    ],
)
def test_build_misuse(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "shape", "message"),
    [
        ("convnet", {}, (2, 7, 8, 1), "at least 8x8"),
        ("convnet", {"widths": (8,)}, (2, 8, 8, 1), r"widths=\(8,\)"),
        ("convnet", {"pooling": "max"}, (2, 8, 8, 1), "unknown pooling 'max'"),
        ("convnet", {"norm": "bach"}, (2, 8, 8, 1), "did you mean 'batch'"),
        ("mlp", {"activation": "rely"}, (2, 8, 8, 1), "did you mean 'relu'"),
        ("resnet18", {"stem": "cifar10"}, (2, 8, 8, 1), "did you mean 'cifar'"),
        ("vit_ti", {"pooling": "mean"}, (2, 8, 8, 1), "unknown pooling 'mean'"),
        ("vit_ti", {"projection": 3, "classes": 5}, (2, 16, 16, 1), "=5, expected one of them"),
        ("vit_ti", {"positions": "sincos"}, (2, 8, 8, 1), "did you mean 'sincos2d'"),
        ("vit_ti", {"heads": 5}, (2, 8, 8, 1), "heads=5"),
    ],
)
def test_encoder_misuse(name, options, shape, message):
    model = build(name, **options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def test_a_single_image_without_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"\[b, h, w, c\], got shape \(28, 28, 1\)"):
        models.layers.check_image(jnp.zeros((28, 28, 1)))
