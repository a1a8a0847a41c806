"""Vision transformers as torchvision, timm and Hugging Face store them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rml.errors import UserError
from rml.models.layers import module_options
from rml.models.pretrained.configs import (
    activation,
    count_layers,
    count_or_none,
    only,
    part,
    positive,
    shape_of,
)
from rml.models.pretrained.entries import affine, convolution, norm, vit_block
from rml.models.pretrained.tensors import Entry, Layout, Tensor
from rml.models.vit import ViT

# Torchvision's published weights have the older of its two names of an MLP's layers.
OLD = {"mlp.linear_1.": "mlp.0.", "mlp.linear_2.": "mlp.3."}
# Heads by width, as the published models have them, where no config says it.
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16}
# Widths that published models have with several numbers of heads; timm has that of `HEADS`.
SEVERAL = {384: " (6 of DeiT, DINO and timm, 12 of MoCo v3)"}


class Names(NamedTuple):
    """How a library calls the tensors of a vision transformer."""

    cls: str
    positions: str
    patches: str
    norm: str
    head: str
    prefix: str
    layer: tuple[Entry, ...]
    mlp: str


TORCHVISION = Names(
    cls="class_token",
    positions="encoder.pos_embedding",
    patches="conv_proj",
    norm="encoder.ln",
    head="heads.head",
    prefix="encoder.layers.encoder_layer_{}.",
    layer=vit_block(
        norms=("ln_1", "ln_2"),
        qkv=("self_attention.in_proj_",),
        out="self_attention.out_proj",
        mlp=("mlp.0", "mlp.3"),
    ),
    mlp="mlp.0",
)
TIMM = Names(
    cls="cls_token",
    positions="pos_embed",
    patches="patch_embed.proj",
    norm="norm",
    head="head",
    prefix="blocks.{}.",
    layer=vit_block(
        norms=("norm1", "norm2"), qkv=("attn.qkv.",), out="attn.proj", mlp=("mlp.fc1", "mlp.fc2")
    ),
    mlp="mlp.fc1",
)
HUGGING_FACE = Names(
    cls="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    patches="embeddings.patch_embeddings.projection",
    norm="layernorm",
    head="classifier",
    prefix="encoder.layer.{}.",
    layer=vit_block(
        norms=("layernorm_before", "layernorm_after"),
        qkv=tuple(f"attention.attention.{part}." for part in ("query", "key", "value")),
        out="attention.output.dense",
        mlp=("intermediate.dense", "output.dense"),
    ),
    mlp="intermediate.dense",
)


def vit(
    tensors: Mapping[str, Tensor],
    names: Names,
    config: Mapping[str, Any],
    file: Path,
    options: Mapping[str, Any],
) -> ViT:
    """Builds the transformer that the tensors are of, told by their shapes and by the config.

    Args:
      tensors: The tensors by the library's names.
      names: Those names.
      config: Hugging Face's or timm's config; empty where there is none.
      file: Where the tensors were read, for messages.
      options: Attributes of the module that replace what was found.

    Returns:
      The module.

    Raises:
      UserError: The number of heads is not known, or an attribute is not one of ours.
    """
    only(config, file, "qkv_bias", True)
    width, _, patch, _ = shape_of(tensors, f"{names.patches}.weight", file, 4)
    mlp, _ = shape_of(tensors, f"{names.prefix.format(0)}{names.mlp}.weight", file, 2)
    head = tensors.get(f"{names.head}.weight")
    said = count_or_none(config, file, "num_attention_heads")
    said = said or count_or_none(part(config, file, "model_args"), file, "num_heads")
    usual = HEADS.get(width) if width not in SEVERAL or "architecture" in config else None
    heads = options.get("heads", said or usual)
    if heads is None:
        raise UserError(
            f"the heads of a width of {width} are not known for {file}: give heads="
            f"{SEVERAL.get(width, '')}"
        )
    found = {
        "width": width,
        "depth": count_layers(tensors, names.prefix),
        "heads": heads,
        "mlp_ratio": whole_ratio(mlp, width, file),
        "patch_size": patch,
        "activation": activation(config.get("hidden_act", "gelu"), file),
        "epsilon": positive(config, file, "layer_norm_eps", 1e-6),
        "classes": 0 if head is None else head.shape[0],
    }
    return ViT(**{**found, **module_options("vit", ViT, options)})


def vit_layout(module: ViT, names: Names) -> Layout:
    """Lists where a library's tensors belong in the module."""
    outer = (
        Entry("cls", names.cls, None),
        Entry("positions", names.positions, None),
        *convolution("patches", names.patches, bias=True),
        *norm("norm", names.norm),
        *(affine("head", names.head) if module.classes else ()),
    )
    return Layout(outer, names.layer, names.prefix)


def whole_ratio(mlp: int, width: int, file: Path) -> int:
    """Divides the width of an MLP by that of tokens.

    Raises:
      UserError: It is no whole number.
    """
    if mlp % width:
        raise UserError(f"the MLP of {file} has a width of {mlp}, no multiple of {width}")
    return mlp // width


def side_of(tokens: int, patch: int, file: Path) -> int:
    """Finds the side of square images that so many positions, one for the class, are for.

    Raises:
      UserError: There is no such square.
    """
    side = math.isqrt(tokens - 1)
    if side**2 != tokens - 1:
        raise UserError(f"the {tokens} positions of {file} are no square of patches and a class")
    return side * patch
