"""SimCLR's claims in quick form: a fifth of the demo's steps; `make claims` measures them in full."""

import json

QUICK = ("--config=configs/contrastive/simclr_mnist5k.py", "--config.train.steps=300",
         "--config.train.eval_every=0")  # fmt: skip


def test_contrastive_features_beat_pixels_and_an_untrained_encoder(launch, tmp_path):
    result = launch(*QUICK, f"--workdir={tmp_path / 'run'}", timeout=900)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    metrics = summary["metrics"]
    verdicts = {claim["metric"]: claim["holds"] for claim in summary["claims"]}
    # At a fifth of the steps the margins over the untrained encoder are there already.
    assert verdicts["knn_over_untrained"], metrics
    assert verdicts["linear_probe_over_pixels"], metrics
    assert metrics["knn"] > metrics["knn_pixels"], metrics
    assert metrics["rankme"] > 10, metrics
