from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.infonce import info_nce, info_nce_with_queue
from rml.ops import normalize


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("block_size", [None, 3])
def test_matches_the_float64_cross_entropy(check, oracle, normal, temperature, block_size):
    q, k, extra = oracle.unit(normal(0, 7, 5)), oracle.unit(normal(1, 9, 5)), normal(2, 4, 5)

    def reference(q, k, extra, t):
        s = q @ np.concatenate([k, extra]).T / t
        return np.mean(oracle.lse(s) - np.diagonal(s))

    def loss(q, k, extra, t):
        return info_nce(q, k, temperature=t, negatives=extra, block_size=block_size)

    step = 1e-6 if temperature > 0.1 else 1e-8
    check(loss, reference, q, k, extra, temperature, step=step)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 2])
def test_positives_by_index_and_reduction(oracle, normal, block_size):
    q, k = jnp.asarray(normal(0, 6, 4)), jnp.asarray(normal(1, 5, 4))
    own = jnp.array([4, 0, 0, 3, 2, 4])
    each = info_nce(q, k, temperature=0.5, positives=own, reduction="none", block_size=block_size)
    s = np.asarray(q, np.float64) @ np.asarray(k, np.float64).T / 0.5
    np.testing.assert_allclose(each, oracle.lse(s) - s[np.arange(6), own], rtol=1e-5)
    mean = info_nce(q, k, temperature=0.5, positives=own, block_size=block_size)
    np.testing.assert_allclose(mean, jnp.mean(each), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 4])
def test_false_negatives_are_left_out_by_label_or_matrix(oracle, normal, block_size):
    q, k, extra = (jnp.asarray(normal(i, n, 4)) for i, n in ((0, 6), (1, 6), (2, 3)))
    label_q = np.array([0, 1, 0, 2, 2, 5])
    label_k = np.array([0, 1, 3, 2, 2, 1, 0, 2, 9])
    false = (label_q[:, None] == label_k) & ~np.eye(6, 9, dtype=bool)

    s = np.asarray(q, np.float64) @ np.concatenate([k, extra]).T.astype(np.float64) / 0.7
    expected = np.mean(oracle.lse(np.where(false, -np.inf, s)) - np.diagonal(s))
    common = {"temperature": 0.7, "negatives": extra, "block_size": block_size}
    by_label = info_nce(q, k, labels=(jnp.asarray(label_q), jnp.asarray(label_k)), **common)
    by_matrix = info_nce(q, k, false_negatives=jnp.asarray(false), **common)
    np.testing.assert_allclose(by_label, expected, rtol=1e-5)
    np.testing.assert_allclose(by_matrix, expected, rtol=1e-5)
    # A matrix that names the positive itself keeps it.
    everything = info_nce(q, k, false_negatives=jnp.ones((6, 9), bool), **common)
    np.testing.assert_allclose(everything, 0.0, atol=1e-5)


def test_with_a_queue_its_keys_alone_are_negatives(check, oracle, normal):
    q, k, queue = (oracle.unit(normal(i, n, 5)) for i, n in ((0, 6), (1, 6), (2, 9)))

    def reference(q, k, queue, t):
        own = np.sum(q * k, axis=1, keepdims=True)
        s = np.concatenate([own, q @ queue.T], axis=1) / t
        return np.mean(oracle.lse(s) - s[:, 0])

    def loss(q, k, queue, t):
        return info_nce_with_queue(q, k, queue, temperature=t)

    check(loss, reference, q, k, queue, 0.3)


@pytest.mark.slow
def test_bfloat16_accumulates_in_float32(normal):
    q, k = (jnp.asarray(normal(i, 64, 128), jnp.bfloat16) for i in (0, 1))
    q32, k32 = q.astype(jnp.float32), k.astype(jnp.float32)
    f = jax.jit(
        jax.value_and_grad(lambda q, k: info_nce(q, k, temperature=8.0, block_size=16), (0, 1))
    )
    value, grads = f(q, k)
    exact, exact_grads = f(q32, k32)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == jnp.bfloat16
        error = jnp.abs(grad.astype(jnp.float32) - exact_grad)
        assert jnp.all(error <= 2**-7 * jnp.abs(exact_grad) + 1e-7)


def test_uniform_logits_give_the_logarithm_of_the_number_of_keys():
    q, k = jnp.zeros((3, 4)), jnp.ones((5, 4))
    np.testing.assert_allclose(info_nce(q, k, temperature=0.1), np.log(5), rtol=1e-6)


def test_misuse_is_named():
    q, k = jnp.ones((4, 3)), jnp.ones((3, 3))
    with pytest.raises(ValueError, match="4 queries and 3 keys"):
        info_nce(q, k, temperature=0.1)
    labels = (jnp.zeros(4, int), jnp.zeros(4, int))
    with pytest.raises(ValueError, match="give one"):
        info_nce(q, q, temperature=0.1, labels=labels, false_negatives=jnp.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="labels must cover"):
        info_nce(q, q, temperature=0.1, labels=(labels[0], labels[1][:3]))
    with pytest.raises(ValueError, match="block_size"):
        info_nce(q, q, temperature=0.1, block_size=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_labels_of_eight_bits_know_more_keys_than_they_count(dtype):
    q = normalize(jax.random.normal(jax.random.key(0), (300, 8)))
    labels = jnp.arange(300) % 10
    loss = partial(info_nce, q, q, temperature=0.1, reduction="none")
    expected = loss(labels=(labels, labels))
    narrow = labels.astype(dtype)
    np.testing.assert_array_equal(loss(labels=(narrow, narrow)), expected)
    assert expected.min() > 0.01  # a key is in its own denominator


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positives": jnp.array([0])}, r"positives \(1,\) as \[n\]"),
        ({"positives": jnp.array([[0], [1], [2]])}, r"positives \(3, 1\) as \[n\]"),
        ({"positives": jnp.array([0, 7, 2])}, "positives must lie between 0 and 3, got .* 0 to 7"),
        ({"positives": jnp.array([0, -1, 2])}, "between 0 and 3, got values from -1 to 2"),
        ({"labels": (jnp.arange(2), jnp.arange(4))}, r"own_labels \(2,\) as \[n\]"),
        ({"labels": (jnp.arange(3), jnp.ones((1, 4), int))}, r"all_labels \(1, 4\) as \[l\]"),
        ({"false_negatives": jnp.zeros((1, 4), bool)}, r"false_negatives \(1, 4\) as \[n, l\]"),
    ],
)
def test_what_would_broadcast_or_name_no_key_is_refused(unchecked, normal, options, message):
    q, k = jnp.asarray(normal(0, 3, 5)), jnp.asarray(normal(1, 4, 5))
    with pytest.raises(ValueError, match=message):
        info_nce(q, k, temperature=0.3, **options)
