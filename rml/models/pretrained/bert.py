"""BERT, RoBERTa and DistilBERT, all of which become a `Bert`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rml.errors import UserError
from rml.models.bert import Bert
from rml.models.layers import module_options
from rml.models.pretrained.configs import (
    activation,
    beneath,
    count,
    need,
    only,
    positive,
    renamed,
    sizes,
    without,
)
from rml.models.pretrained.entries import affine, norm
from rml.models.pretrained.tensors import Entry, Layout, Tensor

LAYOUT = Layout(
    outer=(
        Entry("tokens/embedding", "embeddings.word_embeddings.weight", None),
        Entry("positions/embedding", "embeddings.position_embeddings.weight", None),
        Entry("types/embedding", "embeddings.token_type_embeddings.weight", None),
        *norm("norm", "embeddings.LayerNorm"),
    ),
    layer=(
        *affine("attention/query", "attention.self.query"),
        *affine("attention/key", "attention.self.key"),
        *affine("attention/value", "attention.self.value"),
        *affine("attention/out", "attention.output.dense", 2),
        *norm("norm1", "attention.output.LayerNorm"),
        *affine("mlp_in", "intermediate.dense"),
        *affine("mlp_out", "output.dense"),
        *norm("norm2", "output.LayerNorm"),
    ),
    prefix="encoder.layer.{}.",
)
# A checkpoint may carry a pooler and a buffer of positions; sentence encoders use neither.
UNUSED = ("embeddings.position_ids", "pooler.")
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
# DistilBERT's names of what BERT has.
DISTILLED = {
    "transformer.layer.": "encoder.layer.",
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}
# BERT's first checkpoints call a norm's scale and offset gamma and beta.
OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def bert(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Bert:
    """Builds the module of a BERT's config.

    Raises:
      UserError: A part of it is not implemented, or an attribute is not one of ours.
    """
    only(config, file, "position_embedding_type", "absolute")
    only(config, file, "is_decoder", False)
    found = {
        **sizes(config, file),
        "positions": count(config, file, "max_position_embeddings", 512),
        "types": count(config, file, "type_vocab_size", 2),
        "activation": activation(config.get("hidden_act", "gelu"), file),
        "epsilon": positive(config, file, "layer_norm_eps", 1e-12),
    }
    return Bert(**{**found, **module_options("bert", Bert, options)})


def roberta(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Bert:
    """Builds the module of a RoBERTa's config: its positions begin after that of padding.

    Raises:
      UserError: There is no position after that of padding, or as `bert`.
    """
    rows, padding = count(config, file, "max_position_embeddings", 512), config.get("pad_token_id")
    whole = isinstance(padding, int) and not isinstance(padding, bool)
    if padding is not None and not (whole and -1 <= padding < rows - 1):
        raise UserError(
            f"pad_token_id is {padding!r} in {file}; expected a whole number below {rows - 1}"
        )
    positions = rows - _first(config)
    return bert({**config, "max_position_embeddings": positions}, file, options)


def distilbert(config: Mapping[str, Any], file: Path, options: Mapping[str, Any]) -> Bert:
    """Builds the module of a DistilBERT's config: a BERT of one segment, whose vector is zero."""
    names = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    }
    renamed = {ours: need(config, file, theirs) for ours, theirs in names.items()}
    said = {
        **config,
        **renamed,
        "type_vocab_size": 1,
        "hidden_act": config.get("activation", "gelu"),
    }
    return bert(said, file, options)


def bert_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Selects the encoder's tensors by BERT's names; the rest is a task's head, if it has one."""
    return renamed(without(beneath(tensors, "bert."), *UNUSED), OLD)


def roberta_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Selects the encoder's tensors by BERT's names, without the positions that no token has."""
    found = without(beneath(tensors, "roberta."), *UNUSED)
    first = _first(config)
    if POSITIONS in found:
        count, *rest = found[POSITIONS].shape
        shape = (count - first, *rest)
        found[POSITIONS] = found[POSITIONS].changed(shape, lambda value: value[first:])
    return found


def distilbert_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Selects the encoder's tensors by BERT's names, and the vector of the one segment."""
    found = renamed(without(beneath(tensors, "distilbert."), *UNUSED), DISTILLED)
    if POSITIONS in found:
        shape = (1, *found[POSITIONS].shape[1:])
        none = found[POSITIONS].changed(shape, lambda _: np.zeros(shape, np.float32))
        found[TYPES] = none
    return found


def _first(config: Mapping[str, Any]) -> int:
    """RoBERTa's position of a text's first token."""
    padding = config.get("pad_token_id")
    return 2 if padding is None else padding + 1
