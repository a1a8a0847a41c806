"""The self-supervised recipes: the loss that a step takes, and what it does to its state."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.contrastive import ablation_fashion, ablation_moco_fashion, barlow_twins_mnist5k
from experiments.common.images import augmentation
from experiments.common.variants import BASE, variant
from experiments.contrastive import ablation, moco_ablation, views
from experiments.registry import config_files, read_config
from rml import losses
from rml.data import augment
from rml.errors import UserError
from rml.ops.similarity import normalize

METHODS = tuple(views.METHODS)


def small(name):
    """The method's config on 16 images of 8x8, with an encoder without convolutions."""
    file = "simclr_fashion" if name == "nt_xent" else f"{name}_mnist5k"
    config = importlib.import_module(f"configs.contrastive.{file}").get_config()
    config.data.image_shape = (8, 8, 1)
    config.train.batch_size = 16
    config.optimizer.update(dict(schedule="constant", warmup_steps=0))
    config.augment.order = ("random_erase",)
    config.unlock()
    config.model = dict(name="mlp", hidden=(12,), features=12)
    return config


@pytest.fixture(scope="module", params=METHODS)
def stepped(request):
    """A method's config, and its state before and after a step on noise, with the metrics."""
    config = small(request.param)
    task = views.task(config)
    before = jax.jit(lambda key: nn.meta.unbox(task.init(key)))(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
    after, metrics = jax.jit(task.step)(before, {"image": images, "label": np.zeros(16, np.int32)})
    return config, images, before, after, metrics


def expected(config, state, images):
    """The loss by the parts of the model, each applied by itself, and what else changes."""
    model, extra = views.build_model(config), {}
    two = augment.views(
        state.step_key, augment.to_float(jnp.asarray(images)), augmentation(config), n=2
    )

    def apply(variables, method):
        return jnp.stack([
            model.apply(variables, view, train=True, method=method, mutable="batch_stats")[0]
            for view in two
        ])  # fmt: skip

    z = apply(state.variables, "project")
    p = apply(state.variables, "__call__")
    options = {k: v for k, v in config.loss.items() if k not in ("name", "center_momentum")}
    average = state.extra.get("momentum")
    match config.loss.name:
        case "simsiam":
            return losses.simsiam(p, z), extra
        case "byol":
            return losses.byol(p, apply(average, "project")), extra
        case "swav":
            return losses.swav(p, **options), extra
        case "dino":
            targets, share = apply(average, "__call__"), config.loss.center_momentum
            center = (1 - share) * targets.mean((0, 1))
            return losses.dino(p, targets, center=jnp.zeros(center.shape), **options), {
                "center": center
            }
        case "nnclr":
            keys = state.extra["queue"].keys
            one, other = (losses.nnclr(z[i], p[1 - i], keys, **options) for i in (0, 1))
            return (one + other) / 2, {"first": normalize(z[0])}
    return getattr(losses, config.loss.name)(z[0], z[1], **options), extra


@pytest.mark.slow
def test_a_step_takes_the_methods_loss_and_moves_its_state(stepped):
    config, images, before, after, metrics = stepped
    value, extra = jax.jit(lambda state: expected(config, state, images))(before)
    np.testing.assert_allclose(metrics["loss"], value, rtol=2e-4)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, after.params)
    assert all(max(jax.tree.leaves(part)) > 0 for part in moved.values()), moved
    if "center" in extra:
        np.testing.assert_allclose(after.extra["center"], extra["center"], atol=1e-6)
    if "first" in extra:
        np.testing.assert_allclose(after.extra["queue"].keys[:16], extra["first"], atol=1e-5)
        assert after.extra["queue"].pointer == 16
    averaged = views.METHODS[config.loss.name].averaged
    assert tuple(after.extra.get("momentum", {"params": ()})["params"]) == averaged


