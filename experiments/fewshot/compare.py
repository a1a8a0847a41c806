"""Few-shot methods on the same episodes of the same features: the papers' tables in shape.

What the claims compare has an interval over episodes: Student's of the paired differences.

Options with several candidates are chosen on validation episodes of as many ways and shots, as Ziko
et al. choose λ for each number of shots (public code of arXiv:2106.09516). Validation episodes are
balanced: that novel ones are not is what a method is not told.

Of an option with more than two candidates `<option>_at_edge_<kind>_<method>` says whether the
smallest or the largest was chosen, beside which a better one may lie.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.fewshot import base_training, common, drawing
from experiments.fewshot.common import SHIFTED
from experiments.fewshot.features import load_features
from rml import fewshot
from rml.encoder import ImageEmbedder
from rml.errors import UserError
from rml.fewshot import Search, Setting
from rml.training import Claim, RunDirectory, Task, TrainState

REGULARISED, PLAIN, NEAREST = "transductive_clustering", "soft_kmeans", "simple_shot"
UNREGULARISED = "unregularised"
"""Name of the regularised model without its Laplacian, which is no method of its own."""
SOURCE = (
    "Transductive Few-Shot Learning: Clustering is All You Need? (arXiv:2106.09516), tables in its "
    "public repository; data and margin are this repository's"
)
THEOREM = "arXiv:2106.09516, convergence of the bound optimiser; 1e-5 is for float32 rounding"
CLAIMS = (
    Claim("At 1 shot the regularised model is above plain K-means",
          "regularised_over_kmeans", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="unregularised_over_kmeans",
          says="Clustering with a graph changes accuracy at 1 shot by {mean:+.1p} points over "
          "K-means ({accuracy_5way_1shot_transductive_clustering:.1%} against "
          "{accuracy_5way_1shot_soft_kmeans:.1%}; the nearest example has "
          "{accuracy_5way_1shot_simple_shot:.1%})"),
    Claim("At 1 shot the regularised model is above SimpleShot by 3 points",
          "regularised_over_simple_shot", ">=", 0.03, SOURCE,
          stated="2026-11-24", null="shifted_over_simple_shot",
          says="Clustering the queries changes accuracy at 1 shot by {mean:+.1p} points over the "
          "nearest example"),
    Claim("The energy never increases: largest relative increase of an iteration",
          "energy_increase", "<=", 1e-5, THEOREM,
          stated="2026-11-24", null="energy_increase_directed", any_data=True,
          says="The worst iteration changes the energy by {mean:+.0e} of it; with a directed "
          "graph, outside the theorem, by {energy_increase_directed:+.0e}"),
)  # fmt: skip
CAPTIONS = {
    "table.png": "Accuracy (%) with 95% interval over episodes of one seed, by method and kind of "
    "episodes.",
    "accuracy.png": "Accuracy (%) with 95% interval over episodes of one seed, balanced queries.",
    "accuracy_imbalanced.png": "Accuracy (%) with 95% interval over episodes of one seed, "
    "Dirichlet-imbalanced queries.",
    "search.png": "Accuracy on validation episodes against λ and neighbours; bands: 95% intervals "
    "over episodes of one seed.",
    "energy.png": "Energy of the regularised model less its start, mean over novel episodes, "
    "against iterations, by λ; bands: one standard deviation over episodes.",
    "assignments.png": "An episode in two dimensions: nearest prototype and regularised model.",
    "loss.png": "Base training: cross-entropy with smoothed labels against steps.",
}
PICTURE = "accuracy.png"
RANGES = base_training.RANGES


def task(config: Any) -> Task:
    """The base training of a config whose features are trained in its run."""
    if config.features.of != "training":
        raise UserError(
            f"features.of is {config.features.of!r}, with which {config.experiment} trains "
            "nothing; expected 'training'"
        )
    return base_training.task(config)


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return base_training.encoder(config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses options on the validation part, measures on the novel part, draws."""
    check(config)
    features = load_features(config, run)
    started = time.perf_counter()
    searches: dict[Setting, dict[str, Search]] = {}
    accuracies: dict[Setting, dict[str, np.ndarray]] = {}
    table: dict[Setting, dict[str, tuple[float, float]]] = {}
    tried = {name: fewshot.combinations(config.methods[name].to_dict()) for name in config.compared}
    metrics: dict[str, float] = {f"tries_{name}": max(1, n) for name, n in tried.items()}
    for setting in common.settings(config):
        balanced = setting._replace(concentration=None)
        if balanced not in searches:
            searches[balanced] = common.choose(config, balanced, features["validation"])
            for name, found in searches[balanced].items():
                chosen = found.chosen.items()
                numbers = {k: v for k, v in chosen if isinstance(v, int | float)}
                # Words such as CL2N, which is transductive, have a name each.
                numbers |= {f"{k}_is_{v}": 1 for k, v in chosen if isinstance(v, str)}
                metrics |= {f"chosen_{setting.name}_{name}_{k}": v for k, v in numbers.items()}
                options = config.methods[name].to_dict()
                metrics |= common.edges(options, found.options, f"{setting.name}_{name}")
        accuracies[setting] = own = common.compare(
            config, setting, features["novel"], searches[balanced]
        )
        table[setting] = {name: fewshot.mean_and_interval(each) for name, each in own.items()}
        for name, (mean, half) in table[setting].items():
            metrics[f"accuracy_{setting.name}_{name}"] = mean
            metrics[f"interval_{setting.name}_{name}"] = half
    metrics["seconds_episodes"] = time.perf_counter() - started
    first = Setting(config.episodes.ways[0], 1, config.episodes.queries)
    metrics |= differences(config, first, features["novel"], accuracies[first], searches[first])
    drawing.draw_accuracies(run.figure, table, over="episodes of one seed")
    search, novel = searches[first][REGULARISED], features["novel"]
    drawing.draw_search(run.figure, search, first.title)
    drawn = common.draw_episodes(config, novel, first, count=config.energy.episodes)
    weights = {*config.energy.laplacian_weights, float(search.options["laplacian_weight"])}
    courses = fewshot.trajectories(novel[0], drawn, weights, ways=first.ways, **search.options)
    metrics["energy_increase"] = max(map(fewshot.largest_increase, courses.values()))
    # An edge that does not return is no term of any energy, as the theorem asks.
    directed = search.options | {"graph": "directed"}
    others = fewshot.trajectories(novel[0], drawn, weights, ways=first.ways, **directed)
    metrics["energy_increase_directed"] = max(map(fewshot.largest_increase, others.values()))
    drawing.draw_energy(run.figure, courses)
    shown = fewshot.picture(novel[0], drawn, ways=first.ways, **search.options)
    drawing.draw_picture(run.figure, shown)
    return metrics


