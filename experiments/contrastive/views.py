"""Self-supervised methods that compare two views: one recipe, `loss.name` a row of `METHODS`.

* `barlow_twins` (arXiv:2103.03230), `vicreg` (arXiv:2105.04906): statistics of projections.
* `nt_xent` (arXiv:2002.05709), `dcl` (arXiv:2110.06848): contrast, of DCL without the positive in
  the denominator. The recipe `simclr` is the former with both views normalised together.
* `simsiam` (arXiv:2011.10566), `byol` (arXiv:2006.07733): a view's prediction of the other one's
  projection, by the same network or by its moving average.
* `nnclr` (arXiv:2104.14548): contrast with the nearest neighbour among earlier projections.
* `swav` (arXiv:2006.09882), `dino` (arXiv:2104.14294): clusters of the other view, by Sinkhorn's
  codes or by the moving average. Both are two large crops here, without small ones.

Each view is normalised by its own statistics where an encoder has BatchNorm, as in the papers.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.claims import STRANGERS, features_are_learned
from experiments.common.encoders import PredictedEncoder, build_encoder, image_encoder
from experiments.common.images import augmentation
from experiments.common.pretraining import captions, momentum, pretrain, surroundings
from experiments.common.selection import NEIGHBOURS
from experiments.ranges import Range
from rml import losses
from rml.contrastive import Prototypes, apply_to_views
from rml.data import augment
from rml.encoder import ImageEmbedder
from rml.errors import UserError, unknown
from rml.ops.similarity import normalize
from rml.training import (
    Loss,
    RunDirectory,
    Task,
    TrainState,
    enqueue,
    gradient_task,
    init_queue,
    momentum_task,
)

CLAIMS = features_are_learned("the method of `loss.name`", stated="2026-11-26")
NULLS = STRANGERS
RANGES = {
    "train.batch_size": Range(2, whole=True),  # statistics and negatives are of other images
    "prototypes.number": Range(2, whole=True),
    "epsilon": Range(above=True),
    "teacher_temperature": Range(above=True),
    "center_momentum": Range(high=1),
}
CAPTIONS = captions("The loss")
PICTURE = "embedding.png"
SELECTION = NEIGHBOURS
PARTS = ("predictor", "prototypes", "momentum", "queue")
"""Parts of a config that some methods have."""
GIVEN = ("reduction", "axis_name", "center", "queue")
"""Named arguments of losses that are not options of a config."""


class Views(NamedTuple):
    """What a method's loss sees, each array [2, b, ...] with the two views of the same images.

    Attributes:
      projections: Projections.
      predictions: What the predictor makes of them, or their cosines with prototypes; without
        either the projections.
      targets: What the moving average makes of the images; None where there is none.
      extra: What else the state keeps.
    """

    projections: Any
    predictions: Any
    targets: Any
    extra: Any


class Method(NamedTuple):
    """A row of `METHODS`.

    Attributes:
      loss: `(options, views) -> Loss`, with the options of `config.loss` but its name.
      function: The loss of `rml.losses`, whose named arguments but `GIVEN` are these options.
      parts: Those of `PARTS` that a config must have, and no other.
      beside: Options that a config must have beside those of the function.
      averaged: Parts of the model that have a moving average, from which targets are made.
      start: `(config, key) -> dict`, what else the state keeps.
    """

    loss: Callable[[dict[str, Any], Views], Loss]
    function: Callable[..., Any]
    parts: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()
    start: Callable[[Any, Any], dict[str, Any]] | None = None

    def options(self) -> dict[str, bool]:
        """Lists the options of `config.loss` but its name, and whether a config must have each."""
        named = {
            name: own.default is own.empty
            for name, own in inspect.signature(self.function).parameters.items()
            if own.kind is own.KEYWORD_ONLY and name not in GIVEN
        }
        return named | dict.fromkeys(self.beside, True)


def of_projections(loss: Callable[..., Any]) -> Method:
    """The method of a loss of both views' projections."""
    return Method(lambda options, views: Loss(loss(*views.projections, **options)), loss)


def dino(options: dict[str, Any], views: Views) -> Loss:
    """Cross-entropy with the average's centred distribution; the center follows."""
    share, center = options.pop("center_momentum"), views.extra["center"]
    value = losses.dino(views.predictions, views.targets, center=center, **options)
    center = losses.update_center(center, views.targets, momentum=share)
    return Loss(value, extra={"center": center})


def nnclr(options: dict[str, Any], views: Views) -> Loss:
    """Contrast with neighbours in the queue of first views, which then moves on."""
    queue, (z1, z2), (p1, p2) = views.extra["queue"], views.projections, views.predictions
    one, other = (losses.nnclr(z, p, queue.keys, **options) for z, p in ((z1, p2), (z2, p1)))
    return Loss((one + other) / 2, extra={"queue": enqueue(queue, normalize(z1))})


