"""A recipe reads features of pretrained weights as it reads those of another run."""

import functools
import types

import jax
import numpy as np
import pytest

from configs.fewshot import compare_digits
from experiments.common.encoders import load_encoder
from experiments.fewshot.features import load_features
from rml import assets
from rml.encoder import ImageEmbedder
from rml.errors import UserError
from rml.models.mobilenet import MobileNet, Stage
from rml.models.pretrained import PretrainedImages

MODULE = MobileNet(stages=(Stage(1, 6, 1, 2),), stem=4, features=8)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def small():
    """A pretrained encoder that nobody trained."""
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), IMAGES.astype(np.float32))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    variables["batch_stats"] = jax.tree.map(abs, variables["batch_stats"])
    return PretrainedImages(MODULE, variables, mean=(0.1, 0.2, 0.3), deviation=(0.5, 0.25, 1.0))


@pytest.mark.slow
def test_images_are_brought_to_what_the_weights_want(small):
    encode = jax.jit(functools.partial(small.encode, small.variables), static_argnames="side")
    encode = functools.partial(encode, side=12)
    normalised = (IMAGES / 255 - small.mean) / small.deviation
    plain = jax.jit(MODULE.apply)(small.variables, normalised)
    assert np.ptp(plain, axis=0).max() > 0.1
    np.testing.assert_allclose(encode(IMAGES), plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(encode(np.float32(IMAGES / 255)), plain, rtol=1e-5, atol=1e-5)
    # Of one colour only the size is seen, at the edges.
    colour = IMAGES[:, :1, :1]
    large, right = (np.broadcast_to(colour, (3, *size, 3)) for size in ((24, 32), (12, 16)))
    np.testing.assert_allclose(encode(large), encode(right), rtol=1e-5, atol=1e-5)
    assert not np.allclose(encode(large, side=24), encode(right), rtol=1e-3)
    grey = IMAGES[..., :1]
    repeated = grey.repeat(3, axis=-1)
    np.testing.assert_allclose(encode(grey), encode(repeated), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected 1 or 3 channels"):
        encode(IMAGES[..., :2])


@pytest.mark.slow
def test_features_of_a_layer_are_computed_once(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path_factory.getbasetemp().parent / "archives"))
    monkeypatch.setenv("RML_CACHE", str(tmp_path))
    assets.fetch(["mobilenet_v2"])
    config = compare_digits.get_config()
    config.features.update(dict(of="run", run="weights:mobilenet_v2/stage1@16"))
    features = load_features(config, types.SimpleNamespace())
    assert {part: x.shape[1] for part, (x, _) in features.items()} == {
        "base": 24, "validation": 24, "novel": 24
    }  # fmt: skip
    assert all(len(x) == len(y) for x, y in features.values())

    def computes(*args, **options):
        raise AssertionError("features were computed again")

    monkeypatch.setattr(ImageEmbedder, "__call__", computes)
    again = load_features(config, types.SimpleNamespace())
    for part, (x, y) in features.items():
        np.testing.assert_array_equal(x, again[part][0])
        np.testing.assert_array_equal(y, again[part][1])
    config.features.run = "weights:mobilenet_v2/stage0@16"
    with pytest.raises(AssertionError, match="computed again"):
        load_features(config, types.SimpleNamespace())
    with pytest.raises(UserError, match=r"1 or 3 channels, data\.image_shape is \[8, 8, 2\]"):
        load_encoder("weights:mobilenet_v2", (8, 8, 2))
    with pytest.raises(UserError, match="unknown layer of mobilenet_v2 'stage9'"):
        load_encoder("weights:mobilenet_v2/stage9", (8, 8, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights:", r"features\.run is 'weights:', expected weights:NAME"),
        ("weights:mobilenet_v2@large", "expected weights:NAME"),
        ("weights:mobilenet_v2@4", "expected a side of at least 8 pixels"),
        ("weights:mobilenet", "unknown pretrained image encoder 'mobilenet'; did you mean"),
    ],
)
def test_names_that_are_none_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        load_encoder(name, (8, 8, 1))
