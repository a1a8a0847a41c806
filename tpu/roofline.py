"""How long a compiled step takes, from its instructions and the chip's datasheet."""

import math
from dataclasses import dataclass

import numpy as np

from tpu import work
from tpu.chips import Chip
from tpu.collectives import KINDS, Collective, collectives, seconds
from tpu.hlo import Program


@dataclass(frozen=True)
class Roofline:
    """What one device does in a step, loops by their trip counts.

    Attributes:
      flops: Operations of matrix products and convolutions.
      matrix_seconds: The time that these take at the chip's peak, products of float32 by passes.
      bytes: Read from and written to main memory.
      memory_seconds: The time that these take at the chip's bandwidth.
      local_seconds: Sum over instructions of the larger of the two, as they run one by one.
      links: Seconds on each network.
      exchanges: All exchanges between chips.
      times: Network and seconds of one run of each.
    """

    flops: float
    matrix_seconds: float
    bytes: float
    memory_seconds: float
    local_seconds: float
    links: dict[str, float]
    exchanges: list[Collective]
    times: list[tuple[str, float]]

    @property
    def whole(self) -> float:
        """The roofline of the whole step: the longest of compute, memory and each network."""
        return max(self.matrix_seconds, self.memory_seconds, *self.links.values())

    @property
    def overlapped(self) -> float:
        """The step where all exchanges hide behind work, and all networks work at once."""
        return max(self.local_seconds, *self.links.values())

    @property
    def serial(self) -> float:
        """The step where no exchange hides behind anything."""
        return self.local_seconds + sum(self.links.values())

    @property
    def bound(self) -> str:
        """What takes longest: "compute", "memory", "ici" or "dcn"; "unknown" where a time is."""
        if not math.isfinite(self.whole):
            return "unknown"
        parts = dict(compute=self.matrix_seconds, memory=self.memory_seconds, **self.links)
        return max(parts, key=lambda name: parts[name])


def roofline(
    program: Program,
    chip: Chip,
    *,
    coordinates: np.ndarray,
    slices: np.ndarray,
    devices_per_chip: int = 1,
) -> Roofline:
    """Adds up what the instructions of a program cost on one device.

    Work of the vector units, latency and the start of instructions are left out.

    Args:
      program: Program that `tpu.hlo.parse` read.
      chip: Where it would run.
      coordinates: [devices, dimensions] place on the torus of each place of the mesh.
      slices: [devices] slice of each place of the mesh.
      devices_per_chip: Devices that share a chip's figures.

    Returns:
      The sums.
    """
    peak, bandwidth = chip.flops / devices_per_chip, chip.hbm_bandwidth / devices_per_chip
    inside: dict[str, tuple[float, float]] = {}

    def matrix(name: str) -> tuple[float, float]:
        """FLOPs of a computation and of what it fuses, and their bfloat16 passes."""
        if name not in inside:
            computation = program.computations[name]
            total = passed = 0.0
            for instruction in computation.instructions:
                own = work.flops(computation, instruction)
                total += own
                passed += own * work.passes(computation, instruction, chip) if own else 0.0
                for called in instruction.called() if instruction.opcode == "fusion" else ():
                    total, passed = (x + y for x, y in zip((total, passed), matrix(called)))  # noqa: B905
            inside[name] = total, passed
        return inside[name]

    flops = passed_seconds = moved = local = 0.0
    for computation, instruction, count in program.outer():
        own = work.flops(computation, instruction)
        passed = own * work.passes(computation, instruction, chip) if own else 0.0
        if instruction.opcode == "fusion":
            own, passed = matrix(instruction.called()[0])
        data = work.traffic(program, computation, instruction)
        flops += count * own
        passed_seconds += count * passed / peak
        moved += count * data
        if instruction.opcode.removesuffix("-start") not in KINDS:
            local += count * max(passed / peak, data / bandwidth)
    exchanges = collectives(program)
    times = [seconds(one, chip, coordinates, slices) for one in exchanges]
    links = {"ici": 0.0, "dcn": 0.0}
    for one, (network, time) in zip(exchanges, times, strict=True):
        links[network] += one.count * time
    return Roofline(
        flops=flops,
        matrix_seconds=passed_seconds,
        bytes=moved,
        memory_seconds=moved / bandwidth,
        local_seconds=local,
        links=links,
        exchanges=exchanges,
        times=times,
    )
