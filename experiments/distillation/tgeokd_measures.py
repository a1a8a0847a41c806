"""What learned ratios say of images, what a step costs, and accuracies beside one another."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import stats

from experiments.common.claims import with_bounds
from experiments.common.many import replaced
from experiments.common.timing import least_seconds, median_ratio
from experiments.distillation.noisy import CLEAN, FLIPPED, NOISE, Bed, classifier
from experiments.distillation.tgeokd_students import batches, encoded, losses_of, ratio_of, task
from rml.data import augment
from rml.ops import t_interval
from rml.training import initial_state

PAIRS = {
    "tgeokd_over_kd": ("tgeokd", "kd"),
    "tgeokd_over_kd_all": ("tgeokd", "kd_all"),
    "shuffled_over_kd_all": ("shuffled", "kd_all"),
    "kd_again_over_kd": ("kd_again", "kd"),
    **{
        f"{side}_over_{other}": (side, other)
        for side in ("tgeokd", "shuffled")
        for other in ("fixed", "fixed_all", "oracle", "scalar", "losses")
    },
    **{f"tgeokd_over_{rule}": ("tgeokd", rule)
       for rule in ("linear", "cosine", "correctness", "entropy", "wls", "annealing", "dkd", "ce")},
    "st_gain": ("sg_tg_st", "sg_tg"),
    "inter_gain": ("tgeokd", "sg_tg_st"),
    "points_gain": ("tgeokd", "no_points"),
    "st_gain_of_sides": ("no_points_sg_tg_st", "no_points_sg_tg"),
    "inter_gain_of_sides": ("no_points", "no_points_sg_tg_st"),
    "squares_over_signed": ("tgeokd", "signed"),
    "squares_over_norm": ("tgeokd", "norm"),
    "seed_gain": ("again", "tgeokd"),
    "again_loss": ("tgeokd", "again"),
}  # fmt: skip
"""Differences of accuracy."""


class OfImages(NamedTuple):
    """What students make of every training image; ratios and sides are means over students.

    Attributes:
      ratio: Share of the teacher.
      st: Euclidean distance of the student's and the teacher's probabilities.
      sg: That of the student's and the label.
      right: Whether the teacher's class is the label that is given.
    """

    ratio: np.ndarray
    st: np.ndarray
    sg: np.ndarray
    right: np.ndarray


def compared(right: Mapping[str, np.ndarray], measure: str = "accuracy") -> dict[str, float]:
    """Accuracies on test images, and their paired differences with intervals over images."""
    metrics = {f"{measure}_{name}": float(own.mean()) for name, own in right.items()}
    for name, (first, second) in PAIRS.items():
        metrics |= with_bounds(name, t_interval(right[first] - right[second]))
    return metrics


def read_images(config: Any, bed: Bed, params: Any, omega: Any) -> OfImages:
    """The ratios of all training images at the end of the training.

    Args:
      config: The config of the students, of which `relations` is read.
      bed: What they learned from.
      params: Parameters of students, with a leading axis.
      omega: Parameters of their ratios likewise.
    """
    model = classifier(config)
    # Relations of another image are the next row's, and rows may be sorted. The draw has a stream
    # of its own, since by that of the seed `noisy.spoil` gives images their groups.
    order = np.random.default_rng([config.seed, 6]).permutation(len(bed.train["label"]))
    rows = {key: jnp.asarray(own[order]) for key, own in bed.train.items()}
    truth = jax.nn.one_hot(rows["label"], config.classes)
    teacher = jax.nn.softmax(rows["teacher"], axis=-1)

    @jax.jit
    def read(params: Any, omega: Any) -> tuple[Array, Array, Array]:
        def of_one(own: Any) -> tuple[Array, Array, Array]:
            params, omega = own
            images = augment.to_float(rows["image"])
            logits = jnp.asarray(model.apply({"params": params}, images, train=False))
            ratio = ratio_of(omega, encoded(config, bed, logits, rows))
            student = jax.nn.softmax(logits, axis=-1)
            sides = (jnp.linalg.norm(student - other, axis=-1) for other in (teacher, truth))
            return (ratio, *sides)

        return jax.lax.map(of_one, (params, omega))

    back = np.argsort(order)
    ratio, st, sg = (np.asarray(x, np.float64).mean(0)[back] for x in read(params, omega))
    return OfImages(ratio, st, sg, bed.train["teacher"].argmax(1) == bed.train["label"])


def group_measures(bed: Bed, own: OfImages) -> dict[str, float]:
    """How ratios tell groups of images apart, and how they move with the side ST.

    Returns:
      Means by group; the share of pairs in which an image of noise has a lower ratio than a clean
      one, and one with a wrong label a higher; slopes of the ratio against ST where the teacher's
      class is the label, and where it is not, of all images and of clean ones alone, where it is
      the teacher that is wrong.
    """
    group = bed.train["group"]
    of = {name: own.ratio[group == i] for i, name in ((CLEAN, "clean"), (FLIPPED, "flipped"),
          (NOISE, "noise"))}  # fmt: skip
    metrics = {f"ratio_{name}": ratios.mean() for name, ratios in of.items()}
    metrics["noise_lower"] = above(of["clean"], of["noise"])
    metrics["flipped_higher"] = above(of["flipped"], of["clean"])
    clean = OfImages(*(each[group == CLEAN] for each in own))
    of_clean = {f"{key}_clean": value for key, value in moves(clean).items()}
    return metrics | moves(own) | of_clean


def moves(own: OfImages) -> dict[str, float]:
    """Slopes of the ratio against ST, its deviation, and the share of ratios near 0 or 1.

    One slope is that of images whose label is the teacher's class, one that of the others.
    """
    metrics = {}
    for name, rows in (("right", own.right), ("wrong", ~own.right)):
        spread = own.st[rows] - own.st[rows].mean()
        metrics[f"slope_{name}"] = (spread @ own.ratio[rows]) / max(spread @ spread, 1e-12)
    ends = np.minimum(own.ratio, 1 - own.ratio) < 0.01
    return metrics | {"ratio_deviation": own.ratio.std(), "ratio_at_ends": ends.mean()}


def above(first: np.ndarray, second: np.ndarray) -> float:
    """Share of pairs in which the first is greater, half of those in which both are equal."""
    ranks = stats.rankdata(np.concatenate([first, second]))[: len(first)]
    wins = ranks.sum() - len(first) * (len(first) + 1) / 2
    return float(wins / (len(first) * len(second)))


def costs(config: Any, bed: Bed) -> dict[str, float]:
    """Seconds of a training step over those with a fixed ratio: ours, and with a gradient each.

    Steps are timed in turns, and that of a fixed ratio computes no other rule. Students are those
    of `config.timing`, large enough for arithmetic to be what takes time. The naive form computes
    the gradient of every image for the inner products with the validation gradient, where ours
    takes the transpose of the step's gradient.
    """
    config = replaced(
        config,
        {"model.hidden": config.timing.hidden, "train.batch_size": config.timing.batch_size},
    )
    batch = jax.device_put(next(iter(batches(config, bed))))
    held = {key: batch[f"validation_{key}"] for key in ("image", "label", "teacher")}
    steps, repeats = [], config.timing.repeats
    for own in (dict(learned=False, rules=False), dict(learned=True)):
        problem = task(config, bed, **own)
        state = initial_state(problem, seed=config.seed)
        steps.append(partial(jax.jit(problem.step), state, batch))
    plain, ours = steps
    params, losses = state.params, losses_of(config, rules=False)

    @jax.jit
    def naive(params: Any) -> Array:
        def judged(params: Any) -> Array:
            return jnp.mean(losses(params, held)[1])

        def of_one(row: Any) -> Any:
            one = jax.tree.map(lambda leaf: leaf[None], row)
            return jax.grad(lambda params: jnp.subtract(*losses(params, one)[:2])[0])(params)

        own = {key: batch[key] for key in ("image", "label", "teacher")}
        each, along = jax.vmap(of_one)(own), jax.grad(judged)(params)
        products = jax.tree.map(lambda g, v: g.reshape(len(g), -1) @ v.ravel(), each, along)
        return sum(jax.tree.leaves(products), start=jnp.zeros(()))

    return {
        "seconds_kd": least_seconds(plain, repeats=repeats),
        "seconds_over_kd": median_ratio(ours, plain, repeats=repeats),
        "seconds_naive_over_kd": 1 + median_ratio(partial(naive, params), plain, repeats=repeats),
    }
