"""Kernels as functions of their coordinates: slow nets that write the weights of a fast net.

MAGNets of Romero et al., FlexConv, arXiv:2110.08059, as Zhang, HyperZ·Z·W Operator Connects
Slow-Fast Networks for Full Context Interaction, arXiv:2401.17948, changes them: an offset of each
place is learned, and small kernels depend on what the fast net sees. The equations are those of the
public code (lalalune/Terminator at 98873b5); of the paper the abstract alone was read.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rml.models.layers import Dtype, dense, unknown

STATISTICS = ("running", "batch")
"""What an evaluation takes for averages over images: those of the training, or of its own batch."""
LEAST_NORM = 1e-12
_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
_narrow = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def coordinate_grid(shape: Sequence[int]) -> Float[np.ndarray, "... d"]:
    """Computes the coordinates of a grid, from -1 to 1 along each axis; -1 where it has one place.

    Args:
      shape: Number of places along each axis.

    Returns:
      Coordinates [*shape, d], in the order of the axes.

    Raises:
      ValueError: There is no axis, or one has no place.
    """
    if not shape or min(shape) < 1:
        raise ValueError(f"a grid has shape {tuple(shape)}, expected axes of at least 1 place")
    axes = [np.linspace(-1.0, 1.0, size) for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


class SlowNet(nn.Module):
    """What slow nets share: sines of coordinates, multiplied layer by layer.

    With g_i(c) = sin(Ω_i c + β_i), h_1 = g_0(c) and h_{i+1} = g_i(c) ⊙ (L_i h_i + b_i) + P. P is
    one number for each place, shared by channels, and starts at 0, as β_i does, b_i at 1. Ω_i is
    drawn evenly from ±1/√d and scaled by 2π·ω·γ, where each sine and coordinate has its own γ from
    Gamma(6 / (i + 1), 1). The kernel is L_o h + b_o; the weights of L_o are drawn with the variance
    of those of L_i over the number of places.

    The authors' frequencies (ω = 2000) are far above what a grid of 32 places can show: at the
    start a kernel is nearly noise. P ties the parameters to one size.

    Attributes:
      features: Channels of the kernel.
      hidden: Width.
      layers: Number of products.
      omega: Scale of the frequencies.
      param_dtype: Type of the parameters and of the kernel.
    """

    features: int
    hidden: int = 64
    layers: int = 2
    omega: float = 2000.0
    param_dtype: Dtype = jnp.float32

    def sines(self, shape: Sequence[int]) -> Float[Array, "l ... f"]:
        """Computes filters g_0 to g_layers at the coordinates of a grid of this shape."""
        grid = jnp.asarray(coordinate_grid(shape), self.param_dtype)
        count, axes = self.layers + 1, (None, None, None)
        gammas = tuple(6.0 / (i + 1) for i in range(count))

        def draw(key: Array, shape: Sequence[int], dtype: Any) -> Array:
            even, gamma = jax.random.split(key)
            weights = jax.random.uniform(even, shape, dtype, -1.0, 1.0) / math.sqrt(shape[1])
            scales = _gamma(gamma, gammas, shape[1:], dtype)
            return 2 * jnp.pi * self.omega * scales * weights

        init: Any = nn.with_logical_partitioning(draw, axes)
        size = (count, len(shape), self.hidden)
        frequencies: Array = self.param("frequencies", init, size, self.param_dtype)
        zeros: Any = nn.with_logical_partitioning(nn.initializers.zeros, axes[:2])
        phases: Array = self.param("phase_bias", zeros, (count, self.hidden), self.param_dtype)
        angles = jnp.tensordot(grid, frequencies, ((-1,), (1,))) + phases
        return jnp.moveaxis(jnp.sin(angles), -2, 0)

    def layer(self, name: str) -> nn.Module:
        """Makes a layer L_i with its offset b_i."""
        return nn.Dense(
            self.hidden,
            kernel_init=nn.with_logical_partitioning(_uniform, (None, None)),
            bias_init=nn.with_logical_partitioning(nn.initializers.ones, (None,)),
            param_dtype=self.param_dtype,
            name=name,
        )

    def places(self, shape: Sequence[int]) -> Float[Array, "... 1"]:
        """Returns the offset P of each place."""
        axes = (None,) * len(shape)
        init: Any = nn.with_logical_partitioning(nn.initializers.zeros, axes)
        offsets: Array = self.param("position", init, tuple(shape), self.param_dtype)
        return offsets[..., None]

    def kernel(self, h: Float[Array, "... f"], places: int) -> Float[Array, "... c"]:
        """Computes the kernel of the last products."""
        init = nn.initializers.variance_scaling(1.0 / places, "fan_in", "uniform")
        return dense(
            self.features, (None, None), name="out", kernel_init=init, param_dtype=self.param_dtype
        )(h)


class Magnet(SlowNet):
    """A slow net whose kernel does not depend on the input: that of all places, or of channels."""

    @nn.compact
    def __call__(self, shape: Sequence[int]) -> Float[Array, "... c"]:
        """The kernel [*shape, features] of a grid of this shape."""
        filters, places = self.sines(shape), self.places(shape)
        h = filters[0]
        for i, sines in enumerate(filters[1:]):
            h = sines * self.layer(f"hidden{i}")(h) + places
        return self.kernel(h, math.prod(shape))


class LocalMagnet(SlowNet):
    """A slow net whose kernel depends on what the fast net sees.

    After each product of `SlowNet`, h ← α ⊙ sg(h) + β ⊙ h/‖h‖, with the norm over places and sg
    without gradient, and then h ← h ⊙ (L'_i u + b'_i). The summary u of the input is pooled to the
    kernel's size, goes through a 1x1 layer, is averaged over images, and goes through another layer
    and GELU.

    In the public code u is that of any batch, so that predictions depend on the other test images.
    By default a running average of the training takes its place in evaluation.

    Attributes:
      statistics: What stands for the average over images in evaluation, one of `STATISTICS`.
      pool_batch: Whether images have one kernel, that of their average, or each image its own.
      trained_scales: Whether α, which starts at 1, and β, which starts at 0.1, are trained; the
        public code keeps them in lists that no optimiser sees.
      momentum: Decay of the running average.
    """

    statistics: str = "running"
    pool_batch: bool = True
    trained_scales: bool = False
    momentum: float = 0.9

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ... c"], size: int, *, train: bool = False
    ) -> Float[Array, "... c"]:
        """Writes the kernel for an input.

        Args:
          x: Images [b, h, w, c] or sequences [b, t, c].
          size: Places of the kernel along each axis.
          train: Whether averages are those of this batch, and the running ones follow them.

        Returns:
          The kernel [size, size, features], of sequences [size, features]; without `pool_batch`
          one for each input, [b, ...].

        Raises:
          ValueError: `statistics` is unknown.
        """
        shape = (size,) * (x.ndim - 2)
        context = self.context(adaptive_mean(x.astype(self.param_dtype), size), train)
        filters, places = self.sines(shape), self.places(shape)
        h = filters[0]
        for i, sines in enumerate(filters[1:]):
            h = sines * self.layer(f"hidden{i}")(h) + places
            kept, unit = self.scales(i)
            h = kept * jax.lax.stop_gradient(h) + unit * _unit(h, len(shape))
            h = h * self.layer(f"context{i}")(context)
        return self.kernel(h, math.prod(shape))

    def context(self, pooled: Float[Array, "b ... c"], train: bool) -> Float[Array, "... f"]:
        """Summarises pooled inputs as u, averaged before the 1x1 layer, which is affine."""
        if self.statistics not in STATISTICS:
            raise unknown("statistics", self.statistics, STATISTICS)
        if self.pool_batch:
            pooled = pooled.mean(axis=0)
            if self.statistics == "running":
                zeros = lambda: jnp.zeros(pooled.shape, jnp.float32)  # noqa: E731
                running = self.variable("batch_stats", "pooled", zeros)
                if train and not self.is_initializing():
                    kept = self.momentum * running.value
                    follows = kept + (1 - self.momentum) * jax.lax.stop_gradient(pooled)
                    running.value = follows.astype(running.value.dtype)
                pooled = pooled if train else running.value
        for name in ("reduce", "mix"):
            pooled = nn.Dense(
                self.hidden,
                kernel_init=nn.with_logical_partitioning(_narrow, (None, None)),
                bias_init=nn.with_logical_partitioning(_even_offset(pooled.shape[-1]), (None,)),
                param_dtype=self.param_dtype,
                name=name,
            )(pooled)
        return nn.gelu(pooled, approximate=False)

    def scales(self, i: int) -> tuple[Any, Any]:
        """Returns the factors α and β of a layer."""
        if not self.trained_scales:
            return 1.0, 0.1
        found = [
            self.param(
                f"{name}{i}",
                nn.with_logical_partitioning(nn.initializers.constant(start), (None,)),
                (self.hidden,),
                self.param_dtype,
            )
            for name, start in (("kept_scale", 1.0), ("unit_scale", 0.1))
        ]
        return found[0], found[1]


def adaptive_mean(x: Float[Array, "b ... c"], size: int) -> Float[Array, "b ... c"]:
    """Computes means over windows that cover each axis of images or sequences in `size` parts.

    Part i of n places is those from ⌊i n / size⌋ to ⌈(i + 1) n / size⌉ - 1, so that parts overlap
    where `size` does not divide n, and repeat places where it is larger.
    """
    for axis in range(1, x.ndim - 1):
        places = x.shape[axis]
        at = np.arange(places) * size
        part = np.arange(size)[:, None] * places
        # Place p is in part i where p ≥ ⌊i n / size⌋ and p < ⌈(i + 1) n / size⌉.
        inside = (at + size > part) & (at < part + places)
        weights = inside / inside.sum(axis=1, keepdims=True)
        moved = jnp.tensordot(x, jnp.asarray(weights, x.dtype), ((axis,), (1,)))
        x = jnp.moveaxis(moved, -1, axis)
    return x


def _gamma(key: Array, shapes: Sequence[float], size: Sequence[int], dtype: Any) -> Array:
    """Draws [len(shapes), *size] from Gamma(a, 1) for each a.

    Where 2a is whole it is a sum of exponentials and half a squared normal, which compiles in a
    fraction of the time.
    """
    whole, half = np.divmod(2 * np.asarray(shapes), 2)
    rank = (len(shapes), *(1,) * len(size))
    if not np.isin(half, (0, 1)).all():
        return jax.random.gamma(key, jnp.asarray(shapes, dtype).reshape(rank), (rank[0], *size))
    even, normal = jax.random.split(key)
    terms = np.arange(max(whole))[:, None] < whole
    drawn = jax.random.exponential(even, (len(terms), rank[0], *size), dtype)
    total = jnp.sum(drawn, axis=0, where=terms.reshape(len(terms), *rank))
    squares = jax.random.normal(normal, total.shape, dtype) ** 2
    return total + jnp.asarray(half.reshape(rank) / 2, dtype) * squares


def _unit(h: Array, rank: int) -> Array:
    """Channels over their norm over places."""
    axes = tuple(range(h.ndim - 1 - rank, h.ndim - 1))
    square = jnp.sum(h * h, axis=axes, keepdims=True)
    return h * jax.lax.rsqrt(jnp.maximum(square, LEAST_NORM**2))


def _even_offset(inputs: int) -> nn.initializers.Initializer:
    """Offsets drawn evenly from ±1/√inputs."""
    half = 1 / math.sqrt(inputs)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -half, half)
