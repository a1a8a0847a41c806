"""Local directories in the format of Hugging Face and of sentence-transformers."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rml.errors import UserError, unknown
from rml.models.pretrained.configs import count_or_none, open_clip_config, part
from rml.models.pretrained.ends import find_ends, put_ends
from rml.models.pretrained.extra import require
from rml.models.pretrained.files import read_file
from rml.models.pretrained.tensors import Tensor

WEIGHTS = "model.safetensors"
PICKLED = "pytorch_model.bin"
TOKENIZER_CONFIG = "tokenizer_config.json"
# The last two are OpenCLIP's.
FILES = (WEIGHTS, PICKLED, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# sentence-transformers' names of poolings, and the older form's one flag each.
POOLINGS = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


# Names of the settings of sentence-transformers' first module, of which the first counts.
SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# What BERT's tokenizers take of the tokenizer's config, by its name in `BertNormalizer`.
BERT_TOKENIZERS = ("BertTokenizer", "DistilBertTokenizer")
NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


class Sentence(NamedTuple):
    """How sentence-transformers makes one vector of a text.

    Attributes:
      weights: The directory that holds the transformer.
      pooling: Pooling as in `rml.models.TextEncoder`, None where the directory does not say.
      normalize: Whether vectors have unit length.
      max_length: Longest text in tokens, None where the directory does not say.
      lowercase: Whether texts are lowercased before the tokenizer sees them.
    """

    weights: Path
    pooling: str | None
    normalize: bool
    max_length: int | None
    lowercase: bool


def read_json(file: Path, kind: type = dict) -> Any:
    """Reads a JSON file's content, an object or another `kind`.

    Raises:
      UserError: The file is missing, is no JSON, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no file {file}") from None
    except (ValueError, RecursionError) as error:  # JSON's errors, Unicode's and Python's limits
        raise UserError(f"{file} is no JSON: {error}") from None
    if not isinstance(found, kind):
        expected = "an object" if kind is dict else "a list"
        raise UserError(f"{file} holds {found!r:.80}; expected {expected}")
    return found


def read_json_or_empty(file: Path) -> dict[str, Any]:
    """Reads a JSON file's object, empty where there is no such file.

    Raises:
      UserError: The file is no JSON, or holds something else.
    """
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    return found


def read_config(directory: Path, tower: str = "text") -> dict[str, Any]:
    """Reads `config.json`, or else OpenCLIP's in its names; empty where there is neither.

    Args:
      directory: The directory.
      tower: Tower of an OpenCLIP that is wanted, "text" or "vision".

    Raises:
      UserError: The file is no JSON object, or OpenCLIP's is not as expected.
    """
    file, other = directory / "config.json", directory / "open_clip_config.json"
    if file.exists() or not other.exists():
        return read_json_or_empty(file)
    return open_clip_config(read_json(other), other, tower)


def read_sentence(directory: Path) -> Sentence:
    """Reads `modules.json` and what it names, if the directory has it.

    Raises:
      UserError: A module, a pooling or a prompt is not implemented, or a file is missing.
    """
    file = directory / "modules.json"
    if not file.exists():
        return Sentence(directory, None, False, None, False)
    modules = {}
    for module in read_json(file, list):
        try:
            modules[module["type"].rsplit(".", 1)[-1]] = directory / module["path"]
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{file} lists {module!r:.80}; expected a module with 'type' and 'path'"
            ) from None
    for kind in modules:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UserError(
                f"module {kind!r} in {file} is not implemented; "
                "expected Transformer, Pooling, Normalize"
            )
    _check_prompt(directory / "config_sentence_transformers.json")
    weights = modules.get("Transformer", directory)
    pooling = _pooling(modules["Pooling"] / "config.json") if "Pooling" in modules else None
    named = [weights / name for name in SETTINGS]
    options = next((file for file in named if file.exists()), named[0])
    found = read_json_or_empty(options)
    return Sentence(
        weights,
        pooling,
        "Normalize" in modules,
        count_or_none(found, options, "max_seq_length"),
        bool(found.get("do_lower_case")),
    )


def _check_prompt(file: Path) -> None:
    """Raises UserError where sentence-transformers puts a prompt before every text."""
    said = read_json_or_empty(file)
    name = said.get("default_prompt_name")
    if name is not None and part(said, file, "prompts").get(str(name)):
        raise UserError(
            f"default_prompt_name is {name!r} in {file}; expected null, as no prompt is put before "
            "texts"
        )


def _pooling(file: Path) -> str:
    config = read_json(file)
    said = config.get("pooling_mode")
    if said is None:
        said = [mode for flag, mode in FLAGS.items() if config.get(flag)]
    modes = [said] if isinstance(said, str) else said
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes):
        raise UserError(f"pooling_mode is {said!r} in {file}; expected a name")
    if len(modes) != 1:
        raise UserError(f"{file} names the poolings {modes}; expected one")
    if modes[0] not in POOLINGS:
        raise unknown(f"pooling in {file}", modes[0], POOLINGS)
    return POOLINGS[modes[0]]


def read_tokenizer(directory: Path, *, lowercase: bool = False) -> Any:
    """Reads the `tokenizers.Tokenizer` of `tokenizer.json`, its own padding and truncation off.

    What `tokenizer_config.json` says of tokens before and after a text (`add_bos_token`,
    `add_eos_token`) counts where the two disagree, as in LLaMA's tokenizer of transformers before
    version 5. Newer ones leave out the token whose state is, for example, e5-mistral's vector.
    What it says of letters and accents (`NORMALIZER`) counts likewise in a tokenizer of BERT's.
    What it leaves out stays as `tokenizer.json` has it, also where transformers takes a default
    of its own, such as lowercase letters without accents.

    Raises:
      UserError: A file is missing or cannot be read, a token that is to be added is none of the
        tokenizer's, a setting is no truth value, or the package is not installed.
    """
    tokenizers = require("tokenizers")
    file = directory / "tokenizer.json"
    if not file.exists():
        raise UserError(f"there is no file {file}")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"{file} is no tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    options = directory / TOKENIZER_CONFIG
    said = read_json_or_empty(options)
    _apply_ends(tokenizer, said, options)
    _apply_normalizer(tokenizer, said, options)
    if lowercase:
        steps = [tokenizers.normalizers.Lowercase(), tokenizer.normalizer]
        tokenizer.normalizer = tokenizers.normalizers.Sequence([s for s in steps if s is not None])
    return tokenizer


