"""The discovery behind Hydra: two arbitrary classes are alike in some subspace of SimCLR features.

A SimCLR encoder is trained and frozen. For pairs of classes drawn at random, gates on its features
are learned (nothing else) such that training images of the two classes agree with one another and
not with the rest. On test images it is then measured how well the cosine tells an image of the
other class of the pair from images of the remaining classes: in the whole space, in the learned
subspace, and in one whose gates are the learned ones in random order.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from sklearn.metrics import roc_auc_score

from experiments import figures
from experiments.contrastive import common as contrastive
from experiments.hydra import common
from rml import evaluation
from rml.errors import UserError
from rml.hydra.feature_filter import gate_penalty
from rml.hydra.loss import hydra_loss
from rml.hydra.pairs import number_of_pairs, unrank
from rml.ops.similarity import normalize
from rml.training import Claim, RunDirectory, Task

SOURCE = "Hydra (arXiv:2410.18200), the motivating experiment: arbitrary pairs under SimCLR"
CLAIMS = (
    Claim("Two arbitrary classes separate from the rest in a learned subspace: AUROC of at least "
          "0.8 on test images", "auroc_subspace", ">=", 0.8, SOURCE),
    Claim("They do so more than in the whole space, by 0.15",
          "auroc_gain", ">=", 0.15, SOURCE),
    Claim("It is the choice of dimensions that does it: 0.15 above the same gates in random order",
          "auroc_over_random", ">=", 0.15, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "auroc.png": "How well the cosine tells the pair's other class from the remaining classes, on "
    "test images.",
    "pair_whole.png": "Test images in the whole space (two principal axes): the pair that the "
    "subspace helps most, and the rest.",
    "pair_subspace.png": "The same images in the pair's subspace.",
    "gates.png": "Learned gates of each pair, dimensions by how many pairs open them.",
}


def task(config: Any) -> Task:
    """The training problem of the frozen encoder."""
    return common.task(config, "simclr")


def learn_gates(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    first: Int[Array, " p"],
    second: Int[Array, " p"],
    *,
    steps: int,
    learning_rate: float,
    temperature: float,
    penalty: float,
) -> Float[Array, "p d"]:
    """Learns the gates of each pair on frozen features.

    Args:
      features: Features of training images.
      labels: Their classes.
      first: One class of each pair.
      second: The other class.
      steps: Of Adam, all features at once.
      learning_rate: Of Adam.
      temperature: Of the loss.
      penalty: Weight of the gates' distance from binary values.

    Returns:
      Gates in (0, 1), a row a pair.
    """
    optimizer = optax.adam(learning_rate)

    def fit(pair: tuple[Array, Array]) -> Array:
        i, j = pair
        # Images of other classes have no partner, hence no positive: they are negatives only.
        partners = jnp.where(labels == i, j, jnp.where(labels == j, i, -1))

        def loss(logits: Array) -> Array:
            gates = jax.nn.sigmoid(logits)
            rows = jnp.broadcast_to(gates, features.shape)
            value = hydra_loss(features, labels, partners, rows, temperature=temperature)
            return value + penalty * gate_penalty(gates)

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            logits, state = carry
            updates, state = optimizer.update(jax.grad(loss)(logits), state)
            return (optax.apply_updates(logits, updates), state), None

        logits = jnp.zeros(features.shape[1])
        (logits, _), _ = jax.lax.scan(step, (logits, optimizer.init(logits)), None, steps)
        return jax.nn.sigmoid(logits)

    return jax.jit(lambda pairs: jax.lax.map(fit, pairs))((first, second))


def draw_pairs(classes: int, pairs: int, seed: int) -> tuple[Array, Array]:
    """Different pairs of two classes each, uniformly; all of them where there are no more."""
    if classes < 3:
        raise UserError(f"pairs against the rest need at least 3 classes, got {classes}")
    number = number_of_pairs(classes - 1)  # i <= j of one class less is i < j + 1
    rng = np.random.default_rng(seed)
    i, j = unrank(rng.choice(number, min(pairs, number), replace=False), classes=classes - 1)
    return jnp.asarray(i), jnp.asarray(j + 1)


def pair_auroc(
    features: Float[Array, "n d"], labels: np.ndarray, gates: Float[Array, " d"], i: int, j: int
) -> float:
    """AUROC of the cosine of gated features, images of the other class against remaining ones."""
    z = normalize(features * gates)
    cosine = np.asarray(z @ z.T)
    scores, truth = [], []
    for own, other in ((i, j), (j, i)):
        rest = (labels != own) & (labels != other)
        for columns, positive in ((labels == other, 1), (rest, 0)):
            values = cosine[labels == own][:, columns].reshape(-1)
            scores.append(values)
            truth.append(np.full(len(values), positive))
    return float(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains and freezes the encoder, learns a subspace a pair, measures on test images, draws."""
    judges = common.Judges(config, "simclr")
    names = judges.home.train.class_names
    state = common.train(config, run, task(config))
    trained = judges.home.features(contrastive.variables(state))
    (train, train_labels), (test, test_labels) = trained
    options = dict(config.subspace)
    pairs, size = options.pop("pairs"), options.pop("images")
    chosen = np.random.default_rng(config.seed).permutation(len(train))[:size]
    first, second = draw_pairs(len(names), pairs, config.seed)
    gates = learn_gates(train[chosen], train_labels[chosen], first, second, **options)

    labels = np.asarray(test_labels)
    shuffled = jax.vmap(jax.random.permutation)(
        jax.random.split(jax.random.key(1), len(gates)), gates
    )
    spaces = {"whole space": jnp.ones_like(gates), "subspace": gates, "random order": shuffled}
    auroc = {
        space: np.array(
            [
                pair_auroc(test, labels, values[p], int(first[p]), int(second[p]))
                for p in range(len(gates))
            ]
        )
        for space, values in spaces.items()
    }
    draw(run, auroc, gates, trained, (np.asarray(first), np.asarray(second)), names)
    mean = {space: float(values.mean()) for space, values in auroc.items()}
    return {
        "knn": judges.home.knn(trained),
        "auroc_whole": mean["whole space"],
        "auroc_subspace": mean["subspace"],
        "auroc_random": mean["random order"],
        "auroc_subspace_lowest": float(auroc["subspace"].min()),
        "auroc_gain": mean["subspace"] - mean["whole space"],
        "auroc_over_random": mean["subspace"] - mean["random order"],
        "gate_sparsity": float(jnp.mean(gates < 0.5)),
    }


