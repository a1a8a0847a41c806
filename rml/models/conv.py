"""Two-dimensional convolution whose gradients are fast on a CPU, inside loops too."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from rml.models.layers import unknown

Implementation = str  # "auto", "xla" or "matmul"
Padding = str | int | Sequence[Sequence[int]]
_Pair = tuple[int, int]
_Pads = tuple[_Pair, _Pair]
_LAYOUT = ("NHWC", "HWIO", "NHWC")

# Patches of one step of the kernel gradient: about what a core's second-level cache holds.
_PATCH_BYTES = 1 << 21
# Least images of one step, so that a batch sharded over as many devices need not move.
_LEAST_IMAGES = 8
# Least channels for which a patch is gathered pixel by pixel: a line of the cache.
_LEAST_PIECE = 16


def conv2d(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i_group o"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    groups: int = 1,
    implementation: Implementation = "auto",
) -> Float[Array, "b oh ow o"]:
    """Cross-correlates images with a kernel, as every "convolution" layer does.

    XLA's CPU backend computes a convolution and its gradients fast in the outermost computation. In
    the body of a loop, such as one over seeds or microbatches, its kernel gradient takes a hundred
    times as long. "matmul" computes that gradient as patches^T @ dy instead, in cache-sized steps
    over the batch, and the input gradient in the one form that is fast in loops too.
    It is a reverse-mode rule: gradients of any order, `vmap` and `jvp` of a gradient work, `jvp` of
    the convolution itself (`jax.jvp`, `jax.jacfwd`) needs "xla".

    Args:
      x: images.
      kernel: height, width, input channels per group, output channels.
      strides: of the rows and the columns.
      padding: "SAME", "VALID", an integer for all four sides, or ((top, bottom), (left, right)).
      groups: channel groups; more than one always takes XLA's gradient.
      implementation: "xla", "matmul", or "auto": matmul where the program is lowered for a CPU, xla
        elsewhere.

    Returns:
      Images in the dtype of `x`.

    Raises:
      ValueError: shapes and groups disagree, an option is unknown, or "matmul" is asked of groups.
    """
    if implementation not in ("auto", "xla", "matmul"):
        raise unknown("implementation", implementation, ("auto", "xla", "matmul"))
    if kernel.shape[2] * groups != x.shape[3] or kernel.shape[3] % groups:
        raise ValueError(
            f"kernel {kernel.shape} with groups={groups} does not fit images {x.shape}: expected "
            "kernel[2] * groups = channels, and groups to divide kernel[3]"
        )
    if implementation == "matmul" and groups > 1:
        raise ValueError(f"implementation='matmul' has no groups, got groups={groups}")
    pads = _explicit(padding, x, kernel, strides)
    if implementation == "xla" or groups > 1:
        return _xla(x, kernel, strides, pads, groups)
    # The gradient is traced elsewhere, and keeps the precision that is asked of products here.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _conv(x, kernel, strides, pads, implementation == "auto", precision)


def _explicit(padding: Padding, x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> _Pads:
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise unknown("padding", padding, ("SAME", "VALID"))
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return ((top, bottom), (left, right))


def _xla(
    x: jax.Array, kernel: jax.Array, strides: _Pair, pads: _Pads, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv(
    x: jax.Array, kernel: jax.Array, strides: _Pair, pads: _Pads, auto: bool, precision: str | None
) -> jax.Array:
    return _xla(x, kernel, strides, pads)


def _forward(
    x: jax.Array, kernel: jax.Array, strides: _Pair, pads: _Pads, auto: bool, precision: str | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _xla(x, kernel, strides, pads), (x, kernel)


def _backward(
    strides: _Pair,
    pads: _Pads,
    auto: bool,
    precision: str | None,
    residuals: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals

    def by_xla(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        (dx,) = jax.linear_transpose(lambda x: _xla(x, kernel, strides, pads), x)(dy)
        (dk,) = jax.linear_transpose(lambda k: _xla(x, k, strides, pads), kernel)(dy)
        return dx, dk

    def on_cpu(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        # As rows, all patches are copied at once: no more of them than gradients.
        in_rows = x.shape[3] == 1 and math.prod(kernel.shape[:2]) <= kernel.shape[3]
        gradient = _kernel_gradient_of_one_channel if in_rows else _kernel_gradient
        dk = gradient(x, dy, kernel.shape[:2], strides, pads).astype(kernel.dtype)
        return _image_gradient(dy, kernel, x.shape[1:3], strides, pads), dk

    with jax.default_matmul_precision(precision):
        if not auto:
            return on_cpu(x, kernel, dy)
        if any(jax.typeof(x).sharding.spec):  # an explicit mesh refuses to split the batch
            return by_xla(x, kernel, dy)
        return lax.platform_dependent(x, kernel, dy, cpu=on_cpu, default=by_xla)


_conv.defvjp(_forward, _backward)


def _image_gradient(
    dy: jax.Array, kernel: jax.Array, size: tuple[int, ...], strides: _Pair, pads: _Pads
) -> jax.Array:
    """The gradient as convolutions of images by kernels, both in their usual layout.

    JAX's own names the axes of both in another order. XLA's CPU backend brings that to this form in
    the outermost computation alone; in the body of a loop it is 20 times slower. It also puts
    zeros between the gradients of a strided convolution and multiplies by them. Here image rows
    r, r + s, r + 2s, ... of a stride s are a convolution by every s-th row of the kernel, and
    columns likewise. Over several devices zeros stay: of kernels that are split over channels the
    partitioner would gather the parts.
    """
    between = (1, 1)
    if jax.device_count() > 1:
        between, strides = strides, between
    places = [-(-n // s) for n, s in zip(size, strides, strict=False)]

    def taps(axis: int, r: int) -> tuple[slice, _Pair]:
        """Which of the kernel's rows (columns) meet image rows r, r + s, ..., and the padding."""
        s, beyond = strides[axis], r + pads[axis][0]
        number = len(range(beyond % s, kernel.shape[axis], s))
        last = places[axis] + beyond // s - (dy.shape[1 + axis] - 1) * between[axis] - 1
        return slice(beyond % s, None, s), (number - 1 - beyond // s, last)

    def of(rows: tuple[slice, _Pair], columns: tuple[slice, _Pair]) -> jax.Array:
        (i, above), (j, beside) = rows, columns
        own = jnp.flip(kernel[i, j], (0, 1)).swapaxes(2, 3)
        if not own.size:
            return jnp.zeros((dy.shape[0], *places, own.shape[3]), dy.dtype)
        return lax.conv_general_dilated(
            dy, own, (1, 1), (above, beside), lhs_dilation=between, dimension_numbers=_LAYOUT
        )

    (sh, sw), channels = strides, kernel.shape[2]
    # Written into place: of stacked parts, which XLA fuses into what reads them, it would choose
    # one for each element.
    found = jnp.zeros((dy.shape[0], places[0], sh, places[1], sw, channels), dy.dtype)
    for i, j in itertools.product(range(sh), range(sw)):
        part = of(taps(0, i), taps(1, j))[:, :, None, :, None]
        found = lax.dynamic_update_slice(found, part, (0, 0, i, 0, j, 0))
    whole = found.reshape(dy.shape[0], places[0] * sh, places[1] * sw, channels)
    return whole[:, : size[0], : size[1]]


def _kernel_gradient_of_one_channel(
    x: jax.Array, dy: jax.Array, size: tuple[int, ...], strides: _Pair, pads: _Pads
) -> jax.Array:
    """The gradient as one product: the pixels that meet a tap of the kernel are a row."""
    (kh, kw), (sh, sw), (_, oh, ow, out) = size, strides, dy.shape
    trim = _trim(x, dy, size, strides, pads)[:3]
    x = lax.pad(x[..., 0], jnp.zeros((), x.dtype), trim)
    taps = [
        x[:, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw]
        for i, j in itertools.product(range(kh), range(kw))
    ]
    rows = lax.optimization_barrier(jnp.stack(taps).reshape(kh * kw, -1))
    wide = jnp.promote_types(x.dtype, jnp.float32)
    found = jnp.matmul(rows, dy.reshape(-1, out), preferred_element_type=wide)
    return found.reshape(kh, kw, 1, out)


def _trim(
    x: jax.Array, dy: jax.Array, size: tuple[int, ...], strides: _Pair, pads: _Pads
) -> list[tuple[int, int, int]]:
    """How images are padded, or cropped, to just the rows and columns that meet the kernel."""
    sides = [
        (low, (o - 1) * s + k - low - n, 0)
        for (low, _), k, s, o, n in zip(
            pads, size, strides, dy.shape[1:], x.shape[1:], strict=False
        )
    ]
    return [(0, 0, 0), *sides, (0, 0, 0)]


def _kernel_gradient(
    x: jax.Array, dy: jax.Array, size: tuple[int, ...], strides: _Pair, pads: _Pads
) -> jax.Array:
    """Sums patches^T @ dy over a few images at a time: [kh, kw, i, o] in float32 or wider."""
    kh, kw = size
    batch, oh, ow, out = dy.shape
    channels = x.shape[3]
    if not dy.size:
        return jnp.zeros((kh, kw, channels, out), dy.dtype)
    height = (oh - 1) * strides[0] + kh
    trim = _trim(x, dy, size, strides, pads)

    def step(x: jax.Array, dy: jax.Array) -> jax.Array:
        x = lax.pad(x, jnp.zeros((), x.dtype), trim)
        return _of_few(x, dy, size, strides)

    row = ow * kw * channels * height + oh * ow * out * kh
    # A step also reads and writes the running total, so it should not be smaller than that.
    budget = max(_PATCH_BYTES, 2 * 4 * kh * kw * channels * out)
    limit = max(_LEAST_IMAGES, budget // (row * x.dtype.itemsize))
    images = max(n for n in range(1, min(batch, limit) + 1) if batch % n == 0)
    steps = batch // images
    if steps == 1:
        return step(x, dy)
    zero = jnp.zeros((kh, kw, channels, out), jnp.promote_types(x.dtype, jnp.float32))

    def take(a: jax.Array, i: jax.Array) -> jax.Array:
        if jax.device_count() == 1:
            return lax.dynamic_slice_in_dim(a, i * images, images)
        # Every step takes images from each device's shard.
        a = a.reshape(images, steps, *a.shape[1:])
        return lax.dynamic_index_in_dim(a, i, axis=1, keepdims=False)

    def body(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return total + step(take(x, i), take(dy, i)), None

    return lax.scan(body, zero, jnp.arange(steps))[0]


def _of_few(x: jax.Array, dy: jax.Array, size: tuple[int, ...], strides: _Pair) -> jax.Array:
    """Kernel gradient of a few images that are padded already.

    Whole patches are gathered from `x`, unless that copies twice as much as gathering its columns
    alone, or in pieces too short. Rows are then a product each, or are gathered from `dy` where
    that copies less and few of the products meet padding.
    """
    kh, kw = size
    sh, sw = strides
    _, oh, ow, out = dy.shape
    channels = x.shape[3]

    def column(x: jax.Array, j: int) -> jax.Array:
        return x[:, :, j : j + (ow - 1) * sw + 1 : sw]

    def row(x: jax.Array, i: int) -> jax.Array:
        return x[:, i : i + (oh - 1) * sh + 1 : sh]

    def joined(parts: Sequence[jax.Array]) -> jax.Array:
        return jnp.concatenate(parts, axis=3) if len(parts) > 1 else parts[0]

    if channels >= _LEAST_PIECE and kh * kw * channels <= 2 * (kw * channels + kh * out):
        patches = joined([column(row(x, i), j) for i in range(kh) for j in range(kw)])
        return _transposed_product(patches, dy).reshape(kh, kw, channels, out)
    patches = joined([column(x, j) for j in range(kw)])
    if sh == 1 and kh > 1 and out < kw * channels and oh >= 8 * (kh - 1):
        zero = jnp.zeros((), dy.dtype)
        keep = (0, 0, 0)
        rows = [lax.pad(dy, zero, [keep, (i, kh - 1 - i, 0), keep, keep]) for i in range(kh)]
        full = _transposed_product(patches, joined(rows))
        return full.reshape(kw, channels, kh, out).transpose(2, 0, 1, 3)
    products = [_transposed_product(row(patches, i), dy) for i in range(kh)]
    return jnp.stack(products).reshape(kh, kw, channels, out)


def _transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a^T @ b over all axes but the last. With the narrow side on the left XLA is faster."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    wide = jnp.promote_types(a.dtype, jnp.float32)
    product = functools.partial(
        lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), preferred_element_type=wide
    )
    if a.shape[1] <= b.shape[1]:
        return product(a, b)
    return lax.optimization_barrier(product(b, a)).T  # else XLA turns the product back


class Conv(nn.Module):
    """Two-dimensional convolution with bias.

    Attributes:
      features: output channels.
      kernel_size: an integer, or height and width.
      strides: an integer, or height and width.
      padding: "SAME", "VALID", an integer for all sides, or ((top, bottom), (left, right)).
      groups: number of channel groups.
      use_bias: whether to add a bias.
      implementation: see `conv2d`.
      kernel_init: initialiser of the kernel [kh, kw, in / groups, features].
      dtype: compute dtype.
      param_dtype: dtype of the parameters.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    groups: int = 1
    use_bias: bool = True
    implementation: Implementation = "auto"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b oh ow o"]:
        """Convolves `x`."""
        channels = x.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide the {channels} input channels and the "
                f"{self.features} features"
            )
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                self.kernel_init, (None, None, "channels_in", "channels_out")
            ),
            (*_pair(self.kernel_size), channels // self.groups, self.features),
            self.param_dtype,
        )
        bias = None
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, ("channels_out",)),
                (self.features,),
                self.param_dtype,
            )
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv2d(
            x,
            kernel,
            strides=_pair(self.strides),
            padding=self.padding,
            groups=self.groups,
            implementation=self.implementation,
        )
        y = y if bias is None else y + bias
        return nn.with_logical_constraint(y, ("batch", None, None, "channels_out"))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
