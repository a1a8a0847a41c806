"""The architectures of texts that weights come in: config to module, and names of tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from rml.errors import UserError
from rml.models.bert import Bert
from rml.models.llama import Llama
from rml.models.pretrained import bert, clip, llama, modernbert
from rml.models.pretrained.configs import activation_entries, architectures, check_heads
from rml.models.pretrained.tensors import Layout, Tensor

Config = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


class Found(NamedTuple):
    """A text model, and the tensors of its parameters.

    Attributes:
      module: The model.
      layout: Where the tensors belong.
      tensors: The tensors by the layout's names.
      pooling: What serves where nothing else is said.
    """

    module: Any
    layout: Layout
    tensors: Tensors
    pooling: str


class Family(NamedTuple):
    """An architecture.

    Attributes:
      title: What messages call it.
      names: What a config calls it: the model, those with a head on it, or the type alone.
      read: Finds module and layout from config, tensors, the config's file and options.
    """

    title: str
    names: tuple[str, ...]
    read: Callable[[Config, Tensors, Path, Config], Found]


def find_text(config: Config, tensors: Tensors, file: Path, options: Config) -> Found:
    """Finds the model that a config and tensors are of.

    Args:
      config: Hugging Face's config.
      tensors: The tensors by their names in the files.
      file: The config's file, for messages.
      options: Attributes of the module that replace what the config says.

    Raises:
      UserError: The architecture is none of `FAMILIES`, or a part of it is not implemented.
    """
    named = next(iter(architectures(config, file)), None)
    if named is None and clip.OPENAI.text_positions in tensors:
        return _checked(_clip(clip.OPENAI)(config, tensors, file, options), file)
    for family in FAMILIES:
        if named in family.names:
            return _checked(family.read(config, tensors, file, options), file)
    if not config:
        raise UserError(f"there is no file {file}")
    titles = ", ".join(family.title for family in FAMILIES)
    raise UserError(f"{file} names the architecture {named!r}; expected one of: {titles}")


def _checked(found: Found, file: Path) -> Found:
    check_heads(found.module, file)
    return found


def layout_of(module: nn.Module) -> Layout:
    """Lists where tensors belong that are written.

    Raises:
      UserError: The module is no architecture that is written.
    """
    if isinstance(module, Bert):
        return bert.LAYOUT
    if isinstance(module, Llama):
        return llama.llama_layout(module)
    raise UserError(f"a {type(module).__name__} is not written; expected Bert or Llama")


def config_of(module: nn.Module) -> dict[str, Any]:
    """Makes Hugging Face's config of a `Bert` or `Llama`, as far as the module determines it.

    Raises:
      UserError: Configs have no name for the module's nonlinearity, biases or windows.
    """
    assert isinstance(module, Bert | Llama)
    shared = {
        "vocab_size": module.vocabulary,
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.heads,
        "intermediate_size": module.mlp,
        "max_position_embeddings": module.positions,
        **activation_entries(module.activation, numbered=isinstance(module, Llama)),
        "torch_dtype": str(jnp.dtype(module.param_dtype)),
    }
    if isinstance(module, Llama):
        return {**shared, **llama.llama_config(module)}
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        **shared,
        "type_vocab_size": module.types,
        "layer_norm_eps": module.epsilon,
        "position_embedding_type": "absolute",
    }


def _bert(
    build: Callable[[Config, Path, Config], Bert],
    rename: Callable[[Config, Tensors], dict[str, Tensor]],
) -> Callable[[Config, Tensors, Path, Config], Found]:
    def read(config: Config, tensors: Tensors, file: Path, options: Config) -> Found:
        return Found(build(config, file, options), bert.LAYOUT, rename(config, tensors), "mean")

    return read


def _llama(
    build: Callable[[Config, Path, Config], Llama],
) -> Callable[[Config, Tensors, Path, Config], Found]:
    def read(config: Config, tensors: Tensors, file: Path, options: Config) -> Found:
        if llama.BARE in tensors:  # no head, which the table stands in for
            tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
            config = {**config, "tie_word_embeddings": True}
        module = build(config, file, options)
        found = llama.llama_tensors(module, tensors)
        # A decoder's last token has seen the whole text.
        return Found(module, llama.llama_layout(module), found, "last")

    return read


def _modernbert(config: Config, tensors: Tensors, file: Path, options: Config) -> Found:
    module = modernbert.modernbert(config, file, options)
    found = modernbert.modernbert_tensors(module, tensors)
    return Found(module, modernbert.modernbert_layout(module), found, "mean")


def _clip(names: clip.Names) -> Callable[[Config, Tensors, Path, Config], Found]:
    def read(config: Config, tensors: Tensors, file: Path, options: Config) -> Found:
        found = clip.text_tensors(tensors, names)
        module = clip.text_tower(found, names, config, file, options)
        return Found(module, clip.text_layout(names), found, "last")

    return read


def _headed(name: str, *more: str) -> tuple[str, ...]:
    """Names of an encoder: alone, with the heads that Hugging Face knows, and its type."""
    tasks = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
    heads = (f"{name}For{task}" for task in (*tasks, "MultipleChoice", *more))
    return (f"{name}Model", *heads, name.lower())


FAMILIES = (
    Family(
        "BERT",
        _headed("Bert", "PreTraining", "NextSentencePrediction"),
        _bert(bert.bert, bert.bert_tensors),
    ),
    Family(
        "RoBERTa",
        (*_headed("Roberta"), *_headed("XLMRoberta"), "xlm-roberta"),
        _bert(bert.roberta, bert.roberta_tensors),
    ),
    Family("DistilBERT", _headed("DistilBert"), _bert(bert.distilbert, bert.distilbert_tensors)),
    Family("ModernBERT", _headed("ModernBert"), _modernbert),
    Family("LLaMA", ("LlamaForCausalLM", "LlamaModel", "llama"), _llama(llama.llama)),
    Family("Mistral", ("MistralForCausalLM", "MistralModel", "mistral"), _llama(llama.mistral)),
    Family("Qwen2", ("Qwen2ForCausalLM", "Qwen2Model", "qwen2"), _llama(llama.qwen2)),
    Family("CLIP", ("CLIPModel", "CLIPTextModelWithProjection", "clip"), _clip(clip.HUGGING_FACE)),
)
