"""Small masked language models of real text: BERTs that predict hidden tokens of windows."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.common.small_lm import Text
from rml import data
from rml.contrastive import Texts, mask_tokens
from rml.data.source import Arrays
from rml.data.tokens import SPECIAL
from rml.losses import masked_lm
from rml.models import Bert, MaskedLMHead
from rml.training import Loss, Task, TrainState, build_optimizer, gradient_task

ROWS = 64
"""Windows that are read at a time."""


def bert(config: Any) -> Bert:
    """The encoder of a config."""
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
        evaluate=lambda state: {"nats": float(held_out(config, state.params, validation).mean())},
        batch_spec={"tokens": jax.ShapeDtypeStruct(shape, np.int32)},
    )  # fmt: skip


def held_out(config: Any, params: Any, windows: Any) -> Float[np.ndarray, " m"]:
    """Nats of each window's hidden tokens; the same are hidden for all models."""
    return np.asarray(_held_out(bert(config), config.masking.rate, params, jnp.asarray(windows)))


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
