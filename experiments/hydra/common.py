"""What the Hydra experiments share: the gated encoder, and one task for every method compared."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.contrastive import common
from experiments.contrastive.common import open_split
from rml import data, evaluation, models
from rml.contrastive.ntxent import nt_xent
from rml.contrastive.supcon import sup_con
from rml.data import augment
from rml.errors import UserError, unknown
from rml.hydra import analysis
from rml.hydra.feature_filter import FeatureFilter, gate_penalty
from rml.hydra.loss import hydra_loss
from rml.hydra.pairs import SAMPLING, pair_batches, sample_partners
from rml.training import (
    Progress,
    RunDirectory,
    Task,
    TrainState,
    build_optimizer,
    fit,
    gradient_task,
    make_mesh,
    over_batch,
)

METHODS = ("simclr", "supcon", "hydra", "classifier")


class GatedEncoder(nn.Module):
    """An encoder with its projection head and the feature filter of pairs of classes."""

    encoder: nn.Module
    head: nn.Module
    filter: FeatureFilter

    def __call__(
        self, images: Float[Array, "b h w c"], first: Any, second: Any, key: Any, *, train: bool
    ) -> tuple[Float[Array, "b p"], Float[Array, "b p"]]:
        """Projections of images, and gates of the pairs (first, second)."""
        projections = self.head(self.encoder(images, train=train), train=train)
        return projections, self.filter(first, second, key)

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Features of images, what a downstream task takes."""
        return self.encoder(images, train=False)

    def projections(self, images: Float[Array, "b h w c"]) -> Float[Array, "b p"]:
        """Projections of images, before any gate."""
        return self.head(self.encoder(images, train=False), train=False)

    def gates(self, first: Int[Array, " n"], second: Int[Array, " n"]) -> Float[Array, "n p"]:
        """Gates of pairs of classes."""
        return self.filter(first, second)


