import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.data.augment import AUGMENTATIONS, compose, flat_views, split_views, to_float, views
from rml.data.draws import uniforms

KEY = jax.random.key(0)
IMAGE = jax.random.uniform(jax.random.key(9), (16, 16, 3))
SAME = jnp.broadcast_to(IMAGE, (6, 16, 16, 3))

STRONG = {
    "color_jitter": {"p": 1},
    "gaussian_blur": {"p": 1, "kernel_size": 7},
    "random_affine": {"degrees": 20, "translate": 0.1, "scale": (0.8, 1.2), "shear": 5},
    "random_erase": {"p": 1},
    "random_resized_crop": {"scale": (0.3, 0.9)},
}
CHOICES = {"random_flip": {}, "random_grayscale": {"p": 0.5}, "solarize": {"p": 0.5}}
RANDOM = STRONG | CHOICES


def test_all_augmentations_are_covered_here():
    assert set(RANDOM) | {"center_crop", "normalize", "resize"} == set(AUGMENTATIONS)


@functools.cache
def applied(name):
    return jax.jit(compose([(name, RANDOM[name])]))


@pytest.mark.slow
@pytest.mark.parametrize("name", STRONG)
def test_the_same_image_is_treated_differently_in_one_batch(name):
    flat = np.asarray(applied(name)(KEY, SAME)).reshape(len(SAME), -1)
    different = (flat[:, None] != flat[None]).any(axis=-1)
    assert different.sum() == len(SAME) * (len(SAME) - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_a_key_determines_the_result_and_another_key_changes_it(name):
    apply = applied(name)
    assert jnp.array_equal(apply(KEY, SAME), apply(KEY, SAME))
    assert not jnp.array_equal(apply(KEY, SAME), apply(jax.random.key(1), SAME))


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_an_example_does_not_depend_on_its_neighbours(name):
    others = SAME.at[3:].set(0.5)
    assert jnp.array_equal(applied(name)(KEY, others)[:3], applied(name)(KEY, SAME)[:3])


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_gradients_under_vmap(name):
    apply = compose([(name, RANDOM[name])])
    keys = jax.random.split(KEY, 2)

    @jax.jit
    def both(images):
        return jax.vmap(jax.grad(lambda x, key: (apply(key, x) ** 2).sum()), (None, 0))(
            images, keys
        )

    gradient = both(SAME[:2])
    assert gradient.shape == (2, 2, 16, 16, 3)
    assert jnp.isfinite(gradient).all()
    assert (jnp.abs(gradient).sum(axis=(2, 3, 4)) > 0).all()


def test_views_are_independent():
    pipeline = compose([("random_resized_crop", STRONG["random_resized_crop"])])
    crops = jax.jit(lambda key, x: views(key, x, pipeline, n=3))(KEY, SAME)
    assert crops.shape == (3, *SAME.shape)
    flat = np.asarray(crops).reshape(18, -1)
    assert (flat[:, None] != flat[None]).any(axis=-1).sum() == 18 * 17


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_views_draw_as_copies_of_the_batch_behind_each_other_would(name):
    pipeline = compose([(name, RANDOM[name])])

    @jax.jit
    def both(images):
        behind = pipeline(KEY, jnp.tile(images, (3, 1, 1, 1))).reshape(3, *images.shape)
        return views(KEY, images, pipeline, n=3), behind

    np.testing.assert_allclose(*both(SAME), atol=1e-6)


def test_flat_views_are_neighbours():
    apart = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)
    flat = flat_views(apart)
    np.testing.assert_array_equal(flat[:2], [apart[0, 0], apart[1, 0]])
    np.testing.assert_array_equal(split_views(flat), apart)


def test_uniforms_do_not_depend_on_the_batch_size():
    assert jnp.array_equal(uniforms(KEY, 3, 4), uniforms(KEY, 8, 4)[:, :3])


def test_uniforms_are_uniform_and_uncorrelated():
    u = np.asarray(uniforms(KEY, 5000, 4))
    assert u.shape == (4, 5000)
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_allclose(u.mean(axis=1), 0.5, atol=4 / np.sqrt(12 * 5000))
    assert np.abs(np.corrcoef(u) - np.eye(4)).max() < 4 / np.sqrt(5000)
    assert np.abs(np.corrcoef(u[0, 1:], u[0, :-1])[0, 1]) < 4 / np.sqrt(5000)


@pytest.mark.slow
def test_steps_draw_from_keys_of_their_own():
    erase = ("random_erase", {"p": 1, "fill": 5.0, "scale": (0.05, 0.05)})
    twice = jax.jit(compose([erase, erase]))(KEY, SAME)
    once = jax.jit(compose([erase]))(KEY, SAME)
    assert ((twice == 5).sum(axis=(1, 2, 3)) > (once == 5).sum(axis=(1, 2, 3))).any()


def test_compose_reads_configs():
    steps = [
        "random_flip",
        ["random_resized_crop", {"scale": [0.5, 1], "size": [8, 6]}],
        ("normalize", {"mean": [0.5, 0.5, 0.5], "std": 0.25}),
        ("random_grayscale",),
    ]
    out = jax.jit(compose(steps))(KEY, SAME)
    assert out.shape == (6, 8, 6, 3)
    three = jax.eval_shape(lambda key, x: views(key, x, compose(steps), n=3), KEY, SAME)
    assert three.shape == (3, 6, 8, 6, 3)
    assert jnp.array_equal(compose([])(KEY, SAME), SAME)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["random_crop_resized"], "unknown augmentation 'random_crop_resized'; did you mean"),
        (["zzz"], "unknown augmentation 'zzz'; expected one of: center_crop, color_jitter"),
        (
            [("random_affine", {"degree": 10})],
            "unknown option of random_affine 'degree'; did you mean 'degrees'",
        ),
        ([("random_flip", {"key": 1})], "unknown option of random_flip 'key'"),
        ([("random_flip", {"images": 1})], "unknown option of random_flip 'images'"),
        ([("random_flip", {"copies": 1})], "unknown option of random_flip 'copies'"),
        ([("normalize", {"mean": 0.5})], "normalize needs the option 'std'"),
        ([("a", "b", "c")], "a name or \\(name, options\\)"),
        ([({}, {})], "a name or \\(name, options\\)"),
    ],
)
def test_compose_says_what_is_wrong(steps, message):
    with pytest.raises(ValueError, match=message):
        compose(steps)


def test_views_needs_a_view():
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        views(KEY, SAME, compose([]), n=0)


def test_to_float():
    pixels = jnp.array([[[[0], [255], [51]]]], jnp.uint8)
    np.testing.assert_allclose(to_float(pixels).ravel(), [0, 1, 0.2], rtol=1e-6)
    assert to_float(pixels).dtype == jnp.float32
    assert to_float(SAME) is SAME
    assert to_float(pixels[0]).shape == (1, 3, 1)
