"""Distillation losses beside float64 oracles written from the definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rml.losses import (
    annealing_loss,
    correlation_congruence,
    crd_loss,
    dist_loss,
    dkd_loss,
    dpo_loss,
    fitnet_loss,
    kd_loss,
    rkd_angle,
    rkd_distance,
    sequence_log_prob,
    soft_cross_entropy,
    target_enhanced_loss,
)

LABELS = np.array([1, 0, 3, 3])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return np.sum(p * np.log(p / q), -1)


def huber(x):
    return np.where(np.abs(x) <= 1, x * x / 2, np.abs(x) - 0.5)


def weighted(values):
    """A sum in which each example counts otherwise, so that none takes another's place."""
    return (np.arange(1, len(values) + 1) * values).sum()


def test_kd_is_the_divergence_times_the_squared_temperature(check, normal):
    teacher = normal(1, 4, 5)

    def oracle(student):
        return weighted(9 * kl(softmax(teacher / 3), softmax(student / 3)))

    def loss(student):
        return (jnp.arange(1, 5) * kd_loss(student, jnp.asarray(teacher), temperature=3.0)).sum()

    check(loss, oracle, normal(0, 4, 5))


def test_soft_cross_entropy_is_kd_and_the_entropy(normal):
    student, teacher = jnp.asarray(normal(0, 4, 5)), jnp.asarray(normal(1, 4, 5))
    p = softmax(normal(1, 4, 5) / 3)
    entropy = -9 * np.sum(p * np.log(p), -1)
    gap = soft_cross_entropy(student, teacher, temperature=3.0) - kd_loss(
        student, teacher, temperature=3.0
    )
    np.testing.assert_allclose(gap, entropy, rtol=1e-5)


def test_dkd_is_of_the_label_and_of_the_others_among_them(check, normal):
    teacher = normal(1, 4, 5)

    def oracle(student, target=1.5, others=3.0):
        p, q = softmax(teacher / 2), softmax(student / 2)
        rows = np.arange(4)
        binary = [np.stack([x[rows, LABELS], 1 - x[rows, LABELS]], -1) for x in (p, q)]
        rest = [np.delete(x[i], LABELS[i]) for x in (p, q) for i in range(4)]
        among = [kl(a / a.sum(), b / b.sum()) for a, b in zip(rest[:4], rest[4:], strict=True)]
        return weighted(4 * (target * kl(*binary) + others * np.array(among)))

    def loss(student):
        own = dkd_loss(
            student, jnp.asarray(teacher), jnp.asarray(LABELS),
            temperature=2.0, target_weight=1.5, others_weight=3.0,
        )  # fmt: skip
        return (jnp.arange(1, 5) * own).sum()

    check(loss, oracle, normal(0, 4, 5))


def test_annealed_logits_grow_to_the_teachers(check, normal):
    """The whole temperatures of the paper: 5, 4, ..., 1 of a highest of 5."""
    teacher = normal(1, 4, 5)
    for step, temperature in enumerate((5, 4, 3, 2, 1)):
        phi = 1 - (temperature - 1) / 5
        options = {"progress": step / 4, "temperature": 5.0}

        def loss(student, options=options):
            found = annealing_loss(student, jnp.asarray(teacher), **options)
            return (jnp.arange(1, 5) * found).sum()

        def oracle(student, phi=phi):
            return weighted(((student - phi * teacher) ** 2).mean(1))

        check(loss, oracle, normal(0, 4, 5))
    given = jnp.asarray(normal(0, 4, 5)), jnp.asarray(teacher)
    for before, end in ((-1.0, 0.0), (2.0, 1.0)):
        first, second = (annealing_loss(*given, progress=at) for at in (before, end))
        np.testing.assert_array_equal(first, second)
    slope = jax.grad(lambda t: annealing_loss(given[0], t, progress=0.5).sum())(given[1])
    np.testing.assert_array_equal(slope, 0)


def test_dkd_with_the_weights_of_kd_is_kd(normal):
    student, teacher = jnp.asarray(normal(0, 4, 5)), jnp.asarray(normal(1, 4, 5))
    parts = [
        dkd_loss(student, teacher, jnp.asarray(LABELS), temperature=2.0,
                 target_weight=a, others_weight=b)
        for a, b in ((1.0, 0.0), (0.0, 1.0))
    ]  # fmt: skip
    p = softmax(normal(1, 4, 5) / 2)[np.arange(4), LABELS]
    np.testing.assert_allclose(
        parts[0] + (1 - p) * parts[1], kd_loss(student, teacher, temperature=2.0), rtol=2e-5
    )


