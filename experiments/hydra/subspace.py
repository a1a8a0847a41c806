"""The discovery behind Hydra: two arbitrary classes are alike in some subspace of SimCLR features.

A SimCLR encoder is trained and frozen. For pairs of classes drawn at random, gates on its features
are learned (nothing else) such that training images of the two classes agree with one another and
not with the rest. On test images it is then measured how well the cosine tells an image of the
other class of the pair from images of the remaining classes: in the whole space, in the learned
subspace, in one whose gates are the learned ones in random order, and in one whose gates were
learned from shuffled labels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.encoders import image_encoder
from experiments.common.evaluators import ImageEvaluator
from experiments.common.pretraining import train_on_mesh
from experiments.hydra import methods
from experiments.ranges import Range
from rml import evaluation
from rml.encoder import ImageEmbedder
from rml.hydra import draw_pairs, learn_gates, pair_auroc
from rml.ops.similarity import normalize
from rml.training import Claim, RunDirectory, Task, TrainState

SOURCE = "Hydra (arXiv:2410.18200), the motivating experiment: arbitrary pairs under SimCLR"
CLAIMS = (
    Claim("Two arbitrary classes separate from the rest in a learned subspace more than in the "
          "whole space, on test images",
          "auroc_gain", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="auroc_gain_shuffled",
          says="A learned subspace tells two arbitrary classes from the rest with an AUROC of "
          "{auroc_subspace:.2f}, the whole space with {auroc_whole:.2f}"),
    Claim("Their AUROC in the subspace is at least 0.8", "auroc_subspace", ">=", 0.8, SOURCE,
          stated="2026-11-24", null="auroc_shuffled",
          says="The AUROC in the subspace is {mean:.2f}, of its worst pair of classes "
          "{auroc_subspace_lowest:.2f}"),
    Claim("It is the choice of dimensions that does it: 0.15 above the same gates in random order",
          "auroc_over_random", ">=", 0.15, SOURCE,
          stated="2026-11-24", null="auroc_shuffled_over_random",
          says="Which dimensions are open changes the AUROC by {mean:+.2f} beside as many at "
          "random"),
)  # fmt: skip
RANGES = {"train.batch_size": Range(2, whole=True)}  # the negatives are other images
CAPTIONS = {
    "auroc.png": "How well the cosine tells the pair's other class from the remaining classes, on "
    "test images.",
    "pair_whole.png": "Test images in the whole space (two principal axes): the pair that the "
    "subspace helps most, and the rest.",
    "pair_subspace.png": "The same images in the pair's subspace.",
    "gates.png": "Learned gates of each pair, dimensions by how many pairs open them.",
}
PICTURE = "auroc.png"


def task(config: Any) -> Task:
    """The training problem of the frozen encoder."""
    return methods.task(config, "simclr")


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(methods.build_model(config, "simclr"), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and freezes the encoder, learns a subspace a pair, measures on test images, draws."""
    evaluator = ImageEvaluator(methods.build_model(config, "simclr"), config)
    evaluator.check()
    names = evaluator.train.class_names
    features = evaluator.features(train_on_mesh(config, run, task(config)).variables)
    (images, labels), test = features
    options = dict(config.subspace)
    pairs = draw_pairs(options.pop("pairs"), classes=len(names), seed=config.seed)
    chosen = np.random.default_rng(config.seed).permutation(len(images))[: options.pop("images")]
    gates = learn_gates(images[chosen], labels[chosen], *pairs, **options)
    mixed = np.random.default_rng([config.seed, 1]).permutation(chosen)
    unlearned = learn_gates(images[chosen], labels[mixed], *pairs, **options)

    keys = jax.random.split(jax.random.key(1), len(gates))
    shuffled = jax.vmap(jax.random.permutation)(keys, gates)
    spaces = {
        "whole space": jnp.ones_like(gates), "subspace": gates, "random order": shuffled,
        "shuffled labels": unlearned,
    }  # fmt: skip
    auroc = {space: pair_auroc(*test, values, *pairs) for space, values in spaces.items()}
    draw(run, auroc, np.asarray(gates), test, pairs, names)
    mean = {space: float(values.mean()) for space, values in auroc.items()}
    return {
        "knn": evaluator.knn(features),
        "auroc_whole": mean["whole space"],
        "auroc_subspace": mean["subspace"],
        "auroc_random": mean["random order"],
        "auroc_subspace_lowest": float(auroc["subspace"].min()),
        "auroc_gain": mean["subspace"] - mean["whole space"],
        "auroc_over_random": mean["subspace"] - mean["random order"],
        "auroc_shuffled": mean["shuffled labels"],
        "auroc_gain_shuffled": mean["shuffled labels"] - mean["whole space"],
        "auroc_shuffled_over_random": mean["shuffled labels"] - mean["random order"],
        "gate_sparsity": float(jnp.mean(gates < 0.5)),
    }


def draw(run: RunDirectory, auroc: Any, gates: Any, test: Any, pairs: Any, names: Any) -> None:
    """Figures of the separation of pairs and of the gates that make it."""
    features, labels = test
    label = [f"{names[i]} {names[j]}" for i, j in zip(*pairs, strict=True)]
    figures.bars(
        run.figure("auroc.png"), label, auroc, ylabel="AUROC", xlabel="pair of classes",
        reference=("chance", 0.5),
    )  # fmt: skip
    figures.heatmap(
        run.figure("gates.png"), gates[:, np.argsort(-gates.sum(0), kind="stable")], label,
        xlabel="dimension, by how many pairs open it", value_label="gate",
    )  # fmt: skip
    best = int(np.argmax(auroc["subspace"] - auroc["whole space"]))
    i, j = (int(side[best]) for side in pairs)
    group = np.select([labels == i, labels == j], [0, 1], 2)
    for file, gate in (("pair_whole.png", 1.0), ("pair_subspace.png", gates[best])):
        plane = evaluation.embed_2d(normalize(features * gate), method="pca")
        figures.embedding(run.figure(file), np.asarray(plane), group, [names[i], names[j], "rest"])