METHODS = {
    "barlow_twins": of_projections(losses.barlow_twins),
    "vicreg": of_projections(losses.vicreg),
    "nt_xent": of_projections(losses.nt_xent),
    "dcl": of_projections(losses.dcl),
    "simsiam": Method(
        lambda options, v: Loss(losses.simsiam(v.predictions, v.projections)),
        losses.simsiam,
        parts=("predictor",),
    ),
    "byol": Method(
        lambda options, v: Loss(losses.byol(v.predictions, v.targets)),
        losses.byol,
        parts=("predictor", "momentum"),
        averaged=("encoder", "head"),
    ),
    "nnclr": Method(
        nnclr,
        losses.nnclr,
        parts=("predictor", "queue"),
        start=lambda config, key: {
            "queue": init_queue(key, size=config.queue.size, features=config.head.features)
        },
    ),
    "swav": Method(
        lambda options, v: Loss(losses.swav(v.predictions, **options)),
        losses.swav,
        parts=("prototypes",),
    ),
    "dino": Method(
        dino,
        losses.dino,
        parts=("prototypes", "momentum"),
        beside=("center_momentum",),
        averaged=("encoder", "head", "predictor"),
        start=lambda config, key: {"center": jnp.zeros(config.prototypes.number)},
    ),
}


def checked(config: Any) -> Method:
    """Finds the method of a config, which has all that the method reads and nothing else.

    Raises:
      UserError: An unknown method, a part or an option that it lacks, or one that it does not read.
    """
    options = dict(config.loss)
    name = options.pop("name")
    if name not in METHODS:
        raise unknown("loss.name", name, METHODS)
    method = METHODS[name]
    for part in PARTS:
        if (part in config) != (part in method.parts):
            given, expected = ("with", "without") if part in config else ("without", "with")
            raise UserError(
                f"loss.name is {name!r} {given} {part}, expected a config {expected} {part}"
            )
    known = method.options()
    for option, value in options.items():
        if option not in known:
            expected = f"one of: {', '.join(sorted(known))}" if known else "no options"
            raise UserError(
                f"loss.{option} is {value!r}, which {name!r} does not read; expected {expected}"
            )
    for option, needed in known.items():
        if needed and option not in options:
            raise UserError(f"loss.name is {name!r} without loss.{option}, expected a number")
    return method


def build_model(config: Any) -> Any:
    """The encoder of a config with its head and its predictor or prototypes, if it has any."""
    model = build_encoder(config)
    if "prototypes" not in config:
        return model
    return PredictedEncoder(model.encoder, model.head, Prototypes(config.prototypes.number))


def _outputs(model: Any, images: Any, *, train: bool) -> Any:
    """Projections and, of a model that predicts, predictions: the model is applied once."""
    projections = model.project(images, train=train)
    if not isinstance(model, PredictedEncoder):
        return (projections,)
    return projections, model.predictor(projections, train=train)


def task(config: Any) -> Task:
    """The training problem of a config.

    Raises:
      UserError: The config does not fit its method; see `checked`.
    """
    method = checked(config)
    model, pipeline = build_model(config), augmentation(config)
    options = {key: value for key, value in config.loss.items() if key != "name"}

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        images = augment.to_float(batch["image"])
        views = augment.views(state.step_key, images, pipeline, n=2)
        variables = state.training_variables(params)
        outputs, changed = apply_to_views(model, variables, views, method=_outputs)
        targets = None
        if method.averaged:
            call = "__call__" if "predictor" in method.averaged else "project"
            targets, _ = apply_to_views(model, state.extra["momentum"], views, method=call)
            targets = jax.lax.stop_gradient(targets)
        made = Views(outputs[0], outputs[-1], targets, state.extra)
        return method.loss(dict(options), made)._replace(model_state=changed)

    def start(key: Any) -> dict[str, Any]:
        return {} if method.start is None else method.start(config, key)

    around = surroundings(config, model)
    if method.averaged:
        return momentum_task(
            loss=loss, momentum=momentum(config), averaged=method.averaged, extra=start, **around
        )
    return gradient_task(loss=loss, extra=lambda key, variables: start(key), **around)


def encoder(config: Any, state: TrainState) -> ImageEmbedder:
    """The features of images that a trained state gives."""
    return image_encoder(build_model(config), config, state)


def run(config: Any, run: RunDirectory) -> dict[str, float]:
    """Trains, judges the features, draws."""
    label = config.loss.name.replace("_", " ")
    return pretrain(config, run, task(config), build_model(config), loss_label=f"loss ({label})")