def test_dkd_of_two_classes_has_no_others(normal):
    student, teacher = (jnp.asarray(normal(i, 4, 2)) for i in (0, 1))
    labels = jnp.asarray(LABELS % 2)
    found = dkd_loss(student, teacher, labels, temperature=2.0)
    np.testing.assert_allclose(found, kd_loss(student, teacher, temperature=2.0), rtol=2e-5)
    with pytest.raises(ValueError, match="at least 2 classes"):
        dkd_loss(student[:, :1], teacher[:, :1], labels)


@pytest.mark.slow
def test_dist_is_of_correlations_over_classes_and_over_examples(check, normal):
    teacher = normal(1, 4, 5)

    def correlation(a, b):
        return stats.pearsonr(a, b).statistic

    def total(student):
        """The mean over the batch, by SciPy's correlations."""
        p, q = softmax(teacher / 2), softmax(student / 2)
        classes = np.mean([1 - correlation(a, b) for a, b in zip(q, p, strict=True)])
        examples = np.mean([1 - correlation(a, b) for a, b in zip(q.T, p.T, strict=True)])
        return 4 * (1.5 * classes + 0.7 * examples)

    given = {"inter": 1.5, "intra": 0.7, "temperature": 2.0}
    check(
        lambda student: dist_loss(student, jnp.asarray(teacher), **given).mean(), total,
        normal(0, 4, 5),
    )  # fmt: skip
    # Of each example: its own correlation, and its own summands of those of classes.
    p, q = softmax(teacher / 2), softmax(normal(0, 4, 5) / 2)
    units = [x - x.mean(0) for x in (q, p)]
    units = [x / np.linalg.norm(x, axis=0) for x in units]
    own = 4 * ((units[0] - units[1]) ** 2).sum(1) / (2 * 5)
    inter = [1 - correlation(a, b) for a, b in zip(q, p, strict=True)]
    found = jax.jit(partial(dist_loss, **given))(normal(0, 4, 5), teacher)
    np.testing.assert_allclose(found, 4 * (1.5 * np.array(inter) + 0.7 * own), rtol=1e-4)


