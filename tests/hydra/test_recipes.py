"""The comparison's recipe as other recipes reach it: an encoder for each of its methods."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.hydra import ablation_glyphs
from experiments.common.variants import variant
from experiments.hydra import ablation, evaluator, hydra
from rml.errors import UserError
from rml.hydra import GatedEncoder, gate_statistics

PROGRAM = """
import json, sys
from pathlib import Path
import jax, numpy as np
from configs.hydra import compare_mnist5k, hydra_digits
from experiments.common.encoders import load_encoder
from experiments.common.pretraining import train
from experiments.hydra import compare, methods
from rml.errors import UserError
from rml.training import RunDirectory

config, other = hydra_digits.get_config(), compare_mnist5k.get_config()
config.experiment, config.simclr, config.supcon = other.experiment, other.simclr, other.supcon
config.train.update(dict(steps=1, batch_size=32, eval_every=0, checkpoint_every=0))
config.optimizer.warmup_steps = 0
images = np.random.default_rng(0).integers(0, 256, (4, *config.data.image_shape), np.uint8)
run, found = RunDirectory(Path(sys.argv[1]), config.to_dict()), {}
for method in ("supcon", "hydra"):
    inner = run.of_method(method)
    state = train(config, inner, methods.task(config, method))
    expected = methods.build_model(config, method).apply(
        jax.device_get(state.variables), images.astype(np.float32) / 255, method="features"
    )
    inner.write_summary(metrics={}, claims=[], seconds=1.0)
    features = load_encoder(inner.path, config.data.image_shape)(images)
    found[method] = float(np.abs(features - expected).max() / np.abs(expected).max())
    found[f"{method} size"] = float(np.abs(expected).max())
shapes = jax.eval_shape(compare.task(config).init, jax.random.key(0)).params
found["own"] = sorted(shapes)
for name, wrong in (
    ("run", lambda: load_encoder(run.path, config.data.image_shape)),
    ("method", lambda: methods.build_model(config, "supcom")),
):
    try:
        wrong()
    except UserError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_methods_directory_gives_the_encoder_of_that_method(forked, tmp_path):
    found = forked(PROGRAM, str(tmp_path / "run"), devices=1)
    assert max(found["supcon"], found["hydra"]) < 1e-4, found
    assert found["supcon size"] != found["hydra size"]  # not one encoder
    assert found["own"] == ["encoder", "filter", "head"]  # the comparison's own task is Hydra's
    assert "compares methods" in found["run"]
    assert "supcon" in found["run"]
    assert found["method"].startswith("unknown method 'supcom'; did you mean 'supcon'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts", "metrics"),
    [
        ("stochastic", {"encoder", "head", "filter"}, set()),
        ("published", {"encoder", "head", "filter", "probe", "norm"}, {"probe_accuracy"}),
        (
            "later",
            {"encoder", "head", "filter", "probe", "norm", "options"},
            {"probe_accuracy", "temperature", "ungated"},
        ),
    ],
)
def test_variants_have_the_parts_of_their_form(name, parts, metrics):
    config = variant(ablation_glyphs.get_config(), name)
    task = hydra.task(config)
    state = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    assert set(state.params) == parts
    assert ("filter" in state.model_state["batch_stats"]) == (name != "stochastic")
    after, measured = jax.eval_shape(task.step, state, task.batch_spec)
    assert metrics == set(measured) & {"probe_accuracy", "temperature", "ungated"}
    assert jax.tree.map(jax.numpy.shape, after) == jax.tree.map(jax.numpy.shape, state)


@pytest.mark.slow
def test_gates_of_all_pairs_are_measured_as_they_are_one_class_after_the_other(monkeypatch):
    config = variant(ablation_glyphs.get_config(), "published")
    config.data.classes = 9
    model = hydra.methods.build_model(config, "hydra")
    shapes = jax.eval_shape(hydra.task(config).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.6, leaf.shape), leaf.dtype)  # noqa: E731
    variables = jax.tree.map(draw, nn.meta.unbox(shapes.variables))
    variables["batch_stats"] = jax.tree.map(abs, variables["batch_stats"])
    every = evaluator.gates_of(model, variables)
    # Neither all open nor the same for every pair.
    assert jnp.std(every, axis=(0, 1)).mean() > 0.1
    np.testing.assert_allclose(
        evaluator.own_gates(model, variables), jnp.diagonal(every).T, atol=1e-5
    )
    rows, gates = [], GatedEncoder.gates

    def noted(self, first, second, *args, **options):
        rows.append(len(first))
        return gates(self, first, second, *args, **options)

    monkeypatch.setattr(GatedEncoder, "gates", noted)
    found = evaluator.statistics_of(model, variables)
    expected = {name: float(value) for name, value in gate_statistics(every).items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert set(rows) == {9}


def test_wrong_options_of_the_loss_are_named_before_the_first_variant_trains():
    for change, message in (
        ("loss.views=one", "did you mean 'all'|loss.views"),
        ("loss.penalized=open", "did you mean 'openness'"),
        ("loss.itself=yes", "expected a value of type bool"),
    ):
        config = ablation_glyphs.get_config()
        config.variants["wrong"] = change
        with pytest.raises(UserError, match=message):
            ablation.hydra.task(ablation.variant(config, "wrong"))


def test_pairs_of_classes_are_claimed_to_matter_on_equal_batches():
    config, name = ablation_glyphs.get_config(), "rankme_projections_"
    (claim,) = (own for own in ablation.CLAIMS if own.metric.startswith(name))
    sides = claim.metric.removeprefix(name).split("_over_")
    samplings = [variant(config, side).pairs.sampling for side in sides]
    assert samplings == ["uniform", "identical"]  # neither draws its batches, as the base does
    assert config.pairs.sampling == "drawn"
    assert not {*sides} & {*claim.null.removeprefix(name).split("over_")}
