"""Operations of losses of a batch, counted by the compiler."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.common import figures
from experiments.common.class_parts import num_classes
from experiments.metric.methods import METHODS, TITLES, Objective, Outputs

Counts = dict[str, dict[int, float]]
"""Operations of each method's loss with its gradient, by the examples of a batch."""


def operations(config: Any) -> Counts:
    """Counts operations of every loss with its gradient by embeddings and class vectors.

    Counted are the floating-point operations of the compiled program, batches of all `growth.sizes`
    with `batch.examples` examples a class. Programs are compiled, none is run.
    """
    examples, width = config.batch.examples, config.head.features
    found: Counts = {}
    for method, objective in METHODS.items():
        options = config.methods[method]
        loss = partial(_loss, objective, options, examples)
        found[method] = {}
        for size in config.growth.sizes:
            shapes = ((size, width), (num_classes(config, "base"), width),
                      (num_classes(config, "base"),), ())  # fmt: skip
            arrays = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
            labels = jax.ShapeDtypeStruct((size,), jnp.int32)
            compiled = jax.jit(jax.grad(loss)).lower(arrays, labels).compile()
            analysis: Any = compiled.cost_analysis()
            found[method][size] = float(analysis["flops"])
    return found


def _loss(objective: Objective, options: Any, examples: int, arrays: Any, labels: Array) -> Array:
    return objective(options, Outputs(*arrays), labels, examples)


def exponents(counts: Counts) -> dict[str, float]:
    """Fits how operations grow with the batch: `exponent_<method>`, and operations at the largest.

    The exponent is the slope of a line through the logarithms.
    """
    metrics = {}
    for method, own in counts.items():
        sizes, values = np.array(list(own), float), np.array(list(own.values()))
        metrics[f"exponent_{method}"] = float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
        metrics[f"operations_{method}"] = float(values[-1])
    return metrics


def draw(path: Path, counts: Mapping[str, Mapping[int, float]]) -> None:
    """Draws operations against the examples of a batch."""
    figures.loglog(
        path,
        {TITLES[m]: (np.array(list(own)), np.array(list(own.values()))) for m, own in counts.items()
         if m not in ("learned_scale", "arcface")},
        "examples in a batch", "floating-point operations",
    )  # fmt: skip
