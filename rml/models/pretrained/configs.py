"""What the readers of configs and of state dictionaries share."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rml.errors import UserError, unknown
from rml.models import layers
from rml.models.pretrained.tensors import Tensor

# Hugging Face's names of nonlinearities; the first of two that mean one is written back.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


# Nonlinearities with a number, which none of Hugging Face's has; `NUMBER` is the number's key, as
# in the configs of OpenBMB's models, some of which are trained for sparse activations.
NUMBERED = ("fatrelu", "shifted_relu")
NUMBER = "hidden_act_param"
# What OpenCLIP's configs say of a tower and no tensor shows, with the only value implemented.
TOWERS: Mapping[str, Mapping[str, Any]] = {
    "vision": {"pool_type": "tok", "act_kwargs": None, "norm_kwargs": None},
    "text": {
        "pool_type": "argmax",
        "no_causal_mask": False,
        "act_kwargs": None,
        "norm_kwargs": None,
    },
}

# Arguments of timm's models that are read, that tensors show, or that only training knows.
TIMM_ARGUMENTS = (
    *("global_pool", "num_heads"),
    *("num_classes", "in_chans", "img_size", "patch_size", "embed_dim", "depth", "mlp_ratio"),
    *("layers", "class_token", "reg_tokens", "init_values", "pre_norm", "qkv_bias"),
    *("drop_rate", "drop_path_rate", "drop_block_rate", "pos_drop_rate", "patch_drop_rate"),
    *("proj_drop_rate", "attn_drop_rate", "zero_init_last", "weight_init", "fix_init"),
    *("dynamic_img_size", "dynamic_img_pad"),
)


def need(config: Mapping[str, Any], file: Path, key: str) -> Any:
    """Reads a value of the config.

    Raises:
      UserError: There is none.
    """
    if key not in config:
        raise UserError(f"there is no {key!r} in {file}")
    return config[key]


def count(config: Mapping[str, Any], file: Path, key: str, default: int | None = None) -> int:
    """Reads a whole number of at least 1 of the config; needed where there is no default.

    Raises:
      UserError: There is none, or it is something else.
    """
    value = need(config, file, key) if default is None else config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key} is {value!r} in {file}; expected a whole number of at least 1")
    return value


def count_or_none(config: Mapping[str, Any], file: Path, key: str) -> int | None:
    """Reads a whole number of at least 1 where the config has it and it is not null.

    Raises:
      UserError: It is something else.
    """
    return None if config.get(key) is None else count(config, file, key)


def positive(
    config: Mapping[str, Any], file: Path, key: str, default: float | None = None
) -> float:
    """Reads a finite number above 0 of the config; needed where there is no default.

    Raises:
      UserError: There is none, or it is something else.
    """
    value = need(config, file, key) if default is None else config.get(key, default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise UserError(f"{key} is {value!r} in {file}; expected a finite number above 0")
    return value


def channels(config: Mapping[str, Any], file: Path, key: str) -> tuple[float, ...]:
    """Reads three finite numbers of the config, one a channel of an image.

    Raises:
      UserError: There are none, or they are something else.
    """
    value = need(config, file, key)
    found = tuple(value) if isinstance(value, list | tuple) else ()
    whole = all(isinstance(one, int | float) and not isinstance(one, bool) for one in found)
    if len(found) != 3 or not whole or not all(map(math.isfinite, found)):
        raise UserError(f"{key} is {value!r} in {file}; expected three finite numbers")
    return tuple(map(float, found))


def check_heads(module: Any, file: Path) -> None:
    """Raises UserError unless heads divide the width, and those of keys the heads, if it has any.

    Args:
      module: The module.
      file: Where its sizes were read, for the message.
    """
    heads = getattr(module, "heads", None)
    if heads is None:
        return
    if getattr(module, "head_width", None) is None and module.width % heads:
        raise UserError(f"heads are {heads} in {file}; expected a divisor of width {module.width}")
    kv_heads = getattr(module, "kv_heads", None) or heads
    if heads % kv_heads:
        raise UserError(f"heads of keys are {kv_heads} in {file}; expected a divisor of {heads}")


def part(config: Mapping[str, Any], file: Path, key: str) -> Mapping[str, Any]:
    """Reads a part of the config, empty where it is missing or null.

    Raises:
      UserError: It is no object.
    """
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is {value!r} in {file}; expected an object")
    return value


def architectures(config: Mapping[str, Any], file: Path) -> list[Any]:
    """Reads what the config calls its architecture: the model first, the type last.

    Raises:
      UserError: The models are no list.
    """
    found = config.get("architectures") or []
    if not isinstance(found, list):
        raise UserError(f"architectures is {found!r} in {file}; expected a list of names")
    return [name for name in (*found, config.get("model_type")) if name]


def only(config: Mapping[str, Any], file: Path, key: str, expected: object) -> None:
    """Raises UserError where the config has another value than the only one that is implemented."""
    found = config.get(key, expected)
    if found != expected:
        raise UserError(f"{key} is {found!r} in {file}; only {expected!r} is implemented")


def activation(name: Any, file: Path) -> str:
    """Finds our name of Hugging Face's nonlinearity.

    Raises:
      UserError: We do not have it.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise unknown(f"activation in {file}", str(name), ACTIVATIONS)
    return ACTIVATIONS[name]


