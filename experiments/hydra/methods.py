"""The methods compared: a loss each, over the same encoder, views, batches and optimiser."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import optax

from experiments.common.encoders import build_encoder
from experiments.common.images import augmentation, crops_on_host, open_images, training_batches
from experiments.common.pretraining import surroundings
from rml import models
from rml.data import augment
from rml.errors import UserError, unknown
from rml.hydra import (
    SAMPLING,
    FeatureFilter,
    GatedEncoder,
    LearnedOptions,
    gate_penalty,
    gate_statistics,
    hydra_loss,
    pair_batches,
    view_partners,
)
from rml.losses import nt_xent, sup_con
from rml.training import Loss, Task, TrainState, gradient_task, over_batch

PENALTIES = ("binary", "openness")
LEARNED = ("temperature", "ungated")
VIEWS = ("all", "other")


class Rows(NamedTuple):
    """Rows of a batch as the losses see them: views, those of an image side by side.

    Attributes:
      outputs: Projections, or a classifier's logits.
      labels: Class of each row.
      partners: The other class of each row's pair.
      gates: Gates of the pairs; None but of a gated encoder, as is what follows.
      openness: How probably they are open.
      logits: Logits of a probe on the features; None without one.
      learned: Options of the loss that are learned.
    """

    outputs: Any
    labels: Any
    partners: Any
    gates: Any = None
    openness: Any = None
    logits: Any = None
    learned: Any = None


Objective = Callable[[Any, Rows], Loss]
"""`(config, rows) -> Loss`."""


def simclr(config: Any, rows: Rows) -> Loss:
    """The two views of an image agree."""
    contrast = over_batch(partial(nt_xent, temperature=config.simclr.temperature))
    return Loss(contrast(*augment.split_views(rows.outputs)))


def supcon(config: Any, rows: Rows) -> Loss:
    """All views of a class agree."""
    contrast = over_batch(partial(sup_con, temperature=config.supcon.temperature))
    return Loss(contrast(rows.outputs, rows.labels))


def hydra(config: Any, rows: Rows) -> Loss:
    """All views of a pair of classes agree, in the subspace of the pair."""
    options = {k: v for k, v in config.loss.items() if k in _LOSS_OPTIONS} | rows.learned
    contrast = over_batch(partial(hydra_loss, **options))
    arrays = rows.outputs, rows.labels, rows.partners, rows.gates
    if config.loss.views == "other":
        parts = [augment.split_views(array) for array in arrays]
        value = contrast(*(first for first, _ in parts), parts[0][1])
    else:
        value = contrast(*arrays)
    if config.loss.penalized == "binary":
        value += config.loss.penalty * gate_penalty(rows.gates)
    else:
        value += config.loss.penalty * jnp.mean(rows.openness)
    metrics = gate_statistics(rows.gates) | rows.learned
    if rows.logits is not None:
        value += jnp.mean(_cross_entropy(rows.logits, rows.labels))
        metrics["probe_accuracy"] = jnp.mean(jnp.argmax(rows.logits, 1) == rows.labels)
    return Loss(value, metrics=metrics)


def classifier(config: Any, rows: Rows) -> Loss:
    """Logits name the class."""
    return Loss(jnp.mean(_cross_entropy(rows.outputs, rows.labels)))


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels
_LOSS_OPTIONS = tuple(inspect.signature(hydra_loss).parameters)


METHODS: dict[str, Objective] = {
    "simclr": simclr, "supcon": supcon, "hydra": hydra, "classifier": classifier,
}  # fmt: skip


def build_model(config: Any, method: str) -> Any:
    """The encoder of a config with what a method's loss needs on top of it."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    classes, dtype = config.data.classes, jnp.dtype(config.dtype)
    if method == "classifier":
        return build_encoder(config, models.Classifier(classes, dtype=dtype))
    model = build_encoder(config)
    if method != "hydra":
        return model
    for name, known in (("penalized", PENALTIES), ("views", VIEWS)):
        if config.loss[name] not in known:
            raise unknown(f"loss.{name}", config.loss[name], known)
    learned = {name: config.loss[name] for name in LEARNED if config.loss.learned}
    return GatedEncoder(
        model.encoder,
        model.head,
        FeatureFilter(classes, config.head.features, dtype=dtype, **config.filter),
        norm=models.Norm(config.projections.norm, axis="mlp", dtype=dtype),
        probe=models.Classifier(classes, dtype=dtype) if config.projections.probe else None,
        options=LearnedOptions(**learned),
    )


def task(config: Any, method: str) -> Task:
    """The training problem of a method, one of `METHODS`.

    Raises:
      UserError: An unknown method, option or sampling of pairs, or data that does not fit.
    """
    classes, sampling = config.data.classes, config.pairs.sampling
    if sampling not in (*SAMPLING, "drawn"):
        raise unknown("pairs.sampling", sampling, (*SAMPLING, "drawn"))
    drawn = sampling == "drawn"
    if drawn and crops_on_host(config):
        raise UserError(
            "data.host_crops is True and pairs.sampling 'drawn', whose batches hold whole images; "
            "expected pairs.sampling='batch'"
        )
    model, pipeline = build_model(config, method), augmentation(config)
    around = surroundings(config, model)
    if drawn:
        around["batch_spec"]["partner"] = around["batch_spec"]["label"]

    def batches(part: int = 0, parts: int = 1) -> grain.IterDataset:
        source = open_images(config, "train", labelled=True)
        if classes != source.num_classes:
            raise UserError(
                f"data.classes is {classes}, but {config.data.name} has {source.num_classes} "
                f"classes: set --config.data.classes={source.num_classes}"
            )
        if not drawn:
            return training_batches(config, source, part, parts)
        size = config.train.batch_size
        return pair_batches(source, batch_size=size, seed=config.seed, part=part, parts=parts)

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        key_views, key_pairs, key_gates = jax.random.split(state.step_key, 3)
        views = augment.views(key_views, augment.to_float(batch["image"]), pipeline, n=2)
        variables, rows = state.training_variables(params), augment.flat_views(views)
        apply = partial(model.apply, train=True, mutable=list(state.model_state))
        labels = jnp.repeat(batch["label"], 2)
        if drawn:
            partners = jnp.repeat(batch["partner"], 2)
        else:
            options = {"classes": classes, "sampling": sampling}
            partners = view_partners(key_pairs, batch["label"], **options)
        if not isinstance(model, GatedEncoder):
            outputs, changed = apply(variables, rows)
            found = METHODS[method](config, Rows(outputs, labels, partners))
            return found._replace(model_state=changed)
        (outputs, logits), changed = apply(variables, rows, method="outputs")
        pairs = labels, partners
        gates, changed = apply(variables | changed, *pairs, key_gates, method="gates")
        openness = None
        if config.loss.penalized == "openness":
            openness, _ = apply(variables, *pairs, openness=True, method="gates")
        learned = model.apply(variables, method="loss_options")
        found = METHODS[method](
            config, Rows(outputs, labels, partners, gates, openness, logits, learned)
        )
        return found._replace(model_state=changed)

    return gradient_task(loss=loss, **around | {"batches": batches})
