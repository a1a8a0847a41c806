import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.models import HeadEdits, Llama, generate, rope
from rml.models.attention import attend
from rml.models.generate import read_in_chunks
from rml.models.generate_together import written
from rml.ops.attention_parts import Visible
from tests.models.applied import apply

SMALL = {"vocabulary": 20, "width": 16, "depth": 2, "heads": 4, "mlp": 24, "kv_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (3, 6)), jnp.int32)
LENGTHS = jnp.array([6, 4, 1])
RIGHT = jnp.arange(6) < LENGTHS[:, None]  # padding on the right
LEFT = jnp.arange(6) >= 6 - LENGTHS[:, None]


@pytest.fixture(scope="module")
def variables():
    """Parameters large enough that every part shows."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(Llama(**SMALL).init, jax.random.key(0), TOKENS))
    return jax.tree.map(
        lambda leaf: jax.device_put((0.4 * rng.normal(size=leaf.shape)).astype(leaf.dtype)), shapes
    )


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_reading_through_a_cache_equals_reading_at_once(variables):
    module = Llama(**SMALL, rope_scaling=LLAMA3)
    read = jax.jit(lambda *x: module.apply(variables, *x))
    further = jax.jit(lambda *x, cache: module.apply(variables, *x, cache=cache))
    for mask in (jnp.ones_like(RIGHT), RIGHT, LEFT):
        whole = np.asarray(read(TOKENS, mask))
        cache = module.init_cache(3, 6)
        parts = []
        for part in np.s_[:2, 2:4, 4:]:
            states = further(TOKENS[:, part], mask[:, part], cache=cache)
            cache = states.cache
            parts.append(states.last)
        close(np.concatenate(parts, 1)[mask], whole[mask])
        assert cache.length == 6
        np.testing.assert_array_equal(cache.mask, mask)
        # Without room it gives NaN rather than another text.
        more = further(TOKENS[:, :2], mask[:, :2], cache=cache)
        assert np.isnan(more.last).all()


@pytest.mark.slow
def test_no_token_sees_a_later_one(variables):
    module = Llama(**SMALL)
    a = apply(module, variables, TOKENS, return_attention=True)
    b = apply(module, variables, TOKENS.at[:, 4:].set(3), return_attention=True)
    np.testing.assert_array_equal(a.last[:, :4], b.last[:, :4])
    assert np.abs(a.last[:, 4:] - b.last[:, 4:]).max() > 0.01
    np.testing.assert_array_equal(a.attention, np.tril(a.attention))


@pytest.mark.slow
def test_padding_on_either_side_changes_no_text(variables):
    module = Llama(**SMALL)
    for mask, start in ((RIGHT, 0), (LEFT, 2)):
        y = apply(module, variables, TOKENS, mask)
        assert np.isfinite(y).all()
        part = slice(start, start + 4)
        close(y[1, part], apply(module, variables, TOKENS[1:2, part])[0])
    nothing = apply(module, variables, TOKENS, jnp.zeros_like(RIGHT))
    assert np.isfinite(nothing).all()


@pytest.mark.slow
def test_padding_does_not_make_a_text_longer(variables):
    """Where rotations are slower the longer a text is."""
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    module = Llama(**SMALL, rope_scaling=scaling, positions=3)
    for mask, start in ((RIGHT, 0), (LEFT, 2)):
        part = slice(start, start + 4)
        y = apply(module, variables, TOKENS[1:2], mask[1:2])
        close(y[:, part], apply(module, variables, TOKENS[1:2, part]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 3.0],
         "original_max_position_embeddings": 4},
    ],
)  # fmt: skip
def test_a_text_is_read_as_alone_beside_a_longer_one(variables, scaling):
    module = Llama(**SMALL, rope_scaling=scaling, positions=4)
    y = apply(module, variables, TOKENS[:2], RIGHT[:2])
    close(y[1, :4], apply(module, variables, TOKENS[1:2, :4])[0])
    close(y[0], apply(module, variables, TOKENS[:1])[0])
    # The longer one is beyond the length from which rotations are slower.
    assert np.abs(y[0] - apply(Llama(**SMALL), variables, TOKENS[:1])[0]).max() > 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (3, 7), (2, 6)])
def test_positions_of_another_shape_are_refused(unchecked, shape):
    with pytest.raises(ValueError, match=r"positions have shape .* expected that of tokens"):
        jax.eval_shape(
            lambda x: Llama(**SMALL).init(jax.random.key(0), x, positions=jnp.zeros(shape)), TOKENS
        )


@pytest.mark.slow
def test_a_text_that_is_shorter_than_a_chunk_is_read(variables):
    module = Llama(**SMALL)
    hidden, cache = read_in_chunks(
        module, variables, TOKENS, cache=module.init_cache(3, 6), chunk=9
    )
    close(hidden, apply(module, variables, TOKENS))
    assert int(cache.length) == 6


@pytest.mark.slow
def test_grouped_queries_equal_repeated_heads(variables):
    repeated = {**variables["params"]}
    attention = dict(repeated["blocks"]["attention"])
    for name in ("key", "value"):
        kernel = attention[name]["kernel"]
        attention[name] = {"kernel": np.repeat(kernel, 2, axis=-2)}
    repeated["blocks"] = {**repeated["blocks"], "attention": attention}
    full = Llama(**{**SMALL, "kv_heads": None})
    close(
        apply(Llama(**SMALL), variables, TOKENS),
        apply(full, {"params": repeated}, TOKENS),
    )


@pytest.mark.slow
def test_scan_loop_and_remat_agree_in_values_gradients_and_cache(variables):
    params = variables["params"]
    loop = {name: tree for name, tree in params.items() if name != "blocks"}
    for i in range(2):
        loop[f"block{i}"] = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], params["blocks"])

    def run(params, **options):
        module = Llama(**SMALL, **options)

        def loss(params):
            cache = module.init_cache(3, 6)
            states = module.apply({"params": params}, TOKENS, cache=cache, return_hidden=True)
            return jnp.sum(states.last**3), states

        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss, has_aux=True))(params))

    gradient, states = run(params)
    for options, other in (({"remat": True}, params), ({"scan": False}, loop)):
        found, other_states = run(other, **options)
        jax.tree.map(close, states, other_states)
        stacked = found["blocks"] if "remat" in options else None
        for i in range(2):
            block = jax.tree.map(lambda leaf, i=i: leaf[i], gradient["blocks"])
            mine = jax.tree.map(lambda leaf, i=i: leaf[i], stacked) if stacked else None
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3),
                block,
                mine or found[f"block{i}"],
            )


def test_rotated_products_depend_on_displacement_alone():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
    frequency = rope.frequencies(8, 10_000.0)

    def product(i, j):
        at = [jnp.array([[n]]) for n in (i, j)]
        a, b = (rope.rotate(x, p, frequency) for x, p in zip((query, key), at, strict=True))
        return float(jnp.sum(a * b))

    assert product(3, 1) == pytest.approx(product(40, 38), rel=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), rel=1e-2)
    turned = rope.rotate(query, jnp.array([[17]]), frequency)
    np.testing.assert_allclose(jnp.linalg.norm(turned), jnp.linalg.norm(query), rtol=1e-6)
    np.testing.assert_array_equal(rope.rotate(query, jnp.array([[0]]), frequency), query)


@pytest.mark.slow
def test_positions_may_start_anywhere_and_be_interpolated(variables):
    module = Llama(**SMALL)
    plain = apply(module, variables, TOKENS)
    close(apply(module, variables, TOKENS, positions=5 + jnp.arange(6)[None]), plain)
    quarter = apply(module, variables, TOKENS, positions=jnp.arange(6)[None] / 4)
    assert np.abs(quarter - plain).max() > 0.01
    linear = Llama(**SMALL, rope_scaling={"type": "linear", "factor": 4.0})
    close(apply(linear, variables, TOKENS), quarter)


def test_rope_scalings():
    plain = np.asarray(rope.frequencies(16, 100.0))
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    short, long = (
        np.asarray(rope.frequencies(16, 100.0, scaling=dynamic, trained=32, length=n))
        for n in (20, 64)
    )
    np.testing.assert_allclose(short, plain, rtol=1e-6)
    # The slowest pair is stretched by the whole ratio, 2 * 64 / 32 - 1, the fastest not at all.
    np.testing.assert_allclose(plain[-1] / long[-1], 3.0, rtol=1e-4)
    assert long[0] == plain[0]
    found = np.asarray(rope.frequencies(16, 100.0, scaling=LLAMA3))
    wavelength = 2 * np.pi / plain
    assert np.allclose(found[wavelength < 4], plain[wavelength < 4])
    assert np.allclose(found[wavelength > 16], plain[wavelength > 16] / 8)
    between = (wavelength > 4) & (wavelength < 16)
    assert between.any()
    assert np.all((found < plain)[between] & (found > plain / 8)[between])


@pytest.mark.slow
def test_hooks(variables):
    plain = apply(Llama(**SMALL), variables, TOKENS, return_hidden=True)
    shape = (2, 4, 4)
    one = HeadEdits(scale=jnp.ones(shape).at[1, 3].set(2.0))
    edited = apply(Llama(**SMALL), variables, TOKENS, edits=one, return_hidden=True)
    np.testing.assert_array_equal(plain.hidden[:2], edited.hidden[:2])
    assert np.abs(plain.hidden[2] - edited.hidden[2]).max() > 0.01
    seen = []

    def spy(query, key, value, visible):
        seen.append(visible)
        return attend(query, key, value, visible)[0], None

    states = apply(Llama(**SMALL, attention=spy), variables, TOKENS, return_attention=True)
    assert states.attention is None
    close(states.last, plain.last)
    assert set(seen) == {Visible(causal=True)}
    relu = apply(Llama(**SMALL, activation="relu"), variables, TOKENS)
    assert np.abs(relu - plain.last).max() > 1e-3


@pytest.mark.slow
def test_bfloat16_compute_with_float32_parameters(variables):
    module = Llama(**SMALL, dtype=jnp.bfloat16)
    states = apply(module, variables, TOKENS, return_attention=True)
    full = apply(Llama(**SMALL), variables, TOKENS)
    assert states.last.dtype == module.init_cache(1, 1).key.dtype == jnp.bfloat16
    assert states.attention.dtype == jnp.float32
    assert apply(module, variables, states.last, method="logits").dtype == jnp.float32
    assert np.linalg.norm(np.float32(states.last) - full) / np.linalg.norm(full) < 0.05


def continued(module, variables, tokens, steps):
    """Greedy continuation that reads the whole text anew for every token."""
    start = tokens.shape[1]
    tokens = np.pad(tokens, ((0, 0), (0, steps)))  # no token sees a later one
    for at in range(start, start + steps):
        tokens = add(module, variables, tokens, at)
    return np.asarray(tokens)[:, start:]


@functools.partial(jax.jit, static_argnums=0)
def add(module, variables, tokens, at):
    hidden = module.apply(variables, tokens)[:, at - 1]
    new = jnp.argmax(module.apply(variables, hidden, method="logits"), axis=-1)
    return tokens.at[:, at].set(new)


@pytest.mark.slow
def test_generation_equals_recomputation(variables):
    module = Llama(**SMALL)
    truth = continued(module, variables, TOKENS, 5)
    assert len(np.unique(truth)) > 2  # a text, not one token over and over
    np.testing.assert_array_equal(generate(module, variables, TOKENS, steps=5), truth)
    ragged = [continued(module, variables, TOKENS[1:2, s], 5) for s in np.s_[:4, 2:]]
    for mask, expected in zip((RIGHT, LEFT), ragged, strict=True):
        found = generate(module, variables, TOKENS, mask, steps=5)
        np.testing.assert_array_equal(found[1], expected[0])


@pytest.mark.slow
def test_generation_stops_and_draws(variables):
    module = Llama(**SMALL)
    truth = np.asarray(generate(module, variables, TOKENS, steps=5))
    stop = int(truth[0, 1])
    found = np.asarray(generate(module, variables, TOKENS, steps=5, stop=stop))
    first = list(truth[0]).index(stop)
    assert np.all(found[0, first:] == stop)
    np.testing.assert_array_equal(found[0, : first + 1], truth[0, : first + 1])
    options = {"steps": 5, "key": jax.random.key(0)}
    many = jnp.tile(TOKENS, (40, 1))
    cold = generate(module, variables, many, temperature=1e-4, **options)
    np.testing.assert_array_equal(cold, np.tile(truth, (40, 1)))
    hot = np.asarray(generate(module, variables, many, temperature=50.0, **options))
    counts = np.bincount(np.asarray(hot).ravel(), minlength=20)
    # Near uniform: 600 draws of 20 tokens, 30 each with a standard deviation of about 5.3.
    assert counts.min() > 5
    assert counts.max() < 60
    assert np.mean(hot[:, 1:] == hot[:, :-1]) < 0.15  # each token is drawn anew


@pytest.mark.slow
def test_another_temperature_or_stop_compiles_nothing_anew(variables):
    def drawn(temperature, stop):
        options = {"temperature": temperature, "stop": stop, "key": jax.random.key(0)}
        return generate(Llama(**SMALL), variables, TOKENS, steps=4, **options)

    whole = np.asarray(drawn(0.5, 20))  # which no text has
    programs = written._cache_size()
    stopped = np.asarray(drawn(0.5, int(whole[0, 0])))
    assert np.all(stopped[0] == whole[0, 0])
    assert np.any(np.asarray(drawn(50.0, 20)) != whole)
    assert written._cache_size() == programs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_heads": 3}, "kv_heads=3 must divide heads=4"),
        ({"width": 18}, "heads=4 must divide width=18"),
        ({"head_width": 5}, "even width, got 5"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "unknown rope scaling 'ntk'"),
        ({"window": 0}, "window=0, expected at least 1"),
        ({"window": -2, "windowed": [True, False]}, "window=-2, expected at least 1"),
        ({"windowed": [True, False]}, "windowed is given without a window"),
        ({"window": 3, "windowed": [True]}, "windowed has 1 entries for depth=2"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "'linear' needs 'factor'"),
        ({"rope_scaling": {"type": "yarn"}}, "'yarn' needs 'factor'"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "'yarn' has factor=0.5, expected at"),
    ],
)
def test_misuse(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Llama(**{**SMALL, **options}).init, jax.random.key(0), TOKENS)


def test_misuse_of_caches_and_generation(variables):
    module = Llama(**SMALL)
    with pytest.raises(ValueError, match=r"shape \(3, 5\) has no room for .* \(3, 6\)"):
        jax.eval_shape(
            functools.partial(module.apply, cache=module.init_cache(3, 5)), variables, TOKENS
        )
    dynamic = Llama(**SMALL, positions=8, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ValueError, match="a cache of 9 tokens is longer than the 8 of training"):
        jax.eval_shape(
            functools.partial(dynamic.apply, cache=dynamic.init_cache(3, 9)), variables, TOKENS
        )
    with pytest.raises(ValueError, match="needs a key"):
        generate(module, variables, TOKENS, steps=1, temperature=1.0)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature must be finite .*, got {wrong}"):
            generate(module, variables, TOKENS, steps=1, temperature=wrong, key=jax.random.key(0))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        generate(module, variables, TOKENS, steps=0)