def draw(run: RunDirectory, auroc: Any, gates: Any, trained: Any, pairs: Any, names: Any) -> None:
    """Figures of the separation of pairs and of the gates that make it."""
    test, labels = trained[1][0], np.asarray(trained[1][1])
    label = [f"{names[i]} {names[j]}" for i, j in zip(*pairs, strict=True)]
    figures.bars(
        run.figure("auroc.png"), label, auroc, ylabel="AUROC", xlabel="pair of classes",
        reference=("chance", 0.5),
    )  # fmt: skip
    gates = np.asarray(gates)
    figures.heatmap(
        run.figure("gates.png"), gates[:, np.argsort(-gates.sum(0), kind="stable")], label,
        xlabel="dimension, by how many pairs open it", value_label="gate",
    )  # fmt: skip
    best = int(np.argmax(auroc["subspace"] - auroc["whole space"]))
    i, j = int(pairs[0][best]), int(pairs[1][best])
    group = np.where(labels == i, 0, np.where(labels == j, 1, 2))
    group_names = [names[i], names[j], "rest"]
    for file, gate in (
        ("pair_whole.png", np.ones_like(gates[best])),
        ("pair_subspace.png", gates[best]),
    ):
        plane = evaluation.embed_2d(normalize(test * gate), method="pca")
        figures.embedding(run.figure(file), np.asarray(plane), group, group_names)
