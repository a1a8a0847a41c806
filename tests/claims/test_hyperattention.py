"""HyperAttention's recipe on a small random model; `make claims` measures a trained one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.attention import hyperattention as config_file
from experiments.attention import approximation, hyperattention
from experiments.attention.equal_keys import keys_of, options_of
from experiments.attention.layerwise import Decoder
from experiments.ranges import checked_experiment
from rml.errors import UserError
from rml.evaluation.long_text import token_nats
from tests.claims.drawn_models import drawn_decoder
from tests.system.two_steps import override

SMALL = {
    "lengths": (64,), "documents": (2,), "layers": (2,), "block": 8, "samples": 8, "least": 16,
    "planes": 3, "draws": 1, "tries.hyperattention": ((16, 0.5),), "validated": 2,
    "tries.uniform": (16,), "tries.window": (2,), "tries.performer": (8,), "errors.seeds": 2,
    "errors.measured_layers": (0, 2),
    "errors.samples": (4, 8), "errors.block": 8, "errors.blocks": (8, 16), "errors.beside": 8,
    "errors.cells": 16, "costs.counted": (64, 128), "costs.timed": (64,),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return drawn_decoder()


def texts(*_):
    return np.random.default_rng(0).integers(0, 32, (3, 64)).astype(np.int32)


@pytest.mark.slow
def test_layer_by_layer_equals_the_whole_model(model):
    decoder, text = Decoder(model.module, model.variables), texts()[0]
    found = decoder.exact(text, capture=(2,))
    hidden = model.module.apply(model.variables, jnp.array(text)[None])[0]

    def head(x):
        return model.module.apply(model.variables, x, method="logits")

    np.testing.assert_allclose(found.nats, token_nats(hidden, head, jnp.array(text)), rtol=2e-4)
    assert [x.shape for x in found.captured[2]] == [(4, 64, 8), (2, 64, 8), (2, 64, 8)]
    rngs = jax.random.split(jax.random.key(1), 2)
    same = decoder.replaced(found, text, rngs, "window", {"width": 64, "sinks": 1}, layers=2)
    np.testing.assert_allclose(same, [found.nats] * 2, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validated": 4}, "validated is 4, expected at most 3 speeches"),
        ({"layers": (2, 9)}, r"layers is \(2, 9\) .* no more than all of it"),
        ({"documents": (4,)}, r"documents is \(4,\), expected at most 3: the test speeches of 64"),
    ],
)
def test_too_few_speeches_are_named(model, monkeypatch, changes, message):
    monkeypatch.setattr(hyperattention.pretrained, "load", lambda name: model)
    monkeypatch.setattr(hyperattention, "speeches", texts)
    config = override(config_file.get_config(), {**SMALL, **changes})
    with pytest.raises(UserError, match=message):
        hyperattention.run(config, None)


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(model, measure, monkeypatch, tmp_path):
    monkeypatch.setattr(hyperattention.pretrained, "load", lambda name: model)
    monkeypatch.setattr(hyperattention, "speeches", texts)
    metrics, holds = measure("configs/attention/hyperattention.py", SMALL)
    assert len(holds) == len(hyperattention.CLAIMS)
    assert np.isfinite(list(metrics.values())).all()
    for method in hyperattention.METHODS:
        assert metrics[f"lost_{method}_half"] == metrics[f"lost_{method}_2_of_64"]
    assert metrics["flops_power"] < 1.3 < 1.9 < metrics["flops_power_exact"] <= 2.0
    assert metrics["crossover"] == 64  # one length alone is timed
    assert 0 <= metrics["alpha_share_below_root"] <= 1
    assert metrics["gain_over_uniform_low"] <= metrics["gain_over_uniform"]
    assert metrics["gain_of_sorting"] != 0
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(hyperattention.CAPTIONS)


def test_the_crossover_lies_between_the_lengths_about_it():
    find = approximation.crossover
    # Ratios 1/2 and 4 at 100 and 800: a third of the way between logarithms.
    assert find((100, 800), np.array([0.5, 4.0])) == pytest.approx(200)
    assert find((100, 400, 800), np.array([2.0, 0.5, 2.0])) == pytest.approx(400 * 2**0.5)
    assert find((100, 800), np.array([1.5, 4.0])) == 100
    assert find((100, 800), np.array([4.0, 0.9])) == 800


def test_all_methods_see_equally_many_keys():
    config = config_file.get_config()
    keys = keys_of(config, 2048)
    assert keys == (256 + 1) / 2 + 3 * 256 / 2
    window = options_of(config, "window", 4, 2048)
    seen = np.minimum(np.arange(1, 2049), window["width"])
    seen = seen + np.minimum(4, np.arange(1, 2049) - seen)
    assert seen.mean() == pytest.approx(keys, rel=2e-3)
    uniform = options_of(config, "uniform", 128, 2048)["settings"]
    assert (128 + 1) / 2 + 4 * uniform.samples / 2 == keys
    assert uniform.planes == 0
    own = options_of(config, "hyperattention", (256, 0.25), 2048)["settings"]
    assert (own.block, own.samples, own.least) == (64, 192, 256)
    # A shorter exact piece leaves fewer keys to each of more levels.
    short = options_of(config, "hyperattention", (128, 0.5), 2048)["settings"]
    assert (128 + 1) / 2 + 4 * (short.block + short.samples) / 2 == keys
    assert short.block == short.samples


def test_one_seed_of_planes_is_refused():
    config = override(config_file.get_config(), {"errors.seeds": 1})
    with pytest.raises(UserError, match=r"errors\.seeds is 1, expected a whole number"):
        checked_experiment(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"least": 512}, "least is 512, expected at most 256"),
        ({"lengths": (4096, 2048)}, "expected to ascend"),
        ({"tries": {"window": (4,)}}, "expected equally many"),
        ({"documents": (2,)}, r"documents is \(2,\), expected as many numbers as lengths"),
        ({"lengths": (1024, 2048)}, "has 1280 keys, expected less than the 1024 of half"),
        ({"errors": {"blocks": (64, 2048)}}, "has 2048 keys, expected less than the 2048 of half"),
        (
            {"tries": {"uniform": (32, 64, 128, 256, 2048)}},
            "tries.uniform has a longest exact piece of 2048, expected less than the 2048 tokens",
        ),
        (
            {"tries": {"hyperattention": ((128, 0.5),) * 4 + ((1024, 0.5),)}},
            "piece of 1024, expected less: at 2048 tokens it has 512 of 512 keys",
        ),
        (
            {"tries": {"hyperattention": ((128, 0.5),) * 4 + ((128, 0.0),)}},
            "a share of 0.0, expected one that gives blocks 1 to all of",
        ),
        (
            {"tries": {"hyperattention": ((128, 0.5),) * 4 + ((128, 1.5),)}},
            "a share of 1.5, expected one that gives blocks 1 to all of",
        ),
    ],
)
def test_wrong_configs_are_named(changes, message):
    config = config_file.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        hyperattention.check(config)
