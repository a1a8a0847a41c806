from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention import performer

D, M = 4, 8
ATTEND = jax.jit(performer.performer_attention, static_argnames="causal")


def estimates(x, y, *, orthogonal, count=60000):
    def one(key):
        projection = performer.gaussian_projection(key, M, D, orthogonal=orthogonal)
        features = performer.positive_features(jnp.stack([x, y]), projection)
        return features[0] @ features[1]

    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


@pytest.fixture(scope="module")
def points():
    x, y = 0.4 * np.random.default_rng(0).standard_normal((2, D)).astype(np.float32)
    return x, y, np.exp(np.dot(x.astype(np.float64), y))


@pytest.fixture(scope="module")
def independent(points):
    return estimates(*points[:2], orthogonal=False)


def test_the_estimate_is_unbiased_with_the_stated_variance(points, independent):
    (x, y, truth), values = points, independent
    assert abs(values.mean() - truth) < 3 * values.std() / np.sqrt(len(values))
    stated = truth**2 * (np.exp(np.sum((x + y) ** 2)) - 1) / M
    np.testing.assert_allclose(values.var(), stated, rtol=0.1)


@pytest.mark.slow
def test_orthogonal_directions_are_unbiased_and_vary_less(points, independent):
    x, y, truth = points
    values = estimates(x, y, orthogonal=True)
    assert abs(values.mean() - truth) < 3 * values.std() / np.sqrt(len(values))
    saved = independent.reshape(50, -1).var(1) - values.reshape(50, -1).var(1)
    assert saved.mean() > 3 * saved.std() / np.sqrt(50)


def test_orthogonal_directions_are_orthogonal_and_marginally_normal():
    draw = jax.jit(jax.vmap(lambda k: performer.gaussian_projection(k, 6, D)))
    w = np.asarray(draw(jax.random.split(jax.random.key(1), 5000)))
    inner = np.einsum("nid,njd->nij", w[:, :D], w[:, :D])
    assert np.abs(inner * (1 - np.eye(D))).max() < 1e-4
    rows = w[:, 5]  # of the second, incomplete block
    np.testing.assert_allclose(rows.mean(0), 0, atol=4 / np.sqrt(5000))
    np.testing.assert_allclose(np.cov(rows.T), np.eye(D), atol=0.09)


def softmax_attention(q, k, v, causal):
    return weights(q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]), causal) @ v


