"""Twin-merging of trained encoders: a shared one, small vectors, and a router that data trains."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import merge_judging
from experiments.merge_judging import held_out, spread, tasks_of
from rml.encoder import ImageEmbedder
from rml.errors import UserError
from rml.merging import average, modularise, task_arithmetic, twin_apply, twin_params
from rml.models import Router, learn_router, route
from rml.ops import trees
from rml.retrieval import TextEmbedder

HELD_OUT = 5
"""Every fifth input of a task trains no router: the router's epoch is chosen on these."""
ROUTER_BATCH = 64
"""Features of a step of the router; there are few of them."""
SCALE = 0.3
"""Scale of task arithmetic where none is given, the paper's for four tasks; 0.29 for eight."""
TOGETHER = 16
"""Images whose parameters are in memory at a time."""


class Shares(NamedTuple):
    """Twin-merged encoders, and what a user wants to know of them.

    Attributes:
      shared: The encoder of the shared expert alone.
      twin: The encoder that puts each input's own parameters together.
      numbers: Numbers of all parts, as a share of those of one model.
      routed: Share of held-out inputs, on which its epoch was chosen, that the router gives most to
        the encoder of their task.
    """

    shared: Any
    twin: Any
    numbers: float
    routed: float


@dataclasses.dataclass(frozen=True)
class TwinTexts(TextEmbedder):
    """An encoder of texts each of which has parameters of its own.

    Attributes:
      of_each: The pure function `(variables, tokens, mask) -> features`.
    """

    of_each: Callable[..., Any] | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """The pure function, which stands in the place of the module's."""
        assert self.of_each is not None
        return self.of_each


def twin(base: Any, named: dict[str, Any], options: argparse.Namespace, given: dict) -> Shares:
    """Takes encoders apart, and trains the router on data of each one's own task.

    Args:
      base: Encoder that all were fine-tuned from.
      named: Encoders by the names that messages give them.
      options: Those of the command: `task`, `read` and `examples`.
      given: Options of `rml.merging.modularise`, and `top` of the router.

    Raises:
      UserError: There is not one task for each encoder, trees differ, or data cannot be read.
    """
    tasks = tasks_of(options, len(named), HELD_OUT)
    for name in ("rank", "top"):
        if name in given and given[name] != int(given[name]):
            raise UserError(f"{name} is {given[name]}, expected a whole number")
    whole_numbers = {name: int(given[name]) for name in ("rank", "top") if name in given}
    top = whole_numbers.pop("top", None)
    if top is not None and not 1 <= top <= len(named):
        raise UserError(f"top is {top}, expected 1 to {len(named)}, the number of encoders")
    ways = {name: own for name, own in given.items() if name != "top"} | whole_numbers
    variables = {name: own.variables for name, own in named.items()}
    trees.check_trees(base.variables, variables)
    trees.check_values(base.variables, variables)
    experts = trees.stack_trees(list(variables.values()))
    start = task_arithmetic(base.variables, experts, scale=ways.pop("scale", SCALE))
    # Statistics of normalisation are averaged: a variance beyond them may be below zero.
    mean = average(base.variables, experts)
    start = {name: (start if name == "params" else mean)[name] for name in start}
    parts = modularise(base.variables, experts, shared=start, **ways)
    embedder = base.embedder
    shared = dataclasses.replace(
        base, embedder=dataclasses.replace(embedder, variables=parts.shared)
    )
    features = [shared.embedder(spread(base, own)[0]) for own in tasks]
    train, held = (
        _joined([own[held_out(len(own), HELD_OUT) == kept] for own in features])
        for kept in (False, True)
    )
    router = Router(len(named))
    learned = learn_router(router, jax.random.key(0), *train, held, batch_size=ROUTER_BATCH)
    whole = {
        "shared": parts.shared, "exclusive": parts.exclusive, "router": learned.variables,
    }  # fmt: skip
    numbers = sum(leaf.size for leaf in jax.tree.leaves(whole)) / sum(
        leaf.size for leaf in jax.tree.leaves(base.variables)
    )
    if base.kind == "texts":
        function = of_each_text(embedder.module, router, top)
        own = {field.name: getattr(embedder, field.name) for field in dataclasses.fields(embedder)}
        found: Any = TwinTexts(**own | {"variables": whole, "of_each": function})
    else:
        function = of_each(embedder.function, router, top)
        found = ImageEmbedder(function, whole, embedder.batch_size, embedder.mesh)
    routed = float(learned.accuracy.max())
    return Shares(shared, dataclasses.replace(base, embedder=found), numbers, routed)


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


def of_each_text(
    module: Any, router: Router, top: int | None
) -> Callable[..., Float[Array, "b d"]]:
    """The same of texts, whose tables and kernels are made for no text: see `twin_apply`."""

    def features(variables: Any, tokens: Array, mask: Array) -> Float[Array, "b d"]:
        variables = jax.tree.map(jnp.asarray, variables)
        shared, exclusive = (variables[name]["params"] for name in ("shared", "exclusive"))
        logits: Any = router.apply(
            variables["router"], module.apply({"params": shared}, tokens, mask)
        )
        found: Float[Array, "b d"] = twin_apply(
            module, shared, exclusive, route(logits, top=top), tokens, mask
        )
        return found

    return features


def told(shares: Shares, named: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Lines that say how right experts, shared expert and twin are, and what all parts take."""
    return [
        *merge_judging.told({"shared": shares.shared, "twin": shares.twin}, named, options),
        f"the router knows the task of {shares.routed:.1%} of the inputs that chose its epoch",
        f"all parts have {shares.numbers:.2f} times the numbers of one encoder",
    ]


def _joined(features: Sequence[np.ndarray]) -> tuple[Array, Array]:
    """Features of all tasks, and the task of each."""
    tasks = np.repeat(np.arange(len(features)), [len(own) for own in features])
    return jnp.asarray(np.concatenate(features)), jnp.asarray(tasks)
