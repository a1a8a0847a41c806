"""Coefficients of task vectors on a bed, and what is learned beside them from the same images."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import FrozenConfigDict

from experiments.common.images import augmentation
from experiments.merging.bed import Bed
from experiments.merging.finetuning import logits
from experiments.merging.networks import seen
from experiments.merging.tasks import Images
from rml.data import augment
from rml.merging import compose, learn_scaling, ufm
from rml.models.adapters import apply_lora, init_lora
from rml.ops import normalize, trees
from rml.training import descend

CLIP = 1.0
BETA = 5.5
"""Sharpness of a cache's votes, as in Tip-Adapter (Zhang et al., arXiv:2207.09519)."""


class Batch(NamedTuple):
    """Images of one step, or of all steps on a leading axis.

    Attributes:
      images: Images; what is augmented is floating.
      weights: What the loss of each counts; below 0 it is made large.
    """

    images: Images
    weights: Array


class Views(NamedTuple):
    """Images without labels of one step, or of all on a leading axis.

    Attributes:
      weak: Images as they are.
      strong: Augmented images.
      labels: What the base calls them.
      trusted: Which labels are trusted.
    """

    weak: Array
    strong: Array
    labels: Array
    trusted: Array


def cross_entropy(module: Any, heads: Array, temperature: Any) -> Callable[[Any, Batch], Array]:
    """The mean weighted cross-entropy of a batch, as a function of parameters and images."""

    def objective(params: Any, batch: Batch) -> Array:
        found = _logits(module, params, heads[batch.images.task], batch.images.image, temperature)
        each = optax.softmax_cross_entropy_with_integer_labels(found, batch.images.label)
        return jnp.mean(batch.weights * each)

    return objective


@functools.partial(jax.jit, static_argnames=("module", "by_block", "count", "cosine"))
def scaled_vectors(
    module: Any, base: Any, vectors: Any, heads: Array, batches: Batch, temperature: Any,
    rate: Any, decay: Any, *, by_block: bool = True, parts: Any = None, count: int | None = None,
    kept: Any = None, cosine: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """The model with learned coefficients of task vectors, and the coefficients."""
    steps = batches.weights.shape[0]
    found = learn_scaling(
        cross_entropy(module, heads, temperature), base, vectors, batches, by_block=by_block,
        parts=parts, count=count, kept=kept, weight_decay=decay, clip=CLIP,
        learning_rate=optax.cosine_decay_schedule(rate, steps) if cosine else rate,
    )  # fmt: skip
    own = found.params
    return compose(base, vectors, own, parts=parts), own


@functools.partial(jax.jit, static_argnames="module")
def unlabelled(
    module: Any, base: Any, vectors: Any, head: Array, batches: Views, temperature: Any,
    rate: Any, decay: Any, threshold: Any,
) -> Any:  # fmt: skip
    """The model with coefficients learned without labels, by pseudo-labels of the model's own."""

    def objective(params: Any, batch: Views) -> Array:
        weak, strong = (
            _logits(module, params, head, images, temperature)
            for images in (batch.weak, batch.strong)
        )
        return ufm(weak, strong, batch.labels, batch.trusted, threshold=threshold).mean()

    steps = batches.labels.shape[0]
    found = learn_scaling(
        objective, base, vectors, batches, weight_decay=decay, clip=CLIP,
        learning_rate=optax.cosine_decay_schedule(rate, steps),
    )  # fmt: skip
    return compose(base, vectors, found.params)


@functools.partial(jax.jit, static_argnames=("module", "adapted"))
def tuned(
    module: Any, base: Any, heads: Array, batches: Batch, temperature: Any, rate: Any, key: Array,
    *, adapted: bool,
) -> Any:  # fmt: skip
    """The model after fine-tuning, of all parameters or of adapters.

    Adapters are of rank 1, one for each layer's kernel of queries, keys and values.
    """
    objective = cross_entropy(module, heads, temperature)
    first = init_lora(key, base, rank=1, within="blocks.qkv") if adapted else base
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adam(optax.cosine_decay_schedule(rate, batches.weights.shape[0])),
    )

    def whole(own: Any) -> Any:
        return apply_lora(base, own) if adapted else own

    found = descend(
        lambda own, batch: objective(whole(own), batch), first, batches, optimizer=optimizer
    )
    return whole(found.params)


@functools.partial(jax.jit, static_argnames="steps")
def probe(
    head: Array, features: Array, labels: Array, temperature: Any, rate: Any, *, steps: int
) -> Array:
    """A task's head after training on all features of a few images, from the frozen one."""
    present = jnp.any(head != 0, axis=-1, keepdims=True)

    def whole(own: Array) -> Array:
        return jnp.where(present, normalize(own), 0)

    def objective(own: Array, _: Array) -> Array:
        found = logits(features, whole(own), temperature)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, labels))

    rates = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return whole(descend(objective, head, jnp.arange(steps), optimizer=rates).params)


@jax.jit
def cached(
    head: Array, features: Array, labels: Array, queries: Array, temperature: Any, share: Any
) -> Array:
    """Logits of queries, with votes of similar images of known class beside the head's.

    Source: Zhang et al., Tip-Adapter, arXiv:2207.09519, without training.
    """
    near = jnp.exp(-BETA * (1 - normalize(queries) @ normalize(features).T))
    votes = near @ jax.nn.one_hot(labels, head.shape[0])
    return logits(queries, head, temperature) + share * votes


def few_batches(config: Any, images: Images, *, steps: int, batch_size: int) -> Batch:
    """Augmented batches of all steps, in passes over all images."""
    rng, count = np.random.default_rng([config.seed, 2]), len(images.label)
    passes = [rng.permutation(count) for _ in range(-(-steps * batch_size // count))]
    rows = jnp.asarray(np.concatenate(passes)[: steps * batch_size].reshape(steps, batch_size))
    own = jax.tree.map(lambda x: x[rows], images)
    changed = augmented(config, own.image)
    return Batch(own._replace(image=changed), jnp.ones(rows.shape))


def augmented(config: Any, images: Array) -> Array:
    """Images of several batches [steps, b, h, w, c] as experts are trained on them."""
    own = FrozenConfigDict({key: config[key] for key in ("data", "augment_experts")})
    return _augment(own, images, config.seed)


def others(bed: Bed, name: str) -> Any:
    """The vectors of all tasks but one, stacked."""
    rows = np.array([i for i, other in enumerate(bed.tasks) if other != name])
    return trees.take_tree(trees.task_vectors(bed.base, bed.experts), rows)


@functools.partial(jax.jit, static_argnames="config")
def _augment(config: Any, images: Array, seed: Any) -> Array:
    pipeline = augmentation(config, "augment_experts")
    flat = augment.to_float(images.reshape(-1, *images.shape[2:]))
    return pipeline(jax.random.key(seed), flat).reshape(images.shape)


def _logits(module: Any, params: Any, head: Array, images: Array, temperature: Any) -> Array:
    found = module.apply({"params": params}, seen(images))
    return logits(found, head, temperature)