def weights(scores, causal):
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:])) > 0, scores, -np.inf)
    w = np.exp(scores - scores.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


def definition(q, k, v, projection, causal):
    """Quadratic, from logarithms of the weights."""

    def exponents(x):
        x = x.shape[-1] ** -0.25 * x
        return x @ projection.T - (x**2).sum(-1, keepdims=True) / 2

    logs = jax.nn.logsumexp(exponents(q)[:, None] + exponents(k), axis=-1)
    seen = np.tril(np.ones(logs.shape)) > 0 if causal else True
    return jax.nn.softmax(logs, where=seen, axis=-1) @ v


@partial(jax.jit, static_argnames="causal")
def beside_definition(direction, *arrays, causal):
    """Output and gradients of a product with the direction, of attention and of its definition."""
    found = []
    for attend in (performer.performer_attention, definition):
        out, backward = jax.vjp(partial(attend, causal=causal), *arrays)
        found.append((out, backward(direction)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_attention_approaches_softmax_as_features_grow(causal):
    q, k, v = 0.5 * jax.random.normal(jax.random.key(1), (3, 2, 6, D))
    expected = softmax_attention(*(np.asarray(x, np.float64) for x in (q, k, v)), causal)

    def error(key, m):
        out = performer.performer_attention(
            q, k, v, performer.gaussian_projection(key, m, D), causal=causal
        )
        return jnp.sqrt(jnp.mean((out - expected) ** 2))

    keys = jax.random.split(jax.random.key(0), 16)
    few, many = (np.mean(jax.jit(jax.vmap(lambda s, m=m: error(s, m)))(keys)) for m in (32, 2048))
    assert many < 0.05
    assert few / many == pytest.approx(8, rel=0.4)  # sqrt(2048 / 32)


@pytest.mark.slow
def test_large_inputs_do_not_overflow():
    q, k, v = 30 * jax.random.normal(jax.random.key(1), (3, 6, D))
    projection = performer.gaussian_projection(jax.random.key(0), 16, D)
    out = ATTEND(q, k, v, projection)
    assert np.isfinite(out).all()


def test_causal_needs_as_many_queries_as_keys():
    x = jnp.ones((3, D))
    with pytest.raises(ValueError, match="as many queries as keys"):
        performer.performer_attention(x[:2], x, x, jnp.ones((2, D)), causal=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": jnp.ones((5, 3))}, r"keys \(5, 3\) as \[..., s, d\]"),
        ({"values": jnp.ones((4, 2))}, r"values \(4, 2\) as \[..., s, v\]"),
        ({"projection": jnp.ones((8, 3))}, r"projection \(8, 3\) as \[m, d\]"),
        ({"projection": jnp.ones((0, D))}, "features is 0, expected a number above 0"),
        ({"keys": jnp.ones((0, D)), "values": jnp.ones((0, 2))}, "keys is 0, expected a number"),
    ],
)
def test_shapes_that_do_not_fit_are_named(unchecked, change, message):
    x = dict(query=jnp.ones((5, D)), keys=jnp.ones((5, D)), values=jnp.ones((5, 2)))
    with pytest.raises(ValueError, match=message):
        performer.performer_attention(**{**x, "projection": jnp.ones((8, D)), **change})


def test_features_of_other_vectors_and_none_at_all_are_named(unchecked):
    for projection in (jnp.ones((8, 3)), jnp.ones((0, D))):
        with pytest.raises(ValueError, match=rf"projection \({len(projection)}, "):
            performer.positive_features(jnp.ones((5, D)), projection)
    for features, d, name in ((0, D, "features is 0"), (-1, D, "features is -1"), (4, 0, "d is 0")):
        for orthogonal in (True, False):
            with pytest.raises(ValueError, match=f"{name}, expected a number above 0"):
                performer.gaussian_projection(jax.random.key(0), features, d, orthogonal=orthogonal)


@pytest.mark.slow
def test_what_comes_later_does_not_make_a_row_vanish():
    """Keys whose exponents differ by hundreds, against the definition in float64."""
    scale = jnp.linspace(1, 20, 40)[:, None]
    q, k, v = jax.random.normal(jax.random.key(1), (3, 40, D))
    projection = performer.gaussian_projection(jax.random.key(0), 32, D)
    attend = partial(ATTEND, causal=True)
    wide = jax.jit(partial(definition, causal=True))
    for keys in (scale * k, scale[::-1] * k):
        out = attend(q, keys, v, projection)
        with jax.enable_x64(True):
            expected = wide(*(np.asarray(x, np.float64) for x in (q, keys, v, projection)))
        np.testing.assert_allclose(out, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("scale", "error"), [(1, 1e-5), (20, 1e-3), (40, 4e-3)])
def test_every_row_is_the_definition_with_weights_that_sum_to_one(causal, scale, error):
    """However far the exponents of features and keys are apart; two chunks and half of one."""
    q, k, v = np.array(jax.random.normal(jax.random.key(1), (3, 40, 16)))
    q, k, v[:, 0] = scale * q, scale * k, 1
    projection = performer.gaussian_projection(jax.random.key(0), 64, 16)
    out = ATTEND(*map(jnp.asarray, (q, k, v)), projection, causal=causal)
    np.testing.assert_allclose(out[:, 0], 1, rtol=1e-6)
    with jax.enable_x64(True):
        given = (jnp.asarray(np.asarray(x), jnp.float64) for x in (q, k, v, projection))
        direction = jnp.asarray(np.sin(np.arange(640.0)).reshape(40, 16))
        (ours, gradients), (exact, wanted) = beside_definition(direction, *given, causal=causal)
    np.testing.assert_allclose(out, exact, rtol=error, atol=error)
    np.testing.assert_allclose(ours, exact, rtol=1e-8, atol=1e-10)
    for a, b in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_is_summed_in_single(causal):
    keys = jax.random.split(jax.random.key(3), 4)
    query, key, values = (jax.random.normal(k, (40, 4)).astype(jnp.bfloat16) for k in keys[:3])
    projection = performer.gaussian_projection(keys[3], 16, 4)
    attend = partial(ATTEND, causal=causal)
    ours = attend(query, key, values, projection)
    assert ours.dtype == jnp.bfloat16
    wider = attend(*(x.astype(jnp.float32) for x in (query, key, values)), projection)
    np.testing.assert_array_equal(ours, wider.astype(jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_a_query_that_sees_no_key_has_no_gradient(causal):
    q, k, v = jax.random.normal(jax.random.key(1), (3, 40, D))
    projection = performer.gaussian_projection(jax.random.key(0), 8, D)
    here = jnp.arange(40) >= (20 if causal else 40)  # text padded from the left, or no text at all

    def loss(q, k, v):
        out = performer.performer_attention(q, k, v, projection, here=here, causal=causal)
        return jnp.sum(jnp.where(here[:, None], out, 0) ** 2)

    for slope in jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v):
        assert jnp.isfinite(slope).all()


@pytest.mark.slow
def test_the_gradient_of_causal_attention_keeps_few_states():
    """A length that chunks do not divide, and the memory of another: half of all states."""
    q, k, v = jax.random.normal(jax.random.key(1), (3, 43, D))
    projection = performer.gaussian_projection(jax.random.key(0), 8, D)
    attend = partial(performer.performer_attention, causal=True)
    with jax.enable_x64(True):
        given = [jnp.asarray(np.asarray(x), jnp.float64) for x in (q, k, v, projection)]
        direction = jnp.asarray(np.sin(np.arange(43.0 * D)).reshape(43, D))
        (ours, found), (exact, wanted) = beside_definition(direction, *given, causal=True)
    np.testing.assert_allclose(ours, exact, rtol=1e-10)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    x, values, w = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, D), (256, 31), (64, D))
    )
    slope = jax.jit(jax.grad(lambda *arrays: attend(*arrays).sum(), (0, 1, 2)))
    memory = slope.lower(x, x, values, w).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 256 * 64 * 32 * 4 / 2
