"""Hydra beside SimCLR and SupCon: equal encoder, head, views, batches, optimiser and steps.

A plain classifier is trained the same way; its confusion is what Hydra's relations of classes are
held against. Each method trains in `methods/<name>` of the run directory, where a stopped run
continues.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from experiments import figures
from experiments.contrastive import common as contrastive
from experiments.hydra import common, drawing
from rml import evaluation
from rml.data import augment
from rml.hydra import analysis
from rml.training import Claim, RunDirectory, Task

SOURCE = (
    "Hydra (arXiv:2410.18200): prevention of dimensional collapse, ImageNet accuracy, relations"
)
CLAIMS = (
    Claim("RankMe is at least 1.1 times SupCon's",
          "rankme_over_supcon", ">=", 1.1, SOURCE),
    Claim("RankMe of the projections, which the loss sees, is at least 1.5 times SupCon's",
          "rankme_projections_over_supcon", ">=", 1.5, SOURCE),
    Claim("kNN is at least SupCon's, within half a point",
          "knn_minus_supcon", ">=", -0.005, SOURCE),
    Claim("A linear probe is at least SupCon's, within half a point",
          "linear_probe_minus_supcon", ">=", -0.005, SOURCE),
    Claim("Overlap of the classes' gates ranks pairs of classes as a plain classifier confuses "
          "them: Spearman correlation of at least 0.3",
          "relation_rank_correlation", ">=", 0.3, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "errors.png": "Errors on the test images, here and on other data, by method.",
    "rank.png": "RankMe of the test images' features and projections, by method.",
    "geometry.png": "Alignment of two views and uniformity (lower is better for both), by method.",
    "spectrum.png": "Singular values of the test images' features, by method.",
    "relations.png": "Overlap of the classes' own gates, classes in the order of the dendrogram.",
    "dendrogram.png": "Classes clustered by the overlap of their gates (average linkage).",
    "confusion.png": "Mean probability that the plain classifier gives one class for the other.",
    "gates.png": "Share of closed gates and mean (2g - 1)² of the batch's pairs against steps.",
}


def task(config: Any) -> Task:
    """The training problem of the method that the comparison is about."""
    return common.task(config, "hydra")


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains every method, measures all alike, compares and draws."""
    measured: dict[str, dict[str, float]] = {}
    spectra, states = {}, {}
    for method in common.METHODS:
        measured[method], spectra[method], states[method] = train_and_measure(config, run, method)
    metrics = {f"{m}_{k}": value for m, own in measured.items() for k, value in own.items()}
    ours = measured["hydra"]
    for other in ("supcon", "simclr"):
        theirs = measured[other]
        for name in ("rankme", "rankme_projections"):
            metrics[f"{name}_over_{other}"] = ours[name] / theirs[name]
        for name in ("knn", "linear_probe", "transfer_knn", "transfer_linear_probe"):
            metrics[f"{name}_minus_{other}"] = ours[name] - theirs[name]
    metrics |= compare_relations(config, run, states["hydra"], states["classifier"])
    draw(run, measured, spectra)
    return metrics


def train_and_measure(config: Any, run: RunDirectory, method: str) -> Any:
    """One method's metrics, the spectrum of its features, and its state."""
    started = time.perf_counter()
    inner = run.of_method(method)
    state = common.train(config, inner, common.task(config, method))
    judges, variables = common.Judges(config, method), contrastive.variables(state)
    features = judges.home.features(variables)
    metrics = judges.measure(variables, features)
    spectrum = np.asarray(evaluation.singular_values(features[1][0], center=True))
    inner.write_summary(metrics=metrics, claims=[], seconds=time.perf_counter() - started)
    inner.close()
    return metrics, spectrum, state


def compare_relations(
    config: Any, run: RunDirectory, hydra: Any, classifier: Any
) -> dict[str, float]:
    """Agreement of gates with the confusion of a plain classifier on the test images."""
    gates = common.pair_gates(config, hydra)
    overlap = np.asarray(analysis.gate_overlap(jnp.diagonal(gates).T))
    shared = np.asarray(analysis.shared_openness(gates))
    judge = common.Judges(config, "classifier")
    predict = jax.jit(
        lambda images: jax.nn.softmax(
            judge.model.apply(
                contrastive.variables(classifier), augment.to_float(images), train=False
            )
        )
    )
    probabilities, labels = evaluation.extract_features(
        predict, judge.home.batches(judge.home.test), batch_size=config.evaluation.batch_size
    )
    confusion = np.asarray(analysis.confusion_similarity(probabilities, labels))
    pairs = np.triu_indices(len(confusion), 1)
    names = judge.home.train.class_names
    drawing.draw_training(run.figure, run.path / "methods" / "hydra")
    drawing.draw_relations(run.figure, overlap, names)
    figures.heatmap(
        run.figure("confusion.png"), 100 * (confusion - np.diag(np.diag(confusion))), names, names,
        title="Confusion of a plain classifier", value_label="mean probability (%)",
    )  # fmt: skip
    flat = gates.reshape(-1, gates.shape[-1])
    return {
        "relation_rank_correlation": float(spearmanr(overlap[pairs], confusion[pairs])[0]),
        "shared_rank_correlation": float(spearmanr(shared[pairs], confusion[pairs])[0]),
        "gate_sparsity": float(analysis.gate_sparsity(flat)),
        "gate_binariness": float(analysis.gate_binariness(flat)),
        "classifier_accuracy": float(jnp.mean(jnp.argmax(probabilities, 1) == labels)),
    }


def draw(run: RunDirectory, measured: dict[str, dict[str, float]], spectra: dict) -> None:
    """Figures of the comparison."""
    accuracies = {
        "kNN": "knn", "probe": "linear_probe",
        "transfer kNN": "transfer_knn", "transfer probe": "transfer_linear_probe",
    }  # fmt: skip
    errors = {m: [100 - 100 * own[n] for n in accuracies.values()] for m, own in measured.items()}
    figures.bars(run.figure("errors.png"), list(accuracies), errors, ylabel="test error (%)")
    for file, names, label in (
        ("rank.png", {"features": "rankme", "projections": "rankme_projections"}, "RankMe"),
        (
            "geometry.png",
            {"alignment": "alignment", "uniformity": "uniformity"},
            "squared distance; log mean kernel",
        ),
    ):
        values = {m: [own[name] for name in names.values()] for m, own in measured.items()}
        figures.bars(run.figure(file), list(names), values, ylabel=label)
    figures.spectrum(
        run.figure("spectrum.png"), spectra, {m: own["rankme"] for m, own in measured.items()},
        title="Singular spectrum of the test images' features",
    )  # fmt: skip
