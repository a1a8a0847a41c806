"""Mixtures of examples: which are drawn, what they are similar to, and how their loss turns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.losses import (
    contrastive_form,
    multi_similarity,
    multi_similarity_form,
    pair_loss,
    proxy_anchor,
    proxy_anchor_form,
)
from rml.metric import (
    Mixtures,
    draw_mixtures,
    metrix,
    mix,
    mixed_similarities,
    positivity_threshold,
    similarities_of_mixed,
)
from rml.metric.metrix import KINDS

LABELS = np.array([0, 0, 0, 1, 1, 2, 1, 0])
OF = {True: lambda label, anchor: label == anchor, False: lambda label, anchor: label != anchor}


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def drawn(kind, seed=0, per_anchor=6, **options):
    return draw_mixtures(
        jax.random.key(seed), jnp.asarray(LABELS), per_anchor=per_anchor, kinds=(kind,), **options
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_of_the_classes_that_their_kind_says(kind):
    found = drawn(kind)
    for a, anchor in enumerate(LABELS):
        alone = anchor == 2  # the one example of its class has no positive
        needs = kind in ("positive-negative", "positive-positive")
        assert bool(found.where[a].all()) == (not (alone and needs))
        assert bool(found.where[a].any()) == (not (alone and needs))
        if not found.where[a].any():
            continue
        for first, second in zip(found.first[a], found.second[a], strict=True):
            if kind == "anchor-negative":
                assert first == a
            else:
                assert OF[KINDS[kind][0]](LABELS[first], anchor)
                assert first != a
            assert OF[KINDS[kind][1]](LABELS[second], anchor)
            assert second != a
    weight = float(found.weight)
    assert 0.02 < weight < 0.98
    expected = {(True, False): weight, (True, True): 1.0, (False, False): 0.0}[KINDS[kind]]
    np.testing.assert_allclose(found.targets, np.full((8, 6), expected), rtol=1e-6)


def test_every_example_of_a_kind_is_drawn_and_steps_differ():
    found = drawn("positive-negative", per_anchor=200)
    assert set(np.asarray(found.first[0])) == {1, 2, 7}
    assert set(np.asarray(found.second[0])) == {3, 4, 5, 6}
    assert not np.array_equal(found.first[0], found.second[0])
    assert drawn("positive-negative", seed=1).weight != found.weight


def test_a_coin_is_thrown_between_kinds():
    own = jnp.arange(8)[:, None]

    @jax.jit
    def anchored(key):
        return jnp.all(draw_mixtures(key, jnp.asarray(LABELS), per_anchor=3).first == own)

    share = np.mean([bool(anchored(jax.random.key(seed))) for seed in range(200)])
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("alpha", [0.5, 2.0, 200.0])
def test_shares_have_the_moments_of_their_distribution(alpha):
    @jax.jit
    @jax.vmap
    def weight(key):
        return draw_mixtures(key, jnp.asarray(LABELS), per_anchor=1, alpha=alpha).weight

    found = weight(jax.random.split(jax.random.key(3), 4000))
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)
    assert np.var(found) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_the_most_similar_negatives_are_mixed_where_similarities_are_given():
    z = unit(np.random.default_rng(4).standard_normal((8, 3)))
    s = z @ z.T
    found = drawn("positive-negative", per_anchor=2, similarities=jnp.asarray(s, jnp.float32))
    for a, anchor in enumerate(LABELS):
        others = [i for i in np.argsort(-s[a]) if LABELS[i] != anchor]
        assert np.asarray(found.second[a]).tolist() == others[:2]
    few = drawn("positive-negative", per_anchor=6, similarities=jnp.asarray(s, jnp.float32))
    assert np.asarray(few.where[0]).tolist() == [True] * 4 + [False] * 2  # four negatives


def test_anchors_may_be_proxies():
    found = draw_mixtures(
        jax.random.key(0), jnp.asarray(LABELS), per_anchor=50, kinds=("positive-negative",),
        anchor_labels=jnp.arange(4),
    )  # fmt: skip
    assert found.first.shape == (4, 50)
    assert set(np.asarray(found.first[2])) == {5}
    assert set(np.asarray(found.second[2])) == {0, 1, 2, 3, 4, 6, 7}
    assert not found.where[3].any()
    with pytest.raises(ValueError, match="kinds has 'anchor-negative', expected examples"):
        draw_mixtures(
            jax.random.key(0), jnp.asarray(LABELS), per_anchor=5, anchor_labels=jnp.arange(4),
            kinds=("anchor-negative",),
        )  # fmt: skip


def mixtures(weight, seed=0, anchors=5, rows=8):
    rng = np.random.default_rng(seed)
    first, second = (jnp.asarray(rng.integers(0, rows, (anchors, 3))) for _ in range(2))
    return Mixtures(first, second, jnp.float32(weight), jnp.ones((anchors, 3)),
                    jnp.ones((anchors, 3), bool))  # fmt: skip


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.9])
def test_similarities_are_those_of_explicit_mixtures_in_value_and_gradient(weight):
    rng = np.random.default_rng(5)
    anchors, rows = (jnp.asarray(rng.standard_normal((n, 4)), jnp.float32) for n in (5, 8))
    found = mixtures(weight)

    def explicit(anchors, rows):
        z = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
        return similarities_of_mixed(anchors, mix(z, found))

    def weighed(function):
        weights = jnp.arange(1.0, 16.0).reshape(5, 3)
        return jax.value_and_grad(lambda *given: jnp.sum(weights * function(*given)), (0, 1))

    value, slopes = weighed(lambda a, r: mixed_similarities(a, r, found))(anchors, rows)
    expected, others = weighed(explicit)(anchors, rows)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for slope, other in zip(slopes, others, strict=True):
        np.testing.assert_allclose(slope, other, rtol=1e-4, atol=1e-5)
    z = unit(np.asarray(rows, np.float64))
    for a in range(5):
        for v in range(3):
            one = weight * z[found.first[a, v]] + (1 - weight) * z[found.second[a, v]]
            cosine = unit(np.asarray(anchors[a], np.float64)) @ unit(one)
            assert mixed_similarities(anchors, rows, found)[a, v] == pytest.approx(cosine, abs=1e-5)


def test_rows_that_cancel_have_similarity_0_and_no_gradient():
    rows = jnp.asarray([[1.0, 0.0], [-1.0, 0.0]])
    found = Mixtures(jnp.asarray([[0]]), jnp.asarray([[1]]), jnp.float32(0.5), jnp.ones((1, 1)),
                     jnp.ones((1, 1), bool))  # fmt: skip
    value, slope = jax.value_and_grad(lambda r: mixed_similarities(r[:1], r, found)[0, 0])(rows)
    assert value == 0
    assert not slope.any()


def test_images_are_mixed_by_the_share_of_the_first():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 2, 3, 1)), jnp.float32)
    found = mixtures(0.3)
    mixed = mix(images, found)
    assert mixed.shape == (5, 3, 2, 3, 1)
    np.testing.assert_allclose(
        mixed[4, 2], 0.3 * images[found.first[4, 2]] + 0.7 * images[found.second[4, 2]], rtol=1e-6
    )


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.8])
def test_a_mixture_turns_at_the_threshold(weight):
    """The derivative of one mixture's loss is below 0 under the threshold, above 0 beyond it."""
    sharp = {"beta": 3.0, "gamma": 7.0, "margin": 0.4}
    form = multi_similarity_form(**sharp)
    threshold = positivity_threshold(weight, **sharp)
    assert threshold == pytest.approx(0.4 + np.log(weight / (1 - weight)) / 10, rel=1e-5)

    def slope(s):
        return jax.grad(lambda s: pair_loss(s, jnp.full((1, 1), weight), form=form))(
            jnp.full((1, 1), s)
        )[0, 0]

    assert abs(float(slope(threshold))) < 1e-6
    assert slope(threshold - 0.01) < -1e-3
    assert slope(threshold + 0.01) > 1e-3