def _apply_normalizer(tokenizer: Any, said: Mapping[str, Any], file: Path) -> None:
    """Sets a BERT's normalizer to what the tokenizer's config says; what it omits stays."""
    normalizer = tokenizer.normalizer
    kind = str(said.get("tokenizer_class", BERT_TOKENIZERS[0])).removesuffix("Fast")
    if kind not in BERT_TOKENIZERS or type(normalizer).__name__ != "BertNormalizer":
        return
    for key, name in NORMALIZER.items():
        try:
            setattr(normalizer, name, said.get(key, getattr(normalizer, name)))
        except TypeError:
            raise UserError(f"{key} is {said[key]!r} in {file}; expected true or false") from None
    tokenizer.normalizer = normalizer


def _apply_ends(tokenizer: Any, said: Mapping[str, Any], file: Path) -> None:
    """Puts the tokens before and after each text that the tokenizer's config asks for."""
    now = find_ends(tokenizer)
    wanted = list(now)
    for place, kind in enumerate(("bos", "eos")):
        flag, token = said.get(f"add_{kind}_token"), said.get(f"{kind}_token")
        name = token.get("content") if isinstance(token, dict) else token
        index = None if name is None else tokenizer.token_to_id(str(name))
        if flag and index is None:
            raise UserError(
                f"add_{kind}_token is {flag!r} in {file}, whose {kind}_token is {name!r}; "
                "expected a token of tokenizer.json"
            )
        if flag is not None and index is not None and bool(flag) != (index in now[place]):
            wanted[place] = [index] if flag else [other for other in now[place] if other != index]
    if wanted != list(now):
        put_ends(tokenizer, *wanted)


def read_limit(directory: Path, positions: int) -> int:
    """Reads the longest text in tokens: `positions`, or less if `tokenizer_config.json` says so.

    Raises:
      UserError: It says something else than a number of at least 1, of any size.
    """
    file = directory / TOKENIZER_CONFIG
    limit = read_json_or_empty(file).get("model_max_length")
    if limit is None:
        return positions
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 1:
        raise UserError(f"model_max_length is {limit!r} in {file}; expected a number of at least 1")
    return int(min(positions, limit))


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Reads the tensors of the first of `FILES` that is there, or of its index's files.

    Raises:
      UserError: There are no such files, one is damaged, or index and files disagree.
    """
    for whole in FILES:
        index = directory / f"{whole}.index.json"
        if (directory / whole).exists():
            return read_file(directory / whole)
        if index.exists():
            return _read_parts(index)
    raise UserError(f"there is no file {directory / WEIGHTS}, nor {', '.join(FILES[1:])}")


def _read_parts(index: Path) -> dict[str, Tensor]:
    named = read_json(index).get("weight_map", {})
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise UserError(f"weight_map is {named!r:.80} in {index}; expected files by tensor")
    shards = sorted(set(named.values()))
    for shard in shards:
        path = PurePosixPath(shard)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"weight_map names {shard!r} in {index}; expected a file below it")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= read_file(index.parent / shard)
    for name, shard in named.items():
        if name not in tensors or tensors[name].file != index.parent / shard:
            raise UserError(f"{index} names tensor {name!r} in {shard}, which does not have it")
    return tensors


def _padding(config: Mapping[str, Any], tokenizer: Any) -> str | None:
    """The token that fills up texts: the config's, a usual one, or else that of the end."""
    end = config.get("eos_token_id")
    said = (config.get("pad_token_id"), end[0] if isinstance(end, list) and end else end)
    own, last = (tokenizer.id_to_token(i) if isinstance(i, int) and i >= 0 else None for i in said)
    usual = (token for token in ("[PAD]", "<pad>") if tokenizer.token_to_id(token) is not None)
    return own or next(usual, last)


def write(
    directory: Path,
    tensors: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: Any,
    sentence: Sentence,
) -> None:
    """Writes a directory that Hugging Face and sentence-transformers read.

    Args:
      directory: The directory, new or empty.
      tensors: Tensors by Hugging Face's names.
      config: The model's config.
      tokenizer: The tokenizer.
      sentence: What makes one vector of a text.

    Raises:
      UserError: The directory holds something, or is a file.
    """
    save_file = require("safetensors.numpy").save_file
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists and is not an empty directory")
    directory.mkdir(parents=True, exist_ok=True)
    width = config["hidden_size"]
    mode = {ours: theirs for theirs, ours in POOLINGS.items()}[sentence.pooling or "mean"]
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    files = {
        "config.json": config,
        # Without it transformers builds another tokenizer, by the model's type.
        TOKENIZER_CONFIG: {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": sentence.max_length,
            "pad_token": _padding(config, tokenizer),
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(modules[: 2 + sentence.normalize])
        ],
        "sentence_bert_config.json": {
            "max_seq_length": sentence.max_length,
            "do_lower_case": sentence.lowercase,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            **{flag: mode == theirs for flag, theirs in FLAGS.items()},
        },
    }
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(directory / "tokenizer.json"))
    save_file(dict(tensors), str(directory / WEIGHTS), metadata={"format": "pt"})
