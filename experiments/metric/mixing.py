"""Retrieval among novel classes after training on mixed examples, beside the same losses unmixed.

Every method trains the same encoder with a linear embedding on base classes, in the same batches
and for as many steps; those whose `updates` are above 1 for so many times as many, since mixing
takes time too. Options are chosen on validation classes, with equally many tries of each method.
Each image of novel classes then looks for others of its class among all images of novel classes.

Beside retrieval is measured how far novel images lie from those trained on (`utilization`, relative
to the mean squared distance of novel images from one another), how much nearer mixtures come, and
how often mixtures act as positives in the loss, beside what `positivity_threshold` says.

All of it is repeated on several splits of the classes, see `experiments.metric.splits`.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from experiments.common import figures
from experiments.common import tries as common_tries
from experiments.common.class_parts import image_parts
from experiments.common.comparison import for_each
from experiments.common.encoders import image_encoder
from experiments.common.evaluators import Labelled, encode
from experiments.common.pretraining import train_on_mesh
from experiments.metric import splits
from experiments.metric.methods import with_class_vectors
from experiments.metric.mixing_methods import FORMS, check_methods
from experiments.metric.mixing_methods import task as task_of
from experiments.ranges import SIZE, Range
from rml import data
from rml.encoder import ImageEmbedder
from rml.evaluation import class_retrieval, utilization
from rml.losses import PairForm, pair_loss
from rml.metric import draw_mixtures, mix, mixed_similarities, positivity_threshold
from rml.ops import normalize
from rml.training import Claim, RunDirectory, Task, TrainState

SOURCE = (
    "It Takes Two to Tango: Mixup for Deep Metric Learning (arXiv:2106.04990), abstract; data and "
    "margin are this repository's"
)
STATED = "2026-12-03"
LOSSES = ("contrastive", "multi_similarity", "proxy_anchor")
CLAIMS = (
    Claim("Recall@1 of contrastive with mixed features is above that without",
          "contrastive_feature_over_none", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null="contrastive_twice_over_none",
          says="Mixing features changes Recall@1 of the contrastive loss by {mean:+.1p} points "
          "({contrastive_feature_recall1:.1%} against {contrastive_none_recall1:.1%})"),
    Claim("Recall@1 of multi-similarity with mixed features is above that without by 1 point",
          "multi_similarity_feature_over_none", ">=", 0.01, SOURCE,
          stated=STATED, null="multi_similarity_twice_over_none",
          says="It changes Recall@1 of the multi-similarity loss by {mean:+.1p} points"),
    Claim("Recall@1 of contrastive with mixed embeddings is above that with the label of the "
          "nearer example by half a point",
          "contrastive_embedding_over_hard", ">=", 0.005,
          "arXiv:2106.04990, abstract: target labels are interpolated; margin is this "
          "repository's", stated=STATED, null="contrastive_none_over_hard",
          says="Mixing labels too changes Recall@1 by {mean:+.1p} points beside the label of the "
          "nearer example"),
    Claim("Novel images lie nearer to training images after training on mixed features: relative "
          "utilization is at most 0.95 of that without",
          "contrastive_feature_utilization_ratio", "<=", 0.95,
          "arXiv:2106.04990, utilization; margin is this repository's",
          stated=STATED, null="contrastive_twice_utilization_ratio",
          says="After mixing, novel images are {mean:.2f} times as far from training images as "
          "without"),
)  # fmt: skip
CAPTIONS = {
    "recall.png": "Novel classes: share of images whose nearest other image is of their class "
    "(Recall@1), and mean average precision at R, by method; mean over splits with its 95% "
    "interval.",
    "utilization.png": "Mean squared distance of novel images to the nearest training image, and "
    "to the nearest of training images and mixtures, relative to their mean squared distance from "
    "one another; mean over splits with its 95% interval.",
    "positivity.png": "Share of mixtures that act as positives in the multi-similarity loss after "
    "training with it, by the share of the positive example: measured by the gradient's sign, and "
    "by the distribution of similarities at the threshold of one mixture.",
}
PICTURE = "recall.png"
RANGES = {
    "splits": SIZE, "batch.classes": Range(2, whole=True), "batch.examples": Range(2, whole=True),
    "mixing.input": SIZE, "mixing.feature": SIZE, "mixing.embedding": SIZE,
}  # fmt: skip
STAGED = True  # tries choose the options of all methods by the evaluation
OURS, MEASURED = "contrastive_feature", "multi_similarity_embedding"
SHARES = tuple(round(0.1 * i, 1) for i in range(1, 10))
DRAWS = 8
"""Mixtures of each training image that `utilization` sees."""
IMAGES = 1000
"""Training images that are mixed for it."""


def task(config: Any) -> Task:
    """The training problem of the method of a directory `methods/<name>`, or of mixed features.

    Judged on validation classes.
    """
    method = config.get("method", OURS)
    parts = cache(lambda: image_parts(config))  # a task is made without opening data

    def evaluate(state: TrainState) -> dict[str, float]:
        return {"validation": recall(config, state, parts()["validation"])}

    return task_of(config, method, lambda part: parts()[part], evaluate)


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The embeddings of images that a trained state gives."""
    return image_encoder(with_class_vectors(config), config, state)


