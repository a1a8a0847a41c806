"""Hydra: samples of two arbitrary classes agree, in a subspace that the pair of classes opens.

Wu et al., Rethinking Positive Pairs in Contrastive Learning, arXiv:2410.18200. `rml.hydra` says
which equations are implemented; `pairs.sampling` is how pairs meet a batch: "uniform" (over all
pairs, on shuffled batches), "drawn" (batches of drawn pairs, for many classes), "batch" (the
labels of the batch permuted, the authors' code), or "identical" and "distinct", their ablations.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.contrastive import common as contrastive
from experiments.hydra import common, drawing
from rml.hydra import analysis
from rml.training import Claim, RunDirectory, Task, initial_state

SOURCE = "Hydra (arXiv:2410.18200): performance, transfer, gates"
CLAIMS = (
    Claim("kNN is above the untrained encoder's by 1 point",
          "knn_over_untrained", ">=", 0.01, SOURCE),
    Claim("A linear probe is above the untrained encoder's by 1 point",
          "linear_probe_over_untrained", ">=", 0.01, SOURCE),
    Claim("kNN on other data is above the untrained encoder's",
          "transfer_knn_over_untrained", ">=", 0.0, SOURCE),
    Claim("Gates are near binary: mean (2g - 1)² of at least 0.7",
          "gate_binariness", ">=", 0.7, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "views.png": "Images and the views that the loss pulls together.",
    "loss.png": "Loss with its penalty against steps.",
    "knn.png": "Test accuracy of nearest neighbours on the features against steps.",
    "gates.png": "Share of closed gates and mean (2g - 1)² of the batch's pairs against steps.",
    "embedding.png": "Features of the test images in two dimensions.",
    "spectrum.png": "Singular values of the test images' features, trained and untrained.",
    "relations.png": "Overlap of the classes' own gates, classes in the order of the dendrogram.",
    "dendrogram.png": "Classes clustered by the overlap of their gates (average linkage).",
    "gate_values.png": "Gates of each class with itself, dimensions by how many classes open them.",
}


def task(config: Any) -> Task:
    """The training problem of a config."""
    return common.task(config, "hydra")


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges features and gates, draws."""
    judges, problem = common.Judges(config, "hydra"), task(config)
    home = judges.home
    images = np.stack([home.train[i]["image"] for i in range(6)])
    state = common.train(config, run, problem)
    variables = contrastive.variables(state)
    variables_before = contrastive.variables(initial_state(problem, seed=config.seed))
    trained, untrained = home.features(variables), home.features(variables_before)
    metrics = judges.measure(variables, trained)
    before = judges.measure(variables_before, untrained)
    for name in ("knn", "linear_probe", "transfer_knn", "transfer_linear_probe", "rankme"):
        metrics[f"{name}_untrained"] = before[name]
        metrics[f"{name}_over_untrained"] = metrics[name] - before[name]

    gates = common.pair_gates(config, state)
    own = jnp.diagonal(gates).T
    metrics["gate_sparsity"] = float(analysis.gate_sparsity(gates.reshape(-1, gates.shape[-1])))
    metrics["gate_binariness"] = float(analysis.gate_binariness(gates.reshape(-1, gates.shape[-1])))
    names = home.train.class_names
    drawing.draw_training(run.figure, run.path)
    drawing.draw_gates(run.figure, np.asarray(own), names)
    drawing.draw_relations(run.figure, np.asarray(analysis.gate_overlap(own)), names)
    contrastive.draw_views(
        run.figure("views.png"), images, contrastive.augmentation(config), jax.random.key(0)
    )
    contrastive.draw_curves(
        run.figure, run.path, {"train/loss": "loss (nats)", "eval/knn": "kNN accuracy"}
    )
    home.draw(run.figure, trained, untrained)
    return metrics
