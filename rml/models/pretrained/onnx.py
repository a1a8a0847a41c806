"""Weights of an ONNX file, read as bytes: the graph is not run."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rml.errors import UserError

# Numbers of fields in onnx.proto: of a model, its graph, a node, and a tensor.
GRAPH = 7
NODE, INITIALISER = 1, 5
NODE_INPUT, NODE_NAME = 1, 3
DIMENSIONS, TYPE, TENSOR_NAME, RAW = 1, 2, 8, 9
FLOAT = 1
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # how a field is coded


def read_onnx(content: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the float32 tensors that a model's graph carries.

    Args:
      content: The file.
      name: What it is called in messages.

    Returns:
      The tensors by name; and by tensor the name of the first node that takes it, since an exporter
      gives some tensors numbers for names.

    Raises:
      UserError: It cannot be read.
    """
    tensors: dict[str, np.ndarray] = {}
    nodes: dict[str, str] = {}
    try:
        for field, graph in _fields(memoryview(content)):
            if field != GRAPH:
                continue
            for part, value in _fields(graph):
                if part == INITIALISER:
                    tensors |= _tensor(value)
                elif part == NODE:
                    parts = list(_fields(value))
                    node = next((bytes(v).decode() for f, v in parts if f == NODE_NAME), "")
                    for taken in (bytes(v).decode() for f, v in parts if f == NODE_INPUT):
                        nodes.setdefault(taken, node)
    except (IndexError, ValueError, TypeError) as error:
        raise UserError(f"{name} cannot be read as an ONNX file: {error}") from error
    if not tensors:
        raise UserError(f"{name} is no ONNX file that carries tensors")
    return tensors, nodes


def _tensor(message: memoryview) -> dict[str, np.ndarray]:
    """A tensor by its name; none where it is not of float32."""
    shape: list[int] = []
    found: dict[int, Any] = {}
    for field, value in _fields(message):
        if field == DIMENSIONS:
            shape += [value] if isinstance(value, int) else list(_numbers(value))
        else:
            found[field] = value
    if found.get(TYPE) != FLOAT or RAW not in found:
        return {}
    if TENSOR_NAME not in found:
        raise ValueError("a tensor has no name")
    array = np.frombuffer(found[RAW], np.float32).reshape(shape)
    return {bytes(found[TENSOR_NAME]).decode(): array}


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        coding = tag & 7
        if coding == VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if coding == BYTES:
            length, at = _varint(message, at)
        elif coding in (EIGHT, FOUR):
            length = 8 if coding == EIGHT else 4
        else:
            raise ValueError(f"a field is coded as {coding}")
        if at + length > len(message):
            raise ValueError(f"it ends {at + length - len(message)} bytes early")
        yield tag >> 3, message[at : at + length]
        at += length


def _numbers(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the last byte first; and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
