"""Twin-merging against its definition in float64, and its batched form against one model a time."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.merging import (
    Own,
    average,
    load_twin,
    modularise,
    save_twin,
    task_arithmetic,
    ties,
    twin_apply,
    twin_params,
)
from rml.merging import twin as method
from rml.models import Bert, Conv, Router, ViT, route
from rml.models.self_attention import HeadDense
from rml.ops.trees import LowRank

RNG = np.random.default_rng(3)


def drawn(shapes, *lead, scale=0.3):
    return jax.tree.map(
        lambda leaf: RNG.normal(0, scale, (*lead, *leaf.shape)).astype(leaf.dtype), shapes
    )


SHAPES = {
    "dense": {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(4)},
    "blocks": {"heads": {"kernel": jnp.zeros((2, 5, 3, 2)), "bias": jnp.zeros((2, 3, 2))}},
}
BASE, EXPERTS = drawn(SHAPES), drawn(SHAPES, 3, scale=0.2)
# Layers differ in size, so that what is largest in one is not what is largest in both.
for tree, lead in ((BASE, ()), (EXPERTS, (1,))):
    kernel = tree["blocks"]["heads"]["kernel"]
    sizes = np.asarray([1.0, 5.0], np.float32).reshape(*lead, 2, 1, 1, 1)
    tree["blocks"]["heads"]["kernel"] = kernel * sizes
EXPERTS = jax.tree.map(np.add, BASE, EXPERTS)
BASE, EXPERTS = (jax.tree.map(jnp.asarray, own) for own in (BASE, EXPERTS))
WEIGHTS = jnp.asarray([0.5, -0.2, 1.3])


def fine_tuned(shapes, count):
    """A base and models near it."""
    base = drawn(shapes)
    return base, jax.tree.map(np.add, base, drawn(shapes, count, scale=0.2))


modularised = jax.jit(modularise, static_argnames=("compress", "fraction", "excluded"))


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def close(first, second, **options):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-5} | options)),
        first, second,
    )  # fmt: skip


def vectors_of(scale):
    """Exclusive vectors to task arithmetic, whole."""
    shared = jax.tree.map(
        lambda start, own: start + scale * (own - start).sum(0), wide(BASE), wide(EXPERTS)
    )
    return shared, jax.tree.map(lambda own, start: own - start, wide(EXPERTS), shared)


@pytest.mark.slow
def test_svd_keeps_the_best_matrices_of_their_rank_in_every_layer_and_vectors_whole():
    found = modularise(BASE, EXPERTS, scale=0.4, fraction=0.5)
    shared, vectors = vectors_of(0.4)
    close(found.shared, shared)
    whole = twin_params(found.shared, found.exclusive, jnp.asarray([0.0, 1.0, 0.0]))
    matrices = [
        (vectors["dense"]["kernel"][1], whole["dense"]["kernel"] - shared["dense"]["kernel"], 2)
    ]
    stacked = [tree["blocks"]["heads"]["kernel"] for tree in (vectors, whole, shared)]
    matrices += [
        (stacked[0][1, i].reshape(5, 6), (stacked[1] - stacked[2])[i].reshape(5, 6), 2)
        for i in range(2)
    ]
    for exact, kept, rank in matrices:
        assert np.linalg.matrix_rank(kept, tol=1e-4) == rank
        left, values, right = np.linalg.svd(exact)
        np.testing.assert_allclose(
            kept, (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-5
        )  # fmt: skip
        error = np.sum((exact - kept) ** 2)
        assert error == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-4)
    # A bias of heads is a vector, though it has two axes.
    for name in (("dense", "bias"), ("blocks", "heads", "bias")):
        part, exact = found.exclusive, vectors
        for key in name:
            part, exact = part[key], exact[key]
        np.testing.assert_allclose(part, exact, atol=1e-6)


@pytest.mark.slow
def test_masks_keep_the_largest_entries_or_some_by_chance():
    _, vectors = vectors_of(0.3)
    found = modularise(BASE, EXPERTS, compress="magnitude", fraction=0.2).exclusive
    exact, kept = (tree["blocks"]["heads"]["kernel"] for tree in (vectors, found))
    for i in range(3):
        for j in range(2):
            flat = np.abs(exact[i, j]).ravel()
            stays = np.abs(exact[i, j]) >= np.sort(flat)[-6]  # a fifth of 30
            np.testing.assert_allclose(kept[i, j], np.where(stays, exact[i, j], 0), atol=1e-6)
    np.testing.assert_allclose(found["dense"]["bias"], vectors["dense"]["bias"], atol=1e-6)
    key = jax.random.key(0)
    found = modularise(BASE, EXPERTS, compress="drop", fraction=0.25, key=key).exclusive
    for name in ("dense", "blocks"):
        exact, own = (jax.tree.leaves(tree[name])[1] for tree in (vectors, found))
        stays = np.asarray(own) != 0
        assert 0 < stays.mean() < 0.5
        np.testing.assert_allclose(own, np.where(stays, exact / 0.25, 0), rtol=1e-4)
        exact, own = (jax.tree.leaves(tree[name])[0] for tree in (vectors, found))
        np.testing.assert_allclose(own, exact, atol=1e-6)


@pytest.mark.slow
def test_whole_vectors_give_experts_their_average_and_what_is_linear_between():
    found = modularise(BASE, EXPERTS, compress="none", scale=0.2)
    for i, weights in enumerate(np.eye(3)):
        own = twin_params(found.shared, found.exclusive, jnp.asarray(weights))
        close(own, jax.tree.map(lambda leaf, i=i: leaf[i], EXPERTS))
    equal = twin_params(found.shared, found.exclusive, jnp.full(3, 1 / 3))
    close(equal, average(BASE, EXPERTS))
    close(twin_params(found.shared, found.exclusive, jnp.zeros(3)), found.shared, rtol=0, atol=0)
    squeezed = modularise(BASE, EXPERTS, fraction=0.4)
    one, two = (twin_params(*squeezed, w) for w in (WEIGHTS, 3 * WEIGHTS))
    close(
        jax.tree.map(lambda a, b: a - b, two, squeezed.shared),
        jax.tree.map(lambda a, b: 3 * (a - b), one, squeezed.shared),
    )


@pytest.mark.slow
def test_one_hot_weights_of_vectors_of_full_rank_give_an_expert_and_a_rank_is_its_share():
    found = modularise(BASE, EXPERTS, fraction=1.0)
    assert isinstance(found.exclusive["dense"]["kernel"], LowRank)
    own = twin_params(*found, jnp.asarray([0.0, 1.0, 0.0]))
    close(own, jax.tree.map(lambda leaf: leaf[1], EXPERTS))
    # Half of the smaller sides, 4 and 5, is rounded down.
    two, half = (modularise(BASE, EXPERTS, **own) for own in ({"rank": 2}, {"fraction": 0.5}))
    close(two, half)


@pytest.mark.parametrize("names", [("weights",), ("weights", "own")])
def test_weights_of_parameters_are_of_all_experts(unchecked, names):
    found = modularise(BASE, EXPERTS, fraction=1.0)
    given = dict.fromkeys(names, WEIGHTS) | {names[-1]: jnp.ones(1)}
    with pytest.raises(ValueError, match=rf"{names[-1]} \(1,\) as \[3\]"):
        twin_params(*found, **given)


def test_factors_of_adapters_merged_one_by_one_have_products_of_different_experts():
    left, right = RNG.normal(size=(3, 6, 2)), RNG.normal(size=(3, 2, 4))
    factors, changes = {"left": left, "right": right}, {"kernel": left @ right}

    def shared_of(experts):
        experts = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), experts)
        base = jax.tree.map(lambda x: jnp.zeros_like(x[0]), experts)
        options = {"scale": 1 / 3, "compress": "none", "farthest": np.inf}
        return wide(modularise(base, experts, **options).shared)

    apart, whole = shared_of(factors), shared_of(changes)["kernel"]
    np.testing.assert_allclose(whole, (left @ right).mean(0), atol=1e-5)
    cross = apart["left"] @ apart["right"] - whole
    spread = (left - left.mean(0)) @ (right - right.mean(0))
    np.testing.assert_allclose(cross, -spread.mean(0), atol=1e-5)
    assert np.abs(cross).max() > 0.3


def test_a_shared_expert_may_be_given_and_leaves_may_stay_out_of_it():
    shared = jax.tree.map(lambda leaf: leaf + 1, BASE)
    found = modularise(
        BASE, EXPERTS, shared=shared, compress="none", excluded=("bias", "dense.k")
    )  # fmt: skip
    out = found.exclusive["dense"]
    assert isinstance(out["kernel"], Own)
    assert isinstance(out["bias"], Own)
    kernel = found.exclusive["blocks"]["heads"]["kernel"]
    close(kernel, wide(EXPERTS)["blocks"]["heads"]["kernel"] - wide(shared)["blocks"]["heads"]
          ["kernel"])  # fmt: skip
    close(found.shared["dense"], BASE["dense"])
    own = twin_params(*found, WEIGHTS, own=jnp.asarray([0.0, 0.0, 1.0]))
    close(own["dense"], jax.tree.map(lambda leaf: leaf[2], EXPERTS["dense"]))
    moved = twin_params(*found, WEIGHTS)["dense"]["bias"]
    exact = wide(BASE)["dense"]["bias"]
    each = wide(EXPERTS)["dense"]["bias"] - exact
    np.testing.assert_allclose(moved, exact + np.asarray(WEIGHTS) @ each, atol=1e-5)


class Odd(nn.Module):
    """Layers whose factors are no product of theirs, and a parameter of its own."""

    @nn.compact
    def __call__(self, x):
        x = Conv(4, 1, groups=2, name="grouped")(x) + self.param("offset", nn.zeros, (4, 4))
        table = nn.Embed(5, 4, name="tied")
        x = table.attend(x + table(jnp.argmax(x, axis=-1)))
        return HeadDense((4, 8), ("embed", None, None), name="across")(x)


CASES = {
    "vit": (
        ViT(width=8, depth=2, heads=2, patch_size=4), RNG.uniform(size=(5, 8, 8, 1)), 5,
    ),
    "bert": (
        Bert(vocabulary=9, width=8, depth=2, heads=2, mlp=16, positions=6),
        RNG.integers(0, 9, (5, 6)), 9,
    ),
    "odd": (Odd(), RNG.normal(size=(5, 4, 4, 4)), 0),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_batch_has_for_each_input_what_its_own_model_has(name):
    module, x, products = CASES[name]
    x = jnp.asarray(x)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    base, experts = fine_tuned(shapes, 3)
    excluded = ("bias",) if name == "vit" else ()
    twin = modularised(base, experts, fraction=0.5, excluded=excluded)
    weights = jnp.asarray(RNG.dirichlet([1.0] * 3, 5), jnp.float32)
    own = jnp.asarray(np.eye(3)[[0, 2, 1, 1, 0]], jnp.float32)

    def alone(weights, own, x):
        params = twin_params(*twin, weights, own=own)
        return module.apply({"params": params}, x[None])[0]

    @jax.jit
    def both(weights, own, x):
        found = twin_apply(module, *twin, weights, x, own=own)
        return found, jax.lax.map(lambda given: alone(*given), (weights, own, x))

    np.testing.assert_allclose(*both(weights, own, x), rtol=1e-4, atol=1e-5)
    parts = method.flatten_dict(twin.exclusive)
    assert len(method._factored(module, twin.shared, parts, (x,))) == products


class Small(nn.Module):
    """Layers in half precision."""

    @nn.compact
    def __call__(self, x):
        x = Conv(4, 2, dtype=jnp.bfloat16)(x)
        return nn.Dense(3, dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x))


@pytest.mark.slow
def test_half_precision_and_gradients_are_finite():
    module, x = Small(), jnp.zeros((2, 4, 4, 2))
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    base, experts = fine_tuned(shapes, 2)
    twin = modularised(base, experts, fraction=0.5)
    halves = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, jnp.bfloat16)), twin.shared)

    @jax.jit
    def total(weights):
        found = twin_apply(module, halves, twin.exclusive, weights, x)
        return jnp.sum(found.astype(jnp.float32) ** 2), found

    slopes, found = jax.grad(total, has_aux=True)(jnp.full((2, 2), 0.5))
    assert found.dtype == jnp.bfloat16
    assert np.isfinite(slopes).all()
    assert np.abs(slopes).max() > 0


@pytest.mark.parametrize("compress", ["svd", "magnitude", "drop", "none"])
def test_vectors_stay_whole_where_none_is_a_matrix(compress):
    base, experts = ({"scale": tree["dense"]["bias"]} for tree in (BASE, EXPERTS))
    key = jax.random.key(0)
    twin = modularised(base, experts, compress=compress, key=key)
    close(twin.exclusive, {"scale": experts["scale"] - twin.shared["scale"]})
    twin = modularised(base, experts, compress=compress, key=key, excluded=("scale",))
    close(twin.exclusive, {"scale": Own(experts["scale"] - base["scale"])})


def test_what_cannot_be_taken_apart_or_applied_is_named():
    for options, said in (
        ({"compress": "sdv"}, "did you mean 'svd'"), ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.5}, "fraction is 1.5"), ({"compress": "drop"}, "without a key"),
        ({"rank": 5}, r"rank is 5, expected 1 to 4: leaf 'dense.kernel' is a matrix \[6, 4"),
        ({"rank": 1, "compress": "none"}, "rank is 1 with compress='none'"),
        ({"excluded": ("bias", "biass")}, "excluded has 'biass'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            modularise(BASE, EXPERTS, **options)
    twin = modularise(BASE, EXPERTS)
    with pytest.raises(ValueError, match=r"weights is \(2, 2\), expected \(2, 3\)"):
        twin_apply(nn.Dense(4), *twin, jnp.ones((2, 2)), jnp.ones((2, 6)))


def test_saved_parts_are_read_again_to_the_bit(tmp_path):
    base = BASE | {"half": jnp.asarray([1.5, -2.25], jnp.bfloat16)}
    experts = EXPERTS | {"half": jnp.ones((3, 2), jnp.bfloat16)}
    twin = modularise(base, experts, excluded=("dense.bias",))
    router = {"params": {"out": {"bias": jnp.arange(3.0)}}, "batch_stats": {"mean": jnp.ones(2)}}
    path = tmp_path / "deep" / "twin"
    save_twin(path, twin, router=router, names=["a", "b", "c"])
    found = load_twin(path)
    assert found.names == ("a", "b", "c")
    for one, other in ((found.twin, twin), (found.router, router)):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
    assert isinstance(found.twin.exclusive["dense"]["kernel"], LowRank)
    with pytest.raises(UserError, match="exists, expected a new directory"):
        save_twin(path, twin)
    with pytest.raises(UserError, match="expected 3: one for each expert"):
        save_twin(tmp_path / "other", twin, names=["a"])
    assert not (tmp_path / "other").exists()
    left = tmp_path / ".plain.partial"  # as a save that was stopped leaves it
    left.mkdir()
    (left / "router.safetensors").write_bytes((path / "router.safetensors").read_bytes())
    save_twin(tmp_path / "plain", twin)
    assert load_twin(tmp_path / "plain").router is None
    (path / "exclusive.safetensors").write_bytes(b"nothing")
    for wrong in (path, tmp_path / "none"):
        with pytest.raises(UserError, match="cannot be read"):
            load_twin(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "top"), [(2, None), (1, 2)])
def test_what_is_loaded_predicts_with_the_weights_of_its_router(layers, top, tmp_path):
    module, x = nn.Dense(4), jnp.asarray(RNG.normal(size=(5, 6)), jnp.float32)
    twin = modularise(BASE["dense"], EXPERTS["dense"], fraction=0.5)
    router = Router(experts=3, hidden=7, layers=layers)
    features = x @ twin.shared["kernel"] + twin.shared["bias"]
    shapes = nn.unbox(jax.eval_shape(router.init, jax.random.key(0), features))
    variables = jax.tree.map(lambda leaf: leaf**2 + np.float32(0.1), drawn(shapes))
    variables["params"]["out"] = drawn(shapes["params"]["out"], scale=2.0)
    save_twin(tmp_path / "twin", twin, router=variables, names=("a", "b", "c"))
    found = load_twin(tmp_path / "twin").predict(module, x, top=top)
    weights = route(router.apply(variables, features), top=top)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-4, atol=1e-6)
    assert (np.asarray(found.weights) == 0).sum() == (0 if top is None else 5)
    for one, own, y in zip(x, weights, found.outputs, strict=True):
        params = twin_params(*twin, own)
        np.testing.assert_allclose(y, one @ params["kernel"] + params["bias"], rtol=1e-4, atol=1e-5)
    save_twin(tmp_path / "plain", twin)
    with pytest.raises(UserError, match="router is None"):
        load_twin(tmp_path / "plain").predict(module, x)


GOLDEN = np.load(Path(__file__).parent / "golden" / "twin_merging.npz")
"""Numbers in float64 of LZY-the-boys/Twin-Merging at f481c60, discriminative/.

