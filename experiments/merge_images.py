"""Encoders merged by what images say of them: aligned units, Fishers, inner products of inputs."""

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rml.errors import UserError
from rml.merging import (
    LayerActivations,
    align,
    diagonal_fisher,
    input_grams,
    layer_activations,
    merge,
)
from rml.models import Bert, ViT
from rml.ops import normalize, trees

HEAD_SCALE = 20.0
"""Factor of cosines to class means in logits; it is the bed's."""
CLASSES = 10
"""Likeliest classes that Fisher information sums over."""
_layer_activations = jax.jit(layer_activations, static_argnums=0)
"""One program for all encoders of a module."""


def fused(named: dict[str, Any], images: np.ndarray, options: dict[str, Any]) -> Any:
    """The encoder whose units are those of the last one and of the others, aligned with it.

    Args:
      named: Encoders by the names that messages give them; the last is the anchor.
      images: Images that units are compared by.
      options: Options of `rml.merging.align`.

    Raises:
      UserError: An encoder has no transformer that can be aligned, or values are not finite.
    """
    *others, last = named
    trees.check_finite({name: own.variables for name, own in named.items()})
    acts = {name: activations(name, own, images) for name, own in named.items()}
    anchor = named[last].variables
    aligned = jax.jit(lambda *given: align(*given, **options).params)
    moved = [
        aligned(named[name].variables["params"], anchor["params"], acts[name], acts[last])
        for name in others
    ]
    params = merge("average", anchor["params"], [*moved, anchor["params"]])
    embedder = dataclasses.replace(named[last].embedder, variables=anchor | {"params": params})
    return dataclasses.replace(named[last], embedder=embedder)


def activations(name: str, encoder: Any, images: np.ndarray) -> LayerActivations:
    """What units of the one transformer in an encoder give on images."""
    found = first_call(encoder, images, (ViT, Bert))
    if found is None:
        raise UserError(f"{name} has no ViT and no Bert, expected one whose units can be aligned")
    module, path, _, inputs = found
    params = functools.reduce(lambda tree, key: tree[key], path, encoder.variables["params"])
    return _layer_activations(module, params, inputs)


def grams(name: str, encoder: Any, images: np.ndarray) -> dict[str, Array]:
    """Inner products of what linear layers of an encoder read, by dotted names of its variables."""
    found = first_call(encoder, images, (nn.Module,))
    if found is None:
        raise UserError(f"{name} has no module, expected one whose layers' inputs can be read")
    module, path, method, inputs = found
    own = {
        kind: functools.reduce(lambda tree, key: tree.get(key, {}), path, tree)
        for kind, tree in encoder.variables.items()
    }
    each = jax.jit(functools.partial(input_grams, module, method=method))(own, inputs[None])
    return {".".join(("params", *path, layer)): gram for layer, gram in each.items()}


def first_call(
    encoder: Any, images: np.ndarray, kinds: tuple[type[nn.Module], ...]
) -> tuple[nn.Module, tuple[str, ...], str, Array] | None:
    """The first module of some kinds that an encoder calls: it, its path, the method, the input.

    It is None where there is none.
    """
    found: list[tuple[nn.Module, tuple[str, ...], str]] = []

    @jax.jit
    def read(variables: Any, images: Array) -> list[Array]:
        inputs: list[Array] = []

        def watch(call: Any, args: Any, options: Any, context: Any) -> Any:
            module, method = context.module, context.method_name
            if method != "setup" and isinstance(module, kinds) and not found:
                found.append((module.clone(), module.path, method))
                inputs.append(args[0])
            return call(*args, **options)

        with nn.intercept_methods(watch):
            encoder.function(variables, images)
        return inputs

    inputs = read(encoder.variables, jnp.asarray(images))
    return (*found[0], *inputs) if found else None


def fisher(encoder: Any, images: np.ndarray, labels: Int[np.ndarray, " n"]) -> Any:
    """The diagonal Fisher of an encoder whose head is the class means of its own features.

    Args:
      encoder: The encoder.
      images: Images.
      labels: Their classes, which make the head alone.

    Returns:
      A tree like the encoder's variables, zeros where they are no parameters; `with_averages` has
      these averaged.
    """
    variables, given = encoder.variables, jnp.asarray(images)
    features = normalize(jax.jit(encoder.function)(variables, given))
    members = jax.nn.one_hot(np.unique(labels, return_inverse=True)[1], len(np.unique(labels)))
    means = normalize(members.T @ features)

    def log_probs(params: Any, image: Array) -> Float[Array, " c"]:
        own = encoder.function(variables | {"params": params}, image[None])[0]
        return jax.nn.log_softmax(HEAD_SCALE * means @ normalize(own))

    found = jax.jit(
        lambda params, given: diagonal_fisher(log_probs, params, given, classes=CLASSES)
    )
    return jax.tree.map(jnp.zeros_like, variables) | {"params": found(variables["params"], given)}


def with_averages(merged: Any, averaged: Any, exclude: str | None) -> Any:
    """An encoder whose parameters are merged and whose other variables, statistics, are averaged.

    Args:
      merged: The merged encoder; of variables without Fisher information it has the first one's.
      averaged: The average of the same encoders.
      exclude: Regular expression of names of variables that stay as `merged` has them.
    """

    def of_leaf(path: Any, own: Array, mean: Array) -> Array:
        name = trees.leaf_name(path)
        left = exclude is not None and re.search(exclude, name)
        return own if left or name.startswith("params.") else mean

    variables = jax.tree_util.tree_map_with_path(of_leaf, merged.variables, averaged.variables)
    embedder = dataclasses.replace(merged.embedder, variables=variables)
    return dataclasses.replace(merged, embedder=embedder)
