"""Vision transformers from different seeds: their training, units and scores."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import supervised
from experiments.common.comparison import for_each
from experiments.common.images import open_images
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train
from experiments.merging.multilevel_training import on_host
from experiments.merging.ot_pairs import Pair
from rml import data, models
from rml.data import augment
from rml.evaluation import program_flops
from rml.merging import layer_activations
from rml.training import RunDirectory, Task


class Sources(NamedTuple):
    """Images that models are trained on, chosen by and reported on."""

    train: data.Source
    validation: data.Source
    test: data.Source


def opened(config: Any) -> Sources:
    """Opens the three parts of a config's images."""
    return Sources(*(open_images(config, part, labelled=True) for part in Sources._fields))


def of_size(config: Any, name: str) -> Any:
    """The config of "narrow" models or of the "wide" one."""
    if name == "narrow":
        return config
    return replaced(config, {f"model.{key}": value for key, value in config.wide.items()})


def parents(config: Any, run: RunDirectory, sources: Sources) -> dict[str, list[Any]]:
    """Parameters of two narrow models, and of a wide one; those of one size train together."""
    seeds = {"narrow": (2 * config.seed, 2 * config.seed + 1), "wide": (2 * config.seed,)}

    def measure(name: str, inner: RunDirectory) -> tuple[dict[str, float], list[Any]]:
        own = of_size(config, name)
        configs = [replaced(own, {"seed": seed}) for seed in seeds[name]]
        together = many(lambda each: task(each, sources), configs)
        state = on_one_device(train(own, inner, together, "eval/accuracy"))
        params = [on_host(unstack(state, i).params) for i in range(len(configs))]
        return {"accuracy": together.evaluate(state)["accuracy"]}, params

    return {name: found for name, (_, found) in for_each(run, seeds, measure).items()}


def task(config: Any, sources: Sources) -> Task:
    """The problem of a config's classifier."""
    return supervised.classification(
        config, models.build(**config.model), train=lambda: sources.train,
        held_out=lambda: sources.validation,
    )  # fmt: skip


def logits(config: Any, params: Any, source: data.Source) -> tuple[jax.Array, jax.Array]:
    """Logits of all images, and their labels."""
    module = models.build(**config.model)
    return supervised.logits_of(config, module, {"params": params}, source)


def flops(config: Any, params: Any) -> float:
    """Operations of matrix products that a model takes for one image."""
    module = models.build(**config.model)
    image = jnp.zeros((1, *config.data.image_shape))
    return program_flops(lambda params, x: module.apply({"params": params}, x), params, image)


def right(config: Any, params: Any, source: data.Source) -> np.ndarray:
    """Which images a model names rightly, as ones and zeros."""
    found, labels = logits(config, params, source)
    return np.asarray(jnp.argmax(found, axis=-1) == labels, float)


def ensembled(config: Any, both: Sequence[Any], source: data.Source) -> np.ndarray:
    """Which images the mean of several models' probabilities names rightly."""
    found = [logits(config, params, source) for params in both]
    mean = sum(jax.nn.softmax(own) for own, _ in found)
    return np.asarray(jnp.argmax(jnp.asarray(mean), axis=-1) == found[0][1], float)


def paired(config: Any, first: Any, anchor: Any, sources: Sources, size: str = "narrow") -> Pair:
    """A pair of models and their activations on the first training images, without labels."""
    count = min(config.alignment.examples, len(sources.train))
    images = augment.to_float(jnp.stack([sources.train[i]["image"] for i in range(count)]))
    acts = [
        jax.jit(layer_activations, static_argnums=0)(models.build(**own.model), params, images)
        for own, params in ((of_size(config, size), first), (config, anchor))
    ]
    return Pair(first, anchor, (acts[0], acts[1]))
