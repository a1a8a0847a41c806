"""What the recipe on Terminator counts and measures beside accuracies."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention.terminator_figures import of_branches, of_kernels
from experiments.attention.terminator_sides import Trained, build_model, encoder_of, kernels
from experiments.common.images import open_images
from rml import models
from rml.data import augment
from rml.evaluation.costs import program_flops
from rml.models.terminator import Terminator
from rml.training import RunDirectory

SLOW = ("slow", "channels", "places", "local_kernel")
"""How the names of slow nets begin."""


def counted(config: Any) -> dict[str, Any]:
    """Parameters and operations of an image by model, and the share that slow nets hold."""
    metrics: dict[str, Any] = {}
    shape = jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32)
    for name in config.models:
        net = build_model(config, name)
        variables = shapes_of(net, shape)
        metrics[f"parameters_{name}"] = sum(x.size for x in jax.tree.leaves(variables["params"]))
        apply = lambda v, x, net=net: net.apply(v, x, train=False)  # noqa: E731
        metrics[f"flops_{name}"] = program_flops(apply, variables, shape)
        if name == "terminator":
            metrics["slow_share_here"] = slow_share(variables["params"])[0]
    for kind in ("parameters", "flops"):
        ratio = metrics[f"{kind}_terminator"] / metrics[f"{kind}_resnet"]
        metrics[f"{kind}_over_resnet"] = ratio
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = shapes_of(Terminator(), images)["params"]
    metrics["slow_share"], metrics["free_share"] = slow_share(params)
    metrics["slow_share_global"] = slow_share(params, SLOW[:-1])[0]
    return metrics


def slow_share(params: Any, names_begin: tuple[str, ...] = SLOW) -> tuple[float, float]:
    """The share of a network's parameters in slow nets.

    Args:
      params: Its parameters, or their shapes.
      names_begin: How the names of the slow nets begin that are counted.

    Returns:
      It, and what it would be if their kernels were numbers of their own.
    """
    slow = fast = free = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [key.key for key in path]
        if not any(name.startswith(names_begin) for name in names):
            fast += leaf.size
            continue
        slow += leaf.size
        if names[-2:] == ["out", "bias"]:
            features = leaf.size
        elif names[-1] == "position":  # after the output layer, in the order of names
            free += leaf.size * features
    return slow / (slow + fast), free / (free + fast)


def measured(
    config: Any, run: RunDirectory, found: Mapping[tuple[str, str], Trained],
    optimizers: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Means of features before activations; draws kernels at the start and trained, branches."""
    source = open_images(config, "train", labelled=True)
    first = range(min(len(source), config.train.batch_size))
    images = augment.to_float(jnp.asarray(np.stack([source[i]["image"] for i in first])))
    one = {side: found[side, optimizers[side]].variables for side in ("terminator", "resnet")}
    left = before_activation(config, one["terminator"], images, "terminator")
    other = before_activation(config, one["resnet"], images, "resnet")
    # Kernels along a sequence of pixels are shown as images: a place is a pixel.
    places = tuple(config.data.image_shape[:2])
    grids = {
        name: [grid.reshape(*places, -1) for grid in own]
        for name, own in (("start", first_kernels(config)), ("trained", kernels(left)))
    }
    of_kernels(run, grids)
    blocks = encoder_of(left).values()
    drawn = [[x[0].reshape(*places, -1) for x in block["branches"][0]] for block in blocks]
    of_branches(run, images[0].mean(axis=-1), drawn)
    return {
        "feature_mean": _largest_mean([block["standardized"][0] for block in blocks]),
        "feature_mean_resnet": _largest_mean(jax.tree.leaves(other)),
        **{f"kernel_neighbours_{name}": neighbours(own) for name, own in grids.items()},
    }


def first_kernels(config: Any) -> list[jax.Array]:
    """Global kernels as they are drawn, by the seed of the run but by another key."""
    net, images = build_model(config, "terminator"), jnp.zeros((1, *config.data.image_shape))

    def draw(key: Any) -> list[jax.Array]:
        variables = nn.meta.unbox(net.init(key, images, train=False))
        left = net.apply(variables, images, train=False, mutable=["intermediates"])[1]
        return kernels(left["intermediates"])

    return jax.jit(draw)(jax.random.key(config.seed))


def neighbours(grids: list[jax.Array]) -> float:
    """The mean correlation, over blocks, of kernels with themselves one column further."""
    found = []
    for grid in grids:
        pair = np.stack([grid[:, :-1], grid[:, 1:]]).astype(np.float64)
        pair -= pair.mean(axis=(1, 2), keepdims=True)
        both = (pair[0] * pair[1]).sum(axis=(0, 1))
        found.append((both / np.sqrt((pair**2).sum(axis=(1, 2)).prod(axis=0))).mean())
    return float(np.mean(found))


def _largest_mean(features: list[jax.Array]) -> float:
    """The largest mean of a channel, in size, of features [b, h, w, c] one after another."""
    wide = [np.asarray(x, np.float64) for x in features]
    return float(max(np.abs(x.mean(axis=tuple(range(x.ndim - 1)))).max() for x in wide))


def shapes_of(net: nn.Module, images: Any) -> Any:
    """Shapes of a network's variables."""
    init = lambda key, x: nn.meta.unbox(net.init(key, x, train=False))  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0), images)


def before_activation(config: Any, variables: Any, images: Any, model: str) -> dict[str, Any]:
    """What a classifier leaves of images while training: features, kernels, branches."""
    net = build_model(config, model)

    def apply(variables: Any, images: Any) -> Any:
        norms = lambda module, _: isinstance(module, models.Norm)  # noqa: E731
        kept = {} if model == "terminator" else {"capture_intermediates": norms}
        mutable = ["intermediates", "batch_stats"]
        rngs = {"dropout": jax.random.key(config.seed)}
        return net.apply(variables, images, train=True, mutable=mutable, rngs=rngs, **kept)[1]

    return jax.jit(apply)(variables, jnp.asarray(images))["intermediates"]
