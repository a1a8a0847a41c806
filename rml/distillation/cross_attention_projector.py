"""Projectors from the stage of a student to the grid and the width of its teacher."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models import layers
from rml.models.attention import attend
from rml.models.conv import Conv
from rml.models.self_attention import HeadDense

# U(-n^-1/2, n^-1/2) of n inputs, with which the public code's maps begin.
_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class CrossAttentionProjector(nn.Module):
    """Tokens in the grid and width of a teacher, which attend to all positions of a student's map.

    Keys and values are X = ReLU(BN(conv3x3(S))) + positions, queries ReLU(W q) of tokens q that are
    given or a learned table. With y = LN(W_o MHA(Q, X, X)) the result is y + MLP(y), of hidden
    width 4d. Logits of the attention are multiplied by `scale`. Around the attention is no
    residual. Student and teacher may differ in grid, in width and in how far a position sees.

    Attributes:
      grid: Rows and columns of the teacher's grid.
      width: Width of the teacher's tokens.
      heads: Number of attention heads, a divisor of the width.
      scale: Factor of the logits beside k^-1/2, 5 in the public code.
      dtype: Compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.

    Source: Fan et al., ScaleKD, arXiv:2411.06786, cross attention projector, and its public code
    (deep-optimization/ScaleKD at 478a7db).
    """

    grid: tuple[int, int]
    width: int
    heads: int
    scale: float | jax.Array = 5.0
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b ..."],
        query: Float[Array, "b t d"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b t d"]:
        """Projects a map; the attention [b, heads, t, positions] is sown as an intermediate.

        Args:
          x: Map [b, h, w, c] or tokens of a square grid, without or after a class token.
          query: Tokens in the teacher's grid and width that the queries are made of; those of a
            learned table if not given.
          train: Whether BatchNorm uses (and updates) the statistics of this batch.

        Returns:
          Tokens in the teacher's grid and width.

        Raises:
          ValueError: The tokens are no square, the heads do not divide the width, or the query has
            another shape than the result.
        """
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        drawn = dtypes | {"kernel_init": _INIT}
        x = as_map(x)
        b, h, w, c = x.shape
        x = Conv(c, 3, 1, name="conv", **drawn)(x)
        x = nn.relu(layers.Norm(name="norm", **dtypes)(x, train=train))
        positions = self._table("positions", nn.initializers.truncated_normal(0.02), (h, w, c))
        x = (x + jnp.asarray(positions, x.dtype)).reshape(b, h * w, c)
        count = math.prod(self.grid)
        if query is None:
            query = self._table("query", nn.initializers.normal(1.0), (1, count, self.width))
        elif query.shape != (b, count, self.width):
            raise ValueError(f"query has shape {query.shape}, expected {(b, count, self.width)}")
        query = nn.relu(layers.dense(self.width, ("embed", "mlp"), name="query_in", **drawn)(query))
        heads, axes = (self.heads, self.width // self.heads), ("embed", "heads", "kv")
        query, key, value = (
            HeadDense(heads, axes, name=name, **drawn)(source)
            for name, source in {"queries": query, "keys": x, "values": x}.items()
        )
        query = jnp.broadcast_to(query, (b, *query.shape[1:]))
        y, weights = attend(query * jnp.asarray(self.scale, query.dtype), key, value)
        self.sow("intermediates", "attention", weights)
        y = HeadDense((self.width,), (*axes[1:], "embed"), name="out", **drawn)(y)
        y = layers.layer_norm("out_norm", epsilon=1e-5, **dtypes)(y)
        z = nn.relu(layers.dense(4 * self.width, ("embed", "mlp"), name="mlp_in", **drawn)(y))
        return y + layers.dense(self.width, ("mlp", "embed"), name="mlp_out", **drawn)(z)

    def _table(self, name: str, init: Any, shape: tuple[int, ...]) -> jax.Array:
        """A parameter whose last axis is that of channels."""
        axes = (*[None] * (len(shape) - 1), "embed")
        table = self.param(name, nn.with_logical_partitioning(init, axes), shape, self.param_dtype)
        return jnp.asarray(table)


class LinearProjector(nn.Module):
    """The plain alternative: a linear map of channels, and maps resized to the teacher's grid.

    Attributes:
      grid: Rows and columns of the teacher's grid.
      width: Width of the teacher's tokens.
      dtype: Compute dtype; None follows input and parameters.
      param_dtype: dtype of the parameters.
    """

    grid: tuple[int, int]
    width: int
    dtype: layers.Dtype = None
    param_dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b ..."],
        query: Float[Array, "b t d"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b t d"]:
        """Projects a map, or tokens of a square grid; `query` and `train` change nothing."""
        del query, train
        x = layers.dense(
            self.width, ("embed", "embed"), name="out", dtype=self.dtype,
            param_dtype=self.param_dtype, kernel_init=_INIT,
        )(as_map(x))  # fmt: skip
        x = jax.image.resize(x, (len(x), *self.grid, self.width), "linear")
        return x.reshape(len(x), math.prod(self.grid), self.width)


def as_map(x: Float[Array, "b ..."]) -> Float[Array, "b h w c"]:
    """Puts tokens of a square grid in rows and columns; a class token before them is left away.

    Raises:
      ValueError: It is neither a map nor such tokens.
    """
    if x.ndim == 4:
        return x
    if x.ndim == 3:
        first = math.isqrt(x.shape[1]) ** 2 != x.shape[1]
        side = math.isqrt(x.shape[1] - first)
        if side and side**2 == x.shape[1] - first:
            return x[:, int(first) :].reshape(len(x), side, side, x.shape[2])
    raise ValueError(f"a projector reads a map or a square grid of tokens, got shape {x.shape}")
