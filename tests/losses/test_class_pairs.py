"""Contrastive pairs and prototypical episodes against their definitions in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses import contrastive_pairs, prototypical_loss

LABELS = np.array([0, 1, 0, 2, 1, 0, 3])


@pytest.mark.slow
def test_contrastive_pairs_match_loops_over_pairs(check, normal):
    z = normal(0, 7, 3)

    def reference(z):
        kinds = {True: [], False: []}
        for i in range(7):
            for j in range(7):
                distance = np.sqrt(np.sum((z[i] - z[j]) ** 2))
                if i != j and LABELS[i] == LABELS[j]:
                    kinds[True].append(distance**2)
                elif i != j:
                    kinds[False].append(max(0.0, 2.2 - distance) ** 2)
        return (np.mean(kinds[True]) + np.mean(kinds[False])) / 2

    apart = np.linalg.norm(z[:, None] - z, axis=-1)[LABELS[:, None] != LABELS]
    assert (apart < 2.2).any()
    assert (apart > 2.2).any()
    check(lambda z: contrastive_pairs(z, jnp.asarray(LABELS), margin=2.2), reference, z)


def test_a_batch_of_one_class_or_of_none_twice_has_one_kind_of_pair():
    z = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    assert contrastive_pairs(z, jnp.asarray([1, 1]), margin=7.0) == pytest.approx(25 / 2)
    assert contrastive_pairs(z, jnp.asarray([0, 1]), margin=7.0) == pytest.approx(4 / 2)


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_margins_are_above_0(margin):
    with pytest.raises(ValueError, match=f"^margin is {margin}, expected a number above 0$"):
        contrastive_pairs(jnp.eye(2), jnp.arange(2), margin=margin)


@pytest.mark.slow
def test_prototypical_loss_matches_its_definition(check, oracle, normal):
    support, query = normal(0, 7, 3), normal(1, 5, 3)
    labels = np.array([3, 0, 1, 2, 1])

    def reference(support, query):
        means = np.stack([support[c == LABELS].mean(0) for c in range(4)])
        logits = -np.sum((query[:, None] - means) ** 2, -1) / 1.7
        return np.mean(oracle.lse(logits) - logits[np.arange(5), labels])

    def loss(support, query):
        return prototypical_loss(
            support, jnp.asarray(LABELS), query, jnp.asarray(labels), num_classes=4,
            temperature=1.7,
        )  # fmt: skip

    check(loss, reference, support, query)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support_labels": jnp.asarray([0, 4, 1])}, "support_labels must lie between 0 and 2"),
        ({"query_labels": jnp.asarray([0, -1])}, "query_labels must lie between 0 and 2"),
        ({"num_classes": 0}, "num_classes is 0, expected a number at least 1"),
        ({"query": jnp.zeros((0, 3)), "query_labels": jnp.zeros(0, int)}, "at least one example"),
    ],
)
def test_episodes_that_are_none_are_refused(options, message):
    given = dict(
        support=jnp.eye(3), support_labels=jnp.arange(3), query=jnp.eye(3)[:2],
        query_labels=jnp.arange(2), num_classes=3,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        prototypical_loss(**given | options)
