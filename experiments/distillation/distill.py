"""One student beside one frozen teacher, which reads the student's own augmented images.

The teacher's forward is part of the step, so that images may be augmented, and both networks lie on
the mesh of the config. Any loss on logits or features stands beside the label's, one on logits at
exits of the student's stages too, or ScaleKD in the space of a ViT's tokens: all of
`rml.distillation.METHODS`, of which KD is Hinton et al., arXiv:1503.02531, One-for-All Hao et al.,
arXiv:2310.19444, and ScaleKD Fan et al., arXiv:2411.06786. That both read the same views is
"consistent teaching" of Beyer et al., Knowledge distillation: A good teacher is patient and
consistent, arXiv:2106.05237. Beside the student stand the same one that learns labels alone, that
once more with another seed, one whose teacher reads images as they are, and one whose teacher reads
views of its own. Each has all learning rates of `rates`, of which validation images choose. The
teacher is trained first, or is that of another run.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.common.comparison import for_each
from experiments.common.encoders import image_encoder, read_run, restore
from experiments.common.images import warn_of_oddities
from experiments.common.pretraining import train, train_on_mesh
from experiments.common.selection import at_edge
from experiments.common.supervised import logits_of
from experiments.distillation.distill_tasks import (
    AGAIN,
    ALONE,
    APART,
    FIXED,
    SIDES,
    STUDENT,
    TEACHER,
    check,
    classifier,
    seeded,
    sources,
    student_task,
    teacher_task,
    used,
)
from experiments.ranges import SIZE, Range
from rml.encoder import ImageEmbedder
from rml.errors import UserError, local_path
from rml.evaluation import paired_bootstrap
from rml.ops import t_interval
from rml.training import Claim, Progress, RunDirectory, Task, TrainState
from rml.training.config_file import as_written, check_complete, differences, list_differences

SOURCE = "networks, data and margin are this repository's"
NULL = "the null was a teacher of other images at first, from which no student can learn"
CLAIMS = (
    Claim("Beside a teacher that reads its views a student is above the one that learns labels "
          "alone", "student_over_alone", ">=", 0.0, f"arXiv:1503.02531; {SOURCE}; {NULL}; margin "
          "0 since 2026-12-04", stated="2026-12-04", null="again_over_alone",
          says="A teacher that reads the student's views changes accuracy by {mean:+.1p} points "
          "over labels alone"),
    Claim("Where the teacher reads the same views the student is half a point above one whose "
          "teacher reads images as they are", "student_over_fixed", ">=", 0.005,
          f"arXiv:2106.05237, figure 3; {SOURCE}; {NULL}", stated="2026-12-02",
          null="alone_over_fixed", says="Reading the student's views instead of whole images "
          "changes its accuracy by {mean:+.1p} points"),
    Claim("So it is above one whose teacher reads other views of the same images",
          "student_over_apart", ">=", 0.005, f"arXiv:2106.05237, figure 3; {SOURCE}; {NULL}",
          stated="2026-12-02", null="alone_over_apart", says="Reading the student's views instead "
          "of others changes its accuracy by {mean:+.1p} points"),
)  # fmt: skip
RANGES = {
    "beside.label": Range(), "beside.weight": Range(), "rates": Range(above=True),
    "beside.tokens.heads": SIZE, "beside.tokens.scale": Range(),
    "data.views": Range(1, 1, whole=True),
}  # fmt: skip
NAMES = {
    ALONE: "labels alone", AGAIN: "labels alone, again", FIXED: "images as they are",
    APART: "views of its own", STUDENT: "the same views", TEACHER: "the teacher",
}  # fmt: skip
"""Sides as figures call them, by what the teacher reads."""
OF_TEACHER = ("classes", "data", "teacher", "dtype")
"""Keys of a config in which a teacher of another run has to be the same."""
CAPTIONS = {
    "sides.png": "Accuracy on test images of students by what their teacher reads; bars: 95% "
    "intervals over images. The teacher's own is dashed.",
    "accuracy.png": "Accuracy on validation images against steps, of each side at the learning "
    "rate that these images chose.",
}
PICTURE = "sides.png"


class Judged(NamedTuple):
    """What a network says of test images.

    Attributes:
      classes: The class that it names, [n].
      right: Whether it is the image's, float [n].
    """

    classes: np.ndarray
    right: np.ndarray


def task(config: Any) -> Task:
    """The problem of the network that a config is of, by default the student at the first rate."""
    name = config.get("method", f"{STUDENT}_0")
    return teacher_task(config) if name == TEACHER else student_task(config, name)


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images of a trained student, or of the teacher in its own directory."""
    if config.get("method") == TEACHER:
        return image_encoder(classifier(config, config.teacher), config, state)
    own = used(state.variables)
    lean = state.replace(
        params=own.pop("params"), model_state=own, opt_state=(), ema_params=None, extra={}
    )
    return image_encoder(classifier(config, config.student), config, lean)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains the teacher and students of all sides, chooses on validation images, compares."""
    check(config)
    opened = sources(config)
    warn_of_oddities(opened["train"], opened["test"])

    def judge(model: Any, variables: Any) -> Judged:
        net = classifier(config, model)
        logits, labels = logits_of(config, net, variables, opened["test"])
        found = jnp.argmax(logits, axis=-1)
        return Judged(np.asarray(found), np.asarray(found == labels, np.float32))

    def teach(name: str, inner: RunDirectory) -> tuple[dict[str, float], tuple[Any, Judged]]:
        problem, own = teacher_task(config), config.copy_and_resolve_references()
        own.train = own.teaching.train
        if config.teaching.run:
            variables = of_run(config, problem)
        else:
            variables = train(own, inner, problem, "eval/accuracy").variables
        found = judge(config.teacher, variables)
        return {"accuracy": float(found.right.mean())}, (variables, found)

    teacher, above = for_each(run, [TEACHER], teach)[TEACHER][1]
    Progress().note(f"the teacher is right on {above.right.mean():.1%} of test images")

    def learn(name: str, inner: RunDirectory) -> tuple[dict[str, float], tuple[float, Judged]]:
        problem = student_task(config, name, teacher)
        state = train_on_mesh(seeded(config, name), inner, problem, "eval/accuracy")
        validation = problem.evaluate(state)["accuracy"]
        found = judge(config.student, used(state.variables))
        return {"accuracy": float(found.right.mean()), "validation": validation}, (
            validation, found,
        )  # fmt: skip

    names = [f"{side}_{i}" for side in SIDES for i in range(len(config.rates))]
    found = {name: own for name, (_, own) in for_each(run, names, learn).items()}
    metrics: dict[str, Any] = {}
    right: dict[str, np.ndarray] = {}
    for side in SIDES:
        best = best_of({i: found[f"{side}_{i}"][0] for i in range(len(config.rates))})
        validation, own = found[f"{side}_{best}"]
        right[side] = own.right
        metrics |= {
            f"accuracy_{side}": own.right.mean(), f"validation_{side}": validation,
            f"agreement_{side}": np.mean(own.classes == above.classes),
            f"rate_{side}": config.rates[best],
            f"rate_at_edge_{side}": at_edge(config.rates[best], config.rates),
        }  # fmt: skip
    metrics["accuracy_teacher"] = above.right.mean()
    key = jax.random.key(config.seed)
    pairs = [(STUDENT, ALONE), (STUDENT, FIXED), (STUDENT, APART)]
    for one, other in (*pairs, (AGAIN, ALONE), (ALONE, FIXED), (ALONE, APART)):
        test = paired_bootstrap(jnp.asarray(right[one]), jnp.asarray(right[other]), key=key)
        metrics |= with_bounds(f"{one}_over_{other}", test[:3])
    draw(config, run, right, metrics)
    return {name: float(value) for name, value in metrics.items()}


def tries(config: Any) -> dict[str, int]:
    """Learning rates that each side chooses from on validation images."""
    return dict.fromkeys(SIDES, len(config.rates))


def best_of(validation: Mapping[int, float]) -> int:
    """Which of several rates is the best on validation images, the first of equal ones."""
    return max(validation, key=lambda i: validation[i])


def of_run(config: Any, problem: Task) -> Any:
    """The variables of the teacher of the run that `teaching.run` names.

    Raises:
      UserError: There is no such run, it has not ended, or its teacher is of another config.
    """
    directory = local_path(config.teaching.run, "teaching.run") / "methods" / TEACHER
    there, here = read_run(directory, "teaching.run").to_dict(), as_written(config.to_dict())
    there, here = ({key: own.get(key, {}) for key in OF_TEACHER} for own in (there, here))
    if differing := differences(there, here):
        raise UserError(
            f"teaching.run is {config.teaching.run!r}, whose teacher is of another config; "
            f"expected the same values: {list_differences(differing)}"
        )
    check_complete(directory, "teaching.run")
    return restore(directory, problem).variables


def draw(config: Any, run: RunDirectory, right: Any, metrics: Any) -> None:
    """Draws accuracies of all sides, and their courses."""
    ends = 100 * np.array([t_interval(right[side]) for side in SIDES])
    figures.dots(
        run.figure("sides.png"), [NAMES[side] for side in SIDES],
        {"test images": (ends[:, 0], ends[:, 2] - ends[:, 0])}, "accuracy (%)",
        reference=100 * float(metrics["accuracy_teacher"]),
    )  # fmt: skip
    series: dict[str, Any] = {}
    for side in SIDES:
        best = list(config.rates).index(metrics[f"rate_{side}"])
        inner = run.path / "methods" / f"{side}_{best}"
        series |= figures.logged(inner, {NAMES[side]: "eval/accuracy"})
    if series and all(len(x) > 1 for x, *_ in series.values()):
        figures.curves(run.figure("accuracy.png"), series, "step", "accuracy on validation images")
