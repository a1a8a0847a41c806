"""Image encoders of other libraries give what those gave, see golden/make_families.py."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from rml.errors import UserError
from rml.models.mobilenet import Stage
from rml.models.pretrained import PretrainedImages, load_images
from rml.models.pretrained.image_families import CLIP
from tests.models.golden.families import config, draw, numbers, weights
from tests.models.golden.families import images as made_images

TINY = {"stages": (Stage(1, 16, 1, 1), Stage(6, 24, 2, 2))}
CASES = {  # what a file alone does not say
    "resnet": {},
    "resnet_bottleneck": {},
    "mobilenet_v2": TINY,
    "efficientnet": {},
    "vit_torchvision": {"heads": 2},
    "vit_timm": {"heads": 2},
    "vit_hf": {},
    "clip_hf": {},
    "clip_openai": {},
}


def stored(directory, name, ending=".safetensors"):
    """A case as a file, or as a directory where it has a config."""
    tensors, said = weights(name), config(name)
    if said is None:
        file = directory / f"{name}{ending}"
        save_file(tensors, file) if ending == ".safetensors" else np.savez(file, **tensors)
        return str(file)
    (directory / "config.json").write_text(json.dumps(said))
    save_file(tensors, directory / "model.safetensors")
    return str(directory)


def close(ours, theirs):
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_features_and_logits_are_the_librarys(tmp_path, name):
    expected, path = numbers(name), stored(tmp_path, name)
    images = jnp.asarray(made_images(16 if name.startswith(("vit", "clip")) else 40))
    features, logits = (
        load_images(path, logits=wanted, **CASES[name]) for wanted in (False, "clip" not in name)
    )
    all_variables = flatten_dict(logits.variables)
    for path, leaf in flatten_dict(features.variables).items():
        np.testing.assert_array_equal(leaf, all_variables[path])

    @jax.jit
    def run(variables, images):
        modules = dict.fromkeys((features.module, logits.module))  # without classes they are one
        return [module.apply(variables, images) for module in modules]

    ours = list(map(np.asarray, run(logits.variables, images)))
    close(ours[0], expected["features"])
    if features.scale is None:
        close(ours[1], expected["logits"])
        return
    texts = expected["texts"] / np.linalg.norm(expected["texts"], axis=1, keepdims=True)
    ours = ours[0] / np.linalg.norm(ours[0], axis=1, keepdims=True)
    close(features.scale * ours @ texts.T, expected["logits"])


def test_npz_and_weights_of_several_devices(tmp_path):
    tensors = {f"module.{name}": tensor for name, tensor in weights("vit_timm").items()}
    np.savez(tmp_path / "a.npz", **tensors)
    first = load_images(str(tmp_path / "a.npz"), heads=2)
    second = load_images(stored(tmp_path, "vit_timm"), heads=2)
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)


def test_the_older_names_of_torchvision(tmp_path):
    old = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    tensors = {}
    for name, tensor in weights("vit_torchvision").items():
        for new, older in old.items():
            name = name.replace(new, older)
        tensors[name] = tensor
    save_file(tensors, tmp_path / "old.safetensors")
    first = load_images(str(tmp_path / "old.safetensors"), heads=2)
    second = load_images(stored(tmp_path, "vit_torchvision"), heads=2)
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)


@pytest.mark.parametrize("dtype", ["int32", "uint16", "bool"])
def test_whole_numbers_of_unknown_range_are_refused(dtype):
    model = PretrainedImages(None, {}, (0.5,) * 3, (0.25,) * 3, side=2)
    images = np.full((1, 2, 2, 3), 255)
    for given in (images.astype(np.uint8), images / 255, jnp.ones((1, 2, 2, 3), jnp.bfloat16)):
        np.testing.assert_allclose(model.normalise(given), 2.0)
    with pytest.raises(ValueError, match=f"images are {dtype}, expected uint8 or floats"):
        model.encode({}, images.astype(dtype))


@pytest.mark.slow
def test_what_images_are_normalised_with(tmp_path):
    path = stored(tmp_path, "vit_hf")
    assert load_images(path).mean == (0.5,) * 3
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    model = load_images(path)
    assert (model.mean, model.deviation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model = load_images(path, mean=(0.0,) * 3, deviation=(1.0,) * 3)
    assert (model.mean, model.deviation) == ((0.0,) * 3, (1.0,) * 3)
    for file in tmp_path.iterdir():
        file.unlink()
    timm = {"architecture": "vit_tiny", "pretrained_cfg": {"mean": [0.2] * 3, "std": [0.7] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(timm))
    save_file(weights("vit_timm"), tmp_path / "model.safetensors")
    model = load_images(f"hf:{tmp_path}", heads=2)
    assert (model.mean, model.deviation) == ((0.2,) * 3, (0.7,) * 3)
    assert load_images(stored(tmp_path, "resnet")).mean == (0.485, 0.456, 0.406)


def normalised(directory, **files):
    """Mean and deviation of a ViT whose directory says so."""
    path = stored(directory, "vit_hf")
    for name, content in files.items():
        (directory / f"{name}_config.json").write_text(json.dumps(content))
    model = load_images(path)
    return model.mean, model.deviation


SAID = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    "files",
    [
        {"processor": {"image_processor": SAID}},
        {"processor": {"image_processor": SAID}, "preprocessor": {"image_mean": [0.9] * 3}},
        {"processor": {"image_processor": None}, "preprocessor": SAID},
        {"processor": {"processor_class": "CLIPProcessor"}, "preprocessor": SAID},
        {"preprocessor": {**SAID, "do_normalize": True, "do_rescale": None}},
        {"preprocessor": {**SAID, "do_rescale": True, "rescale_factor": 1 / 255}},
    ],
)
def test_where_a_directory_says_what_images_are_normalised_with(tmp_path, files):
    assert normalised(tmp_path, **files) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("said", "mean", "deviation"),
    [
        ({**SAID, "do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
        ({"image_mean": None, "do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
        ({**SAID, "rescale_factor": 2 / 255}, (0.05, 0.1, 0.15), (0.2, 0.25, 0.3)),
        ({"do_normalize": False, "rescale_factor": 2 / 255}, (0.0,) * 3, (0.5,) * 3),
        ({"rescale_factor": 2 / 255}, (0.25,) * 3, (0.25,) * 3),
    ],
)
def test_a_factor_of_bytes_and_no_normalisation(tmp_path, said, mean, deviation):
    found = normalised(tmp_path, preprocessor=said)
    np.testing.assert_allclose(found, (mean, deviation), rtol=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *(
            (key, value, "three finite numbers")
            for key in ("image_mean", "image_std")
            for value in (0.5, [0.5, 0.5], ["a"] * 3, [True] * 3, [math.nan] * 3)
        ),
        ("image_std", [0.5, 0, 0.5], "it above 0"),
        ("image_std", [0.5, 0.5, -0.5], "it above 0"),
    ],
)
def test_what_images_are_normalised_with_is_a_number_a_channel(tmp_path, key, value, expected):
    said = {**SAID, key: value}
    message = re.escape(f"{key} is {value!r} in {tmp_path / 'preprocessor_config.json'}; expected ")
    with pytest.raises(UserError, match=message + expected):
        normalised(tmp_path, preprocessor=said)
    said = {name.removeprefix("image_"): values for name, values in said.items()}
    name = key.removeprefix("image_")
    directory = timm_directory(tmp_path, "vit_timm", architecture="vit", pretrained_cfg=said)
    message = re.escape(f"{name} is {value!r} in {tmp_path}; expected ")
    with pytest.raises(UserError, match=message + expected):
        load_images(directory, heads=2)


def test_images_of_an_unknown_range_need_their_mean(tmp_path):
    with pytest.raises(
        UserError, match=r"do_rescale is False in .*preprocessor_config.json, .*mean="
    ):
        normalised(tmp_path, preprocessor={**SAID, "do_rescale": False})
    model = load_images(str(tmp_path), mean=(9.0,) * 3, deviation=(2.0,) * 3)
    assert (model.mean, model.deviation) == ((9.0,) * 3, (2.0,) * 3)
    with pytest.raises(UserError, match=r"rescale_factor is 0 in .*; expected a finite number"):
        normalised(tmp_path, preprocessor={"rescale_factor": 0})


def timm_directory(directory, name, **said):
    """A case as timm's hub has it."""
    (directory / "config.json").write_text(json.dumps(said))
    save_file(weights(name), directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        *(
            ("resnet", {"architecture": name}, f"architecture is '{name}' in .*without anti-alias")
            for name in ("resnetaa50", "resnetblur18")
        ),
        *(
            (name, said, f"global_pool is '{other}' in .*; only '{usual}' is implemented")
            for name, usual, other in (("resnet", "avg", "max"), ("vit_timm", "token", "avg"))
            for said in (
                {"global_pool": other},
                {"pretrained_cfg": {"global_pool": other}},
                {"model_args": {"global_pool": other}},
            )
        ),
        ("resnet", {"model_args": {"output_stride": 16}}, "model_args has 'output_stride' in"),
        ("vit_timm", {"model_args": {"act_layer": "relu"}}, "model_args has 'act_layer' in"),
        ("vit_timm", {"model_args": [3]}, r"model_args is \[3\] in .*; expected an object"),
    ],
)
def test_what_timm_says_and_no_tensor_shows(tmp_path, name, said, message):
    usual = {"architecture": "resnet18" if name == "resnet" else "vit_tiny_patch16_224"}
    with pytest.raises(UserError, match=message):
        load_images(timm_directory(tmp_path, name, **{**usual, **said}), heads=2)


