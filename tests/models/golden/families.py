"""Cases of `families/`: what a library computed with weights that both sides draw alike."""

import json
import math
import zlib
from pathlib import Path

import numpy as np

CASES = Path(__file__).parent / "families"


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's values by its name: scales about 1, biases and statistics away from 0.

    The old generator of NumPy is used since its numbers never change.
    """
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        values = 0.5 + np.abs(values)
    elif len(shape) == 1 and name.endswith("weight"):  # of a norm
        values = 1 + 0.3 * values
    elif len(shape) < 2:
        values = 0.3 * values
    else:
        values = 1.5 * values / math.sqrt(math.prod(shape[1:]))
    return np.asarray(values, np.float32)


def images(side: int) -> np.ndarray:
    """The images [b, h, w, c] that all encoders were given, already normalised."""
    values = np.random.RandomState(0).standard_normal((2, side, side, 3))
    return values.astype(np.float32)


def weights(name: str) -> dict[str, np.ndarray]:
    """The tensors of a case."""
    shapes = json.loads((CASES / f"{name}.json").read_text())["tensors"]
    return {key: draw(key, tuple(shape)) for key, shape in shapes.items()}


def config(name: str) -> dict | None:
    """The config of a case, as its library wrote it."""
    return json.loads((CASES / f"{name}.json").read_text())["config"]


def numbers(name: str) -> dict[str, np.ndarray]:
    """Inputs and outputs of a case."""
    return dict(np.load(CASES / f"{name}.npz"))
