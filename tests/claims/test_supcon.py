"""SupCon's claims in quick form: fewer steps; `make claims` measures them in full."""

import pytest

QUICK = ("--config=configs/contrastive/supcon_mnist5k.py", "--config.train.steps=150",
         "--config.train.batch_size=128", "--config.train.eval_every=150")  # fmt: skip


@pytest.mark.slow
def test_labels_separate_the_classes(summarize):
    summary = summarize(*QUICK)
    metrics = summary["metrics"]
    verdicts = {claim["metric"]: claim["holds"] for claim in summary["claims"]}
    assert all(verdicts.values()), metrics
    assert metrics["rankme"] > 10, metrics
