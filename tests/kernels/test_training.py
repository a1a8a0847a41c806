from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from rml import kernels
from rml.kernels import sparse

SE = kernels.squared_exponential
SHAPE = dict(kernel=SE, inducing=4, depth=1, width=2.5, learning_rate=0.05)
# One program for all tests that train on twelve rows.
train = jax.jit(partial(kernels.train_sparse, steps=3, normalization="global", **SHAPE))


def data(normal, n=12):
    x = normal(0, n, 2)
    return x, np.sin(x.sum(1, keepdims=True)) + 0.1 * normal(1, n, 1)


def matrices(normal):
    """The Gram matrix and targets of every search, so that searches share their programs."""
    x, y = data(normal, 5)
    return jnp.asarray(x @ x.T / 2 + 0.1 * np.eye(5)), jnp.asarray(y)


def by_hand(x, y, batches, *, steps, total, **options):
    """Adam at a cosine rate, one step after another."""
    machine = sparse.init_sparse(jnp.asarray(x[:4]), depth=1, outputs=1)
    rates = [0.05 * (1 + np.cos(np.pi * t / steps)) / 2 for t in range(steps)]
    state = optax.scale_by_adam().init(machine)
    for rate, rows in zip(rates, batches, strict=True):
        machine, state = adam_step(machine, state, x[rows], y[rows], rate, total, **options)
    return machine


@partial(jax.jit, static_argnames="normalization")
def adam_step(machine, state, x, y, rate, total, **options):
    grads = jax.grad(
        lambda machine: -sparse.elbo(
            machine, x, y, total=total, kernel=SE, widths=jnp.array([2.5]),
            likelihood="gaussian", **options,
        )
    )(machine)  # fmt: skip
    updates, state = optax.scale_by_adam().update(grads, state)
    return jax.tree.map(lambda p, u: p - rate * u, machine, updates), state


def assert_same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), ours, theirs)


@pytest.mark.slow
def test_training_is_adam_on_the_bound_at_a_cosine_rate(normal):
    x, y = data(normal)
    every = [np.arange(12)] * 3
    assert_same(train(x, y), by_hand(x, y, every, steps=3, total=12, normalization="global"))


@pytest.mark.slow
def test_batches_are_drawn_from_the_first_rows_and_stand_for_them(normal):
    x, y = data(normal)
    key = jax.random.key(3)
    train_batches = jax.jit(
        lambda x, y, total: kernels.train_sparse(
            x, y, steps=3, batch_size=5, total=total, key=key, **SHAPE
        )
    )
    draw = jax.jit(
        lambda total: [jax.random.randint(k, (5,), 0, total) for k in jax.random.split(key, 3)]
    )
    for total in (6, 12):
        rows = [np.asarray(own) for own in draw(total)]
        assert max(r.max() for r in rows) < total
        assert_same(train_batches(x, y, total), by_hand(x, y, rows, steps=3, total=total))


@pytest.mark.slow
def test_splits_train_as_each_alone_and_without_learning_stay_at_the_prior(normal):
    x, y = (np.stack([part, part[::-1]]) for part in data(normal))
    options = dict(steps=3, normalization="global", **SHAPE)
    both = jax.device_get(jax.jit(partial(kernels.train_splits, **options))(x, y))
    for index in (0, 1):
        alone = train(x[index], y[index])
        assert_same(jax.tree.map(lambda leaf, i=index: leaf[i], both), alone)
    fixed = jax.eval_shape(partial(kernels.train_splits, learned=False, **options), x, y)
    assert fixed.raw is None
    assert (both.raw != 0).any()


