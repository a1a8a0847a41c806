"""Mixed examples in quick form, and how they are trained and measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rml
from configs.metric import mixed_glyphs
from configs.metric.parts import mixing_methods
from experiments.common.class_parts import image_parts
from experiments.metric import mixing
from experiments.metric import mixing_methods as methods
from experiments.metric.methods import with_class_vectors
from experiments.ranges import checked_experiment
from rml import losses
from rml.errors import UserError
from rml.metric import draw_mixtures, mix, mixed_similarities, similarities_of_mixed
from rml.ops import normalize
from tests.system.two_steps import override

SMALL = {
    "classes.base": 6, "classes.validation": 4, "classes.novel": 4, "splits": 1,
    "batch.classes": 4, "batch.examples": 4, "train.batch_size": 16, "train.steps": 2,
    "train.checkpoint_every": 2, "optimizer.warmup_steps": 1, "tries.steps": 1,
    "model.widths": (2, 2), "model.features": 8, "head.features": 6, "mixing.embedding": 3,
    **{f"tries.{method}": ("",) for method in mixing_methods()},
    "tries.proxy_anchor_none": ("methods.proxy_anchor_none.margin=0.1",),
}  # fmt: skip


def small(**changes):
    return override(mixed_glyphs.get_config(), SMALL | changes)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_keeps_its_encoders(measure, tmp_path):
    metrics, holds = measure("configs/metric/mixed_glyphs.py", SMALL)
    assert len(holds) == len(mixing.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    for claim in mixing.CLAIMS:
        assert {claim.metric, claim.null} <= set(metrics)
    for method in mixing_methods():
        assert metrics[f"{method}_utilization_with_mixtures"] <= metrics[f"{method}_utilization"]
    figures = {path.name for path in (tmp_path / "run/figures").glob("*.png")}
    assert figures == set(mixing.CAPTIONS)
    encoder = rml.load(tmp_path / "run/methods/split_0/methods/contrastive_feature")
    assert encoder(np.zeros((3, 28, 28, 1), np.uint8)).shape == (3, 6)


@pytest.fixture(scope="module")
def batch():
    """A model, its variables, images and labels."""
    config = small()
    model = with_class_vectors(config)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(16, 28, 28, 1)), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=True))(jax.random.key(0))
    return config, model, variables, images, jnp.repeat(jnp.arange(4), 4)


def value(batch, method, key=None, **changes):
    """A method's loss of the batch."""
    config, model, variables, images, labels = batch
    one = override(config, {f"methods.{method}.{name}": new for name, new in changes.items()})
    forward = methods.Forward(model, variables, ("batch_stats",), config.mixing.layer)
    key = jax.random.key(5) if key is None else key
    return methods.objective(one, one.methods[method], key, forward, images, labels), forward


def unmixed(batch, form):
    _, model, variables, images, labels = batch
    out, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    rows = normalize(out.embeddings)
    same = (labels[:, None] == labels).astype(jnp.float32)
    where = ~jnp.eye(16, dtype=bool)
    return rows, losses.pair_loss(rows @ rows.T, same, form=form, where=where)


@pytest.mark.slow
def test_a_method_without_mixtures_is_its_loss(batch):
    rows, expected = unmixed(batch, losses.contrastive_form(0.2))
    found, _ = value(batch, "contrastive_none", margin=0.2)
    assert found == pytest.approx(float(expected), rel=1e-5)
    labels, prototypes = batch[4], batch[2]["params"]["prototypes"]
    proxies = losses.proxy_anchor(rows, labels, prototypes.unbox(), scale=16.0, margin=0.2)
    found, _ = value(batch, "proxy_anchor_none", margin=0.2)
    assert found == pytest.approx(float(proxies), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["input", "feature", "embedding", "hard"])
def test_mixtures_add_their_share_of_the_loss(batch, mode):
    """Each mode beside its mixtures made one at a time, by the encoder's own parts."""
    config, model, variables, images, labels = batch
    form, key = losses.contrastive_form(0.2), jax.random.key(5)
    rows, clean = unmixed(batch, form)
    count = config.mixing["embedding" if mode == "hard" else mode]
    pairs = draw_mixtures(
        key, labels, per_anchor=count, alpha=config.mixing.alpha,
        similarities=rows @ rows.T if mode == "input" else None,
    )  # fmt: skip
    if mode == "input":
        mixed = mix(images, pairs).reshape(-1, 28, 28, 1)
        out, _ = model.apply(variables, mixed, train=True, mutable=["batch_stats"])
        s = similarities_of_mixed(rows, out.embeddings.reshape(16, count, -1))
    elif mode == "feature":
        _, state = model.apply(
            variables, images, train=True, mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name == "norm0",
        )  # fmt: skip
        first = jax.nn.relu(state["intermediates"]["encoder"]["norm0"]["__call__"][0])
        embedded = above(batch, mix(first, pairs).reshape(-1, *first.shape[1:]))
        s = similarities_of_mixed(rows, embedded.reshape(16, count, -1))
    else:
        s = mixed_similarities(rows, rows, pairs)
    targets = pairs.targets
    if mode == "hard":
        targets = jnp.round(targets)
    mixed_loss = losses.pair_loss(s, targets, form=form, where=pairs.where)
    assert abs(float(mixed_loss)) > 1e-3
    found, forward = value(batch, f"contrastive_{mode}", key, margin=0.2)
    assert found == pytest.approx(float(clean + config.mixing.weight * mixed_loss), rel=1e-4)
    # What mixtures change of running means is dropped.
    _, expected = model.apply(variables, images, train=True, mutable=["batch_stats"])
    for one, other in zip(jax.tree.leaves(forward.changed), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def above(batch, features):
    """Embeds what the second convolution takes, layer by layer, with statistics of these rows."""
    params = jax.tree.map(lambda leaf: getattr(leaf, "value", leaf), batch[2]["params"],
                          is_leaf=lambda leaf: hasattr(leaf, "value"))  # fmt: skip
    encoder = params["encoder"]
    x = jax.lax.conv_general_dilated(
        features, encoder["conv1"]["kernel"], (2, 2), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    norm, mean, var = encoder["norm1"]["bn"], x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-5) * norm["scale"] + norm["bias"])
    x = x.reshape(len(x), -1)
    for layer in (encoder["out"], params["head"]["out"]):
        x = x @ layer["kernel"] + layer["bias"]
    return x