def tries(config: Any) -> dict[str, int]:
    """Options that each method chooses from on validation classes."""
    found = common_tries.candidates(config, config.methods)
    return {method: len(own) for method, own in found.items()}


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Chooses, trains and measures in each split, compares over splits, draws."""
    check_methods(config)
    common_tries.candidates(config, config.methods)
    metrics = splits.measure_all(config, run, measure_split)
    draw(config, run, metrics)
    return metrics


def measure_split(own: Any, run: RunDirectory) -> dict[str, float]:
    """Measures every method on one split of the classes, with options chosen on it."""
    parts = image_parts(own)

    def problem(one: Any, method: str) -> Task:
        return task_of(one, method, parts.__getitem__, lambda state: {})

    tried = common_tries.candidates(own, own.methods)
    short = {method: [splits.shortened(one) for one in each] for method, each in tried.items()}
    chosen, metrics = common_tries.choose(
        own, run, short, task=problem, name="validation",
        score=lambda method, one, state: recall(one, state, parts["validation"]),
    )  # fmt: skip

    def measure(method: str, inner: RunDirectory) -> tuple[dict[str, float], None]:
        one = longer(tried[method][chosen[method]], method)
        state = train_on_mesh(one, inner, problem(one, method))
        return measure_method(one, method, state, parts), None

    for method, (found, _) in for_each(run, own.methods, measure).items():
        metrics |= {f"{method}_{name}": value for name, value in found.items()}
    return metrics | differences(metrics)


def longer(config: Any, method: str) -> Any:
    """The config of a method, which takes `updates` times as many steps."""
    one = config.copy_and_resolve_references()
    steps = one.train.steps * one.methods[method].updates
    one.train.update(dict(steps=steps, checkpoint_every=steps))
    return one


def embed(config: Any, state: TrainState, source: data.Source) -> Labelled:
    """Unit embeddings and labels of a source's images."""
    x, labels = encode(encoder(config, state), source, batch_size=config.evaluation.batch_size)
    return normalize(x), labels


def recall(config: Any, state: TrainState, source: data.Source) -> float:
    """Recall@1 among the images of some classes."""
    return float(jnp.mean(class_retrieval(*embed(config, state, source))["recall@1"]))


def measure_method(
    config: Any, method: str, state: TrainState, parts: Mapping[str, data.ArraySource]
) -> dict[str, float]:
    """Retrieval, utilization and positivity of one trained method."""
    novel, labels = embed(config, state, parts["novel"])
    base, base_labels = embed(config, state, parts["base"])
    found = {
        name.replace("@", ""): float(jnp.mean(values))
        for name, values in class_retrieval(novel, labels, cutoffs=(1, 4)).items()
    }
    key = jax.random.key(config.seed)
    found |= relative_utilization(key, novel, base, base_labels, alpha=config.mixing.alpha)
    if method == MEASURED:
        options, batch = config.methods[method], config.batch
        rows = np.flatnonzero(base_labels < batch.classes)
        found |= positivity(
            key, base[rows], base_labels[rows], FORMS[options.loss](options),
            dict(beta=options.beta, gamma=options.gamma, margin=options.margin),
            per_anchor=config.mixing.embedding,
        )  # fmt: skip
    return found


def relative_utilization(
    key: Key[Array, ""],
    novel: Float[Array, "q d"],
    base: Float[Array, "n d"],
    labels: Int[Any, " n"],
    *,
    alpha: float,
) -> dict[str, float]:
    """How far novel images lie from training images, and from these and mixtures of them.

    Both are relative to the mean squared distance of novel images from one another.
    """
    # Of unit rows it is 2 - 2 |mean|², over all ordered pairs.
    scale = 2 - 2 * jnp.sum(jnp.mean(novel, axis=0) ** 2)
    choose, *draws = jax.random.split(key, 1 + DRAWS)
    picked = jax.random.permutation(choose, len(base))[:IMAGES]
    rows, classes = base[picked], jnp.asarray(labels)[picked]

    @jax.jit
    def mixed(key: Array) -> tuple[Array, Array]:
        pairs = draw_mixtures(key, classes, per_anchor=1, alpha=alpha)
        return normalize(mix(rows, pairs))[:, 0], pairs.where[:, 0]

    drawn = [mixed(one) for one in draws]
    there = jnp.concatenate([points[where] for points, where in drawn])
    return {
        "utilization": float(utilization(novel, base) / scale),
        "utilization_with_mixtures": float(
            utilization(novel, jnp.concatenate([base, there])) / scale
        ),
    }