@pytest.mark.parametrize(
    ("name", "pooling", "arguments"),
    [
        ("resnet", "avg", {"drop_path_rate": 0.1, "num_classes": 5}),
        ("vit_timm", "token", {"num_heads": 4, "img_size": 16}),
    ],
)
@pytest.mark.slow
def test_arguments_of_timm_that_change_nothing(tmp_path, name, pooling, arguments):
    said = {"global_pool": pooling, "pretrained_cfg": {"global_pool": None}}
    said["model_args"] = {**arguments, "global_pool": pooling}
    found = load_images(timm_directory(tmp_path, name, architecture=name, **said))
    assert getattr(found.module, "heads", 4) == 4
    plain = load_images(stored(tmp_path, name), **({"heads": 4} if "vit" in name else {}))
    assert found.module == plain.module
    jax.tree.map(np.testing.assert_array_equal, found.variables, plain.variables)


def test_heads_that_do_not_divide_the_width_are_told_with_their_file(tmp_path):
    directory = timm_directory(tmp_path, "vit_timm", model_args={"num_heads": 3})
    width = load_images(directory, heads=4).module.width
    message = f"heads are 3 in {re.escape(str(directory))}; expected a divisor of width {width}"
    with pytest.raises(UserError, match=message):
        load_images(directory)


