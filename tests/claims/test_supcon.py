"""SupCon's claims in quick form: fewer steps; `make claims` measures them in full."""

import json

QUICK = ("--config=configs/contrastive/supcon_mnist5k.py", "--config.train.steps=150",
         "--config.train.eval_every=150")  # fmt: skip


def test_labels_separate_the_classes(launch, tmp_path):
    result = launch(*QUICK, f"--workdir={tmp_path / 'run'}", timeout=900)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    metrics = summary["metrics"]
    verdicts = {claim["metric"]: claim["holds"] for claim in summary["claims"]}
    assert all(verdicts.values()), metrics
    assert metrics["rankme"] > 10, metrics
