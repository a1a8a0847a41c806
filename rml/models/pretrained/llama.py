"""LLaMA, Mistral and Qwen2, all of which become a `Llama`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rml.errors import UserError
from rml.models.layers import module_options
from rml.models.llama import Llama
from rml.models.pretrained.configs import (
    count,
    count_or_none,
    numbered_activation,
    only,
    part,
    positive,
    sizes,
)
from rml.models.pretrained.entries import affine, norm
from rml.models.pretrained.tensors import Entry, Layout, Tensor
from rml.models.rope import scaling_kind

SLIDING = "sliding_attention"
WINDOW = {"sliding_window": 4096}  # tokens, where a config of Mistral's or Qwen2's says nothing
BARE = "embed_tokens.weight"  # table of tokens where a model is stored without its head


def llama(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Llama:
    """Builds the module of a LLaMA's config.

    Raises:
      UserError: A part of it is not implemented, or an attribute is not one of ours.
    """
    only(config, file, "is_causal", True)
    theta, scaling = rotary(config, file)
    found = {
        **sizes(config, file),
        "kv_heads": count_or_none(config, file, "num_key_value_heads"),
        "head_width": count_or_none(config, file, "head_dim"),
        "positions": count(config, file, "max_position_embeddings", 2048),
        "activation": numbered_activation(config, file, "silu"),
        "epsilon": positive(config, file, "rms_norm_eps", 1e-6),
        "theta": theta,
        "rope_scaling": scaling,
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "tied": config.get("tie_word_embeddings", False),
    }
    return Llama(**{**found, **module_options("llama", Llama, options)})


def mistral(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Llama:
    """Builds the module of a Mistral's config: a LLaMA whose tokens see a window."""
    window = {"window": count_or_none({**WINDOW, **config}, file, "sliding_window")}
    return llama(config, file, {**window, **options})


def qwen2(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Llama:
    """Builds a Qwen2's module: biases of queries, keys and values; blocks with a window."""
    found: dict[str, Any] = {"out_bias": False}
    config = {**WINDOW, **config, "attention_bias": True}
    if config.get("use_sliding_window", False) and config["sliding_window"] is not None:
        depth, first = sizes(config, file)["depth"], config.get("max_window_layers", 28)
        types = config.get("layer_types") or [SLIDING if i >= first else "" for i in range(depth)]
        found["window"] = count(config, file, "sliding_window")
        found["windowed"] = tuple(kind == SLIDING for kind in types)
    return llama(config, file, {**found, **options})


def rotary(config: Mapping[str, Any], file: Path) -> tuple[float, dict[str, Any] | None]:
    """Reads base and scaling of the rotary frequencies, which newer configs keep in one place.

    Raises:
      UserError: A part is no object, or the base is no number.
    """
    rope = part(config, file, "rope_scaling") or part(config, file, "rope_parameters")
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    base = positive(config, file, "rope_theta", 10_000.0)
    theta = float(positive(rope, file, "rope_theta", base))
    return theta, None if scaling_kind(scaling) == "default" else scaling


def llama_layout(module: Llama) -> Layout:
    """Lists where Hugging Face's tensors belong."""
    out_bias = module.attention_bias if module.out_bias is None else module.out_bias
    outer = (
        Entry("tokens/embedding", "model.embed_tokens.weight", None),
        *norm("norm", "model.norm", bias=False),
        *(() if module.tied else affine("head", "lm_head", bias=False)),
    )
    layer = (
        *norm("norm1", "input_layernorm", bias=False),
        *norm("norm2", "post_attention_layernorm", bias=False),
        *affine("attention/query", "self_attn.q_proj", bias=module.attention_bias),
        *affine("attention/key", "self_attn.k_proj", bias=module.attention_bias),
        *affine("attention/value", "self_attn.v_proj", bias=module.attention_bias),
        *affine("attention/out", "self_attn.o_proj", 2, bias=out_bias),
        *affine("gate", "mlp.gate_proj", bias=module.mlp_bias),
        *affine("mlp_in", "mlp.up_proj", bias=module.mlp_bias),
        *affine("mlp_out", "mlp.down_proj", bias=module.mlp_bias),
    )
    return Layout(outer, layer, "model.layers.{}.")


def llama_tensors(module: Llama, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Selects the tensors that the module has a place for, and what is unknown.

    First checkpoints carry the rotary frequencies, and one with tied embeddings may carry them
    twice.

    Raises:
      UserError: Embeddings that should be tied differ.
    """
    found = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    head = found.pop("lm_head.weight", None) if module.tied else None
    table = found.get("model.embed_tokens.weight")
    if head and table and not np.array_equal(head.read(), table.read()):
        raise UserError(
            f"tensor {head.name!r} of {head.file} differs from {table.name!r}, "
            "to which the config ties it"
        )
    return found


def llama_config(module: Llama) -> dict[str, Any]:
    """Returns what Hugging Face's config says beside the sizes that all text models have."""
    kv_heads, head_width = module.head_shape()
    shared = {
        "num_key_value_heads": kv_heads,
        "head_dim": head_width,
        "rms_norm_eps": module.epsilon,
        "rope_theta": module.theta,
        "rope_scaling": None if module.rope_scaling is None else dict(module.rope_scaling),
        "tie_word_embeddings": module.tied,
    }
    windowed = (module.window is not None,) * module.depth
    windowed = windowed if module.windowed is None else tuple(module.windowed)
    biases = module.attention_bias, module.out_bias in (None, module.attention_bias)
    if biases == (True, False) and not module.mlp_bias:
        types = [SLIDING if window else "full_attention" for window in windowed]
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **shared,
            "use_sliding_window": module.window is not None,
            "sliding_window": module.window,
            "layer_types": types,
        }
    if not biases[1] or (any(windowed) and (any(biases[:1]) or not all(windowed))):
        raise UserError("no architecture of Hugging Face's has these biases and windows of a Llama")
    if any(windowed):
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            **shared,
            "sliding_window": module.window,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shared,
        "attention_bias": module.attention_bias,
        "mlp_bias": module.mlp_bias,
    }
