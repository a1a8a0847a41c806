"""GGUF files of the LLaMA architecture: weights, config and tokenizer in one file."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rml.errors import UserError, unknown
from rml.models.pretrained.extra import require
from rml.models.pretrained.tensors import Tensor

# GGUF's names of tensors by Hugging Face's.
OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# How texts are cut before byte pairs are merged, by `tokenizer.ggml.pre`: whether every digit
# stands alone. What follows is GPT-2's own rule.
SINGLE_DIGITS = {"gpt-2": False, "smollm": True}
CONTROL, USER_DEFINED = 3, 4  # of `tokenizer.ggml.token_type`


class Gguf:
    """An open GGUF file.

    Attributes:
      file: The file.
      fields: Its metadata.
    """

    def __init__(self, file: Path):
        """Opens a file.

        Raises:
          UserError: The file is missing, damaged, or of another architecture.
        """
        self._gguf = require("gguf")
        self.file = file
        if not file.is_file():
            raise UserError(f"there is no file {file}")
        try:
            self._reader = self._gguf.GGUFReader(str(file))
            self.fields = {name: f.contents() for name, f in self._reader.fields.items()}
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise UserError(f"{file} cannot be read as GGUF: {error}") from None
        if self._need("general.architecture") != "llama":
            raise UserError(
                f"{file} holds the architecture {self._need('general.architecture')!r}, "
                "expected 'llama'"
            )

    def config(self) -> dict[str, Any]:
        """The model's config in Hugging Face's names.

        Raises:
          UserError: The metadata lack something, or ask for what is not implemented.
        """
        heads = self._need("llama.attention.head_count")
        width = self._need("llama.embedding_length")
        get = self.fields.get
        head_width = get("llama.attention.key_length", width // heads)
        turned = get("llama.rope.dimension_count", head_width)
        if turned != head_width:
            raise UserError(
                f"{self.file} rotates {turned} of {head_width} components of a head; "
                "only all of them is implemented"
            )
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(self._need("tokenizer.ggml.tokens")),
            "hidden_size": width,
            "num_hidden_layers": self._need("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("llama.attention.head_count_kv", heads),
            "head_dim": head_width,
            "intermediate_size": self._need("llama.feed_forward_length"),
            "max_position_embeddings": self._need("llama.context_length"),
            "hidden_act": "silu",
            # Stored in single precision, as which it is not the number that was meant.
            "rms_norm_eps": _short(self._need("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": _short(get("llama.rope.freq_base", 10_000.0)),
            "attention_bias": any("attn_q.bias" in t.name for t in self._reader.tensors),
            "mlp_bias": any("ffn_up.bias" in t.name for t in self._reader.tensors),
            "tie_word_embeddings": all(t.name != "output.weight" for t in self._reader.tensors),
        }
        kind = get("llama.rope.scaling.type", "none")
        if kind not in ("none", "linear"):
            raise unknown(f"rope scaling in {self.file}", kind, ("none", "linear"))
        if kind == "linear":
            factor = self._need("llama.rope.scaling.factor")
            config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
        for token in ("bos", "eos"):
            if (index := get(f"tokenizer.ggml.{token}_token_id")) is not None:
                config[f"{token}_token_id"] = index
        return config

    def tensors(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors by Hugging Face's names, quantised ones as what they stand for.

        Args:
          config: What `config` returned.

        Returns:
          The tensors, with names in the file where Hugging Face has none.
        """
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        found = {}
        for tensor in self._reader.tensors:
            part = tensor.name.split(".")[-2:][0]
            found[_hf_name(tensor.name)] = Tensor(
                tensor.name,
                self.file,
                tuple(int(n) for n in reversed(tensor.shape)),
                self._dtype(tensor.tensor_type),
                functools.partial(self._read, tensor, config[heads[part]] if part in heads else 0),
            )
        return found

    def tokenizer(self) -> Any:
        """The byte-level BPE `tokenizers.Tokenizer` that the metadata describe.

        Raises:
          UserError: The tokenizer is of another kind, or cuts texts by a rule that is not ours.
        """
        tokenizers = require("tokenizers")
        model = self._need("tokenizer.ggml.model")
        if model != "gpt2":
            raise UserError(
                f"{self.file} has a tokenizer of kind {model!r}; only 'gpt2' (byte-level byte "
                "pairs) is implemented"
            )
        pre = self._need("tokenizer.ggml.pre")
        if pre not in SINGLE_DIGITS:
            raise unknown(f"tokenizer.ggml.pre in {self.file}", pre, SINGLE_DIGITS)
        tokens = self._need("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ")) for pair in self._need("tokenizer.ggml.merges")]
        made = tokenizers.Tokenizer(
            tokenizers.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
        )
        spaced = bool(self.fields.get("tokenizer.ggml.add_space_prefix", False))
        cut = tokenizers.pre_tokenizers
        steps = [cut.Digits(individual_digits=True)] if SINGLE_DIGITS[pre] else []
        made.pre_tokenizer = cut.Sequence([*steps, cut.ByteLevel(add_prefix_space=spaced)])
        made.decoder = tokenizers.decoders.ByteLevel()
        kinds = self.fields.get("tokenizer.ggml.token_type", [])
        special = [token for token, kind in zip(tokens, kinds, strict=False) if kind == CONTROL]
        added = [token for token, kind in zip(tokens, kinds, strict=False) if kind == USER_DEFINED]
        made.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in special])
        made.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in added])
        if self.fields.get("tokenizer.ggml.add_bos_token", False):
            first = tokens[self._need("tokenizer.ggml.bos_token_id")]
            made.post_processor = tokenizers.processors.TemplateProcessing(
                single=f"{first} $A",
                pair=f"{first} $A $B",
                special_tokens=[(first, tokens.index(first))],
            )
        return made

    def _need(self, key: str) -> Any:
        if key not in self.fields:
            raise UserError(f"there is no {key!r} in {self.file}")
        return self.fields[key]

    def _dtype(self, kind: Any) -> str:
        """What reading gives: a quantised type becomes float32."""
        quantised = hasattr(self._gguf.quants, kind.name)
        return "F32" if quantised else kind.name

    def _read(self, tensor: Any, heads: int) -> np.ndarray:
        value = tensor.data
        if value.dtype.kind != "f":
            value = self._gguf.quants.dequantize(value, tensor.tensor_type)
        if not heads:
            return value
        # A head's rows stand as pairs (i, i + k/2) side by side; ours are two halves.
        pairs = value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:])
        return pairs.swapaxes(1, 2).reshape(value.shape)


def _hf_name(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    outer = {theirs: ours for ours, theirs in OUTER.items()}
    if stem in outer:
        return f"{outer[stem]}.{ending}"
    layer = {theirs: ours for ours, theirs in LAYER.items()}
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in layer:
        return f"model.layers.{parts[1]}.{layer[parts[2]]}.{ending}"
    return name


def _short(value: float) -> float:
    """The shortest decimal that single precision rounds to this value."""
    return float(str(np.float32(value)))
