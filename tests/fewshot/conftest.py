"""Episodes of small numbers, and the checks of shapes switched off where errors are tested."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def make_episode(seed=0, ways=3, shots=2, queries=4, d=6, spread=0.6):
    """Unit features around random class centres: support, labels, query, query labels (NumPy)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((ways, d))
    labels = np.repeat(np.arange(ways), shots)
    query_labels = np.repeat(np.arange(ways), queries)
    rows = np.concatenate([centres[labels], centres[query_labels]])
    rows = rows + spread * rng.standard_normal(rows.shape)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    order = rng.permutation(len(labels))
    return rows[: len(labels)][order], labels[order], rows[len(labels) :], query_labels


@pytest.fixture
def episode():
    """A function of a seed and sizes."""

    def make(*args, **sizes):
        support, labels, query, query_labels = make_episode(*args, **sizes)
        return jnp.asarray(support), jnp.asarray(labels), jnp.asarray(query), query_labels

    return make


@pytest.fixture
def double():
    """Everything in float64, so that inequalities can be tested to the last digits."""
    with jax.enable_x64(True):
        yield