def differences(
    config: Any,
    setting: Setting,
    novel: common.Labelled,
    accuracies: Mapping[str, Float[np.ndarray, " e"]],
    searches: Mapping[str, Search],
) -> dict[str, float]:
    """Measures the claims' nulls on the methods' own episodes, and compares what the claims do.

    Args:
      config: The run's config.
      setting: The kind of episodes that the claims are about.
      novel: Features and labels of the novel classes.
      accuracies: Accuracy of each method in each of the setting's episodes, see `common.compare`.
      searches: Options of each method.

    Returns:
      What the claims compare, with the ends of its interval over episodes.
    """
    without = searches[REGULARISED].options | {"laplacian_weight": 0.0}
    nulls = {
        SHIFTED: partial(common.shifted, **searches[NEAREST].options),
        UNREGULARISED: partial(fewshot.transductive_clustering, **without),
    }
    drawn = common.draw_episodes(config, novel, setting, count=config.episodes.count)
    found = dict(accuracies)
    for name, method in nulls.items():
        found[name] = common.evaluate(config, method, novel[0], drawn, setting)
    metrics: dict[str, float] = {}
    for name, first, second in (
        ("regularised_over_simple_shot", REGULARISED, NEAREST),
        ("shifted_over_simple_shot", SHIFTED, NEAREST),
        ("regularised_over_kmeans", REGULARISED, PLAIN),
        ("unregularised_over_kmeans", UNREGULARISED, PLAIN),
    ):
        metrics |= common.difference(name, found[first], found[second])
    return metrics


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare, and a known transform."""
    common.check_transform(config)
    for name in config.compared:
        fewshot.find_method(name)
        if name not in config.methods:
            raise UserError(f"compared names {name!r}, whose options methods lacks")
    missing = [name for name in (REGULARISED, PLAIN, NEAREST) if name not in config.compared]
    if missing:
        raise UserError(f"compared lacks {missing[0]!r}, which the claims are about")
    common.check_shots(config)
