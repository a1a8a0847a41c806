import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.mnr import multiple_negatives_ranking


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 2])
def test_hard_negatives_compete_for_every_query(check, oracle, normal, block_size):
    def reference(q, d, h):
        documents = oracle.unit(np.concatenate([d, h.reshape(-1, h.shape[-1])]))
        s = oracle.unit(q) @ documents.T / 0.05
        return np.mean(oracle.lse(s) - np.diagonal(s))

    def loss(q, d, h):
        return multiple_negatives_ranking(q, d, hard_negatives=h, block_size=block_size)

    check(loss, reference, normal(0, 5, 4), normal(1, 5, 4), normal(2, 5, 3, 4))


@pytest.mark.parametrize("block_size", [None, 2])
def test_answers_beside_a_querys_own_are_left_out(check, oracle, normal, block_size):
    left_out = np.random.default_rng(0).random((5, 15)) < 0.3
    left_out[2, 2] = True  # its own, which stays

    def reference(q, d, h):
        documents = oracle.unit(np.concatenate([d, h.reshape(-1, h.shape[-1])]))
        s = oracle.unit(q) @ documents.T / 0.05
        kept = ~left_out | np.eye(5, 15, dtype=bool)
        return np.mean(oracle.lse(np.where(kept, s, -np.inf)) - np.diagonal(s))

    def loss(q, d, h):
        return multiple_negatives_ranking(
            q, d, hard_negatives=h, false_negatives=jnp.asarray(left_out), block_size=block_size
        )

    check(loss, reference, normal(0, 5, 4), normal(1, 5, 4), normal(2, 5, 2, 4))


def test_without_hard_negatives(check, oracle, normal):
    def reference(q, d):
        s = oracle.unit(q) @ oracle.unit(d).T / 0.05
        return np.mean(oracle.lse(s) - np.diagonal(s))

    check(multiple_negatives_ranking, reference, normal(0, 5, 4), normal(1, 5, 4))
