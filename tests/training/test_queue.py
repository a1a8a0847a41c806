"""The queue of keys against a deque in Python."""

from collections import deque

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rml.training.queue import AXES, enqueue, init_queue


def empty(size=10, features=3):
    return nn.meta.unbox(init_queue(jax.random.key(0), size=size, features=features))


def oldest_first(queue):
    return np.roll(np.asarray(queue.keys), -int(queue.pointer), axis=0)


def test_starts_full_of_unit_directions():
    queue = empty(size=50)
    np.testing.assert_allclose(np.linalg.norm(queue.keys, axis=1), 1, rtol=1e-6)
    assert queue.pointer == 0
    assert len(np.unique(np.asarray(queue.keys), axis=0)) == 50


@pytest.mark.slow
@pytest.mark.parametrize("batch", [5, 4, 10, 23])
def test_is_a_first_in_first_out_queue(batch):
    """Batches that divide the size, that wrap round it, that fill it, that are larger."""
    queue, step = empty(), jax.jit(lambda q, k: enqueue(q, k))
    reference = deque(np.asarray(queue.keys), maxlen=10)
    rng = np.random.default_rng(0)
    for _ in range(6):
        keys = rng.standard_normal((batch, 3)).astype(np.float32)
        queue = step(queue, jnp.asarray(keys))
        reference.extend(keys)
        np.testing.assert_array_equal(oldest_first(queue), np.stack(reference))
    assert step._cache_size() == 1


@pytest.mark.slow
def test_batches_of_different_sizes_follow_each_other():
    queue = empty()
    reference = deque(np.asarray(queue.keys), maxlen=10)
    for batch in (3, 8, 1):
        keys = np.random.default_rng(batch).standard_normal((batch, 3)).astype(np.float32)
        queue = enqueue(queue, jnp.asarray(keys))
        reference.extend(keys)
    np.testing.assert_array_equal(oldest_first(queue), np.stack(reference))


def test_works_in_a_scan_and_passes_no_gradient():
    queue = empty()
    keys = jnp.arange(60.0).reshape(5, 4, 3)

    def total(scale):
        last, _ = jax.lax.scan(lambda q, k: (enqueue(q, scale * k), None), queue, keys)
        return last.keys.sum()

    value, grad = jax.jit(jax.value_and_grad(total))(2.0)
    assert value == 2 * keys.reshape(20, 3)[-10:].sum()
    assert grad == 0


def test_keys_take_the_dtype_of_the_queue():
    queue = enqueue(empty(), jnp.ones((2, 3), jnp.bfloat16))
    assert queue.keys.dtype == jnp.float32


def test_is_boxed_by_logical_axes():
    queue = init_queue(jax.random.key(0), size=4, features=2)
    assert nn.get_partition_spec(queue).keys == PartitionSpec(*AXES)


def test_wrong_sizes():
    with pytest.raises(ValueError, match="keys have 2 features, the queue's have 3"):
        enqueue(empty(), jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="at least 1, got 0, 3"):
        init_queue(jax.random.key(0), size=0, features=3)