def test_options_that_contradict_one_another_are_named(normal):
    x, y = map(jnp.asarray, data(normal))
    for wrong in (
        {"batch_size": 5},
        {"key": jax.random.key(0)},
        {"total": 6},
    ):
        with pytest.raises(ValueError, match="batches need a key, and total needs batches"):
            kernels.train_sparse(x, y, steps=1, **SHAPE, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inducing": 0}, "inducing is 0, expected a number between 1 and 12"),
        ({"inducing": -1}, "inducing is -1, expected a number between 1 and 12"),
        ({"inducing": 13}, "inducing is 13, expected a number between 1 and 12"),
        ({"depth": -1}, "depth is -1, expected a number at least 0"),
        ({"width": np.nan}, "width is nan, expected a number at least 0"),
        ({"steps": 0}, "steps is 0, expected a number above 0"),
        ({"batch_size": 0, "key": 0}, "batch_size is 0, expected a number above 0"),
    ],
)
def test_numbers_of_no_training_are_named(normal, wrong, message):
    x, y = map(jnp.asarray, data(normal))
    with pytest.raises(ValueError, match=message):
        kernels.train_sparse(x, y, **{"steps": 1, **SHAPE, **wrong})


@pytest.mark.parametrize("width", [0.0, -1.0, np.nan])
def test_widths_of_no_search_are_named(normal, width):
    g, y = matrices(normal)
    given = dict(kernel=SE, width=width, noise=0.1)
    for call in (
        lambda: kernels.optimal_grams(g, y, depth=1, **given),
        lambda: kernels.optimal_grams_of_starts(jnp.zeros((2, 1, 5, 5)), g, y, **given),
    ):
        with pytest.raises(ValueError, match=f"width is {width}, expected a number above 0"):
            call()


def test_machines_and_draws_of_nothing_are_named():
    x, images, key = jnp.ones((3, 2)), jnp.ones((2, 4, 5, 1)), jax.random.key(0)
    machine = partial(kernels.init_sparse, x, depth=1)
    conv = partial(kernels.init_conv, key, images[:, :3, :3], depth=1)
    draw = partial(kernels.draw_patches, key, images, count=2, size=3)
    rows = partial(kernels.inducing_rows, np.arange(4) % 2, seed=0)
    for call, wrong, message in (
        (partial(kernels.init_sparse, x[:0], depth=1, outputs=1), "", "got inducing"),
        (partial(machine, outputs=1, depth=-1), -1, "depth is"),
        (partial(machine, outputs=0), 0, "outputs is"),
        (partial(machine, outputs=1, noise=0.0), 0.0, "noise is"),
        (partial(conv, outputs=1, depth=-1), -1, "depth is"),
        (partial(conv, outputs=0), 0, "outputs is"),
        (partial(conv, outputs=1, amplitude=-1.0), -1.0, "amplitude is"),
        (partial(draw, count=0), 0, "count is"),
        (partial(draw, size=0), 0, "size is"),
        (partial(draw, size=5), 5, "size is"),
        (partial(rows, 0, classes=2), 0, "count is"),
        (partial(rows, 2, classes=0), 0, "classes is"),
        (lambda: kernels.log_predictive(key, x, x[:, 0], samples=0), 0, "samples is"),
    ):
        with pytest.raises(ValueError, match=f"{message} {wrong}"):
            call()
    with pytest.raises(ValueError, match=r"at least one, .* got \(\) and 2"):
        kernels.sample_grams(key, x @ x.T, x, kernel=SE, widths=(), noise=0.1, copies=2)


