"""Convolutional kernels and machines, beside wide random networks and machines without space."""

import re
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml import kernels
from rml.kernels import conv_machine
from rml.kernels.outputs import Outputs
from rml.training import descend
from tests.precision import rounded

RELU, SE = kernels.relu, kernels.squared_exponential
conv_nngp = jax.jit(kernels.conv_nngp, static_argnames=("kernel", "depth", "size", "pool"))


def convolve(x, filters):
    """What one filter after another sees, zeros beyond the edge; in NumPy."""
    size = len(filters)
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    return np.tensordot(np.moveaxis(windows, 3, 5), filters, 3)


def filters(rng, size, before, width):
    drawn = rng.standard_normal((size, size, before, width), np.float32)  # most of the time
    return drawn / np.float32(np.sqrt(size**2 * before))


def activate(h):
    return np.float32(np.sqrt(2)) * np.maximum(h, 0)


def within(draws, expected, share=0.005):
    """Whether a mean is as expected to 5 standard errors and the bias of a finite width."""
    draws = np.asarray(draws)
    error = draws.std(0) / np.sqrt(len(draws))
    return (np.abs(draws.mean(0) - expected) <= 5 * error + share * np.abs(expected).max()).all()


@cache
def wide_activations():
    """Three images, and what each of forty wide random networks makes of them."""
    rng = np.random.default_rng(0)
    x, found = np.random.default_rng(0).standard_normal((3, 4, 3, 2)), []
    for _ in range(40):
        h = np.float32(x)
        for _ in range(2):
            h = activate(convolve(h, filters(rng, 3, h.shape[-1], 300)))
        found.append(h)
    return x, found


@pytest.mark.slow
@pytest.mark.parametrize("pool", [True, False])
def test_wide_random_networks_have_the_kernel(pool):
    x, found = wide_activations()

    def product(h):
        h = np.mean(h, (1, 2), keepdims=True) if pool else h
        return np.tensordot(h, h, ((1, 2, 3), (1, 2, 3))) / np.prod(h.shape[1:])

    draws, x = np.stack([product(h) for h in found]), jnp.asarray(x)
    limit = partial(conv_nngp, kernel=RELU, depth=2)
    ours = limit(x, x, pool=pool)
    assert within(draws, ours)
    assert not within(draws, limit(x, x, pool=not pool))
    np.testing.assert_allclose(ours[:2, 2:], limit(x[:2], x[2:], pool=pool), rtol=1e-10)


@pytest.mark.slow
def test_images_of_one_pixel_have_the_kernel_of_their_channels(normal):
    x = jnp.asarray(normal(1, 4, 1, 1, 5))
    g = kernels.input_gram(x.reshape(4, 5))
    expected = kernels.nngp_grams(g, kernel=RELU, depth=2)[-1]
    for pool in (True, False):
        ours = conv_nngp(x, x, kernel=RELU, depth=2, size=1, pool=pool)
        np.testing.assert_allclose(ours, expected, rtol=1e-10)


def machine_of(normal, *, learned=True, depth=2, p=4):
    patches = jnp.asarray(normal(2, p, 3, 3, 2))
    machine = kernels.init_conv(jax.random.key(3), patches, depth=depth, outputs=3, learned=learned)
    outputs = Outputs(jnp.asarray(normal(4, p, 3)), 0.1 * jnp.asarray(normal(5, p, p)))
    scales = jnp.array([0.3, -0.2, 0.4])[: depth + 1]
    return machine._replace(outputs=outputs, log_scales=scales, log_amplitude=jnp.array(0.5))


