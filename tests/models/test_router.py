"""The router against its formula in NumPy, and its training against Adam-W by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.errors import UserError
from rml.models import Router, learn_router, route

RNG = np.random.default_rng(1)


def test_weights_are_the_softmax_of_the_largest_logits():
    logits = jnp.asarray([[1.0, 3.0, 2.0], [0.5, -1.0, 0.5]])
    whole = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(route(logits), whole, rtol=1e-5)
    two = np.exp([3.0, 2.0]) / np.exp([3.0, 2.0]).sum()
    np.testing.assert_allclose(route(logits, top=2), [[0, *two], [0.5, 0, 0.5]], rtol=1e-5)
    assert route(logits, top=1).tolist() == [[0, 1, 0], [1, 0, 0]]
    for top in (0, 4):
        with pytest.raises(ValueError, match=f"top is {top}, expected 1 to the 3 experts"):
            route(logits, top=top)


def test_logits_are_those_of_the_formula():
    x = RNG.normal(size=(3, 2))
    router = Router(experts=5)
    shapes = nn.unbox(jax.eval_shape(router.init, jax.random.key(0), jnp.asarray(x)))
    values = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape), shapes)
    params, stats = values["params"], values["batch_stats"]
    y = x
    for i in range(2):
        layer, norm, seen = params[f"dense{i}"], params[f"norm{i}"]["bn"], stats[f"norm{i}"]["bn"]
        assert layer["bias"].shape == (4,)
        seen["var"] **= 2
        y = y @ layer["kernel"] + layer["bias"]
        y = (y - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * norm["scale"] + norm["bias"]
        assert (y < 0).any()
        y = np.where(y > 0, y, 0.01 * y)
    exact = y @ params["out"]["kernel"] + params["out"]["bias"]
    found = router.apply(jax.tree.map(jnp.asarray, values), jnp.asarray(x))
    np.testing.assert_allclose(found, exact, rtol=1e-4)


@pytest.mark.slow
def test_training_drops_hidden_values_out():
    router, x = Router(experts=2, layers=1, hidden=64, dropout=0.5), jnp.ones((4, 3))
    variables = router.init(jax.random.key(0), x)
    given = jnp.asarray(RNG.normal(size=(4, 3)))
    one, other = (
        router.apply(
            variables, given, train=True, rngs={"dropout": jax.random.key(i)},
            mutable=["batch_stats"],
        )[0]
        for i in (0, 1)
    )  # fmt: skip
    assert (one != other).any()


@pytest.mark.slow
def test_steps_are_those_of_adamw_at_a_rate_that_falls():
    x, tasks = jnp.asarray(RNG.normal(size=(8, 3))), jnp.asarray([0, 1] * 4)
    router = Router(experts=2, layers=1, hidden=4, dropout=0.0)
    key = jax.random.key(2)
    # Every epoch is one step on all inputs. Labels that no logit has make all accuracies zero: of
    # these the first epoch is kept, and losses show the steps after it.
    found = jax.jit(
        lambda none: learn_router(
            router, key, x, tasks, (x, none), epochs=3, learning_rate=0.1, weight_decay=0.3
        )
    )(jnp.full(8, -1))
    variables = nn.unbox(router.init(jax.random.split(key, 3)[0], x[:2]))
    optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=0.1, weight_decay=0.3)
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    state = optimizer.init(params)

    def loss(params, rest):
        logits, changed = router.apply({"params": params, **rest}, x, train=True, mutable=[*rest])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tasks[:, None], axis=1)
        return -jnp.mean(chosen), changed

    losses = []
    for number, rate in enumerate((0.1, 0.2 / 3, 0.1 / 3)):
        (value, rest), slopes = jax.value_and_grad(loss, has_aux=True)(params, rest)
        losses.append(value)
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        updates, state = optimizer.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        if number == 0:
            first = params
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    assert found.accuracy.tolist() == [0, 0, 0]
    for layer, name in (("dense0", "kernel"), ("out", "kernel"), ("out", "bias")):
        kept = found.variables["params"][layer][name]
        np.testing.assert_allclose(kept, first[layer][name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_best_epoch_on_validation_is_kept_and_clusters_are_told_apart():
    centers = 3 * RNG.normal(size=(3, 4))
    tasks = np.arange(66) % 3
    x = centers[tasks] + RNG.normal(size=(66, 4))
    router, key = Router(experts=3, hidden=8, dropout=0.2), jax.random.key(0)

    @jax.jit
    def learn(validation):
        return learn_router(
            router, key, jnp.asarray(x), jnp.asarray(tasks), validation, epochs=12, batch_size=16,
            learning_rate=0.02,
        )  # fmt: skip

    # Where validation has the tasks in other places, training makes it worse.
    for labels, rising in ((tasks, True), ((tasks + 1) % 3, False)):
        validation = (jnp.asarray(x), jnp.asarray(labels))
        found = learn(validation)
        own = router.apply(found.variables, validation[0]).argmax(1) == validation[1]
        assert float(own.mean()) == pytest.approx(float(found.accuracy.max()))
        if rising:
            assert found.accuracy.max() > 0.9
            assert found.losses[-1] < 0.5 * found.losses[0]
        else:
            assert found.accuracy[-1] < found.accuracy.max()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"validation": (jnp.zeros((0, 3)), jnp.zeros(0, int))},
            r"validation features are \[0, 3\]",
        ),
        ({"features": jnp.zeros((0, 3)), "tasks": jnp.zeros(0, int)}, r"features are \[0, 3\]"),
        ({"features": jnp.zeros((1, 3)), "tasks": jnp.zeros(1, int)}, "expected at least 2"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"batch_size": 1}, "batch_size is 1, expected at least 2"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 2"),
        ({"features": jnp.ones((4, 3)).at[3, 1].set(jnp.nan)}, "the array of features holds NaN"),
        (
            {"validation": (jnp.full((1, 3), jnp.inf), jnp.zeros(1, int))},
            "the array of validation features holds NaN",
        ),
    ],
)
def test_inputs_that_teach_or_choose_nothing_are_named(given, said):
    whole = {"features": jnp.ones((4, 3)), "tasks": jnp.asarray([0, 1, 0, 1]),
             "validation": (jnp.ones((1, 3)), jnp.zeros(1, int))}  # fmt: skip
    with pytest.raises(UserError, match=said):
        learn_router(Router(experts=2), jax.random.key(0), **whole | given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tasks": jnp.array([0, 1, 0])}, r"tasks \(3,\) as \[n\]"),
        ({"tasks": jnp.array([0])}, r"tasks \(1,\) as \[n\]"),
        ({"tasks": jnp.array([0, 1, 2, 0])}, "tasks must lie between 0 and 1, .* from 0 to 2"),
        ({"tasks": jnp.array([0, 1, -1, 0])}, "tasks must lie between 0 and 1, .* from -1 to 1"),
        (
            {"validation": (jnp.ones((3, 3)), jnp.zeros(1, int))},
            r"validation_tasks \(1,\) as \[m\]",
        ),
        (
            {"validation": (jnp.ones((1, 2)), jnp.zeros(1, int))},
            r"validation_features \(1, 2\) as \[m, d\]",
        ),
        (
            {"validation": (jnp.ones((1, 3)), jnp.array([2]))},
            "validation tasks must lie between 0 and 1, .* from 2 to 2",
        ),
    ],
)
def test_tasks_that_are_not_an_expert_of_each_input_are_refused(unchecked, given, said):
    whole = {"features": jnp.ones((4, 3)), "tasks": jnp.asarray([0, 1, 0, 1]),
             "validation": (jnp.ones((1, 3)), jnp.zeros(1, int))}  # fmt: skip
    with pytest.raises(ValueError, match=said):
        learn_router(Router(experts=2), jax.random.key(0), **whole | given)


@pytest.mark.slow
def test_a_router_without_hidden_layers_learns():
    features = jnp.asarray([[2.0, 0.0], [0.0, 2.0]] * 10)
    tasks = jnp.asarray([0, 1] * 10)
    found = learn_router(
        Router(experts=2, layers=0), jax.random.key(0), features=features, tasks=tasks,
        validation=(features, tasks), epochs=20, batch_size=10, learning_rate=0.1,
    )  # fmt: skip
    assert set(found.variables) == {"params"}
    assert found.accuracy[-1] == 1
