"""Checks a config before anything is computed: ranges of its numbers, names, and keys.

Ranges that hold wherever a key stands are rows of `RANGES`. A range that one recipe alone asks for
is a row of a dictionary `RANGES` in the recipe, and what depends on data is checked by what reads
them. Keys are those of the configs that `systems.toml` names for the recipe: a file of one's own
has no others, and all that they share.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments import registry
from rml.errors import UserError, a_url, unknown


class Range(NamedTuple):
    """Numbers from `low` to `high`.

    Attributes:
      low: The smallest, itself left out if `above`.
      high: The largest, itself left out if `below`.
      above: Whether numbers are greater than `low`.
      below: Whether numbers are less than `high`.
      whole: Whether numbers have no fraction.
    """

    low: float = 0
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        """Whether a number lies in the range; neither NaN nor an infinity ever does."""
        kind = int if self.whole else int | float
        if not isinstance(value, kind) or not math.isfinite(value):
            return False
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        """The range in words where one end is open, else as an interval."""
        kind = "a whole number" if self.whole else "a number"
        if self.high == math.inf:
            return f"{kind} {'above' if self.above else 'of at least'} {self.low:g}"
        ends = f"{self.low:.10g}, {self.high:.10g}"
        return f"{kind} in {'(' if self.above else '['}{ends}{')' if self.below else ']'}"


SIZE, COUNT = Range(1, whole=True), Range(whole=True)
AT_LEAST_0, ABOVE_0 = Range(), Range(above=True)
SHARE, DECAY = Range(high=1), Range(high=1, below=True)

RANGES: dict[str, Range] = {
    "seed": Range(high=2**32 - 1, whole=True),
    **dict.fromkeys((
        # How long, how many, how large.
        "steps", "repeats", "replicates", "repetitions", "iterations", "max_iterations", "chains",
        "draws", "episodes", "count", "accumulate", "batch_size", "batch_tokens", "knn_k", "k",
        "keep_checkpoints", "classes", "total", "inducing", "samples", "mined", "groups", "pairs",
        "queries", "ways", "shots", "num_clusters", "test_queries", "validation_queries",
        "queue.size", "sizes", "sparse_sizes", "full_sizes", "copies", "image_shape",
        # Shapes of models and texts.
        "features", "hidden", "layers", "depth", "heads", "blocks", "mlp", "embed", "patch_size",
        "kernel_sizes", "strides", "kernel_size", "vocabulary", "positions", "max_length",
        "query_length", "document_length",
    ), SIZE),
    **dict.fromkeys(("warmup_steps", "log_every", "eval_every", "checkpoint_every"), COUNT),
    **dict.fromkeys((
        "learning_rate", "weight_decay", "clip_norm", "noise", "penalty", "jitter", "tolerance",
        "cluster.temperature", "brightness", "contrast", "saturation", "degrees",
        "laplacian_weights",
    ), AT_LEAST_0),
    **dict.fromkeys(("temperature", "knn_temperature", "width", "widths", "sigma"), ABOVE_0),
    **dict.fromkeys((
        "fill", "final_scale", "momentum.start", "p", "rate", "keep", "hard_share", "translate",
    ), SHARE),
    **dict.fromkeys(("momentum", "b1", "b2", "ema_decay", "smoothing", "dropout"), DECAY),
    **dict.fromkeys(("train_share", "validation_share"), Range(0, 1, above=True, below=True)),
    "hue": Range(high=0.5),
}  # fmt: skip
"""By the last names of a key, longer ones first; of a tuple every number is meant."""

CHOICES = {
    "dtype": ("bfloat16", "float16", "float32"),
    "precision": ("default", "highest"),
    "image_dtype": ("float32", "uint8"),
    "loss.form": ("in", "out"),
}
"""Names that a key may have, likewise."""

TEXTS = ("fill", "positions")
"""Last names of keys that take a text as well as a number."""

OPTIONAL = {"train.keep_checkpoints"}
CHECKED_WHERE_READ = (
    "augment", "augment_second", "head", "methods", "model", "optimizer", "predictor", "variants",
)  # fmt: skip
"""Sections whose keys depend on a name in them."""


def checked_experiment(config: ConfigDict) -> Any:
    """The recipe of a config, after all checks that need no data.

    Raises:
      UserError: As `check_config`, an unknown recipe, or a number out of the recipe's own range.
    """
    check_config(config)
    experiment = registry.find_experiment(config.experiment)
    check_ranges(config, getattr(experiment, "RANGES", {}))
    return experiment


def check_config(config: ConfigDict) -> None:
    """Checks all that is known of a config without its recipe and its data.

    Raises:
      UserError: A number is out of range, a name unknown, a path a URL, a key unknown or missing.
    """
    check_keys(config)
    check_ranges(config, RANGES)
    for key, value in _leaves(config):
        if isinstance(value, str) and "://" in value:
            raise a_url(value, key)
        choices = _row(CHOICES, key)
        if choices and value not in choices:
            raise unknown(key, str(value), choices)
    optimizer, train = config.get("optimizer", {}), config.get("train", {})
    accumulate, steps = optimizer.get("accumulate", 1), train.get("steps", 1)
    if accumulate > steps:
        raise UserError(f"optimizer.accumulate is {accumulate}, more than train.steps, {steps}")
    warmup, updates = optimizer.get("warmup_steps", 0), steps // accumulate
    if "steps" in train and warmup > updates:
        raise UserError(
            f"optimizer.warmup_steps is {warmup}, more than the {updates} updates of train.steps"
        )


def check_ranges(config: ConfigDict, ranges: Mapping[str, Range]) -> None:
    """Checks numbers.

    Args:
      config: The config.
      ranges: Range by the last names of a key.

    Raises:
      UserError: A number is out of its range.
    """
    for key, value in _leaves(config):
        wanted = _row(ranges, key)
        many = isinstance(value, tuple | list)
        parts = [part for part in (value if many else (value,)) if part is not None]
        if key.rpartition(".")[2] in TEXTS:
            parts = [part for part in parts if not isinstance(part, str)]
        if wanted and not all(part in wanted for part in parts):
            raise UserError(f"{key} is {value!r}, expected {wanted}{', each' if many else ''}")


def check_keys(config: ConfigDict) -> None:
    """Checks keys against those of the recipe's configs, where the registry names any.

    Raises:
      UserError: The config has a key that none of them has, or lacks one that all of them have.
    """
    experiment = config.experiment
    known = _known_keys(experiment)
    if not known:
        return
    keys, every = registry.config_keys(config), set[str]().union(*known.values())
    for key in sorted(keys - every - OPTIONAL):
        section, _, name = key.rpartition(".")
        if section.partition(".")[0] in CHECKED_WHERE_READ:
            continue
        beside = {
            other.rpartition(".")[2] for other in every if other.rpartition(".")[0] == section
        }
        where = f"config.{section}" if section else "the config"
        raise unknown(f"key of {where} of {experiment}", name, beside)
    for key in sorted(set.intersection(*known.values()) - keys):
        section, _, name = key.rpartition(".")
        if section not in CHECKED_WHERE_READ or name in ("name", "order"):
            raise UserError(
                f"the config has no {key!r}, which {experiment} reads; {next(iter(known))} has it"
            )


@cache
def _known_keys(experiment: str) -> dict[str, set[str]]:
    """The keys of each config that the registry names for a recipe, by its file."""
    from experiments.systems import read_systems

    naming = _naming(experiment)
    paths = {path for system in read_systems().values() for path in system.configs}
    configs = {p: registry.read_config(str(registry.ROOT / p)) for p in sorted(paths & naming)}
    return {
        path: registry.config_keys(config)
        for path, config in configs.items()
        if config.experiment == experiment
    }


def _naming(experiment: str) -> set[str]:
    """Files of configs that have a recipe's name in quotes, or import one that has it.

    To read all configs takes longer than all else before a run starts.
    """
    files = sorted((registry.ROOT / "configs").rglob("*.py"))
    texts = {str(file.relative_to(registry.ROOT)): file.read_text() for file in files}
    found = {path for path, text in texts.items() if f'"{experiment}"' in text}
    imported = {path: set(_imported(text)) for path, text in texts.items()}
    size = 0
    while size < len(found):
        size, modules = len(found), {path[:-3].replace("/", ".") for path in found}
        found |= {path for path, own in imported.items() if own & modules}
    return found


def _imported(text: str) -> Iterator[str]:
    """Names that a config's text imports from other configs, those of modules among them."""
    for base, names in re.findall(r"from (configs[\w.]*) import (\([^)]*\)|[^\n]*)", text):
        yield base
        yield from (f"{base}.{name}" for name in re.findall(r"\w+", names))


def _leaves(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values, those of inner dictionaries in their place."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in _leaves(value))
        else:
            yield key, value


def _row(table: Mapping[str, Any], key: str) -> Any:
    """The row of the longest end of a dotted key, None where the table has none."""
    names = key.split(".")
    ends = (".".join(names[i:]) for i in range(len(names)))
    return next((table[end] for end in ends if end in table), None)