@pytest.mark.slow
def test_blocks_are_covariances_of_wide_networks_and_their_inducing_points(normal):
    x, machine = normal(0, 2, 3, 4, 2), machine_of(normal, learned=False)
    images, given, mixers = (np.float32(a) for a in (x, machine.patches, machine.mixers))
    scales = np.exp(np.float32(machine.log_scales))
    rng = np.random.default_rng(0)

    def scaled(h, layer):
        return activate(np.sqrt(scales[layer]) * h)

    def one():
        """Both read the same random filters: images everywhere, inducing points as patches."""
        own = filters(rng, 3, 2, 300)
        h, u = convolve(images, own), np.tensordot(given, own, 3)
        for layer, mixer in enumerate(mixers):
            own = filters(rng, 3, h.shape[-1], 300)
            patches = np.einsum("abij,jc->iabc", mixer, scaled(u, layer))
            h, u = convolve(scaled(h, layer), own), np.tensordot(patches, own, 3)
        points = np.concatenate([scaled(u, -1), scaled(h, -1).reshape(-1, h.shape[-1])])
        return points @ points.T / points.shape[1]

    draws, x = np.stack([one() for _ in range(40)]), jnp.asarray(x)
    layers = jax.jit(partial(conv_machine.conv_layers, kernel=RELU, jitter=0.0))
    blocks, _ = layers(machine, x)
    p = len(machine.patches)
    assert within(draws[:, :p, :p], blocks.ii, share=0.02)
    assert within(draws[:, p:, :p], blocks.ti, share=0.02)
    assert within(np.diagonal(draws, axis1=1, axis2=2)[:, p:], blocks.t, share=0.02)
    norms = blocks.t.reshape(2, -1).mean(1)
    full = conv_nngp(x, x, kernel=RELU, depth=3, pool=False)
    # The kernel of ReLU units is homogeneous.
    np.testing.assert_allclose(norms, scales.prod() * jnp.diagonal(full), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["none", "local", "global"])
def test_images_of_one_pixel_are_the_sparse_machines_points(normal, normalization):
    x, z = jnp.asarray(normal(0, 5, 4)), jnp.asarray(normal(1, 3, 4))
    raw = 0.3 * jnp.asarray(normal(2, 2, 3, 3))
    outputs = Outputs(jnp.asarray(normal(3, 3, 2)), 0.1 * jnp.asarray(normal(4, 3, 3)))
    own = dict(log_scales=jnp.array([0.3, -0.2, 0.4]), log_amplitude=jnp.array(0.5))
    sparse = kernels.init_sparse(z, depth=2, outputs=2)._replace(raw=raw, outputs=outputs, **own)
    alike = jnp.broadcast_to(jnp.eye(3), (2, 1, 1, 3, 3))
    conv = kernels.ConvMachine(z[:, None, None], alike, raw, outputs, **own)
    options = dict(kernel=RELU, normalization=normalization, jitter=1e-9)
    expected = jax.jit(partial(kernels.propagate_sparse, **options))(sparse, x)
    ours = jax.jit(partial(kernels.propagate_conv, **options))(conv, x[:, None, None])
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        kernels.conv_inducing_grams(conv, **options),
        kernels.inducing_grams(sparse, **options),
        rtol=1e-6,
    )
    key, labels = jax.random.key(5), jnp.array([0, 1, 0, 1, 1])
    given = dict(total=20, widths=jnp.array([2.0, 3.0]), samples=8, **options)
    bound = jax.jit(partial(kernels.elbo, likelihood="categorical", **given))
    np.testing.assert_allclose(
        jax.jit(partial(kernels.conv_elbo, **given))(conv, x[:, None, None], labels, key),
        bound(sparse, x, labels, key=key),
        rtol=1e-6,
    )


@pytest.mark.slow
def test_pooling_is_exact_where_locations_are_inducing_points(normal):
    f = normal(6, 8, 20)
    whole = jnp.asarray(f @ f.T)
    pooled = kernels.pool_blocks(kernels.Blocks(whole, whole, jnp.diagonal(whole)), images=2)
    exact = np.asarray(whole).reshape(2, 4, 2, 4).mean((1, 3))
    np.testing.assert_allclose(pooled.t, np.diag(exact), rtol=1e-8)
    np.testing.assert_allclose(pooled.ti, np.asarray(whole).reshape(2, 4, 8).mean(1), rtol=1e-12)
    # Without knowledge of the inducing points locations are independent.
    alone = kernels.Blocks(whole, 0 * whole, jnp.arange(8.0))
    np.testing.assert_allclose(
        kernels.pool_blocks(alone, images=2).t, np.arange(8.0).reshape(2, 4).mean(1) / 4, rtol=1e-12
    )


def offsets(places, height, width):
    """The locations [places, 3, 3] around each, -1 outside of the image."""
    at = np.pad(np.arange(height * width).reshape(height, width), 1, constant_values=-1)
    return np.lib.stride_tricks.sliding_window_view(at, (3, 3)).reshape(-1, 3, 3)[places]


