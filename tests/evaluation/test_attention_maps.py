import jax
import jax.numpy as jnp
import numpy as np

from rml.evaluation.attention_maps import attention_maps, high_frequency


def test_uniform_and_permutation():
    uniform = attention_maps(jnp.full((20, 20), 1 / 20))
    np.testing.assert_allclose(uniform, (19, np.log(20), 1 / 20, 0), atol=1e-5)
    one = attention_maps(jnp.eye(20)[jnp.arange(20)[::-1]])
    np.testing.assert_allclose(one, (1, 0, 1 / 20, 1), atol=1e-5)
    sink = attention_maps(jnp.zeros((20, 20)).at[:, 3].set(1.0))
    np.testing.assert_allclose(sink, (1, 0, 1, 0), atol=1e-5)


def test_padding_does_not_change_them():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 7, 7)) * 2
    inner = jax.nn.softmax(logits[..., :5, :5])
    padded = jnp.zeros((2, 3, 7, 7)).at[..., :5, :5].set(inner).at[..., 5:, :].set(1 / 7)
    mask = jnp.arange(7) < 5
    for found, wanted in zip(attention_maps(padded, mask), attention_maps(inner), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.ptp(attention_maps(inner).entropy) > 0.05


def test_the_filter_rate_bounds_what_is_left_of_differences():
    """High frequencies of A X W are at most the rate times |W| times those of X."""
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(0), (9, 9)))
    x, w = (
        jax.random.normal(jax.random.key(1), (9, 4)),
        jax.random.normal(jax.random.key(2), (4, 4)),
    )
    norm = jnp.linalg.norm
    bound = attention_maps(weights).filter_rate * norm(w, 2) * norm(high_frequency(x))
    assert norm(high_frequency(weights @ x @ w)) <= bound
    centred = np.asarray(weights, np.float64) - np.asarray(weights, np.float64).mean(0)
    _, size, right = np.linalg.svd(centred)
    np.testing.assert_allclose(attention_maps(weights).filter_rate, size[0], rtol=1e-5)
    worst = jnp.asarray(right[0], jnp.float32)[:, None]  # its mean is 0: rows of weights sum to 1
    reached = norm(high_frequency(weights @ worst)) / norm(high_frequency(worst))
    np.testing.assert_allclose(reached, size[0], rtol=1e-5)


def test_high_frequencies_of_masked_tokens():
    x = jax.random.normal(jax.random.key(1), (6, 4))
    found = high_frequency(x, jnp.arange(6) < 4)
    np.testing.assert_allclose(found[:4], high_frequency(x[:4]), atol=1e-6)
    assert not found[4:].any()
