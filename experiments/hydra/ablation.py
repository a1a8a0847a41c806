"""Hydra's choices one at a time: how pairs are drawn, the gates, the filter, the published forms.

Every variant is the same run but for what `config.variants` names, on the same data in the same
order. `published` is the authors' first code and `later` their second, see `rml.hydra`. `again` is
the base with another seed: what the base is above it is the null of a claim that a choice matters.
Where the base has batches of drawn pairs, other ways of pairing classes differ from it in their
batches too, which are shuffled: their pairs are compared with one another.
"""

from typing import Any

from experiments.common import figures
from experiments.common.comparison import for_each
from experiments.common.pretraining import train_on_mesh
from experiments.common.variants import (
    AGAIN,
    BASE,
    check_names,
    in_order,
    variant,
    written,
)
from experiments.hydra import hydra, methods
from experiments.hydra.evaluator import TransferEvaluator, statistics_of
from experiments.ranges import Range
from rml.encoder import ImageEmbedder
from rml.training import Claim, Progress, RunDirectory, Task, TrainState, initial_state

SOURCE = "Hydra (arXiv:2410.18200), its ablations; data and sizes are this repository's"
CLAIMS = (
    Claim("Without gates a linear probe loses",
          "linear_probe_over_open", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_over_again",
          says="Gates change a linear probe's accuracy by {mean:+.1p} points "
          "({linear_probe_base:.1%} against {linear_probe_open:.1%} without)"),
    Claim("On shuffled batches, pairs of any two classes leave a RankMe of the projections at "
          "least 1.1 times that of pairs of a class with itself",
          "rankme_projections_uniform_over_identical", ">=", 1.1,
          f"{SOURCE}; changed after the first measurement, in which the base, whose batches "
          "differ as well, was held against pairs of a class with itself",
          stated="2026-11-30", null="rankme_projections_over_again",
          says="Pairs of any two classes leave projections {mean:.2f} times the effective rank "
          "that pairs of a class with itself leave"),
    Claim("The paper's own filter is within a point of ours by a linear probe",
          "linear_probe_paper_filter_over_base", ">=", -0.01, SOURCE,
          stated="2026-11-26", null="linear_probe_untrained_over_base",
          says="The paper's own filter changes a linear probe's accuracy by {mean:+.1p} points "
          "beside ours"),
)  # fmt: skip
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other images
CAPTIONS = {
    "accuracies.png": "Test accuracy of neighbours and of a linear probe by variant.",
    "ranks.png": "RankMe of the test images' features and projections by variant.",
}
PICTURE = "accuracies.png"
UNTRAINED = "untrained"
ACCURACIES = {"kNN": "knn", "probe": "linear_probe"}
RANKS = {"features": "rankme", "projections": "rankme_projections"}


def task(config: Any) -> Task:
    """The training problem of the variant that a config is of, by default of the base."""
    return hydra.task(variant(config, config.get("method", BASE)))


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state of a variant gives."""
    return hydra.encoder(variant(config, config.get("method", BASE)), state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains every variant, compares each with the base, draws."""
    check_names(config, (BASE, AGAIN, UNTRAINED))
    configs = {name: variant(config, name) for name in (BASE, *config.variants, AGAIN)}
    problems = {name: hydra.task(own) for name, own in configs.items()}  # a mistake is told now
    base = TransferEvaluator(methods.build_model(config, "hydra"), config)
    base.check()

    def judge(name: str, variables: Any) -> dict[str, float]:
        model = methods.build_model(configs[name], "hydra")
        evaluator = TransferEvaluator(model, configs[name])
        return evaluator.measure_own(variables, evaluator.features(variables))

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], None]:
        variables = train_on_mesh(configs[name], inner, problems[name]).variables
        shares = statistics_of(methods.build_model(configs[name], "hydra"), variables)
        metrics = judge(name, variables) | shares
        Progress().note(f"{name}: {', '.join(f'{k} {v:.4g}' for k, v in metrics.items())}")
        return metrics, None

    found = {name: metrics for name, (metrics, _) in for_each(run, configs, measure).items()}
    start = initial_state(problems[BASE], seed=config.seed, mesh=base.mesh).variables
    measured = found | {UNTRAINED: judge(BASE, start)}
    metrics = {f"{key}_{name}": v for name, own in measured.items() for key, v in own.items()}
    for other in configs:
        theirs = measured[other]
        for name, own in measured.items():
            infix = "" if name == BASE else f"_{name}"
            if name == other:
                continue
            for key in ACCURACIES.values():
                metrics[f"{key}{infix}_over_{other}"] = own[key] - theirs[key]
            for key in RANKS.values():
                metrics[f"{key}{infix}_over_{other}"] = own[key] / theirs[key]
    order = in_order(found)
    for file, names, label in (
        ("accuracies.png", ACCURACIES, "test accuracy"),
        ("ranks.png", RANKS, "RankMe"),
    ):
        series = {shown: [found[name][key] for name in order] for shown, key in names.items()}
        figures.bars(run.figure(file), [written(name) for name in order], series, ylabel=label)
    return metrics
