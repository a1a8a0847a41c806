"""Inverted residual networks as torchvision and EfficientNet-PyTorch store them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rml.errors import UserError
from rml.models.layers import module_options
from rml.models.mobilenet import EfficientNetLite0, MobileNet, MobileNetV2, Stage
from rml.models.pretrained.configs import count_layers, shape_of
from rml.models.pretrained.entries import affine, batch_norm, convolution
from rml.models.pretrained.tensors import Entry, Layout, Tensor

# Of a block's part, the names of its convolution and of its norm.
_Names = Callable[[int, str, bool], tuple[str, str]]
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of EfficientNet's stages
_PARTS = ("expand", "depthwise", "project")


def efficientnet_lite0(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> MobileNet:
    """Builds EfficientNet-Lite0 with the classes of its classifier."""
    return _module("efficientnet_lite0", EfficientNetLite0, "_fc", tensors, options)


def mobilenet_v2(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> MobileNet:
    """Builds MobileNetV2 with the classes of its classifier, if it has one."""
    return _module("mobilenet_v2", MobileNetV2, "classifier.1", tensors, options)


def efficientnet(
    tensors: Mapping[str, Tensor], file: Path, options: Mapping[str, Any]
) -> MobileNet:
    """Builds the EfficientNet that the tensors are of, told by their shapes.

    Raises:
      UserError: It has another number of stages than all of them have, or lacks a convolution.
    """
    last = count_layers(tensors, "features.{}.") - 1
    if last - 1 != len(STRIDES):
        raise UserError(
            f"{file} has {last - 1} stages, expected {len(STRIDES)} as EfficientNet-B0 to B7 have"
        )
    stages, inputs = [], shape_of(tensors, "features.0.0.weight", file, 4)[0]
    for number, stride in enumerate(STRIDES):
        stage = f"features.{number + 1}"
        expands = f"{stage}.0.block.3.0.weight" in tensors
        wide, _, kernel, _ = shape_of(tensors, f"{stage}.0.block.{int(expands)}.0.weight", file, 4)
        outputs = shape_of(tensors, f"{stage}.0.block.{2 + expands}.0.weight", file, 4)[0]
        blocks = count_layers(tensors, f"{stage}.{{}}.")
        stages.append(Stage(wide // inputs, outputs, blocks, stride, kernel))
        inputs = outputs
    found = {
        "stages": tuple(stages),
        "stem": shape_of(tensors, "features.0.0.weight", file, 4)[0],
        "features": shape_of(tensors, f"features.{last}.0.weight", file, 4)[0],
        "padding": "symmetric",
        "activation": "silu",
        "squeeze": True,
        "epsilon": 1e-3 if stages[0].blocks > 2 else 1e-5,  # torchvision's of B5 and larger
    }
    return _module("efficientnet", MobileNet, "classifier.1", tensors, {**found, **options})


def _module(
    name: str,
    build: Callable[..., MobileNet],
    head: str,
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> MobileNet:
    weight = tensors.get(f"{head}.weight")
    classes = 0 if weight is None else weight.shape[0]
    return build(**{"classes": classes, **module_options(name, MobileNet, options)})


def efficientnet_layout(module: MobileNet) -> Layout:
    """Lists EfficientNet-PyTorch's names."""

    def names(number: int, part: str, expands: bool) -> tuple[str, str]:
        index = _PARTS.index(part)
        return f"_blocks.{number}._{part}_conv", f"_blocks.{number}._bn{index}"

    ends = ("_conv_stem", "_bn0"), ("_conv_head", "_bn1")
    return _layout(module, names, ends, "_fc")


def torchvision_efficientnet_layout(module: MobileNet) -> Layout:
    """Lists names of torchvision's EfficientNet."""
    where = [
        f"features.{number + 1}.{block}.block"
        for number, stage in enumerate(module.stages)
        for block in range(stage.blocks)
    ]

    def names(number: int, part: str, expands: bool) -> tuple[str, str]:
        index = _PARTS.index(part) - (not expands) + (part == "project")
        return f"{where[number]}.{index}.0", f"{where[number]}.{index}.1"

    last = 1 + len(module.stages)
    first, final = (tuple(f"features.{n}.{i}" for i in range(2)) for n in (0, last))
    squeezes: list[Entry] = []
    for number, (block, expands) in enumerate(_blocks(module)):
        for i, part in enumerate(("squeeze", "excite")):
            name = f"{where[number]}.{1 + expands}.fc{i + 1}"
            squeezes += convolution(f"{block}/{part}", name, bias=True)
    layout = _layout(module, names, (first, final), "classifier.1")
    return Layout((*layout.outer, *squeezes))


def mobilenet_layout(module: MobileNet, *, nested: bool) -> Layout:
    """Lists torchvision's names; not `nested` as they were at first, one number a layer."""

    def names(number: int, part: str, expands: bool) -> tuple[str, str]:
        index = _PARTS.index(part) - (not expands)
        block = f"features.{number + 1}.conv"
        if not nested:
            return f"{block}.{3 * index}", f"{block}.{3 * index + 1}"
        if part == "project":
            return f"{block}.{index}", f"{block}.{index + 1}"
        return f"{block}.{index}.0", f"{block}.{index}.1"

    last = 1 + sum(stage.blocks for stage in module.stages)
    first, final = (tuple(f"features.{n}.{i}" for i in range(2)) for n in (0, last))
    return _layout(module, names, (first, final), "classifier.1")


def _layout(module: MobileNet, names: _Names, ends: Any, head: str) -> Layout:
    entries: list[Entry] = []
    for part, (conv, norm) in zip(("stem", "last"), ends, strict=True):
        entries += (*convolution(f"{part}/conv", conv), *batch_norm(f"{part}/norm", norm))
    for number, (block, expands) in enumerate(_blocks(module)):
        for part in _PARTS if expands else _PARTS[1:]:
            conv, norm = names(number, part, expands)
            entries += convolution(f"{block}/{part}/conv", conv)
            entries += batch_norm(f"{block}/{part}/norm", norm)
    if module.classes:
        entries += affine("head", head)
    return Layout(tuple(entries))


def _blocks(module: MobileNet) -> Iterator[tuple[str, bool]]:
    """Names of the blocks in order, and whether they expand."""
    for number, stage in enumerate(module.stages):
        for block in range(stage.blocks):
            yield f"stage{number}_block{block}", stage.expansion > 1
