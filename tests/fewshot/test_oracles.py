"""Each method against its equations written in float64 NumPy, or against scikit-learn."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid
from sklearn.semi_supervised import LabelSpreading

from rml import fewshot
from rml.errors import UserError
from rml.fewshot.alpha_tim import alpha_entropy
from rml.fewshot.label_propagation import TOLERANCE
from rml.fewshot.pt_map import power_transform

C = 3


def compiled(method):
    """The method as one program for episodes of a shape: its numbers are arguments."""
    options = inspect.signature(method).parameters.values()
    fixed = [one.name for one in options if "Array" not in str(one.annotation)]
    return jax.jit(method, static_argnames=fixed)


alpha_tim = compiled(fewshot.alpha_tim)
bd_cspn = compiled(fewshot.bd_cspn)
k_modes = compiled(fewshot.k_modes)
label_propagation = compiled(fewshot.label_propagation)
laplacian_shot = compiled(fewshot.laplacian_shot)
pt_map = compiled(fewshot.pt_map)
rectify_prototypes = compiled(fewshot.rectify_prototypes)
simple_shot = compiled(fewshot.simple_shot)
tim = compiled(fewshot.tim)
tim_adm = compiled(fewshot.tim_adm)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x, axis=1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def means(x, labels):
    return np.stack([x[labels == k].mean(0) for k in range(C)])


def squares(x, m):
    return ((x[:, None] - m[None]) ** 2).sum(2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["UN", "L2N", "CL2N"])
def test_simple_shot_is_the_nearest_centroid(episode, kind):
    support, labels, query, _ = episode(0, queries=20)
    support, query = 3 * support + 0.5, 3 * query + 0.5
    center = np.full(6, 0.4, np.float32)
    p = simple_shot(support, labels, query, num_classes=C, kind=kind, center=jnp.asarray(center))
    s, q = wide(support, query)
    if kind == "CL2N":
        s, q = s - center, q - center
    if kind != "UN":
        s, q = unit(s), unit(q)
    y = np.asarray(labels)
    np.testing.assert_array_equal(np.argmax(p, 1), NearestCentroid().fit(s, y).predict(q))
    np.testing.assert_allclose(p, softmax(-squares(q, means(s, y))), rtol=1e-4, atol=1e-6)


def rectified(s, y, q, weights, scale):
    rows = np.concatenate([s, q + s.mean(0) - q.mean(0)])
    m = means(s, y)
    cos = unit(rows) @ unit(m).T
    nearest = cos.argmax(1)
    if weights == "classes":
        w = softmax(scale * cos)
        return np.stack([(w[nearest == k, k, None] * rows[nearest == k]).mean(0) for k in range(C)])
    nearest[: len(s)] = y
    w = np.exp(scale * cos)
    return np.stack(
        [w[nearest == k, k] @ rows[nearest == k] / w[nearest == k, k].sum() for k in range(C)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "scale"), [("classes", 10.0), ("rows", 1.0)])
def test_bd_cspn(episode, weights, scale):
    support, labels, query, _ = episode(2, shots=4)
    labels = labels.at[0].set((labels[0] + 1) % C)  # nearer to another class's mean
    options = dict(num_classes=C, scale=scale, weights=weights)
    y, (s, q) = np.asarray(labels), wide(support, query)
    assert ((unit(s) @ unit(means(s, y)).T).argmax(1) != y).any()
    expected = rectified(s, y, q, weights, scale)
    np.testing.assert_allclose(
        rectify_prototypes(support, labels, query, **options), expected, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        bd_cspn(support, labels, query, **options),
        softmax(scale * unit(q) @ unit(expected).T), rtol=2e-4, atol=1e-5,
    )  # fmt: skip


def test_unknown_weights_are_named(unchecked, episode):
    with pytest.raises(ValueError, match="unknown weights 'class'; did you mean 'classes'"):
        bd_cspn(*episode(0)[:3], num_classes=C, weights="class")


@pytest.mark.slow
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("graph", ["directed", "symmetric"])
def test_laplacian_shot(episode, rectify, shift, graph):
    support, labels, query, _ = episode(3)
    found = laplacian_shot(
        support, labels, query, num_classes=C, rectify=rectify, shift=shift, graph=graph,
        laplacian_weight=1.5, temperature=0.7, steps=7, tolerance=-1.0,
    )  # fmt: skip
    y, (s, q) = np.asarray(labels), wide(support, query)
    m = rectified(s, y, q, "classes", 10.0) if rectify else means(s, y)
    d2 = squares(q, q) + np.diag(np.full(len(q), np.inf))
    w = np.zeros((len(q), len(q)))
    np.put_along_axis(w, np.argsort(d2, 1)[:, :2], 1.0, axis=1)
    w, step = w if graph == "directed" else (w + w.T) / 2, 1.0
    if graph == "symmetric":  # damped where the largest degree says that full steps may not settle
        step = 2 * 0.7 / (1.5 * w.sum(0).max())
        assert step < 0.6
    unary = squares(q + s.mean(0) - q.mean(0) if shift else q, m)
    z = softmax(-unary / 0.7)
    for _ in range(7):
        z = z + step * (softmax((-unary + 1.5 * w @ z) / 0.7) - z)
    np.testing.assert_allclose(found, z, rtol=1e-4, atol=1e-5)


def scores(x, m, t):
    return -t / 2 * squares(x, m)


def adam(loss, m, rate, steps):
    """Adam in float64 on central differences."""
    first, second = np.zeros_like(m), np.zeros_like(m)
    for i in range(1, steps + 1):
        g = np.zeros_like(m)
        for j in np.ndindex(m.shape):
            e = np.zeros_like(m)
            e[j] = 1e-6
            g[j] = (loss(m + e) - loss(m - e)) / 2e-6
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        m = m - rate * (first / (1 - 0.9**i)) / (np.sqrt(second / (1 - 0.999**i)) + 1e-8)
    return m


@pytest.mark.slow
def test_tim_by_gradient(episode):
    support, labels, query, _ = episode(1)
    weights = (0.3, 0.9, 0.2)
    found = tim(
        support, labels, query, num_classes=C, temperature=4.0, cross_entropy_weight=0.3,
        marginal_weight=0.9, conditional_weight=0.2, learning_rate=0.02, steps=12,
    )  # fmt: skip
    y, (s, q) = np.asarray(labels), map(unit, wide(support, query))

    def loss(m):
        p = softmax(scores(q, m, 4.0))
        cross = -np.mean(np.log(softmax(scores(s, m, 4.0))[np.arange(len(y)), y]))
        marginal = -np.sum(p.mean(0) * np.log(p.mean(0)))
        return (
            weights[0] * cross
            - weights[1] * marginal
            - weights[2] * np.mean(np.sum(p * np.log(p), 1))
        )

    m = adam(loss, means(s, y), 0.02, 12)
    np.testing.assert_allclose(found, softmax(scores(q, m, 4.0)), atol=1e-4)


@pytest.mark.slow
def test_tim_in_closed_form(episode):
    support, labels, query, _ = episode(1)
    l0, l1, l2 = 0.3, 0.9, 0.2
    found = tim_adm(
        support, labels, query, num_classes=C, temperature=4.0, cross_entropy_weight=l0,
        marginal_weight=l1, conditional_weight=l2, steps=4, rate=0.8,
    )  # fmt: skip
    y, (s, q) = np.asarray(labels), map(unit, wide(support, query))
    m, hot = means(s, y), np.eye(C)[y]
    for _ in range(4):
        p_s, p_q = softmax(scores(s, m, 4.0)), softmax(scores(q, m, 4.0))
        target = p_q ** (1 + l2)
        target = target / target.sum(0) ** (l1 / (1 + l1))
        target /= target.sum(1, keepdims=True)
        a, b = l0 / (1 + l2), len(s) / len(q)
        top = a * ((hot - p_s).T @ s + m * p_s.sum(0)[:, None])
        top += b * ((target - p_q).T @ q + m * p_q.sum(0)[:, None])
        new = top / (a * hot.sum(0) + b * target.sum(0))[:, None]
        m = m + 0.8 * (new - m)
    np.testing.assert_allclose(found, softmax(scores(q, m, 4.0)), atol=1e-4)


@pytest.mark.slow
def test_unit_prototypes_order_classes_by_their_cosine(episode):
    """The mean of unit rows is short where a class is wide: the nearest of it is another."""
    support, labels, query, _ = episode(2, shots=5, queries=20)
    s, q = wide(support, query)
    p = simple_shot(support, labels, query, num_classes=C, kind="L2N", unit_prototypes=True)
    m = means(unit(s), np.asarray(labels))
    np.testing.assert_array_equal(np.argmax(p, 1), np.argmax(unit(q) @ unit(m).T, 1))
    np.testing.assert_allclose(p, softmax(-squares(unit(q), unit(m))), rtol=1e-4, atol=1e-6)
    means_as_they_are = simple_shot(support, labels, query, num_classes=C, kind="L2N")
    assert (np.argmax(means_as_they_are, 1) != np.argmax(p, 1)).any()


@pytest.mark.slow
def test_bd_cspn_by_squared_distances(unchecked, episode):
    support, labels, query, _ = episode(3)
    m = wide(rectify_prototypes(support, labels, query, num_classes=C, scale=5.0))[0]
    given = dict(num_classes=C, scale=5.0, distance="squared_euclidean")
    p = bd_cspn(support, labels, query, **given)
    (q,) = wide(query)
    np.testing.assert_allclose(p, softmax(-5.0 / 2 * squares(q, m)), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="unknown distance 'cosines'"):
        bd_cspn(support, labels, query, **{**given, "distance": "cosines"})


@pytest.mark.slow
def test_the_closed_form_raises_the_objective_as_the_gradient_does(episode):
    support, labels, query, _ = episode(6, queries=8)

    def information(p):
        p = np.asarray(p, np.float64)
        entropy = -np.sum(p.mean(0) * np.log(p.mean(0)))
        return entropy + np.mean(np.sum(p * np.log(p + 1e-30), 1))

    options = dict(num_classes=C)
    start = information(tim(support, labels, query, steps=0, **options))
    assert information(tim(support, labels, query, steps=200, **options)) > start
    assert information(tim_adm(support, labels, query, **options)) > start


@pytest.mark.slow
def test_alpha_tim(episode):
    support, labels, query, _ = episode(1)
    found = alpha_tim(
        support, labels, query, num_classes=C, alpha=3.0, temperature=4.0,
        cross_entropy_weight=0.3, marginal_weight=0.9, conditional_weight=0.2,
        learning_rate=0.02, steps=12,
    )  # fmt: skip
    y, (s, q) = np.asarray(labels), map(unit, wide(support, query))

    def loss(m):
        p = softmax(scores(q, m, 4.0))
        cross = -np.mean(np.log(softmax(scores(s, m, 4.0))[np.arange(len(y)), y]))
        marginal = (1 - np.sum(p.mean(0) ** 3)) / 2
        return 0.3 * cross - 0.9 * marginal + 0.2 * np.mean((1 - np.sum(p**3, 1)) / 2)

    m = adam(loss, means(s, y), 0.02, 12)
    np.testing.assert_allclose(found, softmax(scores(q, m, 4.0)), atol=1e-4)


@pytest.mark.slow
def test_alpha_tim_near_one_is_tim_and_one_is_refused(episode):
    support, labels, query, _ = episode(1)
    options = dict(
        num_classes=C, cross_entropy_weight=0.3, marginal_weight=0.9, conditional_weight=0.2,
        learning_rate=0.01, steps=10,
    )  # fmt: skip
    near = alpha_tim(support, labels, query, alpha=1.001, **options)
    far = alpha_tim(support, labels, query, alpha=4.0, **options)
    shannon = tim(support, labels, query, **options)
    np.testing.assert_allclose(near, shannon, atol=1e-3)
    assert np.max(np.abs(far - shannon)) > 1e-2
    p = jnp.asarray([0.2, 0.3, 0.5])
    np.testing.assert_allclose(alpha_entropy(p, alpha=2.0), 1 - 0.04 - 0.09 - 0.25, rtol=1e-6)
    for one in (1.0, jnp.float32(1)):
        with pytest.raises(ValueError, match="alpha must not be 1"):
            fewshot.alpha_tim(support, labels, query, alpha=one, **options)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_label_propagation_is_label_spreading(episode, alpha):
    support, labels, query, _ = episode(2, queries=6)
    found = label_propagation(
        support, labels, query, num_classes=C, alpha=alpha, neighbors=4, bandwidth=0.7
    )
    s, q = wide(support, query)
    x = np.concatenate([s, q])
    d2 = squares(x, x)
    near = np.argsort(d2 + np.diag(np.full(len(x), np.inf)), 1)[:, :4]
    edges = np.zeros_like(d2)
    np.put_along_axis(edges, near, 1.0, axis=1)
    w = (edges + edges.T) / 2 * np.exp(-d2 / (2 * 0.7**2))
    y = np.concatenate([np.asarray(labels), np.full(len(q), -1)])
    peer = LabelSpreading(kernel=lambda a, b: w, alpha=alpha, max_iter=5000, tol=1e-12).fit(x, y)
    np.testing.assert_allclose(found, peer.label_distributions_[len(s) :], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.8, 0.99, 0.999])
def test_labels_stop_as_near_to_their_limit_as_is_said(episode, alpha):
    support, labels, query, _ = episode(2, queries=6)
    found = label_propagation(
        support, labels, query, num_classes=C, alpha=alpha, neighbors=4, bandwidth=0.7
    )
    x = np.concatenate(wide(support, query))
    d2 = squares(x, x)
    edges = np.zeros_like(d2)
    near = np.argsort(d2 + np.diag(np.full(len(x), np.inf)), 1)[:, :4]
    np.put_along_axis(edges, near, 1.0, axis=1)
    w = (edges + edges.T) / 2 * np.exp(-d2 / (2 * 0.7**2))
    s = w / np.sqrt(w.sum(0) * w.sum(1)[:, None])
    y = np.eye(C)[np.asarray(labels)]
    limit = np.linalg.solve(np.eye(len(x)) - alpha * s, np.pad(y, ((0, len(query)), (0, 0))))
    limit = limit[len(y) :] / limit[len(y) :].sum(1, keepdims=True)
    # Shares of labels each of which is short by at most this.
    np.testing.assert_allclose(found, limit, rtol=TOLERANCE * alpha / (1 - alpha) + 2e-6)


@pytest.mark.slow
def test_a_label_arrives_however_far_it_goes():
    """Along two parallel chains, where it is small at their ends beside what is at its source."""
    chain = jnp.stack([jnp.linspace(0, 40, 81), jnp.zeros(81)], axis=1)
    both = jnp.stack([chain, chain.at[:, 1].set(10.0)])
    p = label_propagation(
        both[:, 0], jnp.asarray([0, 1]), both[:, 1:].reshape(160, 2), num_classes=2, neighbors=4
    )
    np.testing.assert_allclose(p[:80], [[1, 0]] * 80, atol=1e-6)
    np.testing.assert_allclose(p[80:], [[0, 1]] * 80, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [100.0, 150.0, 300.0])
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(
    "method", [tim, *(compiled(partial(fewshot.alpha_tim, alpha=alpha)) for alpha in (0.5, 0.9))]
)
def test_entropies_are_finite_where_a_class_has_no_chance(episode, method, empty, temperature):
    support, labels, query, _ = episode(1)
    if empty:  # classes at right angles, the last of which no query is near to
        labels = jnp.arange(6) % C
        support, query = jnp.eye(C)[labels], jnp.eye(C)[:2]
    found = method(
        support, labels, query, num_classes=C, temperature=temperature, learning_rate=0.01, steps=20
    )
    np.testing.assert_allclose(jnp.sum(found, axis=1), 1, rtol=1e-5)
    assert empty or temperature < 300 or jnp.min(found) == 0


@pytest.mark.slow
def test_default_bandwidths_are_root_mean_square_lengths_of_edges(episode):
    support, labels, query, _ = episode(2, queries=6)
    s, q = wide(support, query)

    def length(x, k):
        d2 = squares(x, x) + np.diag(np.full(len(x), np.inf))
        return float(np.sqrt(np.sort(d2, 1)[:, :k].mean()))

    shifted = np.concatenate([s, q + s.mean(0) - q.mean(0)])
    for method, rows, k in ((label_propagation, np.concatenate([s, q]), 4), (k_modes, shifted, 5)):
        call = partial(method, support, labels, query, num_classes=C, neighbors=k)
        own = length(rows, k)
        np.testing.assert_allclose(call(), call(bandwidth=own), atol=1e-5)
        assert np.max(np.abs(call() - call(bandwidth=1.4 * own))) > 1e-3


@pytest.mark.slow
def test_queries_that_no_label_reaches_are_undecided():
    support = jnp.asarray([[0.0, 0.0], [0.0, 0.1], [1.0, 0.0], [1.0, 0.1]])
    query = jnp.asarray([[50.0, 50.0], [50.0, 50.1], [0.0, 0.2]])
    p = label_propagation(
        support, jnp.asarray([0, 0, 1, 1]), query, num_classes=2, neighbors=1, bandwidth=0.2
    )
    np.testing.assert_allclose(p[:2], 0.5)
    assert p[2, 0] > 0.99


@pytest.mark.slow
def test_pt_map(episode):
    pytest.importorskip("ott")
    support, labels, query, _ = episode(4, queries=5)
    support, query = jnp.abs(support), jnp.abs(query)
    found = pt_map(
        support, labels, query, num_classes=C, power=0.7, regularization=6.0, rate=0.4, steps=4,
        sinkhorn_steps=2000, threshold=1e-6,
    )  # fmt: skip
    y, (s, q) = np.asarray(labels), wide(support, query)
    s, q = (unit((x + 1e-6) ** 0.7) for x in (s, q))
    s, q = (unit(x - x.mean(0)) for x in (s, q))

    def plan(m):
        p = np.exp(-6 * squares(q, m))
        for _ in range(2000):
            p *= len(q) / C / p.sum(0)
            p /= p.sum(1, keepdims=True)
        return p

    m, rows = means(s, y), np.concatenate([s, q])
    for _ in range(4):
        mask = np.concatenate([np.eye(C)[y], plan(m)])
        m = m + 0.4 * (mask.T @ rows / mask.sum(0)[:, None] - m)
    np.testing.assert_allclose(found, plan(m), atol=2e-4)
    # The plan is balanced over classes.
    np.testing.assert_allclose(jnp.sum(found, axis=0), len(q) / C, rtol=1e-3)


@jax.jit
def plan_by_logarithms(cost, weight):
    from ott.geometry.geometry import Geometry
    from ott.solvers import linear

    points = Geometry(cost_matrix=cost, epsilon=1 / weight)
    plan = linear.solve(points, lse_mode=True, max_iterations=5000).matrix
    return plan / plan.sum(1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [30.0, 100.0, 300.0])
def test_plans_of_little_entropy_are_those_of_logarithms(episode, weight):
    pytest.importorskip("ott")
    support, labels, query, _ = episode(4, queries=5)
    found = pt_map(
        support, labels, query, num_classes=C, power=None, regularization=weight, steps=0,
        sinkhorn_steps=5000,
    )  # fmt: skip
    y, (s, q) = np.asarray(labels), wide(support, query)
    s, q = (unit(x - x.mean(0)) for x in map(unit, (s, q)))
    expected = plan_by_logarithms(np.float32(squares(q, means(s, y))), weight)
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.slow
def test_a_plan_begins_where_the_last_ended():
    pytest.importorskip("ott")
    draw = np.random.default_rng(49).normal  # to the fifth of these classes no query is nearest
    support, query = (jnp.asarray(draw(size=(n, 2)), jnp.float32) for n in (6, 20))
    call = partial(
        pt_map, support, jnp.arange(6), query, num_classes=6, power=None, regularization=20.0,
        rate=1e-9, threshold=1e-6,
    )  # fmt: skip
    # Centres that do not move: five plans of two iterations are one of ten, far from its end.
    found = call(steps=4, sinkhorn_steps=2)
    np.testing.assert_allclose(found, call(steps=0, sinkhorn_steps=10), atol=1e-4)
    assert np.max(np.abs(found - call(steps=0, sinkhorn_steps=200))) > 0.01


def test_a_power_of_half_precision_is_taken_in_float32():
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 3, (5, 4)), jnp.bfloat16)
    same = power_transform(x.astype(jnp.float32), power=0.7)
    np.testing.assert_allclose(power_transform(x, power=0.7), same, rtol=1e-6)


def test_the_power_transform_gives_unit_rows_from_any_sign():
    x = jnp.asarray([[-1.0, 4.0, 9.0], [1.0, 1.0, 0.0]])
    y = power_transform(x, power=0.5)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(y[0, 1:] / y[0, 1], [1, 1.5], rtol=1e-5)
    np.testing.assert_allclose(y[0, 0], 0, atol=1e-3)
