"""What every row of `METHODS` inherits: one signature, and what must not matter does not.

A new method is a row of the table and passes these tests; here stand only its options, where the
defaults take long, and what its nature excludes.
"""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.fewshot import METHODS
from rml.fewshot.bound import Scalar

MODES = "transductive_clustering of modes"
EVERY = {**METHODS, MODES: partial(METHODS["transductive_clustering"], prototype="mode")}
OPTIONS = {
    "label_propagation": dict(neighbors=3),
    "tim": dict(steps=20, learning_rate=1e-2),
    "alpha_tim": dict(steps=20, learning_rate=1e-2),
    "tim_adm": dict(steps=5),
    "pt_map": dict(power=None, steps=3),
}
# A loop that ends by convergence has forward mode only.
FORWARD = ("soft_kmeans", "k_modes", "laplacian_shot", "transductive_clustering", MODES)
NO_DERIVATIVE = ("pt_map",)  # its docstring says why
WAYS, SHOTS, QUERIES = 3, 2, 4
# A compiler may keep digits of half precision that one operation at a time rounds off.
ROUNDED = {"xla_allow_excess_precision": False}


def has(method, option):
    return option in inspect.signature(method).parameters


@pytest.fixture(params=EVERY)
def name(request):
    """The name of a method."""
    return request.param


@pytest.fixture
def plain(name):
    """The method as it is."""
    if name == "pt_map":
        pytest.importorskip("ott")
    return partial(EVERY[name], num_classes=WAYS, **OPTIONS.get(name, {}))


@pytest.fixture
def method(name, plain):
    """The method on episodes of the usual size, jitted; tests share its programs."""
    return lambda *given: with_slope(name)(*given)[0]


@cache
def with_slope(name):
    """A program that computes the probabilities of an episode, and how steep their loss is."""
    plain = partial(EVERY[name], num_classes=WAYS, **OPTIONS.get(name, {}))
    truth = np.repeat(np.arange(WAYS), QUERIES)
    draw = np.random.default_rng(1).standard_normal
    direction = [jnp.asarray(draw((WAYS * n, 6)), jnp.float32) for n in (SHOTS, QUERIES)]

    def program(support, labels, query):
        def loss(support, query):
            p = plain(support, labels, query)
            return -jnp.mean(jnp.log(p[jnp.arange(len(truth)), truth] + 1e-6)), p

        given = support, query
        if name in NO_DERIVATIVE:
            return loss(*given)[::-1]
        if name in FORWARD:
            tangents = tuple(d.astype(x.dtype) for d, x in zip(direction, given, strict=True))
            _, along, p = jax.jvp(loss, given, tangents, has_aux=True)
            return p, along
        gradients, p = jax.grad(loss, (0, 1), has_aux=True)(*given)
        return p, sum(jnp.sum(g * d) for g, d in zip(gradients, direction, strict=True))

    return jax.jit(program, compiler_options=ROUNDED)


def require_probabilities(p, rows):
    assert p.shape == (rows, WAYS)
    np.testing.assert_allclose(jnp.sum(p, axis=1), 1, rtol=1e-5)
    assert jnp.all(p >= 0)


@pytest.mark.slow
def test_probabilities_find_well_separated_classes(method, episode):
    support, labels, query, truth = episode(1, d=6, spread=0.1)
    p = method(support, labels, query)
    require_probabilities(p, WAYS * QUERIES)
    np.testing.assert_array_equal(jnp.argmax(p, axis=1), truth)


@pytest.mark.slow
def test_order_and_names_do_not_matter(method, episode):
    support, labels, query, _ = episode(4)
    p = method(support, labels, query)
    rows = jnp.asarray(np.random.default_rng(0).permutation(len(query)))
    np.testing.assert_allclose(method(support, labels, query[rows]), p[rows], atol=2e-4)
    examples = jnp.asarray(np.random.default_rng(1).permutation(len(support)))
    np.testing.assert_allclose(method(support[examples], labels[examples], query), p, atol=2e-4)
    names = jnp.asarray([2, 0, 1])
    np.testing.assert_allclose(method(support, names[labels], query)[:, names], p, atol=2e-4)


@pytest.mark.slow
def test_a_batch_is_a_loop(plain, method, episode):
    batch = [episode(seed)[:3] for seed in (0, 7)]
    together = jax.jit(jax.vmap(plain))(*(jnp.stack(parts) for parts in zip(*batch, strict=True)))
    alone = jnp.stack([method(*parts) for parts in batch])
    np.testing.assert_allclose(together, alone, atol=2e-4)


