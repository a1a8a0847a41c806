"""ProSparse's recipe for pretrained decoders, on one of two layers; `make claims` reads SmolLM2."""

from pathlib import Path

import numpy as np
import pytest

from configs.sparsity import prosparse_smollm2 as config_file
from experiments.common import small_lm
from experiments.sparsity import prosparse_pretrained
from experiments.sparsity.prosparse_training import Reading
from rml.errors import UserError

CONFIG = "configs/sparsity/prosparse_smollm2.py"
DECODER = Path(__file__).parents[1] / "models" / "golden" / "llama"
SMALL = {
    "model.name": f"hf:{DECODER}", "text.length": 12, "text.windows": 4, "train.steps": 40,
    "train.batch_size": 2, "train.checkpoint_every": 40, "optimizer.learning_rate": 0.03,
    "optimizer.warmup_steps": 1, "peaks": (1.0, 30.0),
}  # fmt: skip


@pytest.mark.slow
def test_a_small_run_measures_every_claim_and_draws(measure, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    texts = [" ".join("abcdefgh"[n] for n in row) for row in rng.integers(0, 8, (4, 300))]
    monkeypatch.setattr(small_lm.data, "load_documents", lambda *_, **__: texts)
    metrics, holds = measure(CONFIG, SMALL)
    assert len(holds) == len(prosparse_pretrained.CLAIMS)
    wrong = {name for name, value in metrics.items() if not np.isfinite(value)}
    assert wrong <= set(prosparse_pretrained.NO_POINT)
    assert metrics["sparsity_silu"] == metrics["sparsity_start"] == 0.0
    assert metrics["nats_silu"] < metrics["nats_start"]  # it was trained
    assert metrics["nats_relu"] < metrics["nats_substituted"]
    assert metrics["sparsity_progressive_30"] > metrics["sparsity_relu"] + 0.1
    assert metrics["tries_pro"] == 2
    assert metrics["chosen_peak"] in (1.0, 30.0)
    assert metrics["sparsity_chess"] == pytest.approx(metrics["sparsity_pro"], abs=0.1)
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == set(prosparse_pretrained.CAPTIONS)
    methods = tmp_path / "run" / "methods"
    last = (methods / "progressive_30" / "metrics.jsonl").read_text().splitlines()[-2:]
    assert any('"train/factor": 30.0' in line for line in last)
    silu, relu = ((methods / name / "metrics.jsonl").read_text() for name in ("silu", "relu"))
    assert '"train/factor": 0.0' in silu
    assert '"train/zeros": 0.0' in silu
    assert '"train/zeros": 0.0' not in relu


def test_what_is_compared_is_relative_and_by_window():
    def reading(nats, zeros):
        read = np.array([[zeros - 0.02] * 2, [zeros + 0.02] * 2])
        return Reading(np.asarray(nats, float), read, np.ones(2), np.ones(2))

    found = {
        "silu": reading([2.0, 2.0], 0.0), "relu": reading([2.2, 2.4], 0.6),
        "progressive_2": reading([2.3, 2.5], 0.88), "pro": reading([2.4, 2.6], 0.9),
        "pro_random": reading([3.4, 3.6], 0.9), "random": reading([4.2, 4.4], 0.9),
        "chess": reading([3.0, 3.0], 0.9),
    }  # fmt: skip
    config = config_file.get_config()
    metrics = prosparse_pretrained.summarised(config, found, "progressive_2")
    assert metrics["excess_pro"] == pytest.approx(0.2 / 2.3)
    assert metrics["excess_random"] == pytest.approx(2 / 2.3)
    assert metrics["chess_over_pro"] == pytest.approx(0.5 / 2.5)
    assert metrics["chess_over_random"] == pytest.approx(-1.3 / 4.3)
    assert metrics["threshold_cost"] == pytest.approx(0.1 / 2.4)
    assert metrics["threshold_cost_random"] == pytest.approx(1.1 / 2.4)
    assert metrics["pro_over_silu"] == pytest.approx(0.5 / 2.0)
    assert metrics["mlp_read"] == pytest.approx((1 + 2 * 0.1) / 3)
    assert metrics["mlp_read_relu"] == pytest.approx((1 + 2 * 0.4) / 3)
    assert metrics["sparsity_pro_low"] == pytest.approx(0.9 - 12.706205 * 0.02)
    assert metrics["mlp_read_high"] == pytest.approx((1 + 2 * (0.1 + 12.706205 * 0.02)) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peaks": ()}, "peaks is"),
        ({"peaks": (2.0, 0.5)}, "at least 1 that ascend"),
        ({"penalty": {"peak": 2.0}}, "penalty.peak is 2.0, expected 0"),
        ({"model": {"activation": "relu"}}, "model.activation is relu, expected silu"),
        ({"thresholds": (0.01, 0.1)}, "expected two or more, ascending from 0"),
        ({"train": {"steps": 10}}, r"steps \[4, 6, 7, 10, 10\] of 10, expected steps that ascend"),
    ],
)
def test_configs_without_what_is_compared_are_refused(change, message):
    config = config_file.get_config()
    config.update(change)
    with pytest.raises(UserError, match=message):
        prosparse_pretrained.run(config, None)  # before anything is read


def test_a_decoder_whose_documents_have_no_end_is_refused(monkeypatch):
    config = config_file.get_config()
    monkeypatch.setattr(small_lm.data, "load_documents", lambda *_, **__: ["a b"])
    config.model.name = f"hf:{DECODER.parent / 'bert'}"
    with pytest.raises(UserError, match="eos_token_id of model"):
        small_lm.read_text(config)
