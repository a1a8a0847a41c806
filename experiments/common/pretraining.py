"""The course of a run that learns features of images: surroundings, training, figures."""

from typing import Any

import jax
import numpy as np

from experiments.common import figures
from experiments.common.encoders import initializer
from experiments.common.evaluators import ImageEvaluator
from experiments.common.images import augmentation, batch_spec, training_batches
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
)


def surroundings(config: Any, model: Any) -> dict[str, Any]:
    """What a task needs beside its loss, as arguments of `gradient_task`.

    Args:
      config: The run's config.
      model: See `experiments.common.encoders.build_encoder`.

    Returns:
      Initial variables, optimiser, batches, evaluation by neighbours and the shapes of a batch.
    """
    evaluator = ImageEvaluator(model, config)
    return {
        "init_variables": initializer(model, config),
        "optimizer": build_optimizer(dict(config.optimizer), steps=config.train.steps),
        "batches": lambda part=0, parts=1: training_batches(config, evaluator.train, part, parts),
        "evaluate": evaluator.knn_of,
        "batch_spec": batch_spec(config),
    }


def momentum(config: Any) -> Any:
    """The schedule of the momentum that `config.momentum` names."""
    options = config.momentum
    return momentum_schedule(options.schedule, momentum=options.start, steps=config.train.steps)


def train(config: Any, run: RunDirectory, task: Task, shown: str = "eval/knn") -> TrainState:
    """Trains a task for as long as the config says.

    Args:
      config: The run's config.
      run: Its directory.
      task: What to train.
      shown: Metric that is shown beside the loss.

    Returns:
      The state after the last step.
    """
    options = {key: value for key, value in config.train.items() if key != "batch_size"}
    return fit(
        task, run, seed=config.seed, mesh=make_mesh(config.mesh),
        progress=Progress(keys=("train/loss", shown)), **options,
    )  # fmt: skip


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
    config: Any, run: RunDirectory, task: Task, model: Any, *, loss_label: str
) -> dict[str, float]:
    """Trains, judges the features beside the untrained encoder's and pixels, draws.

    Args:
      config: The run's config.
      run: Its directory.
      task: What to train.
      model: The task's model.
      loss_label: Axis label of the loss, with its unit.

    Returns:
      Metrics, see `ImageEvaluator.compare`.
    """
    evaluator = ImageEvaluator(model, config)
    images = first_images(evaluator)  # data that cannot be read fails before the training
    state = train(config, run, task)
    trained = evaluator.features(state.variables)
    untrained = evaluator.features(initial_state(task, seed=config.seed).variables)
    metrics = evaluator.compare(trained, untrained)
    draw_course(config, run, images, loss_label=loss_label)
    evaluator.draw(run.figure, trained, untrained)
    return metrics


def first_images(evaluator: ImageEvaluator) -> np.ndarray:
    """The first training images, for the figure of views."""
    return np.stack([evaluator.train[i]["image"] for i in range(6)])


def draw_course(config: Any, run: RunDirectory, images: np.ndarray, *, loss_label: str) -> None:
    """Draws views of some images, and the loss and neighbours' accuracy against steps."""
    figures.views(run.figure("views.png"), images, augmentation(config), jax.random.key(0))
    figures.training_curves(
        run.figure, run.path, {"train/loss": loss_label, "eval/knn": "kNN accuracy"}
    )
