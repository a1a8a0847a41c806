"""What TGeo-KD is compared with: rules and learned ratios, each with equally many tries."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.encoders import initializer
from experiments.common.many import replaced
from experiments.distillation.noisy import Bed, classifier
from experiments.distillation.tgeokd_students import LOSSES, Students, train_together
from rml.distillation.trilateral import FORMS
from rml.errors import UserError, unknown
from rml.training import Progress, RunDirectory

AGAIN = 1_000
"""What is added to the seed of each further student of a setting."""
RULES = ("constant", "linear", "cosine", "correctness", "entropy", "wls", "annealing", "dkd")
"""Rules by which ratios are given. Two have other losses: annealing, whose ratio is 1 in its first
stage and 0 in the second, and DKD, at equal weights."""
SCALAR = dict.fromkeys(("relations.points", "relations.sg", "relations.st", "relations.tg",
                        "relations.inter"), 0.0)  # fmt: skip
"""Nothing is read: of the network its offsets are left, one number for all images."""
LEARNED: dict[str, dict[str, Any]] = {
    "trilateral": {}, "scalar": SCALAR, LOSSES: {"relations.form": LOSSES},
}  # fmt: skip
"""Learned ratios, and what of the config they change. The last reads the losses of an image, as
Meta-Weight-Net does (Shu et al., arXiv:1902.07379), and stands for RW-KD (Lu et al., Findings of
EMNLP 2021), whose meta-learner weighs both losses too; its paper could not be read."""
VARIANTS: dict[str, dict[str, Any]] = {
    "sg_tg": {"relations.st": 0.0, "relations.inter": 0.0},
    "sg_tg_st": {"relations.inter": 0.0},
    "no_points": {"relations.points": 0.0},
    "no_points_sg_tg": {"relations.points": 0.0, "relations.st": 0.0, "relations.inter": 0.0},
    "no_points_sg_tg_st": {"relations.points": 0.0, "relations.inter": 0.0},
    "shuffled": {"relations.own": 0.0},
    "again": {},
    "signed": {"relations.form": "signed"},
    "norm": {"relations.form": "norm"},
}
"""TGeo-KD with the options that were chosen for it, but for these; "again" has other seeds. The
side between S and T can be made of these points: without both nothing tells of it."""
KD = ("constant", 0.9, 4.0)
"""Ratio and temperature that nobody has chosen: those of the public benchmark of CRD's authors."""
KD_AGAIN = ("kd_again", *KD[1:])
"""The same with other seeds."""
Name = Any
Changes = Mapping[Name, Mapping[str, Any]]


class Setting(NamedTuple):
    """What one setting of a side is called.

    Attributes:
      side: The side: a rule, a learned ratio.
      value: The number of the rule, or the learning rate of the network of ratios.
      temperature: That of the teacher and the student.
      rate: The learning rate of the student.
    """

    side: str
    value: float
    temperature: float
    rate: float


class Trained(NamedTuple):
    """Students of one program, some of each setting.

    Attributes:
      changes: What each setting changes of the config, by its name.
      students: All of them; those of a setting stand together.
      right: Whether each names each test image rightly, or what else the bed judges by,
        [students, n].
    """

    changes: Changes
    students: Students
    right: np.ndarray

    def rows(self, name: Name) -> slice:
        """Where the students of a setting stand."""
        each = len(self.right) // len(self.changes)
        first = list(self.changes).index(name) * each
        return slice(first, first + each)

    def accuracy(self, name: Name) -> float:
        """What a setting's students are judged by on validation images, their mean."""
        return float(self.students.accuracy[self.rows(name)].mean())

    def named(self, name: Name) -> np.ndarray:
        """Of each test image the share of a setting's students that name it rightly, or such."""
        return np.asarray(self.right[self.rows(name)].mean(0))

    def parts(self, name: Name) -> tuple[Any, Any]:
        """Parameters of a setting's students, and of their ratios."""
        rows = self.rows(name)
        params, omega, _ = self.students
        return jax.tree.map(lambda leaf: leaf[rows], (params, omega))

    def best(self, names: Iterable[Name]) -> Name:
        """The setting with the best accuracy on validation images."""
        return max(names, key=self.accuracy)


