import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import rml.models.conv as conv_module
from rml.models import Conv, conv2d
from rml.ops.precision import full_precision
from tests.precision import rounded

SHAPES = [
    # batch, height, width, in, out, kernel, strides, padding
    (3, 17, 8, 2, 3, (3, 3), (1, 1), "SAME"),  # rows gathered from dy
    (2, 9, 8, 2, 6, (3, 3), (1, 1), "SAME"),  # a product per row
    (2, 9, 8, 2, 3, (3, 3), (2, 2), "SAME"),
    (2, 8, 9, 1, 4, (5, 5), (2, 2), "SAME"),
    (3, 8, 9, 1, 8, (2, 4), (1, 2), ((1, 0), (0, 3))),  # pixels of a tap are a row
    (2, 8, 8, 3, 2, (1, 1), (2, 2), 0),
    (2, 8, 8, 3, 2, (2, 3), (3, 1), "VALID"),
    (2, 8, 10, 3, 2, (4, 4), (4, 4), "VALID"),
    (2, 8, 8, 3, 2, (7, 7), (2, 2), 3),
    (2, 8, 8, 3, 2, (3, 2), (1, 2), ((2, 0), (0, 3))),
]


def normal(shape, seed=0):
    # NumPy draws: compiling a threefry draw takes longer than compiling a convolution.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def data(shape, dtype=jnp.float32):
    b, h, w, i, o, kernel, strides, padding = shape
    x, k = normal((b, h, w, i)).astype(dtype), normal((*kernel, i, o)).astype(dtype)
    return x, k, strides, padding


def oracle(x, k, strides, pads, dy=None):
    """Float64 NumPy loops: the output, or the gradients of sum(output * dy)."""
    x, k = np.asarray(x, np.float64), np.asarray(k, np.float64)
    (t, b), (le, r) = pads
    xp = np.pad(x, ((0, 0), (t, b), (le, r), (0, 0)))
    oh = (xp.shape[1] - k.shape[0]) // strides[0] + 1
    ow = (xp.shape[2] - k.shape[1]) // strides[1] + 1
    y = np.zeros((x.shape[0], oh, ow, k.shape[3]))
    dxp, dk = np.zeros_like(xp), np.zeros_like(k)
    for i in range(oh):
        for j in range(ow):
            rows = slice(i * strides[0], i * strides[0] + k.shape[0])
            cols = slice(j * strides[1], j * strides[1] + k.shape[1])
            y[:, i, j] = np.einsum("bhwi,hwio->bo", xp[:, rows, cols], k)
            if dy is not None:
                dk += np.einsum("bhwi,bo->hwio", xp[:, rows, cols], dy[:, i, j])
                dxp[:, rows, cols] += np.einsum("hwio,bo->bhwi", k, dy[:, i, j])
    if dy is None:
        return y
    return dxp[:, t : t + x.shape[1], le : le + x.shape[2]], dk


def pads_of(x, k, strides, padding):
    if isinstance(padding, str):
        return lax.padtype_to_pads(x.shape[1:3], k.shape[:2], strides, padding)
    return ((padding, padding),) * 2 if isinstance(padding, int) else padding