def test_thresholds_of_all_shares_and_of_none():
    found = positivity_threshold(jnp.asarray([0.0, 1.0]))
    assert found[0] == -np.inf
    assert found[1] == np.inf
    with pytest.raises(ValueError, match=r"weight is 1\.2, expected a number between 0 and 1"):
        positivity_threshold(1.2)
    with pytest.raises(ValueError, match=r"gamma is 0\.0, expected a number above 0"):
        positivity_threshold(0.5, gamma=0.0)


def test_the_loss_is_the_clean_one_and_a_share_of_the_mixed_one():
    z = jnp.asarray(np.random.default_rng(7).standard_normal((8, 4)), jnp.float32)
    labels, key = jnp.asarray(LABELS), jax.random.key(2)
    form = multi_similarity_form(3.0, 7.0, 0.4)
    found = metrix(key, z, labels, form=form, per_anchor=5, mixed_weight=0.7, alpha=1.5)
    drawn = draw_mixtures(key, labels, per_anchor=5, alpha=1.5)
    mixed = pair_loss(mixed_similarities(z, z, drawn), drawn.targets, form=form, where=drawn.where)
    clean = multi_similarity(z, labels, beta=3.0, gamma=7.0, margin=0.4)
    assert abs(float(mixed)) > 0.1
    assert found == pytest.approx(float(clean + 0.7 * mixed), rel=1e-5)
    assert metrix(key, z, labels, form=form, mixed_weight=0.0) == pytest.approx(float(clean))


