"""A sparse deep kernel machine beside the sparse Gaussian process of the same kernel, on images.

Both train through the engine on the same batches, inducing points and steps; the Gaussian process
is the machine whose Gram matrices stay at their kernels. Each trains in `methods/<name>` of the run
directory, where a stopped run continues.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.contrastive.common import batch_spec, open_split
from experiments.kernels.drawing import draw_correlations
from rml import data
from rml.data import augment
from rml.kernels import gram as kernels
from rml.kernels import sparse
from rml.kernels.outputs import log_predictive
from rml.training import (
    Claim,
    RunDirectory,
    Task,
    build_optimizer,
    fit,
    gradient_task,
    make_mesh,
    read_metrics,
)

SOURCE = "arXiv:2108.13097: learned Gram matrices predict better; data and margin are ours"
CLAIMS = (
    Claim("Test accuracy is at least that of the sparse Gaussian process of the same kernel",
          "accuracy_gain", ">=", 0.0, SOURCE),
    Claim("Test log-likelihood is above the sparse Gaussian process's by 0.01 nats",
          "log_likelihood_gain", ">=", 0.01, SOURCE),
)  # fmt: skip
CAPTIONS = {
    "grams_before.png": "Correlations of the inducing points in each layer at the start, in the "
    "order of their classes.",
    "grams_after.png": "The same after training.",
    "loss.png": "Negative bound a data point against steps.",
}
METHODS = ("dkm", "sparse_gp")


def task(config: Any, method: str = "dkm") -> Task:
    """The training problem of a config."""
    width = int(np.prod(config.data.image_shape))
    objective = partial(
        sparse.elbo,
        total=config.data.total,
        kernel=kernels.build(config.model.kernel),
        widths=jnp.full(config.model.depth, config.model.width),
        likelihood="categorical",
        samples=config.model.samples,
        normalization=config.model.normalization,
        jitter=config.model.jitter,
    )

    def init_variables(key: Any) -> Any:
        # Data are read when the state is made, not when it is traced for its shapes.
        spec = jax.ShapeDtypeStruct((config.model.inducing, width), jnp.float32)
        inducing = jax.pure_callback(lambda: inducing_images(config)[0], spec)
        machine = sparse.init_sparse(
            inducing,
            depth=config.model.depth,
            outputs=config.model.classes,
            learned=method == "dkm",
        )
        return {"params": machine}

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        value = objective(params, flatten(batch["image"]), batch["label"], key=key)
        return -value, ({}, model_state)

    return gradient_task(
        init_variables=init_variables,
        loss=loss,
        optimizer=build_optimizer(config.optimizer, steps=config.train.steps),
        batches=lambda part=0, parts=1: data.batches(
            open_split(config, "train"),
            batch_size=config.train.batch_size,
            seed=config.seed,
            part=part,
            parts=parts,
        ),
        evaluate=lambda state: judge(config, state.params),
        batch_spec=batch_spec(config),
    )


def flatten(images: Any) -> Any:
    """Images as rows, about zero."""
    return 2 * augment.to_float(images).reshape(len(images), -1) - 1


def inducing_images(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """The first inducing inputs, of all classes alike, sorted by class."""
    arrays = open_split(config, "train").arrays()
    rng = np.random.default_rng(config.seed)
    share = -(-config.model.inducing // config.model.classes)
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(arrays["label"] == c))[:share]
         for c in range(config.model.classes)]
    )[: config.model.inducing]  # fmt: skip
    return np.asarray(flatten(arrays["image"][rows]), np.float32), arrays["label"][rows]


def judge(config: Any, machine: sparse.SparseMachine) -> dict[str, float]:
    """Accuracy, log-likelihood and calibration error (ten bins) on the test part."""
    kernel, how = kernels.build(config.model.kernel), config.model.normalization

    @jax.jit
    def predict(images: Any) -> Any:
        terms = sparse.propagate_sparse(
            machine, flatten(images), kernel=kernel, normalization=how, jitter=config.model.jitter
        )
        mean, variance = terms.prediction
        return log_predictive(jax.random.key(config.seed), mean, variance, samples=100)

    batches = data.batches(
        open_split(config, "test"), batch_size=config.evaluation.batch_size, seed=0,
        shuffle=False, repeat=False, drop_remainder=False,
    )  # fmt: skip
    parts = [(np.asarray(predict(b["image"])), b["label"]) for b in batches]
    logs, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    right = logs.argmax(1) == labels
    confidence = np.exp(logs.max(1))
    bins = np.minimum((10 * confidence).astype(int), 9)
    gaps = np.bincount(bins, right - confidence, 10)
    return {
        "accuracy": float(right.mean()),
        "log_likelihood": float(logs[np.arange(len(labels)), labels].mean()),
        "calibration_error": float(np.abs(gaps).sum() / len(labels)),
    }


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains both, compares on the test part, draws."""
    metrics: dict[str, float] = {}
    states = {}
    for method in METHODS:
        started = time.perf_counter()
        inner = run.of_method(method)
        states[method] = fit(
            task(config, method), inner, steps=config.train.steps, seed=config.seed,
            mesh=make_mesh(config.mesh), log_every=config.train.log_every,
            checkpoint_every=config.train.checkpoint_every,
        )  # fmt: skip
        own = judge(config, states[method].params)
        inner.write_summary(metrics=own, claims=[], seconds=time.perf_counter() - started)
        inner.close()
        metrics |= {f"{method}_{name}": value for name, value in own.items()}
    for name in ("accuracy", "log_likelihood"):
        metrics[f"{name}_gain"] = metrics[f"dkm_{name}"] - metrics[f"sparse_gp_{name}"]
    draw(config, run, states["dkm"].params)
    return metrics


def draw(config: Any, run: RunDirectory, machine: sparse.SparseMachine) -> None:
    """Gram matrices before and after, and training."""
    images, _ = inducing_images(config)
    first = sparse.init_sparse(
        jnp.asarray(images), depth=config.model.depth, outputs=config.model.classes
    )
    order = np.arange(config.model.inducing)
    for when, what in (("before", first), ("after", machine)):
        draw_correlations(run.figure(f"grams_{when}.png"), config, what, order)
    series = {}
    for method in METHODS:
        lines = read_metrics(run.path / "methods" / method / "metrics.jsonl")
        points = [(r["step"], r["train/loss"]) for r in lines if "train/loss" in r]
        series[method] = tuple(zip(*points, strict=True))
    figures.curves(run.figure("loss.png"), series, "step", "negative bound (nats)")
