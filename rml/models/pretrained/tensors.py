"""Tensors of a checkpoint file into a module's parameters, and back."""

import functools
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

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
CONVOLUTION = -1  # an entry's `inputs` where the parameter is the kernel of a convolution
SHOWN = 4  # tensors that a message names before it counts the rest


TOKENS = jax.ShapeDtypeStruct((1, 1), jnp.int32)
"""A text, for shapes of a text model's parameters."""


class Tensor(NamedTuple):
    """One tensor of a checkpoint, not read yet.

    Attributes:
      name: Its name in the file.
      file: The file.
      shape: Its shape.
      dtype: "F32", "BF16" and so on.
      read: Reads it.
      start: Byte of the file from which its entries lie in order, or None where they do not.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    start: int | None = None

    def changed(
        self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]
    ) -> "Tensor":
        """Returns the tensor with a change made once it is read, which gives it this shape."""
        return self._replace(shape=shape, read=lambda: change(self.read()), start=None)


class Entry(NamedTuple):
    """Where a checkpoint's tensor belongs.

    Attributes:
      path: The parameter, its path joined by "/".
      name: The tensor, within its layer where it belongs to one.
      inputs: Number of input axes of the parameter: the tensor is the transposed matrix. 0 for a
        vector, None for what is stored as it is, `CONVOLUTION` for a kernel in PyTorch's order.
      part: Place on the first axis after the inputs, where the tensor is one part of the parameter.
      collection: Collection of the module's variables.
    """

    path: str
    name: str
    inputs: int | None
    part: int | None = None
    collection: str = "params"


class Layout(NamedTuple):
    """All tensors of an architecture.

    Attributes:
      outer: Those that belong to no layer.
      layer: Those of one layer.
      prefix: What precedes the name of a layer's tensor, "{}" standing for the layer.
    """

    outer: tuple[Entry, ...]
    layer: tuple[Entry, ...] = ()
    prefix: str = ""


class _Place(NamedTuple):
    """One tensor's place: a variable or a part of it."""

    name: str
    path: tuple[str, ...]
    at: tuple[Any, ...]
    inputs: int | None


def fill(
    module: Any,
    layout: Layout,
    tensors: Mapping[str, Tensor],
    file: Path,
    sample: jax.ShapeDtypeStruct = TOKENS,
) -> dict[str, Any]:
    """Fills a module's variables from a checkpoint, after checking all names, shapes and dtypes.

    Args:
      module: The module, with attributes `depth` and `scan` where the layout has layers.
      layout: Where the tensors belong.
      tensors: The checkpoint's tensors by the layout's names.
      file: Where they were read, for messages.
      sample: Shape and dtype of an input of the module.

    Returns:
      The variables, {"params": ...} and other collections, as nested dicts.

    Raises:
      UserError: Tensors are missing or are not expected, a variable has no tensor of the layout, or
        a tensor has another shape or an unknown dtype.
    """
    specs = variable_specs(module, sample)
    places = [place for place in _places(module, layout) if place.path in specs]
    expected = {place.name: _expected(specs[place.path], place) for place in places}
    missing = {name: shape for name, shape in expected.items() if name not in tensors}
    left = {t.name: t.shape for name, t in tensors.items() if name not in expected}
    unfilled = specs.keys() - {place.path for place in places}
    bare = {"/".join(path[1:]): specs[path].shape for path in unfilled}
    if missing or left or bare:
        raise UserError(
            f"the tensors of {file} do not fit a {type(module).__name__}{_depth(module)}: "
            + "; ".join(
                f"{state} {_listed(found)}"
                for state, found in (
                    ("there is no", missing),
                    ("no place for", left),
                    ("no tensor for", bare),
                )
                if found
            )
        )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise UserError(
                f"tensor {tensor.name!r} of {tensor.file} has shape {tensor.shape}, "
                f"expected {shape}"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"tensor {tensor.name!r} of {tensor.file} has dtype {tensor.dtype}, "
                f"expected one of {', '.join(FLOATS)}"
            )
    found = {path: np.empty(spec.shape, spec.dtype) for path, spec in specs.items()}
    for place in places:
        part = found[place.path][place.at]
        part[...] = _arranged(tensors[place.name].read(), place.inputs).reshape(part.shape)
    return unflatten_dict({path: jnp.asarray(value) for path, value in found.items()})


