"""The projector against its definition and its authors' code, its limits, and what it refuses."""

from functools import cache
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.distillation import CrossAttentionProjector, LinearProjector, mimic

B, H, W, C = 2, 3, 4, 5
GRID, WIDTH, HEADS, SCALE = (2, 3), 6, 2, 1.7
RNG = np.random.default_rng(0)
X, DIRECTION = RNG.standard_normal((2, B, H, W, C))
QUERY = RNG.standard_normal((B, 6, WIDTH))
WEIGHTS = RNG.standard_normal((B, 6, WIDTH))


def projector(scale=SCALE):
    return CrossAttentionProjector(grid=GRID, width=WIDTH, heads=HEADS, scale=scale)


@cache
def variables(given):
    module, query = projector(), jnp.asarray(QUERY) if given else None
    init = lambda key: module.init(key, jnp.asarray(X), query, train=True)  # noqa: E731
    template = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(-0.9, 1.1, x.shape), jnp.float32), template
    )


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def relu(x):
    return np.maximum(x, 0)


def keys_of(p, x, statistics=None):
    """X = ReLU(BN(conv3x3(S))) + positions, with given statistics or those of the batch."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(
        padded[:, i : i + H, j : j + W] @ p["conv"]["kernel"][i, j]
        for i in range(3) for j in range(3)
    ) + p["conv"]["bias"]  # fmt: skip
    mean, var = statistics or (y.mean((0, 1, 2)), y.var((0, 1, 2)))
    y = (y - mean) / np.sqrt(var + 1e-5)
    y = relu(y * p["norm"]["bn"]["scale"] + p["norm"]["bn"]["bias"])
    return (y + p["positions"]).reshape(B, H * W, C)


def reference(p, x, query, scale=SCALE, statistics=None):
    keys = keys_of(p, x, statistics)
    query = np.broadcast_to(p["query"], (B, 6, WIDTH)) if query is None else query
    query = relu(query @ p["query_in"]["kernel"] + p["query_in"]["bias"])
    q, k, v = (
        np.einsum("btd,dhk->bhtk", source, p[name]["kernel"]) + p[name]["bias"][:, None]
        for name, source in (("queries", query), ("keys", keys), ("values", keys))
    )
    logits = np.einsum("bhtk,bhsk->bhts", q, k) * scale / np.sqrt(WIDTH // HEADS)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhts,bhsk,hkd->btd", weights, v, p["out"]["kernel"]) + p["out"]["bias"]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * p["out_norm"]["scale"] + p["out_norm"]["bias"]
    hidden = relu(y @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"])
    return y + hidden @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"], weights


@cache
def compiled(given):
    @jax.jit
    def run(variables, x, query, scale):
        def total(x):
            found, kept = projector(scale).apply(
                variables, x, query if given else None, train=True,
                mutable=["intermediates", "batch_stats"],
            )  # fmt: skip
            return jnp.sum(found * WEIGHTS), (found, kept)

        (_, (found, kept)), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return found, kept, gradient

    return run


def run(given, x=X, query=QUERY, scale=SCALE):
    return compiled(given)(
        variables(given), jnp.asarray(x, jnp.float32), jnp.asarray(query, jnp.float32), scale
    )


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_value_attention_and_gradient_are_those_of_the_definition(given):
    params, query = wide(variables(given)["params"]), QUERY if given else None
    assert ("query" in params) == (not given)
    found, kept, gradient = run(given)
    expected, weights = reference(params, X, query)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(kept["intermediates"]["attention"][0], weights, atol=1e-4)
    step = 1e-6
    ends = [
        np.sum(WEIGHTS * reference(params, X + s * step * DIRECTION, query)[0]) for s in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * DIRECTION), slope, rtol=5e-3)


@pytest.mark.slow
def test_without_scale_a_query_sees_the_mean_and_with_much_one_place():
    _, kept, _ = run(True, scale=0.0)
    np.testing.assert_allclose(kept["intermediates"]["attention"][0], 1 / (H * W), rtol=1e-5)
    found, kept, _ = run(True, scale=1e4)
    weights = np.asarray(kept["intermediates"]["attention"][0])
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert weights.max(-1).min() > 0.95
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_statistics_of_the_batch_are_kept_and_used():
    _, kept, _ = run(True)
    before, after = (wide(v["batch_stats"]) for v in (variables(True), kept))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
    assert min(jax.tree.leaves(moved)) > 1e-3
    given = {"bn": {"mean": jnp.full(C, 0.3), "var": jnp.full(C, 2.5)}}
    own = {**variables(True), "batch_stats": {"norm": given}}
    arrays = (jnp.asarray(x, jnp.float32) for x in (X, QUERY))
    found = jax.jit(projector().apply)(own, *arrays)
    expected, _ = reference(wide(own["params"]), X, QUERY, statistics=(0.3, 2.5))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_linear_maps_are_resized_to_the_grid_and_tokens_are_a_map():
    module = LinearProjector(grid=(3, 4), width=WIDTH)
    kernel, bias = RNG.standard_normal((C, WIDTH)), RNG.standard_normal(WIDTH)
    own = {"params": {"out": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}}
    found = module.apply(own, jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(
        found, (X @ kernel + bias).reshape(B, 12, WIDTH), rtol=1e-4, atol=1e-5
    )
    half = LinearProjector(grid=(1, 2), width=WIDTH)
    square = RNG.standard_normal((B, 1 + 4, C))  # a class token, then two rows of two
    found = half.apply(own, jnp.asarray(square, jnp.float32))
    rows = square[:, 1:].reshape(B, 2, 2, C).mean(1) @ kernel + bias
    np.testing.assert_allclose(found, rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "x", "query", "message"),
    [
        (projector(), (B, 7, C), None, r"square grid of tokens, got shape \(2, 7, 5\)"),
        (projector(), (B, 4, C), (B, 5, WIDTH), r"\(2, 5, 6\), expected \(2, 6, 6\)"),
        (CrossAttentionProjector(GRID, WIDTH, 4), (B, 4, C), None, "heads=4 must divide width=6"),
        (LinearProjector(GRID, WIDTH), (B, C), None, r"got shape \(2, 5\)"),
    ],
)
def test_what_does_not_fit_is_named(module, x, query, message):
    query = None if query is None else jnp.zeros(query)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(x), query)


GOLDEN = np.load(Path(__file__).parent / "golden" / "scalekd.npz")
"""Found in float64 by deep-optimization/ScaleKD at 478a7db, see golden/make_scalekd.py.

