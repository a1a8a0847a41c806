"""Few-shot methods over several splits of the classes, each with an encoder of its own.

A split has base, validation and novel classes of its own, an encoder of its own, and options chosen
on its own validation classes, of which every method has equally many to choose from; SimpleShot,
which has hardly any, may have fewer. Reported are means over splits with Student's interval; where
methods are compared it is that of their differences on the same episodes. Between splits vary which
classes are base, validation and novel, the encoder where one is trained, and the episodes. All
splits are drawn from the same classes and overlap in them: their values are not independent, for
which Student's interval is corrected by the number of novel classes over that of the others, as
Nadeau and Bengio correct random splits of examples.

The options that a split chose, `chosen_<kind>_<method>_<option>`, stand in its own summary, in
`methods/split_<seed>` of the run directory. Of an option with more than two candidates
`<option>_at_edge_<kind>_<method>` is the share of splits that chose the smallest or the largest,
beside which a better one may lie.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common.class_parts import over_splits
from experiments.common.comparison import for_each
from experiments.fewshot import common, compare, drawing
from experiments.fewshot.common import SHIFTED
from experiments.fewshot.compare import NEAREST, PLAIN, REGULARISED, UNREGULARISED
from experiments.fewshot.splits_measures import judged, measure_split
from experiments.ranges import SIZE
from rml import fewshot
from rml.encoder import ImageEmbedder
from rml.errors import UserError, unknown
from rml.fewshot import Setting
from rml.training import Claim, RunDirectory, Task, TrainState

TIM, ALPHA_TIM, TRANSPORT = "tim", "alpha_tim", "pt_map"
COMPARED = (NEAREST, SHIFTED, PLAIN, REGULARISED, TIM, ALPHA_TIM, TRANSPORT)
TWINS = (
    "on emoji many queries have a twin of another skin tone in the support, see "
    "configs/fewshot/compare_emoji.py"
)
SOURCE = f"{compare.SOURCE}; {TWINS}"
IMBALANCE = (
    "Realistic Evaluation of Transductive Few-Shot Learning (arXiv:2204.11181), tables of 1 and 5 "
    f"shots; data and margin are this repository's; {TWINS}"
)
STATED = "2026-11-26"
CLAIMS = (
    Claim("At 1 shot the regularised model is above plain K-means",
          "regularised_over_kmeans", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="unregularised_over_kmeans",
          says="Clustering with a graph changes accuracy at 1 shot by {mean:+.1p} points over "
          "K-means ({accuracy_20way_1shot_transductive_clustering:.1%} against "
          "{accuracy_20way_1shot_soft_kmeans:.1%}; the nearest example has "
          "{accuracy_20way_1shot_simple_shot:.1%})"),
    Claim("At 1 shot the regularised model is above SimpleShot by 3 points",
          "regularised_over_simple_shot", ">=", 0.03, SOURCE,
          stated=STATED, null="shifted_over_simple_shot",
          says="Clustering the queries changes accuracy at 1 shot by {mean:+.1p} points over the "
          "nearest example"),
    Claim("Imbalanced queries cost PT-MAP, which asks for equally many of each class, 3 points",
          "pt_map_lost", ">=", 0.03, IMBALANCE, stated=STATED, null="simple_shot_lost",
          says="Imbalanced queries cost PT-MAP {mean:.1p} points, the nearest example "
          "{simple_shot_lost:.1p}"),
    Claim("Where queries are imbalanced α-TIM is above TIM by 1 point",
          "alpha_tim_over_tim_imbalanced", ">=", 0.01, IMBALANCE,
          stated=STATED, null="alpha_tim_over_tim",
          says="α-TIM changes accuracy over TIM by {mean:+.1p} points on imbalanced queries, by "
          "{alpha_tim_over_tim:+.1p} on balanced ones"),
)  # fmt: skip
CAPTIONS = {
    name: f"{text.rstrip('.')}: mean over splits with its 95% interval."
    for name, text in {
        "table.png": "Accuracy (%) by method and kind of episodes.",
        "accuracy.png": "Accuracy (%), balanced queries.",
        "accuracy_imbalanced.png": "Accuracy (%), Dirichlet-imbalanced queries.",
    }.items()
}
PICTURE = "accuracy.png"
RANGES = {"splits": SIZE}


def task(config: Any) -> Task:
    """The base training of a config whose features are trained in its run."""
    return compare.task(config)


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return compare.encoder(config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses and measures in each split, compares over splits, draws."""
    tries = check(config)
    # Seeds of different runs have no split in common.
    seeds = range(config.seed * config.splits, (config.seed + 1) * config.splits)

    def measure(name: str, inner: RunDirectory) -> tuple[Mapping[str, float], None]:
        if (done := inner.summary()) is not None:
            return done["metrics"], None
        return measure_split(config, inner, int(name.removeprefix("split_")))[0], None

    found = for_each(run, [f"split_{seed}" for seed in seeds], measure)
    splits = [metrics for metrics, _ in found.values()]
    metrics: dict[str, float] = {f"tries_{name}": n for name, n in tries.items()}
    table: dict[Setting, dict[str, tuple[float, float]]] = {}
    for setting in common.settings(config):
        table[setting] = {}
        for name in config.compared:
            place = f"{setting.name}_{name}"
            mean, low, high = over_splits(config, [own[f"accuracy_{place}"] for own in splits])
            metrics[f"accuracy_{place}"] = float(mean)
            metrics[f"interval_{place}"] = half = float(high - low) / 2
            table[setting][name] = metrics[f"accuracy_{place}"], half
    # Choices are shown by shares of splits, since their mean need not be a choice.
    for name in (name for name in splits[0] if "_at_edge_" in name):
        metrics[name] = float(np.mean([own[name] for own in splits]))
    each = [differences(config, own) for own in splits]
    for name in each[0]:
        mean, low, high = over_splits(config, [own[name] for own in each])
        metrics[name] = float(mean)
        if len(splits) > 1:
            metrics |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    drawing.draw_accuracies(run.figure, table, over="splits")
    return metrics


