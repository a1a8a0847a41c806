"""ScaleKD and One-for-All: a ConvNet learns clothes from few images and from a ViT.

Fan, Li, Liu and Yao, ScaleKD: Strong Vision Transformers Could Be Excellent Teachers,
arXiv:2411.06786, NeurIPS 2024: the student's last two stages follow the ViT in the space of its
tokens. Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
Distillation, arXiv:2310.19444, NeurIPS 2023: exits of the student's stages learn the ViT's classes
by a loss that weighs the right one by γ.

The ViT has learned from many images and is the same for all seeds. What differs among arms of one
kind of student are floats of `given`, so that they are one program. Kinds are the student alone,
with projectors that attend or are linear, and with exits. Data, networks and margin are this
repository's.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from experiments.common.trial import (
    BASELINE,
    METHOD,
    NULL,
    PART,
    REFERENCE,
    Arm,
    Go,
    Metric,
    Question,
    Trial,
    recipe,
)
from experiments.distillation.families import READ, classifier, make_bed, read
from experiments.ranges import Range
from rml import data, models
from rml.data import augment
from rml.distillation import (
    ExitNetwork,
    Network,
    Outputs,
    Projected,
    ScaleNetwork,
    dual_view,
    last_blocks,
    network_variables,
    through_teacher,
)
from rml.errors import UserError, unknown
from rml.losses import fitnet_loss, kd_loss, smoothed_cross_entropy, target_enhanced_loss
from rml.models import ViT
from rml.training import Loss, RunDirectory, Task, TrainState, build_optimizer, gradient_task

KINDS = ("plain", "linear", "attention", "exits", "teacher")
"""Kinds of students; the last is no student but the ViT itself."""
RATES = {"optimizer.learning_rate": (0.012, 0.035, 0.1)}
KD = {"given.kd": 0.9, "given.label": 0.1}
HALF = {"given.kd": 0.5, "given.label": 0.5}
EXITS = {"kind": "exits", "given.ofa": 1.0}
SCALE = {"kind": "attention", "given.strength": 0.3, **HALF}
AGAIN = {"given.again": 1.0}


class Lessons(NamedTuple):
    """What all students learn from and are judged on.

    Attributes:
      images: Training images [n, h, w, c] as bytes.
      labels: Their classes [n].
      logits: The ViT's logits of them [n, k].
      third: Its tokens before its last blocks [n, t, d].
      last: Its last tokens after the norm, likewise.
      path: Its last blocks.
      parts: Images that are judged, as "image" and "label" of each part.
      right: Whether the ViT names them rightly [n], of each part.
    """

    images: Array
    labels: Array
    logits: Array
    third: Array
    last: Array
    path: Callable[[Array], Array]
    parts: dict[str, dict[str, np.ndarray]]
    right: dict[str, np.ndarray]


def bed(config: Any, run: RunDirectory) -> Lessons:
    """Trains the ViT, and reads the students' images by it."""
    made = make_bed(config, run)
    (name,) = made.families
    net, variables = classifier(config, config.teachers[name]), made.variables[name]
    vit = models.build(**config.teachers[name])
    assert isinstance(vit, ViT)
    own = {"params": variables["params"]["encoder"]}
    tail, own = last_blocks(vit, own, start=vit.depth - config.path.blocks)
    stages = read(net, variables, made.train["image"]).stages
    last = jax.jit(partial(through_teacher, tail, own, start=tail.depth))(stages[-1])
    parts = {"validation": dict(made.validation), "test": dict(made.test)}
    right = {
        part: np.argmax(read(net, variables, own["image"]).logits, -1) == own["label"]
        for part, own in parts.items()
    }
    return Lessons(
        jnp.asarray(made.train["image"]), jnp.asarray(made.train["label"]),
        jnp.asarray(made.train["teacher"][:, 0]), jnp.asarray(stages[-1 - config.path.blocks]),
        jnp.asarray(last), partial(through_teacher, tail, own, start=0), parts, right,
    )  # fmt: skip


