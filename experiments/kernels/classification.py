"""A sparse deep kernel machine beside the sparse Gaussian process of the same kernel, on images.

Yang et al., arXiv:2108.13097. Both train through the engine on the same batches, inducing points
and steps; the Gaussian process is the machine whose Gram matrices stay at their kernels. Each
trains in `methods/<name>` of the run directory, where a stopped run continues.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.comparison import for_each
from experiments.common.images import all_batches, batch_spec, open_images, training_batches
from experiments.common.pretraining import train
from experiments.kernels.machines import draw_correlations, propagation
from rml import kernels, training
from rml.data import augment
from rml.evaluation.calibration import probability_scores
from rml.training import Claim, Loss, RunDirectory, Task, TrainState

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
PICTURE = "grams_after.png"
METHODS = {"dkm": True, "sparse_gp": False}  # whether Gram matrices are learned


def task(config: Any, method: str = "dkm") -> Task:
    """The training problem of a config, or of the Gaussian process beside it."""
    model = config.model

    def init_variables(_: Any) -> Any:
        # Data are read when the state is made, not when it is traced for its shapes.
        spec = jax.ShapeDtypeStruct((model.inducing, np.prod(config.data.image_shape)), jnp.float32)
        inducing = jax.pure_callback(lambda: inducing_images(config), spec)
        layers = dict(depth=model.depth, outputs=model.classes)
        return {"params": kernels.init_sparse(inducing, learned=METHODS[method], **layers)}

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        value = -kernels.elbo(
            params, flatten(batch["image"]), batch["label"], key=state.step_key,
            total=config.data.total, widths=jnp.full(model.depth, model.width),
            likelihood="categorical", samples=model.samples, **propagation(config),
        )  # fmt: skip
        return Loss(value)

    return training.gradient_task(
        init_variables=init_variables, loss=loss, batch_spec=batch_spec(config),
        optimizer=training.build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=lambda part=0, parts=1: training_batches(
            config, open_images(config, "train", labelled=True), part, parts
        ),
        evaluate=lambda state: judge(config, state.params),
    )  # fmt: skip


def flatten(images: Any) -> Any:
    """Images as rows, about zero."""
    return 2 * augment.to_float(images).reshape(len(images), -1) - 1


def inducing_images(config: Any) -> np.ndarray:
    """The first inducing inputs, of all classes alike, sorted by class."""
    arrays = open_images(config, "train", labelled=True).arrays()
    rows = kernels.inducing_rows(
        arrays["label"], config.model.inducing, classes=config.model.classes, seed=config.seed
    )
    return np.asarray(flatten(arrays["image"][rows]), np.float32)


def judge(config: Any, machine: kernels.SparseMachine) -> dict[str, float]:
    """Accuracy, log-likelihood and calibration error (ten bins) on the test part."""

    @jax.jit
    def predict(images: Any) -> Any:
        terms = kernels.propagate_sparse(machine, flatten(images), **propagation(config))
        return kernels.log_predictive(jax.random.key(config.seed), *terms.prediction, samples=100)

    test = all_batches(open_images(config, "test"), config.evaluation.batch_size)
    parts = [(np.asarray(predict(batch["image"])), batch["label"]) for batch in test]
    return probability_scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains both, compares on the test part, draws."""
    open_images(config, "test")  # what cannot be read fails before the training

    def measure(method: str, directory: RunDirectory) -> Any:
        state = train(config, directory, task(config, method), shown="eval/accuracy")
        return judge(config, state.params), state.params

    found = for_each(run, METHODS, measure)
    metrics = {f"{m}_{name}": v for m, (own, _) in found.items() for name, v in own.items()}
    for name in ("accuracy", "log_likelihood"):
        metrics[f"{name}_gain"] = metrics[f"dkm_{name}"] - metrics[f"sparse_gp_{name}"]
    first = training.initial_state(task(config), seed=config.seed).params
    for when, machine in (("before", first), ("after", found["dkm"][1])):
        draw_correlations(run.figure(f"grams_{when}.png"), config, machine)
    draw_losses(run)
    return metrics


def draw_losses(run: RunDirectory) -> None:
    """Draws the bounds of both methods, unless a run was too short to log any."""
    found = (figures.logged(run.path / "methods" / m, {m: "train/loss"}) for m in METHODS)
    if series := {method: curve for own in found for method, curve in own.items()}:
        figures.curves(run.figure("loss.png"), series, "step", "negative bound (nats)")