`MergingMethod.task_arithmetic` and `ties_merge` gave shared experts, `extract_twin_vector` by
`sparsify.svd` and `magnitude` the exclusive vectors, and the arithmetic of `param` the parameters
for one input with the softmax of "router"; `golden/make_twin_merging.py` wrote them."""


def stored(prefix):
    """A tree of the entries of `GOLDEN` below a prefix; names have two parts."""
    tree = {}
    for name in GOLDEN.files:
        if name.startswith(prefix + "/"):
            first, second = name.removeprefix(prefix + "/").split(".")
            tree.setdefault(first, {})[second] = jnp.asarray(GOLDEN[name])
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arithmetic", "ties"])
@pytest.mark.parametrize(
    ("compress", "mask_rate"), [("svd", 0.5), ("svd", 0.25), ("magnitude", 0.6)]
)
def test_parameters_for_an_input_are_those_of_the_authors_code(kind, compress, mask_rate):
    """Merged leaves agree; the bias has no part in theirs, which runs the true task's own one.

    Their `ties_merge` keeps one entry more than its share, of 64 entries 19 + 1. Their `magnitude`
    keeps ⌊share · size⌋ entries and ours the nearest number: of 30 and 28 both keep 12 and 11.
    """
    with jax.enable_x64(True):
        base, experts = stored("base"), stored("experts")
        out = {name: dict(leaves) for name, leaves in base.items()}
        mine = {name: dict(leaves) for name, leaves in experts.items()}
        del out["first"]["bias"], mine["first"]["bias"]
        shared = (
            task_arithmetic(out, mine, scale=0.4) if kind == "arithmetic"
            else ties(out, mine, keep=20 / 64, scale=0.7)
        )  # fmt: skip
        close(shared, stored(f"{kind}/shared"), rtol=1e-12, atol=1e-12)
        shared["first"]["bias"] = base["first"]["bias"]
        found = modularise(
            base, experts, shared=shared, compress=compress, fraction=1 - mask_rate,
            excluded=("bias",),
        )  # fmt: skip
        whole = twin_params(
            *found, route(jnp.asarray(GOLDEN["router"])), own=jnp.asarray([0.0, 1.0, 0.0])
        )
        close(whole["first"].pop("bias"), experts["first"]["bias"][1], rtol=1e-12)
        close(whole, stored(f"{kind}/{compress}/{mask_rate}"), rtol=1e-11, atol=1e-12)
