"""Terminator: a network without residual sums, whose kernels over the whole image slow nets write.

Zhang, HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction,
arXiv:2401.17948. The equations are those of the public code (lalalune/Terminator at 98873b5) for
images; of the paper the abstract alone was read. Sequences are this repository's own: modules read
[b, t, c] as well, with a convolution in the place of the product of planes (`hyperzzw_global`).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rml.models.hyperzzw import hyperzzw_global, hyperzzw_local
from rml.models.implicit_kernel import STATISTICS, LocalMagnet, Magnet
from rml.models.layers import Dtype, unknown
from rml.models.terminator_units import (
    HCI,
    HI,
    RGU,
    GroupStandard,
    Standard,
    batch_standard,
    gelu,
    mixer,
    standardize,
)

EARLIER = ((), (), (0,), (1,), (2, 1))
"""By block the earlier ones whose outputs it reads beside the last one's."""
BRANCHES = ("G₁", "G₂", "SiGLU", "G₃", "HI", "L₁", "L₂", "L₃", "L₄", "f")
"""Names of what a block computes of its input, see `Block`, in the order that it leaves them in."""


def slow_neural_loss(
    kernels: Sequence[Float[Array, "..."]], *, reduce: str = "sum"
) -> Float[Array, ""]:
    """Computes how far the global kernels of blocks are from one another, over all pairs.

    Σ_{i>j} of the mean of (s_i - s_j)² over places, where s_i is the sum of a kernel's channels; or
    with `reduce` "tile" of (K_i - K_j)² over places and channels, where the channels of K_j are
    repeated until they are as many as those of K_i.

    Args:
      kernels: Kernels [*places, channels] of equal places, from the first block to the last.
      reduce: "sum", what the public code trains with, or "tile".

    Returns:
      The loss; 0 where all are equal, or there is one.

    Raises:
      ValueError: Places differ, `reduce` is unknown, or channels do not divide later ones.
    """
    if reduce not in ("sum", "tile"):
        raise unknown("reduce", reduce, ("sum", "tile"))
    shapes = [kernel.shape for kernel in kernels]
    if len({shape[:-1] for shape in shapes}) != 1:
        raise ValueError(f"kernels have shapes {shapes}, expected at least one, of equal places")
    later, first = np.tril_indices(len(kernels), -1)
    if reduce == "sum":
        sums = jnp.stack([kernel.sum(axis=-1) for kernel in kernels])
        squares = (sums[later] - sums[first]) ** 2
        return squares.sum() / sums[0].size
    total = jnp.zeros((), kernels[0].dtype)
    for i, j in zip(later.tolist(), first.tolist(), strict=True):
        times, rest = divmod(shapes[i][-1], shapes[j][-1])
        if rest:
            raise ValueError(f"kernels have shapes {shapes}, expected channels that divide later's")
        total += jnp.mean((kernels[i] - _tiled(kernels[j], times)) ** 2)
    return total


def weight_norms(params: Mapping[str, Any], *, slow: float = 1e-6) -> Float[Array, ""]:
    """Computes the sum of the norms of a network's weights, a penalty of the public code.

    Fast nets of blocks count with all their tensors, each with its norm ‖w‖ and not the square;
    gated units (RGU) and slow nets over places count with their weights, without offsets, times
    `slow`. Slow nets over channels, the blocks' last offsets and what follows the blocks do not
    count. Nothing says of the public code that this choice is meant: it is what its names match.

    Args:
      params: Parameters of a `Terminator`.
      slow: Factor of gated units and slow nets.

    Returns:
      The sum; its gradient is 0 where a tensor is.

    Source: `LnLoss` of the public code of arXiv:2401.17948, which adds 4e-5 of it to the loss.
    """
    total = jnp.zeros(())
    for path, leaf in jax.tree_util.tree_flatten_with_path(dict(params))[0]:
        block, *names = (key.key for key in path)
        if not block.startswith("block") or names == ["bias"] or "channels" in names:
            continue
        if names[0].startswith(("mixer", "local_mixer", "local_bias", "bottleneck")):
            total += _norm(leaf)
        elif names[-1] == "kernel":
            total += slow * _norm(leaf)
        elif names[-1] == "frequencies":
            total += slow * jax.vmap(_norm)(leaf).sum()
    return total


