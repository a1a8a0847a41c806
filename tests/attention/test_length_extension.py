import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.attention import interpolated_positions, pose_positions, sample_positions
from rml.models import Llama, rope

KEY = jax.random.key(3)
sample = jax.jit(
    sample_positions, static_argnums=(1, 2),
    static_argnames=("window", "largest", "least", "sinks", "offset"),
)  # fmt: skip


@pytest.mark.slow
def test_scale_and_offset_follow_the_law_of_the_paper():
    length, window, largest, sinks = 24, 32, 5, 3
    found = np.asarray(
        sample(KEY, 20_000, length, window=window, largest=largest, sinks=sinks),
        np.float64,
    )
    g = np.rint(1 / (found[:, 1] - found[:, 0]))
    m = np.arange(length)
    t = found * g[:, None] - m
    np.testing.assert_allclose(t[:, :sinks], 0, atol=1e-4)
    np.testing.assert_allclose(t[:, sinks:], t[:, -1:].repeat(length - sinks, 1), atol=1e-4)
    moved = np.rint(t[:, -1])
    for scale in range(1, largest + 1):
        own = moved[g == scale]
        assert len(own) / len(g) == pytest.approx(1 / largest, abs=0.015)
        most = scale * window - length
        assert (own.min(), own.max()) == (0, most)
        # Mean of a uniform draw on 0 to most, five standard errors wide.
        assert own.mean() == pytest.approx(most / 2, abs=5 * most / np.sqrt(12 * len(own)) + 1e-9)
    assert found.max() < window


@pytest.mark.slow
def test_without_its_parts_it_is_plain_training_or_interpolation():
    plain = np.arange(10, dtype=np.float32)[None].repeat(2, 0)
    np.testing.assert_array_equal(sample(KEY, 2, 10, window=10, largest=1), plain)
    fixed = sample(KEY, 2, 10, window=8, least=3, largest=3, offset=False)
    np.testing.assert_array_equal(
        fixed, interpolated_positions(10, window=8, scale=3.0).repeat(2, 0)
    )
    # Whole windows follow the length: 17 tokens are three windows of 8.
    np.testing.assert_allclose(
        interpolated_positions(17, window=8)[0], np.arange(17) / 3, rtol=1e-6
    )
    np.testing.assert_array_equal(interpolated_positions(8, window=8), plain[:1, :8])
    np.testing.assert_array_equal(interpolated_positions(3, window=8), plain[:1, :3])


@pytest.mark.slow
def test_four_first_tokens_stay_unless_others_are_said_to():
    found = np.asarray(sample(KEY, 64, 9, window=16, least=2, largest=2)) * 2
    moved = found - np.arange(9)
    np.testing.assert_array_equal(moved[:, :4], 0)
    np.testing.assert_array_equal(moved[:, 4:], moved[:, 4:5].repeat(5, 1))
    assert len(np.unique(moved[:, 4])) > 10


@pytest.mark.slow
def test_padding_on_either_side_takes_no_positions():
    mask = jnp.asarray([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9, [1, 1, 1, 1, 1, 1, 1, 0, 0]], bool)
    whole = np.asarray(interpolated_positions(9, window=4, scale=3.0)[0])
    found = np.asarray(interpolated_positions(9, window=4, scale=3.0, mask=mask))
    drawn = np.asarray(sample(KEY, 3, 9, window=9, largest=5, sinks=2, mask=mask))
    same = np.asarray(sample(KEY, 3, 9, window=9, largest=5, sinks=2))
    for row, text in enumerate(np.asarray(mask)):
        np.testing.assert_array_equal(found[row, text], whole[: text.sum()])
        np.testing.assert_array_equal(drawn[row, text], same[row, : text.sum()])
    np.testing.assert_allclose(interpolated_positions(9, window=4, mask=mask), found)


