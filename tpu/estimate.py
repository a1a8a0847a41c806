"""What one function would take on one chip that is not there: compiled for it, not run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rml.training import make_mesh
from rml.training.mesh import use_mesh
from tpu import hlo
from tpu.chips import CHIPS
from tpu.compile import topology_devices
from tpu.report import kernels
from tpu.roofline import roofline


@dataclass(frozen=True)
class Estimate:
    """A function as compiled for a chip.

    Attributes:
      seconds: Sum over instructions of the larger of FLOPs at the peak of their type and bytes at
        the memory's bandwidth. Latency, vector units and what caches hold are left out.
      products: Seconds of its products and convolutions alone.
      temporaries: Bytes of memory beside arguments and results.
      kernels: How often it runs each kernel of a library.
    """

    seconds: float
    products: float
    temporaries: int
    kernels: dict[str, float]


def estimate(function: Callable[..., Any], args: tuple[Any, ...], chip: str) -> Estimate:
    """Compiles a function for one chip.

    Args:
      function: Traceable.
      args: Arrays, or `jax.ShapeDtypeStruct`.
      chip: Key of `tpu.chips.CHIPS`, of a GPU.

    Returns:
      What is known of it.

    Raises:
      UserError: There is no compiler for it.
    """
    mesh = make_mesh(devices=topology_devices(f"{chip}:1"))
    whole = NamedSharding(mesh, PartitionSpec())
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), args)
    compiled = _compile(function, specs, mesh)
    program = hlo.parse(compiled.as_text() or "")
    line = roofline(
        program, CHIPS[chip], coordinates=np.zeros((1, 1), int), slices=np.zeros(1, int)
    )
    memory: Any = compiled.memory_analysis()
    return Estimate(
        seconds=line.serial,
        products=line.matrix_seconds,
        temporaries=memory.temp_size_in_bytes,
        kernels=kernels(program),
    )


def _compile(function: Callable[..., Any], specs: Any, mesh: Mesh) -> Any:
    with use_mesh(mesh):
        return jax.jit(function).lower(*specs).compile()
