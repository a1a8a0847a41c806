"""Two small masked language models of real text from different seeds, and what is made of them."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.common import small_lm
from experiments.common.comparison import for_each
from experiments.common.many import many, on_one_device, replaced, unstack
from experiments.common.pretraining import train
from experiments.common.small_lm import Text
from experiments.merging.multilevel_training import on_host
from experiments.merging.ot_pairs import ONE, Pair, along, blended, differences, families, search
from rml import data
from rml.contrastive import Texts, mask_tokens
from rml.data.source import Arrays
from rml.data.tokens import SPECIAL
from rml.losses import masked_lm
from rml.merging import layer_activations
from rml.models import Bert, MaskedLMHead
from rml.training import (
    Loss,
    Progress,
    RunDirectory,
    Task,
    TrainState,
    build_optimizer,
    gradient_task,
)

ROWS = 64
"""Windows that are read at a time."""


def language(config: Any) -> ConfigDict:
    """The config of the part on text, as one of its own."""
    shared = {key: config[key] for key in ("seed", "mesh", "precision")}
    return ConfigDict(config.language.to_dict() | shared)


def bert(config: Any) -> Bert:
    """The encoder of a config of the part on text."""
    return Bert(
        vocabulary=config.text.vocabulary, positions=config.text.length, **config.model.to_dict()
    )


def task(config: Any, text: Text) -> Task:
    """The problem of predicting hidden tokens of windows."""
    module, head = bert(config), MaskedLMHead()
    train = text.windows("train", config.text.length)
    validation = jnp.asarray(text.windows("validation", config.text.length, config.text.windows))

    def variables(key: Any) -> dict[str, Any]:
        tokens, table = jnp.zeros((1, 2), jnp.int32), jnp.zeros((module.vocabulary, module.width))
        both = jax.random.split(key)
        own = nn.meta.unbox(module.init(both[0], tokens))["params"]
        return {"params": {
            "backbone": own,
            "head": nn.meta.unbox(head.init(both[1], table[None, :1], table))["params"],
        }}  # fmt: skip

    def loss(params: Any, state: TrainState, batch: Any) -> Loss:
        return Loss(jnp.mean(_nats(module, config.masking.rate, params, batch["tokens"],
                                   state.step_key)))  # fmt: skip

    def batches(part: int = 0, parts: int = 1) -> Any:
        source = Arrays({"tokens": train}, name=config.data.name, split=config.data.train)
        return data.batches(
            source, batch_size=config.train.batch_size, seed=config.seed, part=part, parts=parts
        )

    shape = (config.train.batch_size, config.text.length)
    return gradient_task(
        init_variables=variables, loss=loss, batches=batches,
        optimizer=build_optimizer(dict(config.optimizer), steps=config.train.steps),
        evaluate=lambda state: {"nats": float(-scores(config, state.params, validation).mean())},
        batch_spec={"tokens": jax.ShapeDtypeStruct(shape, np.int32)},
    )  # fmt: skip


def scores(config: Any, params: Any, windows: Any) -> np.ndarray:
    """Minus the nats of each window's hidden tokens; the same are hidden for all models."""
    return -np.asarray(_held_out(bert(config), config.masking.rate, params, jnp.asarray(windows)))


def trained(config: Any, run: RunDirectory) -> tuple[Pair, Callable[[Any, str], np.ndarray]]:
    """Trains both models; the pair, and `score(params, part)` of each window of a part."""
    own = language(config)
    text = small_lm.read_text(own)
    configs = [replaced(own, {"seed": 2 * config.seed + i}) for i in range(2)]

    def measure(_: str, inner: RunDirectory) -> tuple[dict[str, float], list[Any]]:
        together = many(lambda each: task(each, text), configs)
        state = on_one_device(train(own, inner, together, "eval/nats"))
        both = [on_host(unstack(state, i).params) for i in range(2)]
        return {"nats": together.evaluate(state)["nats"]}, both

    first, anchor = for_each(run, ["bert"], measure)["bert"][1]
    windows = {
        part: text.windows(part, own.text.length, own.text.windows)
        for part in ("validation", "test")
    }
    tokens = jnp.asarray(text.windows("train", own.text.length, config.alignment.examples))
    acts = [
        jax.jit(layer_activations, static_argnums=0)(bert(own), params["backbone"], tokens)
        for params in (first, anchor)
    ]
    made = Pair(first, anchor, (acts[0], acts[1]))
    return made, lambda params, part: scores(own, params, windows[part])


def measured(
    config: Any, run: RunDirectory
) -> tuple[dict[str, float], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What is lost by the two BERTs and their fusions, and nats along the lines between them."""
    pair, score = trained(config, run)
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


def _nats(module: Bert, rate: float, params: Any, tokens: Any, key: Any) -> jax.Array:
    """Cross-entropy of the hidden tokens of each window."""
    texts = Texts(tokens, jnp.full(len(tokens), tokens.shape[1]))
    hidden = mask_tokens(
        key, texts, rate=rate, vocabulary=(SPECIAL.index("[MASK]"), len(SPECIAL), module.vocabulary)
    )
    states: Any = module.apply({"params": params["backbone"]}, hidden.texts.tokens)
    states = jnp.take_along_axis(states, hidden.places[..., None], axis=1)
    table = params["backbone"]["tokens"]["embedding"]
    found: Any = MaskedLMHead().apply({"params": params["head"]}, states, table)
    return masked_lm(found, hidden.targets, where=hidden.chosen, reduction="none")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _held_out(module: Bert, rate: float, params: Any, windows: jax.Array) -> jax.Array:
    keys = jax.random.split(jax.random.key(0), len(windows))

    def of_one(one: Any) -> jax.Array:
        key, tokens = one
        return _nats(module, rate, params, tokens[None], key)[0]

    return jax.lax.map(of_one, (keys, windows), batch_size=ROWS)
