"""The dense layer that others are made of, beside flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import layers

MANY = layers._MANY_ROWS


def sides(channels, out, dtype):
    """Both layers with the same variables."""
    ours, plain = layers.dense(out, (None, None), dtype=dtype), nn.Dense(out, dtype=dtype)
    return ours, plain, nn.unbox(ours.init(jax.random.key(0), jnp.ones((1, channels))))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("channels", "out"), [(48, 6), (6, 48)])
@pytest.mark.parametrize("shape", [(MANY,), (2, MANY // 2), (MANY - 1,)])
def test_a_dense_layer_is_flax_s_with_its_derivatives(shape, channels, out, dtype):
    ours, plain, variables = sides(channels, out, dtype)
    x = jax.random.normal(jax.random.key(1), (*shape, channels))

    def found(layer):
        def loss(variables, x):
            return jnp.sum(jnp.sin(layer.apply(variables, x).astype(jnp.float32)))

        gradient = jax.grad(loss, argnums=(0, 1))
        second = jax.jvp(lambda v: gradient(v, x)[0], (variables,), (variables,))[1]
        tangent = jax.jvp(lambda x: layer.apply(variables, x), (x,), (x,))[1]
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), variables)
        many = jax.vmap(layer.apply, (0, None))(stacked, x)
        return layer.apply(variables, x), gradient(variables, x), second, tangent, many

    for one, other in zip(*map(jax.tree.leaves, map(found, (ours, plain))), strict=True):
        assert one.dtype == other.dtype
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize(
    ("rows", "channels", "out", "dtype", "turned"),
    [
        (MANY, 48, 6, jnp.float32, True),
        (MANY - 1, 48, 6, jnp.float32, False),  # decoding would copy a kernel for each token
        (MANY, 48, 48, jnp.float32, False),
        (MANY, 48, 6, jnp.bfloat16, False),
    ],
)
def test_a_kernel_is_turned_where_that_is_faster(rows, channels, out, dtype, turned):
    ours, _, variables = sides(channels, out, dtype)
    program = jax.make_jaxpr(ours.apply)(variables, jnp.ones((rows, channels)))
    assert ("optimization_barrier" in str(program)) == turned


def test_a_program_of_any_number_of_rows_has_one():
    ours, plain, variables = sides(48, 6, jnp.float32)
    shape = jax.export.symbolic_shape("rows, 48")
    exported = jax.export.export(jax.jit(ours.apply))(
        variables, jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    for rows in (3, MANY):
        x = jnp.ones((rows, 48))
        np.testing.assert_allclose(exported.call(variables, x), plain.apply(variables, x), 1e-6)
