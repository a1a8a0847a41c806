"""Arrays in few bits: groups along an axis with a scale and an offset each, packed into bytes.

Source: the quantiser of KIVI (Liu et al., KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV
Cache, arXiv:2402.02750), section 3.1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, UInt8


class Codes(NamedTuple):
    """Codes of groups with what turns them back.

    Attributes:
      codes: Integers from 0 to 2^bits - 1, of the shape of what was quantised.
      scale: δ, one for each group: the quantised axis holds groups.
      zero: z, the least value of each group.
    """

    codes: Int[Array, "..."]
    scale: Float[Array, "..."]
    zero: Float[Array, "..."]


class Packed(struct.PyTreeNode):
    """A quantised array whose codes share bytes.

    Attributes:
      data: The codes, with 8 / bits of them in a byte along the last axis.
      scale: δ of each group.
      zero: z of each group.
      bits: Bits of a code.
      group: Number of values of a group.
      axis: Axis along which groups lie, counted from the last one.
    """

    data: Any
    scale: Any
    zero: Any
    bits: int = struct.field(pytree_node=False)
    group: int = struct.field(pytree_node=False)
    axis: int = struct.field(pytree_node=False)

    @property
    def bytes(self) -> int:
        """Size of codes, scales and offsets."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))


def group_quantize(
    x: Float[Array, "..."], *, bits: int, group: int, axis: int, dtype: Any = jnp.float16
) -> Codes:
    """Rounds groups of values to 2^bits levels from the least to the greatest of the group.

    z = min, δ = (max - min) / (2^bits - 1), code = round((x - z) / δ). Both numbers are rounded to
    what is kept first, so that codes fit them.

    Args:
      x: Any array.
      bits: Bits of a code, 1 to 8.
      group: Number of consecutive values along the axis that share a scale; divides its length.
      axis: Axis along which groups lie.
      dtype: Type of scales and offsets, which are cut to its range: float16 ends at 65,504.

    Returns:
      Codes (int32), scales and offsets. A value comes back within δ/2 and the rounding of the two
      numbers where neither was cut. Codes of a constant group are 0, and it comes back as its
      offset.

    Raises:
      ValueError: If the bits are not 1 to 8, or the group does not divide the axis.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits}, expected 1 to 8")
    length = x.shape[axis]
    if group < 1 or length % group:
        raise ValueError(f"group={group}, expected a divisor of {length} values along axis {axis}")
    grouped = _grouped(x.astype(jnp.float32), group, axis)
    at = axis % x.ndim + 1
    most = float(jnp.finfo(dtype).max)
    zero = jnp.clip(grouped.min(axis=at), -most, most).astype(dtype)
    top = grouped.max(axis=at)
    scale = (top - zero.astype(jnp.float32)) / (2**bits - 1)
    scale = jnp.clip(scale, 0, most).astype(dtype)
    wide = jnp.expand_dims(scale.astype(jnp.float32), at)
    steps = (grouped - jnp.expand_dims(zero.astype(jnp.float32), at)) / jnp.where(wide > 0, wide, 1)
    codes = jnp.where(wide > 0, jnp.clip(jnp.round(steps), 0, 2**bits - 1), 0)
    return Codes(codes.astype(jnp.int32).reshape(x.shape), scale, zero)


def group_dequantize(codes: Codes, *, axis: int) -> Float[Array, "..."]:
    """Gives codes their values back: code δ + z, float32.

    Args:
      codes: Codes of `group_quantize`.
      axis: Axis along which its groups lie.
    """
    at = axis % codes.codes.ndim
    group = codes.codes.shape[at] // codes.scale.shape[at]
    scale, zero = (
        jnp.repeat(x.astype(jnp.float32), group, axis=at) for x in (codes.scale, codes.zero)
    )
    return codes.codes * scale + zero


def pack(codes: Int[Array, "*b n"], *, bits: int) -> UInt8[Array, "*b m"]:
    """Packs codes along the last axis, the first of a byte in its lowest bits.

    Args:
      codes: Integers from 0 to 2^bits - 1.
      bits: 1, 2, 4 or 8.

    Returns:
      Bytes, m = n bits / 8.

    Raises:
      ValueError: If the bits do not divide 8, or the codes do not fill whole bytes.
    """
    each = _in_a_byte(bits)
    if codes.shape[-1] % each:
        raise ValueError(f"{codes.shape[-1]} codes of {bits} bits, expected whole bytes")
    parts = codes.reshape(*codes.shape[:-1], -1, each)
    shifts = bits * jnp.arange(each)
    return (parts << shifts).sum(axis=-1).astype(jnp.uint8)


def unpack(data: UInt8[Array, "*b m"], *, bits: int) -> Int[Array, "*b n"]:
    """Takes packed codes apart, n = 8 m / bits; see `pack`."""
    each = _in_a_byte(bits)
    shifts = bits * jnp.arange(each)
    parts = (data.astype(jnp.int32)[..., None] >> shifts) & (2**bits - 1)
    return parts.reshape(*data.shape[:-1], -1)


def pack_groups(x: Float[Array, "..."], *, bits: int, group: int, axis: int) -> Packed:
    """Quantises an array and packs its codes, see `group_quantize` and `pack`."""
    codes = group_quantize(x, bits=bits, group=group, axis=axis)
    return Packed(
        pack(codes.codes, bits=bits), codes.scale, codes.zero, bits, group, axis % x.ndim - x.ndim
    )


def unpack_groups(packed: Packed) -> Float[Array, "..."]:
    """Gives packed groups their values back, float32."""
    codes = unpack(packed.data, bits=packed.bits)
    return group_dequantize(Codes(codes, packed.scale, packed.zero), axis=packed.axis)


def _grouped(x: Array, group: int, axis: int) -> Array:
    at = axis % x.ndim
    return x.reshape(*x.shape[:at], x.shape[at] // group, group, *x.shape[at + 1 :])


def _in_a_byte(bits: Any) -> int:
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"bits={bits}, expected 1, 2, 4 or 8")
    return 8 // bits