def _depth(module: Any) -> str:
    return f" of depth {module.depth}" if hasattr(module, "depth") else ""


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Names and shapes, the first few of many."""
    names = sorted(shapes)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{name!r} {shapes[name]}" for name in names[:SHOWN]) + rest


def unfill(module: Any, layout: Layout, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Makes the checkpoint's tensors from a module's parameters: the inverse of `fill`.

    Args:
      module: The module.
      layout: Where the tensors belong.
      params: The parameters.

    Returns:
      The tensors by name.

    Raises:
      UserError: The parameters are not the module's.
    """
    flat = flatten_dict({"params": nn.unbox(params)})
    specs = variable_specs(module, TOKENS)
    for path in sorted(specs.keys() ^ flat.keys()):
        state = "missing" if path in specs else "not one of the module's"
        raise UserError(f"parameter {'/'.join(path[1:])} is {state}")
    for path, spec in specs.items():
        if flat[path].shape != spec.shape:
            raise UserError(
                f"parameter {'/'.join(path[1:])} has shape {flat[path].shape}, "
                f"expected {spec.shape}"
            )
    tensors = {}
    for place in _places(module, layout):
        part = np.asarray(flat[place.path][place.at])
        assert place.inputs != CONVOLUTION  # only text models are written
        if place.inputs:
            part = part.reshape(_stored_shape(part.shape, place.inputs)[::-1]).T
        elif place.inputs == 0:
            part = part.reshape(-1)
        tensors[place.name] = np.ascontiguousarray(part)
    return tensors


def variable_specs(
    module: Any, sample: jax.ShapeDtypeStruct
) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Finds shapes and dtypes of a module's variables by path, without making them."""
    try:
        hash(module)
    except TypeError:  # an attribute is a list
        return _traced_specs(module, sample)
    return _known_specs(module, sample)


def _traced_specs(
    module: Any, sample: jax.ShapeDtypeStruct
) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    return flatten_dict(nn.unbox(jax.eval_shape(module.init, jax.random.key(0), sample)))


_known_specs = functools.lru_cache(maxsize=8)(_traced_specs)  # a module is long to trace


def _places(module: Any, layout: Layout) -> Iterator[_Place]:
    def place(entry: Entry, name: str, top: tuple[str, ...], layer: tuple[int, ...]) -> _Place:
        before = (slice(None),) * (entry.inputs or 0) if entry.part is not None else ()
        index = (*layer, *before, *(() if entry.part is None else (entry.part,)))
        path = (entry.collection, *top, *entry.path.split("/"))
        return _Place(name, path, index, entry.inputs)

    for entry in layout.outer:
        yield place(entry, entry.name, (), ())
    for number in range(module.depth if layout.layer else 0):
        top, layer = (("blocks",), (number,)) if module.scan else ((f"block{number}",), ())
        for entry in layout.layer:
            yield place(entry, layout.prefix.format(number) + entry.name, top, layer)


def _expected(spec: jax.ShapeDtypeStruct, place: _Place) -> tuple[int, ...]:
    """Shape of the tensor that has this place."""
    part = np.broadcast_to(np.empty(()), spec.shape)[place.at]  # no memory for its elements
    return _stored_shape(part.shape, place.inputs)


def _stored_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    if inputs is None:
        return shape
    if inputs == 0:
        return (math.prod(shape),)
    if inputs == CONVOLUTION:
        return (shape[3], shape[2], shape[0], shape[1])
    return (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def _arranged(value: np.ndarray, inputs: int | None) -> np.ndarray:
    """A tensor in our order of axes."""
    if inputs == CONVOLUTION:  # [out, in, h, w]; of a depthwise kernel `in` is 1
        return value.transpose(2, 3, 1, 0)
    return value.T if inputs else value
