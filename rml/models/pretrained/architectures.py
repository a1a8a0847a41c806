"""The architectures that pretrained weights come in: config to module, and names of tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from rml.errors import UserError, unknown
from rml.models.bert import Bert
from rml.models.layers import module_options
from rml.models.pretrained.tensors import Entry, Layout, Tensor

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
    raise UserError(f"a {type(module).__name__} has no checkpoint format; expected a Bert")


def module_of(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Bert:
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
    return _bert(config, file, options)


def tensors_of(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Brings names of tensors into the layout's form.

    BERT with a task's head on it names the encoder's tensors "bert.", the rest being the head; its
    first checkpoints call a norm's scale and offset gamma and beta.

    Args:
      config: The Hugging Face config.
      tensors: Tensors by their names in the files.

    Returns:
      Tensors by the layout's names, and the names of those that may be there without use.
    """
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
        found[name] = tensor
    return found, BERT_UNUSED


def config_of(module: nn.Module) -> dict[str, Any]:
    """The Hugging Face config that describes this module, without what it does not determine."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    assert isinstance(module, Bert)
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": module.vocabulary,
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.heads,
        "intermediate_size": module.mlp,
        "max_position_embeddings": module.positions,
        "type_vocab_size": module.types,
        "hidden_act": names[module.activation],
        "layer_norm_eps": module.epsilon,
        "position_embedding_type": "absolute",
        "torch_dtype": str(jnp.dtype(module.param_dtype)),
    }


def _bert(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Bert:
    _only(config, file, "position_embedding_type", "absolute")
    _only(config, file, "is_decoder", False)
    found = {
        "vocabulary": _need(config, file, "vocab_size"),
        "width": _need(config, file, "hidden_size"),
        "depth": _need(config, file, "num_hidden_layers"),
        "heads": _need(config, file, "num_attention_heads"),
        "mlp": _need(config, file, "intermediate_size"),
        "positions": config.get("max_position_embeddings", 512),
        "types": config.get("type_vocab_size", 2),
        "activation": _activation(config.get("hidden_act", "gelu")),
        "epsilon": config.get("layer_norm_eps", 1e-12),
    }
    return Bert(**{**found, **module_options("bert", Bert, options)})


def _need(config: Mapping[str, Any], file: Path, key: str) -> Any:
    if key not in config:
        raise UserError(f"there is no {key!r} in {file}")
    return config[key]


def _only(config: Mapping[str, Any], file: Path, key: str, expected: object) -> None:
    found = config.get(key, expected)
    if found != expected:
        raise UserError(f"{key} is {found!r} in {file}; only {expected!r} is implemented")


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