Of `FreqMaskingDistillLoss` the tokens of its two `AttentionProjector`, with a table in training and
with given queries afterwards, `get_spat_loss`, `get_freq_loss` and the gradient of their sum.
Inputs and weights were drawn as tenths.
"""


def of_the_authors(flat):
    """Variables of a projector from its weights in the order of theirs."""
    flat = iter(flat)
    take = lambda *shape: np.reshape([next(flat) for _ in range(np.prod(shape))], shape)  # noqa: E731
    dense = lambda d, k: {"kernel": take(k, d).T, "bias": take(k)}  # noqa: E731

    def heads(d):
        whole = dense(d, WIDTH)
        return {name: x.reshape(*x.shape[:-1], HEADS, -1) for name, x in whole.items()}

    params = {
        "positions": take(C, H, W).transpose(1, 2, 0),
        "query_in": dense(WIDTH, WIDTH),
        "conv": {"kernel": take(C, C, 3, 3).transpose(2, 3, 1, 0), "bias": take(C)},
        "norm": {"bn": {"scale": take(C), "bias": take(C)}},
    }
    statistics = {"mean": take(C), "var": take(C)}
    params |= {"queries": heads(WIDTH), "keys": heads(C), "values": heads(C)}
    out = dense(WIDTH, WIDTH)
    params["out"] = out | {"kernel": out["kernel"].reshape(HEADS, -1, WIDTH)}
    params |= {"mlp_in": dense(WIDTH, 4 * WIDTH), "mlp_out": dense(4 * WIDTH, WIDTH)}
    params["out_norm"] = {"scale": take(WIDTH), "bias": take(WIDTH)}
    params["query"] = take(1, 9, WIDTH)
    assert next(flat, None) is None
    return {"params": params, "batch_stats": {"norm": {"bn": statistics}}}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned", "given"])
def test_tokens_losses_and_gradient_are_those_of_the_authors_code(name):
    """Theirs sums over positions, ours is a mean; logits of ours are float32 in any case."""
    given, count = name == "given", 9
    with jax.enable_x64(True):
        x, teacher, query, weights = (
            jnp.asarray(GOLDEN[key] / 10) for key in ("x", "teacher", "query", "weights")
        )
        both = [jax.tree.map(jnp.asarray, of_the_authors(row)) for row in np.asarray(weights)]
        teacher = teacher.reshape(B, WIDTH, count).transpose(0, 2, 1)

        def total(x):
            views = [
                CrossAttentionProjector((3, 3), WIDTH, HEADS, scale).apply(
                    own, x.transpose(0, 2, 3, 1), query if given else None, train=not given,
                    mutable=["batch_stats"],
                )[0]
                for own, scale in zip(both, (5.0, 1.7), strict=True)
            ]  # fmt: skip
            losses = jnp.stack([
                count * weight * mimic(own, teacher, remove_mean=i == 1).mean()
                for i, (own, weight) in enumerate(zip(views, (0.08, 0.06), strict=True))
            ])  # fmt: skip
            return losses.sum(), (jnp.stack(views), losses)

        gradient, (views, losses) = jax.jit(jax.grad(total, has_aux=True))(x)
        assert losses.dtype == jnp.float64
    for key, found in {"views": views, "losses": losses, "gradient": gradient}.items():
        np.testing.assert_allclose(found, GOLDEN[f"{name}_{key}"], rtol=1e-5, atol=1e-6)
