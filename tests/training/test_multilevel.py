import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rml.errors import UserError
from rml.models import Bert, Llama, MaskedLMHead, ViT, transformer_sizes
from rml.training import multilevel
from rml.training.multilevel import (
    Level,
    Phase,
    coalesce,
    decoalesce,
    groups_of,
    interpolate,
    start_of_phase,
    unit_groups,
    v_cycle,
)

RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 11, (2, 6)), jnp.int32)
IMAGES = jnp.asarray(RNG.normal(size=(3, 8, 8, 1)), jnp.float32)


def llama(scale=1, depth=4, **options):
    return Llama(
        vocabulary=11, width=8 * scale, depth=depth, heads=4 * scale, kv_heads=2 * scale,
        head_width=4, mlp=6 * scale, **options,
    )  # fmt: skip


def drawn(module, *inputs, seed=0):
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    return jax.tree.map(
        lambda leaf: np.asarray(0.3 + 0.4 * rng.normal(size=leaf.shape), np.float32), shapes
    )


def logits(module, params):
    def apply(params):
        hidden = module.apply({"params": params}, TOKENS)
        return module.apply({"params": params}, hidden, method="logits")

    return jax.jit(apply)(params)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("scheme", ["halves", "neighbours"])
def test_groups_are_parts_or_neighbours(scheme):
    expected = {"halves": [0, 1, 2, 0, 1, 2], "neighbours": [0, 0, 1, 1, 2, 2]}
    np.testing.assert_array_equal(unit_groups(6, 2, scheme), expected[scheme])
    assert (
        unit_groups(6, 3, scheme).tolist()
        == {"halves": [0, 1] * 3, "neighbours": [0] * 3 + [1] * 3}[scheme]
    )


def test_a_small_unit_is_the_mean_of_what_writes_and_the_sum_of_what_reads():
    large = drawn(llama(), TOKENS)
    own = groups_of(large, width=2, depth=2, scheme="neighbours", layer_scheme="halves")
    assert own.kv_heads.tolist() == [0, 0]
    assert own.heads.tolist() == [0, 1, 0, 1]  # two queries of each head of keys
    small = coalesce(large, own)
    kernel = large["blocks"]["mlp_in"]["kernel"].astype(np.float64)
    expected = kernel.reshape(4, 4, 2, 3, 2).sum(2).mean(-1)
    expected = (expected[:2] + expected[2:]) / 2  # layers 0 and 2, 1 and 3
    np.testing.assert_allclose(small["blocks"]["mlp_in"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    kernel = large["blocks"]["attention"]["out"]["kernel"].astype(np.float64)
    expected = (kernel[:, :2] + kernel[:, 2:]).reshape(4, 2, 4, 4, 2).mean(-1)
    expected = (expected[:2] + expected[2:]) / 2
    np.testing.assert_allclose(
        small["blocks"]["attention"]["out"]["kernel"], expected, rtol=1e-5, atol=1e-6
    )
    table = large["tokens"]["embedding"].reshape(11, 4, 2).mean(-1)
    np.testing.assert_allclose(small["tokens"]["embedding"], table, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("width", "depth"), [(2, 2), (1, 4), (2, 1)])
def test_coalescing_what_was_decoalesced_gives_it_back_to_the_bit(width, depth):
    large = drawn(llama(), TOKENS)
    for scheme in multilevel.SCHEMES:
        own = groups_of(large, width=width, depth=depth, scheme=scheme, layer_scheme=scheme)
        small = coalesce(large, own)
        equal(coalesce(decoalesce(small, own), own), small)
        assert jax.tree.map(np.shape, decoalesce(small, own)) == jax.tree.map(np.shape, large)


@pytest.mark.parametrize("tied", [False, True])
def test_decoalescing_in_width_keeps_a_decoders_function(tied):
    small = drawn(llama(tied=tied), TOKENS)
    wide = llama(2, tied=tied)
    larger = transformer_sizes(small).times(width=2)
    own = groups_of(larger, width=2, depth=1, scheme="neighbours")
    large = decoalesce(small, own)
    assert transformer_sizes(large) == larger == transformer_sizes(drawn(wide, TOKENS))
    expected = logits(llama(tied=tied), small)
    np.testing.assert_allclose(logits(wide, large), expected, rtol=2e-4, atol=2e-4)
    # Were the tied table's last norm copied, logits would be twice as large.
    assert np.abs(np.asarray(expected)).max() > 0.5


def test_decoalescing_in_width_keeps_the_function_of_an_encoder_and_its_head():
    """What the head's table and its norm read is shared out; its dense layer reads copies."""

    def bert(scale):
        return Bert(
            vocabulary=11, width=8 * scale, depth=2, heads=2 * scale, mlp=6 * scale, positions=6
        )

    def params(scale):
        return {
            "encoder": drawn(bert(scale), TOKENS),
            "head": drawn(MaskedLMHead(), jnp.zeros((2, 6, 8 * scale)), jnp.zeros((11, 8 * scale))),
        }

    @functools.partial(jax.jit, static_argnums=0)
    def scores(scale, params):
        hidden = bert(scale).apply({"params": params["encoder"]}, TOKENS)
        table = params["encoder"]["tokens"]["embedding"]
        return MaskedLMHead().apply({"params": params["head"]}, hidden, table)

    small = params(1)
    larger = transformer_sizes(small).times(width=2)
    large = decoalesce(small, groups_of(larger, width=2, depth=1))
    assert jax.tree.map(np.shape, large) == jax.tree.map(np.shape, params(2))
    expected = scores(1, small)
    assert np.abs(np.asarray(expected - expected.mean(-1, keepdims=True))).max() > 0.5
    np.testing.assert_allclose(scores(2, large), expected, rtol=5e-4, atol=5e-4)


def test_copied_layers_change_the_function():
    small = drawn(llama(depth=2), TOKENS)
    deep = llama(depth=4)
    own = groups_of(drawn(deep, TOKENS), width=1, depth=2)
    change = logits(deep, decoalesce(small, own)) - logits(llama(depth=2), small)
    assert np.abs(np.asarray(change)).max() > 1e-2


def test_copies_get_equal_gradients_until_they_are_interpolated():
    def vit(scale):
        return ViT(width=8 * scale, depth=1, heads=2 * scale, mlp_ratio=2, patch_size=4, classes=3)

    small, wide = drawn(vit(1), IMAGES), vit(2)
    before = drawn(wide, IMAGES, seed=1)
    own = groups_of(before, width=2, depth=1)
    again = decoalesce(small, own)

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            scores = wide.apply({"params": params}, IMAGES)
            labels = jnp.array([0, 1, 2])
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

        return jax.value_and_grad(loss)(params)

    def of_copies(alpha):
        _, gradient = loss_and_gradient(interpolate(before, again, alpha))
        kernel = np.asarray(gradient["blocks"]["mlp_in"]["kernel"])[0]
        return kernel[:, :16], kernel[:, 16:]

    np.testing.assert_allclose(*of_copies(1.0), rtol=1e-3, atol=1e-6)
    first, second = of_copies(0.5)
    assert np.abs(first - second).max() > 0.1 * np.abs(first).max()
    expected = jax.jit(vit(1).apply)({"params": small}, IMAGES)
    kept = jax.jit(wide.apply)({"params": again}, IMAGES)
    np.testing.assert_allclose(kept, expected, rtol=2e-4, atol=2e-4)


def test_other_numbers_of_the_same_groups_change_nothing_large():
    large = drawn(llama(), TOKENS)
    own = groups_of(large, width=2, depth=2)
    other = own._replace(stream=3 - own.stream, mlp=2 - own.mlp, layers=1 - own.layers)
    small, permuted = coalesce(large, own), coalesce(large, other)
    kernel, same = (tree["blocks"]["mlp_in"]["kernel"] for tree in (small, permuted))
    np.testing.assert_allclose(same, kernel[::-1, ::-1, ::-1], rtol=1e-5, atol=1e-6)
    again, equally = decoalesce(small, own), decoalesce(permuted, other)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again, equally
    )


def test_interpolation_lies_between_its_ends():
    first, second = {"a": np.array([1.0, 2.0])}, {"a": np.array([5.0, -2.0])}
    np.testing.assert_allclose(interpolate(first, second, 0.25)["a"], [2.0, 1.0])
    np.testing.assert_array_equal(interpolate(first, second, 0.0)["a"], first["a"])
    np.testing.assert_array_equal(interpolate(first, second, 1.0)["a"], second["a"])
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=f"alpha={alpha}, expected a share from 0 to 1"):
            interpolate(first, second, alpha)
    with pytest.raises(UserError, match=r"leaf 'a' of the large model again is \[3\]"):
        interpolate(first, {"a": np.ones(3)}, 0.5)


