"""Reads a compiled program: its computations, how often each runs, its arrays.

XLA's own cost analysis counts the body of a loop once. Here every instruction has a count: the
product of the trip counts of the loops around it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tpu.shapes import Shape, shapes

_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: Its name.
      opcode: Such as "dot".
      shapes: The arrays of its result.
      operands: Names of its operands.
      text: Literal text between the operands' parentheses.
      attributes: Text after the operands.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    attributes: str

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(shape.bytes for shape in self.shapes)

    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        names = _CALLS.findall(self.attributes)
        for group in _BRANCHES.findall(self.attributes):
            names += _NAME.findall(group)
        return names

    def attribute(self, name: str) -> str | None:
        """Value of an attribute that is one word."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


@dataclass
class Computation:
    """A named list of instructions, in the order in which they are scheduled."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    root: str = ""

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}


@dataclass
class Program:
    """A compiled program.

    Attributes:
      computations: Computations by their names.
      entry: Name of the one that runs first.
    """

    computations: dict[str, Computation]
    entry: str

    @cached_property
    def counts(self) -> dict[str, float]:
        """How often each computation runs; of a conditional's branches the largest does."""
        counts: dict[str, float] = defaultdict(float)

        def visit(name: str, times: float) -> None:
            counts[name] += times
            for called, trips in self._runs(name):
                visit(called, times * trips)

        visit(self.entry, 1)
        return dict(counts)

    def _runs(self, name: str) -> Iterator[tuple[str, int]]:
        """What a computation runs, and how often."""
        for instruction in self.computations[name].instructions:
            called = instruction.called()
            if instruction.opcode == "conditional":
                called = [max(called, key=self._size)]
            for inner in called:
                yield inner, self.trip_count(name, instruction) or 1

    def _size(self, name: str) -> int:
        """Bytes that a computation's instructions make."""
        own = sum(instruction.bytes for instruction in self.computations[name].instructions)
        return own + sum(self._size(inner) * trips for inner, trips in self._runs(name))

    @cached_property
    def inner(self) -> set[str]:
        """Computations inside fusions, reductions and the like, without arrays of their own."""
        names: set[str] = set()

        def mark(name: str) -> None:
            names.add(name)
            for instruction in self.computations[name].instructions:
                for called in instruction.called():
                    mark(called)

        for computation in self.computations.values():
            for instruction in computation.instructions:
                if instruction.opcode not in ("while", "conditional", "call", "async-start"):
                    for called in instruction.called():
                        mark(called)
        return names

    def executed(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Every instruction with the computation that holds it and how often it runs."""
        for name, times in self.counts.items():
            computation = self.computations[name]
            for instruction in computation.instructions:
                yield computation, instruction, times

    def outer(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """As `executed`, without what is inside fusions."""
        return (row for row in self.executed() if row[0].name not in self.inner)

    def loops(self) -> dict[str, int | None]:
        """Trip count of every loop that runs, None where it could not be read."""
        return {
            instruction.name: self.trip_count(computation.name, instruction)
            for computation, instruction, _ in self.executed()
            if instruction.opcode == "while"
        }

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """How often a loop's body runs: XLA's note of it, or the bound that its counter is held to.

        Args:
          computation: Name of the computation that holds the loop.
          loop: An instruction; others than loops have none.

        Returns:
          The count, None where it cannot be read.
        """
        if loop.opcode != "while":
            return None
        noted = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        condition = self.computations[loop.attribute("condition") or ""]
        test = self._unfused(condition)
        if test is None:
            return None
        index, bound, direction = test
        start = self._start(computation, loop, index)
        if start is None or direction not in ("LT", "LE"):
            return None
        return bound - start + (direction == "LE")

    def _unfused(self, condition: Computation) -> tuple[int, int, str] | None:
        """Of a condition `counter < bound`: the counter's place in the state, bound, direction."""
        names = condition.by_name
        test = names[condition.root]
        sides = [names[name] for name in test.operands]
        direction = test.attribute("direction")
        if test.opcode == "fusion":
            inside = self.computations[test.called()[0]]
            compare = inside.by_name[inside.root]
            direction = compare.attribute("direction")
            places = [inside.by_name[name] for name in compare.operands]
            if any(place.opcode not in ("parameter", "constant") for place in places):
                return None
            sides = [p if p.opcode == "constant" else sides[int(p.text)] for p in places]
        if len(sides) != 2 or direction is None:
            return None
        counter, bound = sides
        place = counter.attribute("index")
        if counter.opcode != "get-tuple-element" or bound.opcode != "constant" or place is None:
            return None
        return int(place), int(bound.text), direction

    def _start(self, computation: str, loop: Instruction, index: int) -> int | None:
        names = self.computations[computation].by_name
        state = names[loop.operands[0]]
        if state.opcode != "tuple":
            return None
        value = names[state.operands[index]]
        while value.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            value = names[value.operands[0]]
        return int(value.text) if value.opcode == "constant" else None


def parse(text: str) -> Program:
    """Reads the text of a compiled program, `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            found = _NAME.search(line)
            assert found
            current = computations[found[1]] = Computation(found[1])
            entry = found[1] if line.startswith("ENTRY") else entry
        elif line == "}":
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current.instructions.append(instruction)
            if line.lstrip().startswith("ROOT"):
                current.root = instruction.name
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name=name.split("%")[-1].strip(),
        opcode=rest[:opening],
        shapes=shapes(kind),
        operands=tuple(_NAME.findall(inside)),
        text=inside,
        attributes=rest[closing + 1 :],
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")