def student(config: Any) -> Network | ExitNetwork | ScaleNetwork:
    """A student as it is trained."""
    encoder = models.build(**config.student)
    if config.kind == "plain":
        return Network(encoder, config.classes)
    if config.kind == "exits":
        exits = models.Exits(config.classes, **config.exits)
        return ExitNetwork(encoder, config.classes, exits)
    (vit,) = config.teachers.values()
    grid = tuple(-(-side // vit.patch_size) for side in config.data.image_shape[:2])
    return ScaleNetwork(
        encoder, config.classes, grid=grid, width=vit.width, heads=config.projectors.heads,
        scale=config.given.scale, projector=config.kind,
    )  # fmt: skip


def value(config: Any, found: Outputs | Projected, known: Lessons) -> Array:
    """The loss of each image: that of the label, and the losses whose weights are not 0.

    Where `path` is 0, the last stage but one is compared with the ViT's own tokens before its last
    blocks, since it does not pass these.
    """
    given = config.given
    each = given.label * smoothed_cross_entropy(
        found.logits, known.labels, smoothing=given.smoothing
    )
    each += given.kd * kd_loss(found.logits, known.logits, temperature=given.temperature)
    if isinstance(found, Projected):
        weights = {"direct": given.direct, "alternative": given.alternative}
        target = given.path * known.last + (1 - given.path) * known.third
        stages = dual_view(found.third, target, **weights)
        stages += dual_view(found.fourth, known.last, **weights)
        each += given.strength * stages
        each += given.fitnet * fitnet_loss(found.fourth[0], known.last)
    elif found.exits is not None:
        label = jax.vmap(lambda own: smoothed_cross_entropy(own, known.labels, smoothing=0.0))
        outputs = jnp.concatenate([found.exits, found.logits[None]])
        beside = target_enhanced_loss(outputs, known.logits, known.labels, gamma=given.gamma)
        each += given.ofa * jnp.sum(beside, axis=0)
        each += given.hard * jnp.sum(label(found.exits), axis=0)
    return each


def taught(config: Any, lessons: Lessons, rows: Array) -> Lessons:
    """What the ViT says of images of a batch; with `own` 0 tokens and classes of other images."""
    given, share = config.given, config.given.own

    def mixed(x: Array) -> Array:
        return share * x[rows] + (1 - share) * jnp.roll(x[rows], 1, axis=0)

    def path(x: Array) -> Array:
        return given.path * lessons.path(x) + (1 - given.path) * x

    return lessons._replace(
        images=lessons.images[rows], labels=lessons.labels[rows], logits=mixed(lessons.logits),
        third=mixed(lessons.third), last=mixed(lessons.last), path=path,
    )  # fmt: skip


def fit(config: Any, bed: Lessons) -> Task | dict[str, Array]:
    """The problem of one student; the ViT is trained already."""
    if config.kind == "teacher":
        return {}
    module = student(config)

    def init(key: Any) -> Any:
        images = jnp.zeros((2, *config.data.image_shape))
        key = jax.random.fold_in(key, jnp.asarray(config.given.again, jnp.uint32))
        return module.init(key, images, train=True)

    def loss(params: PyTree, state: TrainState, batch: Any) -> Loss:
        known = taught(config, bed, batch["row"])
        given: dict[str, Any] = {"path": known.path} if isinstance(module, ScaleNetwork) else {}
        found, changed = module.apply(
            state.training_variables(params), augment.to_float(known.images), train=True,
            mutable=list(state.model_state), **given,
        )  # fmt: skip
        return Loss(jnp.mean(value(config, found, known)), model_state=changed)

    def batches(part: int = 0, parts: int = 1) -> Any:
        rows = data.Arrays({"row": np.arange(len(bed.labels), dtype=np.int32)})
        seed = int(config.seed) + OTHER * int(config.given.again)
        return data.batches(
            rows, batch_size=config.train.batch_size, seed=seed, part=part, parts=parts
        )

    return gradient_task(
        loss=loss,
        init_variables=init,
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=batches,
        evaluate=lambda state: {},
        batch_spec={"row": jax.ShapeDtypeStruct((config.train.batch_size,), jnp.int32)},
    )


OTHER = 1_000
"""What is added to the seed of batches where a student is trained once more."""


def score(config: Any, bed: Lessons, state: Any, part: str) -> np.ndarray:
    """By image, whether its class is named rightly, by the student without projectors or exits."""
    if config.kind == "teacher":
        return bed.right[part]
    apply = _classes(Network(models.build(**config.student), config.classes))
    variables, images = network_variables(state.variables), bed.parts[part]["image"]
    named = [apply(variables, images[i : i + READ]) for i in range(0, len(images), READ)]
    return np.concatenate(named) == bed.parts[part]["label"]


@cache
def _classes(module: Network) -> Callable[[PyTree, np.ndarray], Array]:
    """One function for each network, so that it is compiled once."""

    @jax.jit
    def apply(variables: PyTree, images: Array) -> Array:
        found: Any = module.apply(variables, augment.to_float(images), train=False)
        return jnp.argmax(jnp.asarray(found.logits), axis=-1)

    return apply


def check(config: Any) -> None:
    """Raises `UserError` unless there is one ViT, and its kind of student is known."""
    if config.kind not in KINDS:
        raise unknown("kind", config.kind, KINDS)
    if len(config.teachers) != 1:
        raise UserError(f"teachers are {list(config.teachers)}, expected one")
    (vit,) = config.teachers.values()
    if vit.get("pooling") != "gap":
        raise UserError(
            f"pooling of teachers is {vit.get('pooling')!r}, expected 'gap': a class token is no "
            "place of the grid"
        )
    if config.path.blocks >= vit.depth:
        raise UserError(f"path.blocks is {config.path.blocks}, expected fewer than {vit.depth}")


SHARE = Range(high=1)
RANGES = {
    "given.own": SHARE, "given.path": SHARE, "given.kd": SHARE, "given.images": Range(1),
    "given.gamma": Range(above=True), "seeds": Range(1, whole=True),
    "tuning_seeds": Range(whole=True),
}  # fmt: skip
SIMPLE = ("label", "kd", "kd_longer", "fitnet")
TRIAL = Trial(
    metrics={"accuracy": Metric("accuracy", unit="image")},
    arms={
        "label": Arm("label alone", BASELINE, {"given.smoothing": 0.1}, RATES),
        "kd": Arm("KD", BASELINE, KD, RATES),
        "kd_longer": Arm("KD, twice the steps", BASELINE, {**KD, "train.steps": 960}, RATES),
        "fitnet": Arm("FitNet", BASELINE, {"kind": "linear", "given.fitnet": 1.0}, RATES),
        "exits": Arm("exits that learn labels", BASELINE,
                     {"kind": "exits", "given.hard": 0.3}, RATES),
        "ofa": Arm("One-for-All, γ = 1.5", METHOD,
                   {**EXITS, "given.gamma": 1.5}, RATES),
        "ofa_plain": Arm("One-for-All, γ = 1", PART, EXITS, RATES),
        "scalekd": Arm("ScaleKD", METHOD, SCALE, RATES),
        "linear": Arm("ScaleKD, linear projectors", PART, {**SCALE, "kind": "linear"}, RATES),
        "direct": Arm("ScaleKD, direct view alone", PART,
                      {**SCALE, "given.alternative": 0.0}, RATES),
        "alternative": Arm("ScaleKD, view without the mean alone", PART,
                           {**SCALE, "given.direct": 0.0}, RATES),
        "pathless": Arm("ScaleKD without the teacher's blocks", PART,
                        {**SCALE, "given.path": 0.0}, RATES),
        "labelled": Arm("ScaleKD without KD", PART,
                        {**SCALE, "given.kd": 0.0, "given.label": 1.0}, RATES),
        "shuffled": Arm("ScaleKD from a teacher of other images", NULL,
                        {**SCALE, "given.own": 0.0}, RATES),
        "kd_again": Arm("KD, another seed", NULL, {**KD, **AGAIN}, RATES),
        "ofa_again": Arm("One-for-All, γ = 1, another seed", NULL, {**EXITS, **AGAIN}, RATES),
        "linear_again": Arm("ScaleKD, linear projectors, another seed", NULL,
                            {**SCALE, "kind": "linear", **AGAIN}, RATES),
        "teacher": Arm("the ViT", REFERENCE, {"kind": "teacher"}),
    },
    bed=bed, fit=fit, score=score, check=check,
    headline=Question(
        "Taught a ViT's tokens by ScaleKD, a ConvNet's accuracy changes by {mean:+.1p} points "
        "[{low:+.1p}, {high:+.1p}] over {over}", "scalekd", null="shuffled", over=SIMPLE,
    ),
    questions={
        "ofa_over_kd": Question(
            "One-for-All changes a ConvNet's accuracy by {mean:+.1p} points [{low:+.1p}, "
            "{high:+.1p}] over {over}", "ofa", null="kd_again", over=("kd",),
            source="arXiv:2310.19444",
        ),
        "gamma_gain": Question(
            "γ = 1.5 changes One-for-All by {mean:+.1p} points [{low:+.1p}, {high:+.1p}] beside "
            "γ = 1", "ofa", null="ofa_again", over=("ofa_plain",), source="arXiv:2310.19444",
        ),
        "projector_gain": Question(
            "Projectors that attend change ScaleKD by {mean:+.1p} points [{low:+.1p}, {high:+.1p}] "
            "beside linear ones", "scalekd", null="linear_again", over=("linear",),
        ),
    },
    go=(
        Go("the ViT is five points above labels alone", 0.05,
           lambda means: means["teacher"] - means["label"]),
        Go("KD is above labels alone", 0.0, lambda means: means["kd"] - means["label"]),
    ),
    source="arXiv:2411.06786; data, networks and margin are this repository's",
    stated="2026-12-04",
)  # fmt: skip
run, CLAIMS, CAPTIONS = recipe(TRIAL)