class Terminator(nn.Module):
    """An encoder of blocks with kernels over all places; its features are means over them.

    Block i reads the output of block i - 1 and those of `EARLIER`, their channels repeated. Under
    "intermediates" it leaves the kernel of each block (`kernel`), the outputs of its branches by
    `BRANCHES` (`branches`) and its features before the last GELU (`standardized`). Parameters are
    tied to one size of images.

    Attributes:
      factors: Each block's output channels over its input channels, at most 5 blocks; those of
        the public code are 4, 3, 2, 2, 2 on images of 3 channels.
      layers: Number of products of the slow net of each block's global kernel.
      local_sizes: Sizes of the four local kernels.
      hidden: Width of slow nets over all places.
      local_hidden: Width of those of local kernels and of HCI's, at least 2; HI's slow net over
        channels has half of it.
      omega: Scale of the slow nets' frequencies.
      hyper: Share of a block's global kernel K in what multiplies the input: 0 is the ablation with
        K = 1. HI keeps its own kernel over places.
      wide: What the branches over all places are multiplied by: 0 is the ablation without them. The
        features f, which K enters place by place, stay.
      near: What the local branches are multiplied by: 0 is the ablation without them.
      standard: How groups of channels are standardised after each block, see `GroupStandard`;
        "alternate" is as in the public code.
      statistics: "running", so that an evaluation does not depend on the other examples of its
        batch, or "batch", as in the public code.
      pool_batch: Whether a local kernel is that of the batch's mean, or each example has its own.
      trained_scales: Whether numbers are trained that the public code keeps where no optimiser sees
        them: the scales of `LocalMagnet`, and an offset after each block.
      dropout: Rate at which channels are dropped after all blocks but the first; above 0 it needs
        an rng named "dropout".
      dtype: Type of the fast net's computation.
      param_dtype: Type of the parameters; slow nets compute in it.
    """

    factors: Sequence[int] = (4, 3, 2, 2, 2)
    layers: Sequence[int] = (3, 2, 2, 2, 2)
    local_sizes: Sequence[int] = (3, 9, 5, 7)
    hidden: int = 64
    local_hidden: int = 32
    omega: float = 2000.0
    hyper: float | Array = 1.0
    wide: float | Array = 1.0
    near: float | Array = 1.0
    standard: Standard = "alternate"
    statistics: str = "running"
    pool_batch: bool = True
    trained_scales: bool = False
    dropout: float = 0.0
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"], *, train: bool = False) -> Float[Array, "b d"]:
        """Encodes images or sequences.

        Args:
          x: Images [b, h, h, c] or sequences [b, t, c].
          train: Whether statistics are those of this batch, and channels are dropped.

        Returns:
          Features [b, c · the product of the factors].

        Raises:
          ValueError: An attribute or `x` is not as described.
        """
        self._check(x)
        outputs: list[Array] = []
        x = x if self.dtype is None else x.astype(self.dtype)
        for i, (factor, layers) in enumerate(zip(self.factors, self.layers, strict=True)):
            x = Block(
                factor, layers, self.local_sizes, self.hidden, self.local_hidden, self.omega,
                self.hyper, self.wide, self.near, self.standard, self.statistics,
                self.pool_batch, self.trained_scales,
                self.dropout if i else 0.0, self.dtype, self.param_dtype, name=f"block{i}",
            )(x, [outputs[j] for j in EARLIER[i]], train=train)  # fmt: skip
            outputs.append(x)
            if self.trained_scales:
                offset = self.param(f"offset{i}", _boxed_zeros(), (1,), self.param_dtype)
                x = (x + offset).astype(x.dtype)
        return x.mean(axis=tuple(range(1, x.ndim - 1)))

    def _check(self, x: Array) -> None:
        if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[1] != x.shape[2]):
            raise ValueError(f"x has shape {x.shape}, expected [b, h, h, c] or [b, t, c]")
        if len(self.factors) != len(self.layers) or not 1 <= len(self.factors) <= len(EARLIER):
            raise ValueError(
                f"factors={tuple(self.factors)} and layers={tuple(self.layers)}, expected equally "
                f"many, 1 to {len(EARLIER)}"
            )
        if len(self.local_sizes) != 4:
            raise ValueError(
                f"local_sizes={tuple(self.local_sizes)}, expected the sizes of 4 local kernels"
            )
        if self.local_hidden < 2:
            raise ValueError(f"local_hidden={self.local_hidden}, expected at least 2: HI has half")
        if self.statistics not in STATISTICS:
            raise unknown("statistics", self.statistics, STATISTICS)
        if isinstance(self.standard, str) and self.standard != "alternate":
            raise unknown("standard", self.standard, ("alternate",))
        if not isinstance(self.standard, str) and set(self.standard) != {"even", "odd"}:
            raise ValueError(f"standard has {sorted(self.standard)}, expected shares even and odd")


