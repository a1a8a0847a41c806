"""Hydra: samples of two arbitrary classes agree, in a subspace that the pair of classes opens.

Wu et al., Rethinking Positive Pairs in Contrastive Learning, arXiv:2410.18200. `rml.hydra` says
which equations are implemented; `pairs.sampling` is how pairs meet a batch: "uniform" (over all
pairs, on shuffled batches), "drawn" (batches of drawn pairs, for many classes), "batch" (the
labels of the batch permuted, the authors' code), or "identical" and "distinct", their ablations.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import STRANGERS
from experiments.common.encoders import image_encoder
from experiments.common.pretraining import captions, draw_course, first_images, train_on_mesh
from experiments.hydra import methods
from experiments.hydra.evaluator import GATE_CAPTIONS, TransferEvaluator, own_gates, statistics_of
from experiments.ranges import Range
from rml.encoder import ImageEmbedder
from rml.errors import UserError
from rml.training import Claim, RunDirectory, Task, TrainState, initial_state

SOURCE = "Hydra (arXiv:2410.18200): performance, transfer, gates"
CLAIMS = (
    Claim("kNN is above the untrained encoder's",
          "knn_over_untrained", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null_run="strangers",
          says="Hydra changes the accuracy of neighbours by {mean:+.1p} points over the untrained "
          "encoder ({knn:.1%} against {knn_untrained:.1%})"),
    Claim("A linear probe is above the untrained encoder's by 1 point",
          "linear_probe_over_untrained", ">=", 0.01, SOURCE,
          stated="2026-11-24", null_run="strangers",
          says="Hydra changes a linear probe's accuracy by {mean:+.1p} points over the untrained "
          "encoder ({linear_probe:.1%} against {linear_probe_untrained:.1%})"),
    Claim("kNN on other data is above the untrained encoder's",
          "transfer_knn_over_untrained", ">=", 0.0, SOURCE,
          stated="2026-11-24", null_run="strangers",
          says="On other data it changes the accuracy of neighbours by {mean:+.1p} points over the "
          "untrained encoder"),
    Claim("Gates are near binary: mean (2g - 1)² of at least 0.8",
          "gate_binariness", ">=", 0.8, f"{SOURCE}; changed after the first measurement from 0.7, "
          "which gates without penalty met too", stated="2026-11-28", null_run="no_penalty",
          says="From 0, all half open, to 1, all open or shut, gates are at {mean:.2f}"),
)  # fmt: skip
NULLS = {**STRANGERS, "no_penalty": {"loss.penalty": 0.0}}
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other images
CAPTIONS = {
    **captions("Loss with its penalty"),
    **GATE_CAPTIONS,
    "gate_values.png": "Gates of each class with itself, dimensions by how many classes open them.",
}
PICTURE = "gate_values.png"
NAMED = 60
"""Classes whose names stand beside their gates; more would make the figure a tall strip."""
COMPARED = ("knn", "linear_probe", "transfer_knn", "transfer_linear_probe", "rankme")


def task(config: Any) -> Task:
    """The training problem of a config."""
    return methods.task(config, "hydra")


def encoder(config: Any, state: TrainState, pair: tuple[int, int] | None = None) -> ImageEmbedder:
    """The features of images, or their projections in the subspace that a pair of classes opens."""
    model = methods.build_model(config, "hydra")
    if pair is None:
        return image_encoder(model, config, state)
    if len(pair) != 2 or not all(0 <= one < config.data.classes for one in pair):
        raise UserError(f"pair is {pair}, expected two classes from 0 to {config.data.classes - 1}")

    def subspace(variables: Any, images: Any) -> Any:
        first, second = jnp.asarray(pair)[:, None]
        gates = model.apply(variables, first, second, method="gates")
        return gates * model.apply(variables, images, train=False)

    return image_encoder(model, config, state, subspace)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges features and gates, draws."""
    model, problem = methods.build_model(config, "hydra"), task(config)
    evaluator = TransferEvaluator(model, config)
    evaluator.check()
    images = first_images(evaluator)
    variables = train_on_mesh(config, run, problem).variables
    start = initial_state(problem, seed=config.seed, mesh=evaluator.mesh).variables
    trained, untrained = evaluator.features(variables), evaluator.features(start)
    metrics, before = evaluator.measure(variables, trained), evaluator.measure(start, untrained)
    for name in COMPARED:
        metrics[f"{name}_untrained"] = before[name]
        metrics[f"{name}_over_untrained"] = metrics[name] - before[name]

    metrics |= statistics_of(model, variables)
    gates = own_gates(model, variables)
    evaluator.draw_gates(run, run.path, gates)
    own = np.asarray(gates)
    names = evaluator.train.class_names
    figures.heatmap(
        run.figure("gate_values.png"), own[:, np.argsort(-own.sum(0), kind="stable")],
        names if len(names) <= NAMED else None, xlabel="dimension, by how many classes open it",
        ylabel="class", title="Gates of each class with itself", value_label="gate",
    )  # fmt: skip
    draw_course(
        config, run, images, loss_label="loss (nats)", num_classes=evaluator.train.num_classes
    )
    evaluator.draw(run.figure, trained, untrained)
    return metrics