def test_differences_are_of_the_methods_that_they_name():
    rng = np.random.default_rng(3)
    metrics = {f"{method}_recall1": rng.uniform() for method in mixing_methods()}
    metrics |= {f"{method}_utilization": rng.uniform() for method in mixing_methods()}
    metrics |= {f"{mixing.MEASURED}_positivity_gap": 0.1,
                f"{mixing.MEASURED}_positivity_gap_of_one_half": 0.3}  # fmt: skip
    found = mixing.differences(metrics)
    for loss, one, other in (
        ("contrastive", "feature", "none"), ("proxy_anchor", "twice", "none"),
        ("multi_similarity", "embedding", "hard"), ("contrastive", "feature", "embedding"),
    ):  # fmt: skip
        expected = metrics[f"{loss}_{one}_recall1"] - metrics[f"{loss}_{other}_recall1"]
        assert found[f"{loss}_{one}_over_{other}"] == expected
    assert found["contrastive_feature_utilization_ratio"] == (
        metrics["contrastive_feature_utilization"] / metrics["contrastive_none_utilization"]
    )
    for claim in mixing.CLAIMS:
        assert {claim.metric, claim.null} <= set(found)


def test_utilization_is_relative_to_the_distance_of_novel_images_from_one_another():
    rng = np.random.default_rng(4)
    novel, base = (normalize(jnp.asarray(rng.standard_normal((n, 4)), jnp.float32))
                   for n in (20, 30))  # fmt: skip
    found = mixing.relative_utilization(
        jax.random.key(0), novel, base, np.arange(30) % 5, alpha=2.0
    )
    square = np.sum((np.asarray(novel)[:, None] - np.asarray(base)) ** 2, -1).min(1).mean()
    own = np.sum((np.asarray(novel)[:, None] - np.asarray(novel)) ** 2, -1).mean()
    assert found["utilization"] == pytest.approx(square / own, rel=1e-4)
    assert found["utilization_with_mixtures"] < found["utilization"]


def test_one_mixture_of_an_anchor_turns_exactly_where_the_threshold_says():
    rng = np.random.default_rng(5)
    rows = normalize(jnp.asarray(rng.standard_normal((24, 5)), jnp.float32))
    sharp = dict(beta=3.0, gamma=7.0, margin=0.2)
    found = mixing.positivity(
        jax.random.key(0), rows, np.arange(24) % 6, losses.multi_similarity_form(**sharp), sharp,
        per_anchor=1,
    )  # fmt: skip
    assert found["positivity_gap"] == pytest.approx(0, abs=1e-6)
    assert found["positivity_gap_of_one_half"] > 0.1
    assert found["positivity_0.1"] < found["positivity_0.9"]


def test_a_method_of_more_updates_trains_longer():
    config = small()
    assert mixing.longer(config, "contrastive_twice").train.steps == 4
    assert mixing.longer(config, "contrastive_feature").train.steps == 2
    assert config.train.steps == 2


def test_methods_that_differ_by_mode_have_the_same_loss_and_equally_many_tries():
    config = mixed_glyphs.get_config()
    assert len(set(mixing.tries(config).values())) == 1
    for name, options in config.methods.items():
        assert name.startswith(options.loss)
        plain = config.methods[f"{options.loss}_none"]
        for key in ("margin", "beta", "gamma", "scale"):
            assert options.get(key) == plain.get(key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods.contrastive_none.mode": "image"}, "unknown methods.contrastive_none.mode"),
        ({"methods.contrastive_none.loss": "l1"}, "unknown methods.contrastive_none.loss 'l1'"),
        ({"methods.contrastive_none.targets": "soft"}, "unknown methods.contrastive_none.targets"),
        ({"methods.proxy_anchor_feature.mode": "input"}, "mode is 'input' with proxies"),
        ({"train.batch_size": 15}, "train.batch_size is 15, expected batch.classes times"),
        ({"mixing.feature": 0}, "mixing.feature is 0, expected"),
        ({"splits": 0}, "splits is 0, expected"),
    ],
)
def test_bad_configs_are_named_before_anything_is_done(changes, message):
    config = small(**changes)
    with pytest.raises(UserError, match=message):
        checked_experiment(config).run(config, None)


def test_unknown_methods_and_layers_are_named(batch):
    with pytest.raises(UserError, match="unknown method 'contrastive'"):
        methods.task(small(), "contrastive", image_parts, dict)
    config, *rest = batch
    with pytest.raises(UserError, match=r"mixing\.layer is 'conv7', expected a layer of the"):
        value((override(config, {"mixing.layer": "conv7"}), *rest), "contrastive_feature")