@pytest.mark.slow
def test_heads_of_a_width_that_published_models_share(tmp_path):
    lengths = {32: 384, 96: 3 * 384, 128: 4 * 384}
    wide = {
        name: np.zeros([lengths.get(length, length) for length in tensor.shape], np.float32)
        for name, tensor in weights("vit_timm").items()
        if "blocks.1" not in name
    }
    file = tmp_path / "model.safetensors"
    save_file(wide, file)
    with pytest.raises(UserError, match=r"width of 384 are not known .*: give heads= .*12 of M"):
        load_images(file)
    assert load_images(file, heads=12).module.heads == 12
    for said, heads in (({}, 6), ({"model_args": {"num_heads": 12}}, 12)):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", **said}))
        assert load_images(tmp_path).module.heads == heads


@pytest.mark.parametrize("shape", [(2, 3, 3), (1, 2, 2, 4), (1, 1, 2, 2, 3)])
def test_images_of_another_shape_are_refused(shape):
    model = PretrainedImages(None, {}, (0.5,) * 3, (0.25,) * 3, side=2)
    with pytest.raises(
        ValueError, match=r"images have shape .*, expected 1 or 3 .* \[b, h, w, c\]"
    ):
        model.encode({}, np.zeros(shape, np.float32))


@pytest.mark.slow
def test_a_path_of_images_that_is_no_string(tmp_path):
    path = stored(tmp_path, "resnet")
    first, second = load_images(Path(path)), load_images(path)
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
    with pytest.raises(UserError, match="unknown pretrained image encoder 'none'"):
        load_images(Path("none"))