def positivity(
    key: Key[Array, ""],
    rows: Float[Array, "n d"],
    labels: Int[Any, " n"],
    form: PairForm,
    sharpness: Mapping[str, float],
    *,
    per_anchor: int,
) -> dict[str, float]:
    """How often a mixture acts as a positive, by share: measured, and as the threshold says.

    It does where the derivative of the loss of an anchor's mixtures by its similarity is not above
    0. `positivity_gap` is the largest difference over shares, `positivity_gap_of_one_half` that
    from the threshold of equal shares.
    """
    pairs = draw_mixtures(
        key, jnp.asarray(labels), per_anchor=per_anchor, kinds=("positive-negative",)
    )

    @jax.jit
    def of_share(share: Array) -> tuple[Array, Array, Array]:
        own = pairs._replace(weight=share, targets=jnp.full(pairs.first.shape, share))
        s = mixed_similarities(rows, rows, own)
        slope = jax.grad(lambda s: pair_loss(s, own.targets, form=form, where=own.where))(s)

        def part(chosen: Array) -> Array:
            return jnp.sum(chosen & own.where) / jnp.maximum(jnp.sum(own.where), 1)

        thresholds = (positivity_threshold(one, **sharpness) for one in (share, jnp.float32(0.5)))
        expected, constant = (part(s <= threshold) for threshold in thresholds)
        return part(slope <= 0), expected, constant

    found = np.array([[float(x) for x in of_share(jnp.float32(share))] for share in SHARES])
    measured, expected, constant = found.T
    metrics = {
        "positivity_gap": float(np.abs(measured - expected).max()),
        "positivity_gap_of_one_half": float(np.abs(measured - constant).max()),
    }
    for share, one, other in zip(SHARES, measured, expected, strict=True):
        metrics |= {f"positivity_{share}": float(one), f"positivity_expected_{share}": float(other)}
    return metrics


def differences(metrics: Mapping[str, float]) -> dict[str, float]:
    """What the claims compare, in one split."""
    found: dict[str, float] = {}

    def above(one: str, other: str) -> None:
        loss, _, mode = one.rpartition("-")
        found[f"{loss}_{mode}_over_{other}"] = (
            metrics[f"{loss}_{mode}_recall1"] - metrics[f"{loss}_{other}_recall1"]
        )

    for loss in LOSSES:
        above(f"{loss}-feature", "none")
        above(f"{loss}-embedding", "none")
        above(f"{loss}-twice", "none")
    for loss in ("contrastive", "multi_similarity"):
        above(f"{loss}-input", "none")
        above(f"{loss}-embedding", "hard")
        above(f"{loss}-none", "hard")
    above("contrastive-feature", "embedding")
    above("contrastive-none", "embedding")
    for mode in ("feature", "embedding", "twice"):
        found[f"contrastive_{mode}_utilization_ratio"] = (
            metrics[f"contrastive_{mode}_utilization"] / metrics["contrastive_none_utilization"]
        )
    found |= {
        name: metrics[f"{MEASURED}_{name}"]
        for name in ("positivity_gap", "positivity_gap_of_one_half")
    }
    return found


def draw(config: Any, run: RunDirectory, metrics: Mapping[str, float]) -> None:
    """Draws retrieval and utilization by method, and positivity by share."""
    rows = [method.replace("_", " ") for method in config.methods]

    def panel(name: str, scale: float) -> tuple[list[float], list[float]]:
        keys = [f"{method}_{name}" for method in config.methods]
        ends = [(metrics.get(f"{key}_low", np.nan), metrics.get(f"{key}_high", np.nan))
                for key in keys]  # fmt: skip
        halves = [scale * (high - low) / 2 for low, high in ends]
        return [scale * metrics[key] for key in keys], halves

    figures.dots(
        run.figure("recall.png"), rows,
        {"Recall@1": panel("recall1", 100), "MAP@R": panel("mapr", 100)},
        "novel classes (%), 95% interval over splits",
    )  # fmt: skip
    figures.dots(
        run.figure("utilization.png"), rows,
        {
            "training images": panel("utilization", 1),
            "and mixtures": panel("utilization_with_mixtures", 1),
        },
        "relative squared distance, 95% interval over splits",
    )  # fmt: skip
    values = {
        name: np.array([metrics[f"{MEASURED}_{place}{share}"] for share in SHARES])
        for name, place in (("by the gradient", "positivity_"),
                            ("by the threshold", "positivity_expected_"))
    }  # fmt: skip
    figures.curves(
        run.figure("positivity.png"), {name: (np.array(SHARES), y) for name, y in values.items()},
        "share of the positive example", "share acting as positives",
    )  # fmt: skip
