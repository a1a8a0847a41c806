"""What tests of texts share: a collection in BEIR's format, and a run that is not trained."""

import json
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.common.encoders import TOKENIZER
from experiments.common.texts import TextModel
from experiments.registry import find_experiment
from rml.training import RunDirectory, TrainState, initial_state
from rml.training.checkpoint import Checkpoints


def write_beir(
    folder: Path, documents: Sequence[str], queries: Sequence[str], *splits: str
) -> None:
    """Writes a collection in which query i is answered by document i, the same in all splits."""
    rows = {
        "corpus": [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(documents)],
        "queries": [{"_id": f"q{i}", "text": text} for i, text in enumerate(queries)],
    }
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (folder / "qrels").mkdir()
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(len(queries)))
    for split in splits:
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


def untrained_run(
    path: Path, config: Any, change: Callable[[TrainState], TrainState] = lambda state: state
) -> tuple[TextModel, TrainState]:
    """Makes the directory of a run on texts with one checkpoint, of its first state, changed."""
    run = RunDirectory(path, config.to_dict())
    model = TextModel(config)
    state = change(initial_state(find_experiment(config.experiment).task(config, model), seed=0))
    checkpoints = Checkpoints(run.checkpoints)
    checkpoints.save(1, state, types.SimpleNamespace(get_state=lambda: 1), run.config)
    checkpoints.close()
    model.tokenizer.save(str(run.path / TOKENIZER))
    run.write_summary(metrics={}, claims=[], seconds=1.0)
    run.close()
    return model, state
