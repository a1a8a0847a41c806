"""What one instruction of a compiled program costs: floating-point operations, bytes of memory."""

import math
import re
from collections.abc import Sequence

from rml.evaluation.costs import window_pairs
from tpu.chips import Chip
from tpu.hlo import Computation, Instruction, Program
from tpu.shapes import Shape

# bfloat16 products that make one product of float32: the suffixes X3 and X6 of JAX's
# DotAlgorithmPreset. That a TPU takes so many for "high" and "highest" is an assumption here.
PASSES = {"high": 3, "highest": 6}
# They make no array, or only name one.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "async-start", "async-update", "after-all", "partition-id", "replica-id",
    "opt-barrier", "iota",
}  # fmt: skip
# Others that start make (operands, results, contexts).
_RESULTS_FIRST = {"all-reduce-start", "copy-start"}
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
        left, right = (_operand(computation, instruction, i) for i in (0, 1))
        return _convolution(instruction, left, right, instruction.shapes[0])
    if instruction.opcode == "custom-call":
        return _kernel(computation, instruction)
    return 0.0


def passes(computation: Computation, instruction: Instruction, chip: Chip) -> float:
    """How many times as long a product of this precision takes as one of bfloat16.

    On TPUs the number of bfloat16 products that make it; on GPUs by the peak of its type.
    """
    if _operand(computation, instruction, 0).dtype != "f32":
        return 1
    found = re.search(r'operand_precision"?[=:][\[{]"?(\w+)', instruction.attributes)
    precision = found[1].lower() if found else "default"
    if chip.float32:
        return chip.flops / dict(chip.float32).get(precision, chip.flops)
    return PASSES.get(precision, 1)


def _kernel(computation: Computation, instruction: Instruction) -> float:
    """Of a library's kernel: cuBLAS's and cuDNN's by their shapes, Pallas's as it states."""
    name = instruction.attributes.partition('custom_call_target="')[2].partition('"')[0]
    left = _operand(computation, instruction, 0) if instruction.operands else None
    if left and name.endswith("triangularSolve"):
        return 1.0 * instruction.shapes[0].elements * left.sizes[-1]
    if left and name.startswith("cusolver_potrf"):
        return left.elements * left.sizes[-1] / 3
    if left and name.startswith("__cublas$"):
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        assert found
        contracted = [int(n) for n in re.findall(r"\d+", found[1])]
        return 2.0 * instruction.shapes[0].elements * math.prod(left.sizes[i] for i in contracted)
    if name.startswith("__cudnn$conv"):
        one, other = (_operand(computation, instruction, i) for i in (0, 1))
        out = instruction.shapes[0]
        if "BackwardInput" in name:  # of its own gradient and the kernel
            one, other, out = out, other, one
        elif "BackwardFilter" in name:  # of the input and the output's gradient
            one, other, out = one, out, other
        return _convolution(instruction, one, other, out)
    if name.startswith("__cudnn$fmha"):  # two products, or the first again and four gradients
        query, key = (_operand(computation, instruction, i) for i in (0, 1))
        batch, tokens, heads, width = query.sizes
        return (10.0 if "Backward" in name else 4.0) * (
            batch * heads * tokens * key.sizes[1] * width
        )
    stated = re.search(r'"cost_estimate":\{"flops":"(\d+)"', instruction.attributes)
    return float(stated[1]) if stated else 0.0


def _operand(computation: Computation, instruction: Instruction, index: int) -> Shape:
    return computation.by_name[instruction.operands[index]].shapes[0]


def _numbers(instruction: Instruction, name: str) -> list[int]:
    found = re.search(rf"\b{name}=\{{([\d,]*)\}}", instruction.attributes)
    return [int(n) for n in found[1].split(",") if n] if found else []


def _convolution(instruction: Instruction, left: Shape, right: Shape, out: Shape) -> float:
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
        count = sum(map(len, operands))
        first = 0 if instruction.opcode in _RESULTS_FIRST else count
        return _main(instruction.shapes[first : first + count]) + sum(map(_main, operands))
    if instruction.opcode == "fusion":
        inside = program.computations[instruction.called()[0]]
        read = sum(
            _read(program, inside, index, size)
            for index, size in enumerate(map(_main, operands))
            if size
        )
        return read + _written(inside, instruction)
    return _main(made(instruction)) + sum(map(_main, operands))


def made(instruction: Instruction) -> Sequence[Shape]:
    """The arrays that an instruction makes, without the scratch space of a library's kernel."""
    if instruction.opcode != "custom-call":
        return instruction.shapes
    scratch = {"s8", "u8"}
    return [
        shape
        for place, shape in enumerate(instruction.shapes)
        if not place or shape.dtype not in scratch
    ]


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
