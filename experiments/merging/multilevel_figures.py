"""Figures of the recipe on multilevel training."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from experiments.common import figures
from experiments.merging.multilevel_similarity import Alike
from experiments.merging.multilevel_training import Trained
from rml.ops import t_interval
from rml.training import RunDirectory

CAPTIONS = {
    "flops.png": "Validation loss against FLOPs spent; vertical marks: changes of size. Losses at "
    "small levels are those of the small model.",
    "losses.png": "Test loss of all arms after equal FLOPs; error bars: 95% interval of the "
    "difference to training from scratch over test examples. α = 0 throws the small level away.",
    "starts.png": "Test loss of the small model against its own steps: coalesced from a trained "
    "model, fresh with a warm-up, and coalesced from an untrained one.",
    "layers.png": "Linear CKA of every two layers' outputs at the tokens of test examples, after "
    "training from scratch and before.",
    "heads.png": "Linear CKA of every two heads' outputs, layer by layer, likewise.",
}
SHOWN = {
    "scratch": "from scratch", "both": "V-cycle", "alpha_0": "α = 0",
    "alpha_25": "α = 0.25", "alpha_100": "α = 1", "untrained": "untrained small",
    "other_groups": "other groups",
    "three": "three levels", "depth": "depth alone", "width": "width alone",
    "growth": "growth", "stacking": "stacking",
}  # fmt: skip
DRAWN = ("scratch", "both", "three", "growth")
"""Arms whose courses are drawn."""
STARTS = {
    "coalesced": "coalesced after training", "fresh": "fresh", "noise": "coalesced untrained",
}  # fmt: skip


def of_courses(run: RunDirectory, best: Mapping[str, Trained], total: float, unit: str) -> None:
    """Draws validation losses against FLOPs, with the changes of size."""
    with figures.canvas(run.figure("flops.png"), (6.4, 3.8)) as figure:
        ax = figure.add_subplot()
        for index, name in enumerate(DRAWN):
            color = figures.look(index, "color")
            flops, losses = (np.asarray(x) for x in best[name].course())
            ax.plot(
                flops / total, losses, label=SHOWN[name], markersize=4,
                **figures.look(index, "color", "linestyle", "marker"),
            )  # fmt: skip
            for part in best[name].parts[1:]:
                height = np.interp(part.start, flops, losses)
                ax.plot([part.start / total], [height], "|", markersize=16, mew=2, **color)
        goal = best["scratch"].parts[-1].validation[-1]
        ax.axhline(goal, color="#333333", ls="--", lw=0.9, label="last loss from scratch")
        # The first evaluations are far above all that differs.
        after = [own.course()[1] for own in (best[name] for name in DRAWN)]
        top = max(np.median(losses) for losses in after)
        bottom = min(losses.min() for losses in after)
        ax.set_ylim(bottom - 0.08 * (top - bottom), top + 0.6 * (top - bottom))
        ax.set(
            xlabel="FLOPs over those of training from scratch", ylabel=f"validation loss ({unit})"
        )
        ax.grid(visible=True)
        figures.legend(ax, len(DRAWN) + 1)


def of_losses(run: RunDirectory, tests: Mapping[str, Float[np.ndarray, " m"]], unit: str) -> None:
    """Draws last test losses of all arms."""
    rows, halves = {}, {}
    for name, own in tests.items():
        _, low, high = t_interval(own - tests["scratch"])
        rows[SHOWN[name]], halves[SHOWN[name]] = float(own.mean()), float(high - low) / 2
    figures.bars(
        run.figure("losses.png"), list(rows), {"loss": list(rows.values())},
        {"loss": list(halves.values())}, ylabel=f"test loss ({unit})", decimals=3, cut=True,
    )  # fmt: skip


def of_similarity(run: RunDirectory, trained: Alike, untrained: Alike) -> None:
    """Draws CKA of layers and of heads."""
    layers = len(trained.layers)
    each = len(trained.heads) // layers
    names = {
        "layers": [str(layer + 1) for layer in range(layers)],
        "heads": [f"{at // each + 1}.{at % each + 1}" for at in range(len(trained.heads))],
    }
    for name, labels in names.items():
        figures.heatmap(
            run.figure(f"{name}.png"), np.stack([getattr(trained, name), getattr(untrained, name)]),
            labels, ["trained", "untrained"], value_label="linear CKA",
            xlabel=name, ylabel="layer" if name == "layers" else "layer.head",
        )  # fmt: skip


def of_starts(run: RunDirectory, runs: Mapping[str, Trained], unit: str) -> None:
    """Draws losses of the small level by how it begins."""
    series = {}
    for name, own in runs.items():
        part = next(part for part in own.parts if part.phase.level == 1)
        series[STARTS[name]] = (part.steps, part.losses)
    figures.curves(
        run.figure("starts.png"), series, "steps at the small level", f"test loss ({unit})"
    )
