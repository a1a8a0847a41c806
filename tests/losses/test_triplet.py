import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.losses.triplet import triplet_loss

LABELS = np.array([0, 1, 0, 2, 1, 0, 1, 4])


def _triplets(z, mining, squared):
    """Every mined triplet, chosen by loops over the definition."""
    d = np.sum((z[:, None] - z) ** 2, -1)
    d = d if squared else np.sqrt(d)
    chosen = []
    for a in range(len(z)):
        positive = [p for p in range(len(z)) if p != a and LABELS[p] == LABELS[a]]
        negative = [n for n in range(len(z)) if LABELS[n] != LABELS[a]]
        if not positive:
            continue
        if mining == "hard":
            furthest = max(positive, key=lambda p: d[a, p])
            chosen.append((a, furthest, min(negative, key=lambda n: d[a, n])))
        for p in positive if mining == "semi-hard" else []:
            beyond = [n for n in negative if d[a, n] > d[a, p]]
            nearest = min(beyond, key=lambda n: d[a, n]) if beyond else None
            chosen.append((a, p, nearest if beyond else max(negative, key=lambda n: d[a, n])))
        if mining in ("all", "active"):
            chosen += [(a, p, n) for p in positive for n in negative]
    return d, chosen


@pytest.mark.slow
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("mining", ["hard", "semi-hard", "all", "active"])
def test_matches_triplets_chosen_by_loops(check, normal, mining, squared):
    def reference(z):
        d, chosen = _triplets(z, mining, squared)
        hinge = np.array([max(0.0, d[a, p] - d[a, n] + 0.7) for a, p, n in chosen])
        return np.mean(hinge[hinge > 0] if mining == "active" else hinge)

    def loss(z):
        return triplet_loss(z, jnp.asarray(LABELS), margin=0.7, mining=mining, squared=squared)

    check(loss, reference, normal(0, 8, 4))


@pytest.mark.slow
def test_agrees_with_optax_on_the_mined_triplets(normal):
    z = normal(1, 8, 4).astype(np.float32)
    _, chosen = _triplets(z, "hard", False)
    a, p, n = (jnp.asarray(z[list(i)]) for i in zip(*chosen, strict=True))
    expected = jnp.mean(optax.losses.triplet_margin_loss(a, p, n, margin=0.5))
    value = triplet_loss(jnp.asarray(z), jnp.asarray(LABELS), margin=0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mining", ["hard", "semi-hard", "all", "active"])
def test_degenerate_batches_are_zero_or_finite(mining):
    f = jax.jit(jax.value_and_grad(lambda z, y: triplet_loss(z, y, mining=mining)))
    z = jnp.ones((4, 3))
    for labels in (jnp.zeros(4, int), jnp.arange(4)):  # no negative; no positive
        value, grad = f(z, labels)
        assert value == 0
        assert not jnp.any(grad)
    value, grad = f(z, jnp.array([0, 0, 1, 1]))  # collapsed: the margin alone remains
    np.testing.assert_allclose(value, 0.2, rtol=1e-6)
    assert jnp.all(jnp.isfinite(grad))


@pytest.mark.parametrize("mining", ["hard", "semi-hard", "all", "active"])
@pytest.mark.slow
def test_small_features_have_distances_too(normal, mining):
    """Loss and margin scale as the features do, and gradients are the same."""
    z, labels = jnp.asarray(normal(2, 8, 4), jnp.float32), jnp.asarray(LABELS)

    def of_scale(scale):
        return jax.value_and_grad(triplet_loss)(
            scale * z, labels, margin=0.7 * scale, mining=mining
        )

    (value, grad), (small, small_grad) = of_scale(1.0), of_scale(2.0**-24)
    np.testing.assert_allclose(small * 2.0**24, value, rtol=1e-5)
    np.testing.assert_allclose(small_grad, grad, atol=1e-4)


@pytest.mark.slow
def test_unknown_mining_is_named():
    with pytest.raises(ValueError, match="'easy'"):
        triplet_loss(jnp.ones((2, 2)), jnp.zeros(2, int), mining="easy")


@pytest.mark.slow
@pytest.mark.parametrize("squared", [False, True])
def test_a_negative_further_by_the_margin_is_not_active(squared):
    """On grids of integers, whose squared distances are exact and moved grids' are not."""
    loss = jax.jit(lambda x, y: triplet_loss(x, y, margin=1.0, mining="active", squared=squared))
    given = [([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 1, 1]], [0, 0, 1, 1, 1])]
    rng = np.random.default_rng(0)
    given += [(rng.integers(0, 3, (5, 3)), rng.permutation([0, 0, 1, 1, 1])) for _ in range(20)]
    ties = 0
    for points, labels in given:
        points, labels = np.asarray(points), np.asarray(labels)
        square = np.sum((points[:, None] - points) ** 2, axis=2)
        d = square if squared else np.sqrt(square)
        same = labels[:, None] == labels
        positive, negative = same & ~np.eye(5, dtype=bool), ~same
        terms = (d[:, :, None] - d[:, None] + 1)[positive[:, :, None] & negative[:, None]]
        ties += np.sum(terms == 0)
        active = terms[terms > 0]
        expected = active.mean() if len(active) else 0.0
        for shift in (0.0, 0.1, 3.3):
            found = loss(jnp.asarray(points + shift, jnp.float32), jnp.asarray(labels))
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert ties > 10


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("mining", ["semi-hard", "all", "active"])
@pytest.mark.slow
def test_a_row_that_is_far_away_blurs_no_triplet_of_the_others(normal, mining, squared):
    z = 10 * normal(80, 8, 4)  # of squared distances that decide, none are within 100 of each other
    z[3] = z[7] = [1e4, 0, 0, 0]  # the only rows of their labels: negatives alone
    d, chosen = _triplets(z, mining, squared)
    hinge = np.array([max(0.0, d[a, p] - d[a, n] + 7) for a, p, n in chosen])
    expected = np.mean(hinge[hinge > 0] if mining == "active" else hinge)
    x, y = jnp.asarray(z, jnp.float32), jnp.asarray(LABELS)
    found = triplet_loss(x, y, margin=7.0, mining=mining, squared=squared)
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_a_negative_as_far_as_the_positive_is_not_further():
    features = jnp.asarray([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 1, 1]], jnp.float32)
    labels = jnp.asarray([0, 0, 1, 1, 1])
    loss = jax.jit(lambda x: triplet_loss(x, labels, margin=0.2, mining="semi-hard"))
    for shift in (0.0, 0.1, 3.3):
        assert loss(features + shift) == 0
