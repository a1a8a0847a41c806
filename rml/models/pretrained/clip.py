"""CLIP's two towers as Hugging Face and OpenAI (OpenCLIP too) store them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rml.errors import UserError
from rml.models.clip import ClipText
from rml.models.layers import module_options
from rml.models.pretrained.configs import (
    activation,
    count,
    count_layers,
    part,
    positive,
    shape_of,
)
from rml.models.pretrained.entries import convolution, norm, vit_block
from rml.models.pretrained.tensors import Entry, Layout, Tensor
from rml.models.pretrained.vit import whole_ratio
from rml.models.vit import ViT

SCALE = "logit_scale"  # logarithm of what cosines are multiplied with
HEAD_WIDTH = 64  # of published towers, where there is no config
OTHER_HEADS = (1280, 1408, 1664)  # widths of image towers whose heads have another
EPSILON = 1e-5


class Names(NamedTuple):
    """How a library calls CLIP's tensors.

    Attributes:
      image: Beginnings of the names of the image tower; all others are the text tower's.
      unused: Tensors without use.
      cls: Token of the image.
      image_positions: Positions of patches.
      patches: Convolution that makes them.
      image_norms: Norm before the blocks and after them.
      image_projection: Projection, `inputs` of its entry beside it.
      image_prefix: What begins the names of a block.
      tokens: Table of tokens.
      text_positions: Positions of tokens.
      text_norm: Norm after the blocks.
      text_projection: Projection, `inputs` of its entry beside it.
      text_prefix: What begins the names of a block.
      layer: Entries of a block.
      mlp: Name of the first layer of its MLP.
      heads: Heads of image and text tower that a config means where it leaves them out; None
        where it means those of `HEAD_WIDTH`.
    """

    image: tuple[str, ...]
    unused: tuple[str, ...]
    cls: str
    image_positions: str
    patches: str
    image_norms: tuple[str, str]
    image_projection: tuple[str, int | None]
    image_prefix: str
    tokens: str
    text_positions: str
    text_norm: str
    text_projection: tuple[str, int | None]
    text_prefix: str
    layer: tuple[Entry, ...]
    mlp: str
    heads: tuple[int, int] | None = None


HUGGING_FACE = Names(
    image=("vision_model.", "visual_projection."),
    unused=(
        "text_model.embeddings.position_ids",
        "vision_model.embeddings.position_ids",
    ),
    cls="vision_model.embeddings.class_embedding",
    image_positions="vision_model.embeddings.position_embedding.weight",
    patches="vision_model.embeddings.patch_embedding",
    image_norms=("vision_model.pre_layrnorm", "vision_model.post_layernorm"),
    image_projection=("visual_projection.weight", 1),
    image_prefix="vision_model.encoder.layers.{}.",
    tokens="text_model.embeddings.token_embedding.weight",
    text_positions="text_model.embeddings.position_embedding.weight",
    text_norm="text_model.final_layer_norm",
    text_projection=("text_projection.weight", 1),
    text_prefix="text_model.encoder.layers.{}.",
    layer=vit_block(
        norms=("layer_norm1", "layer_norm2"),
        qkv=tuple(f"self_attn.{part}_proj." for part in "qkv"),
        out="self_attn.out_proj",
        mlp=("mlp.fc1", "mlp.fc2"),
    ),
    mlp="mlp.fc1",
    heads=(12, 8),  # of CLIPVisionConfig and CLIPTextConfig
)
OPENAI = Names(
    image=("visual.",),
    unused=("input_resolution", "context_length", "vocab_size", "attn_mask"),
    cls="visual.class_embedding",
    image_positions="visual.positional_embedding",
    patches="visual.conv1",
    image_norms=("visual.ln_pre", "visual.ln_post"),
    image_projection=("visual.proj", None),
    image_prefix="visual.transformer.resblocks.{}.",
    tokens="token_embedding.weight",
    text_positions="positional_embedding",
    text_norm="ln_final",
    text_projection=("text_projection", None),
    text_prefix="transformer.resblocks.{}.",
    layer=vit_block(
        norms=("ln_1", "ln_2"),
        qkv=("attn.in_proj_",),
        out="attn.out_proj",
        mlp=("mlp.c_fc", "mlp.c_proj"),
    ),
    mlp="mlp.c_fc",
)


def image_tensors(
    tensors: Mapping[str, Tensor], names: Names, file: Path
) -> tuple[dict[str, Tensor], float | None]:
    """Selects the image tower's tensors, and the factor of cosines, if it is stored."""
    found = {n: t for n, t in tensors.items() if n.startswith(names.image)}
    found = {n: t for n, t in found.items() if n not in names.unused}
    shape = shape_of(found, names.image_positions, file, 2)
    found[names.image_positions] = found[names.image_positions].changed(
        (1, *shape), lambda value: value[None]
    )
    scale = tensors.get(SCALE)
    return found, None if scale is None else math.exp(float(scale.read()))


