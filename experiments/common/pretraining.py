"""The course of a run that learns features of images: surroundings, training, figures."""

import dataclasses
import inspect
import logging
from typing import Any

import jax
import numpy as np

from experiments.common import figures
from experiments.common.encoders import initializer
from experiments.common.evaluators import ImageEvaluator
from experiments.common.images import augmentation, batch_spec, training_batches
from rml.errors import unknown
from rml.training import (
    Progress,
    RunDirectory,
    Task,
    TrainState,
    build_optimizer,
    fit,
    initial_state,
    make_mesh,
    momentum_schedule,
    read_metrics,
)
from rml.training.processes import is_primary, local_copy

log = logging.getLogger("rml.experiments")

CONSTANT_LINES, CONSTANT_RANGE = 3, 1e-5
"""Lines of training metrics whose losses differ by at most this share where an encoder collapsed:
losses of different batches never agree so well otherwise."""


def surroundings(config: Any, model: Any, *, labelled: bool = False) -> dict[str, Any]:
    """What a task needs beside its loss, as arguments of `gradient_task`.

    Args:
      config: The run's config.
      model: See `experiments.common.encoders.build_encoder`.
      labelled: Whether the loss needs labels.

    Returns:
      Initial variables, optimiser, batches, evaluation by neighbours and the shapes of a batch.
    """
    evaluator = ImageEvaluator(model, config, labelled=labelled)
    return {
        "init_variables": initializer(model, config),
        "optimizer": build_optimizer(dict(config.optimizer), steps=config.train.steps),
        "batches": lambda part=0, parts=1: training_batches(config, evaluator.train, part, parts),
        "evaluate": evaluator.knn_of,
        "batch_spec": batch_spec(config),
    }


def first_state(config: Any, task: Task) -> TrainState:
    """Makes the state in which a run's training of a task begins."""
    return initial_state(task, seed=config.seed, mesh=make_mesh(config.mesh))


def momentum(config: Any) -> Any:
    """The schedule of the momentum that `config.momentum` names."""
    options = config.momentum
    return momentum_schedule(options.schedule, momentum=options.start, steps=config.train.steps)


def train(config: Any, run: RunDirectory, task: Task, shown: str = "eval/knn") -> TrainState:
    """Trains as `train_on_mesh`; the state after the last step is whole in each process.

    It is for networks that are small by design; others are judged where they lie.
    """
    return local_copy(train_on_mesh(config, run, task, shown))


def train_on_mesh(
    config: Any, run: RunDirectory, task: Task, shown: str = "eval/knn"
) -> TrainState:
    """Trains a task for as long as the config says.

    Args:
      config: The run's config.
      run: Its directory.
      task: What to train.
      shown: Metric that is shown beside the loss.

    Returns:
      The state after the last step, as it lies on the mesh.
    """
    options = {key: value for key, value in config.train.items() if key != "batch_size"}
    known = inspect.signature(fit).parameters
    for key in options:
        if key not in known:
            raise unknown("key of config.train", key, known)
    warned: list[str] = []

    def evaluate(state: TrainState) -> dict[str, float]:
        found = task.evaluate(state)
        if not warned and (constant := constant_loss(run, config)):
            warned.append(constant)
            log.warning("%s", constant)
        return found

    watched = dataclasses.replace(task, evaluate=evaluate)
    return fit(
        watched, run, seed=config.seed, mesh=make_mesh(config.mesh),
        progress=Progress(keys=("train/loss", shown, "eval/uniformity")), **options,
    )  # fmt: skip


def constant_loss(run: RunDirectory, config: Any) -> str | None:
    """What to say where the loss of a run has become constant; None where it moves."""
    if not is_primary():
        return None
    lines = [line for line in read_metrics(run.path / "metrics.jsonl") if "train/loss" in line]
    last = np.array([line["train/loss"] for line in lines[-CONSTANT_LINES:]], float)
    if len(last) < CONSTANT_LINES or np.ptp(last) > CONSTANT_RANGE * np.abs(last).max():
        return None
    return (
        f"the loss has stayed at {last[-1]:.4g} since step {lines[-CONSTANT_LINES]['step']} or "
        "before, as where an encoder has collapsed and tells no examples apart: lower "
        f"optimizer.learning_rate{', or change augment' if 'augment' in config else ''}"
    )


def captions(loss: str) -> dict[str, str]:
    """Captions of the figures that `pretrain` draws, by file name, for a loss of this name."""
    return {
        "views.png": "Images and the views that the loss pulls together.",
        "loss.png": f"{loss} against steps.",
        "knn.png": "Test accuracy of nearest neighbours on the features against steps.",
        "embedding.png": "Features of the test images in two dimensions.",
        "spectrum.png": "Singular values of the test images' features, trained and untrained.",
    }


def pretrain(
    config: Any,
    run: RunDirectory,
    task: Task,
    model: Any,
    *,
    loss_label: str,
    labelled: bool = False,
) -> dict[str, float]:
    """Trains, judges the features beside the untrained encoder's and pixels, draws.

    Args:
      config: The run's config.
      run: Its directory.
      task: What to train.
      model: The task's model.
      loss_label: Axis label of the loss, with its unit.
      labelled: Whether the loss needs labels.

    Returns:
      Metrics, see `ImageEvaluator.compare`.
    """
    evaluator = ImageEvaluator(model, config, labelled=labelled)
    evaluator.check()
    images = first_images(evaluator)
    trained = evaluator.features(train_on_mesh(config, run, task).variables)
    start = initial_state(task, seed=config.seed, mesh=evaluator.mesh)
    untrained = evaluator.features(start.variables)
    metrics = evaluator.compare(trained, untrained)
    draw_course(config, run, images, loss_label=loss_label, num_classes=evaluator.train.num_classes)
    evaluator.draw(run.figure, trained, untrained)
    return metrics


def first_images(evaluator: ImageEvaluator) -> np.ndarray:
    """The first training images, for the figure of views."""
    return np.stack([evaluator.train[i]["image"] for i in range(min(6, len(evaluator.train)))])


def draw_course(
    config: Any, run: RunDirectory, images: np.ndarray, *, loss_label: str, num_classes: int
) -> None:
    """Draws views of some images, and the loss and neighbours' accuracy against steps."""
    figures.views(
        run.figure("views.png"), images, augmentation(config, whole=True), jax.random.key(0)
    )
    figures.training_curves(
        run.figure, run.path, {"train/loss": loss_label, "eval/knn": "kNN accuracy"},
        {"eval/knn": ("chance", 1 / num_classes)} if num_classes else None,
    )  # fmt: skip
