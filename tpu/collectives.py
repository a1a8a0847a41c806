"""Which data a compiled program sends between chips, and how long the links take for it."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpu.chips import Chip
from tpu.hlo import Instruction, Program

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
SHARED = ("all-reduce", "reduce-scatter", "collective-broadcast")
"""Kinds of which a slice sends one array to others, each chip a part; in others each its own."""


@dataclass(frozen=True)
class Collective:
    """One exchange between chips.

    Attributes:
      kind: One of `KINDS`.
      bytes: Bytes that a chip brings to it.
      groups: Chips that exchange, one group a row, by their place in the mesh; None for all.
      count: How often it runs.
      name: Name of the instruction.
      shape: What a chip brings.
    """

    kind: str
    bytes: int
    groups: np.ndarray | None
    count: float
    name: str
    shape: str

    def sent(self, size: int) -> float:
        """Bytes that a chip of a group of this size sends, by a ring algorithm."""
        others = {
            "all-reduce": 2 * (size - 1) / size,
            "all-gather": size - 1,
            "reduce-scatter": (size - 1) / size,
            "all-to-all": (size - 1) / size,
            "ragged-all-to-all": (size - 1) / size,
        }
        return self.bytes * others.get(self.kind, 1.0)


def collectives(program: Program) -> list[Collective]:
    """Every exchange between chips of a compiled program."""
    found = []
    for computation, instruction, count in program.executed():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        brought = [s for name in instruction.operands for s in computation.by_name[name].shapes]
        found.append(
            Collective(
                kind=kind,
                bytes=sum(shape.bytes for shape in brought),
                groups=_groups(instruction),
                count=count,
                name=instruction.name,
                shape=", ".join(map(str, brought)),
            )
        )
    return found


def seconds(
    collective: Collective, chip: Chip, coordinates: np.ndarray, slices: np.ndarray
) -> tuple[str, float]:
    """The slowest network that an exchange uses, and how long one run of it takes there.

    A ring over the links of the torus's dimensions in which the group extends; contention, latency
    and missing wrap-around links are left out. Between slices each chip carries its part of what
    its slice sends once (see `SHARED`), else all that it brings itself.

    Args:
      collective: What is sent.
      chip: Whose links.
      coordinates: [chips, dimensions] place on the torus of each place of the mesh.
      slices: [chips] slice of each place of the mesh.

    Returns:
      "ici" or "dcn", and seconds; infinite where the network's bandwidth is not published.
    """
    groups = np.arange(len(slices))[None] if collective.groups is None else collective.groups
    size = groups.shape[1]
    if size < 2:
        return "ici", 0.0
    per_group = [len(set(slices[group])) for group in groups]
    if max(per_group) > 1:
        bandwidth = chip.dcn or 0.0
        members = size // max(per_group) if collective.kind in SHARED else 1
        sent = collective.sent(max(per_group)) / members
        return "dcn", sent / bandwidth if bandwidth else float("inf")
    if collective.kind == "collective-permute":
        return "ici", collective.bytes / (chip.ici / chip.ports)
    extent = max(1, int((np.ptp(coordinates[groups[0]], axis=0) > 0).sum()))
    return "ici", collective.sent(size) / (chip.ici * extent / coordinates.shape[1])


def summary(found: Sequence[Collective], times: Sequence[tuple[str, float]]) -> list[dict]:
    """Exchanges added up by kind and network.

    Args:
      found: Exchanges.
      times: Network and seconds of one run of each.

    Returns:
      Rows of kind, network, runs, bytes that a chip brings, seconds; longest first.
    """
    rows: dict[tuple[str, str], dict] = defaultdict(lambda: dict(runs=0.0, bytes=0.0, seconds=0.0))
    for collective, (network, time) in zip(found, times, strict=True):
        row = rows[collective.kind, network]
        row["runs"] += collective.count
        row["bytes"] += collective.count * collective.bytes
        row["seconds"] += collective.count * time
    made = [dict(kind=kind, network=network, **row) for (kind, network), row in rows.items()]
    return sorted(made, key=lambda row: -row["seconds"])


def _groups(instruction: Instruction) -> np.ndarray | None:
    """The groups of an instruction in any of the forms in which XLA prints them."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
        return _explicit(pairs[1])
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return _explicit(found[1])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(found[2]).reshape(_ints(found[1]))
    axes = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}"
    found = re.search(axes, text)
    if found and ":" not in found[3]:  # parts of an axis are not told apart
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        named = re.findall(r"'(\w+)'", found[3])
        shape = [int(size) for size in sizes.values()]
        whole = _iota(found[2]) if found[2] else np.arange(np.prod(shape, dtype=int))
        order = [i for i, axis in enumerate(sizes) if axis not in named]
        order += [list(sizes).index(axis) for axis in named]
        members = int(np.prod([int(sizes[axis]) for axis in named], dtype=int))
        return whole.reshape(shape).transpose(order).reshape(-1, members)
    return None


def _explicit(text: str) -> np.ndarray:
    return np.array([_ints(group) for group in re.findall(r"\{([^}]*)\}", text)])


def _iota(text: str) -> np.ndarray:
    """The numbers that "[4,2]T(1,0)" stands for, in order."""
    shape, _, order = text.partition("]")
    numbers = np.arange(np.prod(_ints(shape), dtype=int)).reshape(_ints(shape))
    return numbers.transpose(_ints(order) or None).reshape(-1)


def _ints(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