def test_proxies_are_anchors_of_mixtures_too():
    rng = np.random.default_rng(8)
    z, proxies = (jnp.asarray(rng.standard_normal((n, 4)), jnp.float32) for n in (8, 4))
    labels, key = jnp.asarray(LABELS), jax.random.key(2)
    form = proxy_anchor_form(3.0, 0.2)
    found = metrix(key, z, labels, form=form, proxies=proxies, per_anchor=5, mixed_weight=0.7)
    drawn = draw_mixtures(
        key, labels, per_anchor=5, kinds=("positive-negative",), anchor_labels=jnp.arange(4)
    )
    mixed = pair_loss(
        mixed_similarities(proxies, z, drawn), drawn.targets, form=form, where=drawn.where
    )
    clean = proxy_anchor(z, labels, proxies, scale=3.0, margin=0.2)
    assert found == pytest.approx(float(clean + 0.7 * mixed), rel=1e-5)


def test_whole_shares_are_pairs_of_the_batch():
    """With all of the share at a positive a mixture is that positive, its loss the clean one."""
    z = jnp.asarray(np.random.default_rng(9).standard_normal((8, 4)), jnp.float32)
    form = contrastive_form(0.1)
    pairs = drawn("positive-negative")._replace(weight=jnp.float32(1), targets=jnp.ones((8, 6)))
    found = pair_loss(mixed_similarities(z, z, pairs), pairs.targets, form=form, where=pairs.where)
    s = unit(np.asarray(z, np.float64)) @ unit(np.asarray(z, np.float64)).T
    expected = [-np.sum(s[a, np.asarray(pairs.first[a])]) * (LABELS[a] != 2) for a in range(8)]
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kinds": ("negative",)}, UserError, "unknown kind of mixture 'negative'"),
        ({"kinds": ()}, ValueError, "kinds is 0, expected a number at least 1"),
        ({"per_anchor": 0}, ValueError, "per_anchor is 0, expected a number at least 1"),
        ({"alpha": 0.0}, ValueError, "alpha is 0.0, expected a number above 0"),
        ({"alpha": float("inf")}, ValueError, "alpha is inf, expected a finite number"),
        (
            {"per_anchor": 9, "similarities": jnp.ones((8, 8))}, ValueError,
            "per_anchor is 9, expected a number between 1 and 8",
        ),
    ],
)  # fmt: skip
def test_bad_draws_are_named(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        draw_mixtures(jax.random.key(0), jnp.asarray(LABELS), **{"per_anchor": 3} | options)


def test_bad_losses_are_named():
    z, labels = jnp.ones((8, 4)), jnp.asarray(LABELS)
    for options, message in (
        ({"form": proxy_anchor_form()}, "there are no proxies, expected the opposite"),
        ({"form": contrastive_form(), "proxies": z}, "there are proxies, expected the opposite"),
        ({"form": proxy_anchor_form(), "proxies": z[:2]}, "labels must lie between 0 and 1"),
        ({"form": contrastive_form(), "mixed_weight": -0.1}, "mixed_weight is -0.1, expected"),
        ({"form": contrastive_form(), "mixed_weight": float("inf")}, "mixed_weight is inf, exp"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            metrix(jax.random.key(0), z, labels, **options)
