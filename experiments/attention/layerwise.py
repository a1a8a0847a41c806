"""A decoder run a layer at a time: texts share the layers whose attention nobody has replaced."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rml.attention import attention_of
from rml.evaluation.long_text import token_nats
from rml.models import projections


class Exact(NamedTuple):
    """What exact attention makes of a text.

    Attributes:
      starts: Hidden states [t, d] that each layer reads.
      nats: Nats of tokens 1 to t - 1.
      captured: Queries [h, t, k], keys and values [g, t, k], rotated, by layer.
    """

    starts: list[jax.Array]
    nats: np.ndarray
    captured: dict[int, tuple[jax.Array, ...]]


class Decoder:
    """A language model whose last layers may attend by any row of `METHODS`.

    Attributes:
      module: A `rml.models.llama.Llama` with scanned blocks.
      params: Its parameters.
      depth: Number of its layers.
    """

    def __init__(self, module: Any, variables: Any):
        """Keeps the model."""
        self.module, self.params = module, variables["params"]
        self.depth = module.depth

    def exact(self, tokens: np.ndarray, capture: Sequence[int] = ()) -> Exact:
        """Reads a text exactly.

        Args:
          tokens: The text, [t].
          capture: Layers whose queries, keys and values are kept.
        """
        x, rngs = self._embedded(tokens), jax.random.split(jax.random.key(0), 1)
        starts, captured, last = [], {}, x
        for i in range(self.depth):
            starts.append(x[0])
            keep = i in capture
            x, last, kept = self._layer(i, x, rngs, "exact", {}, keep=keep)
            if keep:
                captured[i] = kept
        return Exact(starts, np.asarray(self._nats(last, tokens))[0], captured)

    def captured(self, tokens: np.ndarray, layers: Sequence[int]) -> dict[int, tuple]:
        """Queries, keys and values of layers as `Exact` has them; those above are not computed.

        Args:
          tokens: The text, [t].
          layers: Layers whose queries, keys and values are kept.
        """
        x, rngs, found = self._embedded(tokens), jax.random.split(jax.random.key(0), 1), {}
        for i in range(max(layers) + 1):
            x, _, kept = self._layer(i, x, rngs, "exact", {}, keep=i in layers)
            if kept is not None:
                found[i] = kept
        return found

    def _embedded(self, tokens: np.ndarray) -> jax.Array:
        return self.params["tokens"]["embedding"][jnp.asarray(tokens)][None]

    def replaced(
        self, text: Exact, tokens: np.ndarray, rngs: Any, name: str, options: Mapping[str, Any],
        *, layers: int,
    ) -> np.ndarray:  # fmt: skip
        """Nats [r, t - 1] of a text with its last layers' attention replaced.

        Args:
          text: What exact attention makes of it.
          tokens: The text.
          rngs: Random keys [r], each for one reading.
          name: Row of `METHODS`.
          options: What it takes.
          layers: Number of last layers.
        """
        first = self.depth - layers
        x = jnp.broadcast_to(text.starts[first], (len(rngs), *text.starts[first].shape))
        last = x
        for i in range(first, self.depth):
            own = jax.vmap(jax.random.fold_in, (0, None))(rngs, i)
            x, last, _ = self._layer(i, x, own, name, options)
        return np.asarray(self._nats(last, tokens))

    def _layer(
        self, i: int, x: jax.Array, rngs: Any, name: str, options: Mapping[str, Any],
        *, keep: bool = False,
    ) -> tuple[jax.Array, jax.Array, Any]:  # fmt: skip
        items = tuple(sorted(options.items()))
        return _layer(
            self.params["blocks"], self.params["norm"], i, x, rngs,
            module=self.module, name=name, options=items, keep=keep,
        )  # fmt: skip

    def _nats(self, last: jax.Array, tokens: np.ndarray) -> jax.Array:
        return _nats(self.params, last, jnp.asarray(tokens), module=self.module)


@functools.partial(jax.jit, static_argnames=("module", "name", "options", "keep"))
def _layer(
    blocks: Any, norm: Any, i: int, x: jax.Array, rngs: Any, *, module: Any, name: str,
    options: tuple, keep: bool,
) -> tuple[jax.Array, jax.Array, Any]:  # fmt: skip
    """Hidden states [r, t, d] after a layer, those after the final norm, and what was attended to.

    It is a model of one layer whose table of tokens is the text's hidden states.
    """
    layer = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i, 1), blocks)

    def of_one(x: jax.Array, rng: Any) -> tuple[jax.Array, jax.Array, Any]:
        attention = attention_of(name, rng=rng, **dict(options))
        one = module.clone(depth=1, vocabulary=len(x), tied=True, attention=attention)
        variables = {"params": {"blocks": layer, "tokens": {"embedding": x}, "norm": norm}}
        tokens = jnp.arange(len(x))[None]
        states = one.apply(variables, tokens, return_hidden=True)
        kept = None
        if keep:
            found = projections(one, variables, tokens, layer=0)
            kept = tuple(array[0].swapaxes(0, 1) for array in found)
        return states.hidden[1, 0], states.last[0], kept

    hidden, last, kept = jax.vmap(of_one)(x, rngs)
    return hidden, last, jax.tree.map(lambda array: array[0], kept)


@functools.partial(jax.jit, static_argnames="module")
def _nats(params: Any, last: jax.Array, tokens: jax.Array, *, module: Any) -> jax.Array:
    def head(hidden: jax.Array) -> jax.Array:
        return module.apply({"params": params}, hidden, method="logits")

    return jax.lax.map(lambda hidden: token_nats(hidden, head, tokens), last)
