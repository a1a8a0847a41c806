"""Fusion by optimal transport of transformers that were trained from different seeds.

Imfeld et al., Transformer Fusion with Optimal Transport, arXiv:2310.05719. Two small vision
transformers on images of clothes, a wider one beside them, and two small BERTs on docstrings and
code. One is aligned with the other, softly or by permutations, by activations or by weights, under
every residual policy, and averaged with it. Beside it stand the plain average, the ensemble, both
parents, one permutation of stream and whole heads, uniform transport, and transport of units out of
their places, the null. Soft, hard and joint fusion have equally many tries on validation images;
policies and nulls take the options of soft fusion, which were chosen for the mean of maps; the
others have none. Then all are fine-tuned for the same steps, with the same learning rates to choose
from. Models, data and margins are this repository's.
"""

from typing import Any

import numpy as np

from experiments.merging import ot_figures, ot_models, ot_text
from experiments.merging.ot_models import Sources, right
from experiments.merging.ot_pairs import (
    ONE,
    POLICIES,
    SHARES,
    UNIFORM,
    Pair,
    Searched,
    along,
    blended,
    differences,
    families,
    search,
)
from experiments.merging.ot_tuning import after_tuning
from experiments.ranges import ABOVE_0, Range
from rml.errors import UserError
from rml.merging import marginal_error
from rml.training import Claim, Progress, RunDirectory

SOURCE = "arXiv:2310.05719; models, data and margin are this repository's"
STATED = "2026-11-26"
CLAIMS = (
    Claim("Fine-tuned, the fused model is above the better parent, fine-tuned as long",
          "tuned_over_parents", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="vanilla_tuned_over_parents",
          says="Fused by transport and fine-tuned, two models change accuracy by {mean:+.1p} "
          "points over the better one, tuned as long; their plain average by "
          "{vanilla_tuned_over_parents:+.1p}"),
    Claim("Soft fusion is above that by permutations by 2 points",
          "soft_over_hard", ">=", 0.02, SOURCE, stated=STATED, null="uniform_over_hard",
          says="Soft maps change accuracy by {mean:+.1p} points over permutations before any "
          "tuning ({accuracy_soft:.1%}; the plain average {accuracy_vanilla:.1%})"),
    Claim("A model of twice the width fused into a narrow one and fine-tuned is above the narrow "
          "one, fine-tuned as long, by 0.3 points", "wide_tuned_over_narrow", ">=", 0.003,
          f"{SOURCE}; uncertain; the width was changed to twice the narrow one's after a first run",
          stated="2026-11-27", null="wide_exchanged_tuned_over_narrow",
          says="A model of twice the width fused into a narrow one and tuned changes accuracy by "
          "{mean:+.1p} points over the narrow one, tuned as long"),
    Claim("BERT: soft fusion loses 0.1 nats a hidden token less than the plain average",
          "text_gain_soft", ">=", 0.1, SOURCE, stated=STATED, null="text_gain_exchanged",
          says="Two BERTs fused by transport save {mean:+.2f} nats a hidden token over their plain "
          "average ({text_nats_soft:.2f} against {text_nats_vanilla:.2f})"),
)  # fmt: skip
RANGES = {
    "alignment.examples": Range(1, whole=True), "alignment.regs": ABOVE_0,
    "line.points": Range(3, whole=True), "tuning.rates": ABOVE_0,
}  # fmt: skip
CAPTIONS = ot_figures.CAPTIONS
PICTURE = "line.png"
STAGED = True  # fine-tuning begins from the parents and what is fused of them


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains parents, fuses them without and with fine-tuning, and texts' models, draws."""
    check(config)
    # What lacks of images or text is named before anything trains.
    sources, language = ot_models.opened(config), ot_text.opened(config)
    trained = ot_models.parents(config, run, sources)
    first, anchor = trained["narrow"]
    pair = ot_models.paired(config, first, anchor, sources)
    found, searched, metrics = one_shot(config, pair, sources)
    policies = by_policy(config, pair, sources, searched["soft"].options["reg"])
    metrics |= differences(found | policies, {
        "soft_over_vanilla": ("soft", "vanilla"), "soft_over_uniform": ("soft", "uniform"),
        "exchanged_over_vanilla": ("exchanged", "vanilla"),
        "exchanged_over_uniform": ("exchanged", "uniform"), "one_over_vanilla": ("one", "vanilla"),
        "one_exchanged_over_vanilla": ("one exchanged", "vanilla"),
        "soft_over_hard": ("soft", "hard"), "uniform_over_hard": ("uniform", "hard"),
        "mean_over_branch": ("mean", "branch"), "identity_over_branch": ("identity", "branch"),
        "soft_over_weights": ("soft", "weights"), "soft_over_one": ("soft", "one"),
        **{f"{kind}_over_soft": (kind, "soft") for kind in ("kept", "shared", "joint")},
    })  # fmt: skip
    tuned, more = after_tuning(config, run, sources, pair, trained["wide"][0], searched["soft"])
    line = along(
        pair, searched["soft"].options, lambda params: right(config, params, sources.test),
        config.line.points,
    )  # fmt: skip
    text, along_text = ot_text.measured(config, run, language)
    metrics |= more | text
    maps = pair.align(**searched["soft"].options).transports
    metrics["marginal_error"] = max(float(marginal_error(own).max()) for own in maps.values())
    ot_figures.draw(
        run, config.alignment.regs, found, policies, searched, tuned, line, along_text, maps
    )  # fmt: skip
    return {name: float(value) for name, value in metrics.items()}


