"""Tensors of a checkpoint file into a module's parameters, and back."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rml.errors import UserError

FLOATS = ("F64", "F32", "F16", "BF16")


class Tensor(NamedTuple):
    """One tensor of a checkpoint, not read yet.

    Attributes:
      name: Its name in the file.
      file: The file.
      shape: Its shape.
      dtype: "F32", "BF16" and so on.
      read: Reads it.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Entry(NamedTuple):
    """Where a checkpoint's tensor belongs.

    Attributes:
      path: The parameter, its path joined by "/".
      name: The tensor, within its layer where it belongs to one.
      inputs: Number of input axes of the parameter: the tensor is the transposed matrix. 0 for a
        vector, None for a table, which is stored as it is.
    """

    path: str
    name: str
    inputs: int | None


class Layout(NamedTuple):
    """All tensors of an architecture.

    Attributes:
      outer: Those that belong to no layer.
      layer: Those of one layer.
      prefix: What precedes the name of a layer's tensor, "{}" standing for the layer.
    """

    outer: tuple[Entry, ...]
    layer: tuple[Entry, ...]
    prefix: str


class _Place(NamedTuple):
    """One tensor's place: a parameter, or one layer of a stacked parameter."""

    name: str
    path: tuple[str, ...]
    layer: int | None
    inputs: int | None


def fill(module: Any, layout: Layout, tensors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """A module's parameters from a checkpoint, all names, shapes and dtypes checked before reading.

    Args:
      module: The module, with attributes `depth`, `scan` and `param_dtype`.
      layout: Where the tensors belong.
      tensors: The checkpoint's tensors by the layout's names.
      file: Where they were read, for messages.

    Returns:
      The parameters as a nested dict.

    Raises:
      UserError: A tensor is missing, is not expected, or has another shape or an unknown dtype.
    """
    specs = parameter_specs(module)
    places = list(_places(module, layout))
    for place in places:
        tensor = tensors.get(place.name)
        if tensor is None:
            raise UserError(f"there is no tensor {place.name!r} in {file}")
        shape = specs[place.path].shape
        expected = _stored_shape(shape if place.layer is None else shape[1:], place.inputs)
        if tensor.shape != expected:
            raise UserError(
                f"tensor {tensor.name!r} of {tensor.file} has shape {tensor.shape}, "
                f"expected {expected}"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"tensor {tensor.name!r} of {tensor.file} has dtype {tensor.dtype}, "
                f"expected one of {', '.join(FLOATS)}"
            )
    for name in sorted(tensors.keys() - {place.name for place in places}):
        raise UserError(
            f"tensor {tensors[name].name!r} of {tensors[name].file} does not belong to a "
            f"{type(module).__name__} of depth {module.depth}"
        )
    params = {path: np.empty(spec.shape, spec.dtype) for path, spec in specs.items()}
    for place in places:
        whole = params[place.path]
        part = whole if place.layer is None else whole[place.layer]
        value = tensors[place.name].read()
        part[...] = (value.T if place.inputs else value).reshape(part.shape)
    return unflatten_dict({path: jnp.asarray(value) for path, value in params.items()})


def unfill(module: Any, layout: Layout, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The checkpoint's tensors from a module's parameters: the inverse of `fill`.

    Args:
      module: The module.
      layout: Where the tensors belong.
      params: The parameters.

    Returns:
      The tensors by name.

    Raises:
      UserError: The parameters are not the module's.
    """
    flat = flatten_dict(nn.unbox(params))
    specs = parameter_specs(module)
    for path in sorted(specs.keys() ^ flat.keys()):
        state = "missing" if path in specs else "not one of the module's"
        raise UserError(f"parameter {'/'.join(path)} is {state}")
    for path, spec in specs.items():
        if flat[path].shape != spec.shape:
            raise UserError(
                f"parameter {'/'.join(path)} has shape {flat[path].shape}, expected {spec.shape}"
            )
    tensors = {}
    for place in _places(module, layout):
        whole = flat[place.path]
        part = np.asarray(whole if place.layer is None else whole[place.layer])
        if place.inputs:
            part = part.reshape(_stored_shape(part.shape, place.inputs)[::-1]).T
        elif place.inputs == 0:
            part = part.reshape(-1)
        tensors[place.name] = np.ascontiguousarray(part)
    return tensors


def parameter_specs(module: Any) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a text model's parameters by path, without making them."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return flatten_dict(nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]))


def _places(module: Any, layout: Layout) -> Iterator[_Place]:
    for path, name, inputs in layout.outer:
        yield _Place(name, tuple(path.split("/")), None, inputs)
    for layer in range(module.depth):
        top, index = ("blocks", layer) if module.scan else (f"block{layer}", None)
        for path, name, inputs in layout.layer:
            full = layout.prefix.format(layer) + name
            yield _Place(full, (top, *path.split("/")), index, inputs)


def _stored_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    if inputs is None:
        return shape
    if inputs == 0:
        return (math.prod(shape),)
    return (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
