"""The course of a pretraining experiment: the task's surroundings, the run, its figures."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.contrastive.common.draw import draw_curves, draw_views
from experiments.contrastive.common.judge import Judge
from experiments.contrastive.common.model import (
    ProjectedEncoder,
    augmentation,
    batch_spec,
    build_model,
    variables,
)
from rml import data
from rml.contrastive.momentum import momentum_schedule, update_momentum
from rml.training import (
    Progress,
    RunDirectory,
    Task,
    TrainState,
    build_optimizer,
    create_state,
    fit,
    initial_state,
    make_mesh,
)


def surroundings(config: Any, model: ProjectedEncoder) -> dict[str, Any]:
    """What a task needs beside its loss: batches, evaluation by neighbours, shapes of a batch."""
    judge = Judge(model, config)
    return {
        "batches": lambda part=0, parts=1: data.batches(
            judge.train,
            batch_size=config.train.batch_size,
            seed=config.seed,
            part=part,
            parts=parts,
        ),
        "evaluate": lambda state: {"knn": judge.knn(judge.features(variables(state)))},
        "batch_spec": batch_spec(config),
    }


def momentum_task(
    config: Any,
    init_variables: Callable[[Any], Any],
    *,
    loss: Callable[[Any, TrainState, Any], Any],
    around: dict[str, Any],
    averaged: Sequence[str] = ("encoder", "head"),
    extra: Callable[[Any], dict[str, Any]] = lambda key: {},
) -> Task:
    """The task of a loss that reads a momentum encoder.

    Args:
      config: The run's config, of which `momentum`, `optimizer` and `train.steps` are read.
      init_variables: `init_variables(key) -> variables` of the trained model.
      loss: `loss(params, state, batch) -> (loss, (model_state, changes))` with the trained
        variables after the step and what changes in `state.extra`; the momentum encoder's variables
        are `state.extra["momentum"]`.
      around: What a task needs beside its loss, such as `surroundings` returns it.
      averaged: The model's parts that have a moving average.
      extra: `extra(key) -> dict`, what else `state.extra` holds.

    Returns:
      The task. After each update the average moves; its metrics add the momentum.
    """
    optimizer = build_optimizer(config.optimizer, steps=config.train.steps)
    momentum = momentum_schedule(
        config.momentum.schedule, momentum=config.momentum.start, steps=config.train.steps
    )

    def init(key: Any) -> TrainState:
        key_model, key_extra = jax.random.split(jax.random.fold_in(key, 0x1217))
        made = init_variables(key_model)
        average = {k: {part: v[part] for part in averaged if part in v} for k, v in made.items()}
        average = jax.tree.map(jnp.array, average)
        return create_state(key, made, optimizer, momentum=average, **extra(key_extra))

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        (value, (model_state, changes)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, state, batch
        )
        new = state.apply_gradients(grads, optimizer, model_state=model_state)
        share = momentum(state.step)
        average = update_momentum(
            state.extra["momentum"], {"params": new.params, **model_state}, share
        )
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": optimizer.schedule(state.step),
            "momentum": share,
        }
        return new.replace(extra={**state.extra, **changes, "momentum": average}), metrics

    return Task(init=init, step=step, **around)


def captions(loss: str) -> dict[str, str]:
    """Captions of the figures that `pretrain` draws.

    Args:
      loss: Name of the loss.

    Returns:
      File name to caption.
    """
    return {
        "views.png": "Images and the views that the loss pulls together.",
        "loss.png": f"{loss} against steps.",
        "knn.png": "Test accuracy of nearest neighbours on the features against steps.",
        "embedding.png": "Features of the test images in two dimensions.",
        "spectrum.png": "Singular values of the test images' features, trained and untrained.",
    }


def pretrain(config: Any, run: RunDirectory, task: Task, *, loss_label: str) -> dict[str, float]:
    """Trains, judges the features beside the untrained encoder's and pixels, draws.

    Args:
      config: The run's config.
      run: Its directory.
      task: What to train.
      loss_label: Axis label of the loss, with its unit.

    Returns:
      Metrics, see `Judge.compare`.
    """
    judge = Judge(build_model(config), config)
    images = np.stack([judge.train[i]["image"] for i in range(6)])
    train = dict(config.train)
    train.pop("batch_size")
    state = fit(
        task, run, seed=config.seed, mesh=make_mesh(config.mesh),
        progress=Progress(keys=("train/loss", "eval/knn")), **train,
    )  # fmt: skip
    trained = judge.features(variables(state))
    untrained = judge.features(variables(initial_state(task, seed=config.seed)))
    metrics = judge.compare(trained, untrained)
    draw_views(run.figure("views.png"), images, augmentation(config), jax.random.key(0))
    draw_curves(run.figure, run.path, {"train/loss": loss_label, "eval/knn": "kNN accuracy"})
    judge.draw(run.figure, trained, untrained)
    return metrics
