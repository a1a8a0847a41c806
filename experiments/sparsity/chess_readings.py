"""A trained decoder that reads texts with thinned-out activations, by several rules."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sparsity import chess_cloze
from rml import data
from rml.evaluation.long_text import token_nats
from rml.models import Probe, Thresholds, pretrained
from rml.ops.shares import whole_part
from rml.sparsity import (
    Calibration,
    Statistics,
    activation_statistics,
    layer_divergence,
    observe,
    random_channels,
    shares_by_sensitivity,
    thresholds_of,
)

RULES = ("uniform", "abs", "rms", "abs_down", "product")
"""Rules of `rml.sparsity.channel_scale` that are measured."""
SELECTIVE = ("query", "output")
"""Projections of attention whose inputs the paper thins out."""
EVERY = ("query", "key", "value", "output")


class Reading(NamedTuple):
    """What a decoder made of texts.

    Attributes:
      nats: Mean nats a token of each text, [texts].
      zeros: Share of zeros that the MLP's last matrix read, by layer.
      live: Share of tokens at which each channel was not zero, [layers, f].
    """

    nats: np.ndarray
    zeros: np.ndarray
    live: np.ndarray


class Texts(NamedTuple):
    """Beginnings of documents as tokens, [texts, length] each.

    Attributes:
      calibration: Texts of the training split.
      test: Texts of the test split.
      documents: Those of the test split whole, in the same order.
    """

    calibration: np.ndarray
    test: np.ndarray
    documents: list[str]


class Reader:
    """A pretrained decoder and the texts that it reads.

    Attributes:
      module: The decoder.
      code: Texts of the config's `data`.
      prose: Texts of its `other`.
      choices: Lines to choose among, of test texts of code.
    """

    def __init__(self, config: Any) -> None:
        """Loads the decoder, draws texts by the config's seed."""
        loaded = pretrained.load(config.model.name)
        self.config = config
        self.module: Any = loaded.module
        self.variables = loaded.variables
        self.code = _texts(config, config.data, loaded.tokenizer)
        self.prose = _texts(config, config.other, loaded.tokenizer)
        self.choices = chess_cloze.draw_choices(
            loaded.tokenizer, self.code.documents, rng=np.random.default_rng(config.seed),
            **config.choices,
        )  # fmt: skip

    def observe(self, texts: Texts, rules: Sequence[Any] = RULES) -> Calibration:
        """What is needed to take thresholds of any share."""
        return observe(self.module, self.variables, texts.calibration, rules=rules)

    def read(
        self, texts: Texts, thresholds: Thresholds | None = None, activation: str | None = None
    ) -> Reading:
        """Reads the test texts.

        Args:
          texts: The texts.
          thresholds: What is set to zero; nothing if not given.
          activation: Nonlinearity in the place of the gate's own.
        """
        module = self.module if activation is None else self.module.clone(activation=activation)
        nats, found = _read(
            module, self.variables, jnp.asarray(texts.test), self.filled(thresholds)
        )
        zeros, live = np.asarray(found.zeros), np.asarray(found.live)
        return Reading(np.asarray(nats).mean(-1), zeros, live)

    def divergence(self, found: Calibration) -> np.ndarray:
        """How much each layer alone changes predictions on texts of calibration, see `by_layer`."""
        options = self.config.layers
        windows = self.code.calibration[: options.documents, : options.length]
        thresholds = thresholds_of(found, sparsity=options.share)
        return layer_divergence(self.module, self.variables, windows, thresholds)

    def choose(self, thresholds: Thresholds | None = None) -> np.ndarray:
        """Probabilities of lines, the true one first, see `chess_cloze.odds`."""
        return chess_cloze.odds(self.module, self.variables, self.choices, self.filled(thresholds))

    def filled(self, thresholds: Thresholds | None) -> Thresholds:
        """The same with zeros where nothing is given, so that one program serves all."""
        depth, mlp = self.module.depth, self.module.mlp
        zeros = Thresholds(*(jnp.zeros((depth, mlp)),) * 2, *(jnp.zeros(depth),) * 4)
        given = thresholds or Thresholds()
        return Thresholds(*(z if x is None else x for x, z in zip(given, zeros, strict=True)))

    def top(self, sparsity: float) -> str:
        """Name of the nonlinearity that keeps each token's largest gates."""
        kept = self.module.mlp - whole_part(sparsity * self.module.mlp)
        return f"top_{self.module.activation}:{kept}"


