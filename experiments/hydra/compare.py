"""Hydra beside SimCLR and SupCon: equal encoder, head, views, batches, optimiser and steps.

A plain classifier is trained the same way; its confusion is what Hydra's relations of classes are
held against. Each method trains in `methods/<name>` of the run directory, where a stopped run
continues.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.comparison import for_each
from experiments.common.encoders import image_encoder
from experiments.common.pretraining import train
from experiments.hydra import methods
from experiments.hydra.evaluator import GATE_CAPTIONS, TransferEvaluator
from experiments.ranges import Range
from rml import evaluation
from rml.encoder import ImageEmbedder
from rml.hydra import confusion_similarity, gate_overlap, relation_correlation, shared_openness
from rml.training import Claim, RunDirectory, Task, TrainState

SOURCE = (
    "Hydra (arXiv:2410.18200): prevention of dimensional collapse, ImageNet accuracy, relations"
)
CLAIMS = (
    Claim("RankMe is at least 1.1 times SupCon's",
          "rankme_over_supcon", ">=", 1.1, SOURCE,
          stated="2026-11-24", null="rankme_simclr_over_supcon"),
    Claim("RankMe of the projections, which the loss sees, is at least 1.5 times SupCon's",
          "rankme_projections_over_supcon", ">=", 1.5, SOURCE,
          stated="2026-11-24", null="rankme_projections_simclr_over_supcon"),
    Claim("kNN is at least SupCon's, within half a point",
          "knn_minus_supcon", ">=", -0.005, SOURCE,
          stated="2026-11-24", null="knn_simclr_minus_supcon"),
    Claim("A linear probe is at least SupCon's, within half a point",
          "linear_probe_minus_supcon", ">=", -0.005, SOURCE,
          stated="2026-11-24", null="linear_probe_simclr_minus_supcon"),
    Claim("Overlap of the classes' gates ranks pairs of classes as a plain classifier confuses "
          "them: Spearman correlation of at least 0.3",
          "relation_rank_correlation", ">=", 0.3, SOURCE,
          stated="2026-11-24", null="relation_rank_correlation_permuted"),
)  # fmt: skip
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other images
CAPTIONS = {
    "errors.png": "Errors on the test images, here and on other data, by method.",
    "rank.png": "RankMe of the test images' features and projections, by method.",
    "geometry.png": "Alignment of two views and uniformity (lower is better for both), by method.",
    "spectrum.png": "Singular values of the test images' features, by method.",
    **GATE_CAPTIONS,
    "confusion.png": "Mean probability that the plain classifier gives one class for the other.",
}
PICTURE = "rank.png"
RANKS = {"features": "rankme", "projections": "rankme_projections"}
ACCURACIES = {
    "kNN": "knn", "probe": "linear_probe",
    "transfer kNN": "transfer_knn", "transfer probe": "transfer_linear_probe",
}  # fmt: skip


def task(config: Any) -> Task:
    """The training problem of Hydra, or of the method of a directory `methods/<name>`."""
    return methods.task(config, config.get("method", "hydra"))


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state of that method gives."""
    return image_encoder(methods.build_model(config, config.get("method", "hydra")), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains every method, measures all alike, compares and draws."""
    TransferEvaluator(methods.build_model(config, "hydra"), config).check()

    def measure(method: str, directory: RunDirectory) -> Any:
        variables = train(config, directory, methods.task(config, method)).variables
        evaluator = TransferEvaluator(methods.build_model(config, method), config)
        features = evaluator.features(variables)
        return evaluator.measure(variables, features), (evaluator, variables, features[1][0])

    found = for_each(run, methods.METHODS, measure)
    measured = {method: own for method, (own, _) in found.items()}
    metrics = {f"{m}_{name}": value for m, own in measured.items() for name, value in own.items()}
    # What Hydra owes to gates and labels SimCLR, which has neither, does not reach.
    for ours, words, other in (
        ("hydra", "", "supcon"), ("hydra", "", "simclr"), ("simclr", "_simclr", "supcon")
    ):  # fmt: skip
        own, theirs = measured[ours], measured[other]
        metrics |= {f"{n}{words}_over_{other}": own[n] / theirs[n] for n in RANKS.values()}
        metrics |= {f"{n}{words}_minus_{other}": own[n] - theirs[n] for n in ACCURACIES.values()}
    draw(run, measured, {method: features for method, (_, (*_, features)) in found.items()})
    return metrics | compare_relations(run, found["hydra"][1], found["classifier"][1])


def compare_relations(run: RunDirectory, hydra: Any, classifier: Any) -> dict[str, float]:
    """Agreement of gates with the confusion of a plain classifier on the test images."""
    (evaluator, variables, _), names = hydra, hydra[0].train.class_names
    gates = evaluator.model.apply(variables, method="pair_gates")
    overlap, shared = gate_overlap(jnp.diagonal(gates).T), shared_openness(gates)
    logits, labels = classifier[0].outputs(classifier[1])
    confusion = np.asarray(confusion_similarity(jax.nn.softmax(logits), labels))
    figures.heatmap(
        run.figure("confusion.png"), 100 * (confusion - np.diag(np.diag(confusion))), names,
        title="Confusion of a plain classifier", value_label="mean probability (%)",
    )  # fmt: skip
    order = np.random.default_rng(evaluator.seed).permutation(len(names))
    return evaluator.measure_gates(run, run.path / "methods" / "hydra", gates) | {
        "relation_rank_correlation": relation_correlation(overlap, confusion),
        "relation_rank_correlation_permuted": relation_correlation(
            overlap[np.ix_(order, order)], confusion
        ),
        "shared_rank_correlation": relation_correlation(shared, confusion),
        "classifier_accuracy": float(jnp.mean(jnp.argmax(logits, 1) == labels)),
    }


def draw(run: RunDirectory, measured: Any, features: Any) -> None:
    """Figures of the comparison: errors, ranks, geometry and spectra, by method."""

    def bars(file: str, names: dict[str, str], ylabel: str, show: Any = float) -> None:
        values = {m: [show(own[n]) for n in names.values()] for m, own in measured.items()}
        figures.bars(run.figure(file), list(names), values, ylabel=ylabel)

    bars("errors.png", ACCURACIES, "test error (%)", lambda accuracy: 100 - 100 * accuracy)
    bars("rank.png", RANKS, "RankMe")
    geometry = {"alignment": "alignment", "uniformity": "uniformity"}
    bars("geometry.png", geometry, "squared distance; log mean kernel")
    spectra = {m: evaluation.singular_values(f, center=True) for m, f in features.items()}
    figures.spectrum(
        run.figure("spectrum.png"), spectra, {m: own["rankme"] for m, own in measured.items()},
        title="Singular spectrum of the test images' features",
    )  # fmt: skip
