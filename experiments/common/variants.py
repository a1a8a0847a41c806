"""Variants of a config, each of which has one other value: what an ablation compares."""

from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from rml.errors import UserError

BASE = "base"
Result = TypeVar("Result")


def variant(config: Any, name: str) -> ConfigDict:
    """The config of a variant that `config.variants` names, or a copy of the base itself.

    Raises:
      UserError: The change is no `key=value` with a key of the config and a value of its type.
    """
    changed = ConfigDict(config.to_dict())
    if name == BASE:
        return changed
    key, _, text = config.variants[name].partition("=")
    try:
        kind = config_path.get_type(key, changed)
        config_path.set_value(key, changed, kind(text))
    except (AttributeError, KeyError):
        expected = "key=value with a key of the config"
    except (TypeError, ValueError):
        expected = f"a value of type {kind.__name__}"
    else:
        return changed
    raise UserError(f"variants.{name} is {config.variants[name]!r}, expected {expected}")


def by_value(
    configs: Mapping[str, Any], results: Mapping[str, Result], key: str
) -> dict[float, Result]:
    """Results by a number of the config, rising: that of the base, and those it was changed to."""
    values = {name: config_path.get_value(key, one) for name, one in configs.items()}
    names = [name for name, value in values.items() if name == BASE or value != values[BASE]]
    return {float(values[name]): results[name] for name in sorted(names, key=values.__getitem__)}
