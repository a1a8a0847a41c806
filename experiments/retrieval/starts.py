"""What pretraining without labels is worth: what retrievers start from, and where that leads.

An encoder is random, or a masked language model trained here; Contriever then pulls spans of a
document together; fine-tuning on a few labelled pairs follows. Every stage starts from the result
of the one before, on the same texts with the same tokenizer, and every fine-tuning has equally many
learning rates to choose from on validation queries. A masked language model of as many steps as
both stages together is the baseline of equal budget. After Izacard et al., arXiv:2112.09118, Tables
1, 2 and 5.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.common import figures, variants
from experiments.common.comparison import for_each
from experiments.common.encoders import TOKENIZER
from experiments.common.selection import at_edge
from experiments.common.texts import Corpus, TextModel
from experiments.ranges import ABOVE_0
from experiments.retrieval import common, contriever, finetune, masked_lm
from rml.errors import UserError
from rml.evaluation import compare_systems
from rml.ops import t_interval
from rml.retrieval import TextEmbedder
from rml.training import Claim, Progress, RunDirectory, Task, TrainState, read_metrics
from rml.training.processes import local_copy

RECIPES = {
    "masked_lm": masked_lm,
    "longer": masked_lm,
    "contriever": contriever,
    "strangers": contriever,
    "finetune": finetune,
}
"""Stages, each a key of `config.variants`, by the recipe that trains them."""
PRETRAINED = {
    "masked_lm": ("random", "masked_lm"),
    "longer": ("random", "longer"),
    "random_contriever": ("random", "contriever"),
    "contriever": ("masked_lm", "contriever"),
    "random_strangers": ("random", "strangers"),
    "strangers": ("masked_lm", "strangers"),
}
"""Encoders trained without labels: what each starts from, and its stage."""
TUNED = "_tuned"
"""Behind the name of an encoder: it was fine-tuned."""
TRIED = f"{TUNED}_"
"""Between the name of an encoder and a learning rate that its fine-tuning tries."""
COMPARED = {
    "masked_lm": ("random", "bm25_code"),
    "random_contriever": ("random", "bm25_code"),
    "contriever": ("masked_lm", "random", "bm25", "bm25_code"),
    "random_strangers": ("random",),
    "strangers": ("masked_lm",),
    "random_contriever_tuned": ("random_tuned",),
    "masked_lm_tuned": ("random_tuned",),
    "contriever_tuned": ("masked_lm_tuned", "random_tuned", "longer_tuned", "bm25_code"),
    "random_strangers_tuned": ("random_tuned",),
    "strangers_tuned": ("masked_lm_tuned", "longer_tuned"),
}
"""Systems, and those that each is held against."""
SOURCE = (
    "Contriever (arXiv:2112.09118), Tables 1, 2 and 5; data and margins are this repository's; "
    "width and rate as in contriever_pydocs_random, where test queries of pydocs were seen"
)
TABLE_5 = f"{SOURCE}; what is fine-tuned alone has fewer steps of pretraining"
AGAINST_RANDOM = (
    "changed after the first measurement, in which the baseline was the masked language model, "
    "which is below random weights"
)
CLAIMS = (
    Claim("Without labels Contriever's Recall@100 is above that of BM25 with identifiers split",
          "contriever_recall_over_bm25_code", ">=", 0.0, SOURCE,
          stated="2026-11-26", null="masked_lm_recall_over_bm25_code",
          says="Without labels Contriever changes Recall@100 by {mean:+.1p} points over BM25 "
          "({contriever_recall:.1%} against {bm25_code_recall:.1%})"),
    Claim("From random weights, Contriever raises nDCG@10 by 5 points",
          "random_contriever_ndcg_over_random", ">=", 0.05, SOURCE,
          stated="2026-11-26", null="random_strangers_ndcg_over_random",
          says="From random weights Contriever changes nDCG@10 by {mean:+.1p} points "
          "({random_contriever_ndcg:.1%} against {random_ndcg:.1%})"),
    Claim("After a masked language model and Contriever, fine-tuning is above fine-tuning random "
          "weights",
          "contriever_tuned_ndcg_over_random_tuned", ">=", 0.0, f"{TABLE_5}; {AGAINST_RANDOM}",
          stated="2026-11-30", null="masked_lm_tuned_ndcg_over_random_tuned",
          says="A masked language model and Contriever before fine-tuning change nDCG@10 by "
          "{mean:+.1p} points beside fine-tuning random weights"),
    Claim("From random weights, fine-tuning after Contriever is above fine-tuning alone",
          "random_contriever_tuned_ndcg_over_random_tuned", ">=", 0.0, TABLE_5,
          stated="2026-11-26", null="random_strangers_tuned_ndcg_over_random_tuned",
          says="Contriever alone before fine-tuning changes nDCG@10 by {mean:+.1p} points beside "
          "fine-tuning random weights"),
)  # fmt: skip
LABELS = {
    "bm25": "BM25",
    "bm25_code": "BM25, identifiers split",
    "random": "random weights",
    "masked_lm": "masked LM",
    "longer": "masked LM, twice the steps",
    "random_contriever": "random, Contriever",
    "contriever": "masked LM, Contriever",
    "random_strangers": "random, strangers",
    "strangers": "masked LM, strangers",
}
CAPTIONS = {
    "ndcg.png": "nDCG@10 of unseen queries by what was trained, mean and 95% interval.",
    "recall.png": "Recall@100 of unseen queries by what was trained, mean and 95% interval.",
}
PICTURE = "ndcg.png"
STAGED = True  # fine-tuning begins from what the stages before it have learned
RANGES = {"finetune_rates": ABOVE_0}


def stage(config: Any, method: str) -> tuple[Any, ConfigDict]:
    """The recipe that trains a method, and its config.

    Args:
      config: The run's config.
      method: A key of `PRETRAINED`, or an encoder's name with `TRIED` and a learning rate.
    """
    _, tuned, rate = method.partition(TRIED)
    name = "finetune" if tuned else PRETRAINED[method][1]
    changed = variants.variant(config, name)
    if tuned:
        changed.optimizer.learning_rate = float(rate)
    return RECIPES[name], changed


def task(config: Any) -> Task:
    """The training problem of a method, by default of Contriever."""
    recipe, changed = stage(config, config.get("method", "contriever"))
    found: Task = recipe.task(changed)
    return found


def encoder(config: Any, state: TrainState) -> TextEmbedder:
    """The vectors of texts that a trained state of a method gives."""
    recipe, changed = stage(config, config.get("method", "contriever"))
    found: TextEmbedder = recipe.encoder(changed, state)
    return found


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains stage after stage, compares what they lead to with BM25, draws."""
    if not config.finetune_rates:
        raise UserError("finetune_rates is empty, expected at least one learning rate")
    corpus = Corpus(config)
    model = TextModel(config, corpus)
    judge = common.RetrievalEvaluator(config, corpus)
    judge.check()
    corpus.tokenizer.save(str(run.path / TOKENIZER))
    start = jax.device_get(nn.meta.unbox(jax.jit(model.random)(jax.random.key(config.seed))))
    encoders, steps = {"random": start}, dict[tuple[Any, str], Any]()

    def train(method: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        recipe, changed = stage(config, method)
        changed.tokens.file = str(run.path / TOKENIZER)
        own = Corpus(changed)
        if changed.data == config.data:
            own = corpus
        name, tuned, _ = method.partition(TRIED)
        before = encoders[name if tuned else PRETRAINED[method][0]]
        model = TextModel(changed, own, before)
        problem = recipe.task(changed, model)
        # Trainings by one recipe and config differ in their start alone: they share a step.
        step = steps.setdefault((recipe, str(changed)), problem.step)
        trained = common.train_encoder(changed, inner, replace(problem, step=step), model)
        # One array after another comes to the host: no device ever holds all of them.
        params = jax.tree.map(
            lambda leaf: jax.device_get(local_copy(leaf)), trained.variables["params"]
        )
        # A head, if there is one, ends with its stage.
        variables = {"params": {"backbone": params["backbone"]}}
        if not tuned:
            encoders[method] = variables
        shown = [line for line in read_metrics(inner.path / "metrics.jsonl") if "eval/ndcg" in line]
        return {"validation_ndcg": shown[-1]["eval/ndcg"]}, variables

    for_each(run, PRETRAINED, train)
    rates = [f"{rate:g}" for rate in config.finetune_rates]
    tried = {name: [f"{name}{TRIED}{rate}" for rate in rates] for name in encoders}
    tuned = for_each(run, [method for methods in tried.values() for method in methods], train)
    metrics: dict[str, float] = {f"tries_{name}": len(rates) for name in tried}
    for name, methods in tried.items():
        best = chosen({method: tuned[method][0] for method in methods})
        encoders[f"{name}{TUNED}"] = tuned[best][1]
        rate = float(best.partition(TRIED)[2])
        metrics[f"chosen_{name}_learning_rate"] = rate
        metrics[f"rate_at_edge_{name}"] = at_edge(rate, config.finetune_rates)
    found = judge.lexical()
    for name, variables in encoders.items():
        found[name] = judge.dense(model.features(variables))
        Progress().note(f"{name}: nDCG@10 {found[name][config.data.tasks[0], 'ndcg'].mean():.4f}")
    draw(config, run, found)
    return {name: float(value) for name, value in metrics.items()} | compare(config, found)


def chosen(tried: Mapping[str, Mapping[str, float]]) -> str:
    """The method whose nDCG@10 of validation queries is highest; the first of equal ones."""
    return max(tried, key=lambda method: tried[method]["validation_ndcg"])


def compare(config: Any, found: dict[str, common.Results]) -> dict[str, float]:
    """Means of all systems, and differences of those that are `COMPARED`."""
    task, key = config.data.tasks[0], jax.random.key(config.seed)
    metrics: dict[str, float] = {}
    for ours, others in COMPARED.items():
        pairs = {name: found[name] for name in (ours, *others)}
        metrics |= compare_systems(pairs, ours, key=key, prefix=f"{ours}_")
    metrics |= {
        f"{task}_{name}_{metric}": float(values.mean())
        for name, results in found.items()
        for (_, metric), values in results.items()
    }
    # Claims are of all collections alike.
    return {name.removeprefix(f"{task}_"): value for name, value in metrics.items()}


def draw(config: Any, run: RunDirectory, found: dict[str, common.Results]) -> None:
    """Bars of all systems, fine-tuned or not, with 95% intervals over queries."""
    task = config.data.tasks[0]
    names = [name for name in found if not name.endswith(TUNED)]
    for metric in ("ndcg", "recall"):
        own = {name: t_interval(results[task, metric]) for name, results in found.items()}
        means, halves = (
            {
                series: [value(own[name + end]) if name + end in own else np.nan for name in names]
                for series, end in (("without labels", ""), ("fine-tuned", TUNED))
            }
            for value in (lambda one: one.mean, lambda one: one.high - one.mean)
        )
        figures.bars(
            run.figure(f"{metric}.png"), [LABELS[name] for name in names], means, halves,
            ylabel=common.METRICS[metric],
        )  # fmt: skip