def differences(config: Any, metrics: Mapping[str, float]) -> dict[str, float]:
    """What the claims compare, in one split."""
    first = judged(config)
    uneven = first._replace(concentration=config.episodes.concentration)

    def of(name: str, setting: Setting = first) -> float:
        return metrics[f"accuracy_{setting.name}_{name}"]

    def lead(name: str, setting: Setting = first) -> float:
        return of(name, setting) - of(NEAREST, setting)

    more = first._replace(shots=5)
    return {
        "regularised_over_simple_shot": lead(REGULARISED),
        "shifted_over_simple_shot": lead(SHIFTED),
        "regularised_over_kmeans": of(REGULARISED) - of(PLAIN),
        "unregularised_over_kmeans": of(UNREGULARISED) - of(PLAIN),
        "regularised_lead_lost": lead(REGULARISED) - lead(REGULARISED, more),
        "shifted_lead_lost": lead(SHIFTED) - lead(SHIFTED, more),
        "pt_map_lost": of(TRANSPORT) - of(TRANSPORT, uneven),
        "simple_shot_lost": of(NEAREST) - of(NEAREST, uneven),
        "alpha_tim_over_tim_imbalanced": of(ALPHA_TIM, uneven) - of(TIM, uneven),
        "alpha_tim_over_tim": of(ALPHA_TIM) - of(TIM),
    }


def check(config: Any) -> dict[str, int]:
    """Number of options that each method chooses from: equally many but for SimpleShot's.

    Raises:
      UserError: The numbers differ, the config lacks what the claims compare, or its transform of
        features is unknown.
    """
    common.check_transform(config)
    missing = [name for name in COMPARED if name not in config.compared]
    if missing:
        raise UserError(f"compared lacks {missing[0]!r}, which the claims are about")
    tries = {}
    for name in config.compared:
        common.find_method(name)
        if name not in config.methods:
            raise UserError(f"compared names {name!r}, whose options methods lacks")
        tries[name] = len(fewshot.choices(config.methods[name].to_dict()))
    # SimpleShot has hardly any options, so that it may have fewer.
    others = {name: n for name, n in tries.items() if name not in (NEAREST, SHIFTED)}
    if len(set(others.values())) > 1 or max(tries.values()) > max(others.values()):
        raise UserError(f"methods have {tries} combinations of options, expected equally many")
    if config.episodes.judged not in config.episodes.kinds:
        raise unknown("episodes.judged", config.episodes.judged, config.episodes.kinds)
    first, names = judged(config), [setting.name for setting in common.settings(config)]
    uneven = first._replace(concentration=config.episodes.concentration)
    if first.shots != 1 or not {uneven.name, first._replace(shots=5).name} <= set(names):
        raise UserError(
            f"episodes.kinds has {', '.join(names)}, expected that {config.episodes.judged} has 1 "
            "shot, is imbalanced too, and stands beside 5 shots of as many ways"
        )
    return tries
