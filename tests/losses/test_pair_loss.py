"""Losses of pairs against their definitions in float64, term by term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses import (
    PairForm,
    PairSide,
    binomial_form,
    contrastive_form,
    multi_similarity,
    multi_similarity_form,
    pair_loss,
    proxy_anchor,
    proxy_anchor_form,
)

LABELS = np.array([0, 1, 0, 2, 1, 0, 3])


def multi_similarity_term(s, y, beta, gamma, margin):
    positive = sum(w * np.exp(-beta * (x - margin)) for x, w in zip(s, y, strict=True))
    negative = sum((1 - w) * np.exp(gamma * (x - margin)) for x, w in zip(s, y, strict=True))
    return np.log1p(positive) / beta + np.log1p(negative) / gamma


def contrastive_term(s, y, margin):
    return sum(-w * x + (1 - w) * max(0, x - margin) for x, w in zip(s, y, strict=True))


def binomial_term(s, y, beta, gamma, margin):
    total = 0.0
    for weights, slope in ((y, -beta), (1 - y, gamma)):
        values = [
            w * np.log1p(np.exp(slope * (x - margin))) for x, w in zip(s, weights, strict=True)
        ]
        total += sum(values) / sum(weights)
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "term"),
    [
        (contrastive_form(0.3), lambda s, y: contrastive_term(s, y, 0.3)),
        (binomial_form(1.7, 4.0, 0.2), lambda s, y: binomial_term(s, y, 1.7, 4.0, 0.2)),
        (
            multi_similarity_form(1.7, 4.0, 0.2),
            lambda s, y: multi_similarity_term(s, y, 1.7, 4.0, 0.2),
        ),
    ],
    ids=["contrastive", "binomial", "multi-similarity"],
)
def test_pairs_that_are_positive_by_a_share_match_the_definition(check, normal, form, term):
    y, where = np.random.default_rng(1).uniform(size=(4, 5)), normal(2, 4, 5) > -0.5
    where[3] = True
    assert not where.all()

    def reference(s):
        return np.mean([term(s[a, where[a]], y[a, where[a]]) for a in range(4)])

    def loss(s):
        return pair_loss(s, jnp.asarray(y, jnp.float32), form=form, where=jnp.asarray(where))

    check(loss, reference, normal(0, 4, 5))


@pytest.mark.slow
def test_multi_similarity_matches_loops_over_pairs(check, oracle, normal):
    def reference(z):
        s = oracle.unit(z) @ oracle.unit(z).T
        values = []
        for a in range(7):
            others = [i for i in range(7) if i != a]
            same = (LABELS[others] == LABELS[a]).astype(float)
            values.append(multi_similarity_term(s[a, others], same, 1.7, 4.0, 0.2))
        return np.mean(values)

    check(
        lambda z: multi_similarity(z, jnp.asarray(LABELS), beta=1.7, gamma=4.0, margin=0.2),
        reference, normal(0, 7, 3),
    )  # fmt: skip


@pytest.mark.slow
def test_proxies_without_a_positive_have_no_part_in_the_mean_of_positives(check, oracle, normal):
    def reference(z, proxies):
        s = oracle.unit(proxies) @ oracle.unit(z).T
        present = sorted(set(LABELS))  # four of five
        positive = [
            np.log1p(sum(np.exp(-3.0 * (x - 0.2)) for x in s[k, k == LABELS])) for k in present
        ]
        negative = [
            np.log1p(sum(np.exp(3.0 * (x + 0.2)) for x in s[k, k != LABELS])) for k in range(5)
        ]
        return np.mean(positive) + np.mean(negative)

    check(
        lambda z, proxies: proxy_anchor(z, jnp.asarray(LABELS), proxies, scale=3.0, margin=0.2),
        reference, normal(0, 7, 3), normal(1, 5, 3),
    )  # fmt: skip


def test_sharp_sides_do_not_overflow():
    s = jnp.asarray([[1.0, -1.0]])
    value, slope = jax.value_and_grad(
        lambda s: pair_loss(s, jnp.asarray([[0.0, 1.0]]), form=multi_similarity_form(200.0, 400.0))
    )(s)
    assert value == pytest.approx(2.0)  # a half from the margin, and as far on the other side
    np.testing.assert_allclose(slope, [[1.0, -1.0]], rtol=1e-6)


def test_anchors_without_pairs_have_no_loss():
    where = jnp.asarray([[True, True], [False, False]])
    for form in (contrastive_form(), binomial_form(), multi_similarity_form(), proxy_anchor_form()):
        values = pair_loss(
            jnp.full((2, 2), 0.9), jnp.asarray([[1.0, 0.0]] * 2), form=form, where=where,
            reduction="none",
        )  # fmt: skip
        assert values[0] != 0
        assert values[1] == 0


def test_a_form_of_ones_own():
    own = PairForm(PairSide(lambda s: (1 - s) ** 2), PairSide(lambda s: s**2, mean=True))
    s, y = jnp.asarray([[0.5, 0.2, 0.4]]), jnp.asarray([[1.0, 0.0, 0.0]])
    assert pair_loss(s, y, form=own) == pytest.approx(0.25 + (0.04 + 0.16) / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: multi_similarity_form(beta=0.0), "beta is 0.0, expected a number above 0"),
        (lambda: multi_similarity_form(gamma=-1.0), "gamma is -1.0, expected a number above 0"),
        (lambda: multi_similarity_form(margin=float("inf")), "margin is inf, expected a finite"),
        (lambda: binomial_form(beta=0.0), "beta is 0.0, expected a number above 0"),
        (lambda: binomial_form(margin=float("nan")), "margin is nan, expected a finite"),
        (lambda: contrastive_form(float("nan")), "margin is nan, expected a finite"),
        (lambda: proxy_anchor_form(scale=0.0), "scale is 0.0, expected a number above 0"),
        (lambda: proxy_anchor_form(margin=float("inf")), "margin is inf, expected a finite"),
        (
            lambda: pair_loss(jnp.ones((2, 2)), jnp.ones((2, 2)), form=contrastive_form(),
                              reduction="sum"),
            "reduction must be 'mean' or 'none', got 'sum'",
        ),
        (
            lambda: proxy_anchor(jnp.ones((2, 3)), jnp.asarray([0, 2]), jnp.ones((2, 3))),
            "labels must lie between 0 and 1",
        ),
    ],
)  # fmt: skip
def test_bad_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.usefixtures("unchecked")
def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match="shapes do not fit"):
        pair_loss(jnp.ones((2, 3)), jnp.ones((3, 2)), form=contrastive_form())
    with pytest.raises(ValueError, match="shapes do not fit"):
        multi_similarity(jnp.ones((2, 3)), jnp.arange(3))
    with pytest.raises(ValueError, match="shapes do not fit"):
        proxy_anchor(jnp.ones((2, 3)), jnp.arange(2), jnp.ones((4, 2)))


def test_nothing_to_compare_is_named():
    seen = {(0, 2): "at least one example", (2, 0): "at least one feature or class"}
    for shape, message in seen.items():
        with pytest.raises(ValueError, match=message):
            pair_loss(jnp.ones(shape), jnp.ones(shape), form=contrastive_form())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_targets_and_similarities_that_are_no_numbers_are_seen(value):
    form, plain = multi_similarity_form(), jnp.asarray([[0.5, 0.2]])
    broken = plain.at[0, 1].set(value)
    assert not np.isfinite(pair_loss(broken, plain, form=form))
    assert not np.isfinite(pair_loss(plain, broken, form=form))