def test_an_unknown_method_is_named():
    config = barlow_twins_mnist5k.get_config()
    config.loss.name = "barlow"
    with pytest.raises(UserError, match="did you mean 'barlow_twins'"):
        views.task(config)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_lacks_or_does_not_read_is_told_before_any_work(monkeypatch, name):
    monkeypatch.setattr(views, "build_model", lambda config: pytest.fail("the model is built"))
    method, config = views.METHODS[name], small(name)
    assert {part for part in views.PARTS if part in config} == set(method.parts)
    assert ("momentum" in method.parts) == bool(method.averaged)
    for part in views.PARTS:
        config = small(name)
        if part in method.parts:
            del config[part]
            message = f"loss.name is '{name}' without {part}, expected a config with {part}"
        else:
            config[part] = {"size": 8}
            message = f"loss.name is '{name}' with {part}, expected a config without {part}"
        with pytest.raises(UserError, match=message):
            views.task(config)
    for option in ("margin", "reduction"):
        config = small(name)
        config.loss[option] = 0.3
        with pytest.raises(UserError, match=f"loss.{option} is 0.3, which '{name}' does not read"):
            views.task(config)
    needed = {"nt_xent": "temperature", "dcl": "temperature", "nnclr": "temperature",
              "dino": "center_momentum"}  # fmt: skip
    assert [option for option, must in method.options().items() if must] == [
        needed[name] for _ in range(name in needed)
    ]
    if name in needed:
        config = small(name)
        del config.loss[needed[name]]
        with pytest.raises(UserError, match=f"'{name}' without loss.{needed[name]}, expected"):
            views.task(config)


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("barlow_twins", "simsiam", "'simsiam' without predictor, expected a config with"),
        ("nnclr", "simsiam", "'simsiam' with queue, expected a config without queue"),
        ("barlow_twins", "vicreg", "redundancy is .*; expected one of: covariance, eps, inv"),
        ("barlow_twins", "dino", "'dino' without prototypes, expected a config with"),
        ("swav", "nt_xent", "'nt_xent' with prototypes, expected a config without"),
        ("byol", "simsiam", "'simsiam' with momentum, expected a config without"),
    ],
)
def test_a_method_does_not_run_with_the_config_of_another(name, other, message):
    config = small(name)
    config.loss.name = other
    with pytest.raises(UserError, match=message):
        views.task(config)


def test_shipped_configs_have_what_their_methods_read():
    found = set()
    for path in config_files():
        if not path.startswith("configs/contrastive/"):
            continue
        config = read_config(path)
        if "contrastive.views" in (config.experiment, config.get("recipe")):
            names = (BASE, *config.get("variants", ()))
            found |= {id(views.checked(variant(config, name))) for name in names}
    assert found == {id(method) for method in views.METHODS.values()}


def test_variants_that_differ_in_a_number_of_the_loss_share_a_program():
    config = ablation_fashion.get_config()
    configs = {name: variant(config, name) for name in (BASE, *config.variants)}
    groups = {tuple(sorted(names)) for names in ablation.programs(configs)}
    assert ("base", "temperature_0_05", "temperature_0_5", "temperature_1") in groups
    assert sum(map(len, groups)) == len(configs)
    assert all(len(names) == 1 for names in groups if "base" not in names)
    assert configs["not_erased"].augment.order == ("random_flip", "random_affine")


def test_momenta_share_a_program_and_lengths_of_the_queue_do_not():
    config = ablation_moco_fashion.get_config()
    configs = {name: variant(config, name) for name in (BASE, *config.variants)}
    groups = {tuple(sorted(names)) for names in ablation.programs(configs)}
    assert groups == {
        ("base", "momentum_0", "momentum_0_9", "momentum_0_999", "temperature_0_07",
         "temperature_0_5"),
        ("queue_256",), ("queue_1024",), ("queue_8192",), ("batch_64",), ("linear_head",),
        ("not_erased",),
    }  # fmt: skip
    metrics = [claim.metric for claim in moco_ablation.CLAIMS]
    assert {metric.partition("_over_")[2] for metric in metrics} <= set(config.variants)


def test_the_ablation_compares_seed_by_seed():
    found = {
        "base": {"knn": np.array([0.7, 0.8, 0.9]), "linear_probe": np.array([0.8, 0.8, 0.9])},
        "other": {"knn": np.array([0.6, 0.7, 0.8]), "linear_probe": np.array([0.5, 0.8, 0.9])},
        "untrained": {"knn": np.array([0.5, 0.6, 0.7]), "linear_probe": np.array([0.4, 0.5, 0.6])},
    }
    metrics = ablation.compare(found, pairs=(("other", "untrained"), ("other", "base")))
    # A difference that all seeds share has an interval of no width.
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(metrics[f"knn_over_other{end}"], 0.1, atol=1e-9)
    np.testing.assert_allclose(metrics["linear_probe_over_other"], 0.1)
    np.testing.assert_allclose(metrics["linear_probe_over_other_low"], 0.1 - 0.43027, atol=1e-4)
    np.testing.assert_allclose(metrics["knn_untrained_over_other"], -0.1)
    np.testing.assert_allclose(metrics["linear_probe_other_over_untrained"], 0.7 / 3)
    np.testing.assert_allclose(metrics["knn_other_over_base"], -0.1)
    ends = [metrics[f"knn_base{end}"] for end in ("", "_low", "_high")]
    np.testing.assert_allclose(ends, [0.8, 0.8 - 0.24841, 0.8 + 0.24841], atol=1e-4)
