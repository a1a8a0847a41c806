"""The last blocks of a ViT against its own tokens and against a block in NumPy."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from rml.distillation import last_blocks, through_teacher
from rml.models import ViT

WIDTH, DEPTH, HEADS = 6, 3, 2


@cache
def teacher(scan):
    """A ViT with drawn variables, and its stages and features of images."""
    module = ViT(
        width=WIDTH, depth=DEPTH, heads=HEADS, mlp_ratio=2, patch_size=4, pooling="gap", scan=scan
    )
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((2, 8, 8, 1)), jnp.float32)
    template = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), images))
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(-0.6, 0.6, x.shape), x.dtype), template
    )
    found = jax.jit(lambda v, x: module.apply(v, x, stages=True))(variables, images)
    return module, variables, found


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_the_teachers_own_tokens_become_its_features(scan):
    module, variables, found = teacher(scan)

    @jax.jit
    def run(variables, stages):
        return [through_teacher(module, variables, x, start=i + 1) for i, x in enumerate(stages)]

    for tokens in run(variables, found.stages):
        np.testing.assert_allclose(tokens.mean(1), found.features, rtol=1e-5, atol=1e-6)
    # Blocks differ, and so does what they make of one input.
    first, second, _ = run(variables, (found.stages[0],) * 3)
    assert np.abs(first - second).max() > 0.05


def block(params, x, i):
    """A pre-norm block and the last norm, in float64."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf[i], np.float64), params["blocks"])

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * np.asarray(p["scale"], np.float64) + np.asarray(p["bias"], np.float64)

    q, k, v = np.moveaxis(
        np.einsum("btd,dphk->bpthk", norm(x, own["norm1"]), own["qkv"]["kernel"])
        + own["qkv"]["bias"][:, None], 1, 0,
    )  # fmt: skip
    weights = np.exp(np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(WIDTH // HEADS))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhts,bshk->bthk", weights, v)
    x = x + np.einsum("bthk,hkd->btd", y, own["out"]["kernel"]) + own["out"]["bias"]
    y = norm(x, own["norm2"]) @ own["mlp_in"]["kernel"] + own["mlp_in"]["bias"]
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    return norm(x + y @ own["mlp_out"]["kernel"] + own["mlp_out"]["bias"], params["norm"])


@pytest.mark.slow
def test_value_and_gradient_are_those_of_the_last_block_and_no_weight_has_one():
    module, variables, _ = teacher(True)
    rng = np.random.default_rng(1)
    tokens, weights, direction = rng.standard_normal((3, 2, 5, WIDTH))

    @jax.jit
    def run(variables, tokens):
        def total(variables, tokens):
            found = through_teacher(module, variables, tokens, start=DEPTH - 1)
            return jnp.sum(found * weights), found

        return jax.value_and_grad(total, (0, 1), has_aux=True)(variables, tokens)

    (_, found), (of_teacher, of_tokens) = run(variables, jnp.asarray(tokens, jnp.float32))
    params = variables["params"]
    np.testing.assert_allclose(found, block(params, tokens, -1), rtol=2e-4, atol=2e-5)
    step = 1e-6
    ends = [np.sum(weights * block(params, tokens + s * step * direction, -1)) for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(np.sum(np.asarray(of_tokens) * direction), slope, rtol=2e-3)
    assert abs(slope) > 0.1
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(of_teacher))


@pytest.mark.slow
def test_a_cut_is_a_teacher_of_the_depth_that_is_left():
    module, variables, _ = teacher(True)
    cut, kept = last_blocks(module, variables, start=1)
    assert cut.depth == DEPTH - 1
    assert set(kept["params"]) == {"blocks", "norm"}
    full = variables["params"]["blocks"]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b[1:]), kept["params"]["blocks"], full
    )
    unrolled, variables, _ = teacher(False)
    _, kept = last_blocks(unrolled, variables, start=1)
    assert set(kept["params"]) == {"block0", "block1", "norm"}
    jax.tree.map(
        np.testing.assert_array_equal, kept["params"]["block0"], variables["params"]["block1"]
    )


def test_other_widths_and_blocks_are_refused():
    module, variables, _ = teacher(True)
    with pytest.raises(ValueError, match=r"\(2, 4, 5\).*6"):
        through_teacher(module, variables, jnp.zeros((2, 4, 5)), start=1)
    with pytest.raises(ValueError, match="start is 4, expected 0 to 3"):
        through_teacher(module, variables, jnp.zeros((2, 4, WIDTH)), start=4)