@pytest.mark.slow
def test_mixers_of_images_are_their_patches_where_locations_are_inducing_points(normal):
    x = jnp.asarray(normal(20, 1, 3, 4, 2))
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))
    patches = jnp.asarray(np.moveaxis(windows, 2, 4).reshape(12, 3, 3, 2))
    machine = kernels.init_conv(jax.random.key(0), patches, depth=1, outputs=2)
    project = jax.jit(partial(kernels.project_mixers, kernel=SE, jitter=1e-12))
    mixers = np.asarray(project(jax.random.key(1), machine, x).mixers[0])
    places = mixers[1, 1].argmax(1)  # each point's own location
    assert len(set(places)) > 3
    expected = offsets(places, 3, 4)[..., None] == np.arange(12)
    np.testing.assert_allclose(mixers, np.moveaxis(expected, 0, 2), atol=1e-6)


@pytest.mark.slow
def test_mixers_of_images_explain_more_of_what_each_layer_sees(normal):
    x = jnp.asarray(normal(21, 6, 4, 4, 1))
    patches = kernels.draw_patches(jax.random.key(1), x, count=5, size=3)
    start = kernels.init_conv(jax.random.key(0), patches, depth=2, outputs=2)._replace(
        raw=0.4 * jnp.asarray(normal(22, 2, 5, 5)), log_scales=jnp.array([0.6, -0.4, 0.3])
    )
    options = dict(kernel=SE, normalization="local", jitter=1e-9)
    found = jax.jit(partial(kernels.project_mixers, **options))(jax.random.key(2), start, x)
    np.testing.assert_array_equal(found.raw, start.raw)
    layers = jax.jit(partial(conv_machine.conv_layers, **options))

    def explained(machine):
        own = layers(machine, x)[1][-1].gram
        return np.sum(own.ti.T * np.linalg.solve(own.ii, own.ti.T)) / np.sum(own.t)

    assert 1 - explained(found) < 0.9 * (1 - explained(start))
    # A second layer's patches are combinations of the first one's points, with its Gram matrix.
    first = found._replace(mixers=found.mixers[:1], log_scales=found.log_scales[:2])
    k = layers(first, x)[0]
    combined = np.linalg.solve(k.ii, k.ti.T).T.reshape(6, 4, 4, 5)
    padded = np.pad(combined, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    windows = np.moveaxis(windows, 3, 5).reshape(-1, 45)
    for own in np.moveaxis(np.asarray(found.mixers[1]), 2, 0).reshape(5, 45):
        assert np.abs(windows - own).max(1).min() < 1e-6


@pytest.mark.slow
def test_training_raises_the_objective_and_learns_gram_matrices(normal):
    x = normal(7, 12, 4, 4, 1)
    labels = np.arange(12) % 2
    x[labels == 1, 1:3, 1:3] += 2  # a class is a spot
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    patches = kernels.draw_patches(jax.random.key(0), x, count=6, size=3)
    assert patches.shape == (6, 3, 3, 1)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x), (3, 3), (1, 2))
    rows = {tuple(row) for row in windows.reshape(-1, 9)}
    assert {tuple(np.asarray(patch).reshape(-1)) for patch in patches} <= rows
    start = kernels.init_conv(jax.random.key(1), patches, depth=1, outputs=2, amplitude=1.5)
    assert start.log_amplitude == pytest.approx(np.log(1.5))
    key = jax.random.key(2)

    options = dict(kernel=RELU, normalization="local")

    def loss(machine, _):
        # As of 1,200 images, each a hundred times: the prior is weak.
        given = dict(total=1200, widths=jnp.ones(1), **options)
        return -kernels.conv_elbo(machine, x, labels, key, **given)

    @jax.jit
    def trained(start):
        end = descend(loss, start, jnp.arange(60), optimizer=optax.adam(0.1)).params
        p = kernels.propagate_conv(end, x, **options).prediction
        return end, p.mean, loss(start, 0), loss(end, 0)

    end, mean, before, after = trained(start)
    assert after < 0.5 * before
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(end))
    assert float(jnp.abs(end.raw).max()) > 0.1
    assert np.mean(np.argmax(mean, 1) == labels) > 0.9