def trained(
    config: Any, run: RunDirectory, name: str, changes: Changes, bed: Bed, *, learned: bool
) -> Trained:
    """Trains `config.students` students of each setting, of different seeds, as one program."""
    configs = [
        replaced(config, {**change, "seed": change.get("seed", config.seed) + AGAIN * i})
        for change in changes.values()
        for i in range(config.students)
    ]
    students = train_together(config, run, name, configs, bed, learned=learned)
    right = bed.judge(classifier(config), {"params": students.params}, bed.test)
    return Trained(changes, students, right)


def of_rules(config: Any) -> dict[Name, dict[str, Any]]:
    """Settings of all rules, and what of the config each changes."""
    found: dict[Name, dict[str, Any]] = {}
    for side in RULES:
        weights = {f"given.{other}": float(other == side) for other in RULES}
        for own in settings(config, side, config.tries.get(side, config.tries.constant)):
            found[own] = weights | {"given.setting": own.value} | shared(own)
    other = {"seed": config.seed + AGAIN * config.students}
    again = {Setting(*KD_AGAIN, own.rate): found[own] | other for own in kind(found, *KD)}
    return found | again


def of_learned(config: Any, *sides: str) -> dict[Name, dict[str, Any]]:
    """Settings of learned ratios likewise."""
    return {
        own: LEARNED[side] | {"learned.rate": own.value} | shared(own)
        for side in sides
        for own in settings(config, side, config.tries.rate)
    }


def settings(config: Any, side: str, values: Iterable[float]) -> list[Setting]:
    """The settings of a side: each value with each temperature and each learning rate."""
    rates, temperatures = config.tries.learning_rate, config.tries.temperature
    return [Setting(side, *own) for own in product(values, temperatures, rates)]


def shared(own: Setting) -> dict[str, float]:
    """What of the config settings of all sides change."""
    return {"loss.temperature": own.temperature, "optimizer.learning_rate": own.rate}


def kind(changes: Changes, *wanted: Any) -> list[Name]:
    """The settings of a side or, of those, with a value, or with a value and a temperature."""
    return [name for name in changes if name[: len(wanted)] == wanted]


def of_variants(config: Any, chosen: Mapping[str, Any], form: str) -> dict[Name, dict[str, Any]]:
    """TGeo-KD's variants whose relations have a form; one program trains those of a form.

    Variants that name no form have that of the config, which the chosen ratio has.
    """
    other, plain = {"again": {"seed": config.seed + AGAIN * config.students}}, config.relations.form
    return {
        name: {"relations.form": plain, **chosen, **own, **other.get(name, {})}
        for name, own in VARIANTS.items()
        if own.get("relations.form", plain) == form
    }


class Sides(NamedTuple):
    """All sides, trained and chosen.

    Attributes:
      given: Students whose ratios follow rules.
      learned: Program of the students whose ratios are learned, by side.
      variants: Program with the students of each variant, by its name.
      chosen: Setting with the best mean on validation images, by side.
      right: Mean over a side's students of what they are judged by, of each test image, by the
        side's name.
    """

    given: Trained
    learned: Mapping[str, Trained]
    variants: Mapping[str, Trained]
    chosen: Mapping[str, Name]
    right: Mapping[str, np.ndarray]

    def options(self) -> dict[str, float]:
        """Metrics that say what was chosen, and of how many."""
        metrics: dict[str, float] = {}
        for side, name in self.chosen.items():
            if side in (*RULES, *LEARNED):
                changes = self.learned.get(side, self.given).changes
                metrics[f"tries_{side}"] = len(kind(changes, side))
            values = (f"setting_{side}", f"temperature_{side}", f"rate_{side}")
            metrics |= dict(zip(values, name[1:], strict=True))
        return metrics

    def of_images(self, config: Any, variant: str) -> tuple[Any, Any, Any]:
        """The config of the chosen learned ratio or a variant of it, its students, their ratios."""
        found, name = self.learned["trilateral"], self.chosen["trilateral"]
        if variant:
            found, name = self.variants[variant], variant
        return replaced(config, dict(found.changes[name])), *found.parts(name)