def numbered_activation(config: Mapping[str, Any], file: Path, default: str) -> str:
    """Finds our name of a config's nonlinearity, which may be one with a number.

    Raises:
      UserError: We do not have it, or its number is missing or below 0.
    """
    name = config.get("hidden_act", default)
    if name not in NUMBERED:
        return activation(name, file)
    number = need(config, file, NUMBER)
    if isinstance(number, bool) or not isinstance(number, int | float) or not number >= 0:
        raise UserError(f"{NUMBER} is {number!r} in {file}; expected a number of at least 0")
    return f"{name}:{number}"


def activation_entries(name: str, *, numbered: bool) -> dict[str, Any]:
    """Returns what a config says of our nonlinearity.

    Args:
      name: Our name, with its number where it has one.
      numbered: Whether it may be one of `NUMBERED`.

    Raises:
      ValueError: Configs have no name for it, or its number is none.
    """
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    kind, _, number = name.partition(":")
    if numbered and kind in NUMBERED:
        layers.activation(name)  # refuses what is no number
        return {"hidden_act": kind, NUMBER: int(number) if number.isdigit() else float(number)}
    if name not in names:
        known = [*names, *(f"{own}:NUMBER" for own in NUMBERED if numbered)]
        raise UserError(
            f"activation {name!r} cannot be saved; expected one of: {', '.join(sorted(known))}"
        )
    return {"hidden_act": names[name]}


def sizes(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Reads the sizes that text models have, by the names of their modules' attributes."""
    return {
        "vocabulary": count(config, file, "vocab_size"),
        "width": count(config, file, "hidden_size"),
        "depth": count(config, file, "num_hidden_layers"),
        "heads": count(config, file, "num_attention_heads"),
        "mlp": count(config, file, "intermediate_size"),
    }


def check_timm(config: Mapping[str, Any], file: Path, pooling: str) -> None:
    """Checks that a config asks for nothing that no tensor shows, where it is timm's.

    Args:
      config: The config.
      file: Where it was read, for messages.
      pooling: The only `global_pool` that is implemented.

    Raises:
      UserError: The pooling is another, or an argument of the model is none of `TIMM_ARGUMENTS`.
    """
    if "architecture" not in config:
        return
    arguments = part(config, file, "model_args")
    for where in (config, part(config, file, "pretrained_cfg"), arguments):
        if where.get("global_pool") is not None:
            only(where, file, "global_pool", pooling)
    for key in arguments:
        if key not in TIMM_ARGUMENTS:
            raise UserError(
                f"model_args has {key!r} in {file}; expected some of: {', '.join(TIMM_ARGUMENTS)}"
            )


def open_clip_config(config: Mapping[str, Any], file: Path, tower: str) -> dict[str, Any]:
    """Returns what OpenCLIP's config says and shapes do not, in the others' names.

    Args:
      config: The config.
      file: Where it was read, for messages.
      tower: Tower that is wanted, a key of `TOWERS`.

    Raises:
      UserError: A number is no whole number, a part is no object, or the tower is not as
        implemented.
    """
    model = part(config, file, "model_cfg")
    image, text = part(model, file, "vision_cfg"), part(model, file, "text_cfg")
    said = {"vision": image, "text": text}[tower]
    for key, expected in TOWERS[tower].items():
        only({key: said.get(key) or expected}, file, key, expected)
    act = "quick_gelu" if model.get("quick_gelu") else "gelu"
    heads = count(image, file, "width", 768) // count(image, file, "head_width", 64)
    return {
        "vision_config": {"num_attention_heads": heads, "hidden_act": act},
        "text_config": {"num_attention_heads": count(text, file, "heads", 8), "hidden_act": act},
        "pretrained_cfg": part(config, file, "preprocess_cfg"),
    }


def without(tensors: Mapping[str, Tensor], *beginnings: str) -> dict[str, Tensor]:
    """Selects the tensors whose names begin otherwise."""
    return {name: t for name, t in tensors.items() if not name.startswith(beginnings)}


def beneath(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Selects a part's tensors by their names in it; all tensors where none is of that part."""
    found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return found or dict(tensors)


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Renames the tensors, parts of their names replaced."""
    found = {}
    for name, tensor in tensors.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        found[name] = tensor
    return found


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Counts the layers whose tensors begin with `prefix`, "{}" standing for the layer."""
    before = prefix.partition("{}")[0]
    numbers = {n.removeprefix(before).split(".")[0] for n in tensors if n.startswith(before)}
    return len(numbers)


def shape_of(tensors: Mapping[str, Tensor], name: str, file: Path, axes: int) -> tuple[int, ...]:
    """Returns the shape of a tensor.

    Args:
      tensors: Tensors by name.
      name: The tensor.
      file: Where it was read, for messages.
      axes: Number of axes that it must have.

    Raises:
      UserError: There is no such tensor, or it has another number of axes.
    """
    if name not in tensors:
        raise UserError(f"there is no tensor {name!r} in {file}")
    shape = tensors[name].shape
    if len(shape) != axes:
        raise UserError(f"tensor {name!r} of {file} has shape {shape}, expected {axes} axes")
    return shape
