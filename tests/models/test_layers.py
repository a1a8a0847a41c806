"""The dense layer that others are made of, beside flax's own."""

import functools

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
    shapes = nn.unbox(jax.eval_shape(ours.init, jax.random.key(0), jnp.ones((1, channels))))
    return ours, plain, jax.tree.map(normal, shapes)


def normal(leaf, seed=0):
    # NumPy draws: compiling a threefry draw takes longer than compiling a product.
    values = np.random.default_rng(seed).normal(size=leaf.shape)
    return jnp.asarray(values / leaf.shape[0] ** 0.5, leaf.dtype)


def derivatives(layer, variables, shape, channels):
    """What a layer gives, its derivatives and those of its gradient, by one program."""

    @jax.jit
    def found(variables, x):
        def loss(variables, x):
            return jnp.sum(jnp.sin(layer.apply(variables, x).astype(jnp.float32)))

        gradient = jax.grad(loss, argnums=(0, 1))
        second = jax.jvp(lambda v: gradient(v, x)[0], (variables,), (variables,))[1]
        tangent = jax.jvp(lambda x: layer.apply(variables, x), (x,), (x,))[1]
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), variables)
        many = jax.vmap(layer.apply, (0, None))(stacked, x)
        return layer.apply(variables, x), gradient(variables, x), second, tangent, many

    x = np.random.default_rng(1).normal(size=(*shape, channels))
    return jax.tree.leaves(found(variables, jnp.asarray(x, jnp.float32)))


@functools.cache
def derivatives_of_flax(shape, channels, out, dtype):
    _, plain, variables = sides(channels, out, dtype)
    return derivatives(plain, variables, shape, channels)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
# A kernel that is turned at once, in two steps, in one step for want of divisors, and never.
@pytest.mark.parametrize(("channels", "out"), [(48, 6), (192, 6), (131, 6), (6, 48)])
@pytest.mark.parametrize("shape", [(MANY,), (2, MANY // 2), (MANY - 1,)])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_dense_layer_is_flax_s_with_its_derivatives(
    monkeypatch, devices, shape, channels, out, dtype
):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    ours, _, variables = sides(channels, out, dtype)
    found = derivatives(ours, variables, shape, channels)
    for one, other in zip(found, derivatives_of_flax(shape, channels, out, dtype), strict=True):
        assert one.dtype == other.dtype
        scale = float(np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "channels", "out", "dtype", "turned"),
    [
        (MANY, 192, 6, jnp.float32, True),
        (MANY - 1, 192, 6, jnp.float32, False),  # a copy would cost what the product gains
        (MANY, 192, 192, jnp.float32, False),
        (MANY, 192, 6, jnp.bfloat16, False),
    ],
)
def test_a_gradient_is_turned_where_that_is_faster(rows, channels, out, dtype, turned):
    ours, _, variables = sides(channels, out, dtype)

    def loss(variables, x):
        return ours.apply(variables, x).sum()

    x = jnp.ones((rows, channels))
    assert "scan" not in str(jax.make_jaxpr(loss)(variables, x))
    gradient = str(jax.make_jaxpr(jax.grad(loss))(variables, x))
    assert ("scan" in gradient) == turned
    assert gradient.count("scan[") == int(turned)  # what an optimizer reads lies as the kernel


def test_what_is_not_differentiated_takes_no_product():
    ours, plain, variables = sides(192, 6, jnp.float32)
    x = jnp.ones((MANY, 192))

    def products(function, *args):
        return str(jax.make_jaxpr(function)(*args)).count("dot_general[")

    for layer in (ours, plain):

        def loss(variables, x, layer=layer):
            return layer.apply(variables, x).sum()

        assert products(jax.grad(loss, 0), variables, x) == 2
        assert products(jax.grad(loss, 1), variables, x) == 2
        assert products(jax.grad(loss, (0, 1)), variables, x) == 3
        tangent = lambda x, loss=loss: jax.jvp(lambda x: loss(variables, x), (x,), (x,))  # noqa: E731
        assert products(tangent, x) == 2


def test_a_program_of_any_number_of_rows_has_one():
    ours, plain, variables = sides(48, 6, jnp.float32)
    shape = jax.export.symbolic_shape("rows, 48")
    exported = jax.export.export(jax.jit(ours.apply))(
        variables, jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    for rows in (3, MANY):
        x = jnp.ones((rows, 48))
        np.testing.assert_allclose(exported.call(variables, x), plain.apply(variables, x), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_batch_normalisation_is_flax_s_with_its_gradients(dtype, affine, train):
    rng = np.random.default_rng(0)
    x = jnp.asarray(2 + 3 * rng.normal(size=(6, 5, 4, 7)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    momentum, epsilon = 0.7, 0.3
    ours = layers.Norm(
        "batch", "width", affine=affine, momentum=momentum, epsilon=epsilon, dtype=dtype
    )
    plain = nn.BatchNorm(
        momentum=momentum, epsilon=epsilon, dtype=dtype, use_scale=affine, use_bias=affine
    )
    boxed = jax.jit(functools.partial(ours.init, train=True))(jax.random.key(0), x)
    start = nn.unbox(boxed)["batch_stats"]["bn"]  # unlike those of the first batch
    np.testing.assert_array_equal(start["mean"], jnp.zeros(7))
    np.testing.assert_array_equal(start["var"], jnp.ones(7))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)):
        assert leaf.names == ("width",)
    variables = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.uniform(0.2, 1.0, leaf.shape), leaf.dtype),
        nn.unbox(boxed),
    )

    def found(apply):
        def loss(params, x):
            y, stats = apply({**variables, "params": params}, x)
            return jnp.sum(weights * y.astype(jnp.float32)), (y, stats)

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        return gradient(variables.get("params", {}), x)

    def of_plain(variables, x):
        own = {kind: tree["bn"] for kind, tree in variables.items() if tree}
        y, kept = plain.apply(own, x, use_running_average=not train, mutable=["batch_stats"])
        return y, {kind: {"bn": tree} for kind, tree in kept.items()}

    def of_ours(variables, x):
        return ours.apply(variables, x, train=train, mutable=["batch_stats"])

    one, other = found(of_ours), found(of_plain)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        assert a.dtype == b.dtype
        near = 1e-2 if dtype else 5e-6
        np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=0, atol=near * np.abs(np.float32(b)).max()
        )


def test_running_statistics_keep_their_type_beside_wider_inputs():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, (6, 5)))
        assert x.dtype == jnp.float64
        norm = layers.Norm("batch", momentum=0.7)
        variables = nn.unbox(norm.init(jax.random.key(0), x, train=True))

        def step(stats, _):
            own = {**variables, "batch_stats": stats}
            return norm.apply(own, x, train=True, mutable=["batch_stats"])[1]["batch_stats"], None

        # A scan's state keeps its types.
        stats, _ = jax.jit(lambda start: jax.lax.scan(step, start, length=2))(
            variables["batch_stats"]
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
        np.testing.assert_allclose(stats["bn"]["mean"], 0.51 * x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(stats["bn"]["var"], 0.49 + 0.51 * x.var(0), rtol=1e-5)


@pytest.mark.slow
def test_a_constant_channel_is_normalised_to_next_to_nothing():
    x = jnp.full((9, 3), jnp.float32(33.3))
    norm = layers.Norm("batch", affine=False)
    y, _ = norm.init_with_output(jax.random.key(0), x, train=True)
    assert float(jnp.abs(y).max()) < 0.05