@pytest.mark.slow
def test_dividing_positions_is_linear_scaling_of_frequencies():
    x = jax.random.normal(KEY, (1, 40, 2, 16))
    linear = rope.frequencies(16, 1e4, scaling={"rope_type": "linear", "factor": 5.0})
    rotate = jax.jit(rope.rotate)
    np.testing.assert_allclose(
        rotate(x, interpolated_positions(40, window=8), rope.frequencies(16, 1e4)),
        rotate(x, jnp.arange(40.0)[None], linear),
        atol=2e-5,
    )


@pytest.fixture(scope="module")
def model():
    module = Llama(vocabulary=30, width=16, depth=2, heads=2, mlp=32, positions=8)
    tokens = jax.random.randint(KEY, (2, 12), 0, 30)
    # Weights large enough that attention is far from uniform.
    params = jax.tree.map(lambda leaf: 8 * leaf, jax.jit(module.init)(KEY, tokens))
    read = jax.jit(lambda positions: module.apply(params, tokens, positions=positions))
    return read


@pytest.mark.slow
def test_an_offset_acts_through_the_first_tokens_alone(model):
    draw = dict(window=16, least=2, largest=2)
    still = model(sample(KEY, 2, 12, offset=False, **draw))
    moved = model(sample(KEY, 2, 12, sinks=0, **draw))
    np.testing.assert_allclose(moved, still, atol=1e-4)
    sinks = model(sample(KEY, 2, 12, sinks=4, **draw))
    np.testing.assert_allclose(sinks[:, :4], still[:, :4], atol=1e-5)
    assert np.abs(np.asarray(sinks - still))[:, 4:].max() > 1e-2


@pytest.mark.slow
def test_pose_skips_between_pieces_and_stays_within_the_scale():
    length, window, scale, pieces = 12, 8, 4, 3
    draw = dict(window=window, scale=scale, pieces=pieces)
    run = jax.jit(lambda key: pose_positions(key, 4000, length, **draw))
    found = np.asarray(run(KEY), np.float64) * scale
    steps = np.diff(found, axis=1)
    assert (found[:, 0] == 0).all()
    assert (steps >= 1).all()
    assert ((steps > 1).sum(axis=1) <= pieces - 1).all()
    # Both skips are there unless a draw gives the least that it may.
    both = sum(1 - 1 / k for k in range(1, 21)) / 21
    assert ((steps > 1).sum(axis=1) == pieces - 1).mean() == pytest.approx(both, abs=0.03)
    last = found[:, -1] - (length - 1)
    assert (last.min(), last.max()) == (0, scale * window - length)
    # The first skip is uniform on 0 to 20, the second from there on: mean 20 · 3 / 4.
    assert last.mean() == pytest.approx(15, abs=0.5)
    cuts = (steps > 1).mean(axis=0)
    assert cuts == pytest.approx(cuts.mean(), abs=0.03)
    np.testing.assert_array_equal(
        pose_positions(KEY, 1, length, window=12, scale=2, pieces=1)[0], np.arange(length) / 2
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_positions(KEY, 1, 8, window=8, largest=0), "scales are 1 to 0"),
        (lambda: sample_positions(KEY, 1, 9, window=8, largest=4), "length=9, expected 1 to 8"),
        (lambda: sample_positions(KEY, 1, 8, window=8, largest=2, sinks=-1), "sinks=-1"),
        (lambda: interpolated_positions(8, window=8, scale=0.5), "scale=0.5, expected at least 1"),
        (lambda: interpolated_positions(8, window=0), "window=0, expected at least 1"),
        (lambda: interpolated_positions(8, window=-2, scale=2.0), "window=-2, expected at least 1"),
        (
            lambda: interpolated_positions(8, window=4, mask=jnp.ones((2, 7), bool)),
            r"mask has shape \(2, 7\), expected length=8",
        ),
        (lambda: pose_positions(KEY, 1, 8, window=8, scale=0), "scale=0, expected at least 1"),
        (lambda: pose_positions(KEY, 1, 8, window=8, scale=2, pieces=9), "pieces=9"),
        (lambda: pose_positions(KEY, 1, 8, window=3, scale=2), "length=8, expected 1 to 6"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
