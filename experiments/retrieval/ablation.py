"""Contriever's choices one at a time: pairs, corruption, queue, momentum, negatives.

Every variant is the same run but for one value of its config, trained on the same documents in the
same order, and judged on the same queries of unseen modules, so that differences are paired. After
the ablations of Izacard et al., arXiv:2112.09118, Section 6.
"""

import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import figures
from experiments.retrieval import contriever
from experiments.retrieval.corpus import Corpus
from experiments.retrieval.drawing import half_width
from experiments.retrieval.judge import Judge, Results, compare
from experiments.retrieval.model import TextModel
from rml import evaluation
from rml.errors import UserError
from rml.training import Claim, Progress, RunDirectory, Task

BASE = "base"
QUERIES = "queries.npz"
"""A variant's file with the metrics of every query."""
SOURCE = "Contriever (arXiv:2112.09118), Section 6; data and sizes are this repository's"
CLAIMS = (
    Claim("Independent crops are above inverse cloze in nDCG@10, lower end of the 95% interval",
          "docstring_to_code_ndcg_over_inverse_cloze_low", ">=", 0.0, SOURCE),
    Claim("Deleted tokens are not below whole spans in nDCG@10 by a point",
          "docstring_to_code_ndcg_over_no_corruption", ">=", -0.01, SOURCE),
    Claim("The longest queue is above the shortest in nDCG@10",
          "queue_longest_over_shortest", ">=", 0.0, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "variants.png": "nDCG@10 on unseen modules by variant, mean over queries and 95% interval.",
    "queue.png": "nDCG@10 against the number of keys in the queue, mean and 95% interval.",
    "momentum.png": "nDCG@10 against 1 - momentum, mean and 95% interval.",
}


def task(config: Any) -> Task:
    """The training problem of the variant that the others are compared with."""
    return contriever.task(config)


def variant(config: Any, name: str) -> ConfigDict:
    """The config of a variant: the base with one value changed.

    Raises:
      UserError: The change is no `key=value` with a key of the config and a value of its type.
    """
    changed = ConfigDict(config.to_dict())
    change = config.variants[name]
    key, _, text = change.partition("=")
    *path, last = key.split(".")
    inner = changed
    for part in path:
        inner = inner.get(part, ConfigDict())
    if last not in inner:
        raise UserError(
            f"variants.{name} is {change!r}, expected key=value with a key of the config"
        )
    try:
        inner[last] = type(inner[last])(text)
    except (TypeError, ValueError):
        raise UserError(
            f"variants.{name} is {change!r}, expected a value of type {type(inner[last]).__name__}"
        ) from None
    contriever.check(changed)
    return changed


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains every variant, compares each with the base, draws."""
    contriever.check(config)
    configs = {BASE: config} | {name: variant(config, name) for name in config.variants}
    corpus = Corpus(config)
    tokenizer = TextModel(config, corpus.training_texts).tokenizer
    results: dict[str, Results] = {}
    for name, one in configs.items():
        started = time.perf_counter()
        inner = run.of_method(name)
        results[name] = measured(inner)
        if results[name]:
            inner.close()
            continue
        model = TextModel(one, corpus.training_texts)
        model.tokenizer = tokenizer
        trained = contriever.train(one, inner, corpus, model)
        results[name] = Judge(one, corpus).dense(model, trained)
        save(inner, results[name])
        metrics = {f"{t}_{m}": float(v.mean()) for (t, m), v in results[name].items()}
        inner.write_summary(metrics=metrics, claims=[], seconds=time.perf_counter() - started)
        inner.close()
        Progress().note(f"{name}: {', '.join(f'{k} {v:.4f}' for k, v in metrics.items())}")
    metrics = compare_with_base(config, results)
    draw(config, run, configs, results)
    return metrics


def save(inner: RunDirectory, results: Results) -> None:
    """Keeps the metrics of every query, so that a run that was stopped goes on."""
    values: dict[str, Any] = {f"{task}/{metric}": own for (task, metric), own in results.items()}
    np.savez(inner.path / QUERIES, **values)


def measured(inner: RunDirectory) -> Results:
    """What `save` kept of a variant that is complete; nothing of one that is not."""
    if inner.summary() is None:
        return {}
    with np.load(inner.path / QUERIES, allow_pickle=False) as file:
        return {
            (task, metric): file[f"{task}/{metric}"]
            for task, metric in (name.split("/") for name in file.files)
        }


def compare_with_base(config: Any, results: dict[str, Results]) -> dict[str, float]:
    """Means, differences to the base with intervals, and p-values corrected by Holm's method."""
    metrics = compare(results, BASE, seed=config.seed)
    others = [name for name in results if name != BASE]
    task = config.data.tasks[0]
    raw = [metrics[f"{task}_ndcg_over_{name}_p"] for name in others]
    for name, value in zip(others, evaluation.holm(jnp.asarray(raw)), strict=True):
        metrics[f"{task}_ndcg_over_{name}_p_holm"] = float(value)
    queues = by_value(results, config, "queue.size")
    if len(queues) > 1:
        means = [float(values.mean()) for _, values in sorted(queues.items())]
        metrics["queue_longest_over_shortest"] = means[-1] - means[0]
    return metrics


def by_value(results: dict[str, Results], config: Any, key: str) -> dict[float, np.ndarray]:
    """nDCG@10 of each query by a config value that variants change, the base's own included."""
    outer, inner = key.split(".")
    found = {float(config[outer][inner]): results[BASE][config.data.tasks[0], "ndcg"]}
    for name, change in config.variants.items():
        if change.partition("=")[0] == key:
            value = float(change.partition("=")[2])
            found[value] = results[name][config.data.tasks[0], "ndcg"]
    return found


def draw(
    config: Any, run: RunDirectory, configs: dict[str, Any], results: dict[str, Results]
) -> None:
    """Bars of all variants, and curves where a number was varied."""
    task = config.data.tasks[0]
    names = list(configs)
    values = [results[name][task, "ndcg"] for name in names]
    figures.bars(
        run.figure("variants.png"), [config.variants.get(name, name) for name in names],
        {"nDCG@10": [v.mean() for v in values]}, {"nDCG@10": [half_width(v) for v in values]},
        ylabel="nDCG@10",
    )  # fmt: skip
    for key, name, label in (
        ("queue.size", "queue.png", "log2 of the keys in the queue"),
        ("momentum.start", "momentum.png", "log10 of 1 - momentum"),
    ):
        found = sorted(by_value(results, config, key).items())
        if len(found) < 2:
            continue
        x = [np.log2(v) if key == "queue.size" else np.log10(1 - v) for v, _ in found]
        mean = np.array([values.mean() for _, values in found])
        half = np.array([half_width(values) for _, values in found])
        series = {"Contriever": (x, mean, mean - half, mean + half)}
        figures.curves(run.figure(name), series, label, "nDCG@10")
