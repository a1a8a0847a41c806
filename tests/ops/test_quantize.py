"""Groups in few bits against the definition in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from rml.ops.quantize import (
    group_dequantize,
    group_quantize,
    pack,
    pack_groups,
    unpack,
    unpack_groups,
)

X = np.random.default_rng(0).standard_normal((3, 12, 8)).astype(np.float32) * 3 + 1


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "group", "axis"), [(2, 4, 1), (4, 8, -1), (8, 6, 1), (1, 4, 2)])
def test_values_come_back_within_half_a_step(bits, group, axis):
    codes = group_quantize(jnp.asarray(X), bits=bits, group=group, axis=axis, dtype=jnp.float32)
    moved = np.moveaxis(X.astype(np.float64), axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, group)
    zero, top = groups.min(axis=-1), groups.max(axis=-1)
    step = (top - zero) / (2**bits - 1)
    wanted = np.rint((groups - zero[..., None]) / step[..., None])
    found = np.moveaxis(np.asarray(codes.codes), axis, -1).reshape(groups.shape)
    np.testing.assert_array_equal(found, wanted)
    assert found.max() == 2**bits - 1
    assert found.min() == 0
    np.testing.assert_allclose(np.moveaxis(codes.zero, axis, -1), zero, rtol=1e-6)
    np.testing.assert_allclose(np.moveaxis(codes.scale, axis, -1), step, rtol=1e-6)
    back = np.moveaxis(np.asarray(group_dequantize(codes, axis=axis)), axis, -1)
    error = np.abs(back.reshape(groups.shape) - groups)
    assert (error <= step[..., None] / 2 * (1 + 1e-5)).all()
    assert (error / step[..., None]).max() > 0.4


@pytest.mark.slow
def test_constant_groups_are_exact_and_half_precision_costs_little():
    constant = jnp.full((2, 6), 0.1, jnp.float32)
    codes = group_quantize(constant, bits=2, group=3, axis=1, dtype=jnp.float32)
    np.testing.assert_array_equal(group_dequantize(codes, axis=1), constant)
    packed = pack_groups(jnp.asarray(X), bits=8, group=4, axis=1)
    assert packed.scale.dtype == jnp.float16
    # Codes are of the rounded numbers: beyond half a step there is the rounding of the offset.
    step = np.asarray(packed.scale, np.float64).repeat(4, axis=1)
    error = np.abs(np.asarray(unpack_groups(packed)) - X)
    assert (error <= step / 2 + np.abs(X).max() * 2.0**-10).all()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_share_bytes(bits):
    codes = np.random.default_rng(1).integers(0, 2**bits, (3, 16))
    data = pack(jnp.asarray(codes), bits=bits)
    assert data.nbytes == 3 * 16 * bits // 8
    first = sum(int(code) << (bits * i) for i, code in enumerate(codes[0, : 8 // bits]))
    assert data[0, 0] == first
    np.testing.assert_array_equal(unpack(data, bits=bits), codes)


def test_bytes_are_codes_and_two_numbers_a_group():
    packed = pack_groups(jnp.asarray(X), bits=4, group=4, axis=1)
    assert packed.bytes == X.size // 2 + 2 * 2 * X.size // 4
    assert packed.axis == -2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, "bits=9, expected 1 to 8"),
        ({"group": 5}, "group=5, expected a divisor of 12 values along axis 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        group_quantize(jnp.asarray(X), **{"bits": 2, "group": 4, "axis": 1} | options)
    with pytest.raises(ValueError, match="bits=3, expected 1, 2, 4 or 8"):
        pack(jnp.zeros((2, 8), int), bits=3)
    with pytest.raises(ValueError, match="3 codes of 4 bits, expected whole bytes"):
        pack(jnp.zeros((2, 3), int), bits=4)


@pytest.mark.slow
def test_values_beyond_the_range_of_scales_are_cut_to_it():
    x = jnp.array([[-1e5, 2.0, 3.0, 1.0], [1.0, 2.0, 4e5, 3.0], [-3e38, 3e38, 0.0, 1.0]])
    codes = group_quantize(x, bits=4, group=4, axis=-1)
    found = group_dequantize(codes, axis=-1)
    assert jnp.isfinite(found).all()
    np.testing.assert_allclose(found[0], [-65504, 0, 0, 0], atol=65504 / 15)
    wide = group_quantize(x[:2], bits=4, group=4, axis=-1, dtype=jnp.bfloat16)
    np.testing.assert_allclose(group_dequantize(wide, axis=-1)[:, 0], x[:2, 0], atol=4e5 / 15)
