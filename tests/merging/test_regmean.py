"""RegMean against least squares in float64, and inner products of inputs against their layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.merging import input_grams, merge, regmean
from rml.models import Conv, ViT

RNG = np.random.default_rng(4)
N = 3
# A kernel of one layer, one of two stacked layers from heads, and leaves that are averaged.
SHAPES = {
    "dense": {"kernel": (4, 5), "bias": (5,)},
    "blocks": {"out": {"kernel": (2, 3, 2, 4), "bias": (2, 4)}},
}


def of_shapes(function):
    return jax.tree.map(function, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


BASE = of_shapes(lambda shape: jnp.asarray(RNG.normal(size=shape), jnp.float32))
EXPERTS = of_shapes(lambda shape: RNG.normal(size=(N, *shape)))
# Inputs of each model, of different sizes and with means; rows of each kernel's own width.
X = {
    "dense.kernel": [RNG.normal(0.5, i + 1, size=(9, 4)) for i in range(N)],
    "blocks.out.kernel": [RNG.normal(0.3, 2 - i / 2, size=(2, 11, 6)) for i in range(N)],
}
GRAMS = {
    name: np.stack([x.swapaxes(-1, -2) @ x / x.shape[-2] for x in each]) for name, each in X.items()
}
WEIGHTS = np.array([0.2, 0.5, 0.3])
MERGE = jax.jit(regmean, static_argnames=("averaged", "ridge"))


def as_jax(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def merged(grams=GRAMS, experts=EXPERTS, **options):
    options = {"ridge": 0.0, "weights": jnp.full(N, 1 / N), "alpha": 0.9} | options
    return MERGE(BASE, as_jax(experts), grams=as_jax(grams), **options)


def of_least_squares(xs, kernels, alpha, weights):
    """The kernel of least error, from rows of inputs and, for the rest, of their diagonals."""
    left, right = [], []
    for x, kernel, weight in zip(xs, kernels, weights, strict=True):
        root = np.sqrt(weight / len(x))
        rows = [np.sqrt(alpha) * root * x]
        rows.append(np.sqrt(1 - alpha) * root * np.diag(np.linalg.norm(x, axis=0)))
        left += rows
        right += [own @ kernel for own in rows]
    return np.linalg.lstsq(np.concatenate(left), np.concatenate(right), rcond=None)[0]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("weights", [np.full(N, 1 / N), WEIGHTS])
def test_a_merged_kernel_has_the_least_error_on_all_inputs(alpha, weights):
    found = merged(alpha=alpha, weights=jnp.asarray(weights, jnp.float32))
    own = EXPERTS["dense"]["kernel"]
    wanted = of_least_squares(X["dense.kernel"], own, alpha, weights)
    assert np.abs(wanted - np.tensordot(weights, own, 1)).max() > 0.1
    np.testing.assert_allclose(found["dense"]["kernel"], wanted, rtol=1e-4, atol=1e-4)
    for layer in range(2):
        own = EXPERTS["blocks"]["out"]["kernel"][:, layer].reshape(N, 6, 4)
        xs = [x[layer] for x in X["blocks.out.kernel"]]
        wanted = of_least_squares(xs, own, alpha, weights)
        kernel = found["blocks"]["out"]["kernel"][layer].reshape(6, 4)
        np.testing.assert_allclose(kernel, wanted, rtol=1e-4, atol=1e-4)
    for name in ("dense", "blocks"):
        bias = jax.tree.leaves(found[name])[0]
        wanted = np.tensordot(weights, jax.tree.leaves(EXPERTS[name])[0], 1)
        np.testing.assert_allclose(bias, wanted, atol=1e-6)


def close(found, wanted, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, wanted)


@pytest.mark.slow
def test_limits_of_a_merge():
    mean = jax.tree.map(lambda leaf: leaf.mean(0), EXPERTS)
    first = jax.tree.map(lambda leaf: leaf[0], EXPERTS)
    same = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], leaf.shape), EXPERTS)
    equal = {name: np.broadcast_to(gram[:1], gram.shape) for name, gram in GRAMS.items()}
    for ridge in (0.0, 1e-2):
        close(merged(equal, ridge=ridge), mean)
        close(merged(experts=same, ridge=ridge), first)
    close(merged(weights=jnp.asarray([1.0, 0.0, 0.0])), first, 1e-4)
    close(merged({name: 0 * gram for name, gram in GRAMS.items()}), mean)
    close(merged(averaged="kernel$"), mean)
    close(merged({name: 1e-9 * gram for name, gram in GRAMS.items()}), merged(), 1e-4)
    partly = merged({"dense.kernel": GRAMS["dense.kernel"]}, averaged=r"^blocks\.")
    close(partly["blocks"], mean["blocks"])
    close(partly["dense"], merged()["dense"])


@pytest.mark.slow
def test_inputs_that_lie_apart_keep_both_models_and_dead_ones_their_average():
    """Models read axes 0 and 1, and axis 2, so that both are kept; nothing reads axis 3."""
    xs = np.zeros((2, 7, 4))
    xs[0, :, :2], xs[1, :, 2] = RNG.normal(size=(7, 2)), RNG.normal(size=7)
    own = RNG.normal(size=(2, 4, 5))
    grams = {"w": np.einsum("nsi,nsj->nij", xs, xs) / 7}
    found = regmean({"w": jnp.zeros((4, 5))}, as_jax({"w": own}), grams=as_jax(grams), alpha=1.0)
    wanted = np.stack([own[0, 0], own[0, 1], own[1, 2], own[:, 3].mean(0)])
    np.testing.assert_allclose(found["w"], wanted, atol=1e-3)


def test_a_ridge_draws_towards_the_average():
    gram, own = GRAMS["dense.kernel"] * WEIGHTS[:, None, None], EXPERTS["dense"]["kernel"]
    mean, total = np.tensordot(WEIGHTS, own, 1), gram.sum(0)
    added = 0.3 * np.trace(total) / 4 * np.eye(4)
    wanted = np.linalg.solve(total + added, np.einsum("nij,njm->im", gram, own) + added @ mean)
    found = merged(ridge=0.3, alpha=1.0, weights=jnp.asarray(WEIGHTS))
    np.testing.assert_allclose(found["dense"]["kernel"], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_matrices_that_are_nearly_singular_leave_what_they_do_not_see():
    x = RNG.normal(size=(2, 2, 6))
    own = RNG.normal(size=(2, 6, 5))
    gram = np.einsum("nsi,nsj->nij", x, x) / 2
    found = regmean({"w": jnp.zeros((6, 5))}, as_jax({"w": own}), grams=as_jax({"w": gram}),
                    alpha=1.0)["w"]  # fmt: skip
    mean = own.mean(0)
    wanted = mean + np.linalg.pinv(gram.sum(0), rcond=1e-9) @ np.einsum(
        "nij,njm->im", gram, own - mean
    )
    np.testing.assert_allclose(found, wanted, atol=0.02)
    # Four rows of inputs and six weights: every model is kept on its own.
    np.testing.assert_allclose(x @ np.asarray(found), x @ own, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.1}, "alpha is 1.1, expected a number from 0 to 1"),
        ({"alpha": -0.1}, "alpha is -0.1, expected"),
        ({"alpha": float("nan")}, "alpha is nan, expected"),
        ({"ridge": -1.0}, "ridge is -1.0, expected"),
        ({"averaged": "("}, "averaged is '\\(', expected a regular expression"),
        ({"grams": {}}, "grams has no matrix for 'blocks.out.kernel', expected one for every"),
        ({"grams": []}, "grams is empty"),
        ({"grams": GRAMS | {"dense.x": GRAMS["dense.kernel"]}}, "matrix for 'dense.x', the base"),
        ({"grams": GRAMS | {"dense.bias": np.ones((N, 5, 5))}}, "'dense.bias', expected none"),
        (
            {"grams": GRAMS | {"dense.kernel": np.ones((N, 5, 5))}},
            r"grams has \[3, 5, 5\] for 'dense.kernel', expected \[3, 4, 4\]: its leaf is \[4, 5\]",
        ),
        (
            {"grams": GRAMS | {"blocks.out.kernel": np.ones((N, 6, 6))}},
            r"has \[3, 6, 6\] .*, expected \[3, 2, 3, 3\] or \[3, 2, 6, 6\]: its leaf is",
        ),
        ({"grams": {k: v[:2] for k, v in GRAMS.items()}}, "expected one of each for every expert"),
    ],
)
def test_what_gives_no_merge_is_named(options, message):
    options = {"grams": GRAMS} | options
    options["grams"] = as_jax(options["grams"])
    with pytest.raises(UserError, match=message):
        merge("regmean", BASE, as_jax(EXPERTS), **options)


def test_models_without_any_matrix_are_told_of_the_average():
    for base, grams, own in (
        ({"scale": jnp.ones(3)}, {}, {}), ({"scale": jnp.ones(3)}, [{}, {}], {}),
        ({"kernel": jnp.ones((3, 3))}, {}, {"averaged": "kernel"}),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"grams has no matrix, .* method 'weighted_average'"):
            merge("regmean", base, [base, base], grams=grams, **own)


@pytest.mark.slow
def test_lists_of_matrices_are_stacked_and_each_is_checked():
    each = [{name: gram[i] for name, gram in as_jax(GRAMS).items()} for i in range(N)]
    options = {"alpha": 0.6, "ridge": 0.0}
    close(merge("regmean", BASE, as_jax(EXPERTS), grams=each, **options), merged(alpha=0.6))
    del each[1]["dense.kernel"]
    with pytest.raises(UserError, match=r"grams\[1\] has no matrix for 'dense.kernel'"):
        merge("regmean", BASE, as_jax(EXPERTS), grams=each)
    # What is averaged needs no matrix, from any of them.
    found = merge("regmean", BASE, as_jax(EXPERTS), grams=each, averaged="dense", **options)
    close(found["blocks"], merged(alpha=0.6)["blocks"])
    each[1]["dense.kernel"] = jnp.full((4, 4), jnp.nan)
    with pytest.raises(UserError, match=r"leaf 'dense.kernel' of grams\[1\] holds NaN"):
        merge("regmean", BASE, as_jax(EXPERTS), grams=each)


class Pooled(nn.Module):
    """A layer of tokens that is applied twice, and a head of their mean."""

    @nn.compact
    def __call__(self, x, mask):
        layer = nn.Dense(3, use_bias=False, name="tokens")
        x = layer(layer(x))
        x = jnp.sum(x * mask[..., None], axis=1) / jnp.sum(mask, axis=1, keepdims=True)
        return nn.Dense(2, name="head")(x)


def test_rows_of_text_count_and_padding_does_not():
    x = RNG.normal(size=(2, 3, 4, 3))  # two batches of three texts of four tokens
    mask = np.arange(4) < RNG.integers(1, 5, (2, 3, 1))
    kernel, head = RNG.normal(size=(3, 3)), RNG.normal(size=(3, 2))
    params = as_jax({"tokens": {"kernel": kernel}, "head": {"kernel": head, "bias": np.zeros(2)}})
    collect = jax.jit(lambda p, *given: input_grams(Pooled(), {"params": p}, *given, mask=given[1]))
    found = collect(params, as_jax(x), mask)
    rows = x[mask]
    rows = np.concatenate([rows, rows @ kernel])
    pooled = (x @ kernel @ kernel * mask[..., None]).sum(2) / mask.sum(2, keepdims=True)
    assert set(found) == {"tokens.kernel", "head.kernel"}
    np.testing.assert_allclose(found["tokens.kernel"], rows.T @ rows / len(rows), rtol=1e-5)
    pooled = pooled.reshape(-1, 3)
    np.testing.assert_allclose(found["head.kernel"], pooled.T @ pooled / 6, rtol=1e-4)
    bad = np.where(mask[..., None], x, 100.0)
    np.testing.assert_allclose(collect(params, as_jax(bad), mask)["tokens.kernel"],
                               found["tokens.kernel"], rtol=1e-6)  # fmt: skip
    for empty in (as_jax(x[:0]), as_jax(x[:, :0])):
        with pytest.raises(UserError, match="hold no example"):
            input_grams(Pooled(), {"params": params}, empty)
    with pytest.raises(
        ValueError, match=r"mask is \(2, 3, 3\), expected one of tokens \(2, 3, 4\)"
    ):
        input_grams(Pooled(), {"params": params}, as_jax(x), mask=jnp.asarray(mask[..., :3]))


@pytest.mark.parametrize("padding", ["SAME", 1, ((0, 2), (1, 0))])
def test_a_convolution_is_linear_in_its_patches(padding):
    module = Conv(3, (3, 2), (2, 1), padding, use_bias=False)
    x, kernel = RNG.normal(size=(1, 2, 6, 5, 2)), RNG.normal(size=(3, 2, 2, 3))
    variables = as_jax({"params": {"kernel": kernel}})
    (gram,) = input_grams(module, variables, as_jax(x)).values()
    y = np.asarray(module.apply(variables, as_jax(x)[0]), np.float64).reshape(-1, 3)
    flat = kernel.reshape(12, 3)
    np.testing.assert_allclose(flat.T @ gram @ flat, y.T @ y / len(y), rtol=1e-4, atol=1e-4)
    grouped = Conv(4, 3, groups=2)
    variables = {"params": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.zeros(4)}}
    assert input_grams(grouped, variables, as_jax(x)) == {}


@pytest.mark.slow
def test_blocks_of_a_transformer_have_a_matrix_for_each_layer():
    sizes = {"width": 8, "depth": 2, "heads": 2, "mlp_ratio": 2, "patch_size": 4}
    module = ViT(**sizes, pooling="gap", positions="sincos2d")
    images = jnp.asarray(RNG.normal(size=(2, 2, 8, 8, 1)), jnp.float32)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), images[0]))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(RNG.normal(0, 0.5, leaf.shape), jnp.float32), shapes
    )
    found = jax.jit(lambda v, x: input_grams(module, v, x))(variables, images)
    _, kept = jax.jit(
        lambda v, x: module.apply(v, x, capture_intermediates=True, mutable=["intermediates"])
    )(variables, images.reshape(4, 8, 8, 1))
    blocks = kept["intermediates"]["blocks"]
    hidden = blocks["mlp_in"]["__call__"][0]
    query, key, value = (np.asarray(y, np.float64) for y in blocks["qkv"]["__call__"][0])
    logits = np.einsum("lbthk,lbshk->lbhts", query, key) / 2
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = {
        "qkv": blocks["norm1"]["__call__"][0], "mlp_in": blocks["norm2"]["__call__"][0],
        "mlp_out": jax.nn.gelu(hidden, approximate=False),
        "out": np.einsum("lbhts,lbshk->lbthk", share, value),
    }  # fmt: skip
    for name, x in wanted.items():
        rows = np.asarray(x, np.float64).reshape(2, 16, -1)
        gram = np.einsum("lsi,lsj->lij", rows, rows) / 16
        np.testing.assert_allclose(found[f"blocks.{name}.kernel"], gram, rtol=1e-4, atol=1e-5)
    patches = np.asarray(images).reshape(4, 2, 4, 2, 4).swapaxes(2, 3).reshape(16, 16)
    np.testing.assert_allclose(found["patches.kernel"], patches.T @ patches / 16, rtol=1e-5,
                               atol=1e-6)  # fmt: skip
    assert len(found) == 5
    # Every kernel has its matrix, and models of one inputs are merged to their average.
    experts = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), variables["params"])
    both = {name: jnp.stack([gram, gram]) for name, gram in found.items()}
    close(merge("regmean", variables["params"], experts, grams=both),
          jax.tree.map(lambda x: 1.5 * x, variables["params"]), 1e-4)  # fmt: skip