def check(shape, implementation):
    x, k, strides, padding = data(shape)
    f = functools.partial(conv2d, strides=strides, padding=padding, implementation=implementation)
    pads = pads_of(x, k, strides, padding)
    dy = normal(jax.eval_shape(f, x, k).shape, 1)

    @jax.jit
    def both(x, k, dy):
        y, vjp = jax.vjp(f, x, k)
        return y, *vjp(dy)

    truth = oracle(x, k, strides, pads), *oracle(x, k, strides, pads, np.asarray(dy))
    for ours, exact in zip(both(x, k, dy), truth, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_equal_float64_loops(shape):
    check(shape, "matmul")


@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_implementations_equal_float64_loops(implementation):
    check(SHAPES[1], implementation)


@pytest.mark.slow
@settings(max_examples=4)
@given(
    st.integers(1, 5),
    st.tuples(st.integers(5, 9), st.integers(5, 9)),
    st.integers(1, 3),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from(["SAME", "VALID", 1, 2]),
)
def test_any_shape(batch, size, channels, kernel, strides, padding):
    check((batch, *size, channels, 2, kernel, strides, padding), "matmul")


def test_steps_over_the_batch_change_nothing(monkeypatch):
    monkeypatch.setattr(conv_module, "_PATCH_BYTES", 1)
    monkeypatch.setattr(conv_module, "_LEAST_IMAGES", 2)
    for shape in SHAPES[:3]:
        check((6, *shape[1:]), "matmul")


@pytest.mark.slow
def test_over_several_devices_the_gradients_are_the_same(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    monkeypatch.setattr(conv_module, "_PATCH_BYTES", 1)
    monkeypatch.setattr(conv_module, "_LEAST_IMAGES", 2)
    for shape in SHAPES[2:]:
        check((4, *shape[1:]), "matmul")


def loss(implementation):
    def f(x, k):
        y = conv2d(x, k, strides=(2, 2), implementation=implementation)
        return jnp.sum(jnp.tanh(y) ** 2)

    return f


@pytest.mark.slow
def test_transformations_agree_with_xla(monkeypatch):
    monkeypatch.setattr(conv_module, "_PATCH_BYTES", 1)
    monkeypatch.setattr(conv_module, "_LEAST_IMAGES", 2)  # several steps
    x, k, _, _ = data((4, 8, 8, 2, 3, (3, 3), (2, 2), "SAME"))
    xs, ks = jnp.stack([x, 2 * x]), jnp.stack([k, -k])

    def results(name):
        f = loss(name)
        grad = jax.grad(f, (0, 1))
        second = jax.grad(lambda x, k: sum(jnp.sum(g**3) for g in grad(x, k)), (0, 1))
        return {
            "vmap": jax.jit(jax.vmap(grad))(xs, ks),
            "vmap of the kernel": jax.jit(jax.vmap(grad, (None, 0)))(x, ks),
            "remat": jax.jit(jax.grad(jax.checkpoint(f), (0, 1)))(x, k),
            "second order": jax.jit(second)(x, k),
            "hessian-vector": jax.jit(lambda k: jax.jvp(lambda k: grad(x, k)[1], (k,), (k,))[1])(k),
            "scan": jax.jit(
                jax.grad(lambda x, k: lax.scan(lambda c, x: (c + f(x, k), None), 0.0, x)[0])
            )(xs, k),
        }

    ours, peers = results("auto"), results("xla")
    for name in ours:
        for a, b in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(peers[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4, err_msg=name)


def test_forward_mode_is_xla_only():
    x, k, _, _ = data(SHAPES[0])
    jax.jvp(loss("xla"), (x, k), (x, k))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss("auto"), (x, k), (x, k))


@pytest.mark.parametrize("implementation", ["auto", "matmul"])
@pytest.mark.parametrize("channels", [1, 2])
def test_gradients_keep_the_precision_of_the_convolution(implementation, channels):
    x, k, _, _ = data((2, 9, 8, channels, 3, (3, 3), (1, 1), "SAME"))
    plain = functools.partial(conv2d, implementation=implementation)
    assert rounded(full_precision(plain), x, k) == []
    assert len(rounded(plain, x, k)) > len(rounded(plain, x, k, gradient=False)) == 1


def test_auto_is_one_program_for_every_platform():
    x, k, _, _ = data((8, 16, 16, 4, 8, (3, 3), (1, 1), "SAME"))
    traced = jax.jit(jax.grad(loss("auto"), 1)).trace(x, k)
    cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "dot_general" in cpu
    assert "dot_general" not in tpu
    assert cpu.count("stablehlo.convolution") < tpu.count("stablehlo.convolution")
    # The platform is decided at lowering: no branch is left to run.
    assert "conditional" not in traced.lower().compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
def test_low_precision_accumulates_in_float32(channels):
    x, k, strides, padding = data((64, 16, 16, channels, 9, (3, 3), (1, 1), "SAME"), jnp.bfloat16)
    dy = jnp.ones((64, 16, 16, 9), jnp.bfloat16)
    f = lambda k: conv2d(x, k, implementation="matmul")  # noqa: E731
    dk = jax.vjp(f, k)[1](dy)[0]
    truth = oracle(x, k, strides, pads_of(x, k, strides, padding), np.asarray(dy, np.float64))[1]
    assert dk.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(dk, np.float64), truth, rtol=2**-8)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "out"), [(1, 4), (1, 9), (3, 4)])
def test_no_images_have_gradients_of_zero(channels, out):
    x, k = jnp.zeros((0, 9, 8, channels)), normal((3, 3, channels, out))
    dx, dk = jax.grad(lambda *args: conv2d(*args).sum(), (0, 1))(x, k)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dk, jnp.zeros_like(k))


def test_groups():
    x = normal((2, 8, 8, 4))
    k = normal((3, 3, 2, 6))
    y = conv2d(x, k, groups=2)
    halves = [conv2d(x[..., :2], k[..., :3]), conv2d(x[..., 2:], k[..., 3:])]
    np.testing.assert_allclose(y, jnp.concatenate(halves, -1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="groups=2"):
        conv2d(x, k, groups=2, implementation="matmul")


def test_misuse():
    x, k, _, _ = data(SHAPES[0])
    with pytest.raises(ValueError, match="did you mean 'matmul'"):
        conv2d(x, k, implementation="matmult")
    with pytest.raises(ValueError, match="did you mean 'SAME'"):
        conv2d(x, k, padding="SAMEY")
    with pytest.raises(ValueError, match=r"\(3, 3, 2, 3\).*\(3, 17, 8, 1\)"):
        conv2d(x[..., :1], k)
    with pytest.raises(ValueError, match="groups=3"):
        Conv(6, groups=3).init(jax.random.key(0), x)


def test_module_matches_linen():
    x, k, _, _ = data(SHAPES[0])
    ours, theirs = Conv(3, 3, 2), nn.Conv(3, (3, 3), 2)
    params = {"params": {"kernel": k, "bias": normal((3,))}}
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-5, atol=1e-5)
