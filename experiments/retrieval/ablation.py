"""Contriever's choices one at a time: pairs, corruption, queue, momentum, negatives.

Every variant is the same run but for one value of its config, trained on the same documents in the
same order, and judged on the same queries of unseen modules, so that differences are paired.
`again` is the base with another seed: what the base is above it is the null of the claims. After
the ablations of Izacard et al., arXiv:2112.09118, Section 6.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.common import figures, variants
from experiments.common.claims import with_bounds
from experiments.common.comparison import for_each
from experiments.common.texts import Corpus, TextModel
from experiments.common.variants import AGAIN, BASE, check_names, written
from experiments.retrieval import common, contriever
from rml.evaluation import compare_systems, holm
from rml.ops import t_interval
from rml.retrieval import TextEmbedder
from rml.training import Claim, Progress, RunDirectory, Task, TrainState

QUERIES = "queries.npz"
"""A variant's file with the metrics of every query."""
SOURCE = "Contriever (arXiv:2112.09118), Section 6; data and sizes are this repository's"
OTHER_NULL = (
    "the null was changed after the first measurement, in which all runs had one null of one seed"
)
NULL = "docstring_to_code_ndcg_over_again"
"""What two runs differ by that have the same values and other seeds."""
CLAIMS = (
    Claim("Independent crops are above inverse cloze in nDCG@10",
          "docstring_to_code_ndcg_over_inverse_cloze", ">=", 0.0, f"{SOURCE}; {OTHER_NULL}",
          stated="2026-11-30", null=NULL, says="Independent crops change nDCG@10 by {mean:+.1p} "
          "points beside inverse cloze ({docstring_to_code_base_ndcg:.1%} against "
          "{docstring_to_code_inverse_cloze_ndcg:.1%})"),
    Claim("Deleted tokens are above whole spans in nDCG@10",
          "docstring_to_code_ndcg_over_no_corruption", ">=", 0.0, f"{SOURCE}; {OTHER_NULL}",
          stated="2026-11-30", null=NULL,
          says="Deleting tokens of spans changes nDCG@10 by {mean:+.1p} points"),
    Claim("The longest queue is above the shortest in nDCG@10",
          "queue_longest_over_shortest", ">=", 0.0, f"{SOURCE}; {OTHER_NULL}",
          stated="2026-11-30", null=NULL,
          says="The longest queue changes nDCG@10 by {mean:+.1p} points beside the shortest"),
)  # fmt: skip
CURVES: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "queue.size": ("queue.png", "log2 of the keys in the queue", np.log2),
    "momentum.start": ("momentum.png", "log10 of 1 - momentum", lambda value: np.log10(1 - value)),
}
"""By config value that variants change, its figure, axis and scale."""
CAPTIONS = {
    "variants.png": "nDCG@10 on unseen modules by variant, mean over queries and 95% interval.",
    "queue.png": "nDCG@10 against the number of keys in the queue, mean and 95% interval.",
    "momentum.png": "nDCG@10 against 1 - momentum, mean and 95% interval.",
}
PICTURE = "variants.png"


def variant(config: Any, name: str) -> ConfigDict:
    """The config of a variant, checked."""
    changed = variants.variant(config, name)
    contriever.check(changed)
    return changed


def task(config: Any) -> Task:
    """The training problem of the variant that a config is of, by default of the base."""
    return contriever.task(variant(config, config.get("method", BASE)))


def encoder(config: Any, state: TrainState) -> TextEmbedder:
    """The vectors of texts that a trained state of a variant gives."""
    return contriever.encoder(variant(config, config.get("method", BASE)), state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains every variant, compares each with the base, draws."""
    check_names(config, (BASE, AGAIN))
    configs = {name: variant(config, name) for name in (BASE, *config.variants, AGAIN)}
    corpus = Corpus(config)

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], common.Results]:
        file = inner.path / QUERIES
        if inner.summary() is None:
            model = TextModel(configs[name], corpus)
            problem = contriever.task(configs[name], model)
            trained = common.train_encoder(configs[name], inner, problem, model)
            results = common.RetrievalEvaluator(configs[name], corpus).dense(trained)
            kept: dict[str, Any] = {"/".join(key): values for key, values in results.items()}
            np.savez(file, **kept)
        with np.load(file, allow_pickle=False) as opened:
            results = {tuple(key.split("/")): opened[key] for key in opened.files}
        metrics = {"_".join(key): float(values.mean()) for key, values in results.items()}
        Progress().note(f"{name}: {', '.join(f'{k} {v:.4f}' for k, v in metrics.items())}")
        return metrics, results

    found = {name: results for name, (_, results) in for_each(run, configs, measure).items()}
    task = config.data.tasks[0]
    ndcg = {name: results[task, "ndcg"] for name, results in found.items()}
    varied = {key: variants.by_value(configs, ndcg, key) for key in CURVES}
    draw(config, run, ndcg, varied)
    metrics = compare_systems(found, BASE, key=jax.random.key(config.seed))
    keys = [f"{task}_ndcg_over_{name}_p" for name in configs if name != BASE]
    corrected = holm(jnp.asarray([metrics[key] for key in keys]))
    metrics |= {f"{key}_holm": float(p) for key, p in zip(keys, corrected, strict=True)}
    return metrics | longest_over_shortest(varied["queue.size"])


def longest_over_shortest(queues: dict[float, np.ndarray]) -> dict[str, float]:
    """By how much the longest queue is above the shortest, query by query, with its interval."""
    if len(queues) < 2:
        return {}
    gain = t_interval(queues[max(queues)] - queues[min(queues)])
    return with_bounds("queue_longest_over_shortest", gain)


def draw(
    config: Any,
    run: RunDirectory,
    ndcg: dict[str, np.ndarray],
    varied: dict[str, dict[float, np.ndarray]],
) -> None:
    """Bars of all variants, and curves where a number was varied."""
    own = t_interval(np.stack(list(ndcg.values())))
    figures.bars(
        run.figure("variants.png"), [config.variants.get(name, written(name)) for name in ndcg],
        {"nDCG@10": own.mean}, {"nDCG@10": own.high - own.mean}, ylabel="nDCG@10",
    )  # fmt: skip
    for key, (file, label, scale) in CURVES.items():
        if len(varied[key]) > 1:
            interval = t_interval(np.stack(list(varied[key].values())))
            series = {"Contriever": (scale(np.array(list(varied[key]))), *interval)}
            figures.curves(run.figure(file), series, label, "nDCG@10")