@pytest.mark.slow
def test_no_product_is_rounded_on_an_accelerator(normal):
    x = jnp.asarray(normal(0, 2, 3, 3, 2), jnp.float32)
    machine = jax.tree.map(lambda a: a.astype(jnp.float32), machine_of(normal, depth=1))

    def objective(machine, x):
        given = dict(total=2, kernel=RELU, widths=jnp.ones(1, jnp.float32), samples=2)
        return kernels.conv_elbo(machine, x, jnp.array([0, 1]), jax.random.key(0), **given)

    def limit(x):
        return kernels.conv_nngp(x, x, kernel=RELU, depth=1)

    assert rounded(objective, machine, x) == []
    assert rounded(limit, x) == []


@pytest.mark.slow
def test_machines_that_train_together_convolve_in_the_layout_that_is_fast_in_loops(normal):
    x = jnp.asarray(normal(0, 2, 3, 3, 2), jnp.float32)
    machine = jax.tree.map(lambda a: a.astype(jnp.float32), machine_of(normal, depth=1))

    def objective(machine):
        given = dict(total=2, kernel=RELU, widths=jnp.ones(1, jnp.float32), samples=2)
        return kernels.conv_elbo(machine, x, jnp.array([0, 1]), jax.random.key(0), **given)

    together = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), machine)
    gradients = jax.jit(lambda machines: jax.lax.map(jax.grad(objective), machines))
    program = gradients.trace(together).lower(lowering_platforms=("cpu",)).as_text()
    layouts = re.findall(r"dim_numbers = (.*), window", program)
    # Of the patches, of the mixers, and of the gradient by what the mixers convolve.
    assert layouts == 3 * ["[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"]


@pytest.mark.slow
def test_a_machine_in_half_precision_is_computed_in_float32(normal):
    x = jnp.asarray(normal(0, 2, 3, 3, 2), jnp.bfloat16)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), machine_of(normal, depth=1))
    wider = jax.tree.map(lambda a: a.astype(jnp.float32), half)

    @jax.jit
    def objective(machine, x):
        given = dict(total=2, kernel=RELU, widths=jnp.ones(1, jnp.float32), samples=2)
        return kernels.conv_elbo(machine, x, jnp.array([0, 1]), jax.random.key(0), **given)

    exact = objective(wider, x.astype(jnp.float32))
    for machine, images in ((half, x), (half, x.astype(jnp.float32)), (wider, x)):
        found = objective(machine, images)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.slow
def test_columns_are_computed_some_at_a_time(normal, monkeypatch, pool):
    x, other = jnp.asarray(normal(8, 2, 3, 2, 2)), jnp.asarray(normal(9, 5, 3, 2, 2))
    limit = partial(kernels.conv_nngp, kernel=RELU, depth=1, pool=pool)
    whole = limit(x, other)
    module = sys.modules[kernels.conv_nngp.__module__]
    monkeypatch.setattr(module, "COVARIANCES", 2 * (36 if pool else 6))
    np.testing.assert_allclose(limit(x, other), whole, rtol=1e-12)
    if pool:
        shapes = (jax.ShapeDtypeStruct((n, 4, 4, 1), jnp.float64) for n in (1, 256))
        memory = jax.jit(limit).lower(*shapes).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 256 * 16**2 * 8


@pytest.mark.slow
def test_several_depths_are_layers_of_one_network(normal):
    x, other = jnp.asarray(normal(8, 2, 3, 2, 2)), jnp.asarray(normal(9, 3, 3, 2, 2))
    together = conv_nngp(x, other, kernel=RELU, depth=(3, 0, 1))
    for own, depth in zip(together, (3, 0, 1), strict=True):
        np.testing.assert_allclose(own, conv_nngp(x, other, kernel=RELU, depth=depth), rtol=1e-12)
    means = [np.asarray(images).mean((1, 2)) for images in (x, other)]
    np.testing.assert_allclose(together[1], means[0] @ means[1].T / 2, rtol=1e-6)


def test_mistakes_are_named(unchecked):
    x = jnp.ones((2, 4, 4, 1))
    for depth in (-1, (2, -1), ()):
        with pytest.raises(ValueError, match=r"depth is .*, expected a number of convolutions"):
            kernels.conv_nngp(x, x, kernel=RELU, depth=depth)
    with pytest.raises(ValueError, match=r"odd width.*\(3, 2, 2, 1\)"):
        kernels.patch_blocks(jnp.ones((3, 2, 2, 1)), x)
    with pytest.raises(ValueError, match="images must have one size"):
        kernels.conv_nngp(x, jnp.ones((2, 4, 5, 1)), kernel=RELU, depth=1)