@pytest.mark.slow
def test_scores_are_those_of_scipys_normal_distribution(normal):
    machine = train(*data(normal))
    x, y = data(normal, 40)

    @partial(jax.jit, static_argnames="normalization")
    def scored(machine, x, y, **options):
        terms = sparse.propagate_sparse(machine, x, kernel=SE, **options)
        likelihood = kernels.gaussian_log_likelihood(
            terms.prediction, y, noise=jnp.exp(machine.log_noise)
        )
        scores = kernels.regression_scores(machine, x, y, kernel=SE, **options)
        return scores, terms.prediction, likelihood

    target = y[:, 0] * 3  # far enough that some leave the interval
    scores, (mean, variance), _ = jax.device_get(scored(machine, x, target[:, None]))
    normal_law = stats.norm(mean[:, 0], np.sqrt(variance + np.exp(machine.log_noise)))
    np.testing.assert_allclose(scores.log_likelihood, normal_law.logpdf(target).mean(), rtol=1e-8)
    np.testing.assert_allclose(
        scores.error, np.sqrt(((target - mean[:, 0]) ** 2).mean()), rtol=1e-8
    )
    low, high = normal_law.interval(0.95)
    inside = ((low < target) & (target < high)).mean()
    assert 0 < inside < 1
    np.testing.assert_allclose(scores.coverage, inside)
    other, _, expected = scored(machine, x, y, normalization="local")
    np.testing.assert_allclose(other.log_likelihood, expected, rtol=1e-12)


@pytest.mark.slow
def test_optimal_grams_are_a_maximum_of_the_objective(normal):
    g, y = matrices(normal)
    options = dict(kernel=SE, noise=0.2)
    grams, found = kernels.optimal_grams(g, y, depth=2, width=3.0, steps=300, **options)
    assert found.converged
    widths = jnp.full(2, 3.0)
    objective = jax.jit(
        jax.value_and_grad(lambda grams: kernels.objective(grams, g, y, widths=widths, **options))
    )
    best, slope = objective(grams)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    np.testing.assert_allclose(-3.0 * found.value, best, rtol=1e-10)
    prior = jax.jit(lambda g: kernels.nngp_grams(g, kernel=SE, depth=2))(g)
    assert best > objective(prior)[0]
    assert not kernels.optimal_grams(g, y, depth=2, width=3.0, steps=2, **options)[1].converged


@pytest.mark.slow
def test_optimal_grams_of_several_starts_are_those_of_each(normal):
    g, y = matrices(normal)
    options = dict(kernel=SE, noise=0.2, width=3.0)
    alone, one = kernels.optimal_grams(g, y, depth=2, steps=300, **options)
    starts = jnp.asarray(np.stack([np.zeros((2, 5, 5)), normal(3, 2, 5, 5)]))
    grams, found = kernels.optimal_grams_of_starts(starts, g, y, steps=300, **options)
    np.testing.assert_allclose(grams[0], alone, rtol=1e-10)
    np.testing.assert_allclose(found.value, one.value, rtol=1e-10)
    assert (found.gradient <= 1e-9).all()
    assert found.steps[1] != found.steps[0]
    np.testing.assert_allclose(grams[1], alone, rtol=1e-5)
    _, short = kernels.optimal_grams_of_starts(starts, g, y, steps=0, **options)
    assert short.value[1] > short.value[0] > found.value[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "types",
    [
        ("float32", "float32"),
        ("float32", "float64"),
        ("float64", "float32"),
        ("bfloat16", "bfloat16"),
    ],
)
def test_matrices_and_targets_of_any_types_are_widened_to_one(normal, types):
    mixed = [
        jnp.asarray(np.asarray(one, own)) for one, own in zip(matrices(normal), types, strict=True)
    ]
    wide = "float64" if "float64" in types else "float32"
    same = [np.asarray(one).astype(wide) for one in mixed]
    options = dict(kernel=SE, noise=0.2, width=3.0, steps=3)
    starts = jnp.asarray(np.full((2, 2, 5, 5), 0.1, mixed[0].dtype))
    calls = {
        "alone": lambda g, y: kernels.optimal_grams(g, y, depth=2, **options)[0],
        "starts": lambda g, y: kernels.optimal_grams_of_starts(starts, g, y, **options)[0],
        "closed": lambda g, y: closed(g, y),
        "slope": lambda g, y: slopes(g, y)[0],
        "slope of targets": lambda g, y: slopes(g, y)[1],
    }
    for name, call in calls.items():
        found = call(*mixed)
        expected = call(*(jnp.asarray(one.astype("float64")) for one in same))
        if "slope" not in name and name != "closed":
            assert found.dtype == wide
        half = types[0] == "bfloat16" and "slope" in name  # a gradient has its argument's type
        found = np.asarray(found, float)
        np.testing.assert_allclose(found, expected, rtol=0.01 if half else 1e-3, err_msg=name)


