"""A trained model that reads long texts with half of its layers replaced, by several attentions."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from experiments.attention.layerwise import Decoder, Exact
from experiments.common.claims import with_bounds
from rml import data
from rml.errors import UserError
from rml.models import Llama, pretrained
from rml.ops import t_interval

OptionsOf = Callable[[str, Any], Mapping[str, Any]]
"""Options of a row of `rml.attention.METHODS`, from what is compared and its choice."""


def speeches(config: Any, part: str, tokenizer: Any, length: int) -> np.ndarray:
    """Beginnings of all documents of a split of `config.data` that have so many tokens."""
    options = config.data
    texts = data.load_documents(options.name, options[part], data_dir=options.data_dir)
    return data.long_documents(tokenizer, texts, length=length)


def check_tries(tries: Any, compared: Collection[str]) -> None:
    """Raises `UserError` unless what is compared has equally many choices."""
    if set(tries) != set(compared) or len({len(values) for values in tries.values()}) > 1:
        raise UserError(
            f"late.tries is {tries.to_dict()}, expected equally many of {sorted(compared)}"
        )


def opened(options: Any, *, heads: int | None = None) -> pretrained.Pretrained:
    """Opens what `lost_late` reads, so that what is missing is named before models are trained.

    Args:
      options: Options as `lost_late` takes them.
      heads: Number of heads that the decoder is taken to have, if any.

    Returns:
      The decoder.

    Raises:
      UserError: There is no such decoder, it has other heads, or too few texts are long enough.
    """
    loaded = pretrained.load(options.name)
    if not isinstance(loaded.module, Llama):
        raise UserError(f"late.name is {options.name}, expected a decoder such as smollm2")
    if heads is not None and heads != loaded.module.heads:
        raise UserError(
            f"late.heads is {heads}, expected {loaded.module.heads} as {options.name} has"
        )
    speeches(options, "validation", loaded.tokenizer, options.length)  # refuses where none is long
    found = len(speeches(options, "test", loaded.tokenizer, options.length))
    if found < options.documents:
        raise UserError(
            f"late.documents is {options.documents}, expected at most {found}: the test texts of "
            f"late.length={options.length} tokens"
        )
    return loaded


def summarised(
    tries: Mapping[str, Any], chosen: Mapping[str, Any], lost: Mapping[str, np.ndarray],
    gains: Mapping[str, str],
) -> dict[str, float]:  # fmt: skip
    """Metrics of `lost_late`; of a choice the place among its tries.

    Args:
      tries: Choices of each way that is compared, by its name.
      chosen: Choice that was taken of these, by the same names.
      lost: Nats that each text loses, by the same names.
      gains: Metrics by name: what it is that loses so much less than "window", with its interval.
    """
    metrics: dict[str, float] = {}
    for name, own in lost.items():
        metrics |= {
            f"late_lost_{name}": own.mean(), f"late_tries_{name}": len(tries[name]),
            f"late_chosen_{name}": list(tries[name]).index(chosen[name]),
        }  # fmt: skip
    for metric, name in gains.items():
        metrics |= with_bounds(metric, t_interval(lost["window"] - lost[name]))
    return metrics


def lost_late(
    options: Any, rows: Mapping[str, str], options_of: OptionsOf, *, seed: int,
    loaded: pretrained.Pretrained,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:  # fmt: skip
    """Measures what half of the layers lose, options chosen on a validation text.

    Args:
      options: `name` of a pretrained decoder, `data` with its name and splits "validation" and
        "test", `length` of each text in tokens, number of test `documents`, and `tries`: by what is
        compared the choices, of which the one that loses least with a third of the layers is taken.
      rows: Rows of `METHODS` by what is compared.
      options_of: What a row takes.
      seed: Seed of the order of test texts, and of what rows draw.
      loaded: The decoder, as `opened` gives it.

    Returns:
      The choice of each, and the nats a token that each test text loses by it, [documents].
    """
    decoder = Decoder(loaded.module, loaded.variables)
    rngs = jax.random.split(jax.random.key(seed), 1)

    def lost(text: np.ndarray, exact: Exact, name: str, choice: Any, layers: int) -> float:
        own = options_of(name, choice)
        nats = decoder.replaced(exact, text, rngs, rows[name], own, layers=layers)
        return float(np.mean(nats[0] - exact.nats))

    text = speeches(options, "validation", loaded.tokenizer, options.length)[0]
    exact, third = decoder.exact(text), max(1, decoder.depth // 3)
    chosen = {
        name: min(options.tries[name], key=lambda one: lost(text, exact, name, one, third))
        for name in rows
    }
    found: dict[str, list[float]] = {name: [] for name in rows}
    tested = speeches(options, "test", loaded.tokenizer, options.length)
    order = np.random.default_rng(seed).permutation(len(tested))[: options.documents]
    for text in tested[order]:
        exact = decoder.exact(text)
        for name, choice in chosen.items():
            found[name].append(lost(text, exact, name, choice, decoder.depth // 2))
    return chosen, {name: np.array(own) for name, own in found.items()}
