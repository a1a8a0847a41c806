"""Figures of the recipe on twin-merging."""

from collections.abc import Mapping

import numpy as np

from experiments.common import figures
from experiments.merging.judging import Reading
from experiments.merging.twin_costs import Curve
from experiments.merging.twin_tasks import Gaps
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "methods.png": "Mean accuracy on mixed test images over that of the experts (%), by the head "
    "of each image's own task and by one head over all classes; error bars: 95% interval over "
    "images.",
    "weights.png": "Mean weight that the router gives an expert (columns) for test images of a "
    "task (rows).",
    "bytes.png": "Accuracy over the experts' (%) against bytes of all parts, in copies of one "
    "model; masks store a bit an entry. Bands: 95% interval over images.",
    "tasks.png": "Gain over tuned task arithmetic of the same tasks, in points of normalised "
    "accuracy, by number of tasks; bands: 95% interval over images.",
}
NAMES = {
    "base": "base", "average": "average", "tuned": "tuned arithmetic", "ties": "TIES",
    "dare": "DARE", "adamerging": "AdaMerging", "multitask": "multi-task model",
    "tuned_biases": "arithmetic, true biases", "uniform": "equal weights",
    "static": "best static weights", "shuffled": "weights of other images", "twin": "Twin",
    "top": "Twin, top expert", "full": "Twin, full rank", "biases": "Twin, true biases",
    "oracle": "Twin, true task", "hard": "routed to experts", "experts": "experts of true tasks",
}  # fmt: skip


def draw(
    run: RunDirectory, tasks: list[str], readings: Mapping[str, Mapping[str, Reading]],
    weights: np.ndarray, sizes: Mapping[str, Curve], gaps: Mapping[int, Gaps],
) -> None:  # fmt: skip
    """Draws all figures."""
    own, one = readings["task"], readings["one"]
    order = sorted(NAMES, key=lambda name: own[name].normalised.mean())
    series = {"own task's head": own, "one head": one}
    ends = {
        name: np.array([t_interval(found[arm].normalised) for arm in order])
        for name, found in series.items()
    }
    figures.bars(
        run.figure("methods.png"), [NAMES[name] for name in order],
        {name: 100 * found[:, 0] for name, found in ends.items()},
        {name: 50 * (found[:, 2] - found[:, 1]) for name, found in ends.items()},
        ylabel="accuracy over the experts' (%)", decimals=1,
    )  # fmt: skip
    figures.heatmap(
        run.figure("weights.png"), weights, tasks, tasks, xlabel="expert", ylabel="task",
        value_label="mean weight",
    )  # fmt: skip
    figures.curves(
        run.figure("bytes.png"),
        {name: _line({x: found.normalised for x, found in curve.items()})
         for name, curve in sizes.items()},
        "copies of one model", "accuracy over the experts' (%)", above=True,
    )  # fmt: skip
    figures.curves(
        run.figure("tasks.png"),
        {name: _line({count: getattr(found, kind) for count, found in gaps.items()})
         for name, kind in (("Twin", "twin"), ("equal weights", "uniform"))},
        "tasks", "gain (points)", reference=("tuned arithmetic", 0.0),
    )  # fmt: skip


def _line(values: Mapping[float, np.ndarray]) -> tuple[np.ndarray, ...]:
    """A curve with its band, in percent, from values of images by their place on the axis."""
    places = sorted(values)
    ends = np.array([t_interval(values[x]) for x in places]).T
    return np.array(places, float), *(100 * ends)