@pytest.mark.slow
def test_what_openclip_says_of_its_images(tmp_path):
    save_file(weights("clip_openai"), tmp_path / "open_clip_model.safetensors")
    bare = load_images(str(tmp_path))
    assert (bare.module.heads, bare.module.activation, bare.mean) == (2, "quick_gelu", CLIP[0])
    image = {"width": 128, "head_width": 16, "patch_size": 8}
    said = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    content = {"model_cfg": {"vision_cfg": image}, "preprocess_cfg": said}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    model = load_images(str(tmp_path))
    assert (model.module.heads, model.module.activation) == (8, "gelu")
    assert (model.mean, model.deviation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    content["model_cfg"]["quick_gelu"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    assert load_images(str(tmp_path)).module.activation == "quick_gelu"
    for key, value in (("pool_type", "avg"), ("act_kwargs", {"x": 1}), ("norm_kwargs", {"eps": 1})):
        changed = {"vision_cfg": {**image, key: value}, "text_cfg": {"no_causal_mask": True}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": changed}))
        with pytest.raises(UserError, match=f"{key} is .* in .*open_clip_config.json; only"):
            load_images(str(tmp_path))
    changed["vision_cfg"] = {**image, "pool_type": "tok", "act_kwargs": None, "norm_kwargs": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": changed}))
    assert load_images(str(tmp_path)).module == model.module


@pytest.mark.slow  # as torch is imported
@pytest.mark.parametrize("said", [{}, {"vision_config": {"num_attention_heads": 6}}])
def test_heads_that_a_config_of_clip_leaves_out(tmp_path, said):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 1}
    sizes |= {"image_size": 16, "patch_size": 8, **said.get("vision_config", {})}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 9}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=sizes, text_config=text, projection_dim=8)
    ).eval()
    state = theirs.state_dict()
    for name, tensor in state.items():
        if tensor.dtype.is_floating_point:
            tensor.copy_(type(tensor)(draw(name, tuple(tensor.shape))))
    theirs.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    if not said:
        content["vision_config"].pop("num_attention_heads", None)
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = load_images(tmp_path)
    assert model.module.heads == (6 if said else 12)
    images = made_images(16)
    pixels = next(iter(state.values())).new_tensor(images.transpose(0, 3, 1, 2))
    expected = theirs.get_image_features(pixels).pooler_output.detach().numpy()
    close(jax.jit(model.module.apply)(model.variables, images), expected)


@pytest.mark.slow  # as torch is imported
@pytest.mark.parametrize(("stem", "pooled"), [("cifar", False), ("cifar_pool", True)])
def test_a_stem_of_a_small_convolution_must_be_named(tmp_path, stem, pooled):
    torch = pytest.importorskip("torch")
    resnet = pytest.importorskip("torchvision.models.resnet")
    theirs = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    if not pooled:
        theirs.maxpool = torch.nn.Identity()
    drawn = {
        name: torch.tensor(draw(name, tuple(tensor.shape)))
        for name, tensor in theirs.state_dict().items()
    }
    theirs.load_state_dict(drawn)
    theirs.eval()
    file = tmp_path / "small.pth"
    torch.save(theirs.state_dict(), file)
    message = r'the stem of .*small.pth is a 3x3 .*: give stem="cifar" .* or "cifar_pool"'
    with pytest.raises(UserError, match=message):
        load_images(file)
    model = load_images(file, logits=True, stem=stem)
    images = made_images(24)
    expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).detach().numpy()
    close(jax.jit(model.module.apply)(model.variables, images), expected)


