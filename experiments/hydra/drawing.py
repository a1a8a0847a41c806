"""Figures of gates: their training, their values, the relations of classes that they show."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from experiments import figures
from rml.training import read_metrics

Folder = Callable[[str], Path]


def draw_training(folder: Folder, run_path: Path) -> None:
    """Figure of sparsity and binariness of the batch's gates against steps."""
    lines = read_metrics(run_path / "metrics.jsonl")
    names = {"closed gates": "train/gate_sparsity", "mean (2g - 1)²": "train/gate_binariness"}
    series = {}
    for label, name in names.items():
        points = [(line["step"], float(line[name])) for line in lines if name in line]
        if points:
            series[label] = tuple(np.array(column) for column in zip(*points, strict=True))
    if series:
        figures.curves(folder("gates.png"), series, "step", "share of gates")


def draw_gates(folder: Folder, gates: np.ndarray, class_names: Sequence[str]) -> None:
    """Figure of each class's gates [c, d], those that most classes open first."""
    figures.heatmap(
        folder("gate_values.png"),
        gates[:, np.argsort(-gates.sum(0), kind="stable")],
        list(class_names),
        xlabel="dimension, by how many classes open it",
        title="Gates of each class with itself",
        value_label="gate",
    )


def draw_relations(folder: Folder, relation: np.ndarray, class_names: Sequence[str]) -> None:
    """Figures of a similarity [c, c] of classes: a dendrogram, and a heat map in its order."""
    distance = 1 - relation / relation.max()
    np.fill_diagonal(distance, 0.0)
    tree = hierarchy.linkage(
        squareform(np.maximum(distance, 0), checks=False), "average", optimal_ordering=True
    )
    with figures.style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.5, 2.4), layout="constrained")
        axes = figure.add_subplot()
        order = hierarchy.dendrogram(
            tree, labels=list(class_names), ax=axes, color_threshold=0,
            above_threshold_color=figures.PALETTE[0], no_labels=len(class_names) > 60,
        )["leaves"]  # fmt: skip
        for lines in axes.collections:
            lines.set_linewidth(min(1.2, 60 / len(class_names)))
        axes.set_ylabel("1 - overlap of gates")
        axes.grid(visible=False, axis="x")
        figure.savefig(
            folder("dendrogram.png"), format="png", dpi=figures.DPI, metadata={"Software": None}
        )
    figures.heatmap(
        folder("relations.png"),
        relation[np.ix_(order, order)],
        [class_names[i] for i in order],
        [class_names[i] for i in order],
        title="Overlap of the classes' gates",
        value_label="overlap",
    )
