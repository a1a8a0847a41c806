"""What is compared in the recipe on multilevel training: sizes, groups and steps of each arm."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.timing import least_seconds
from experiments.merging.multilevel_problems import Problem, Shape, of_shape, step_flops
from rml.errors import UserError
from rml.training import initial_state
from rml.training.multilevel import Groups, Level, Phase, coalesce, groups_of, v_cycle

FULL, BOTH, QUARTER, DEPTH, WIDTH = (1, 1), (2, 2), (4, 4), (1, 2), (2, 1)


SHAPES = (FULL, BOTH, QUARTER, DEPTH, WIDTH)
REPEATS = 3
"""Timed steps of each size."""


class Arm(NamedTuple):
    """One way to train the full model.

    Attributes:
      shapes: Sizes of its levels, the full one first.
      alpha: Share of what comes of the smaller level; None takes the config's.
      other_scheme: Whether the scheme of groups that the config does not have is taken.
      begins: How the first small level begins: "trained" after steps of the full model, "fresh",
        or "noise", which is the full model untrained made small, and ends there.
      forgets: Whether untrained parameters take the place of those of the small level before it is
        made large again.
    """

    shapes: tuple[Shape, ...]
    alpha: float | None = None
    other_scheme: bool = False
    begins: str = "trained"
    forgets: bool = False


ARMS = {
    "scratch": Arm((FULL,)),
    "both": Arm((FULL, BOTH)),
    "alpha_0": Arm((FULL, BOTH), 0.0),
    "alpha_25": Arm((FULL, BOTH), 0.25),
    "alpha_100": Arm((FULL, BOTH), 1.0),
    "untrained": Arm((FULL, BOTH), forgets=True),
    "other_groups": Arm((FULL, BOTH), other_scheme=True),
    "three": Arm((FULL, BOTH, QUARTER)),
    "depth": Arm((FULL, DEPTH)),
    "width": Arm((FULL, WIDTH)),
    "growth": Arm((FULL, BOTH), begins="fresh"),
    "stacking": Arm((FULL, DEPTH), begins="fresh"),
    "noise": Arm((FULL, BOTH), begins="noise"),
}


def shares(config: Any) -> tuple[int, int]:
    """Steps before the model is made small, and steps of a small level."""
    options, total = config.cycle, config.train.steps
    return max(1, round(options.before * total)), max(1, round(options.small * total))


def costs(config: Any, problem: Problem) -> dict[Shape, float]:
    """FLOPs of a step at each size that an arm has."""
    return {shape: step_flops(problem.task(of_shape(config, shape))) for shape in SHAPES}


def seconds(config: Any, problem: Problem) -> dict[Shape, float]:
    """Seconds of a step of one run at each size, compiled before: the least of a few."""
    found = {}
    for shape in SHAPES:
        task = problem.task(of_shape(config, shape))
        state = initial_state(task, seed=config.seed)
        batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), task.batch_spec)
        step = functools.partial(jax.jit(task.step), state, batch)
        found[shape] = least_seconds(step, repeats=REPEATS)
    return found


def phases(config: Any, arm: Arm, flops: Mapping[Shape, float], rate: float) -> tuple[Phase, ...]:
    """The trainings of an arm, whose FLOPs together are those of `train.steps` full steps.

    Raises:
      UserError: The small levels leave no step of the full model.
    """
    options, total = config.cycle, config.train.steps
    before, small = shares(config)
    rates = [rate * options.small_rate**i for i in range(len(arm.shapes))]
    if arm.begins == "noise":
        return (Phase(1, "coalesce", small, rates[1]),)
    first = before if arm.begins == "trained" else 0
    last = len(arm.shapes) - 1
    if not last:
        return v_cycle([Level(0, total, rate)])
    smaller = [Level(first * (i < last), small, rates[i]) for i in range(1, last + 1)]
    spent = first * flops[FULL] + sum(
        (level.before + level.after) * flops[shape]
        for level, shape in zip(smaller, arm.shapes[1:], strict=True)
    )
    rest = int((total * flops[FULL] - spent) // flops[FULL])
    if rest < 1:
        raise UserError(
            f"cycle.small is {options.small}, expected less: levels {arm.shapes} leave {rest} steps"
        )
    return v_cycle([Level(first, rest, rate), *smaller])


def groups(config: Any, arm: Arm, full: Any) -> list[Groups]:
    """Groups from each level of an arm to the next."""
    schemes = dict(scheme=config.cycle.scheme, layer_scheme=config.cycle.layer_scheme)
    if arm.other_scheme:
        others = {"halves": "neighbours", "neighbours": "halves"}
        schemes = {key: others[value] for key, value in schemes.items()}
    params, found = full, []
    for large, small in zip(arm.shapes, arm.shapes[1:], strict=False):
        width, depth = (b // a for a, b in zip(large, small, strict=True))
        found.append(groups_of(params, width=width, depth=depth, **schemes))
        params = coalesce(params, found[-1])
    return found
