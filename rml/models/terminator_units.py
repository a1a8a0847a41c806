"""Parts of Terminator's blocks: gates by slow nets, standardisation without running scales.

Zhang, HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction,
arXiv:2401.17948; the equations are those of the public code (lalalune/Terminator at 98873b5). All
read images [b, h, w, c] and sequences [b, t, c].
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rml.models.hyperzzw import hyperzzw_gate
from rml.models.implicit_kernel import Magnet
from rml.models.layers import Dtype, Norm, dense

GROUPS = 12
"""Groups of channels that are standardised over the batch and over each example in turn."""
Standard = str | Mapping[str, float | Array]
"""How groups are standardised: "alternate", or shares of the batch's in "even" and "odd" groups."""
gelu = functools.partial(nn.gelu, approximate=False)
_he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_even = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def standardize(x: Float[Array, "b ... c"], *, batch: bool = False) -> Float[Array, "b ... c"]:
    """Brings the channels of each example, or of the batch, to mean 0 and variance 1 over places.

    Args:
      x: Images or sequences.
      batch: Whether the statistics are those of all examples together.

    Returns:
      As `x`; 0 where a channel is constant.
    """
    axes = tuple(range(0 if batch else 1, x.ndim - 1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(axes, keepdims=True)
    variance = (centred * centred).mean(axes, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)


class RGU(nn.Module):
    """Recursive gated unit: W_Y (GELU(IS(W_K x ⊙ W_Q W_V x)) + P), P a number for each place."""

    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"]) -> Float[Array, "b ... c"]:
        """Applies the unit."""
        layer = functools.partial(
            mixer, x.shape[-1], init=_even, dtype=self.dtype, param_dtype=self.param_dtype
        )
        product = layer(name="key")(x) * layer(name="query")(layer(name="value")(x))
        axes = (None,) * (x.ndim - 2)
        init: Any = nn.with_logical_partitioning(nn.initializers.zeros, axes)
        places: Array = self.param("position", init, x.shape[1:-1], self.param_dtype)
        return layer(name="out")(
            gelu(standardize(product)) + places[..., None].astype(product.dtype)
        )


class HCI(nn.Module):
    """Hyper-channel interaction: x ⊙ σ(K_c ⊙ y ⊙ y), y the mean of x over places.

    Attributes:
      hidden: Width of the slow net, which reads coordinates of channels.
      omega: Scale of its frequencies.
      param_dtype: Type of its parameters.
    """

    hidden: int = 32
    omega: float = 2000.0
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"]) -> Float[Array, "b ... c"]:
        """Applies the gate."""
        slow = {"omega": self.omega, "param_dtype": self.param_dtype}
        kernel = Magnet(1, self.hidden, name="channels", **slow)((x.shape[-1],))[:, 0]
        return x * nn.sigmoid(_of_channels(x, kernel))


class HI(nn.Module):
    """Hyper interaction: x ⊙ σ((K_s ⊙ ȳ ⊙ ȳ) · (K_c ⊙ y_c ⊙ y_c)).

    ȳ is the mean of y over channels, y_c that over places.

    Attributes:
      hidden: Width of the slow net over places.
      channel_hidden: Width of that over channels.
      omega: Scale of their frequencies.
      param_dtype: Type of their parameters.
    """

    hidden: int = 64
    channel_hidden: int = 16
    omega: float = 2000.0
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, y: Float[Array, "b ... c"], x: Float[Array, "b ... c"]
    ) -> Float[Array, "b ... c"]:
        """Gates `x` by `y`."""
        slow = {"omega": self.omega, "param_dtype": self.param_dtype}
        channels = Magnet(1, self.channel_hidden, name="channels", **slow)((y.shape[-1],))[:, 0]
        places = Magnet(1, self.hidden, name="places", **slow)(y.shape[1:-1])
        mean = y.mean(axis=-1, keepdims=True)
        of_places = hyperzzw_gate(mean, places.astype(y.dtype))
        return x * nn.sigmoid(of_places * _of_channels(y, channels))


class GroupStandard(nn.Module):
    """Standardisation of 12 groups of channels, over the batch and over each example in turn.

    Attributes:
      statistics: "running" or "batch", see `Terminator`.
      standard: "alternate", or the share of standardisation over the batch in groups of "even" and
        of "odd" number, the rest being that over each example: 1 and 0 give the same as
        "alternate", two ones or two zeros are the ablations with one kind alone.
    """

    statistics: str = "running"
    standard: Standard = "alternate"

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool) -> Float[Array, "b ... c"]:
        """Standardises.

        Raises:
          ValueError: The channels cannot be cut into 12 groups.
        """
        size, rest = divmod(x.shape[-1], GROUPS)
        if rest:
            raise ValueError(f"x has {x.shape[-1]} channels, expected a multiple of {GROUPS}")
        if not isinstance(self.standard, str):
            shares = jnp.stack([jnp.asarray(self.standard[name]) for name in ("even", "odd")])
            share = jnp.repeat(jnp.tile(shares, GROUPS // 2), size).astype(x.dtype)
            of_batch = batch_standard(x, self.statistics, "batch", train)
            return share * of_batch + (1 - share) * standardize(x)
        pairs = x.reshape(*x.shape[:-1], GROUPS // 2, 2, size)
        of_batch, of_each = (pairs[..., i, :].reshape(*x.shape[:-1], -1) for i in (0, 1))
        of_batch = batch_standard(of_batch, self.statistics, "batch", train)
        both = [
            own.reshape(*x.shape[:-1], GROUPS // 2, size)
            for own in (of_batch, standardize(of_each))
        ]
        return jnp.stack(both, axis=-2).reshape(x.shape)


def batch_standard(x: Array, statistics: str, name: str, train: bool) -> Array:
    """Standardises over the batch, in evaluation by running statistics unless told otherwise."""
    if statistics == "batch":
        return standardize(x, batch=True)
    return Norm("batch", affine=False, name=name, dtype=x.dtype)(x, train=train)


def _of_channels(x: Array, kernel: Array) -> Array:
    """K ⊙ y ⊙ y of means y over places, in a shape that x has places for."""
    axes = tuple(range(1, x.ndim - 1))
    gate = hyperzzw_gate(x.mean(axis=axes), kernel.astype(x.dtype))
    return jnp.expand_dims(gate, axes)


def mixer(features: int, *, name: str, init: Any = _he, **dtypes: Any) -> nn.Dense:
    """Makes a layer on channels, the same at all places."""
    return dense(features, ("channels_in", "channels_out"), name=name, kernel_init=init, **dtypes)
