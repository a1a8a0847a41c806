"""Two small masked language models of real text from different seeds, and what is made of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from experiments.common import small_lm
from experiments.common.comparison import for_each
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train
from experiments.merging.masked_text import bert, held_out, task
from experiments.merging.multilevel_training import on_host
from experiments.merging.ot_pairs import ONE, Pair, along, blended, differences, families, search
from rml.merging import layer_activations
from rml.training import (
    Progress,
    RunDirectory,
)


def language(config: Any) -> ConfigDict:
    """The config of the part on text, as one of its own."""
    shared = {key: config[key] for key in ("seed", "mesh", "precision")}
    return ConfigDict(config.language.to_dict() | shared)


class Read(NamedTuple):
    """Text that models are trained, aligned and judged on.

    Attributes:
      text: The text.
      aligned: Training windows that units are aligned on.
      windows: Windows that models are judged on, by "validation" and "test".
    """

    text: small_lm.Text
    aligned: Int[np.ndarray, "n t"]
    windows: Mapping[str, Int[np.ndarray, "m t"]]


def opened(config: Any) -> Read:
    """Reads the text of a config."""
    own = language(config)
    text = small_lm.read_text(own)
    aligned = text.windows("train", own.text.length, config.alignment.examples)
    return Read(text, aligned, small_lm.held_out_windows(own, text))


def trained(
    config: Any, run: RunDirectory, read: Read
) -> tuple[Pair, Callable[[Any, str], np.ndarray]]:
    """Trains both models; the pair, and `score(params, part)` of each window of a part."""
    own = language(config)
    configs = [replaced(own, {"seed": 2 * config.seed + i}) for i in range(2)]

    def measure(_: str, inner: RunDirectory) -> tuple[dict[str, float], list[Any]]:
        together = many(lambda each: task(each, read.text), configs)
        state = on_one_device(train(own, inner, together, "eval/nats"))
        both = [on_host(unstack(state, i).params) for i in range(2)]
        return {"nats": together.evaluate(state)["nats"]}, both

    first, anchor = for_each(run, ["bert"], measure)["bert"][1]
    tokens = jnp.asarray(read.aligned)
    acts = [
        jax.jit(layer_activations, static_argnums=0)(bert(own), params["backbone"], tokens)
        for params in (first, anchor)
    ]
    made = Pair(first, anchor, (acts[0], acts[1]))
    return made, lambda params, part: -held_out(own, params, read.windows[part])


def measured(
    config: Any, run: RunDirectory, read: Read
) -> tuple[dict[str, float], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What is lost by the two BERTs and their fusions, and nats along the lines between them."""
    pair, score = trained(config, run, read)
    tries = families(config.alignment.regs)
    searched = {
        name: search(pair, tries[name], lambda params: score(params, "validation"))
        for name in ("soft", "hard")
    }
    options = searched["soft"].options
    models = {
        "parent_0": pair.first, "parent_1": pair.anchor,
        "vanilla": blended(pair.first, pair.anchor, 0.5),
        **{name: own.params for name, own in searched.items()},
        "one": pair.fuse(**ONE),
        "exchanged": pair.exchanged(config.seed).fuse(**options),
    }  # fmt: skip
    found = {name: score(params, "test") for name, params in models.items()}
    metrics = {f"text_nats_{name}": float(-own.mean()) for name, own in found.items()}
    metrics["text_reg"] = options["reg"]
    metrics |= differences(found, {
        **{f"text_gain_{name}": (name, "vanilla") for name in ("soft", "hard", "one", "exchanged")},
        "text_soft_over_hard": ("soft", "hard"),
    })  # fmt: skip
    for name, own in found.items():
        Progress().note(f"BERT, {name}: {-own.mean():.3f} nats a hidden token")
    return metrics, {
        name: (weights, -values)
        for name, (weights, values) in along(
            pair, options, lambda params: score(params, "test"), config.line.points
        ).items()
    }
