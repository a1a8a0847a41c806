"""Fine-tuned heads beside the optimum of their objective and steps written in float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from rml.fewshot import cosine_head, linear_head

C = 3


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


@pytest.mark.slow
def test_the_linear_head_reaches_the_optimum_of_its_objective(episode):
    support, labels, query, _ = episode(0, shots=4)
    p = linear_head(
        7 * support, labels, 7 * query, num_classes=C, weight_decay=0.05, steps=2000
    )  # the factor is nothing to it
    s, q = wide(support, query)
    s, q = (x / np.sqrt(np.mean(np.sum(s**2, 1))) for x in (s, q))
    y = np.eye(C)[np.asarray(labels)]

    def objective(flat):
        w = flat.reshape(-1, C)
        logits = s @ w[:-1] + w[-1]
        fitted = np.mean(special.logsumexp(logits, axis=1) - np.sum(y * logits, axis=1))
        return fitted + 0.05 / 2 * np.sum(w**2)

    w = optimize.minimize(objective, np.zeros(7 * C), tol=1e-12).x.reshape(-1, C)
    np.testing.assert_allclose(p, special.softmax(q @ w[:-1] + w[-1], axis=1), atol=2e-4)


def numpy_steps(slope, w, rate, steps):
    mean = np.zeros_like(w)
    for _ in range(steps):
        mean = 0.9 * mean + 0.1 * slope(w)
        w = w - rate * mean
    return w


@pytest.mark.slow
def test_steps_are_those_of_momentum_and_dampening(episode):
    support, labels, query, _ = episode(1)
    s, q = wide(support, query)
    s, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, q))
    y = np.eye(C)[np.asarray(labels)]

    def linear(w):
        return s.T @ (special.softmax(s @ w, axis=1) - y) / len(s) + 0.1 * w

    extended = np.concatenate([s, np.ones((len(s), 1))], axis=1)
    s, keep = extended, s
    w = numpy_steps(linear, np.zeros((7, C)), 2.0, 5)
    p = linear_head(
        support, labels, query, num_classes=C, learning_rate=2.0, weight_decay=0.1, steps=5
    )
    np.testing.assert_allclose(p, special.softmax(q @ w[:-1] + w[-1], axis=1), atol=2e-5)
    s = keep

    def cosine(w):
        """By the chain rule: a row's length does not change its cosines."""
        lengths = np.linalg.norm(w, axis=1, keepdims=True)
        u = w / lengths
        by_unit = 4.0 * (special.softmax(4.0 * s @ u.T, axis=1) - y).T @ s / len(s)
        return (by_unit - u * np.sum(u * by_unit, axis=1, keepdims=True)) / lengths + 0.1 * w

    start = np.stack([s[np.asarray(labels) == k].mean(0) for k in range(C)])
    w = numpy_steps(cosine, start, 0.5, 5)
    u = w / np.linalg.norm(w, axis=1, keepdims=True)
    p = cosine_head(
        support, labels, query, num_classes=C, scale=4.0, learning_rate=0.5, weight_decay=0.1,
        steps=5,
    )  # fmt: skip
    np.testing.assert_allclose(p, special.softmax(4.0 * q @ u.T, axis=1), atol=2e-5)
    at_start = cosine_head(support, labels, query, num_classes=C, scale=4.0, steps=0)
    assert float(jnp.max(jnp.abs(p - at_start))) > 1e-3
