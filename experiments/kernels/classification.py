"""A sparse deep kernel machine beside the sparse Gaussian process of the same kernel, on images.

Yang et al., arXiv:2108.13097; with `model.patch` both are convolutional, Milsom, Anson and
Aitchison, arXiv:2309.09814. Both train through the engine on the same batches, inducing points and
steps; the Gaussian process is the machine whose Gram matrices stay at their kernels. Validation
images choose ν and the learning rate of the machine, and of as many values the Gaussian process's
learning rate, which has no ν: all tries of a method train as one program, on the other training
images. Each method then trains on all of them. A stopped run continues in `methods/<name>` of the
run directory, its tries in `methods/<name>_tries`.
"""

from contextlib import suppress
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
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train, train_on_mesh
from experiments.common.selection import at_edge
from experiments.kernels.image_machines import bound, first_machine, first_points, predict
from experiments.kernels.machines import Machine, draw_correlations, option_pairs, propagation
from experiments.ranges import ABOVE_0
from rml import data, kernels, training
from rml.data import splits
from rml.data.source import select
from rml.errors import UserError
from rml.evaluation.calibration import probability_scores
from rml.ops import t_interval
from rml.training import Claim, Loss, Progress, RunDirectory, Task, TrainState

SOURCE = "arXiv:2108.13097: learned Gram matrices predict better; data and margin are ours"
CLAIMS = (
    Claim("Test accuracy is above the sparse Gaussian process's of the same kernel",
          "accuracy_gain", ">=", 0.0, f"{SOURCE}; margin 0 since 2026-12-04",
          stated="2026-12-04", null_run="fixed_grams",
          says="Learned Gram matrices change accuracy by {mean:+.1p} points over the same kernel's "
          "Gaussian process ({dkm_accuracy:.1%} against {sparse_gp_accuracy:.1%})"),
    Claim("Test log-likelihood is above the sparse Gaussian process's by 0.01 nats",
          "log_likelihood_gain", ">=", 0.01, SOURCE,
          stated="2026-11-24", null_run="fixed_grams",
          says="They change the test log-likelihood by {mean:+.3f} nats an image"),
)  # fmt: skip
# At all of these ν Gram matrices stay at their kernels.
NULLS = {"fixed_grams": {"model.widths": (1e6, 2e6, 4e6)}}
RANGES = {
    "tries.rates": ABOVE_0, "tries.sparse_gp_rates": ABOVE_0, "model.amplitude": ABOVE_0,
}  # fmt: skip
CAPTIONS = {
    "grams_before.png": "Correlations of the inducing points in each layer at the start: images in "
    "the order of their classes, or patches in the order of their brightness.",
    "grams_after.png": "The same after training.",
    "loss.png": "Negative bound a data point against steps.",
}
PICTURE = "grams_after.png"
STAGED = True  # tries choose the options of both methods
METHODS = {"dkm": True, "sparse_gp": False}  # whether Gram matrices are learned
WIDTH, RATE = "model.width", "optimizer.learning_rate"


def task(config: Any, method: str = "dkm") -> Task:
    """The training problem of a config, or of the Gaussian process beside it."""
    model = config.model

    def init_variables(_: Any) -> Any:
        return {"params": first_machine(config, learned=METHODS[method])}

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        value = bound(
            params, batch["image"], batch["label"], state.step_key, total=config.data.total,
            widths=jnp.full(model.depth, model.width), samples=model.samples, **propagation(config),
        )  # fmt: skip
        return Loss(-value)

    return training.gradient_task(
        init_variables=init_variables, loss=loss, batch_spec=batch_spec(config),
        optimizer=training.build_optimizer(dict(config.optimizer), steps=config.train.steps),
        batches=lambda part=0, parts=1: training_batches(
            config, open_images(config, "train", labelled=True), part, parts
        ),
        evaluate=lambda state: judge(config, state.params),
    )  # fmt: skip


@partial(jax.jit, static_argnames=("kernel", "normalization", "jitter"))
def log_probabilities(machine: Any, images: Any, key: Any, **options: Any) -> Any:
    """Log-probabilities of the classes of images, compiled once a shape."""
    return kernels.log_predictive(key, *predict(machine, images, **options), samples=100)


def judge(config: Any, machine: Machine) -> dict[str, float]:
    """Accuracy, log-likelihood and calibration error (ten bins) on the test part."""
    return probability_scores(*predictions(config, machine))


def predictions(config: Any, machine: Machine) -> tuple[np.ndarray, np.ndarray]:
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
    """Chooses options, trains both, compares on the test part, draws."""
    # What cannot be read or is too little fails before the training.
    warn_of_oddities(open_images(config, "train", labelled=True), open_images(config, "test"))
    for part in (config, on_validation(config)):
        first_points(part, config.seed)
    check_numbers(config)
    check_tries(config)
    configs, metrics = chosen(config, run)

    def measure(method: str, directory: RunDirectory) -> Any:
        own = configs[method]
        state = train(own, directory, task(own, method), shown="eval/accuracy")
        predicted = predictions(own, state.params)
        return probability_scores(*predicted), (state.params, predicted)

    found = for_each(run, METHODS, measure)
    metrics |= {f"{m}_{name}": v for m, (own, _) in found.items() for name, v in own.items()}
    dkm, sparse_gp = (by_image(*found[method][1][1]) for method in METHODS)
    for name in dkm:  # both methods saw the same images
        metrics |= with_bounds(f"{name}_gain", t_interval(dkm[name] - sparse_gp[name]))
    first = training.initial_state(task(config), seed=config.seed).params
    for when, machine in (("before", first), ("after", found["dkm"][1][0])):
        draw_correlations(run.figure(f"grams_{when}.png"), config, machine)
    draw_losses(run)
    return metrics


