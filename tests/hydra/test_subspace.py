"""Subspaces of pairs: draws, gates that find a planted subspace, the AUROC by counting."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.hydra import draw_pairs, gate_penalty, learn_gates, pair_auroc

OPTIONS = dict(steps=100, learning_rate=0.1, temperature=0.1, penalty=0.1)
CLASSES, EACH, WIDTH = 4, 12, 8


def planted():
    """Features in which classes 0 and 1 share dimension 0, classes 2 and 3 dimension 1.

    In the others, four for each class alone and two of noise, nothing relates two classes.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), EACH)
    features = 0.2 * rng.standard_normal((len(labels), WIDTH))
    features[np.arange(len(labels)), labels // 2] += 1
    features[np.arange(len(labels)), 2 + labels] += 2
    return jnp.asarray(features, jnp.float32), labels


def test_drawn_pairs_are_different_and_reproducible():
    i, j = draw_pairs(30, classes=12, seed=3)
    assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == 30
    assert ((i >= 0) & (i < j) & (j < 12)).all()
    np.testing.assert_array_equal((i, j), draw_pairs(30, classes=12, seed=3))
    assert (np.stack((i, j)) != np.stack(draw_pairs(30, classes=12, seed=4))).any()


@pytest.mark.parametrize("classes", [3, 4, 7])
def test_where_there_are_no_more_all_pairs_are_drawn(classes):
    i, j = draw_pairs(1000, classes=classes, seed=0)
    expected = set(itertools.combinations(range(classes), 2))
    assert len(i) == len(expected)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected


def test_drawn_pairs_are_uniform():
    found = [draw_pairs(1, classes=4, seed=seed) for seed in range(3000)]
    _, counts = np.unique([(i[0], j[0]) for i, j in found], axis=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 20.5  # chi-square of 5 degrees, p = 0.001


def test_two_classes_leave_no_rest():
    with pytest.raises(UserError, match="at least 3 classes, got 2"):
        draw_pairs(1, classes=2, seed=0)


def test_gates_open_the_dimension_that_a_pair_shares():
    features, labels = planted()
    gates = np.asarray(learn_gates(features, labels, np.array([0, 2]), np.array([1, 3]), **OPTIONS))
    assert gates.shape == (2, WIDTH)
    assert ((gates > 0) & (gates < 1)).all()
    # What tells one class of the pair from the other is closed, what they share is open. The
    # cosine sees ratios of gates alone.
    for gate, shared, alone in ((gates[0], 0, slice(2, 4)), (gates[1], 1, slice(4, 6))):
        assert gate[shared] > 0.5 > gate[alone].max()
        assert gate[shared] > 5 * gate[alone].max()


@pytest.mark.slow
def test_gates_of_a_pair_do_not_depend_on_the_other_pairs_nor_on_its_order():
    features, labels = planted()
    both = learn_gates(features, labels, np.array([0, 2]), np.array([1, 3]), **OPTIONS)
    alone = learn_gates(features, labels, np.array([2]), np.array([3]), **OPTIONS)
    swapped = learn_gates(features, labels, np.array([3]), np.array([2]), **OPTIONS)
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(swapped, alone, rtol=1e-3, atol=1e-5)


def test_any_number_may_stand_for_a_class_beside_the_pair():
    features, labels = planted()
    options = OPTIONS | {"steps": 5}
    negative, other = (
        learn_gates(features, np.where(labels == 3, rest, labels), np.array([0]), np.array([1]),
                    **options)
        for rest in (-1, 7)
    )  # fmt: skip
    np.testing.assert_array_equal(negative, other)
    assert np.ptp(negative) > 0.1


@pytest.mark.slow
def test_the_penalty_moves_gates_to_binary_values():
    features, labels = planted()
    pair = np.array([0]), np.array([1])
    free, bound = (
        gate_penalty(learn_gates(features, labels, *pair, **OPTIONS | {"penalty": weight}))
        for weight in (0.0, 10.0)
    )
    assert bound < free / 2


def test_without_steps_all_gates_are_half_open():
    features, labels = planted()
    options = OPTIONS | {"steps": 0}
    gates = learn_gates(features, labels, np.array([0]), np.array([1]), **options)
    np.testing.assert_array_equal(gates, np.full((1, WIDTH), 0.5))


def counted(features, labels, gate, i, j):
    """The share of comparisons that the image of the other class wins, a tie being half."""
    z = np.asarray(features, np.float64) * np.asarray(gate, np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    near, far = [], []
    for a, b in itertools.product(range(len(z)), repeat=2):
        if labels[a] in (i, j):
            if labels[b] not in (i, j):
                far.append(z[a] @ z[b])
            elif labels[b] != labels[a]:
                near.append(z[a] @ z[b])
    wins = np.subtract.outer(near, far)
    return float(((wins > 0) + 0.5 * (wins == 0)).mean())


@pytest.mark.slow
def test_auroc_counts_comparisons():
    rng = np.random.default_rng(1)
    features = jnp.asarray(rng.standard_normal((20, 5)), jnp.float32)
    labels = rng.permutation(np.arange(20) % 4)
    gates = jnp.asarray(rng.uniform(size=(2, 5)), jnp.float32)
    first, second = np.array([0, 1]), np.array([2, 3])
    expected = [counted(features, labels, gates[p], first[p], second[p]) for p in range(2)]
    found = pair_auroc(features, labels, gates, first, second)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_auroc_of_a_planted_subspace_is_one_and_of_no_subspace_a_half():
    features, labels = planted()
    shared, alone, none = (
        jnp.asarray([[float(d in open) for d in range(WIDTH)]]) for open in ((0, 1), (2, 3), ())
    )
    pair = np.array([0]), np.array([1])
    assert pair_auroc(features, labels, shared, *pair)[0] > 0.95
    assert pair_auroc(features, labels, alone, *pair)[0] < 0.8
    assert pair_auroc(features, labels, none, *pair)[0] == 0.5  # all cosines are zero


@pytest.mark.parametrize("kept", [(0, 1), (0, 2), (1, 2)])
def test_auroc_needs_images_of_the_pair_and_of_the_rest(kept):
    features, labels = planted()
    rows = np.isin(labels, kept)
    with pytest.raises(UserError, match=r"pair \(0, 1\) needs images"):
        pair_auroc(features[rows], labels[rows], jnp.ones((1, WIDTH)), np.array([0]), np.array([1]))
