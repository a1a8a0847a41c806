"""Hydra beside SimCLR and SupCon: equal encoder, head, views, batches, optimiser and steps.

A plain classifier is trained the same way; its confusion is what Hydra's relations of classes are
held against. Every method has equally many tries of its options, see `experiments.hydra.tries`.
Hydra's positives, the product of its gates and the width of projections were chosen before, on
validation images of the same data sets of digits and characters, see
`configs/hydra/hydra_mnist5k.py`; the other methods inherit the width. Each trains in
`methods/<name>` of the run directory, where a stopped run continues.

Where Hydra is held against another method, the null is a third one against the same: SimCLR, which
has neither gates nor labels. Nothing is claimed over SimCLR, since labels alone can give it.

The effective rank has a name for each place where it is taken, always on the test images:
`rankme` of features, `rankme_projections` of projections before gates, and after gates
`hydra_rankme_gated` and `hydra_rankme_subspaces`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.comparison import for_each
from experiments.common.encoders import image_encoder
from experiments.common.evaluators import Splits
from experiments.common.pretraining import train_on_mesh
from experiments.hydra import methods, tries
from experiments.hydra.evaluator import GATE_CAPTIONS, TransferEvaluator, gates_of
from experiments.ranges import Range
from rml import evaluation
from rml.encoder import ImageEmbedder
from rml.hydra import (
    confusion_similarity,
    gate_overlap,
    gate_statistics,
    relation_correlation,
    shared_openness,
)
from rml.training import Claim, RunDirectory, Task, TrainState

SOURCE = (
    "Hydra (arXiv:2410.18200): prevention of dimensional collapse, ImageNet accuracy, relations"
)
ADDED = f"{SOURCE}; added after the first measurement"
CLAIMS = (
    Claim("A linear probe is at least SupCon's",
          "linear_probe_minus_supcon", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="linear_probe_simclr_minus_supcon",
          says="Hydra changes a linear probe's accuracy by {mean:+.1p} points over SupCon "
          "({hydra_linear_probe:.1%} against {supcon_linear_probe:.1%})"),
    Claim("RankMe is at least 1.1 times SupCon's",
          "rankme_over_supcon", ">=", 1.1, SOURCE,
          stated="2026-11-24", null="rankme_simclr_over_supcon",
          says="The effective rank of Hydra's features is {mean:.2f} times that of SupCon's"),
    Claim("A linear probe is at least a plain classifier's",
          "linear_probe_minus_classifier", ">=", 0.0, ADDED,
          stated="2026-11-30", null="linear_probe_simclr_minus_classifier",
          says="Hydra changes a linear probe's accuracy by {mean:+.1p} points over a plain "
          "classifier ({hydra_linear_probe:.1%} against {classifier_linear_probe:.1%})"),
    Claim("Overlap of the classes' gates ranks pairs of classes as a plain classifier confuses "
          "them: Spearman correlation of at least 0.3",
          "relation_rank_correlation", ">=", 0.3, SOURCE,
          stated="2026-11-24", null="relation_rank_correlation_permuted",
          says="The overlap of two classes' gates has a rank correlation of {mean:.2f} with how "
          "often a plain classifier confuses them"),
)  # fmt: skip
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other images
CAPTIONS = {
    "errors.png": "Errors on the test images, here and on other data, by method.",
    "rank.png": "RankMe of the test images' features and of their projections, by method; Hydra's "
    "also after each image's own gates, and in the subspaces of pairs (mean over pairs).",
    "geometry.png": "Alignment of two views and uniformity (lower is better for both), by method.",
    "spectrum.png": "Singular values of the test images' features, by method.",
    **GATE_CAPTIONS,
    "confusion.png": "Mean probability that the plain classifier gives one class for the other.",
}
PICTURE = "rank.png"
STAGED = True  # tries choose the options of all methods by the evaluation
RANKS = {"features": "rankme", "projections": "rankme_projections"}
GATED = {"after own gates": "rankme_gated", "in subspaces": "rankme_subspaces"}
ACCURACIES = {
    "kNN": "knn", "probe": "linear_probe",
    "transfer kNN": "transfer_knn", "transfer probe": "transfer_linear_probe",
}  # fmt: skip


class Trained(NamedTuple):
    """A trained method.

    Attributes:
      evaluator: What measures it.
      variables: Its variables, as they lie on the mesh.
      features: Features and labels of the training and test images.
    """

    evaluator: TransferEvaluator
    variables: Any
    features: Splits


def task(config: Any) -> Task:
    """The training problem of Hydra, or of the method of a directory `methods/<name>`."""
    return methods.task(config, config.get("method", "hydra"))


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state of that method gives."""
    return image_encoder(methods.build_model(config, config.get("method", "hydra")), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses each method's options, trains it, measures all alike, compares and draws."""
    checked(config)
    return compare(config, run)[0]


def checked(config: Any) -> TransferEvaluator:
    """Makes what measures Hydra and opens its data: what cannot be read fails before training."""
    evaluator = TransferEvaluator(methods.build_model(config, "hydra"), config)
    evaluator.check()
    return evaluator


def compare(config: Any, run: RunDirectory) -> tuple[dict[str, float], dict[str, Trained]]:
    """As `run` after its checks; returns the trained methods beside the metrics."""
    chosen, metrics = tries.choose(config, run)

    def measure(method: str, directory: RunDirectory) -> tuple[dict[str, float], Trained]:
        own = chosen[method]
        variables = train_on_mesh(own, directory, methods.task(own, method)).variables
        evaluator = TransferEvaluator(methods.build_model(own, method), own)
        features = evaluator.features(variables)
        measured = evaluator.measure(variables, features)
        if method == "hydra":
            measured |= evaluator.ranks_of_gated(variables)
        return measured, Trained(evaluator, variables, features)

    found = for_each(run, methods.METHODS, measure)
    measured = {method: own for method, (own, _) in found.items()}
    trained = {method: own for method, (_, own) in found.items()}
    metrics |= {f"{m}_{name}": value for m, own in measured.items() for name, value in own.items()}
    metrics |= beside(measured)
    draw(run, measured, {method: own.features[1][0] for method, own in trained.items()})
    return metrics | compare_relations(run, trained["hydra"], trained["classifier"]), trained


def beside(measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Holds Hydra against each other method, and for the nulls others against one another.

    Args:
      measured: Metrics of each method, by its name.

    Returns:
      Ratios of effective ranks, `<metric>_over_<opponent>`, and differences of accuracies,
      `<metric>_minus_<opponent>`; the name of a method other than Hydra follows its metric.
    """
    found: dict[str, float] = {}
    for ours, words, other in (
        ("hydra", "", "supcon"), ("hydra", "", "simclr"), ("hydra", "", "classifier"),
        ("simclr", "_simclr", "supcon"), ("simclr", "_simclr", "classifier"),
        ("supcon", "_supcon", "simclr"),
    ):  # fmt: skip
        own, theirs = measured[ours], measured[other]
        found |= {f"{n}{words}_over_{other}": own[n] / theirs[n] for n in RANKS.values()}
        found |= {f"{n}{words}_minus_{other}": own[n] - theirs[n] for n in ACCURACIES.values()}
    return found


def compare_relations(run: RunDirectory, hydra: Trained, classifier: Trained) -> dict[str, float]:
    """Agreement of gates with the confusion of a plain classifier on the test images."""
    evaluator, names = hydra.evaluator, hydra.evaluator.train.class_names
    gates = gates_of(evaluator.model, hydra.variables)
    logits, labels = classifier.evaluator.outputs(classifier.variables)
    present = np.unique(labels)  # nothing is known of how others are confused
    among = np.ix_(present, present)
    own = jnp.diagonal(gates).T
    overlap = np.asarray(gate_overlap(own))[among]
    shared = np.asarray(shared_openness(gates))[among]
    confusion = np.asarray(confusion_similarity(jax.nn.softmax(logits), labels))[among]
    figures.heatmap(
        run.figure("confusion.png"), 100 * (confusion - np.diag(np.diag(confusion))),
        [names[i] for i in present],
        title="Confusion of a plain classifier", value_label="mean probability (%)",
    )  # fmt: skip
    order = np.random.default_rng(evaluator.seed).permutation(len(present))
    evaluator.draw_gates(run, run.path / "methods" / "hydra", own)
    return {name: float(value) for name, value in gate_statistics(gates).items()} | {
        "relation_rank_correlation": relation_correlation(overlap, confusion),
        "relation_rank_correlation_permuted": relation_correlation(
            overlap[np.ix_(order, order)], confusion
        ),
        "shared_rank_correlation": relation_correlation(shared, confusion),
        "classifier_accuracy": float(jnp.mean(jnp.argmax(logits, 1) == labels)),
    }


def draw(run: RunDirectory, measured: Any, features: Any) -> None:
    """Figures of the comparison: errors, ranks, geometry and spectra, by method."""

    def bars(
        file: str,
        names: dict[str, str],
        ylabel: str,
        show: Any = float,
        decimals: int | None = None,
    ) -> None:
        values = {
            m: [show(own.get(n, np.nan)) for n in names.values()] for m, own in measured.items()
        }
        figures.bars(run.figure(file), list(names), values, ylabel=ylabel, decimals=decimals)

    bars("errors.png", ACCURACIES, "test error (%)", lambda accuracy: 100 - 100 * accuracy)
    bars("rank.png", RANKS | GATED, "RankMe", decimals=1)
    geometry = {"alignment": "alignment", "uniformity": "uniformity"}
    bars("geometry.png", geometry, "squared distance; log mean kernel")
    spectra = {m: evaluation.singular_values(f, center=True) for m, f in features.items()}
    figures.spectrum(
        run.figure("spectrum.png"), spectra, {m: own["rankme"] for m, own in measured.items()},
        title="Singular spectrum of the test images' features",
    )  # fmt: skip
