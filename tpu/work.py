"""What one instruction of a compiled program costs: floating-point operations, bytes of memory."""

import math
import re
from collections.abc import Sequence

from rml.evaluation.costs import window_pairs
from tpu.hlo import Computation, Instruction, Program
from tpu.shapes import Shape

# bfloat16 products that make one product of float32: the suffixes X3 and X6 of JAX's
# DotAlgorithmPreset. That a TPU takes so many for "high" and "highest" is an assumption here.
PASSES = {"high": 3, "highest": 6}
# They make no array, or only name one.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}


def flops(computation: Computation, instruction: Instruction) -> float:
    """Floating-point operations of a matrix product, a convolution, or a kernel by its own count.

    Args:
      computation: Which holds the instruction.
      instruction: Any.

    Returns:
      Twice the number of its multiplications; those by padding do not count. Zero of anything else.
    """
    if instruction.opcode == "dot":
        left = _operand(computation, instruction, 0)
        contracted = _numbers(instruction, "lhs_contracting_dims")
        return 2.0 * instruction.shapes[0].elements * math.prod(left.sizes[i] for i in contracted)
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "custom-call":  # of Pallas, which says what a kernel costs
        stated = re.search(r'"cost_estimate":\{"flops":"(\d+)"', instruction.attributes)
        return float(stated[1]) if stated else 0.0
    return 0.0


def passes(computation: Computation, instruction: Instruction) -> int:
    """How many bfloat16 products of a TPU make a product of this precision."""
    found = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    if not found or _operand(computation, instruction, 0).dtype != "f32":
        return 1
    return PASSES.get(found[1], 1)


def _operand(computation: Computation, instruction: Instruction, index: int) -> Shape:
    return computation.by_name[instruction.operands[index]].shapes[0]


def _numbers(instruction: Instruction, name: str) -> list[int]:
    found = re.search(rf"\b{name}=\{{([\d,]*)\}}", instruction.attributes)
    return [int(n) for n in found[1].split(",") if n] if found else []


def _convolution(computation: Computation, instruction: Instruction) -> float:
    left, right = (_operand(computation, instruction, i) for i in (0, 1))
    out = instruction.shapes[0]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    pairs = 1
    for d in range(len(left.sizes) - 2):
        here = {key: value.split("x")[d] for key, value in options.items()}
        pairs *= window_pairs(
            left.sizes[labels[1].index(str(d))],
            right.sizes[labels[2].index(str(d))],
            out.sizes[labels[3].index(str(d))],
            stride=int(here.get("stride", 1)),
            low=int(here.get("pad", "0_0").split("_")[0]),
            holes=int(here.get("lhs_dilate", 1)),
            spread=int(here.get("rhs_dilate", 1)),
        )
    groups = int(instruction.attribute("batch_group_count") or 1)
    batch = left.sizes[labels[1].index("b")] // groups
    return (
        2.0 * batch * right.sizes[labels[2].index("i")] * right.sizes[labels[2].index("o")] * pairs
    )


def traffic(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads from and writes to main memory.

    Args:
      program: Which holds all.
      computation: Which holds the instruction, not inside a fusion.
      instruction: Any.

    Returns:
      Bytes of operands and result that lie in main memory; of an operand that is only sliced the
      slice, of a result that is an update in place the update.
    """
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0.0
    names = computation.by_name
    operands = [names[name].shapes for name in instruction.operands]
    if instruction.opcode in _SLICES:
        return _sliced(operands[0][0], instruction.shapes[0])
    if instruction.opcode == "slice-start":  # its result is (whole, slice, context)
        return _sliced(operands[0][0], instruction.shapes[1])
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * _main(operands[1])
    if instruction.opcode.endswith("-start"):
        return _main(instruction.shapes[:1]) + sum(map(_main, operands))
    if instruction.opcode == "fusion":
        inside = program.computations[instruction.called()[0]]
        read = sum(
            _read(program, inside, index, size)
            for index, size in enumerate(map(_main, operands))
            if size
        )
        return read + _written(inside, instruction)
    return _main(instruction.shapes) + sum(map(_main, operands))


def _sliced(whole: Shape, part: Shape) -> float:
    return float(part.padded_bytes * (whole.main_memory + part.main_memory))


def _main(shapes: Sequence[Shape]) -> float:
    return float(sum(shape.padded_bytes for shape in shapes if shape.main_memory))


def _read(program: Program, inside: Computation, index: int, size: float) -> float:
    """Bytes that a fusion reads of its operand of this size; fusions may hold fusions."""
    parameter = next(
        (i for i in inside.instructions if i.opcode == "parameter" and i.text == str(index)), None
    )
    if parameter is None:
        return size
    total, aliases = 0.0, {parameter.name}
    for user in inside.instructions:
        places = [place for place, name in enumerate(user.operands) if name in aliases]
        if not places:
            continue
        if user.opcode == "bitcast":
            aliases.add(user.name)
        elif user.opcode in _SLICES and places == [0]:
            total += sum(shape.padded_bytes for shape in user.shapes)
        elif user.opcode == "dynamic-update-slice" and places == [0]:
            continue  # in place
        elif user.opcode == "fusion":
            nested = program.computations[user.called()[0]]
            total += sum(_read(program, nested, place, size) for place in places)
        else:
            return size
    return min(total, size)


def _written(inside: Computation, fusion: Instruction) -> float:
    """Bytes of a fusion's result that it writes."""
    root = inside.by_name[inside.root]
    parts = [inside.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(fusion.shapes):
        return _main(fusion.shapes)
    total = 0.0
    for part, shape in zip(parts, fusion.shapes, strict=True):
        while part.opcode == "bitcast":
            part = inside.by_name[part.operands[0]]
        update = part.opcode == "dynamic-update-slice"
        made = inside.by_name[part.operands[1]].shapes[0] if update else shape
        total += made.padded_bytes if shape.main_memory else 0
    return total
