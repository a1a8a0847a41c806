"""A large and a small language model of one vocabulary, and what is tuned from them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import small_lm
from experiments.common.comparison import for_each
from experiments.common.many import replaced
from experiments.common.pretraining import train
from experiments.merging.bed import stack
from rml import data
from rml.data import tokens
from rml.merging import task_arithmetic
from rml.models import apply_lora, init_lora
from rml.training import Progress, RunDirectory, Task

LARGE, SMALL = "large", "small"
EXPERT, TUNED, LORA, MULTITASK = "expert", "tuned", "lora", "multitask"
SIZES = {LARGE: LARGE, SMALL: SMALL, EXPERT: SMALL, MULTITASK: SMALL, TUNED: LARGE, LORA: LARGE}
"""Which of the two models each kind is."""


class Models(NamedTuple):
    """Parameters.

    Attributes:
      large: Parameters of the large model.
      small: Parameters of the small one.
      experts: Parameters of the small one after fine-tuning, stacked in the order of the domains.
      multitask: Parameters of the small one after fine-tuning on all domains together.
      tuned: Parameters of the large one after fine-tuning, by domain.
      lora: Parameters of the large one with a trained adapter, by domain.
      rates: Learning rate that validation chose, by kind.
    """

    large: Any
    small: Any
    experts: Any
    multitask: Any
    tuned: Mapping[str, Any]
    lora: Mapping[str, Any]
    rates: Mapping[str, float]


def read_texts(config: Any) -> dict[str, small_lm.Text]:
    """Texts of all collections, by a vocabulary learned on all but the unseen one."""
    options = config.data
    names = (options.general, *options.domains, options.unseen)
    documents = {
        name: {part: _some(config, name, part) for part in small_lm.PARTS} for name in names
    }
    seen = [text for name in names[:-1] for text in documents[name]["train"]]
    tokenizer = tokens.train_tokenizer(seen, vocabulary=config.text.vocabulary)
    return {
        name: small_lm.Text(
            tokenizer, {part: small_lm.stream(tokenizer, own) for part, own in parts.items()}
        )
        for name, parts in documents.items()
    }


def _some(config: Any, name: str, part: str) -> list[str]:
    """Documents in an order drawn once, until they have as many characters as the config says."""
    options = config.data
    documents = data.load_documents(name, options[part], data_dir=options.data_dir)
    order = np.random.default_rng(0).permutation(len(documents))
    ends = np.cumsum([len(documents[at]) for at in order])
    count = int(np.searchsorted(ends, options.characters[part])) + 1
    return [documents[at] for at in order[:count]]


def sized(config: Any, kind: str, rate: float | None = None) -> Any:
    """The config of a model of a kind; with a rate, of its fine-tuning."""
    own = replaced(config, {})
    with own.unlocked():
        own.model = own[SIZES[kind]]
        own.data.name = own.data.general
    if rate is not None:
        tuning = own.tuning
        own.optimizer.update(learning_rate=rate, warmup_steps=tuning.warmup_steps)
        steps = tuning.steps * (len(own.data.domains) if kind == MULTITASK else 1)
        own.train.update(steps=steps, eval_every=steps, checkpoint_every=steps)
    return own


def problem(config: Any, kind: str, text: small_lm.Text, start: Any) -> Task:
    """The problem of training a model of a kind on a text, from parameters if there are any.

    Args:
      config: Config as `sized` gives it.
      kind: One of `SIZES`.
      text: The text.
      start: Parameters of the model that is fine-tuned; of `LORA` they stay as they are.
    """
    if kind != LORA:
        return small_lm.task(config, text, start=start)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    adapters = init_lora(key, start, rank=config.tuning.rank)
    return small_lm.task(
        config, text, start=adapters, extra={"base": start},
        adapt=lambda params, state: apply_lora(
            state.extra["base"], params, scale=config.tuning.scale
        ),
    )  # fmt: skip


def make_models(config: Any, run: RunDirectory, texts: Mapping[str, small_lm.Text]) -> Models:
    """Trains both models on the general collection, then everything that is tuned from them."""
    general = texts[config.data.general]
    first = for_each(
        run, (LARGE, SMALL),
        lambda kind, inner: _trained(sized(config, kind), inner, kind, general, None),
    )  # fmt: skip
    start = {kind: params for kind, (_, params) in first.items()}
    domains = {name: texts[name] for name in config.data.domains}
    found, rates = {}, {}
    for kind in (EXPERT, TUNED, LORA):
        found[kind], rates[kind] = tuned(config, run, kind, domains, start[SIZES[kind]])
    together = {"all": joined(list(domains.values()))}
    multitask, rates[MULTITASK] = tuned(config, run, MULTITASK, together, start[SMALL])
    experts = stack([found[EXPERT][name] for name in domains])
    return Models(
        start[LARGE], start[SMALL], experts, multitask["all"], found[TUNED], found[LORA], rates
    )  # fmt: skip


def tuned(
    config: Any, run: RunDirectory, kind: str, texts: Mapping[str, small_lm.Text], start: Any
) -> tuple[dict[str, Any], float]:
    """Fine-tunes on every text; the rate is the best of the first text's validation windows.

    Returns:
      Parameters by text, and the rate.
    """
    first = next(iter(texts))

    def measure(name: str, rate: float) -> tuple[Mapping[str, float], Any]:
        own = sized(config, kind, rate)
        return for_each(
            run, [f"{kind}_{name}_{rate:g}"],
            lambda _, inner: _trained(own, inner, kind, texts[name], start),
        ).popitem()[1]  # fmt: skip

    tried = {rate: measure(first, rate) for rate in config.tuning.rates}
    rate = min(tried, key=lambda rate: tried[rate][0]["nats"])
    Progress().note(f"{kind}: {tried[rate][0]['nats']:.3f} nats a token of {first} at {rate:g}")
    return {name: tried[rate][1] if name == first else measure(name, rate)[1] for name in texts}, (
        rate
    )


def _trained(
    config: Any, inner: RunDirectory, kind: str, text: small_lm.Text, start: Any
) -> tuple[dict[str, float], Any]:
    """Trains in a directory; metrics and the model's whole parameters."""
    given = problem(config, kind, text, start)
    state = train(config, inner, given, "eval/nats")
    params = state.params
    if kind == LORA:
        params = apply_lora(start, params, scale=config.tuning.scale)
    return given.evaluate(state), params


def joined(texts: Sequence[small_lm.Text]) -> small_lm.Text:
    """Several texts of one vocabulary as one."""
    return small_lm.Text(
        texts[0].tokenizer,
        {part: np.concatenate([own.streams[part] for own in texts]) for part in small_lm.PARTS},
    )


def merged(models: Models, scale: float) -> Any:
    """Task arithmetic of the experts, as one expert."""
    return task_arithmetic(models.small, models.experts, scale=scale)
