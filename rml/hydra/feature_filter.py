"""Feature filter: the subspace in which a pair of classes is alike, as gates on the features."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rml.errors import unknown
from rml.models.layers import Norm, dense
from rml.ops.shapes import check_indices, check_shapes

COMBINE = ("mean", "product", "gates", "concat")
GATES = ("sigmoid", "straight_through", "concrete", "stochastic", "open")
NORMS = ("layer", "batch", "none")


class FeatureFilter(nn.Module):
    """Gates in [0, 1] from an unordered pair of classes, symmetric by construction.

    Attributes:
      classes: number of classes.
      features: number of gates, the width of the features that they filter.
      embed: width of a class embedding.
      hidden: width of the hidden layers.
      layers: number of Dense layers.
      combine: how two classes become one input: "mean" or "product" of their embeddings, "gates"
        for the product of the gates of each class alone, "concat" for the mean of the network's
        outputs on both orders of the two embeddings.
      gate: "sigmoid"; "straight_through", its rounding with the sigmoid's gradient; "concrete", a
        relaxed Bernoulli variable; "stochastic", a Gaussian clipped to [0, 1]; "open", all one.
        The two random ones draw only where a key is given.
      temperature: divides the logits of the gates.
      noise: standard deviation of the stochastic gate.
      norm: normalisation before each Dense layer: "layer", so that a gate depends on its pair only;
        "batch", the authors', over the pairs of a batch; or "none".
      dtype: compute dtype; None follows the parameters.
      param_dtype: dtype of the parameters.

    The paper's own filter is `combine="mean", norm="batch"` with the other defaults.

    Source: arXiv:2410.18200, the feature filter; concrete: Maddison et al. 2017, eq. 16;
    stochastic: Yamada et al. 2020, Feature Selection using Stochastic Gates, section 3.
    """

    classes: int
    features: int
    embed: int = 512
    hidden: int = 1024
    layers: int = 2
    combine: str = "mean"
    gate: str = "sigmoid"
    temperature: float = 1.0
    noise: float = 0.5
    norm: str = "layer"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        first: Int[Array, " n"],
        second: Int[Array, " n"],
        key: Key[Array, ""] | None = None,
        *,
        train: bool = False,
        openness: bool = False,
    ) -> Float[Array, "n features"]:
        """Computes the gates of pairs.

        Args:
          first: one class of each pair, in [0, classes).
          second: the other class; may be the same.
          key: of a random gate's noise; without one a gate takes the value of its median.
          train: whether a BatchNorm uses, and updates, the statistics of these pairs.
          openness: instead of gates, the probability that a stochastic gate is above 0, which its
            authors penalise; of the others the gate without noise.

        Returns:
          Gates; those of (i, j) equal those of (j, i).

        Raises:
          ValueError: an option is unknown or out of range, first and second classes are not as
            many or, outside `jit`, one is out of range.
        """
        self._check()
        check_shapes(first=(first, "pairs"), second=(second, "pairs"))
        check_indices("first classes", first, self.classes)
        check_indices("second classes", second, self.classes)
        key = None if openness else key
        if self.gate == "open":
            return jnp.ones((first.shape[0], self.features), self.dtype or self.param_dtype)
        table: Any = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), ("classes", "embed")),
            (self.classes, self.embed),
            self.param_dtype,
        )
        # One order of every pair, so that rounding too is the same for (i, j) and (j, i).
        low, high = jnp.minimum(first, second), jnp.maximum(first, second)
        a, b = table[low], table[high]
        network = partial(_Network(self, name="network"), train=train)
        gate = self._openness if openness else self._gate
        if self.combine == "mean":
            return gate(network((a + b) / 2), key)
        if self.combine == "product":
            return gate(network(a * b), key)
        if self.combine == "concat":
            both = jnp.concatenate([a, b], -1), jnp.concatenate([b, a], -1)
            return gate((network(both[0]) + network(both[1])) / 2, key)
        keys = (None, None) if key is None else jax.random.split(key)
        return gate(network(a), keys[0]) * gate(network(b), keys[1])

    def _check(self) -> None:
        if self.combine not in COMBINE:
            raise unknown("combine of the feature filter", self.combine, COMBINE)
        if self.gate not in GATES:
            raise unknown("gate of the feature filter", self.gate, GATES)
        if self.norm not in NORMS:
            raise unknown("norm of the feature filter", self.norm, NORMS)
        for name in ("classes", "features", "embed", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} of the feature filter is {getattr(self, name)}, expected at least 1"
                )
        if self.temperature <= 0:
            raise ValueError(
                f"temperature of the feature filter is {self.temperature}, expected above 0"
            )

    def _openness(self, logits: Array, key: Array | None) -> Array:
        if self.gate != "stochastic":
            return self._gate(logits, key)
        if self.noise <= 0:
            raise ValueError(f"noise of the feature filter is {self.noise}, expected above 0")
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / self.temperature
        return jax.scipy.stats.norm.cdf((logits + 0.5) / self.noise)

    def _gate(self, logits: Array, key: Any) -> Array:
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / self.temperature
        if self.gate == "stochastic":
            if key is not None:
                logits += self.noise * jax.random.normal(key, logits.shape, logits.dtype)
            return jnp.clip(logits + 0.5, 0.0, 1.0)
        if self.gate == "concrete" and key is not None:
            logits += jax.random.logistic(key, logits.shape, logits.dtype) / self.temperature
        soft = jax.nn.sigmoid(logits)
        if self.gate == "straight_through":
            return soft + jax.lax.stop_gradient(jnp.round(soft) - soft)
        return soft


class _Network(nn.Module):
    """The MLP from embeddings to logits of gates."""

    filter: FeatureFilter

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        f = self.filter
        dtypes = {"dtype": f.dtype, "param_dtype": f.param_dtype}
        axes = ("embed", "mlp")
        for i in range(f.layers):
            x = Norm(f.norm, axis=axes[0], name=f"norm{i}", **dtypes)(nn.relu(x), train=train)
            width = f.hidden if i < f.layers - 1 else f.features
            x = dense(width, axes, name=f"dense{i}", **dtypes)(x)
            axes = axes[::-1]
        return x


def gate_penalty(gates: Float[Array, "*n d"]) -> Float[Array, ""]:
    """Computes the mean of 4 g (1 - g): 0 where all gates are open or closed, 1 where all are 1/2.

    Args:
      gates: Gates in [0, 1].

    Returns:
      The penalty.
    """
    return jnp.mean(4 * gates * (1 - gates))
