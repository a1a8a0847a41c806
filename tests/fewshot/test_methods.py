"""What every method has in common: one signature, and what must not matter does not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.fewshot.alpha_tim import alpha_tim
from rml.fewshot.bdcspn import bd_cspn
from rml.fewshot.kmeans import hard_kmeans, soft_kmeans
from rml.fewshot.kmodes import k_modes
from rml.fewshot.label_propagation import label_propagation
from rml.fewshot.laplacian_shot import laplacian_shot
from rml.fewshot.preprocess import preprocessed, transform, transform_episode
from rml.fewshot.pt_map import pt_map
from rml.fewshot.simpleshot import simple_shot
from rml.fewshot.tim import tim, tim_adm
from rml.fewshot.transductive_clustering import transductive_clustering

METHODS = {
    "simple_shot": simple_shot,
    "soft_kmeans": soft_kmeans,
    "hard_kmeans": hard_kmeans,
    "k_modes": k_modes,
    "laplacian_shot": laplacian_shot,
    "transductive_clustering": transductive_clustering,
    "bd_cspn": bd_cspn,
    "label_propagation": partial(label_propagation, neighbors=3),
    "tim": partial(tim, steps=20, learning_rate=1e-2),
    "alpha_tim": partial(alpha_tim, steps=20, learning_rate=1e-2),
    "tim_adm": partial(tim_adm, steps=5),
    "pt_map": partial(pt_map, power=None, steps=3),
}
WAYS, SHOTS, QUERIES = 3, 2, 4


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    """A jitted method and whether it needs a package that is not installed."""
    if request.param == "pt_map":
        pytest.importorskip("ott")
    return jax.jit(partial(METHODS[request.param], num_classes=WAYS))


def test_probabilities_find_well_separated_classes(method, episode):
    support, labels, query, truth = episode(1, d=6, spread=0.1)
    p = method(support, labels, query)
    assert p.shape == (WAYS * QUERIES, WAYS)
    np.testing.assert_allclose(jnp.sum(p, axis=1), 1, rtol=1e-5)
    assert jnp.all(p >= 0)
    np.testing.assert_array_equal(jnp.argmax(p, axis=1), truth)


def test_order_and_names_do_not_matter(method, episode):
    support, labels, query, _ = episode(4)
    p = method(support, labels, query)
    rows = jnp.asarray(np.random.default_rng(0).permutation(len(query)))
    np.testing.assert_allclose(method(support, labels, query[rows]), p[rows], atol=2e-4)
    examples = jnp.asarray(np.random.default_rng(1).permutation(len(support)))
    np.testing.assert_allclose(method(support[examples], labels[examples], query), p, atol=2e-4)
    names = jnp.asarray([2, 0, 1])
    np.testing.assert_allclose(method(support, names[labels], query)[:, names], p, atol=2e-4)


def test_a_batch_is_a_loop(method, episode):
    batch = [episode(seed)[:3] for seed in (0, 7)]
    together = jax.vmap(method)(*(jnp.stack(parts) for parts in zip(*batch, strict=True)))
    alone = jnp.stack([method(*parts) for parts in batch])
    np.testing.assert_allclose(together, alone, atol=2e-4)


def test_gradients_are_finite(episode):
    support, labels, query, truth = episode(0)

    @jax.jit
    def gradient(scale):
        def loss(scale, method):
            p = method(scale * support, labels, scale * query, num_classes=WAYS)
            return -jnp.mean(jnp.log(p[jnp.arange(len(truth)), truth] + 1e-6))

        # A while loop has no reverse mode; forward mode goes through every method here.
        kinds = [m for name, m in METHODS.items() if name not in ("pt_map", "hard_kmeans")]
        return jnp.stack([jax.jvp(partial(loss, method=m), (scale,), (1.0,))[1] for m in kinds])

    slopes = gradient(1.1)
    assert jnp.all(jnp.isfinite(slopes))
    assert jnp.any(slopes != 0)


@pytest.mark.parametrize("name", ["simple_shot", "bd_cspn", "label_propagation", "tim_adm"])
def test_reverse_mode_is_the_slope(episode, name):
    support, labels, query, truth = episode(0)

    def loss(support):
        p = METHODS[name](support, labels, query, num_classes=WAYS)
        return -jnp.mean(jnp.log(p[jnp.arange(len(truth)), truth]))

    gradient = jax.jit(jax.grad(loss))(support)
    direction = jax.random.normal(jax.random.key(0), support.shape)
    step = 1e-2 * direction
    slope = (loss(support + step) - loss(support - step)) / 2e-2
    np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=2e-2)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda s, y, q: (s, jnp.zeros_like(y), q), r"none of \[1, 2\] among 3 classes"),
        (lambda s, y, q: (s, y + 1, q), "between 0 and 2, got values from 1 to 3"),
        (lambda s, y, q: (s, y[:-1], q), r"one label for each of 6 rows, got shape \(5,\)"),
        (lambda s, y, q: (s.at[0, 0].set(jnp.nan), y, q), "support must be finite, got 1"),
        (lambda s, y, q: (s, y, q.at[0].set(jnp.inf)), "query must be finite, got 6"),
        (lambda s, y, q: (s, y, q[:, :4]), r"same number of features.*\(6, 6\) and \(12, 4\)"),
        (lambda s, y, q: (s[:2], y[:2], q), "3 classes need at least as many support rows, got 2"),
    ],
)
def test_bad_episodes_are_named(unchecked, episode, name, break_, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](*break_(*episode(0)[:3]), num_classes=WAYS)


def test_transforms():
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    center = np.asarray([1.0, -2.0, 0.5], np.float32)
    a = jnp.asarray(x)
    np.testing.assert_array_equal(transform(a, kind="UN"), x)
    np.testing.assert_allclose(
        transform(a, kind="L2N"), x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-6
    )
    for given, used in ((None, x.mean(0)), (jnp.asarray(center), center)):
        y = x - used
        expected = y / np.linalg.norm(y, axis=1, keepdims=True)
        np.testing.assert_allclose(transform(a, kind="CL2N", center=given), expected, rtol=1e-5)
        support, query = transform_episode(a[:2], a[2:], kind="CL2N", center=given)
        np.testing.assert_allclose(jnp.concatenate([support, query]), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="unknown feature transform 'CL2'; did you mean 'CL2N'"):
        transform(a, kind="CL2")


def test_a_preprocessed_method_sees_transformed_features(episode):
    support, labels, query, _ = episode(0)
    wrapped = preprocessed(simple_shot, kind="CL2N")(2 * support + 3, labels, 2 * query + 3,
                                                     num_classes=WAYS)  # fmt: skip
    inner = simple_shot(2 * support + 3, labels, 2 * query + 3, num_classes=WAYS, kind="CL2N")
    np.testing.assert_allclose(wrapped, inner, rtol=1e-6)