@pytest.mark.slow
def test_dist_sees_no_linear_change_of_probabilities(normal):
    p = softmax(normal(1, 4, 5))
    flat = np.log(0.6 * p + 0.4 / 5)
    loss = jax.jit(dist_loss, static_argnames="intra")
    found = loss(flat, np.log(p))
    np.testing.assert_allclose(found, 0, atol=1e-6)
    same = np.ones((3, 4))
    turned = normal(2, 3, 4)
    np.testing.assert_array_equal(loss(same, 2 * same), 0)
    np.testing.assert_allclose(loss(turned, same, intra=0.0), 0.5, rtol=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("form", ["code", "paper"])
def test_the_labels_share_is_enhanced(check, normal, form, normalized):
    teacher, gamma = normal(1, 4, 5), 1.7
    p, label = softmax(teacher / 2), np.eye(5)[LABELS]
    weights = (p + label) ** gamma - label
    if form == "paper":
        weights = np.where(label > 0, (1 + p) ** gamma, p)
    if normalized:
        weights = weights / weights.sum(1, keepdims=True)

    def oracle(student):
        return weighted(-np.sum(weights * np.log(softmax(student / 2)), -1))

    def loss(student):
        own = target_enhanced_loss(
            student, jnp.asarray(teacher), jnp.asarray(LABELS), gamma=gamma, temperature=2.0,
            form=form, normalized=normalized,
        )  # fmt: skip
        return (jnp.arange(1, 5) * own).sum()

    check(loss, oracle, normal(0, 4, 5))


def test_without_enhancement_it_is_the_cross_entropy_with_the_teacher(normal):
    known = [jnp.asarray(normal(i, 4, 5)) for i in (0, 1)] + [jnp.asarray(LABELS)]
    plain = target_enhanced_loss(*known, temperature=3.0)
    np.testing.assert_allclose(9 * plain, soft_cross_entropy(*known, temperature=3.0), rtol=1e-5)
    label = -np.log(softmax(normal(0, 4, 5) / 3))[np.arange(4), LABELS]
    paper = target_enhanced_loss(*known, temperature=3.0, form="paper")
    np.testing.assert_allclose(paper - plain, label, rtol=1e-5)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_the_least_is_at_the_weights_and_has_more_of_the_label_the_larger_gamma(normal, form):
    teacher, rows = jnp.asarray(normal(1, 4, 5)), np.arange(4)
    p = softmax(normal(1, 4, 5))

    def total(z, gamma):
        own = target_enhanced_loss(z, teacher, jnp.asarray(LABELS), gamma=gamma, form=form)
        return jnp.sum(own), own

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    shares = []
    for gamma in (0.6, 1.0, 1.7, 3.0):
        # At equal chances the loss is Σw log k, and its gradient Σw / k - w.
        (_, flat), slope = run(jnp.zeros((4, 5)), jnp.asarray(gamma))
        sums = np.asarray(flat)[:, None] / np.log(5)
        least = (sums / 5 - slope) / sums
        np.testing.assert_allclose(least.sum(1), 1, rtol=1e-5)
        (_, lowest), slope = run(jnp.log(least), jnp.asarray(gamma))
        np.testing.assert_allclose(slope, 0, atol=1e-5)
        (_, moved), _ = run(jnp.log(least) + normal(2, 4, 5), jnp.asarray(gamma))
        assert (moved > lowest + 1e-4).all()
        shares.append(least[rows, LABELS])
        if form == "code" and gamma == 1.0:
            np.testing.assert_allclose(least, p, rtol=1e-4)
    assert (np.diff(shares, axis=0) > 1e-3).all()


def test_beside_a_teacher_that_is_sure_and_right_it_is_the_labels_cross_entropy(normal):
    student, labels = jnp.asarray(normal(0, 4, 5)), jnp.asarray(LABELS)
    sure = 200 * jax.nn.one_hot(labels, 5)
    label = -np.log(softmax(normal(0, 4, 5)))[np.arange(4), LABELS]
    for form, weight in (("code", 2**1.7 - 1), ("paper", 2**1.7)):
        found = target_enhanced_loss(student, sure, labels, gamma=1.7, form=form)
        np.testing.assert_allclose(found, weight * label, rtol=1e-5)


def test_every_output_has_its_exponent(normal):
    known = jnp.asarray(normal(1, 4, 5)), jnp.asarray(LABELS)
    outputs, gammas = jnp.asarray(normal(0, 3, 4, 5)), (0.6, 1.3, 2.1)
    found = target_enhanced_loss(outputs, *known, gamma=gammas, temperature=2.0)
    for own, output, gamma in zip(found, outputs, gammas, strict=True):
        alone = target_enhanced_loss(output, *known, gamma=gamma, temperature=2.0)
        np.testing.assert_allclose(own, alone, rtol=1e-6)
    one = target_enhanced_loss(outputs, *known, gamma=1.3, temperature=2.0)
    np.testing.assert_allclose(one[1], found[1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"gamma has shape \(2,\), expected one number or \(3,\)"):
        target_enhanced_loss(outputs, *known, gamma=(1.0, 2.0))
    with pytest.raises(ValueError, match="expected a number above 0"):
        target_enhanced_loss(outputs, *known, gamma=(1.0, 0.0, 2.0))
    with pytest.raises(ValueError, match="expected a number above 0"):
        target_enhanced_loss(outputs, *known, gamma=jnp.array([1.0, 0.0, 2.0]))


def test_an_enhancement_is_refused_that_is_none(normal):
    known = [jnp.asarray(normal(i, 4, 5)) for i in (0, 1)] + [jnp.asarray(LABELS)]
    for none in (0.0, jnp.array(0.0), jnp.array(-0.5), jnp.array(jnp.nan)):
        with pytest.raises(ValueError, match=rf"gamma is {none}, expected a number above 0"):
            target_enhanced_loss(*known, gamma=none)
    for loss in (dkd_loss, target_enhanced_loss):
        with pytest.raises(
            ValueError, match="labels must lie between 0 and 2, got values from 1 to 3"
        ):
            loss(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.array([1, 3]))
    with pytest.raises(ValueError, match="unknown form 'both': expected 'code' or 'paper'"):
        target_enhanced_loss(*known, form="both")


def test_hints_are_mean_squares_of_features_and_maps(normal):
    student, teacher = normal(0, 4, 2, 2, 3), normal(1, 4, 2, 2, 3)
    found = fitnet_loss(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_allclose(found, ((student - teacher) ** 2).mean((1, 2, 3)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"\(4, 2, 2, 1\).*\(4, 2, 2, 3\), expected one shape"):
        fitnet_loss(jnp.asarray(student[..., :1]), jnp.asarray(teacher))


def test_distances_are_compared_in_units_of_their_mean(check, normal):
    teacher = normal(1, 5, 6)

    def relations(x):
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        return d / (d.sum() / 20)

    def oracle(student):
        each = huber(relations(student) - relations(teacher))
        return weighted(each.sum(1) / 4)

    def loss(student):
        return (jnp.arange(1, 6) * rkd_distance(student, jnp.asarray(teacher))).sum()

    student = normal(0, 5, 3) * np.array([[1], [1], [1], [1], [9.0]])
    assert (np.abs(relations(student) - relations(teacher)) > 1).any()  # both parts of Huber's
    check(loss, oracle, student)


def test_angles_are_compared_at_every_row(check, normal):
    teacher = normal(1, 5, 6)

    def cosines(x):
        sides = x[:, None] - x[None]  # [i, j]: from the vertex j to i
        sides = sides / np.maximum(np.linalg.norm(sides, axis=-1, keepdims=True), 1e-300)
        return np.einsum("ijd,kjd->jik", sides, sides)

    def oracle(student):
        each = huber(cosines(student) - cosines(teacher))
        own = np.zeros(5)
        for j in range(5):
            for i in range(5):
                for k in range(5):
                    if len({i, j, k}) == 3:
                        own[j] += each[j, i, k] / 12
        return weighted(own)

    def loss(student):
        return (jnp.arange(1, 6) * rkd_angle(student, jnp.asarray(teacher))).sum()

    check(loss, oracle, normal(0, 5, 3))


@pytest.mark.parametrize("relation", [rkd_distance, rkd_angle])
def test_relations_do_not_see_a_turn_a_move_or_a_scale(relation, normal):
    teacher = normal(1, 5, 4)
    turn = np.linalg.qr(normal(2, 4, 4))[0]
    found = jax.jit(relation)(jnp.asarray(3 * teacher @ turn + 2), jnp.asarray(teacher))
    np.testing.assert_allclose(found, 0, atol=1e-8)


@pytest.mark.slow
def test_few_rows_have_no_relations(normal):
    one, two = normal(0, 1, 4), normal(0, 2, 4)
    assert float(jax.jit(rkd_distance)(one, one + 1)[0]) == 0
    np.testing.assert_array_equal(jax.jit(rkd_angle)(two, 2 * two[::-1]), 0)


def test_correlations_are_compared_by_a_series_of_the_kernel(check, normal, oracle):
    teacher = normal(1, 4, 6)

    def kernel(rows):
        x = 2 * 0.7 * oracle.unit(rows) @ oracle.unit(rows).T
        return np.exp(-1.4) * (1 + x + x**2 / 2 + x**3 / 6)

    def reference(student):
        return weighted(((kernel(student) - kernel(teacher)) ** 2).mean(1))

    def loss(student):
        own = correlation_congruence(student, jnp.asarray(teacher), gamma=0.7, order=3)
        return (jnp.arange(1, 5) * own).sum()

    check(loss, reference, normal(0, 4, 3))


def test_correlations_of_a_long_series_are_gaussian_and_see_no_turn_or_scale(normal, oracle):
    student, teacher = normal(0, 4, 6), normal(1, 4, 6)
    rows = [oracle.unit(x) for x in (student, teacher)]
    gaussian = [np.exp(-0.5 * ((x[:, None] - x[None]) ** 2).sum(-1)) for x in rows]
    wanted = ((gaussian[0] - gaussian[1]) ** 2).mean(1)
    given = jnp.asarray(student), jnp.asarray(teacher)
    found = correlation_congruence(*given, gamma=0.5, order=12)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    turn = np.linalg.qr(normal(2, 6, 6))[0]
    same = correlation_congruence(jnp.asarray(3 * teacher @ turn), given[1])
    np.testing.assert_allclose(same, 0, atol=1e-10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("order", "expected"),
    [(0, "number at least 1"), (1.5, "whole number"), (2.0, "whole number"), (np.nan, "whole")],
)
def test_an_order_is_a_whole_number(order, expected):
    with pytest.raises(ValueError, match=f"^order is {order}, expected a {expected}"):
        correlation_congruence(jnp.eye(3), jnp.eye(3), order=order)


@pytest.mark.usefixtures("unchecked")
def test_annealing_falls_to_a_temperature_of_1():
    with pytest.raises(ValueError, match=r"temperature is 0\.5, expected a number at least 1"):
        annealing_loss(jnp.eye(3), jnp.eye(3), progress=0.5, temperature=0.5)


@pytest.mark.parametrize("labelled", [False, True])
def test_crd_tells_pairs_from_others_on_both_sides(check, normal, oracle, labelled):
    labels = np.array([0, 1, 1, 2])

    def reference(student, teacher):
        s, t = oracle.unit(student), oracle.unit(teacher)
        own = np.zeros(4)
        for i in range(4):
            negatives = [j for j in range(4) if (labels[j] != labels[i] if labelled else j != i)]
            odds = len(negatives) / 30.0

            def h(a, b, odds=odds):
                return np.exp(a @ b / 0.5) / (np.exp(a @ b / 0.5) + odds)

            own[i] = -2 * np.log(h(s[i], t[i]))
            own[i] -= sum(np.log(1 - h(s[i], t[j])) + np.log(1 - h(t[i], s[j])) for j in negatives)
        return weighted(own)

    def loss(student, teacher):
        given = jnp.asarray(labels) if labelled else None
        own = crd_loss(student, teacher, given, temperature=0.5, size=30.0)
        return (jnp.arange(1, 5) * own).sum()

    check(loss, reference, normal(0, 4, 6), normal(1, 4, 6))


def test_answers_are_as_likely_as_their_tokens_one_after_the_other(check, normal):
    tokens = np.array([[2, 0, 3, 1], [1, 1, 0, 2], [3, 2, 1, 0]])
    mask = np.array([[False, False, True, True], [True, True, True, False], [False] * 4])

    def oracle(logits):
        found = np.zeros(3)
        for i in range(3):
            for t in range(1, 4):
                if mask[i, t]:
                    found[i] += np.log(softmax(logits[i, t - 1])[tokens[i, t]])
        return weighted(found)

    def loss(logits):
        own = sequence_log_prob(logits, jnp.asarray(tokens), jnp.asarray(mask))
        return (jnp.arange(1, 4) * own).sum()

    check(loss, oracle, 3 * normal(0, 3, 4, 5))
    half = jnp.asarray(normal(0, 3, 4, 5), jnp.bfloat16)
    found = sequence_log_prob(half, jnp.asarray(tokens), jnp.asarray(mask))
    assert found.dtype == jnp.float32
    assert float(found[2]) == 0


def test_tokens_and_masks_that_would_be_spread_over_answers_are_refused(unchecked):
    logits, tokens, mask = jnp.ones((4, 3, 5)), jnp.ones((4, 3), int), jnp.ones((4, 3), bool)
    for wrong in ((logits[:1], tokens, mask[:1]), (logits, tokens, mask[:1]),
                  (logits, tokens, mask[:, :2]), (logits, tokens[0], mask)):  # fmt: skip
        with pytest.raises(ValueError, match="shapes do not fit: logits"):
            sequence_log_prob(*wrong)


@pytest.mark.parametrize("token", [-1, 5])
def test_a_token_of_an_answer_that_is_in_no_vocabulary_is_refused(token):
    tokens = jnp.array([[-100, 3, token, -100], [4, 1, 2, 0]])
    mask = jnp.array([[True, False, True, False], [False, True, True, True]])
    with pytest.raises(ValueError, match=f"tokens must lie between 0 and 4, .* {token}"):
        sequence_log_prob(jnp.zeros((2, 4, 5)), tokens, mask)
    found = sequence_log_prob(jnp.zeros((2, 4, 5)), tokens, mask.at[0, 2].set(False))
    np.testing.assert_allclose(found, [0, -3 * np.log(5)], rtol=1e-6)


def test_preference_is_of_the_margin_over_the_reference(check, normal):
    known = [normal(i, 4) - 3 for i in (2, 3)]

    def oracle(chosen, rejected):
        m = 0.7 * ((chosen - known[0]) - (rejected - known[1]))
        return weighted(0.8 * np.log1p(np.exp(-m)) + 0.2 * np.log1p(np.exp(m)))

    def loss(chosen, rejected):
        own = dpo_loss(chosen, rejected, *map(jnp.asarray, known), beta=0.7, smoothing=0.2)
        return (jnp.arange(1, 5) * own).sum()

    check(loss, oracle, normal(0, 4) - 2, normal(1, 4) - 4)


def test_preference_of_the_reference_itself_is_undecided(normal):
    chosen, rejected = jnp.asarray(normal(0, 3)), jnp.asarray(normal(1, 3))
    found = dpo_loss(chosen, rejected, chosen, rejected, beta=0.5)
    np.testing.assert_allclose(found, np.log(2), rtol=1e-6)
    reference = partial(dpo_loss, chosen, rejected, beta=0.5)
    slopes = jax.grad(lambda a, b: reference(a, b).sum(), (0, 1))(chosen, rejected)
    np.testing.assert_array_equal(np.asarray(slopes), 0)
    far = dpo_loss(chosen - 1e4, rejected + 1e4, chosen, rejected)
    assert np.isfinite(far).all()


@pytest.mark.parametrize("smoothing", [-0.1, 0.6, 2.0, np.nan])
def test_no_more_than_half_of_the_preferences_are_exchanged(smoothing, normal):
    answers = [jnp.asarray(normal(i, 3)) for i in range(4)]
    with pytest.raises(ValueError, match=f"^smoothing is {smoothing}, expected a number between"):
        dpo_loss(*answers, smoothing=smoothing)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [kd_loss, dkd_loss, soft_cross_entropy, target_enhanced_loss])
def test_a_class_that_is_masked_adds_nothing(loss):
    student = jnp.array([[1.0, 2.0, 0.0, 0.5]])
    teacher, labels = jnp.array([[2.0, 1.0, 0.3, -jnp.inf]]), jnp.array([1])

    @jax.jit
    def values(student, teacher):
        both, near = student.at[0, 3].set(-jnp.inf), jnp.where(jnp.isinf(teacher), -1e9, teacher)
        given = (student, teacher), (student, near), (both, teacher)
        slope = jax.grad(lambda s: loss(s, teacher, labels).sum())(both)
        few = loss(student[:, :3], teacher[:, :3], labels)
        return [loss(*own, labels) for own in given], few, slope

    (masked, far, both), few, slope = values(student, teacher)
    np.testing.assert_allclose(masked, far)
    np.testing.assert_allclose(both, few, rtol=1e-5)
    assert np.isfinite(slope).all()


@pytest.mark.slow
def test_at_any_temperature_the_divergence_has_its_digits(normal):
    """At 32 and below it is that of the logarithms, above it that of differences of logits."""
    student, teacher = (np.float64(np.float32(3 * normal(i, 4, 5))) for i in (0, 1))
    rows = np.arange(4)

    def excess(p, x):
        x = x - np.sum(p * x, -1, keepdims=True)
        return np.log1p(np.sum(p * (np.expm1(x) - x), -1))

    @partial(jax.jit, static_argnames="temperature")
    def run(student, teacher, *, temperature):
        def total(student):
            given = {"temperature": temperature, "others_weight": 1.0}
            parts = [
                dkd_loss(student, teacher, jnp.asarray(LABELS), target_weight=a, **given)
                for a in (0.0, 1.0)
            ]
            found = jnp.stack([kd_loss(student, teacher, temperature=temperature), *parts])
            return found[0].sum() + parts[1].sum(), found

        return jax.grad(total, has_aux=True)(student)

    for tau in (31.0, 33.0, 1e3, 1e4, 1e6):
        p, apart = softmax(teacher / tau), (student - teacher) / tau
        rest = np.where(np.eye(5)[LABELS] > 0, 0, p)
        rest /= rest.sum(-1, keepdims=True)
        among = excess(rest, apart)
        both = np.stack([apart[rows, LABELS], (rest * apart).sum(-1) + among], -1)
        own = p[rows, LABELS]
        label = excess(np.stack([own, 1 - own], -1), both)
        wanted = tau**2 * np.stack([excess(p, apart), among, label + among])
        rtol = 2e-3 if tau < 32 else 2e-6
        slope, found = run(*map(jnp.float32, (student, teacher)), temperature=tau)
        np.testing.assert_allclose(found, wanted, rtol=rtol)
        centred = (student - teacher) - (student - teacher).mean(-1, keepdims=True)
        if tau == 1e6:
            np.testing.assert_allclose(found[0], (centred**2).mean(-1) / 2, rtol=1e-4)
        fixed = kd_loss(*map(jnp.float32, (student, teacher)), temperature=tau)
        np.testing.assert_allclose(fixed, wanted[0], rtol=rtol)
        q, label = softmax(student / tau), np.eye(5)[LABELS]
        other = np.where(label > 0, 0, q)
        other /= other.sum(-1, keepdims=True)
        gain = (q[rows, LABELS] - own)[:, None] * (label - other) + other - rest
        np.testing.assert_allclose(slope, tau * (q - p + gain), rtol=10 * rtol, atol=1e-5)


@pytest.mark.slow
def test_at_a_high_temperature_masks_and_far_logits_are_what_they_are_at_a_low_one():
    student = jnp.array([[0.3, 2.0, -jnp.inf], [1.0, 2.0, -1e9], [1.0, 2.0, 0.0], [0.0, 9e4, 1.0]])
    teacher = jnp.array([[2.0, 1.0, -jnp.inf], [2.0, 1.0, 0.0], [2.0, 1.0, -jnp.inf], [2.0, 0, 1]])
    labels = jnp.array([0, 1, 1, 0])
    for loss in (kd_loss, dkd_loss):
        run = jax.value_and_grad(
            lambda s, tau, loss=loss: (
                found := loss(s, teacher, labels, temperature=tau), (found.sum(), found)
            )[1],
            has_aux=True,
        )  # fmt: skip
        (_, found), slope = run(student, 1e4)
        with jax.enable_x64(True):
            known = [jnp.asarray(np.asarray(x, np.float64) / 1e4) for x in (student, teacher)]
            few = loss(*(x[:1, :2] for x in known), labels[:1], temperature=1.0)
            rest = loss(*(x[1:] for x in known), labels[1:], temperature=1.0)
        np.testing.assert_allclose(found, 1e8 * np.concatenate([few, rest]), rtol=1e-3)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("loss", [kd_loss, dkd_loss])
@pytest.mark.slow
def test_a_chance_that_has_run_down_to_0_adds_nothing_where_the_student_has_none(loss):
    student = jnp.array([[0.0, 1.0, -jnp.inf]])
    given = {"labels": jnp.array([1]), "temperature": 1.0}

    def value(student, last):
        return loss(student, jnp.array([[0.5, 0.2, last]]), **given).sum()

    run = jax.value_and_grad(value)
    for found, wanted in zip(run(student, -200.0), run(student, -jnp.inf), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert np.isfinite(found).all()


@pytest.mark.slow
def test_dkd_has_no_other_classes_where_the_teacher_masks_them_all(normal):
    """The first example is such; that of the second is what it is alone."""
    teacher = np.where([[True, False, True, True], [False] * 4], -np.inf, normal(1, 2, 4))
    student, labels = normal(0, 2, 4), jnp.array([1, 2])
    given = {"target_weight": 1.5, "others_weight": 3.0, "temperature": 2.0}
    loss = partial(dkd_loss, teacher=jnp.asarray(teacher), labels=labels, **given)
    each = jax.jit(lambda s: (loss(s), jax.grad(lambda s: loss(s).sum())(s)))
    found, slope = each(jnp.asarray(student))
    q = softmax(student / 2)[0]
    np.testing.assert_allclose(found[0], -4 * 1.5 * np.log(q[1]), rtol=1e-5)
    np.testing.assert_allclose(slope[0], 2 * 1.5 * (q - np.eye(4)[1]), rtol=1e-5)
    alone = dkd_loss(*map(jnp.asarray, (student[1:], teacher[1:])), labels[1:], **given)
    np.testing.assert_allclose(found[1:], alone, rtol=1e-6)
    assert np.isfinite(slope[1]).all()
    # A student that masks the same classes has nothing to learn.
    found, slope = each(jnp.asarray(np.where(np.isinf(teacher), teacher, student)))
    assert found[0] == 0
    np.testing.assert_array_equal(slope[0], 0)
    np.testing.assert_allclose(found[1:], alone, rtol=1e-6)
