"""The architectures that pretrained weights come in: config to module, and names of tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from rml.errors import UserError, unknown
from rml.models.bert import Bert
from rml.models.layers import module_options
from rml.models.llama import Llama
from rml.models.pretrained.tensors import Entry, Layout, Tensor
from rml.models.rope import scaling_kind

# Names that a config may give: the plain model, those with a head on it, or the type alone.
BERTS = (
    "BertModel",
    *(f"BertFor{task}" for task in ("MaskedLM", "PreTraining", "NextSentencePrediction")),
    *(f"BertFor{task}" for task in ("SequenceClassification", "TokenClassification")),
    *(f"BertFor{task}" for task in ("QuestionAnswering", "MultipleChoice")),
    "bert",
)
LLAMAS = ("LlamaForCausalLM", "llama")

# Hugging Face's names of nonlinearities; the first of two that mean one is written back.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

BERT = Layout(
    outer=(
        Entry("tokens/embedding", "embeddings.word_embeddings.weight", None),
        Entry("positions/embedding", "embeddings.position_embeddings.weight", None),
        Entry("types/embedding", "embeddings.token_type_embeddings.weight", None),
        Entry("norm/scale", "embeddings.LayerNorm.weight", 0),
        Entry("norm/bias", "embeddings.LayerNorm.bias", 0),
    ),
    layer=tuple(
        Entry(f"{path}/{ours}", f"{name}.{theirs}", inputs if theirs == "weight" else 0)
        for path, name, kernel, inputs in (
            ("attention/query", "attention.self.query", "kernel", 1),
            ("attention/key", "attention.self.key", "kernel", 1),
            ("attention/value", "attention.self.value", "kernel", 1),
            ("attention/out", "attention.output.dense", "kernel", 2),
            ("norm1", "attention.output.LayerNorm", "scale", 0),
            ("mlp_in", "intermediate.dense", "kernel", 1),
            ("mlp_out", "output.dense", "kernel", 1),
            ("norm2", "output.LayerNorm", "scale", 0),
        )
        for ours, theirs in ((kernel, "weight"), ("bias", "bias"))
    ),
    prefix="encoder.layer.{}.",
)
# A checkpoint may carry BERT's pooler and a buffer of positions; sentence encoders use neither.
BERT_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def layout_of(module: nn.Module) -> Layout:
    """Where a checkpoint's tensors belong in this module.

    Raises:
      UserError: The module is no architecture that checkpoints come in.
    """
    if isinstance(module, Bert):
        return BERT
    if isinstance(module, Llama):
        return _llama_layout(module)
    raise UserError(f"a {type(module).__name__} has no checkpoint format; expected Bert or Llama")


def _llama_layout(module: Llama) -> Layout:
    outer = [
        Entry("tokens/embedding", "model.embed_tokens.weight", None),
        Entry("norm/scale", "model.norm.weight", 0),
    ]
    if not module.tied:
        outer.append(Entry("head/kernel", "lm_head.weight", 1))
    layer = [
        Entry("norm1/scale", "input_layernorm.weight", 0),
        Entry("norm2/scale", "post_attention_layernorm.weight", 0),
    ]
    for path, name, inputs, bias in (
        ("attention/query", "self_attn.q_proj", 1, module.attention_bias),
        ("attention/key", "self_attn.k_proj", 1, module.attention_bias),
        ("attention/value", "self_attn.v_proj", 1, module.attention_bias),
        ("attention/out", "self_attn.o_proj", 2, module.attention_bias),
        ("gate", "mlp.gate_proj", 1, module.mlp_bias),
        ("mlp_in", "mlp.up_proj", 1, module.mlp_bias),
        ("mlp_out", "mlp.down_proj", 1, module.mlp_bias),
    ):
        layer.append(Entry(f"{path}/kernel", f"{name}.weight", inputs))
        if bias:
            layer.append(Entry(f"{path}/bias", f"{name}.bias", 0))
    return Layout(tuple(outer), tuple(layer), "model.layers.{}.")


def module_of(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Bert | Llama:
    """The module that a Hugging Face config describes.

    Args:
      config: The config.
      file: Where it was read, for messages.
      options: Attributes of the module that replace what the config says.

    Returns:
      The module.

    Raises:
      UserError: The architecture, or a part of it, is not one of ours.
    """
    named = config.get("architectures") or [config.get("model_type")]
    if named[0] in BERTS:
        return _bert(config, file, options)
    if named[0] in LLAMAS:
        return _llama(config, file, options)
    raise UserError(
        f"{file} names the architecture {named[0]!r}; expected one of: {', '.join(BERTS + LLAMAS)}"
    )


def used(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the module has a place for, by the layout's names.

    BERT with a task's head on it names the encoder's tensors "bert.", the rest being the head; its
    first checkpoints call a norm's scale and offset gamma and beta. LLaMA's first checkpoints carry
    the rotary frequencies, and one with tied embeddings may carry them twice.

    Args:
      module: The module.
      tensors: Tensors by their names in the files.

    Returns:
      The tensors without those that are known to have no use; what is unknown stays.

    Raises:
      UserError: Embeddings that should be tied differ.
    """
    if isinstance(module, Llama):
        found = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
        head = found.pop("lm_head.weight", None) if module.tied else None
        table = found.get("model.embed_tokens.weight")
        if head and table and not np.array_equal(head.read(), table.read()):
            raise UserError(
                f"tensor {head.name!r} of {head.file} differs from {table.name!r}, "
                "to which the config ties it"
            )
        return found
    if any(name.startswith("bert.") for name in tensors):
        tensors = {
            name.removeprefix("bert."): tensor
            for name, tensor in tensors.items()
            if name.startswith("bert.")
        }
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    found = {}
    for name, tensor in tensors.items():
        for ending, new in old.items():
            name = name.replace(ending, new)
        if name not in BERT_UNUSED:
            found[name] = tensor
    return found


