"""A frozen teacher of rare events for students that see few: flights that arrive hours late.

Days are disjoint among the teacher's rows, the students', validation and test, since flights of one
day share its weather; a day is the unit of intervals. Rows of late flights are repeated where
students and teacher are trained, so that both classes are about as frequent as `data.share` says.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.many import replaced
from experiments.distillation.noisy import Bed, classifier, teacher_config
from experiments.distillation.tgeokd_students import train_together
from experiments.distillation.together import each_logits
from rml.data.sets import flights
from rml.distillation import teacher_means
from rml.errors import UserError
from rml.evaluation import auroc_by_group
from rml.training import Progress, RunDirectory

COMMON, RARE = range(2)
"""Classes, and groups of training rows: others, and flights that are late."""
CATEGORIES = ("month", "hour", "carrier", "origin", "dest")
"""Columns with one input for each of their values; the distance is a number."""
DRAWN = ("teacher", "train", "validation")
"""Parts that have so many days; the test has those that are left."""
Part = Mapping[str, np.ndarray]


def make_bed(config: Any, run: RunDirectory) -> Bed:
    """Splits days, trains the teacher on rows of its own, and lets it read the students'.

    Args:
      config: The run's config, of which `data` and `teacher` are read.
      run: Its directory; the teacher is `methods/teacher`.

    Raises:
      UserError: The data are others, there are too few days, or a part has no flight of a class.
    """
    for key, value, expected in (
        ("data.name", config.data.name, flights.Flights.name), ("classes", config.classes, 2)
    ):  # fmt: skip
        if value != expected:
            raise UserError(f"{key} is {value!r}, expected {expected!r}: late flights and others")
    parts = split(list(flights.read()), config)
    own = replaced(teacher_config(config), {"given.setting": 0.0})  # the label alone
    net = classifier(own)

    def with_logits(part: Part, logits: np.ndarray) -> Part:
        return {**part, "teacher": logits, "group": part["label"]}

    def unknown(part: Part) -> Part:
        return with_logits(part, np.zeros((len(part["label"]), 2), np.float32))

    held = oversample(parts["validation"], config.data.share)
    first = Bed(
        unknown(oversample(parts["teacher"], config.data.share)), unknown(held), parts["test"],
        np.full((2, 2), 0.5, np.float32), 0.0, ("common", "rare"), ranked,
    )  # fmt: skip
    params = train_together(own, run, "teacher", [own], first, learned=False).params

    def read(part: Part) -> np.ndarray:
        return np.asarray(each_logits(net, {"params": params}, part["image"])[0], np.float32)

    train = oversample(parts["train"], config.data.share)
    known = read(train)
    area = float(ranked(net, {"params": params}, parts["test"]).mean())
    Progress().note(f"the teacher's area under the ROC curve is {area:.3f} on test flights")
    chances = jax.nn.softmax(jnp.asarray(known))
    means = np.asarray(teacher_means(chances, jnp.asarray(train["label"]), classes=2))
    return first._replace(
        train=with_logits(train, known), validation=with_logits(held, read(held)),
        means=means, teacher_accuracy=area,
    )  # fmt: skip


def split(rows: list[dict[str, Any]], config: Any) -> dict[str, Part]:
    """Draws days, and of the flights of each part's days so many, by the run's seed.

    Args:
      rows: Flights as `rml.data.sets.flights.read` gives them.
      config: The run's config, of which `data` and `seed` are read: `data.days` has the days of
        each part of `DRAWN`, `data.rows` the flights of these and of "test".

    Returns:
      By part "image" [n, 1, 1, d], "label" and "day".

    Raises:
      UserError: There are too few days, a part has no flight of a class, or flights have another
        number of inputs than `data.image_shape`.
    """
    own, rng = config.data, np.random.default_rng(config.seed)
    days = np.array([100 * row["month"] + row["day"] for row in rows])
    late = np.array([row["delay"] >= own.late for row in rows])
    distance = np.array([row["distance"] for row in rows], np.float32)
    columns = [np.unique([row[name] for row in rows], return_inverse=True) for name in CATEGORIES]
    shape = (1, 1, 1 + sum(len(values) for values, _ in columns))
    if tuple(own.image_shape) != shape:
        raise UserError(f"data.image_shape is {tuple(own.image_shape)}, flights have {shape}")
    order = rng.permutation(np.unique(days))
    drawn_days = [own.days[name] for name in DRAWN]
    if sum(drawn_days) >= len(order):
        raise UserError(
            f"data.days is {dict(own.days)}, expected fewer than {len(order)} together: those left "
            "are for the test"
        )
    parts: dict[str, Part] = {}
    for name, drawn in zip((*DRAWN, "test"), np.split(order, np.cumsum(drawn_days)), strict=True):
        there = np.flatnonzero(np.isin(days, drawn))
        kept = np.sort(rng.permutation(there)[: own.rows[name]])
        inputs = [((distance[kept] - distance.mean()) / distance.std())[:, None]]
        inputs += [np.eye(len(u), dtype=np.float32)[of[kept]] for u, of in columns]
        label = late[kept].astype(np.int32)
        if len(np.unique(label)) < 2:
            raise UserError(
                f"data.late is {own.late} and {name} has {label.sum()} such flights of "
                f"{len(label)}, expected some of either kind"
            )
        table = np.concatenate(inputs, axis=1).reshape(-1, *shape)
        parts[name] = {"image": table, "label": label, "day": days[kept]}
    return parts


def oversample(part: Part, share: float) -> Part:
    """Repeats the rows of the rare class, all of them equally often, until they have a share."""
    label = part["label"]
    rare, common = int(label.sum()), int((1 - label).sum())
    times = max(1, round(share / (1 - share) * common / rare))
    rows = np.repeat(np.arange(len(label)), np.where(label == RARE, times, 1))
    return {key: own[rows] for key, own in part.items()}


def ranked(model: Any, variables: Any, part: Part) -> np.ndarray:
    """For each student and day a value whose mean is the area under its ROC curve.

    Args:
      model: A module that gives two logits.
      variables: Its variables with a leading axis of students.
      part: "image", "label" and "day" of flights.
    """
    logits = np.asarray(each_logits(model, variables, part["image"]), np.float64)
    scores = logits[..., RARE] - logits[..., COMMON]
    return auroc_by_group(scores, part["label"] == RARE, part["day"])


def nats(model: Any, variables: Any, part: Part, share: float) -> float:
    """Mean cross-entropy in nats of students that saw rare rows repeated, which is corrected.

    Args:
      model: A module that gives two logits.
      variables: Its variables with a leading axis of students.
      part: "image" and "label" of flights as they are.
      share: That of the rare class among training rows; here it has its share of this part.
    """
    logits = np.asarray(each_logits(model, variables, part["image"]), np.float64)
    rare = part["label"] == RARE
    shift = np.log(rare.mean() / (1 - rare.mean())) - np.log(share / (1 - share))
    margin = logits[..., RARE] - logits[..., COMMON] + shift
    return float(np.logaddexp(0, np.where(rare, -margin, margin)).mean())
