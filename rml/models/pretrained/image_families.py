"""The architectures of images that weights come in, told by a config or by a tensor's name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

from rml.errors import UserError
from rml.models.pretrained import clip, mobilenet, vit
from rml.models.pretrained.configs import (
    architectures,
    beneath,
    check_heads,
    check_timm,
    renamed,
    shape_of,
    without,
)
from rml.models.pretrained.resnet import resnet, resnet_layout
from rml.models.pretrained.tensors import Layout, Tensor

# Mean and standard deviation of each channel of images in 0..1.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE = (127 / 255,) * 3, (128 / 255,) * 3
HALVES = (0.5,) * 3, (0.5,) * 3
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Found(NamedTuple):
    """An image encoder, and the tensors of its variables."""

    module: nn.Module
    layout: Layout
    tensors: Mapping[str, Tensor]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    side: int | None = None
    scale: float | None = None


class _Given(NamedTuple):
    """What a family reads: tensors, config (empty where there is none), file and options."""

    tensors: dict[str, Tensor]
    config: Mapping[str, Any]
    file: Path
    options: Mapping[str, Any]


class Family(NamedTuple):
    """An architecture as one library stores it.

    Attributes:
      title: What messages call it.
      names: What a config calls it.
      marks: Names of tensors, of which such weights have one and no others do.
      heads: Beginnings of names of the classifier's tensors.
      read: Finds module and layout.
    """

    title: str
    names: tuple[str, ...]
    marks: tuple[str, ...]
    heads: tuple[str, ...]
    read: Callable[[_Given], Found]


def find_images(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    file: Path,
    options: Mapping[str, Any],
    *,
    logits: bool,
) -> Found:
    """Finds the encoder that tensors and config are of.

    Args:
      tensors: The tensors by their names in the file.
      config: Hugging Face's or timm's config; None or empty where there is none.
      file: Where they were read, for messages.
      options: Attributes of the module that replace what was found.
      logits: Whether the classifier is wanted.

    Raises:
      UserError: The architecture is none of `FAMILIES`.
    """
    config = config or {}
    if all(name.startswith("module.") for name in tensors):  # written from several devices
        tensors = {name.removeprefix("module."): t for name, t in tensors.items()}
    family = _family(tensors, config, file)
    kept = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    kept = kept if logits else without(kept, *family.heads)
    found = family.read(_Given(kept, config, file, options))
    check_heads(found.module, file)
    return found


def _family(tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: Path) -> Family:
    named = architectures(config, file)
    for family in FAMILIES:
        marked = any(mark in tensors for mark in family.marks)
        if named[0] in family.names if named else marked:
            return family
    what = f"names the architecture {named[0]!r}" if named else "holds no architecture of images"
    titles = ", ".join(family.title for family in FAMILIES)
    raise UserError(f"{file} {what}; expected one of: {titles}")


def _resnet(given: _Given) -> Found:
    check_timm(given.config, given.file, "avg")
    name = str(given.config.get("architecture", ""))
    if "aa" in name or "blur" in name:  # filters without a tensor of their own
        raise UserError(
            f"architecture is {name!r} in {given.file}; expected a ResNet without anti-aliasing"
        )
    module = resnet(given.tensors, given.file, given.options)
    return Found(module, resnet_layout(module), given.tensors, IMAGENET)


def _vit(
    names: vit.Names,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    prefix: str = "",
    unused: tuple[str, ...] = (),
) -> Callable[[_Given], Found]:
    def read(given: _Given) -> Found:
        check_timm(given.config, given.file, "token")
        classifier = {n: t for n, t in given.tensors.items() if n.startswith(f"{names.head}.")}
        tensors = {**beneath(given.tensors, prefix), **classifier}
        tensors = without(renamed(tensors, vit.OLD), *unused)
        module = vit.vit(tensors, names, given.config, given.file, given.options)
        tokens = shape_of(tensors, names.positions, given.file, 3)[1]
        side = vit.side_of(tokens, module.patch_size, given.file)
        return Found(module, vit.vit_layout(module, names), tensors, normalisation, side)

    return read


def _clip(names: clip.Names) -> Callable[[_Given], Found]:
    def read(given: _Given) -> Found:
        tensors, scale = clip.image_tensors(given.tensors, names, given.file)
        module = clip.image_tower(tensors, names, given.config, given.file, given.options)
        tokens = shape_of(tensors, names.image_positions, given.file, 3)[1]
        side = vit.side_of(tokens, module.patch_size, given.file)
        layout = clip.image_layout(names)
        return Found(module, layout, tensors, CLIP, side, scale)

    return read


def _efficientnet(given: _Given) -> Found:
    module = mobilenet.efficientnet_lite0(given.tensors, given.options)
    return Found(module, mobilenet.efficientnet_layout(module), given.tensors, LITE)


def _torchvision_efficientnet(given: _Given) -> Found:
    module = mobilenet.efficientnet(given.tensors, given.file, given.options)
    layout = mobilenet.torchvision_efficientnet_layout(module)
    return Found(module, layout, given.tensors, IMAGENET)


def _mobilenet(given: _Given) -> Found:
    module = mobilenet.mobilenet_v2(given.tensors, given.options)
    nested = _NESTED in given.tensors
    layout = mobilenet.mobilenet_layout(module, nested=nested)
    return Found(module, layout, given.tensors, IMAGENET)


_NESTED, _FLAT = "features.1.conv.0.0.weight", "features.1.conv.3.weight"

FAMILIES = (
    Family("ResNet (torchvision, timm)", (), ("layer1.0.conv1.weight",), ("fc.",), _resnet),
    Family(
        "ViT (torchvision)", (), ("conv_proj.weight",), ("heads.",), _vit(vit.TORCHVISION, IMAGENET)
    ),
    Family("ViT (timm)", (), ("patch_embed.proj.weight",), ("head.",), _vit(vit.TIMM, IMAGENET)),
    Family(
        "ViT (Hugging Face)",
        ("ViTForImageClassification", "ViTModel", "vit"),
        tuple(f"{p}embeddings.patch_embeddings.projection.weight" for p in ("", "vit.")),
        ("classifier.",),
        _vit(vit.HUGGING_FACE, HALVES, "vit.", ("pooler.", "embeddings.mask_token")),
    ),
    Family(
        "CLIP (Hugging Face)",
        ("CLIPModel", "CLIPVisionModelWithProjection", "clip"),
        ("vision_model.embeddings.patch_embedding.weight",),
        (),
        _clip(clip.HUGGING_FACE),
    ),
    Family("CLIP (OpenAI, OpenCLIP)", (), ("visual.conv1.weight",), (), _clip(clip.OPENAI)),
    Family("MobileNetV2 (torchvision)", (), (_NESTED, _FLAT), ("classifier.",), _mobilenet),
    Family(
        "EfficientNet (torchvision)",
        (),
        ("features.1.0.block.0.0.weight",),
        ("classifier.",),
        _torchvision_efficientnet,
    ),
    Family("EfficientNet-Lite0", (), ("_conv_stem.weight",), ("_fc.",), _efficientnet),
)