@pytest.mark.slow
def test_heads_of_a_width_that_has_them_of_its_own(tmp_path):
    wide, one = 1280, {}
    for name, tensor in weights("clip_openai").items():
        if not name.startswith("visual.transformer"):
            shape = [wide if length == 128 else length for length in tensor.shape]
            one[name] = np.zeros(shape, np.float32)
    for name, shape in {
        **{f"{norm}.{kind}": (wide,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")},
        "attn.in_proj_weight": (3 * wide, wide),
        "attn.in_proj_bias": (3 * wide,),
        "attn.out_proj.weight": (wide, wide),
        "attn.out_proj.bias": (wide,),
        "mlp.c_fc.weight": (wide, wide),
        "mlp.c_fc.bias": (wide,),
        "mlp.c_proj.weight": (wide, wide),
        "mlp.c_proj.bias": (wide,),
    }.items():
        one[f"visual.transformer.resblocks.0.{name}"] = np.zeros(shape, np.float32)
    file = str(tmp_path / "a.safetensors")
    save_file(one, file)
    with pytest.raises(UserError, match=r"width of 1280 are not known for .*: give heads="):
        load_images(file)
    assert load_images(file, heads=16).module.heads == 16


@pytest.mark.slow
def test_encoding_brings_images_to_the_square_of_a_transformer(tmp_path):
    model = load_images(stored(tmp_path, "vit_hf"))
    assert model.side == 16
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 1), dtype=np.uint8)
    encode = jax.jit(lambda images: model.encode(model.variables, images))
    centre = np.broadcast_to(images[:, :, 4:20], (2, 16, 16, 3))
    expected = jax.jit(model.module.apply)(model.variables, (centre / 255 - 0.5) / 0.5)
    np.testing.assert_allclose(encode(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="side is 32, expected 16"):
        model.encode(model.variables, images, side=32)
    resnet = load_images(stored(tmp_path, "resnet"))
    with pytest.raises(ValueError, match="side is None, expected a number of pixels"):
        resnet.encode(resnet.variables, images)


def test_weights_that_do_not_fit(tmp_path):
    file = tmp_path / "a.safetensors"
    whole = weights("vit_timm")

    def refused(message, tensors, **options):
        save_file(tensors, file)
        with pytest.raises(ValueError, match=message):
            load_images(str(file), **{"heads": 2, **options})

    less = {name: tensor for name, tensor in whole.items() if "blocks.1.norm" not in name}
    refused(
        r"a.safetensors do not fit a ViT of depth 2: there is no 'blocks.1.norm1.bias' \(32,\), "
        r"'blocks.1.norm1.weight' \(32,\), .*; no place for 'reg_token' \(1, 4, 32\)",
        {**less, "reg_token": np.zeros((1, 4, 32), np.float32)},
    )
    square = np.zeros((32, 32), np.float32)
    refused(r"'blocks.0.mlp.fc2.weight' of .* has shape \(32, 32\), expected \(32, 128\)",
            {**whole, "blocks.0.mlp.fc2.weight": square})  # fmt: skip
    refused(
        r"do not fit a ViT of depth 2: no tensor for 'projection/kernel' \(32, 16\)$",
        whole,
        projection=16,
    )
    refused(
        r"do not fit a ViT of depth 2: no place for 'cls_token' \(1, 1, 32\)$",
        whole,
        pooling="gap",
    )
    refused("the heads of a width of 32 are not known", whole, heads=None)
    refused("did you mean 'heads'", whole, head=2)
    longer = {**whole, "pos_embed": np.zeros((1, 7, 32), np.float32)}
    refused("the 7 positions of .* are no square of patches and a class", longer)
    refused("holds no architecture of images; expected one of: ResNet .*CLIP", {"x": square})
    without = {name: tensor for name, tensor in whole.items() if not name.startswith("head")}
    refused("has no classes", without, logits=True)
    with pytest.raises(UserError, match="unknown pretrained image encoder 'none'; expected one of"):
        load_images("none")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["SwinModel"]}))
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="names the architecture 'SwinModel'; expected one of"):
        load_images(str(tmp_path))
