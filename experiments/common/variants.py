"""Variants of a config, each of which has another value or some: what an ablation compares."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from experiments.ranges import CHOICES, RANGES, check_ranges
from experiments.registry import find_experiment
from rml.errors import UserError, unknown

BASE = "base"
AGAIN = "again"
"""The base with another seed: how far the base is above it is what seeds alone change."""
OTHER_SEEDS = 100_000
"""How far the seeds of `AGAIN` are from a run's own."""
Result = TypeVar("Result")


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"


def _read(text: str, present: Any) -> Any:
    """A value of the type of the present one; an empty text is a tuple of none.

    Parts of a tuple, or of a list, which a tuple is in a run's config of JSON, are of one type.

    Raises:
      ValueError: The text is no value of that type, or there is none that a text can give.
    """
    kind = type(present)
    if kind not in (tuple, list):
        return PARSERS.get(kind, kind)(text)
    kinds = {type(part) for part in present} or {str}
    if len(kinds) > 1 or not kinds <= {str, int, float, bool}:
        raise ValueError(text)
    own = kinds.pop()
    return kind(PARSERS.get(own, own)(part) for part in filter(None, text.split(",")))


PARSERS: dict[type, Callable[[str], Any]] = {bool: _truth}
"""How a text is read as a value of types that do not read it themselves."""


def check_names(config: Any, taken: Iterable[str]) -> None:
    """Raises `UserError` for a variant that is named as the comparison names something else."""
    for name in taken:
        if name in config.variants:
            raise UserError(
                f"variants.{name} has a name that the comparison itself uses; expected another"
            )


def variant(config: Any, name: str) -> ConfigDict:
    """The config of a variant that `config.variants` names, of `AGAIN`, or a copy of the base."""
    if name == AGAIN:
        other = ConfigDict(config.to_dict())
        other.seed += OTHER_SEEDS
        return other
    changes = config.variants[name] if name != BASE else ""
    return with_changes(config, changes, named=f"variants.{name}")


def written(name: str) -> str:
    """A variant's name as figures show it: `momentum_0_9` is momentum 0.9."""
    if name == AGAIN:
        return "base, other seeds"
    return re.sub(r"(?<=\d)_(?=\d)", ".", name).replace("_", " ")


def in_order(names: Iterable[str]) -> list[str]:
    """Names of variants as figures list them: the base, then by letters and rising numbers."""

    def key(name: str) -> tuple[bool, list[str | float]]:
        parts = re.split(r"(\d+(?:\.\d+)?)", written(name))
        return name != BASE, [float(part) if i % 2 else part for i, part in enumerate(parts)]

    return sorted(names, key=key)


def with_changes(config: Any, changes: str, *, named: str) -> ConfigDict:
    """A copy of a config with other values.

    Args:
      config: A config.
      changes: `key=value` with dotted keys of the config, spaces between them. A key alone is
        left out, with all that is in it.
      named: Key of the config that holds the changes, for messages.

    Raises:
      UserError: A change is no `key=value` with a key of the config and a value of its type, or a
        value is one that the config itself may not have.
    """
    changed = ConfigDict(config.to_dict())
    for change in changes.split():
        key, equals, text = change.partition("=")
        try:
            kind = config_path.get_type(key, changed)
            if equals:
                present = config_path.get_value(key, changed)
                config_path.set_value(key, changed, _read(text, present))
            else:
                _leave_out(key, changed)
        except (AttributeError, KeyError):
            expected = "key=value with a key of the config"
        except (TypeError, ValueError):
            expected = (
                f"a value of type {kind.__name__} like {config_path.get_value(key, config)!r}"
            )
        else:
            continue
        raise UserError(f"{named} is {changes!r}, expected {expected}")
    try:
        _check(changed, [change.partition("=")[0] for change in changes.split() if "=" in change])
    except UserError as error:
        raise UserError(f"{named} is {changes!r}: {error}") from None
    return changed


def _check(config: ConfigDict, keys: Iterable[str]) -> None:
    """Raises `UserError` for a number out of range, or an unknown name at one of `keys`.

    The launcher checks a config as it is given, in which all that variants change is text.
    """
    for ranges in (RANGES, getattr(find_experiment(config.experiment), "RANGES", {})):
        check_ranges(config, ranges)
    for key, end in itertools.product(keys, CHOICES):
        value = config_path.get_value(key, config)
        if f".{key}".endswith(f".{end}") and value not in CHOICES[end]:
            raise unknown(key, str(value), CHOICES[end])


def _leave_out(key: str, config: ConfigDict) -> None:
    *path, name = key.split(".")
    del reduce(getattr, path, config)[name]


def by_value(
    configs: Mapping[str, Any], results: Mapping[str, Result], key: str
) -> dict[float, Result]:
    """Results by a number of the config, rising: that of the base, and those it was changed to."""
    values = {name: config_path.get_value(key, one) for name, one in configs.items()}
    names = [name for name, value in values.items() if name == BASE or value != values[BASE]]
    return {float(values[name]): results[name] for name in sorted(names, key=values.__getitem__)}
