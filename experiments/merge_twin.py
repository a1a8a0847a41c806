"""Twin-merging of trained encoders: a shared one, small vectors, and a router that images train."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.merge_images import spread_images
from rml.encoder import ImageEmbedder
from rml.errors import UserError
from rml.merging import modularise, twin_params
from rml.models import Router, learn_router, route
from rml.ops import trees

HELD_OUT = 5
"""Every fifth image of a task trains no router: the router's epoch is chosen on these."""
ROUTER_BATCH = 64
"""Features of a step of the router; there are few of them."""
TOGETHER = 16
"""Images whose parameters are in memory at a time."""


class Shares(NamedTuple):
    """Twin-merged encoders, and what a user wants to know of them.

    Attributes:
      shared: The encoder of the shared expert alone.
      twin: The encoder that puts each image's own parameters together.
      numbers: Numbers of all parts, as a share of those of one model.
      routed: Share of held-out images that the router gives most to the encoder of their task.
    """

    shared: Any
    twin: Any
    numbers: float
    routed: float


def twin(base: Any, named: dict[str, Any], options: argparse.Namespace, given: dict) -> Shares:
    """Takes encoders apart, and trains the router on images of each one's own task.

    Args:
      base: Encoder that all were fine-tuned from.
      named: Encoders by the names that messages give them.
      options: Those of the command: `task`, `read` and `examples`.
      given: Options of `rml.merging.modularise`, and `top` of the router.

    Raises:
      UserError: There is not one task for each encoder, trees differ, or images cannot be read.
    """
    if len(options.task) != len(named):
        raise UserError(
            f"--task is given {len(options.task)} times, expected {len(named)}: images of the own "
            "task of each encoder, in their order"
        )
    if options.examples < HELD_OUT:
        raise UserError(
            f"--examples={options.examples}, expected at least {HELD_OUT}: the router's epoch is "
            "chosen on the last of every five"
        )
    top = given.pop("top", None)
    for name in ("rank", "top"):
        value = top if name == "top" else given.get(name)
        if value is not None and value != int(value):
            raise UserError(f"{name} is {value}, expected a whole number")
    if "rank" in given:
        given["rank"] = int(given["rank"])
    if top is not None and not 1 <= top <= len(named):
        raise UserError(f"top is {top:g}, expected 1 to {len(named)}, the number of encoders")
    variables = {name: own.variables for name, own in named.items()}
    trees.check_trees(base.variables, variables)
    trees.check_values(base.variables, variables)
    parts = modularise(base.variables, trees.stack_trees(list(variables.values())), **given)
    shared = with_embedder(base, base.embedder.function, parts.shared)
    found = [spread_images(base, task, options.read, options.examples)[0] for task in options.task]
    features = [shared.embedder(images) for images in found]
    train, held = (
        _joined([own[_held_out(len(own)) == kept] for own in features]) for kept in (False, True)
    )
    router = Router(len(named))
    learned = learn_router(router, jax.random.key(0), *train, held, batch_size=ROUTER_BATCH)
    function = of_each(base.embedder.function, router, None if top is None else int(top))
    whole = {
        "shared": parts.shared, "exclusive": parts.exclusive, "router": learned.variables,
    }  # fmt: skip
    numbers = sum(leaf.size for leaf in jax.tree.leaves(whole)) / sum(
        leaf.size for leaf in jax.tree.leaves(base.variables)
    )
    routed = float(learned.accuracy.max())
    return Shares(shared, with_embedder(base, function, whole), numbers, routed)


def with_embedder(encoder: Any, function: Callable[..., Array], variables: Any) -> Any:
    """An encoder with another function of images."""
    own = encoder.embedder
    embedder = ImageEmbedder(function, variables, own.batch_size, own.mesh)
    return dataclasses.replace(encoder, embedder=embedder)


def of_each(
    function: Callable[..., Array], router: Router, top: int | None
) -> Callable[..., Float[Array, "b d"]]:
    """The function of images whose parameters are those that the router gives each.

    Args:
      function: `function(variables, images) -> features` of one encoder.
      router: Reads the shared expert's features.
      top: Number of experts that an image is given; all if None.
    """

    def features(variables: Any, images: Array) -> Float[Array, "b d"]:
        variables = jax.tree.map(jnp.asarray, variables)  # an export gives NumPy's
        shared, exclusive = variables["shared"], variables["exclusive"]
        logits: Any = router.apply(variables["router"], function(shared, images))

        def of_image(given: tuple[Array, Array]) -> Array:
            image, weights = given
            return function(twin_params(shared, exclusive, weights), image[None])[0]

        # A program for any number of images, as an export is, takes one after another.
        together = TOGETHER if isinstance(images.shape[0], int) else None
        return jax.lax.map(of_image, (images, route(logits, top=top)), batch_size=together)

    return features


def told(
    shares: Shares, named: dict[str, Any], options: argparse.Namespace,
    accuracy: Callable[..., float],
) -> list[str]:  # fmt: skip
    """Lines that say how right experts, shared expert and twin are on each expert's own task."""
    lines = []
    for task, (name, own) in zip(options.task, named.items(), strict=True):
        of_task = argparse.Namespace(**vars(options) | {"data": task})
        right = {name: own, "shared": shares.shared, "twin": shares.twin}
        each = ", ".join(f"{key} {accuracy(one, of_task):.1%}" for key, one in right.items())
        lines.append(f"{task}: {each} are right by nearest neighbours")
    return [
        *lines,
        f"the router knows the task of {shares.routed:.1%} of images that it was not trained on",
        f"all parts have {shares.numbers:.2f} times the numbers of one encoder",
    ]


def _held_out(count: int) -> np.ndarray:
    """Which of so many images are held out, the last of every five."""
    return np.arange(count) % HELD_OUT == HELD_OUT - 1


def _joined(features: Sequence[np.ndarray]) -> tuple[Array, Array]:
    """Features of all tasks, and the task of each."""
    tasks = np.repeat(np.arange(len(features)), [len(own) for own in features])
    return jnp.asarray(np.concatenate(features)), jnp.asarray(tasks)
