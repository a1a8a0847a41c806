"""How features and gates are judged: on the run's own data and on other data."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from experiments.common import figures
from experiments.common.encoders import OfModel
from experiments.common.evaluators import ImageEvaluator, Labelled, Splits, encode
from experiments.common.images import augmentation
from rml import data, evaluation
from rml.data import augment
from rml.encoder import ImageEmbedder
from rml.hydra import draw_pairs, gate_overlap, pair_statistics
from rml.training import RunDirectory
from rml.training.processes import local_copy

PAIRS = 32
"""Pairs of classes whose subspaces' effective rank is averaged."""

GATE_CAPTIONS = {
    "gates.png": "Share of closed gates and mean (2g - 1)² of the batch's pairs against steps.",
    "relations.png": "Overlap of the classes' own gates, classes in the order of the dendrogram.",
    "dendrogram.png": "Classes clustered by the overlap of their gates (average linkage).",
}


def gates_of(model: Any, variables: Any, *pairs: Any) -> Array:
    """Gates of pairs of classes, by a copy of the feature filter alone; the rest stays on its mesh.

    Args:
      model: A `GatedEncoder`.
      variables: Its variables.
      *pairs: First and second class of each pair, [n] each; every pair if not given.
    """
    method = "gates" if pairs else "pair_gates"
    gates: Array = model.apply(_filter_of(variables), *map(jnp.asarray, pairs), method=method)
    return gates


def own_gates(model: Any, variables: Any) -> Array:
    """Gates [c, p] of each class with itself; see `gates_of`."""
    classes = jnp.arange(model.filter.classes)
    return gates_of(model, variables, classes, classes)


def statistics_of(model: Any, variables: Any) -> dict[str, float]:
    """Sparsity and binariness of the gates of all pairs, never all at once; see `gates_of`."""

    @jax.jit
    def measure(variables: Any) -> dict[str, Array]:
        gates = partial(model.apply, variables, method="gates")
        return pair_statistics(gates, model.filter.classes)

    return {name: float(value) for name, value in measure(_filter_of(variables)).items()}


def _filter_of(variables: Any) -> Any:
    """A copy of the variables of the feature filter."""
    return local_copy(
        {kind: {"filter": tree["filter"]} for kind, tree in variables.items() if "filter" in tree}
    )


class Projections(OfModel):
    """What the loss sees of images, before any gate."""

    def __call__(self, variables: Any, images: Any) -> Any:
        """Projections of a batch of images."""
        return self.model.apply(variables, augment.to_float(images), train=False)


class TransferEvaluator(ImageEvaluator):
    """Measures the features of a model on its own data, and on the data that `transfer` names."""

    def __init__(self, model: Any, config: Any):
        """Prepares the encoder; see `experiments.hydra.methods.build_model` and the config."""
        super().__init__(model, config)
        elsewhere = config.copy_and_resolve_references()
        given = {key: config.data[key] for key in ("data_dir", "image_shape", "image_dtype")}
        elsewhere.data = ConfigDict(given | dict(config.transfer))
        self.model, self.elsewhere = model, ImageEvaluator(model, elsewhere)

    def check(self) -> None:
        """Opens the sources of both data sets."""
        super().check()
        self.elsewhere.check()
        for source in (self.train, self.test, self.elsewhere.train, self.elsewhere.test):
            data.require_labels(source, self.config.experiment)

    def measure(self, variables: Any, features: Splits) -> dict[str, float]:
        """Accuracy here and elsewhere, and the geometry of the features of the test images."""
        elsewhere, test = self.elsewhere.features(variables), features[1][0]
        return self.measure_own(variables, features) | {
            "transfer_knn": self.elsewhere.knn(elsewhere),
            "transfer_linear_probe": self.elsewhere.probe(elsewhere),
            "participation_ratio": float(evaluation.participation_ratio(test)),
            "alignment": self.alignment(variables),
            "uniformity": float(evaluation.uniformity(test)),
        }

    def measure_own(self, variables: Any, features: Splits) -> dict[str, float]:
        """Accuracy here, and the effective rank of features and projections of the test images."""
        return {
            "knn": self.knn(features),
            "linear_probe": self.probe(features),
            "rankme": float(evaluation.rankme(features[1][0])),
            "rankme_projections": float(evaluation.rankme(self.outputs(variables)[0])),
        }

    def ranks_of_gated(self, variables: Any) -> dict[str, float]:
        """Effective rank of the test images' projections after gates, in two ways.

        `rankme_gated` is of all of them, each gated by its own class's gates: that gates differ by
        class raises it, whatever the projections. `rankme_subspaces` is the mean over `PAIRS` pairs
        of two classes, in whose subspace all images are compared.
        """
        projections, labels = self.outputs(variables)
        gates = partial(gates_of, self.model, variables)
        pairs = draw_pairs(PAIRS, classes=self.train.num_classes, seed=self.seed)
        ranks = [evaluation.rankme(projections * gate) for gate in gates(*pairs)]
        return {
            "rankme_gated": float(evaluation.rankme(projections * gates(labels, labels))),
            "rankme_subspaces": float(np.mean(ranks)),
        }

    def outputs(self, variables: Any) -> Labelled:
        """What the loss sees of the test images, before any gate, and their labels."""
        size = self.options.batch_size
        apply = ImageEmbedder(Projections(self.model), variables, size, self.mesh)
        return encode(apply, self.test, batch_size=size)

    def alignment(self, variables: Any) -> float:
        """Mean squared distance of the features of two views of up to 500 test images."""
        images = np.stack([self.test[i]["image"] for i in range(min(500, len(self.test)))])
        # All of a view at a time, which devices share; views are drawn by each process for itself.
        embed = ImageEmbedder(self._function, variables, len(images), self.mesh)
        return float(
            evaluation.alignment(*(jnp.asarray(embed(view)) for view in self._views(images)))
        )

    @cached_property
    def _views(self) -> Callable[[Any], Any]:
        pipeline = augmentation(self.config, whole=True)
        return jax.jit(
            lambda images: augment.views(jax.random.key(0), augment.to_float(images), pipeline, n=2)
        )

    def draw_gates(self, run: RunDirectory, trained: Path, own: Array) -> None:
        """Draws the training of gates, and how those of each class with itself are related."""
        course = {"closed gates": "train/gate_sparsity", "mean (2g - 1)²": "train/gate_binariness"}
        if series := figures.logged(trained, course):
            figures.curves(run.figure("gates.png"), series, "step", "share of gates")
        overlap, names = np.asarray(gate_overlap(own)), self.train.class_names
        height = "1 - overlap of gates"
        order = figures.dendrogram(run.figure("dendrogram.png"), overlap, names, ylabel=height)
        figures.heatmap(
            run.figure("relations.png"), overlap[np.ix_(order, order)], [names[i] for i in order],
            title="Overlap of the classes' gates", value_label="overlap",
        )  # fmt: skip
