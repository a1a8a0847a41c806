"""The methods compared: a loss each, over the same encoder, views, batches and optimiser."""

from collections.abc import Callable
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax

from experiments.common.encoders import build_encoder
from experiments.common.images import augmentation, open_images
from experiments.common.pretraining import surroundings
from rml import data, models
from rml.data import augment
from rml.errors import UserError, unknown
from rml.hydra import (
    SAMPLING,
    FeatureFilter,
    GatedEncoder,
    gate_penalty,
    gate_statistics,
    hydra_loss,
    pair_batches,
    view_partners,
)
from rml.losses import nt_xent, sup_con
from rml.training import Loss, Task, TrainState, gradient_task, over_batch

Objective = Callable[..., Loss]
"""`(config, outputs, labels, partners, gates) -> Loss` of the rows of a batch.

Rows are views, those of an image side by side; outputs are projections or a classifier's logits,
partners the other classes of the rows' pairs, gates None but of a gated encoder.
"""


def simclr(config: Any, outputs: Any, labels: Any, partners: Any, gates: Any) -> Loss:
    """The two views of an image agree."""
    contrast = over_batch(partial(nt_xent, temperature=config.simclr.temperature))
    return Loss(contrast(*augment.split_views(outputs)))


def supcon(config: Any, outputs: Any, labels: Any, partners: Any, gates: Any) -> Loss:
    """All views of a class agree."""
    contrast = over_batch(partial(sup_con, temperature=config.supcon.temperature))
    return Loss(contrast(outputs, labels))


def hydra(config: Any, outputs: Any, labels: Any, partners: Any, gates: Any) -> Loss:
    """All views of a pair of classes agree, in the subspace of the pair."""
    options = dict(config.loss)
    weight = options.pop("penalty")
    contrast = over_batch(partial(hydra_loss, **options))
    value = contrast(outputs, labels, partners, gates) + weight * gate_penalty(gates)
    return Loss(value, metrics=gate_statistics(gates))


def classifier(config: Any, outputs: Any, labels: Any, partners: Any, gates: Any) -> Loss:
    """Logits name the class."""
    return Loss(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels)))


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
    gates = FeatureFilter(classes, config.head.features, dtype=dtype, **config.filter)
    return GatedEncoder(model.encoder, model.head, gates)


def task(config: Any, method: str) -> Task:
    """The training problem of a method, one of `METHODS`.

    Raises:
      UserError: An unknown method, option or sampling of pairs, or data that does not fit.
    """
    classes, sampling = config.data.classes, config.pairs.sampling
    if sampling not in (*SAMPLING, "drawn"):
        raise unknown("pairs.sampling", sampling, (*SAMPLING, "drawn"))
    drawn = sampling == "drawn"
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
        read, size = pair_batches if drawn else data.batches, config.train.batch_size
        return read(source, batch_size=size, seed=config.seed, part=part, parts=parts)

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        key_views, key_pairs, key_gates = jax.random.split(state.step_key, 3)
        views = augment.views(key_views, augment.to_float(batch["image"]), pipeline, n=2)
        variables = state.training_variables(params)
        outputs, changed = model.apply(
            variables, augment.flat_views(views), train=True, mutable=list(state.model_state)
        )
        labels = jnp.repeat(batch["label"], 2)
        if drawn:
            partners = jnp.repeat(batch["partner"], 2)
        else:
            options = {"classes": classes, "sampling": sampling}
            partners = view_partners(key_pairs, batch["label"], **options)
        gates = None
        if isinstance(model, GatedEncoder):
            gates = model.apply(variables, labels, partners, key_gates, method="gates")
        found = METHODS[method](config, outputs, labels, partners, gates)
        return found._replace(model_state=changed)

    return gradient_task(loss=loss, **around | {"batches": batches})
