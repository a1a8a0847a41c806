"""ModernBERT as Hugging Face stores it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rml.errors import UserError
from rml.models.layers import module_options
from rml.models.modernbert import ModernBert
from rml.models.pretrained.configs import (
    activation,
    beneath,
    count,
    part,
    positive,
    sizes,
    without,
)
from rml.models.pretrained.entries import affine, norm
from rml.models.pretrained.llama import SLIDING
from rml.models.pretrained.tensors import Entry, Layout, Tensor

FIRST = "layers.0.attn_norm"  # of the first block there is none


def modernbert(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> ModernBert:
    """Builds the module of a ModernBERT's config.

    Raises:
      UserError: A part of it is not implemented, or an attribute is not one of ours.
    """
    shared = sizes(config, file)
    every = config.get("global_attn_every_n_layers", 3)
    types = config.get("layer_types") or [
        SLIDING if i % every else "" for i in range(shared["depth"])
    ]
    theta = _theta(config, file, "full_attention", config.get("global_rope_theta", 160_000.0))
    local = config.get("local_rope_theta", 10_000.0)
    local_theta = _theta(config, file, SLIDING, theta if local is None else local)
    found = {
        **shared,
        "positions": count(config, file, "max_position_embeddings", 8192),
        "local": tuple(kind == SLIDING for kind in types),
        "reach": count(config, file, "local_attention", 128) // 2,
        "theta": theta,
        "local_theta": local_theta,
        "activation": activation(config.get("hidden_activation", "gelu"), file),
        "epsilon": positive(config, file, "norm_eps", 1e-5),
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "norm_bias": config.get("norm_bias", False),
    }
    return ModernBert(**{**found, **module_options("modernbert", ModernBert, options)})


def modernbert_layout(module: ModernBert) -> Layout:
    """Lists where Hugging Face's tensors belong."""
    outer = (
        Entry("tokens/embedding", "embeddings.tok_embeddings.weight", None),
        *norm("norm0", "embeddings.norm", bias=module.norm_bias),
        *norm("norm", "final_norm", bias=module.norm_bias),
    )
    layer = (
        *norm("norm1", "attn_norm", bias=module.norm_bias),
        *affine("qkv", "attn.Wqkv", bias=module.attention_bias),
        *affine("out", "attn.Wo", 2, bias=module.attention_bias),
        *norm("norm2", "mlp_norm", bias=module.norm_bias),
        *affine("mlp_in", "mlp.Wi", bias=module.mlp_bias),
        *affine("mlp_out", "mlp.Wo", bias=module.mlp_bias),
    )
    return Layout(outer, layer, "layers.{}.")


def modernbert_tensors(module: ModernBert, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Selects the encoder's tensors, and adds values of the norm that has no effect."""
    heads = ("head.", "decoder.", "classifier.")
    found = beneath(without(tensors, *heads), "model.")
    last = found.get("final_norm.weight")
    if last is not None:
        ones = last.changed(last.shape, lambda _: np.ones(last.shape, np.float32))
        found[f"{FIRST}.weight"] = ones
        if module.norm_bias:
            found[f"{FIRST}.bias"] = ones.changed(last.shape, np.zeros_like)
    return found


def _theta(config: Mapping[str, Any], file: Path, key: str, older: Any) -> float:
    """Base of the frequencies of one kind of block; newer configs have a part for each."""
    own = part(part(config, file, "rope_parameters"), file, key)
    # As in transformers, `rope_scaling` replaces what is said of either kind.
    rope = {"rope_theta": older, **own, **part(config, file, "rope_scaling")}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"{file} scales rotary positions of {key}, which is not implemented")
    return float(positive(rope, file, "rope_theta"))
