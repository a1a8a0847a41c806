"""The momentum encoder's average and the schedules of its momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.training.momentum import momentum_schedule, update_momentum


def tree(seed, head=4):
    rng = np.random.default_rng(seed)
    return {
        "params": {
            "encoder": {"kernel": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32)},
            "head": {"bias": jnp.asarray(rng.standard_normal(head), jnp.float32)},
        }
    }


def test_is_the_weighted_sum_after_many_steps():
    """After n steps towards constant variables the average is m^n of the first plus the rest."""
    first, online, momentum, steps = tree(0), tree(1), 0.9, 7

    @jax.jit
    def run(average):
        return jax.lax.fori_loop(
            0, steps, lambda _, a: update_momentum(a, online, momentum), average
        )

    share = momentum**steps
    jax.tree.map(
        lambda got, a, b: np.testing.assert_allclose(
            got, share * np.float64(a) + (1 - share) * np.float64(b), rtol=1e-5, atol=1e-6
        ),
        run(first), first, online,
    )  # fmt: skip


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.999, 1.0])
def test_an_average_at_its_target_stays_to_the_bit(momentum):
    moved = update_momentum(tree(0), tree(0), momentum)
    jax.tree.map(np.testing.assert_array_equal, moved, tree(0))


def test_limits_keep_or_copy():
    jax.tree.map(np.testing.assert_array_equal, update_momentum(tree(0), tree(1), 1.0), tree(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        update_momentum(tree(0), tree(1), 0.0), tree(1),
    )  # fmt: skip


def test_what_the_average_lacks_is_left_out():
    online = tree(1)
    online["params"]["predictor"] = {"kernel": jnp.ones((2, 2))}
    online["batch_stats"] = {"mean": jnp.zeros(3)}
    moved = update_momentum(tree(0), online, 0.5)
    jax.tree.map(np.testing.assert_array_equal, moved, update_momentum(tree(0), tree(1), 0.5))


def test_variables_that_do_not_fit():
    with pytest.raises(ValueError, match="lack 'head'"):
        update_momentum(tree(0), {"params": {"encoder": tree(0)["params"]["encoder"]}}, 0.5)
    with pytest.raises((ValueError, TypeError)):
        update_momentum(tree(0, head=4), tree(0, head=5), 0.5)


def test_passes_no_gradient_to_the_trained_variables():
    def total(online):
        return sum(x.sum() for x in jax.tree.leaves(update_momentum(tree(0), online, 0.5)))

    assert all(np.all(x == 0) for x in jax.tree.leaves(jax.grad(total)(tree(1))))


def test_half_precision_stays():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree(0))
    moved = update_momentum(half, tree(1), jnp.float32(0.5))
    assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype(jnp.bfloat16)}


def test_cosine_rises_from_its_start_to_one():
    steps, start = 200, 0.99
    schedule = jax.jit(momentum_schedule("cosine", momentum=start, steps=steps))
    t = np.arange(steps + 1)
    expected = 1 - (1 - start) * (np.cos(np.pi * t / steps) + 1) / 2
    got = np.array([schedule(i) for i in t])
    np.testing.assert_allclose(got, expected, atol=1e-7)
    assert got[0] == np.float32(start)
    assert got[-1] == 1
    assert schedule(5 * steps) == 1
    assert np.all(np.diff(got) >= 0)


def test_constant_stays():
    schedule = momentum_schedule("constant", momentum=0.999, steps=10)
    assert schedule(0) == schedule(10) == np.float32(0.999)


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_a_momentum_may_be_an_array_of_one_of_many_runs(name):
    starts = jnp.array([0.0, 0.9, 0.999])
    found = jax.jit(jax.vmap(lambda m: momentum_schedule(name, momentum=m, steps=10)(4)))(starts)
    expected = [momentum_schedule(name, momentum=float(m), steps=10)(4) for m in starts]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "momentum", "steps", "message"),
    [
        ("cosin", 0.9, 10, "'cosin'; did you mean 'cosine'"),
        ("cosine", 1.1, 10, r"in \[0, 1\], got 1.1"),
        ("constant", -0.1, 10, "got -0.1"),
        ("cosine", 0.9, 0, "at least 1, got 0"),
    ],
)
def test_wrong_schedules(name, momentum, steps, message):
    with pytest.raises(ValueError, match=message):
        momentum_schedule(name, momentum=momentum, steps=steps)