def config_of(module: nn.Module) -> dict[str, Any]:
    """The Hugging Face config that describes a `Bert` or `Llama`, as far as it determines it."""
    assert isinstance(module, Bert | Llama)
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    shared = {
        "vocab_size": module.vocabulary,
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.heads,
        "intermediate_size": module.mlp,
        "max_position_embeddings": module.positions,
        "hidden_act": names[module.activation],
        "torch_dtype": str(jnp.dtype(module.param_dtype)),
    }
    if isinstance(module, Bert):
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            **shared,
            "type_vocab_size": module.types,
            "layer_norm_eps": module.epsilon,
            "position_embedding_type": "absolute",
        }
    kv_heads, head_width = module.head_shape()
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shared,
        "num_key_value_heads": kv_heads,
        "head_dim": head_width,
        "rms_norm_eps": module.epsilon,
        "rope_theta": module.theta,
        "rope_scaling": None if module.rope_scaling is None else dict(module.rope_scaling),
        "attention_bias": module.attention_bias,
        "mlp_bias": module.mlp_bias,
        "tie_word_embeddings": module.tied,
    }


def _bert(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Bert:
    _only(config, file, "position_embedding_type", "absolute")
    _only(config, file, "is_decoder", False)
    found = {
        **_shared(config, file),
        "positions": config.get("max_position_embeddings", 512),
        "types": config.get("type_vocab_size", 2),
        "activation": _activation(config.get("hidden_act", "gelu"), file),
        "epsilon": config.get("layer_norm_eps", 1e-12),
    }
    return Bert(**{**found, **module_options("bert", Bert, options)})


def _llama(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Llama:
    # Newer configs keep the base beside the scaling.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    found = {
        **_shared(config, file),
        "kv_heads": config.get("num_key_value_heads"),
        "head_width": config.get("head_dim"),
        "positions": config.get("max_position_embeddings", 2048),
        "activation": _activation(config.get("hidden_act", "silu"), file),
        "epsilon": config.get("rms_norm_eps", 1e-6),
        "theta": float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        "rope_scaling": None if scaling_kind(scaling) == "default" else scaling,
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "tied": config.get("tie_word_embeddings", False),
    }
    return Llama(**{**found, **module_options("llama", Llama, options)})


def _shared(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    return {
        "vocabulary": _need(config, file, "vocab_size"),
        "width": _need(config, file, "hidden_size"),
        "depth": _need(config, file, "num_hidden_layers"),
        "heads": _need(config, file, "num_attention_heads"),
        "mlp": _need(config, file, "intermediate_size"),
    }


def _need(config: Mapping[str, Any], file: Path, key: str) -> Any:
    if key not in config:
        raise UserError(f"there is no {key!r} in {file}")
    return config[key]


def _only(config: Mapping[str, Any], file: Path, key: str, expected: object) -> None:
    found = config.get(key, expected)
    if found != expected:
        raise UserError(f"{key} is {found!r} in {file}; only {expected!r} is implemented")


def _activation(name: str, file: Path) -> str:
    if name not in ACTIVATIONS:
        raise unknown(f"activation in {file}", name, ACTIVATIONS)
    return ACTIVATIONS[name]
