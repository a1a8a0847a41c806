"""What the recipe on Terminator compares: its options chosen on validation images, then trained.

Sides of `TUNED` try each of `config.optimizers` with each of its `rates`, for `config.tries.steps`
steps; other ablations take what was chosen for the side that they differ from in one thing, see
`Side.like`. Sides whose programs differ in numbers alone train as one, see
`experiments.common.many`.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict
from ml_collections import ConfigDict

from experiments.attention.pixel_sequences import PixelSequence, SequenceConvNet
from experiments.common.comparison import for_each
from experiments.common.encoders import ProjectedEncoder
from experiments.common.images import open_images
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train
from experiments.common.supervised import classification, right
from rml import models
from rml.models.layers import module_options
from rml.models.terminator import Terminator, slow_neural_loss, weight_norms
from rml.training import (
    Optimizer,
    Progress,
    RunDirectory,
    Task,
    build_optimizer,
    read_metrics,
)

WINDOW = 20
"""Steps over which the accuracy on training batches is averaged."""
METRICS = "metrics.jsonl"
AGAIN = 1_000
"""What is added to the seed of a second run."""
UNREAD = {
    "name": "adamw", "learning_rate": 1e-3, "momentum": 0.9, "b2": 0.999, "weight_decay": 1e-4,
}  # fmt: skip
"""Keys of `config.optimizer` that no training reads, since each of `config.optimizers` has its own,
with the values that they have in the configs."""


class Side(NamedTuple):
    """One of what is compared.

    Attributes:
      model: Key of `config.models`.
      changes: Other values of the config.
      both: Whether it is trained in full with both optimisers, and not with the better one alone.
      seed: What is added to the run's seed.
      like: The side whose optimiser and rate it takes, and which it is compared with; it tries all
        itself if not given.
    """

    model: str
    changes: Mapping[str, Any] = {}
    both: bool = False
    seed: int = 0
    like: str | None = None


SIDES = {
    "terminator": Side("terminator", both=True),
    "no_slow": Side("terminator", {"loss.slow": 0.0}),
    "no_hyper": Side(
        "terminator", {"models.terminator.hyper": 0.0, "loss.slow": 0.0}, like="no_slow"
    ),
    "no_wide": Side("terminator", {"models.terminator.wide": 0.0}, like="terminator"),
    "no_near": Side("terminator", {"models.terminator.near": 0.0}, like="terminator"),
    "batch": Side("terminator", {"models.terminator.standard.odd": 1.0}, like="terminator"),
    "instance": Side("terminator", {"models.terminator.standard.even": 0.0}, like="terminator"),
    "resnet": Side("resnet", both=True),
    "convnet": Side("convnet", both=True),
}
"""The network; it without the slow loss; with K = 1 for the global kernel, which the slow loss has
no hold on, so that it stands beside the network without that loss; without branches over the whole
image, without local ones, and with one standardisation alone; others."""
PROGRAMS = {
    "terminator": ("terminator", "no_slow", "no_hyper", "no_wide", "no_near", "batch", "instance"),
    "resnet": ("resnet",),
    "convnet": ("convnet",),
}
"""Sides that one program trains, by their model."""
TUNED = tuple(name for name, side in SIDES.items() if side.like is None)
"""Sides that try every optimiser and rate."""


class Trained(NamedTuple):
    """A side trained in full.

    Attributes:
      variables: Variables of its model.
      right: Whether the class of each test image is found.
      course: Accuracy on training batches, a mean over `WINDOW` steps, by step.
      seconds: Wall-clock seconds of a step.
    """

    variables: Any
    right: np.ndarray
    course: np.ndarray
    seconds: float


def configured(
    config: Any, side: Side, optimizer: str, rate: float, *, steps: int | None = None
) -> ConfigDict:
    """The config of a side with an optimiser and a learning rate."""
    own = replaced(config, {**side.changes, "seed": config.seed + side.seed})
    own.kar = float(optimizer == "kar")
    own.optimizer.learning_rate = rate
    if steps is not None:
        own.train.update(dict(steps=steps, log_every=steps, checkpoint_every=steps))
    return own


def either(config: Any) -> Optimizer:
    """Kar where `config.kar` is 1, AdamW where it is 0: one program trains runs of both."""
    both = {}
    for name, options in config.optimizers.items():
        own = dict(config.optimizer) | dict(options) | {"name": name}
        del own["rates"]
        both[name] = build_optimizer(own, steps=config.train.steps)
    kar, adamw = (both[name].transform for name in ("kar", "adamw"))

    def init(params: Any) -> Any:
        return kar.init(params), adamw.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        first, second = (
            own.update(updates, kept, params) for own, kept in zip((kar, adamw), state, strict=True)
        )
        chosen = jax.tree.map(
            lambda x, y: jnp.where(jnp.asarray(config.kar) > 0, x, y), first[0], second[0]
        )
        return chosen, (first[1], second[1])

    return both["kar"]._replace(transform=optax.GradientTransformation(init, update))


def build_model(config: Any, name: str) -> ProjectedEncoder:
    """A classifier whose encoder is that of `config.models`; it reads what `config.reads` says."""
    options = dict(config.models[name])
    own: dict[str, Any] = {"terminator": Terminator, "sequence": SequenceConvNet}
    kind = name if name == "terminator" else options["name"]
    if kind in own:
        options.pop("name", None)
        if "standard" in options:  # as a module's attribute, which has to be hashable
            options["standard"] = FrozenDict(dict(options["standard"]))
        encoder: nn.Module = own[kind](**module_options(kind, own[kind], options))
    else:
        encoder = models.build(**options)
    if config.reads == "sequences":
        encoder = PixelSequence(encoder)
    return ProjectedEncoder(encoder, models.Classifier(config.classes))


def task(config: Any, model: str = "terminator") -> Task:
    """The training problem of one of `config.models`, judged on validation images."""
    opened = cache(partial(open_images, config, labelled=True))

    def penalty(left: Any, params: Any) -> jax.Array:
        loss = config.loss.slow * slow_neural_loss(kernels(left), reduce=config.loss.reduce)
        if config.loss.norms:
            loss += config.loss.norms * weight_norms(encoder_of(params))
        return loss

    return classification(
        config,
        build_model(config, model),
        train=partial(opened, "train"),
        held_out=partial(opened, "validation"),
        penalty=penalty if model == "terminator" else None,
        dropout=model == "terminator",
        optimizer=either(config),
    )


def encoder_of(tree: Any) -> Any:
    """The part of a classifier's variables, or of what it leaves, that is its encoder's."""
    own = tree["encoder"]
    return own.get("encoder", own)


def kernels(left: Any) -> list[jax.Array]:
    """Global kernels, block by block, of what Terminator leaves under "intermediates"."""
    blocks = encoder_of(left)
    return [blocks[f"block{i}"]["kernel"][0] for i in range(len(blocks))]


def choose(config: Any, run: RunDirectory) -> dict[str, dict[str, tuple[float, float]]]:
    """Tries every learning rate with every optimiser.

    Returns:
      By side of `TUNED` and optimiser the best rate with its accuracy on the validation images.
    """

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        program = name.removesuffix("_tries")
        tried = [
            (side, optimizer, rate)
            for side in PROGRAMS[program] if side in TUNED
            for optimizer, own in config.optimizers.items()
            for rate in own.rates
        ]  # fmt: skip
        configs = [
            configured(config, SIDES[side], optimizer, rate, steps=config.tries.steps)
            for side, optimizer, rate in tried
        ]
        _, found = _together(configs, inner, program)
        best: dict[str, dict[str, tuple[float, float]]] = {}
        for (side, optimizer, rate), accuracy in zip(tried, found, strict=True):
            own = best.setdefault(side, {})
            before = own.get(optimizer, (0.0, -1.0))
            own[optimizer] = max(before, (rate, accuracy), key=lambda one: one[1])
        Progress().note(f"{name}: {best}")
        return {f"accuracy_{i}": value for i, value in enumerate(found)}, best

    tries = for_each(run, [f"{program}_tries" for program in PROGRAMS], measure)
    return {side: own for _, best in tries.values() for side, own in best.items()}


def tuned(side: str) -> str:
    """The side whose choices a side takes."""
    return SIDES[side].like or side


def best_optimizer(found: Mapping[str, tuple[float, float]]) -> str:
    """The optimiser with the best accuracy on the validation images."""
    return max(found, key=lambda name: found[name][1])


def train_sides(
    config: Any, run: RunDirectory, chosen: Mapping[str, Mapping[str, tuple[float, float]]]
) -> dict[tuple[str, str], Trained]:
    """Trains all sides with what was chosen for them.

    Returns:
      By side and optimiser. "no_slow_again" is "no_slow" with another seed.
    """
    plans: dict[str, list[tuple[str, str]]] = {}
    for program, members in PROGRAMS.items():
        for name in members:
            own = config.optimizers if SIDES[name].both else (best_optimizer(chosen[tuned(name)]),)
            for optimizer in own:
                again = [(f"{name}_again", optimizer)] if name == "no_slow" else []
                plans.setdefault(program, []).extend([(name, optimizer), *again])
    sides = SIDES | {"no_slow_again": SIDES["no_slow"]._replace(seed=AGAIN)}
    test = open_images(config, "test", labelled=True)

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], Any]:
        members = plans[name]
        configs = []
        for side, optimizer in members:
            rate = chosen[tuned(side.removesuffix("_again"))][optimizer][0]
            configs.append(configured(config, sides[side], optimizer, rate))
        states, _ = _together(configs, inner, name)
        found = {}
        for i, (member, own, state) in enumerate(zip(members, configs, states, strict=True)):
            named = np.asarray(right(own, build_model(own, name), state.variables, test))
            course, seconds = _course(inner, i)
            found[member] = Trained(state.variables, named, course, seconds / len(members))
        accuracies = {"_".join(key): float(one.right.mean()) for key, one in found.items()}
        Progress().note(f"{name}: { {s: round(a, 4) for s, a in accuracies.items()} } (test)")
        return {f"accuracy_{member}": value for member, value in accuracies.items()}, found

    measured = for_each(run, plans, measure).values()
    return {key: one for _, found in measured for key, one in found.items()}


def steps_to(course: np.ndarray, share: float) -> int:
    """The first step at which a course is at a share of where it ends."""
    reached = np.flatnonzero(course >= share * np.nanmean(course[-WINDOW:]))
    return int(reached[0]) + 1


def _together(
    configs: Sequence[Any], run: RunDirectory, model: str
) -> tuple[list[Any], list[float]]:
    """States of configs that one program trains, and their accuracies on validation images."""
    together = many(partial(task, model=model), configs)
    state = on_one_device(train(configs[0], run, together, "eval/accuracy"))
    lines = [line for line in read_metrics(run.path / METRICS) if "eval/accuracy" in line]
    count = range(len(configs))
    return [unstack(state, i) for i in count], [lines[-1][f"eval/accuracy/{i}"] for i in count]


def _course(run: RunDirectory, i: int) -> tuple[np.ndarray, float]:
    """Smoothed accuracy on training batches by step, and the seconds of a step of all runs."""
    lines = [x for x in read_metrics(run.path / METRICS) if f"train/accuracy/{i}" in x]
    steps = np.array([line["step"] for line in lines])
    values = np.interp(
        np.arange(1, steps[-1] + 1), steps, [line[f"train/accuracy/{i}"] for line in lines]
    )
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    start = np.maximum(np.arange(1, len(sums)) - WINDOW, 0)
    course = (sums[1:] - sums[start]) / (np.arange(1, len(sums)) - start)
    half = len(lines) // 2
    passed = lines[-1]["time"] - lines[half]["time"]
    return course, passed / max(steps[-1] - steps[half], 1)
