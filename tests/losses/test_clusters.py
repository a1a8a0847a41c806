"""SwAV and DINO against loops over pairs of views, and the plan of SwAV's codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.losses.dino import dino, update_center
from rml.losses.swav import sinkhorn_codes, swav

SWAV = dict(temperature=0.2, epsilon=0.3, iterations=4)
DINO = dict(temperature=0.7, teacher_temperature=0.3)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def codes_of(scores, epsilon, iterations):
    """The iteration as it stands in the paper, on the matrix of prototypes by examples."""
    q = np.exp(scores.T / epsilon)
    q /= q.sum()
    k, n = q.shape
    for _ in range(iterations):
        q /= k * q.sum(1, keepdims=True)
        q /= n * q.sum(0, keepdims=True)
    return (n * q).T


def swav_of(scores, coded=2, queue=None, temperature=0.2, epsilon=0.3, iterations=4):
    total, n = 0.0, scores.shape[1]
    for c in range(coded):
        whole = scores[c] if queue is None else np.concatenate([scores[c], queue[c]])
        q = codes_of(whole, epsilon, iterations)[:n]
        for v in range(len(scores)):
            if v != c:
                total -= np.mean(np.sum(q * np.log(softmax(scores[v] / temperature)), -1))
    return total / (coded * (len(scores) - 1))


def dino_of(student, teacher, center, temperature=0.7, teacher_temperature=0.3):
    total, pairs = 0.0, 0
    for t in range(len(teacher)):
        for s in range(len(student)):
            if s != t:
                target = softmax((teacher[t] - center) / teacher_temperature)
                logs = np.log(softmax(student[s] / temperature))
                total, pairs = total - np.mean(np.sum(target * logs, -1)), pairs + 1
    return total / pairs


def scores(seed, *shape):
    return np.tanh(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("iterations", [1, 3])
def test_codes_are_the_papers_iteration(iterations):
    given = scores(0, 7, 4)
    codes = sinkhorn_codes(jnp.asarray(given, jnp.float32), epsilon=0.4, iterations=iterations)
    np.testing.assert_allclose(codes, codes_of(given, 0.4, iterations), rtol=1e-5)


def test_codes_become_an_equal_partition_and_stay_finite_when_sharp():
    given = jnp.asarray(scores(0, 12, 4), jnp.float32)
    codes = sinkhorn_codes(given, epsilon=0.2, iterations=200)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(codes.sum(0), 3, rtol=1e-4)
    sharp = sinkhorn_codes(given, epsilon=1e-3)  # exp(1 / 1e-3) is no float32
    assert bool(jnp.all(jnp.isfinite(sharp)))
    np.testing.assert_allclose(sharp.sum(1), 1, rtol=1e-5)
    equal = sinkhorn_codes(jnp.ones((6, 3), jnp.bfloat16))
    np.testing.assert_allclose(equal, 1 / 3, rtol=1e-3)


def test_swav_value_and_gradient_are_those_of_a_loop(check):
    given, queue = scores(1, 4, 6, 5), scores(2, 3, 9, 5)
    fixed = [
        codes_of(np.concatenate([s, q]), 0.3, 4)[:6] for s, q in zip(given, queue, strict=False)
    ]

    def reference(x):  # codes are constants
        pairs = [(c, v) for c in range(3) for v in range(4) if v != c]
        terms = [np.sum(fixed[c] * np.log(softmax(x[v] / 0.2)), -1).mean() for c, v in pairs]
        return -np.mean(terms)

    small = jnp.asarray(queue, jnp.float32)
    check(lambda x: swav(x, coded=3, queue=small, **SWAV), reference, given)
    np.testing.assert_allclose(reference(given), swav_of(given, 3, queue), rtol=1e-9)


@pytest.mark.slow
def test_swav_and_dino_give_the_numbers_of_lightly():
    """SwaVLoss and DINOLoss of lightly in float64, on two large and two small crops."""
    x = np.random.default_rng(11).standard_normal((4, 6, 5))
    queue = jnp.asarray(np.tanh(np.random.default_rng(12).standard_normal((2, 9, 5))))
    cosines = jnp.asarray(np.tanh(x), jnp.float32)
    np.testing.assert_allclose(swav(cosines, **SWAV), 3.877140429103296, rtol=1e-5)
    value = swav(cosines[:3], queue=queue, **SWAV)
    np.testing.assert_allclose(value, 3.9239453990463535, rtol=1e-5)
    student = x + 0.5 * np.random.default_rng(14).standard_normal(x.shape)
    center = jnp.asarray(np.random.default_rng(13).standard_normal(5), jnp.float32)
    teacher = jnp.asarray(x[:2], jnp.float32)
    value = dino(jnp.asarray(student, jnp.float32), teacher, center=center, **DINO)
    np.testing.assert_allclose(value, 2.4363318740259925, rtol=1e-5)
    np.testing.assert_allclose(
        update_center(center, teacher, momentum=0.8),
        [1.4616129601762136, -2.4470572811212103, 0.8265005917552906, -0.013632790542932503,
         0.9893270183509397], rtol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("teachers", [1, 3])
def test_dino_matches_the_float64_definition(check, normal, teachers):
    teacher, center = normal(0, teachers, 6, 5), normal(1, 5)
    fixed = [jnp.asarray(a, jnp.float32) for a in (teacher, center)]
    check(
        lambda student: dino(student, fixed[0], center=fixed[1], **DINO),
        lambda student: dino_of(student, teacher, center),
        normal(2, 3, 6, 5),
    )


@pytest.mark.slow
def test_no_gradient_reaches_teacher_or_center_and_examples_have_values(normal):
    student, teacher = jnp.asarray(normal(0, 3, 6, 5)), jnp.asarray(normal(1, 2, 6, 5))
    center = jnp.asarray(normal(2, 5))
    each = dino(student, teacher, center=center, reduction="none", **DINO)
    assert each.shape == (6,)
    np.testing.assert_allclose(
        dino(student, teacher, center=center, **DINO), each.mean(), rtol=1e-5
    )
    # An example's value is its own: the same in a batch of its own.
    alone = dino(student[:, 2:3], teacher[:, 2:3], center=center, **DINO)
    np.testing.assert_allclose(each[2], alone, rtol=1e-5)
    moved = jax.grad(lambda t: dino(student, t, center=center, **DINO))(teacher)
    assert not jnp.any(moved)
    assert not jnp.any(jax.grad(lambda t: update_center(center, t)[0])(teacher))
    each = swav(jnp.tanh(student), reduction="none", **SWAV)
    assert each.shape == (6,)
    np.testing.assert_allclose(swav(jnp.tanh(student), **SWAV), each.mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_collapsed_views_have_finite_values_and_gradients(dtype):
    equal = jnp.ones((2, 4, 3), dtype)
    value, grad = jax.jit(jax.value_and_grad(swav))(equal)
    np.testing.assert_allclose(value, np.log(3), rtol=1e-3)
    assert bool(jnp.all(jnp.isfinite(grad)))
    for scale in (0.0, 100.0):
        value, grad = jax.jit(jax.value_and_grad(dino))(
            scale * equal, scale * equal, center=jnp.zeros(3)
        )
        np.testing.assert_allclose(value, np.log(3), rtol=1e-3)
        assert bool(jnp.all(jnp.isfinite(grad)))


def test_views_that_do_not_fit_are_named():
    x = jnp.ones((2, 4, 3))
    for wrong in (
        lambda: swav(x[:1]),
        lambda: swav(x, coded=3),
        lambda: dino(x, jnp.ones((3, 4, 3)), center=jnp.zeros(3)),
        lambda: dino(x[:1], x[:1], center=jnp.zeros(3)),
    ):
        with pytest.raises(ValueError, match="views"):
            wrong()
    with pytest.raises(ValueError, match=r"queue has scores of 1 views, 2 are coded"):
        swav(x, queue=jnp.ones((1, 5, 3)))
    with pytest.raises(ValueError, match="'sum'"):
        swav(x, reduction="sum")


def test_outputs_that_would_be_spread_over_the_center_are_refused(unchecked):
    center = jnp.zeros(3)
    for wrong in (jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 4, 1)), jnp.ones((2, 0, 3))):
        with pytest.raises(ValueError, match=r"center \(3,\) as \[k\], teacher"):
            update_center(center, wrong)


def coded(x, **numbers):
    return swav(jnp.stack([x, x]), **numbers)


@pytest.mark.parametrize("codes", [sinkhorn_codes, coded])
def test_codes_refuse_numbers_that_assign_nothing(codes, unchecked):
    x = jnp.arange(12.0).reshape(4, 3) / 12
    for wrong in (0.0, -0.1, np.nan):
        with pytest.raises(ValueError, match=f"^epsilon is {wrong}, expected a number above 0"):
            codes(x, epsilon=wrong)
    for wrong in (0, -2):
        with pytest.raises(
            ValueError, match=f"^iterations is {wrong}, expected a number at least 1"
        ):
            codes(x, iterations=wrong)


def test_codes_are_of_rows_of_scores(unchecked):
    for wrong in (jnp.ones(3), jnp.ones((0, 3))):
        with pytest.raises(ValueError, match=r"scores \(\d,"):
            sinkhorn_codes(wrong)


@pytest.mark.parametrize("momentum", [-0.1, 2.0, np.nan])
def test_the_center_moves_by_a_share(momentum, unchecked):
    with pytest.raises(ValueError, match=f"^momentum is {momentum}, expected a number between"):
        update_center(jnp.zeros(3), jnp.ones((2, 4, 3)), momentum=momentum)