def variants(found: Calibration, sparsity: float, seed: int) -> dict[str, Thresholds]:
    """By name the thresholds of one share, of rules of the MLP and of attention."""
    of = functools.partial(thresholds_of, found, sparsity=sparsity)
    channel = of(rule="abs")
    keys = jax.random.split(jax.random.key(seed), 2)
    gate: Any = channel.gate
    layers, channels = gate.shape
    shuffled = jax.vmap(jax.random.permutation)(jax.random.split(keys[0], layers), gate)
    return {rule: of(rule=rule) for rule in RULES} | {
        "shuffled": Thresholds(gate=shuffled),
        "random": random_channels(keys[1], layers=layers, channels=channels, sparsity=sparsity),
        "selective": of(rule="abs", attention=SELECTIVE),
        "selective_every": of(rule="abs", attention=EVERY),
        "attention": of(rule=None, attention=SELECTIVE),
    }


def by_layer(
    found: Calibration, sparsity: float, seed: int, divergence: np.ndarray, measured: float
) -> dict[str, Thresholds]:
    """Thresholds of shares by how much layers matter, and of the same shares in another order.

    Args:
      found: What was calibrated.
      sparsity: Mean of the shares.
      seed: Seed of the other order.
      divergence: How much each layer matters, measured at one share for all.
      measured: That share.
    """
    shares = shares_by_sensitivity(found, divergence, measured=measured, sparsity=sparsity)
    other = np.random.default_rng(seed).permutation(shares)
    return {
        "by_layer": thresholds_of(found, sparsity=shares),
        "by_other_layer": thresholds_of(found, sparsity=other),
    }


def weights_of_layer(module: Any) -> dict[str, int]:
    """Weights of one layer by what reads them: "mlp" of each of three, "query", "key", "all"."""
    kv_heads, head_width = module.head_shape()
    query, key = (module.width * heads * head_width for heads in (module.heads, kv_heads))
    mlp = module.width * module.mlp
    return {"mlp": mlp, "query": query, "key": key, "all": 3 * mlp + 2 * query + 2 * key}


def _texts(config: Any, options: Any, tokenizer: Any) -> Texts:
    """Beginnings of documents, in an order that the seed draws."""

    def mixed(part: str) -> list[str]:
        documents = data.load_documents(options.name, options[part], data_dir=options.data_dir)
        order = np.random.default_rng([config.seed, len(part)]).permutation(len(documents))
        return [documents[i] for i in order]

    def cut(documents: list[str], size: Any) -> np.ndarray:
        return data.long_documents(tokenizer, documents, length=size.length, most=size.documents)

    train, test = mixed("train"), mixed("test")
    return Texts(cut(train, config.calibration), cut(test, config.reading), test)


@functools.partial(jax.jit, static_argnames="module")
def _read(
    module: Any, variables: Any, tokens: jax.Array, thresholds: Thresholds
) -> tuple[jax.Array, Statistics]:
    """Nats [texts, t - 1] and mean statistics, one text at a time."""

    def head(hidden: jax.Array) -> jax.Array:
        return module.apply(variables, hidden, method="logits")

    def of_text(text: jax.Array) -> tuple[jax.Array, Statistics]:
        probe = Probe(activation_statistics)
        states = module.apply(variables, text[None], thresholds=thresholds, probe=probe)
        return token_nats(states.last[0], head, text), states.probed

    nats, found = jax.lax.map(of_text, tokens)
    return nats, jax.tree.map(lambda x: x.mean(0), found)
