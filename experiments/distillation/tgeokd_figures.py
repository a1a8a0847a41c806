"""Figures of the recipe on TGeo-KD."""

import numpy as np

from experiments.common import figures
from experiments.distillation.noisy import Bed
from experiments.distillation.tgeokd_measures import OfImages
from experiments.distillation.tgeokd_sides import Sides, Trained, kind
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "ratios.png": "Learned ratio of every training image over its sides between student and label "
    "and between student and teacher, at the end of the training; darker is more of the teacher. "
    "Left where the teacher's class is the label that is given, right where it is not.",
    "groups.png": "Learned ratios of training images by group at the end of the training.",
    "course.png": "Mean learned ratio of the images of a batch by group against steps, and the "
    "range of students of several seeds.",
    "fixed.png": "Accuracy on test images of fixed ratios by temperature, means over the "
    "students of a setting; the line is that of the ratio that is learned for each image.",
    "sides.png": "Accuracy on test images of every side, with its 95% interval over images.",
}
NAMES = {
    "ce": "label alone", "kd": "ratio 0.9, τ = 4", "fixed": "fixed, chosen",
    "fixed_all": "fixed, with validation", "oracle": "fixed, best on test", "linear": "linear",
    "cosine": "cosine", "correctness": "correctness", "entropy": "entropy", "wls": "WLS",
    "annealing": "annealing", "dkd": "DKD", "scalar": "learned number",
    "losses": "learned, of losses", "tgeokd": "TGeo-KD", "sg_tg": "SG, TG",
    "sg_tg_st": "SG, TG, ST", "no_points": "sides alone", "no_points_sg_tg": "SG, TG alone",
    "no_points_sg_tg_st": "SG, TG, ST alone", "shuffled": "others' relations",
    "signed": "differences", "norm": "lengths",
}  # fmt: skip
"""Sides as figures call them."""


def of_images(run: RunDirectory, own: OfImages, bed: Bed) -> None:
    """Draws ratios over the sides SG and ST, and their distribution by group."""
    with figures.canvas(run.figure("ratios.png"), (2 * figures.COLUMN, 0.95 * figures.COLUMN)) as f:
        low, high = np.quantile(own.ratio, (0.01, 0.99))
        low = min(low, high - 0.01)  # ratios may all be one
        axes = f.subplots(1, 2, sharex=True, sharey=True)
        for ax, rows, title in zip(
            axes, (own.right, ~own.right),
            ("teacher has the label", "teacher has another class"), strict=True,
        ):  # fmt: skip
            drawn = ax.scatter(
                own.sg[rows], own.st[rows], c=own.ratio[rows], cmap="Greys", vmin=low - 0.3 *
                (high - low), vmax=high, s=9, edgecolors="#555555", linewidths=0.25,
            )  # fmt: skip
            ax.set(xlabel="distance of student and label, SG", title=title)
            ax.grid(visible=True)
        axes[0].set_ylabel("distance of student and teacher, ST")
        f.colorbar(drawn, ax=axes, label="learned ratio")
    shown = own.ratio.round(3)
    groups = {name: shown[bed.train["group"] == i] for i, name in enumerate(bed.groups)}
    figures.histogram(
        run.figure("groups.png"), {name: x for name, x in groups.items() if len(x)},
        "learned ratio", "training examples",
    )  # fmt: skip


def of_course(run: RunDirectory, again: Trained, bed: Bed) -> None:
    """Draws the mean ratio by group against steps, of the students with other seeds.

    Steps are left out whose batch has no image of a group, and groups without any.
    """
    rows = again.rows("again")
    path = run.path / "methods" / f"variants_{again.changes['again']['relations.form']}"
    series = {}
    for name in bed.groups:
        found = figures.logged(
            path, {str(i): f"train/ratio_{name}/{i}" for i in range(rows.start, rows.stop)}
        )
        steps = next(iter(found.values()))[0]
        own = np.stack([y for _, y in found.values()])
        there = np.isfinite(own[0])  # all students see the same batches
        if there.any():
            own = own[:, there]
            series[name] = (steps[there], own.mean(0), own.min(0), own.max(0))
    figures.curves(run.figure("course.png"), series, "step", "mean learned ratio")


def of_sides(run: RunDirectory, sides: Sides, measure: str = "accuracy on test images") -> None:
    """Draws what students of fixed ratios are judged by, and of all sides."""
    given, right = sides.given, sides.right
    names = kind(given.changes, "constant")
    series = {}
    for temperature in sorted({name.temperature for name in names}):
        ratios = sorted({name.value for name in names})
        best = [given.best(kind(given.changes, "constant", x, temperature)) for x in ratios]
        series[f"τ = {temperature:g}"] = (ratios, [float(given.named(n).mean()) for n in best])
    level = float(right["tgeokd"].mean())
    figures.curves(
        run.figure("fixed.png"), series, "fixed ratio", measure, reference=("TGeo-KD", level)
    )
    shown = [name for name in NAMES if name in right]
    means, lows, highs = np.array([t_interval(right[name]) for name in shown]).T
    figures.bars(
        run.figure("sides.png"), [NAMES[name] for name in shown], {"mean": means},
        {"mean": (highs - lows) / 2}, ylabel=measure, decimals=3, cut=True,
    )  # fmt: skip
