"""A sparse deep kernel machine beside the sparse Gaussian process of the same kernel, on images.

Yang et al., arXiv:2108.13097. Both train through the engine on the same batches, inducing points
and steps; the Gaussian process is the machine whose Gram matrices stay at their kernels. Each
trains in `methods/<name>` of the run directory, where a stopped run continues.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.claims import with_bounds
from experiments.common.comparison import for_each
from experiments.common.images import (  # fmt: skip
    all_batches,
    batch_spec,
    open_images,
    training_batches,
    warn_of_oddities,
)
from experiments.common.pretraining import train
from experiments.kernels.machines import draw_correlations, propagation
from rml import kernels, training
from rml.data import augment
from rml.errors import UserError
from rml.evaluation.calibration import probability_scores
from rml.ops import t_interval
from rml.training import Claim, Loss, RunDirectory, Task, TrainState

SOURCE = "arXiv:2108.13097: learned Gram matrices predict better; data and margin are ours"
CLAIMS = (
    Claim("Test accuracy is above the sparse Gaussian process's of the same kernel by half a point",
          "accuracy_gain", ">=", 0.005, SOURCE, stated="2026-11-26", null_run="fixed_grams"),
    Claim("Test log-likelihood is above the sparse Gaussian process's by 0.01 nats",
          "log_likelihood_gain", ">=", 0.01, SOURCE,
          stated="2026-11-24", null_run="fixed_grams"),
)  # fmt: skip
NULLS = {"fixed_grams": {"model.width": 1e6}}  # at which Gram matrices stay at their kernels
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
    """The first inducing inputs, of all classes alike, sorted by class.

    Raises:
      UserError: A class has fewer images than its share.
    """
    arrays, model = open_images(config, "train", labelled=True).arrays(), config.model
    rows = kernels.inducing_rows(
        arrays["label"], model.inducing, classes=model.classes, seed=config.seed
    )
    if len(rows) < model.inducing:
        raise UserError(
            f"model.inducing is {model.inducing}, of which each of {model.classes} classes has an "
            f"equal share, but the training images of {config.data.name} have {len(rows)} of them"
        )
    return np.asarray(flatten(arrays["image"][rows]), np.float32)


@partial(jax.jit, static_argnames=("kernel", "normalization", "jitter"))
def log_probabilities(machine: Any, images: Any, key: Any, **options: Any) -> Any:
    """Log-probabilities of the classes of images, compiled once a shape."""
    terms = kernels.propagate_sparse(machine, flatten(images), **options)
    return kernels.log_predictive(key, *terms.prediction, samples=100)


def judge(config: Any, machine: kernels.SparseMachine) -> dict[str, float]:
    """Accuracy, log-likelihood and calibration error (ten bins) on the test part."""
    return probability_scores(*predictions(config, machine))


def predictions(config: Any, machine: kernels.SparseMachine) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the classes of the test images, and their labels."""
    given, key = propagation(config), jax.random.key(config.seed)
    test = all_batches(open_images(config, "test"), config.evaluation.batch_size)
    parts = [
        (np.asarray(log_probabilities(machine, batch["image"], key, **given)), batch["label"])
        for batch in test
    ]
    probabilities, labels = zip(*parts, strict=True)
    return np.concatenate(probabilities), np.concatenate(labels)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains both, compares on the test part, draws."""
    # What cannot be read or is too little fails before the training.
    warn_of_oddities(open_images(config, "train", labelled=True), open_images(config, "test"))
    inducing_images(config)

    def measure(method: str, directory: RunDirectory) -> Any:
        state = train(config, directory, task(config, method), shown="eval/accuracy")
        predicted = predictions(config, state.params)
        return probability_scores(*predicted), (state.params, predicted)

    found = for_each(run, METHODS, measure)
    metrics = {f"{m}_{name}": v for m, (own, _) in found.items() for name, v in own.items()}
    dkm, sparse_gp = (by_image(*found[method][1][1]) for method in METHODS)
    for name in dkm:  # both methods saw the same images
        metrics |= with_bounds(f"{name}_gain", t_interval(dkm[name] - sparse_gp[name]))
    first = training.initial_state(task(config), seed=config.seed).params
    for when, machine in (("before", first), ("after", found["dkm"][1][0])):
        draw_correlations(run.figure(f"grams_{when}.png"), config, machine)
    draw_losses(run)
    return metrics


def by_image(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and log-likelihood of each image."""
    own = log_probabilities[np.arange(len(labels)), labels]
    right = log_probabilities.argmax(axis=1) == labels
    return {"accuracy": right.astype(float), "log_likelihood": own.astype(float)}


def draw_losses(run: RunDirectory) -> None:
    """Draws the bounds of both methods, unless a run was too short to log any."""
    found = (figures.logged(run.path / "methods" / m, {m: "train/loss"}) for m in METHODS)
    if series := {method: curve for own in found for method, curve in own.items()}:
        figures.curves(run.figure("loss.png"), series, "step", "negative bound (nats)")
