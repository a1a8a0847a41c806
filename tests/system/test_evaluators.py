"""What recipes report of an encoder's features, with numbers in the place of features."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments.common.encoders import Features, image_encoder
from experiments.common.evaluators import ImageEvaluator, pixels, reduced_pixels
from experiments.hydra.evaluator import Projections
from rml.evaluation import knn_accuracy
from rml.models import ConvNet


def evaluator(**parts):
    found = object.__new__(ImageEvaluator)
    found.__dict__.update(parts)
    return found


def test_gains_are_over_the_untrained_encoder_and_over_pixels():
    accuracies = {"trained": (0.9, 0.8), "untrained": (0.5, 0.7), "pixels": (0.6, 0.25)}
    own = evaluator(
        knn=lambda features: accuracies[features][0],
        probe=lambda features: accuracies[features][1],
        extract=lambda encoder: "pixels",
    )
    expected = {
        "knn": 0.9, "knn_untrained": 0.5, "knn_pixels": 0.6,
        "linear_probe": 0.8, "linear_probe_untrained": 0.7, "linear_probe_pixels": 0.25,
        "knn_over_untrained": 0.4, "knn_over_pixels": 0.3,
        "linear_probe_over_untrained": 0.1, "linear_probe_over_pixels": 0.55,
        "linear_probe_over_best_of_pixels": 0.2, "linear_probe_untrained_over_best_of_pixels": 0.1,
    }  # fmt: skip
    found = own.compare_accuracies("trained", "untrained")
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_functions_of_equal_models_are_equal():
    first, again, other = (ConvNet(widths=widths) for widths in ([4, 8], [4, 8], [4, 6]))
    assert Features(first) == Features(again) != Features(other)
    assert hash(Features(first)) == hash(Features(again))
    assert Features(first) != Projections(first) == Projections(again)
    # So two runs' encoders of one shape are one program.
    config = ConfigDict(dict(evaluation=dict(batch_size=4), mesh={"data": 1}))
    state = SimpleNamespace(variables={})
    of_first, of_again = (image_encoder(model, config, state) for model in (first, again))
    assert of_first.function == of_again.function


@pytest.mark.parametrize("shape", [(96, 50, 3), (64, 65, 1)])
def test_pixels_of_large_images_are_averaged(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    height, width, channels = shape
    size = [16 if side > 64 else side for side in (width, height)]
    planes = np.moveaxis(images, 3, 1).reshape(-1, height, width) / np.float32(255)
    resized = [Image.fromarray(p).resize(size, Image.Resampling.BILINEAR) for p in planes]
    expected = np.moveaxis(np.reshape(resized, (3, channels, *size[::-1])), 1, 3).reshape(3, -1)
    np.testing.assert_allclose(reduced_pixels(images), expected, atol=1e-5)
    own = evaluator(
        knn=lambda features: features.shape[1],
        probe=lambda features: float(features[0, 0]),
        extract=lambda encode: encode(images),
    )
    found = own.compare_accuracies(jnp.zeros((3, 5)), jnp.zeros((3, 5)))
    assert (found["knn"], found["knn_pixels"]) == (5, np.prod(size) * channels)
    assert found["linear_probe_pixels"] == pytest.approx(expected[0, 0], abs=1e-5)


def test_more_neighbours_than_images_are_told(caplog):
    class Images(SimpleNamespace):
        def __len__(self):
            return 48

    images = Images(labelled=True)
    for k, told in ((49, True), (48, False)):
        own = evaluator(
            options=ConfigDict({"knn_k": k}), train=images, test=images,
            config=SimpleNamespace(data=SimpleNamespace(name="own")),
        )  # fmt: skip
        caplog.clear()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("rml.data.oddities", lambda *_: [])
            own.check()
        assert (
            "evaluation.knn_k is 49, more than the training images: all 48" in caplog.text
        ) is told


@pytest.mark.parametrize("shape", [(64, 64, 3), (28, 28, 1), (1, 1, 155)])
def test_pixels_of_small_images_are_themselves(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    np.testing.assert_array_equal(reduced_pixels(images), pixels(images))
    np.testing.assert_allclose(pixels(images), images.reshape(3, -1) / 255, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (9, 0.07), (9, 5.0), (10_000, 5.0)])
def test_neighbours_are_as_many_as_the_config_says(k, temperature):
    keys = jax.random.split(jax.random.key(0), 4)
    train, test = (jax.random.normal(key, (60, 5)) for key in keys[:2])
    labels, wanted = (jax.random.randint(key, (60,), 0, 3) for key in keys[2:])
    own = evaluator(
        config=SimpleNamespace(mesh={}),
        options=SimpleNamespace(knn_k=k, knn_temperature=temperature),
        train=SimpleNamespace(num_classes=3),
    )
    found = own.knn(((train, labels), (test, wanted)))
    expected = knn_accuracy(
        train, labels, test, wanted, num_classes=3, k=min(k, 60), temperature=temperature
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert jnp.isfinite(expected)