EDGES = {
    "plain": lambda s, q: (s, q),
    "duplicates": lambda s, q: (s.at[1:].set(s[0]), q.at[:].set(s[0])),
    "zeros": lambda s, q: (jnp.zeros_like(s), jnp.zeros_like(q)),
    "a zero in each": lambda s, q: (s.at[0].set(0), q.at[0].set(0)),
    "collapsed": lambda s, q: (0.37 + 1e-7 * s, 0.37 + 1e-7 * q),
    "collapsed to zero": lambda s, q: (1e-12 * s, 1e-12 * q),
    "large": lambda s, q: (1e4 * s, 1e4 * q),
    "very large": lambda s, q: (1e6 * s, 1e6 * q),
    "small": lambda s, q: (1e-4 * s, 1e-4 * q),
    "half": lambda s, q: (s.astype(jnp.bfloat16), q.astype(jnp.bfloat16)),
    "half, large": lambda s, q: ((1e4 * s).astype(jnp.bfloat16), (1e4 * q).astype(jnp.bfloat16)),
    "half, collapsed": lambda s, q: (
        jnp.full(s.shape, 0.37, jnp.bfloat16), jnp.full(q.shape, 0.37, jnp.bfloat16)
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("plain")
def test_edges_are_finite_and_so_are_their_derivatives(name, episode):
    support, labels, query, _ = episode(0)
    for edge, change in EDGES.items():
        near, far = change(support, query)
        p, along = with_slope(name)(near, labels, far)
        require_probabilities(p, len(query))
        assert jnp.isfinite(along), edge
        if edge == "plain":
            assert (along == 0) == (name == "hard_kmeans")


@pytest.mark.slow
def test_one_query_has_probabilities(plain, episode):
    support, labels, query, _ = episode(0)
    require_probabilities(jax.jit(plain)(support, labels, query[:1]), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["label_propagation", "k_modes", "transductive_clustering", MODES])
def test_by_default_points_have_the_neighbours_that_there_are(name, episode):
    support, labels, query, _ = episode(0, ways=2, shots=1, queries=1)
    # Moved onto the support's mean, one query would be as near to both classes.
    moved = {} if name == "label_propagation" else {"shift": False}
    method = jax.jit(partial(EVERY[name], num_classes=2, **moved), static_argnames="neighbors")
    found = method(support, labels, query[:1])
    assert np.ptp(found) > 1e-3
    np.testing.assert_array_equal(found, method(support, labels, query[:1], neighbors=2))
    with pytest.raises(ValueError, match="between 1 and the 2 other points, got 3"):
        method(support, labels, query[:1], neighbors=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("laplacian_shot", 2),
        ("label_propagation", 10),
        ("k_modes", 3),
        ("transductive_clustering", 3),
    ],
)
def test_the_default_of_neighbours_where_there_are_more(name, most, episode):
    support, labels, query, _ = episode(0)
    method = jax.jit(partial(EVERY[name], num_classes=WAYS), static_argnames="neighbors")
    found = method(support, labels, query)
    np.testing.assert_array_equal(found, method(support, labels, query, neighbors=most))
    assert np.max(np.abs(found - method(support, labels, query, neighbors=most + 1))) > 1e-4


@pytest.mark.slow
def test_a_query_alone_has_no_neighbours_and_two_have_each_other(episode):
    support, labels, query, _ = episode(0)
    program = jax.jit(
        partial(METHODS["laplacian_shot"], num_classes=WAYS), static_argnames="neighbors"
    )
    method = partial(program, support, labels)
    alone = method(query[:1])
    assert np.ptp(alone) > 1e-3
    np.testing.assert_allclose(alone, method(query[:1], laplacian_weight=0.0), atol=1e-6)
    np.testing.assert_array_equal(method(query[:2]), method(query[:2], neighbors=1))
    with pytest.raises(ValueError, match="between 1 and the 0 other points, got 1"):
        method(query[:1], neighbors=1)


@pytest.mark.slow
def test_half_precision_gives_nearly_the_same(method, episode):
    support, labels, query, truth = episode(1, d=6, spread=0.1)
    p = method(support.astype(jnp.bfloat16), labels, query.astype(jnp.bfloat16))
    require_probabilities(p, len(query))
    np.testing.assert_array_equal(jnp.argmax(p, axis=1), truth)
    np.testing.assert_allclose(p, method(support, labels, query), atol=0.02)


@pytest.mark.slow
def test_options_of_double_precision_do_not_widen_a_loop_of_single_precision(
    name, plain, method, episode
):
    given = episode(0)[:3]
    expected = method(*given)
    with jax.enable_x64(True):
        floats = {
            option: one.default
            for option, one in inspect.signature(plain).parameters.items()
            if one.annotation == Scalar
        }
        assert bool(floats) == (name != "hard_kmeans")
        arrays = {option: jnp.asarray(one, jnp.float64) for option, one in floats.items()}
        assert given[0].dtype == jnp.float32
        np.testing.assert_allclose(jax.jit(plain)(*given, **arrays), expected, atol=2e-4)


@pytest.mark.slow
def test_half_precision_is_rounded_where_rows_are_given_and_nowhere_else(method, episode):
    """Means have no digits far from the origin, differences from them none near to it."""
    support, labels, query, _ = episode(1, d=6, spread=0.1)
    for offset, size in ((8, 3), (0.3, 1)):
        half = [(offset + size * x).astype(jnp.bfloat16) for x in (support, query)]
        found, same = (
            method(s, labels, q) for s, q in (half, [x.astype(jnp.float32) for x in half])
        )
        np.testing.assert_allclose(found, same, atol=1e-5)


# With which of its options a method is indifferent to the scale of an episode.
UNSCALED = {
    "simple_shot": dict(kind="L2N", temperature=0.3),
    "linear_head": {},
    "cosine_head": {},
    "soft_kmeans": dict(distance="cosine"),
    "hard_kmeans": dict(distance="cosine"),
    "k_modes": dict(distance="cosine"),
    "transductive_clustering": dict(distance="cosine"),
    MODES: dict(distance="cosine"),
    "tim": {},
    "tim_adm": {},
    "alpha_tim": {},
    "bd_cspn": {},
    "pt_map": {},
    "label_propagation": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSCALED)
def test_cosines_do_not_depend_on_the_scale_of_an_episode(name, plain, method, episode):
    support, labels, query, _ = episode(0)
    if UNSCALED[name]:
        method = jax.jit(partial(plain, **UNSCALED[name]))
    p = method(support, labels, query)
    assert np.max(np.abs(p - 1 / WAYS)) > 0.1
    for scale in (1e-12, 1e-7, 1e-3, 1e5, 1e10, 1e12):
        found = method(scale * support, labels, scale * query)
        np.testing.assert_allclose(found, p, atol=1e-4, err_msg=f"{scale}")


@pytest.mark.parametrize("name", METHODS)
def test_a_loop_that_ends_by_convergence_says_that_it_has_forward_mode_only(name):
    said = "Derivatives are of forward mode only" in METHODS[name].__doc__
    assert said == (name in FORWARD)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode_only_is_what_there_is(plain, episode):
    support, labels, query, _ = episode(0)
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.jit(jax.grad(lambda x: plain(x, labels, query)[0, 0]))(support)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda s, y, q: (s, jnp.zeros_like(y), q), r"none of \[1, 2\] among 3 classes"),
        (lambda s, y, q: (s, y + 1, q), "between 0 and 2, got values from 1 to 3"),
        (lambda s, y, q: (s, y[:-1], q), r"one label for each of 6 rows, got shape \(5,\)"),
        (lambda s, y, q: (s.at[0, 0].set(jnp.nan), y, q), "support must be finite, got 1"),
        (lambda s, y, q: (s, y, q.at[0].set(jnp.inf)), "query must be finite, got 6"),
        (lambda s, y, q: (s, y, q[:, :4]), r"same number of features.*\(6, 6\) and \(12, 4\)"),
        (lambda s, y, q: (s, y, q[:0]), r"query has the shape \(0, 6\), expected at least one row"),
        (lambda s, y, q: (s[:2], y[:2], q), "3 classes need at least as many support rows, got 2"),
    ],
)
def test_bad_episodes_are_named(unchecked, episode, plain, break_, message):
    with pytest.raises(ValueError, match=message):
        plain(*break_(*episode(0)[:3]))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((n, "temperature", 0.0) for n, method in EVERY.items() if has(method, "temperature")),
        ("simple_shot", "temperature", -1.0),
        ("laplacian_shot", "temperature", np.nan),
        ("laplacian_shot", "scale", -1.0),
        ("bd_cspn", "scale", 0.0),
        ("cosine_head", "scale", 0.0),
        ("pt_map", "power", 0.0),
        ("pt_map", "regularization", 0.0),
        *((n, "steps", -1) for n, method in EVERY.items() if has(method, "steps")),
        ("transductive_clustering", "inner_steps", -1),
        ("pt_map", "sinkhorn_steps", 0),
        ("pt_map", "rate", -1.0),
        ("tim_adm", "rate", 2.0),
        ("tim_adm", "cross_entropy_weight", -1.0),
        ("tim_adm", "marginal_weight", -1.0),
        ("tim_adm", "conditional_weight", -2.0),
        ("tim", "learning_rate", -1.0),
        ("alpha_tim", "alpha", 0.0),
        ("linear_head", "learning_rate", -1.0),
        ("linear_head", "weight_decay", -1.0),
        ("transductive_clustering", "laplacian_weight", -1.0),
        ("k_modes", "bandwidth", 0.0),
        ("label_propagation", "bandwidth", 0.0),
        *(("label_propagation", "alpha", alpha) for alpha in (0.0, 1.0, np.nan)),
    ],
)
def test_numbers_out_of_their_range_are_named(episode, name, option, value):
    with pytest.raises(ValueError, match=f"^{option} is {value}, expected a number"):
        EVERY[name](*episode(0)[:3], num_classes=WAYS, **{option: value})


# Those whose predictions are smooth enough for differences.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["simple_shot", "bd_cspn", "label_propagation", "tim_adm"])
def test_reverse_mode_is_the_slope(episode, plain):
    support, labels, query, truth = episode(0)

    @jax.jit
    @jax.value_and_grad
    def loss(support):
        p = plain(support, labels, query)
        return -jnp.mean(jnp.log(p[jnp.arange(len(truth)), truth]))

    gradient = loss(support)[1]
    direction = jax.random.normal(jax.random.key(0), support.shape)
    step = 1e-2 * direction
    slope = (loss(support + step)[0] - loss(support - step)[0]) / 2e-2
    np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=2e-2)
