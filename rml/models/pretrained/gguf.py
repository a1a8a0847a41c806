"""GGUF files of LLaMA and Qwen2: weights, config and tokenizer in one file."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rml.errors import UserError, unknown
from rml.models.pretrained.configs import count, need, only, positive
from rml.models.pretrained.extra import require
from rml.models.pretrained.gguf_tokenizer import read_tokenizer
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
# By `general.architecture`: what Hugging Face calls the model, and whether a head's rows stand as
# pairs (i, i + k/2) side by side where ours are two halves.
ARCHITECTURES = {"llama": ("LlamaForCausalLM", True), "qwen2": ("Qwen2ForCausalLM", False)}
# Poolings by number, the first for none; 4 is a reranker's score, which is not implemented.
POOLINGS = (None, "mean", "cls", "last")
FACTORS = "rope_freqs.weight"
SCALINGS = ("none", "linear", "yarn")
# Numbers of a scaling that are not implemented, and their values that change nothing.
UNCHANGED = {
    "attn_factor": (1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_ext_factor": (1.0, -1.0),  # llama.cpp writes -1 where nothing was said
    "yarn_log_multiplier": (0.0,),
}


class Gguf:
    """An open GGUF file.

    Attributes:
      file: The file.
      fields: Its metadata.
      architecture: A key of `ARCHITECTURES`.
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
            self._reader = _whole(self._gguf.GGUFReader)(str(file))
            self.fields = {name: f.contents() for name, f in self._reader.fields.items()}
        except (ValueError, IndexError, KeyError, OverflowError, RecursionError) as error:
            raise UserError(f"{file} cannot be read as GGUF: {error}") from None
        self.architecture = str(need(self.fields, file, "general.architecture"))
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"{file} holds the architecture {self.architecture!r}; "
                f"expected one of: {', '.join(ARCHITECTURES)}"
            )

    def config(self) -> dict[str, Any]:
        """Reads the model's config in Hugging Face's names.

        Raises:
          UserError: The metadata lack something, or ask for what is not implemented.
        """
        only(self.fields, self.file, f"{self.architecture}.attention.causal", True)
        heads, width = self._count("attention.head_count"), self._count("embedding_length")
        head_width = self._count("attention.key_length", width // heads)
        turned = self._count("rope.dimension_count", head_width)
        if turned != head_width:
            raise UserError(
                f"{self.file} rotates {turned} of {head_width} components of a head; "
                "only all of them is implemented"
            )
        names = {tensor.name for tensor in self._reader.tensors}
        config = {
            "architectures": [ARCHITECTURES[self.architecture][0]],
            "model_type": self.architecture,
            "vocab_size": len(need(self.fields, self.file, "tokenizer.ggml.tokens")),
            "hidden_size": width,
            "num_hidden_layers": self._count("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._count("attention.head_count_kv", heads),
            "head_dim": head_width,
            "intermediate_size": self._count("feed_forward_length"),
            "max_position_embeddings": self._count("context_length"),
            "hidden_act": "silu",
            # Stored in single precision, as which it is not the number that was meant.
            "rms_norm_eps": _short(self._number("attention.layer_norm_rms_epsilon")),
            "rope_theta": _short(self._number("rope.freq_base", 10_000.0)),
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_up.bias" in names,
            "tie_word_embeddings": "output.weight" not in names,
        }
        if (scaling := self._scaling()) is not None:
            config["rope_scaling"] = scaling
        for token in ("bos", "eos"):
            if (index := self.fields.get(f"tokenizer.ggml.{token}_token_id")) is not None:
                config[f"{token}_token_id"] = index
        return config

    def pooling(self) -> str | None:
        """Reads what makes one vector of a text, None where the file does not say.

        Raises:
          UserError: The pooling is not implemented.
        """
        key = f"{self.architecture}.pooling_type"
        if (said := self.fields.get(key, 0)) not in range(len(POOLINGS)):
            raise UserError(
                f"{key} is {said!r} in {self.file}; expected a number below {len(POOLINGS)}"
            )
        return POOLINGS[said]

    def tensors(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Lists the tensors by Hugging Face's names, quantised ones as what they stand for.

        Args:
          config: What `config` returned.

        Returns:
          The tensors, with names in the file where Hugging Face has none.
        """
        pairs = ARCHITECTURES[self.architecture][1]
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"} if pairs else {}
        found = {}
        for tensor in self._reader.tensors:
            if tensor.name == FACTORS:
                continue
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
        """Makes the `tokenizers.Tokenizer` that the metadata describe, see `gguf_tokenizer`.

        Raises:
          UserError: The tokenizer is of another kind, or cuts texts by a rule that is not ours.
        """
        return read_tokenizer(self.fields, self.file)

    def _scaling(self) -> dict[str, Any] | None:
        """How rotary frequencies are scaled, in Hugging Face's words.

        Raises:
          UserError: The scaling is unknown, or one of its numbers is not implemented.
        """
        for name, unchanged in UNCHANGED.items():
            key = f"{self.architecture}.rope.scaling.{name}"
            if (said := self.fields.get(key, unchanged[0])) not in unchanged:
                raise UserError(
                    f"{key} is {said!r} in {self.file}; only {unchanged[0]:g} is implemented"
                )
        keys = [f"rope.{key}" for key in ("scaling.factor", "scale_linear")]  # the second is older
        keys = [key for key in keys if self.fields.get(f"{self.architecture}.{key}")]
        factor = self._number(keys[0]) if keys else 1.0
        usual = "linear" if keys else "none"
        kind = str(self.fields.get(f"{self.architecture}.rope.scaling.type", usual))
        if kind not in SCALINGS:
            raise unknown(f"rope scaling in {self.file}", kind, SCALINGS)
        factors = [t for t in self._reader.tensors if t.name == FACTORS]
        if factors:  # one for each frequency, as Llama 3.1 has them
            divided = tuple(map(float, self._read(factors[0], 0)))
            return {
                "rope_type": "longrope",
                "short_factor": divided,
                "long_factor": divided,
                "attention_factor": 1.0,
                "original_max_position_embeddings": self._count("context_length"),
            }
        if kind == "none":
            return None
        found: dict[str, Any] = {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            found["original_max_position_embeddings"] = self._count(
                "rope.scaling.original_context_length", self._count("context_length")
            )
            for beta in ("beta_fast", "beta_slow"):
                key = f"rope.scaling.yarn_{beta}"
                if f"{self.architecture}.{key}" in self.fields:
                    found[beta] = _short(self._number(key))
        return found

    def _count(self, key: str, default: int | None = None) -> int:
        """A whole number of the architecture; needed where there is no default."""
        return count(self.fields, self.file, f"{self.architecture}.{key}", default)

    def _number(self, key: str, default: float | None = None) -> float:
        """A number above 0 of the architecture; needed where there is no default."""
        return positive(self.fields, self.file, f"{self.architecture}.{key}", default)

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


def _whole(reader: Any) -> Any:
    """A reader that stops where its file ends, however long an array claims to be."""

    class Whole(reader):
        data: np.ndarray

        def _get(self, offset: int, dtype: Any, count: Any = 1, **order: Any) -> np.ndarray:
            # A slice of a memory map is one again, which takes most of the time of reading fields.
            self.data = self.data.view(np.ndarray)
            found: np.ndarray = super()._get(offset, dtype, count, **order)
            if len(found) < count:
                raise ValueError(f"it ends before the {count} values at byte {offset}")
            return found

    return Whole


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