def tries(config: Any) -> dict[str, int]:
    """Learning rates and entropies that validation images choose from, by what is fine-tuned.

    What is fused counts the options of its fusion, too. Those without fine-tuning are metrics.
    """
    rates, entropies = len(config.tuning.rates), len(config.alignment.regs)
    fused = ("soft", "exchanged", "wide", "wide_exchanged")
    found = dict.fromkeys(("parent_0", "parent_1", "vanilla"), rates)
    found |= dict.fromkeys(fused, rates + entropies)
    return {f"tuned_{name}": count for name, count in found.items()}


def check(config: Any) -> None:
    """Raises `UserError` unless there are values to try, and hard tries for all soft ones."""
    if not 1 <= len(config.alignment.regs) <= len(SHARES):
        raise UserError(
            f"alignment.regs has {len(config.alignment.regs)} values, expected 1 to "
            f"{len(SHARES)}, as many as policies that hard alignment tries"
        )
    if not config.tuning.rates:
        raise UserError("tuning.rates is empty, expected at least one learning rate")


def one_shot(
    config: Any, pair: Pair, sources: Sources
) -> tuple[dict[str, np.ndarray], dict[str, Searched], dict[str, float]]:
    """Which test images are named rightly, by what was made of two models; what was chosen."""
    searched = {
        name: search(pair, tries, lambda params: right(config, params, sources.validation))
        for name, tries in families(config.alignment.regs).items()
    }
    chosen = searched["soft"].options
    models = {
        "parent 0": pair.first, "parent 1": pair.anchor,
        "vanilla": blended(pair.first, pair.anchor, 0.5),
        **{name: own.params for name, own in searched.items()},
        "one": pair.fuse(**ONE), "one exchanged": pair.exchanged(config.seed).fuse(**ONE),
        "uniform": pair.fuse(reg=UNIFORM),
        "exchanged": pair.exchanged(config.seed).fuse(**chosen),
        "aligned alone": pair.align(**chosen).params,
    }  # fmt: skip
    found = {name: right(config, params, sources.test) for name, params in models.items()}
    found["ensemble"] = ot_models.ensembled(config, [pair.first, pair.anchor], sources.test)
    metrics = {f"reg_{n}": own.options["reg"] for n, own in searched.items() if n != "hard"}
    metrics |= {f"tries_{name}": float(len(own.scores)) for name, own in searched.items()}
    for name, own in found.items():
        metrics[f"accuracy_{name.replace(' ', '_')}"] = float(own.mean())
        Progress().note(f"{name}: {100 * own.mean():.1f}% of test images")
    return found, searched, metrics


def by_policy(config: Any, pair: Pair, sources: Sources, reg: float) -> dict[str, np.ndarray]:
    """Right test images of soft fusion under every residual policy, at one entropy."""
    return {
        policy: right(config, pair.fuse(residual=policy, reg=reg), sources.test)
        for policy in POLICIES
    }