@jax.jit
def closed(g, y):
    return kernels.deep_linear_grams(g, y, jnp.full(2, 4.0))


@jax.jit
@partial(jax.grad, argnums=(0, 1))
def slopes(g, y):
    return kernels.log_marginal_likelihood(g, y, noise=jnp.float64(0.2))


@pytest.mark.slow
def test_the_memory_of_steps_changes_the_course_and_not_its_end(normal):
    g, y = matrices(normal)
    options = dict(kernel=SE, noise=0.2, width=3.0, depth=2)
    alone, found = kernels.optimal_grams(g, y, **options)
    grams, short = kernels.optimal_grams(g, y, memory=2, **options)
    np.testing.assert_allclose(grams, alone, rtol=1e-5)
    assert found.converged
    assert short.converged
    assert short.steps > found.steps


@pytest.mark.slow
def test_steps_one_by_one_are_those_of_a_minimisation():
    target, scale = np.array([3.0, -1.0, 0.5]), np.array([1.0, 20.0, 3.0])

    def loss(params):
        return jnp.sum((params["a"] - target) ** 2 * scale)

    def slope(params):
        return 2 * (np.asarray(params["a"]) - target) * scale

    start, optimizer = {"a": np.zeros(3)}, optax.lbfgs(memory_size=2)
    advance = jax.jit(lambda course: kernels.advance(loss, course, optimizer))
    minimize = jax.jit(
        lambda start, steps: kernels.minimize(
            loss, start, steps=steps, tolerance=0.0, optimizer=optimizer
        )
    )
    course = jax.jit(lambda start: kernels.begin(loss, start, optimizer))(start)
    assert course.value == (target**2 * scale).sum()
    np.testing.assert_array_equal(course.gradient["a"], slope(start))
    for count in (1, 2, 3):
        course = advance(course)
        assert course.step == count
        found = minimize(start, count)
        np.testing.assert_allclose(course.params["a"], found.params["a"], rtol=1e-9)
        np.testing.assert_allclose(course.value, found.value, rtol=1e-9)
        np.testing.assert_allclose(course.gradient["a"], slope(course.params))


def test_a_course_has_the_types_with_which_a_step_ends():
    """Where they differ, weakly typed numbers included, a step is compiled twice."""
    optimizer = optax.lbfgs(memory_size=2)

    def loss(params):
        return jnp.sum((params - 2.0) ** 2)

    start = jax.eval_shape(lambda x: kernels.begin(loss, x, optimizer), jnp.zeros(3))
    after = jax.eval_shape(lambda course: kernels.advance(loss, course, optimizer), start)
    first, last = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), own)
        for own in (start, after)
    )
    assert first == last


def test_inducing_rows_are_as_many_of_each_class_in_their_order():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [20, 6, 10]))
    rows = kernels.inducing_rows(labels, 11, classes=3, seed=5)
    np.testing.assert_array_equal(labels[rows], [0] * 4 + [1] * 4 + [2] * 3)
    assert len(set(rows)) == 11
    np.testing.assert_array_equal(rows, kernels.inducing_rows(labels, 11, classes=3, seed=5))
    assert (rows != kernels.inducing_rows(labels, 11, classes=3, seed=6)).any()
    # Two more than the classes: the first two have them, and none goes without.
    ten = np.repeat(np.arange(10), 5)
    rows = kernels.inducing_rows(ten, 12, classes=10, seed=5)
    np.testing.assert_array_equal(np.bincount(ten[rows]), [2, 2] + [1] * 8)
    few = kernels.inducing_rows(labels, 30, classes=3, seed=5)
    np.testing.assert_array_equal(np.bincount(labels[few]), [10, 6, 10])