def text_tensors(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Selects the text tower's tensors."""
    found = {n: t for n, t in tensors.items() if not n.startswith(names.image)}
    return {n: t for n, t in found.items() if n not in (*names.unused, SCALE)}


def image_tower(
    tensors: Mapping[str, Tensor],
    names: Names,
    config: Mapping[str, Any],
    file: Path,
    options: Mapping[str, Any],
) -> ViT:
    """Builds the image tower that the tensors are of.

    Raises:
      UserError: A tensor that gives a size is missing, the number of heads is not known, or an
        attribute is not one of ours.
    """
    width, _, patch, _ = shape_of(tensors, f"{names.patches}.weight", file, 4)
    said = part(config, file, "vision_config") or config
    if width in OTHER_HEADS and "num_attention_heads" not in said and "heads" not in options:
        raise UserError(f"the heads of a width of {width} are not known for {file}: give heads=")
    name, inputs = names.image_projection
    found = {
        **_sizes(tensors, names.image_prefix, names.mlp, width, file),
        **_settings(said, _usual_heads(names, config, 0, width), file),
        "patch_size": patch,
        "norm_first": True,
        "projection": _outputs(shape_of(tensors, name, file, 2), inputs),
    }
    return ViT(**{**found, **module_options("clip", ViT, options)})


def text_tower(
    tensors: Mapping[str, Tensor],
    names: Names,
    config: Mapping[str, Any],
    file: Path,
    options: Mapping[str, Any],
) -> ClipText:
    """Builds the text tower that the tensors are of.

    Raises:
      UserError: A tensor that gives a size is missing, or an attribute is not one of ours.
    """
    vocabulary, width = shape_of(tensors, names.tokens, file, 2)
    said = part(config, file, "text_config") or config
    name, inputs = names.text_projection
    found = {
        **_sizes(tensors, names.text_prefix, names.mlp, width, file),
        **_settings(said, _usual_heads(names, config, 1, width), file),
        "vocabulary": vocabulary,
        "positions": shape_of(tensors, names.text_positions, file, 2)[0],
        "projection": _outputs(shape_of(tensors, name, file, 2), inputs),
    }
    return ClipText(**{**found, **module_options("clip", ClipText, options)})


def image_layout(names: Names) -> Layout:
    """Lists where the image tower's tensors belong."""
    outer = (
        Entry("cls", names.cls, 0),
        Entry("positions", names.image_positions, None),
        *convolution("patches", names.patches),
        *norm("norm0", names.image_norms[0]),
        *norm("norm", names.image_norms[1]),
        Entry("projection/kernel", *names.image_projection),
    )
    return Layout(outer, names.layer, names.image_prefix)


def text_layout(names: Names) -> Layout:
    """Lists where the text tower's tensors belong."""
    outer = (
        Entry("tokens/embedding", names.tokens, None),
        Entry("positions/embedding", names.text_positions, None),
        *norm("norm", names.text_norm),
        Entry("projection/kernel", *names.text_projection),
    )
    return Layout(outer, names.layer, names.text_prefix)


def _sizes(
    tensors: Mapping[str, Tensor], prefix: str, mlp: str, width: int, file: Path
) -> dict[str, Any]:
    hidden = shape_of(tensors, f"{prefix.format(0)}{mlp}.weight", file, 2)[0]
    return {
        "width": width,
        "depth": count_layers(tensors, prefix),
        "mlp_ratio": whole_ratio(hidden, width, file),
    }


def _usual_heads(names: Names, config: Mapping[str, Any], tower: int, width: int) -> int:
    """Heads of a tower, 0 of images and 1 of texts, whose part of the config does not say them."""
    return names.heads[tower] if names.heads and config else max(width // HEAD_WIDTH, 1)


def _settings(config: Mapping[str, Any], heads: int, file: Path) -> dict[str, Any]:
    return {
        "heads": count(config, file, "num_attention_heads", heads),
        "activation": activation(config.get("hidden_act", "quick_gelu"), file),
        "epsilon": positive(config, file, "layer_norm_eps", EPSILON),
    }


def _outputs(shape: tuple[int, ...], inputs: int | None) -> int:
    return shape[1] if inputs is None else shape[0]