class Block(nn.Module):
    """The slow-fast block (SFNE): global and local branches, joined and narrowed.

    With the global kernel K, Ŵ = x ⊙ K and instance standardisation IS: f = IS(RGU(Ŵ) + RGU(x)),
    m = IS(W x) and e = IS(HCI(x)). Global branches: G₁, G₂ and G₃ of Ŵ with f, m and e by
    `hyperzzw_global`, G₁ ⊙ σ(G₁) and HI(G₁, x). Local branches L₁ to L₄: kernels written for x, e,
    m and x act on e, x, x and m. All are concatenated with f and earlier outputs, brought to
    `factor` times the channels, standardised (`GroupStandard`), and go through GELU.

    Attributes are those of `Terminator`.
    """

    factor: int
    layers: int
    local_sizes: Sequence[int]
    hidden: int
    local_hidden: int
    omega: float
    hyper: float | Array
    wide: float | Array
    near: float | Array
    standard: Standard
    statistics: str
    pool_batch: bool
    trained_scales: bool
    dropout: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b ... c"], earlier: Sequence[Array], *, train: bool
    ) -> Float[Array, "b ... d"]:
        """Applies the block; `earlier` are outputs of earlier blocks, whose channels divide x's."""
        channels, dtypes = x.shape[-1], {"dtype": self.dtype, "param_dtype": self.param_dtype}
        slow: dict[str, Any] = {"omega": self.omega, "param_dtype": self.param_dtype}
        mixed: Any = functools.partial(mixer, **dtypes)
        kernel = Magnet(channels, self.hidden, self.layers, name="slow", **slow)(x.shape[1:-1])
        self.sow("intermediates", "kernel", kernel)
        kernel = (self.hyper * kernel + (1 - self.hyper)).astype(x.dtype)

        rgu = functools.partial(RGU, **dtypes)
        fast = standardize(rgu(name="rgu_kernel")(x * kernel) + rgu(name="rgu")(x))
        mixed_x = standardize(mixed(channels, name="mixer")(x))
        gated = standardize(HCI(self.local_hidden, name="hci", **slow)(x))
        first, second, third = (hyperzzw_global(x, kernel, z) for z in (fast, mixed_x, gated))
        joint = HI(self.hidden, self.local_hidden // 2, name="hi", **slow)(first, x)

        def local(i: int, written_for: Array, z: Array) -> Array:
            weights = LocalMagnet(
                channels, self.local_hidden, statistics=self.statistics, name=f"local_kernel{i}",
                pool_batch=self.pool_batch, trained_scales=self.trained_scales, **slow,
            )(written_for, self.local_sizes[i], train=train)  # fmt: skip
            found = mixed(channels, name=f"local_mixer{i}")(
                hyperzzw_local(z, weights.astype(z.dtype))
            )
            found = gelu(batch_standard(found, self.statistics, f"local_norm{i}", train))
            return found + self.param(f"local_bias{i}", _boxed_zeros(), (1,), self.param_dtype)

        branches = [first, second, nn.sigmoid(first) * first, third, joint]
        wide = [(self.wide * one).astype(x.dtype) for one in branches]
        near = [local(0, x, gated), local(1, gated, x), local(2, mixed_x, x), local(3, x, mixed_x)]
        near = [(self.near * one).astype(x.dtype) for one in near]
        self.sow("intermediates", "branches", (*wide, *near, fast))
        tiled = [_tiled(one, channels // one.shape[-1]) for one in earlier]
        parts = [
            wide[0], near[1], *tiled[:1], fast, wide[1], near[0], wide[2], near[2], wide[3],
            near[3], *tiled[1:], wide[4],
        ]  # fmt: skip
        joined = jnp.concatenate(parts, axis=-1)
        out = mixed(channels * self.factor, name="bottleneck")(joined)
        out = GroupStandard(self.statistics, self.standard, name="norm")(out, train=train)
        self.sow("intermediates", "standardized", out)
        out = gelu(out) + self.param("bias", _boxed_zeros(), (1,), self.param_dtype)
        axes = tuple(range(1, x.ndim - 1))
        out = nn.Dropout(self.dropout, broadcast_dims=axes, deterministic=not train)(out)
        return nn.with_logical_constraint(
            out.astype(x.dtype), ("batch", *(None for _ in axes), "channels_out")
        )


def _norm(x: Array) -> Array:
    """The norm of all entries."""
    square = jnp.sum(jnp.square(x))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _tiled(x: Array, times: int) -> Array:
    """All channels repeated one after another."""
    return jnp.tile(x, (*(1,) * (x.ndim - 1), times))


def _boxed_zeros() -> Any:
    return nn.with_logical_partitioning(nn.initializers.zeros, (None,))