def options(config: Any) -> dict[str, list[dict[str, float]]]:
    """Lists what each method is tried with, as changes to the config.

    Raises:
      UserError: The methods have different numbers of tries.
    """
    pairs = option_pairs(config, "model.widths", "tries.rates", baseline="tries.sparse_gp_rates")
    return {
        "dkm": [{WIDTH: width, RATE: rate} for width, rate in pairs],
        "sparse_gp": [{RATE: rate} for rate in config.tries.sparse_gp_rates],
    }


def tries(config: Any) -> dict[str, int]:
    """Counts the options from which validation images choose, by method."""
    return {method: len(own) for method, own in options(config).items()}


def on_validation(config: Any) -> Any:
    """The config of a try: trained without the validation images and judged on them."""
    own = replaced(config, {f"data.{key}": value for key, value in config.tries.data.items()})
    if "domains" in own.data:
        own.data.domains.test = own.data.domains.train
    return own


def check_numbers(config: Any) -> None:
    """Checks the number of classes and of images, by which the bound weighs its sum over a batch.

    Raises:
      UserError: A number is not that of the images that are read.
    """
    for key, own in (("data", config), ("tries.data", on_validation(config))):
        source = open_images(own, "train", labelled=True)
        if own.model.classes != source.num_classes:
            raise UserError(
                f"model.classes is {own.model.classes}, expected {source.num_classes}, the number "
                f"of classes of {config.data.name}"
            )
        found = len(source)
        if own.data.total != found:
            raise UserError(
                f"{key}.total is {own.data.total}, expected {found}, the number of images that "
                f"{key}.train, {own.data.train!r}, has of {config.data.name}"
            )


def check_tries(config: Any) -> None:
    """Checks that options are chosen on training images which the tries do not train on.

    Raises:
      UserError: The tries read images that `data.train` lacks, or judge options on their own
        training images or on test images.
    """
    rows, own = read_rows(config), config.tries.data
    for part in ("train", "test"):
        if lacking := len(rows[f"tries.data.{part}"] - rows["data.train"]):
            raise UserError(
                f"tries.data.{part} is {own[part]!r}, expected a part of data.train, "
                f"{config.data.train!r}, which lacks {lacking} of its images"
            )
    # With domains, training and test images of one split are different ones.
    others = {"tries.data.train": own.train} | (
        {} if "domains" in config.data else {"data.test": config.data.test}
    )
    for other, text in others.items():
        if shared := len(rows["tries.data.test"] & rows[other]):
            raise UserError(
                f"tries.data.test is {own.test!r}, expected other images than {other}, {text!r}, "
                f"which has {shared} of them"
            )


def read_rows(config: Any) -> dict[str, set[tuple[str, int]]]:
    """Lists the images, by split and position, that each split of a run and of its tries has."""
    own = config.data
    texts = {
        f"{of}.{part}": given[part]
        for of, given in (("data", own), ("tries.data", config.tries.data))
        for part in ("train", "test")
    }
    options = {"image_size": own.image_shape[:2], "label_key": own.get("label_key", "label")}
    named = {name for text in texts.values() for name in splits.names(text)}
    sizes = {}
    for name in sorted({*splits.SPLITS, *named} - {"all"}):
        with suppress(data.DataError):  # which of them there are, only opening tells
            sizes[name] = len(data.load(own.name, name, data_dir=own.data_dir, **options))
    return {
        key: {
            (name, int(place))
            for name, places in select(text, sizes, name=own.name)
            for place in places
        }
        for key, text in texts.items()
    }


def chosen(config: Any, run: RunDirectory) -> tuple[dict[str, Any], dict[str, float]]:
    """Chooses each method's options by the log-likelihood of validation images.

    Returns:
      The config of each method, and metrics that say what was chosen and how good it was.
    """
    tried = options(config)

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], int]:
        method = name.removesuffix("_tries")
        configs = [replaced(on_validation(config), one) for one in tried[method]]
        together = many(partial(task, method=method), configs)
        state = on_one_device(train_on_mesh(configs[0], inner, together, shown="eval/accuracy"))
        found = [
            judge(own, unstack(state, i).params)["log_likelihood"] for i, own in enumerate(configs)
        ]
        Progress().note(
            f"{name}: nats of validation images " + ", ".join(f"{v:.4f}" for v in found)
        )
        # A machine whose matrices have no factor predicts what is not a number.
        best = int(np.argmax(np.nan_to_num(found, nan=-np.inf)))
        return {f"try_{i}": value for i, value in enumerate(found)}, best

    several = [f"{method}_tries" for method, own in tried.items() if len(own) > 1]
    found = for_each(run, several, measure)
    configs, metrics = {}, {}
    for method, own in tried.items():
        measured, best = found.get(f"{method}_tries", ({}, 0))
        configs[method] = replaced(config, own[best])
        if not measured:  # one try is no choice
            continue
        metrics[f"{method}_validation"] = measured[f"try_{best}"]
        for key, value in own[best].items():
            name = key.rpartition(".")[2]
            metrics[f"{method}_{name}"] = value
            if len(values := {one[key] for one in own}) > 2:
                metrics[f"{method}_{name}_at_edge"] = float(at_edge(value, values))
    return configs, metrics


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
