"""Few-shot methods on the same episodes of the same features: the papers' tables in shape.

Options with several candidates are chosen on validation episodes of as many ways and shots, as Ziko
et al. choose λ for each number of shots (public code of arXiv:2106.09516). Validation episodes are
balanced: that novel ones are not is what a method is not told.
"""

import time
from typing import Any

from experiments.fewshot import drawing, episodes
from experiments.fewshot.encoders import load_features
from experiments.fewshot.episodes import Setting
from experiments.fewshot.features import Features
from experiments.fewshot.trajectory import largest_increase, picture, trajectories
from rml.errors import UserError
from rml.training import Claim, Progress, RunDirectory

REGULARISED, PLAIN, NEAREST = "transductive_clustering", "soft_kmeans", "simple_shot"
SOURCE = (
    "Transductive Few-Shot Learning: Clustering is All You Need? (arXiv:2106.09516), tables in its "
    "public repository; data and margin are this repository's"
)
THEOREM = "arXiv:2106.09516, convergence of the bound optimiser; 1e-5 is for float32 rounding"
CLAIMS = (
    Claim("At 1 shot the regularised model is above SimpleShot by 3 points",
          "regularised_over_simple_shot", ">=", 0.03, SOURCE),
    Claim("At 1 shot the regularised model is above plain K-means by half a point",
          "regularised_over_kmeans", ">=", 0.005, SOURCE),
    Claim("At 1 shot plain K-means is within 3 points of the regularised model",
          "regularised_over_kmeans", "<=", 0.03, SOURCE),
    Claim("The energy never increases: largest relative increase of an iteration",
          "energy_increase", "<=", 1e-5, THEOREM),
)  # fmt: skip
CAPTIONS = {
    "table.png": "Accuracy (%) with 95% interval, by method and kind of episodes.",
    "accuracy.png": "Accuracy (%) with 95% interval, balanced queries.",
    "accuracy_imbalanced.png": "Accuracy (%) with 95% interval, Dirichlet-imbalanced queries.",
    "search.png": "Accuracy on validation episodes against λ and neighbours; bands: 95% intervals.",
    "energy.png": "Energy of the regularised model against iterations: novel episodes.",
    "assignments.png": "An episode in two dimensions: nearest prototype and regularised model.",
    "loss.png": "Base training: cross-entropy with smoothed labels against steps.",
}


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses options on the validation part, measures on the novel part, draws."""
    check(config)
    features = load_features(config, run)
    features = episodes.transformed(features, config.features.transform)
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    table: dict[Setting, dict[str, tuple[float, float]]] = {}
    chosen: dict[Setting, dict[str, Any]] = {}
    searches: dict[Setting, dict[str, episodes.Search | None]] = {}
    for setting in episodes.settings(config):
        balanced = setting._replace(concentration=None)
        if setting == balanced:
            chosen[setting], searches[setting] = choose(config, setting, features, metrics)
        table[setting] = compare(config, setting, features, chosen[balanced], metrics)
    metrics["seconds_episodes"] = time.perf_counter() - started
    first = Setting(config.episodes.ways[0], 1)
    best = {name: mean for name, (mean, _) in table[first].items()}
    metrics["regularised_over_simple_shot"] = best[REGULARISED] - best[NEAREST]
    metrics["regularised_over_kmeans"] = best[REGULARISED] - best[PLAIN]
    courses = trajectories(
        features.novel, config, first, chosen[first][REGULARISED], config.energy.laplacian_weights
    )
    metrics["energy_increase"] = max(largest_increase(one) for one in courses.values())
    drawing.draw_table(run.figure, table)
    drawing.draw_search(run.figure, searches[first][REGULARISED], first)
    drawing.draw_energy(run.figure, courses)
    shown = picture(features.novel, config, first, chosen[first][REGULARISED])
    drawing.draw_picture(run.figure, shown)
    return metrics


def choose(config: Any, setting: Setting, features: Features, metrics: dict[str, float]) -> Any:
    """Each method's options for one kind of episodes, and how they were searched."""
    chosen, searches = {}, {}
    drawn = episodes.draw_episodes(
        features.validation, config, setting, count=config.episodes.validation, seed=1
    )
    for name in config.compared:
        chosen[name], searches[name] = episodes.choose(
            name, config.methods[name], features.validation[0], drawn, config, setting
        )
        search = searches[name]
        for option in search.values if search is not None else ():
            if isinstance(chosen[name][option], int | float):
                metrics[f"chosen_{setting.name}_{name}_{option}"] = chosen[name][option]
    return chosen, searches


def compare(
    config: Any,
    setting: Setting,
    features: Features,
    options: dict[str, Any],
    metrics: dict[str, float],
) -> dict[str, tuple[float, float]]:
    """Accuracy and interval of every method on one kind of novel episodes."""
    table = {}
    drawn = episodes.draw_episodes(features.novel, config, setting, count=config.episodes.count)
    for name in config.compared:
        started = time.perf_counter()
        mean, half = episodes.measure(
            name, options[name], features.novel[0], drawn, config, setting
        )
        table[name] = mean, half
        metrics[f"accuracy_{setting.name}_{name}"] = mean
        metrics[f"interval_{setting.name}_{name}"] = half
        Progress().note(
            f"{setting.title}: {name} {100 * mean:.2f} ± {100 * half:.2f} "
            f"({time.perf_counter() - started:.1f} s)"
        )
    return table


def check(config: Any) -> None:
    """Raises `UserError` unless the config has what the claims compare."""
    for name in config.compared:
        episodes.find_method(name)
        if name not in config.methods:
            raise UserError(f"compared names {name!r}, whose options methods lacks")
    missing = [name for name in (REGULARISED, PLAIN, NEAREST) if name not in config.compared]
    if missing:
        raise UserError(f"compared lacks {missing[0]!r}, which the claims are about")
    if 1 not in config.episodes.shots:
        raise UserError(f"episodes.shots is {tuple(config.episodes.shots)}, expected 1 among them")