def test_a_cycle_goes_down_and_up_again():
    levels = [Level(5, 40, 1.0), Level(4, 30, 2.0), Level(0, 20, 3.0)]
    assert v_cycle(levels) == (
        Phase(0, "start", 5, 1.0), Phase(1, "coalesce", 4, 2.0), Phase(2, "coalesce", 20, 3.0),
        Phase(1, "decoalesce", 30, 2.0), Phase(0, "decoalesce", 40, 1.0),
    )  # fmt: skip
    growth = [Level(0, 40, 1.0), Level(0, 20, 3.0)]
    assert v_cycle(growth) == (Phase(1, "start", 20, 3.0), Phase(0, "decoalesce", 40, 1.0))
    assert v_cycle([Level(0, 9, 1.0)]) == (Phase(0, "start", 9, 1.0),)


def test_a_phase_starts_from_what_the_one_before_it_left():
    large = drawn(llama(), TOKENS)
    own = groups_of(large)
    small = coalesce(large, own)
    assert start_of_phase(Phase(0, "start", 1, 1.0), None, {}, [own], alpha=0.5) is None
    equal(start_of_phase(Phase(1, "coalesce", 1, 1.0), large, {}, [own], alpha=0.5), small)
    back = Phase(0, "decoalesce", 1, 1.0)
    equal(start_of_phase(back, small, {}, [own], alpha=0.5), decoalesce(small, own))
    kept = start_of_phase(back, small, {0: large}, [own], alpha=0.25)
    equal(kept, interpolate(large, decoalesce(small, own), 0.25))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unit_groups(5, 2), "5 units cannot be grouped by 2"),
        (lambda: unit_groups(4, 2, "thirds"), "unknown scheme 'thirds'"),
        (lambda: v_cycle([]), "levels is empty"),
        (lambda: v_cycle([Level(1, 1, 1.0)]), "levels have steps"),
        (lambda: groups_of(drawn(llama(), TOKENS), width=4), "heads of keys and values: 2 units"),
        (lambda: groups_of(drawn(llama(), TOKENS), depth=3), "layers: 4 units"),
    ],
)
def test_what_cannot_be_grouped_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_groups_of_another_model_name_the_leaf_and_both_shapes():
    large = drawn(llama(), TOKENS)
    own = groups_of(large)
    with pytest.raises(UserError, match=r"gate/kernel of shape \(4, 8, 6\) .* of shape \(4, 2\)"):
        coalesce(large, own._replace(mlp=unit_groups(4)))
    with pytest.raises(UserError, match="expected every number below 4"):
        coalesce(large, own._replace(stream=np.array([0, 1, 3, 3, 0, 1, 1, 0])))
