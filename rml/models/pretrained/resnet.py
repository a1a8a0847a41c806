"""Residual networks as torchvision and timm store them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rml.errors import UserError
from rml.models.layers import module_options
from rml.models.pretrained.configs import count_layers, shape_of
from rml.models.pretrained.entries import affine, batch_norm, convolution
from rml.models.pretrained.tensors import Entry, Layout, Tensor
from rml.models.resnet import ResNet

SMALL = 3  # pixels of the first convolution's kernel that more than one stem has


def resnet(tensors: Mapping[str, Tensor], file: Path, options: Mapping[str, Any]) -> ResNet:
    """Builds the network that the tensors are of, told by their names and shapes.

    Raises:
      UserError: There are no stages, the first convolution is 3x3 and `stem` is not given, as no
        tensor shows whether a max-pool follows it, or an option is unknown.
    """
    stages = 0
    while f"layer{stages + 1}.0.conv1.weight" in tensors:
        stages += 1
    if not stages:
        raise UserError(f"there is no tensor 'layer1.0.conv1.weight' in {file}")
    width, *_, kernel = shape_of(tensors, "conv1.weight", file, 4)
    if kernel == SMALL and "stem" not in options:
        raise UserError(
            f"the stem of {file} is a 3x3 convolution, after which a max-pool is not told by "
            'tensors: give stem="cifar" (without one) or "cifar_pool" (with it)'
        )
    found = {
        "depths": tuple(count_layers(tensors, f"layer{n + 1}.{{}}.") for n in range(stages)),
        "bottleneck": "layer1.0.conv3.weight" in tensors,
        "width": width,
        "classes": tensors["fc.weight"].shape[0] if "fc.weight" in tensors else 0,
    }
    return ResNet(**{**found, **module_options("resnet", ResNet, options)})


def resnet_layout(module: ResNet) -> Layout:
    """Lists names of torchvision's and timm's tensors."""
    entries: list[Entry] = [*convolution("stem", "conv1"), *batch_norm("stem_norm", "bn1")]
    for stage, depth in enumerate(module.depths):
        for number in range(depth):
            ours, theirs = f"stage{stage}_block{number}", f"layer{stage + 1}.{number}"
            for i in range(3 if module.bottleneck else 2):
                entries += convolution(f"{ours}/conv{i}", f"{theirs}.conv{i + 1}")
                entries += batch_norm(f"{ours}/norm{i}", f"{theirs}.bn{i + 1}")
            if number == 0 and (stage > 0 or module.bottleneck):
                entries += convolution(f"{ours}/shortcut", f"{theirs}.downsample.0")
                entries += batch_norm(f"{ours}/shortcut_norm", f"{theirs}.downsample.1")
    if module.classes:
        entries += affine("head", "fc")
    return Layout(tuple(entries))
