"""Recipes on crops that the host cuts: what their batches are, and what is left to the device."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.common import figures
from experiments.common.images import augmentation, batch_spec, host_crops, training_batches
from experiments.registry import read_config
from rml import data
from rml.errors import UserError
from rml.training.task import Loss

CONFIGS = {
    "contrastive.simclr_imagenet2012_resnet50": "contrastive.simclr",
    "contrastive.moco_v2_imagenet2012_resnet50": "contrastive.moco_v2",
    "contrastive.moco_v3_imagenet2012_vit_s": "contrastive.moco_v3",
    "contrastive.supcon_imagenet2012_resnet50": "contrastive.supcon",
    "hydra.hydra_imagenet2012": "hydra.hydra",
}


def small(name):
    """ImageNet's config for pictures of a folder, with crops of 8x8 and a small encoder."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.image_shape = (12, 12, 3)
    for part in ("augment", "augment_second"):
        if part in config:
            config[part].random_resized_crop.size = 8
            config[part].order = ("random_resized_crop", "random_flip")
    config.train.update(dict(batch_size=8, steps=2))
    config.optimizer.warmup_steps = 0
    config.unlock()
    config.model = dict(name="convnet", widths=(4,), kernel_sizes=(3,), strides=(2,), norm="batch",
                        pooling="mean", features=8, activation="relu")  # fmt: skip
    for part in ("head", "predictor"):
        if part in config:
            config[part].update(dict(hidden=8, features=8))
    if "filter" in config:
        config.filter.update(dict(embed=8, hidden=8))
        config.data.classes = 2
    if "queue" in config:
        config.queue.size = 16
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures in two classes, of sizes that differ."""
    path, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(16):
        (path / f"{number % 2}").mkdir(exist_ok=True)
        image = rng.integers(0, 256, (20 + number, 30 - number, 3), np.uint8)
        Image.fromarray(image).save(path / f"{number % 2}" / f"{number}.png")
    return f"folder:{path}"


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_recipe_trains_on_two_crops_of_each_image(name):
    config, module = small(name), importlib.import_module(f"experiments.{CONFIGS[name]}")
    task = module.task(config)
    assert task.batch_spec["image"].shape == (8, 2, 8, 8, 3)
    state = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    after, metrics = jax.eval_shape(task.step, state, task.batch_spec)
    assert metrics["loss"].shape == ()
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@pytest.mark.slow
def test_batches_hold_crops_of_the_stored_pictures_and_the_device_crops_no_more(folder):
    config = small("contrastive.simclr_imagenet2012_resnet50")
    config.data.update(dict(name=folder, train="all", test="all"))
    small_source = data.load(folder, "all", image_size=(12, 12))
    batch = next(iter(training_batches(config, small_source, 0, 1)))
    spec = batch_spec(config)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        key: (value.shape, np.dtype(value.dtype)) for key, value in spec.items()
    }
    whole = data.load(folder, "all")
    options = {"batch_size": 8, "seed": config.seed, "transform": host_crops(config)}
    np.testing.assert_array_equal(
        batch["image"], next(iter(data.batches(whole, **options)))["image"]
    )
    crop = jnp.asarray(batch["image"][:, 0], jnp.float32) / 255
    made = augmentation(config)(jax.random.key(0), crop)
    flipped = (made == crop[:, :, ::-1]).all((1, 2, 3))
    assert (flipped | (made == crop).all((1, 2, 3))).all()  # mirrored or not, and not resampled
    assert 0 < flipped.sum() < 8
    pictures = jnp.asarray(small_source.arrays()["image"], jnp.float32) / 255
    assert augmentation(config, whole=True)(jax.random.key(0), pictures).shape == (16, 8, 8, 3)


@pytest.mark.slow
def test_moco_v3_gives_each_encoder_its_own_view(monkeypatch):
    config = small("contrastive.moco_v3_imagenet2012_vit_s")
    config.augment.order = config.augment_second.order = ("random_resized_crop",)
    moco_v3 = importlib.import_module("experiments.contrastive.moco_v3")
    seen = []

    def apply(model, variables, views, **_):
        seen.append(views)
        return jnp.ones((2, 8, 8)), {}

    monkeypatch.setattr(moco_v3, "apply_to_views", apply)
    monkeypatch.setattr(moco_v3, "momentum_task", lambda *, loss, **_: loss)

    class State:
        step_key, extra = jax.random.key(0), {"momentum": {}}

        def training_variables(self, params):
            return params

    images = np.random.default_rng(0).integers(0, 256, (8, 2, 8, 8, 3), np.uint8)
    assert isinstance(moco_v3.task(config)({}, State(), {"image": images}), Loss)
    np.testing.assert_allclose(seen[0], images.swapaxes(0, 1) / np.float32(255), rtol=1e-6)


def test_views_of_another_size_than_the_images_are_drawn(tmp_path):
    config = small("contrastive.simclr_imagenet2012_resnet50")
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    pipeline = augmentation(config, whole=True)
    figures.views(tmp_path / "views.png", images, pipeline, jax.random.key(0), count=2)
    assert (tmp_path / "views.png").stat().st_size


@pytest.mark.parametrize("method", ["simclr", "moco_v2", "moco_v3", "supcon"])
def test_configs_of_small_photographs_take_the_switch(method):
    file = f"configs/contrastive/{method}_cifar10.py"
    config = read_config(file, ["--config.data.host_crops=True", "--config.train.batch_size=6"])
    assert batch_spec(config)["image"].shape == (6, 2, 32, 32, 3)
    host_crops(config)  # sizes of the views agree and crops come first
    whole = read_config(file, ["--config.train.batch_size=6"])
    assert batch_spec(whole)["image"].shape == (6, 32, 32, 3)


def test_what_cannot_be_cropped_on_the_host_is_named():
    config = small("contrastive.moco_v3_imagenet2012_vit_s")
    config.augment_second.random_resized_crop.size = 10
    with pytest.raises(UserError, match="size is 8 and 10"):
        host_crops(config)
    config = small("contrastive.simclr_imagenet2012_resnet50")
    config.augment.order = ("random_flip", "random_resized_crop")
    with pytest.raises(UserError, match="expected random_resized_crop first"):
        host_crops(config)
    config.data.domains = "first"
    with pytest.raises(UserError, match=r"data\.domains is 'first'; expected one of the two"):
        host_crops(config)
    config = small("hydra.hydra_imagenet2012")
    config.pairs.sampling = "drawn"
    with pytest.raises(UserError, match="batches hold whole images"):
        importlib.import_module("experiments.hydra.hydra").task(config)