def build_model(config: Any, method: str) -> Any:
    """The encoder of a config with what a method's loss needs on top of it."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    dtype = jnp.dtype(config.dtype)
    if method in ("simclr", "supcon"):
        return common.build_model(config)
    encoder = models.build(**config.model, dtype=dtype)
    if method == "classifier":
        head = models.Classifier(config.data.classes, dtype=dtype)
        return common.ProjectedEncoder(encoder, head)
    return GatedEncoder(
        encoder,
        models.ProjectionHead(**config.head, dtype=dtype),
        FeatureFilter(
            classes=config.data.classes, features=config.head.features, dtype=dtype, **config.filter
        ),
    )


def open_batches(config: Any, part: int = 0, parts: int = 1) -> Any:
    """Training batches: shuffled, or of drawn pairs where `pairs.sampling` is "drawn"."""
    source = open_split(config, "train")
    if config.data.classes != source.num_classes:
        raise UserError(
            f"data.classes is {config.data.classes}, but {config.data.name} has "
            f"{source.num_classes} classes: set --config.data.classes={source.num_classes}"
        )
    read = pair_batches if config.pairs.sampling == "drawn" else data.batches
    return read(
        source, batch_size=config.train.batch_size, seed=config.seed,
        part=part, parts=parts,
    )  # fmt: skip


def task(config: Any, method: str) -> Task:
    """The training problem of a method; encoder, views, batches and optimiser are the same for all.

    Args:
      config: The run's config.
      method: One of `METHODS`.

    Returns:
      The task.

    Raises:
      UserError: An unknown method, option or sampling of pairs, or data that does not fit.
    """
    drawn = config.pairs.sampling == "drawn"
    if config.pairs.sampling not in (*SAMPLING, "drawn"):
        raise unknown("pairs.sampling", config.pairs.sampling, (*SAMPLING, "drawn"))
    model, pipeline = build_model(config, method), common.augmentation(config)
    judge = common.Judge(model, config)
    spec = common.batch_spec(config)
    if drawn:
        spec["partner"] = spec["label"]

    def init_variables(key: Any) -> Any:
        images = jnp.zeros((2, *config.data.image_shape))
        if method != "hydra":
            return model.init(key, images, train=True)
        pair = jnp.zeros(2, jnp.int32)
        return model.init(key, images, pair, pair, None, train=True)

    def apply(params: Any, model_state: Any, *args: Any) -> Any:
        variables = {"params": params, **model_state}
        return model.apply(variables, *args, train=True, mutable=list(model_state))

    def baseline(params: Any, model_state: Any, images: Any, labels: Any) -> Any:
        out, model_state = apply(params, model_state, images)
        if method == "simclr":
            contrast = partial(nt_xent, temperature=config.simclr.temperature)
            value = over_batch(contrast)(*augment.split_views(out))
        elif method == "supcon":
            contrast = partial(sup_con, temperature=config.supcon.temperature)
            value = over_batch(contrast)(out, labels)
        else:
            entropies = optax.softmax_cross_entropy_with_integer_labels(out, labels)
            value = jnp.mean(entropies)
        return value, ({}, model_state)

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        view_key, pair_key, gate_key = jax.random.split(key, 3)
        views = augment.views(view_key, augment.to_float(batch["image"]), pipeline, n=2)
        images, labels = augment.flat_views(views), jnp.repeat(batch["label"], 2)
        if method != "hydra":
            return baseline(params, model_state, images, labels)
        if drawn:
            partners = jnp.repeat(batch["partner"], 2)
        else:
            options = dict(classes=config.data.classes, sampling=config.pairs.sampling)
            apart = sample_partners(pair_key, jnp.tile(batch["label"], 2), **options)
            partners = augment.flat_views(apart.reshape(2, -1))
        (projections, gates), model_state = apply(
            params, model_state, images, labels, partners, gate_key
        )
        options = dict(config.loss)
        weight = options.pop("penalty")
        penalty = gate_penalty(gates)
        contrast = over_batch(partial(hydra_loss, **options))
        value = contrast(projections, labels, partners, gates) + weight * penalty
        metrics = {
            "gate_sparsity": analysis.gate_sparsity(gates),
            "gate_binariness": analysis.gate_binariness(gates),
        }
        return value, (metrics, model_state)

    def evaluate(state: TrainState) -> dict[str, float]:
        return {"knn": judge.knn(judge.features(common.variables(state)))}

    return gradient_task(
        init_variables=init_variables,
        loss=loss,
        optimizer=build_optimizer(config.optimizer, steps=config.train.steps),
        batches=partial(open_batches, config),
        evaluate=evaluate,
        batch_spec=spec,
    )


def train(config: Any, run: RunDirectory, problem: Task) -> TrainState:
    """Trains a task for as long as the config says."""
    options = dict(config.train)
    options.pop("batch_size")
    return fit(
        problem, run, seed=config.seed, mesh=make_mesh(config.mesh),
        progress=Progress(keys=("train/loss", "eval/knn")), **options,
    )  # fmt: skip


class Judges:
    """Measures the features of one method, on its own data and on other data."""

    def __init__(self, config: Any, method: str):
        """Prepares the encoder; data is opened when it is first needed.

        Args:
          config: The run's config; `transfer` names the other data.
          method: One of `METHODS`.
        """
        elsewhere = config.copy_and_resolve_references()
        elsewhere.data.update(elsewhere.transfer)
        self.model = build_model(config, method)
        self.home = common.Judge(self.model, config)
        self.transfer = common.Judge(self.model, elsewhere)
        self._pipeline = common.augmentation(config)

    def measure(self, variables: Any, features: common.Splits) -> dict[str, float]:
        """Accuracy here and elsewhere, rank, alignment and uniformity on the test images.

        Args:
          variables: Of the model.
          features: Those of `home` with the same variables.

        Returns:
          Metrics by name.
        """
        elsewhere = self.transfer.features(variables)
        test = features[1][0]
        return {
            "knn": self.home.knn(features),
            "linear_probe": self.home.probe(features),
            "transfer_knn": self.transfer.knn(elsewhere),
            "transfer_linear_probe": self.transfer.probe(elsewhere),
            "rankme": float(evaluation.rankme(test)),
            "rankme_projections": float(evaluation.rankme(self.projections(variables))),
            "participation_ratio": float(evaluation.participation_ratio(test)),
            "alignment": self.alignment(variables),
            "uniformity": float(evaluation.uniformity(test)),
        }

    def projections(self, variables: Any) -> Array:
        """What the loss sees of the test images, before any gate; logits of a classifier."""
        if isinstance(self.model, GatedEncoder):
            apply = partial(self.model.apply, method=self.model.projections)
        else:
            apply = partial(self.model.apply, train=False)
        project = jax.jit(lambda images: apply(variables, augment.to_float(images)))
        size = self.home.options.batch_size
        return evaluation.extract_features(
            project, self.home.batches(self.home.test), batch_size=size
        )[0]

    def alignment(self, variables: Any, *, examples: int = 500) -> float:
        """Mean squared distance of the features of two views of test images."""
        images = np.stack(
            [self.home.test[i]["image"] for i in range(min(examples, len(self.home.test)))]
        )

        @jax.jit
        def measure(variables: Any, images: Any) -> Any:
            views = augment.views(jax.random.key(0), augment.to_float(images), self._pipeline, n=2)
            encode = partial(self.model.apply, variables, method=self.model.features)
            return evaluation.alignment(encode(views[0]), encode(views[1]))

        return float(measure(variables, jnp.asarray(images)))


def pair_gates(config: Any, state: TrainState) -> Float[Array, "c c d"]:
    """Gates of every pair of a few hundred classes at most, under a trained state."""
    model = build_model(config, "hydra")
    classes = config.data.classes
    first, second = analysis.all_pairs(classes)
    gates = model.apply(common.variables(state), first, second, method=model.gates)
    return gates.reshape(classes, classes, -1)
