"""What a loss returns reaches the state and the log, with a momentum encoder as without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.training import Loss, build_optimizer, gradient_task, momentum_task

RATE, MOMENTUM = 0.25, 0.75
OPTIMIZER = dict(
    name="sgd", learning_rate=RATE, schedule="constant", warmup_steps=0, final_scale=0.0,
    weight_decay=0.0, momentum=0.0, b2=0.999, clip_norm=0.0, accumulate=1, ema_decay=0.0,
)  # fmt: skip
START, BATCH = np.array([1.0, -2.0, 3.0], np.float32), np.array([0.5, 0.0, -1.0], np.float32)


def loss(params, state, batch):
    difference = params["w"] - batch
    return Loss(
        jnp.sum(difference**2) / 2,
        metrics={"largest": jnp.max(difference)},
        model_state={"seen": {"count": state.model_state["seen"]["count"] + 2}},
        extra={"last": params["w"]},
    )


def around(loss):
    return dict(
        init_variables=lambda key: {"params": {"w": START}, "seen": {"count": jnp.zeros(())}},
        loss=loss, optimizer=build_optimizer(OPTIMIZER, steps=4), batches=lambda: None,
        evaluate=lambda state: {}, batch_spec=jax.ShapeDtypeStruct((3,), jnp.float32),
    )  # fmt: skip


def with_momentum(loss):
    return momentum_task(
        momentum=lambda step: MOMENTUM + 0 * step, averaged=("w",),
        extra=lambda key: {"last": jnp.zeros(3)}, **around(loss),
    )  # fmt: skip


def plain(loss):
    return gradient_task(extra=lambda key, variables: {"last": jnp.zeros(3)}, **around(loss))


@pytest.mark.parametrize("build", [plain, with_momentum])
def test_a_loss_changes_the_state_and_logs_what_it_says(build):
    task = build(loss)
    state, metrics = jax.jit(task.step)(task.init(jax.random.key(0)), BATCH)
    moved = START - RATE * (START - BATCH)
    np.testing.assert_allclose(state.params["w"], moved, rtol=1e-6)
    assert float(metrics["largest"]) == 4.0
    assert float(metrics["loss"]) == pytest.approx(((START - BATCH) ** 2).sum() / 2)
    assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(START - BATCH))
    assert float(metrics["learning_rate"]) == RATE
    assert float(state.model_state["seen"]["count"]) == 2.0
    np.testing.assert_array_equal(state.extra["last"], START)
    assert int(state.step) == 1
    if build is with_momentum:
        assert float(metrics["momentum"]) == MOMENTUM
        average = MOMENTUM * START + (1 - MOMENTUM) * moved
        np.testing.assert_allclose(state.extra["momentum"]["params"]["w"], average, rtol=1e-6)


@pytest.mark.parametrize("build", [plain, with_momentum])
def test_what_a_loss_leaves_out_stays(build):
    task = build(lambda params, state, batch: Loss(jnp.sum(params["w"] * batch)))
    before = task.init(jax.random.key(0))
    state, _ = jax.jit(task.step)(before, BATCH)
    assert float(state.model_state["seen"]["count"]) == 0.0
    np.testing.assert_array_equal(state.extra["last"], before.extra["last"])


def test_every_draw_has_a_key_of_its_own():
    def draw(key):
        return jax.random.uniform(key, (3,))

    options = around(lambda params, state, batch: Loss(jnp.sum(params["w"] * batch)))
    options |= {"init_variables": lambda key: {"params": {"w": draw(key)}}}
    alone = gradient_task(**options).init(jax.random.key(0))
    beside = gradient_task(**options, extra=lambda key, variables: {"last": draw(key)})
    state = beside.init(jax.random.key(0))
    drawn = [alone.params["w"], draw(alone.step_key), state.params["w"], state.extra["last"]]
    drawn += [draw(state.replace(step=1).step_key), draw(state.key)]
    assert len({float(one[0]) for one in drawn}) == len(drawn)


def test_rates_and_momenta_are_those_of_the_step_that_is_made():
    options = around(lambda params, state, batch: Loss(jnp.sum(params["w"] * batch)))
    warm = {**OPTIMIZER, "warmup_steps": 2, "learning_rate": 1.0}
    options |= {"optimizer": build_optimizer(warm, steps=4)}
    task = momentum_task(momentum=lambda step: 0.5 + 0.25 * step, averaged=("w",), **options)
    state = task.init(jax.random.key(0))
    for step in range(2):
        state, metrics = task.step(state, BATCH)
        assert float(metrics["learning_rate"]) == 0.5 * step
        assert float(metrics["momentum"]) == 0.5 + 0.25 * step


def test_the_moving_average_follows_the_parameters_after_the_update():
    decay = 0.75
    optimizer = build_optimizer({**OPTIMIZER, "ema_decay": decay}, steps=4)
    task = gradient_task(
        **{**around(lambda params, state, batch: loss(params, state, batch)._replace(extra={}))}
        | {"optimizer": optimizer}
    )
    state, average = task.init(jax.random.key(0)), START
    for _ in range(2):
        state, _ = task.step(state, BATCH)
        average = decay * average + (1 - decay) * np.asarray(state.params["w"])
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-6)


def test_averages_move_where_gathered_gradients_move_the_parameters():
    settings = {**OPTIMIZER, "ema_decay": 0.75}
    found = []
    for accumulate in (1, 2):
        options = around(lambda params, state, batch: Loss(jnp.sum(params["w"] ** 2 * batch)))
        options |= {"optimizer": build_optimizer(settings | {"accumulate": accumulate}, steps=6)}
        task = momentum_task(momentum=lambda step: 0.5 + 0 * step, averaged=("w",), **options)
        state = task.init(jax.random.key(0))
        for _ in range(3 * accumulate):
            state, _ = task.step(state, BATCH)
        found.append((state.params, state.ema_params, state.extra["momentum"]["params"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *found)
    assert np.abs(found[0][0]["w"] - found[0][2]["w"]).max() > 0.1


def test_averages_of_half_precision_move_by_steps_that_it_would_round_away():
    options = around(lambda params, state, batch: Loss(jnp.sum(params["w"] * batch)))
    settings = {**OPTIMIZER, "ema_decay": 0.999}
    options |= {
        "init_variables": lambda key: {"params": {"w": jnp.asarray(START, jnp.bfloat16)}},
        "optimizer": build_optimizer(settings, steps=20),
    }
    task = momentum_task(momentum=lambda step: 0.999 + 0 * step, averaged=("w",), **options)
    state, average, step = task.init(jax.random.key(0)), START, jax.jit(task.step)
    for _ in range(20):
        state, _ = step(state, BATCH)
        average = 0.999 * average + 0.001 * np.asarray(state.params["w"], np.float64)
    for moved in (state.ema_params, state.extra["momentum"]["params"]):
        np.testing.assert_allclose(moved["w"], average, rtol=1e-5)
    assert state.inference_params["w"].dtype == state.params["w"].dtype == jnp.bfloat16


def test_variables_are_those_of_the_average_and_of_a_loss_its_own():
    task = plain(loss)
    state = task.init(jax.random.key(0)).replace(ema_params={"w": 2 * START})
    np.testing.assert_array_equal(state.variables["params"]["w"], 2 * START)
    np.testing.assert_array_equal(state.training_variables({"w": BATCH})["params"]["w"], BATCH)
    assert state.variables["seen"] is state.model_state["seen"]