def train_sides(config: Any, run: RunDirectory, bed: Bed) -> Sides:
    """Trains the students of all sides, chooses on validation images, trains variants."""
    given = trained(config, run, "given", of_rules(config), bed, learned=False)
    ours, by_losses = (
        trained(config, run, name, of_learned(config, *sides), bed, learned=True)
        for name, sides in (("learned", ("trilateral", "scalar")), (LOSSES, (LOSSES,)))
    )
    programs = {"trilateral": ours, "scalar": ours, LOSSES: by_losses}
    chosen = {side: given.best(kind(given.changes, side)) for side in RULES}
    chosen |= {side: own.best(kind(own.changes, side)) for side, own in programs.items()}
    # Of ratios that nobody chooses the learning rate is chosen; without teacher there is no
    # temperature.
    ratios = {"kd": KD, "ce": ("constant", 0.0, config.tries.temperature[0])}
    chosen |= {side: given.best(kind(given.changes, *own)) for side, own in ratios.items()}
    Progress().note(f"chosen on validation images: {chosen}")
    fixed, learned, kd = (chosen[side] for side in ("constant", "trilateral", "kd"))
    whole = trained(
        config, run, "fixed_all", {name: given.changes[name] for name in (fixed, kd)},
        bed.with_validation(), learned=False,
    )  # fmt: skip
    variants: dict[str, Trained] = {}
    for form in dict.fromkeys((config.relations.form, "signed", "norm")):
        changes = of_variants(config, ours.changes[learned], form)
        found = trained(config, run, f"variants_{form}", changes, bed, learned=True)
        variants |= dict.fromkeys(changes, found)
    right = {side: given.named(chosen[side]) for side in RULES}
    right |= {name: found.named(name) for name, found in variants.items()}
    right |= {
        "tgeokd": ours.named(learned),
        "scalar": ours.named(chosen["scalar"]),
        LOSSES: by_losses.named(chosen[LOSSES]),
        "fixed": right.pop("constant"),
        "fixed_all": whole.named(fixed),
        "oracle": max(map(given.named, kind(given.changes, "constant")), key=np.mean),
        "ce": given.named(chosen["ce"]),
        "kd": given.named(kd),
        "kd_all": whole.named(kd),
        "kd_again": given.named(Setting(*KD_AGAIN, kd.rate)),
    }
    return Sides(given, programs, variants, chosen, right)


def check(config: Any) -> None:
    """Raises `UserError` unless sides can be compared, and have the tries that claims read."""
    init = initializer(classifier(config), config)
    kept = set(jax.eval_shape(init, jax.random.key(0))) - {"params"}
    if kept:
        raise UserError(
            f"model keeps {', '.join(sorted(kept))}, expected one without, such as "
            "--config.model.norm=layer: the step ahead is not committed"
        )
    if config.relations.form not in FORMS:
        raise unknown("relations.form", config.relations.form, FORMS)
    tries = config.tries
    shared_by_all = ("temperature", "learning_rate")
    counts = {name: len(own) for name, own in tries.items() if name not in shared_by_all}
    if len(set(counts.values())) > 1:
        raise UserError(f"tries has {counts} settings, expected equally many of each")
    if not {0.0, KD[1]} <= set(tries.constant) or KD[2] not in tries.temperature:
        raise UserError(
            f"tries.constant is {tuple(tries.constant)} and tries.temperature "
            f"{tuple(tries.temperature)}, expected 0, {KD[1]} and {KD[2]} among them"
        )
