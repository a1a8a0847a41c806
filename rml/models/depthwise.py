"""Convolution of each channel with a kernel of its own, in a form that is fast on a CPU."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rml.errors import unknown
from rml.models.layers import Dtype
from rml.ops.similarity import wide

_Pads = tuple[tuple[int, int], tuple[int, int]]
# He's rule for the inputs of a position, which are those of one channel.
_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(0, 1, 2))


class DepthwiseConv(nn.Module):
    """A convolution of each channel with a kernel of its own, without bias."""

    kernel_size: int
    stride: int = 1
    padding: str | int = "SAME"
    kernel_init: nn.initializers.Initializer = _INIT
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
        """Convolves each channel."""
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, (None, None, None, "channels_out")),
            (self.kernel_size, self.kernel_size, 1, x.shape[-1]),
            self.param_dtype,
        )
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return depthwise_conv2d(x, kernel, stride=self.stride, padding=self.padding)


def depthwise_conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    stride: int = 1,
    padding: str | int = "SAME",
) -> Float[Array, "b oh ow c"]:
    """Cross-correlates each channel with its own kernel.

    XLA's CPU backend walks through a grouped convolution channel by channel. There the same sum is
    written as shifted products, one for each position of the kernel, and both gradients
    likewise; elsewhere the convolution is left as it is. It is a reverse-mode rule: `jax.jvp` of
    the convolution itself is refused.

    Args:
      x: Images.
      kernel: One kernel a channel; of one column for sequences, which are images of one.
      stride: Stride of rows and columns.
      padding: "SAME", "VALID" or an integer for all four sides.

    Raises:
      UserError: If the padding is another word.
    """
    if isinstance(padding, int):
        rows = columns = (padding, padding)
    elif padding in ("SAME", "VALID"):
        sizes = x.shape[1:3], kernel.shape[:2]
        rows, columns = lax.padtype_to_pads(*sizes, (stride, stride), padding)
    else:
        raise unknown("padding", padding, ("SAME", "VALID"))
    return _depthwise(x, kernel, stride, (rows, columns))


def _grouped(stride: int, pads: _Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip


def _shifted(stride: int, pads: _Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    dtype = x.dtype
    x, kernel = wide(x, kernel)  # in half precision each sum would be rounded
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    parts = _windows(padded, kernel.shape, stride)
    products = (part * at for part, at in zip(parts, _positions(kernel), strict=True))
    return sum(products, start=jnp.zeros((), x.dtype)).astype(dtype)


def _positions(kernel: jax.Array) -> list[jax.Array]:
    return list(kernel.reshape(-1, kernel.shape[-1]))


def _windows(padded: jax.Array, kernel: tuple[int, ...], stride: int) -> list[jax.Array]:
    """What each position of a kernel of this shape meets, of images or of one image."""
    height, width = (
        1 + (size - side) // stride for size, side in zip(padded.shape[-3:-1], kernel, strict=False)
    )
    return [
        padded[
            ...,
            row : row + (height - 1) * stride + 1 : stride,
            column : column + (width - 1) * stride + 1 : stride,
            :,
        ]
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, pads: _Pads) -> jax.Array:
    forms = (functools.partial(form, stride, pads) for form in (_shifted, _grouped))
    cpu, default = forms
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, pads: _Pads) -> tuple[jax.Array, Any]:
    return _depthwise(x, kernel, stride, pads), (x, kernel)


def _backward(
    stride: int, pads: _Pads, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def grouped(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        dx, dk = jax.vjp(functools.partial(_grouped, stride, pads), x, kernel)[1](dy)
        return dx, dk

    def shifted(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _image_gradient(x, kernel, dy, stride, pads), _kernel_gradient(
            x, kernel, dy, stride, pads
        )

    if any(jax.typeof(residuals[0]).sharding.spec):  # an explicit mesh refuses to split the batch
        return grouped(*residuals, dy)
    return lax.platform_dependent(*residuals, dy, cpu=shifted, default=grouped)


_depthwise.defvjp(_forward, _backward)


def _image_gradient(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, pads: _Pads
) -> jax.Array:
    """Shifted products again, of the gradient spread out by the stride and the kernel turned."""
    spread = [
        (side - 1 - low, size + low - (out - 1) * stride - 1, stride - 1)
        for side, size, out, (low, _) in zip(
            kernel.shape[:2], x.shape[1:3], dy.shape[1:3], pads, strict=True
        )
    ]
    around = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    return _shifted(1, ((0, 0), (0, 0)), around, jnp.flip(kernel, (0, 1)))


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, pads: _Pads
) -> jax.Array:
    """A sum for each position of the kernel, in loops: all in a row would compile for seconds."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    (dy,) = wide(dy)

    def met(x: jax.Array, start: jax.Array, axis: int) -> jax.Array:
        length = (dy.shape[axis] - 1) * stride + 1
        own = lax.dynamic_slice_in_dim(x, start, length, axis)
        return lax.slice_in_dim(own, 0, length, stride, axis)

    def of_row(row: jax.Array) -> jax.Array:
        rows = met(padded, row, 1)

        def of_column(column: jax.Array) -> jax.Array:
            return (met(rows, column, 2) * dy).reshape(-1, dy.shape[-1]).sum(0)

        return lax.map(of_column, jnp.arange(kernel.shape[1]))

    found = lax.map(of_row, jnp.arange(kernel.shape[0]))
    return found.reshape(kernel.shape).astype(kernel.dtype)
