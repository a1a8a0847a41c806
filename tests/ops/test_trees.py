"""Trees of parameters against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.ops import trees

RNG = np.random.default_rng(0)
SHAPES = {
    "patches": {"kernel": (2, 2, 1, 6), "bias": (6,)},
    "blocks": {"qkv": {"kernel": (3, 6, 3, 2, 3)}, "norm": {"scale": (3, 6)}},
}


def drawn(*lead):
    """A tree of a vision transformer's kind, three layers stacked."""
    return jax.tree.map(
        lambda shape: RNG.normal(size=(*lead, *shape)),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def as_jax(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@pytest.fixture(scope="module")
def base():
    return drawn()


def test_combine_moves_each_block_by_its_own_coefficients_and_is_linear(base):
    vectors = drawn(2)
    coefficients = {
        "patches": {"kernel": RNG.normal(size=2), "bias": RNG.normal(size=2)},
        "blocks": {
            "qkv": {"kernel": RNG.normal(size=(2, 3))}, "norm": {"scale": RNG.normal(size=(2, 3))},
        },
    }  # fmt: skip
    found = jax.jit(trees.combine)(*map(as_jax, (base, vectors, coefficients)))
    kernel = base["blocks"]["qkv"]["kernel"].copy()
    for i in range(2):
        for layer in range(3):
            kernel[layer] += (
                coefficients["blocks"]["qkv"]["kernel"][i, layer]
                * vectors["blocks"]["qkv"]["kernel"][i, layer]
            )
    np.testing.assert_allclose(found["blocks"]["qkv"]["kernel"], kernel, atol=1e-5)
    bias = base["patches"]["bias"] + np.einsum(
        "i,ij->j", coefficients["patches"]["bias"], vectors["patches"]["bias"]
    )
    np.testing.assert_allclose(found["patches"]["bias"], bias, atol=1e-5)
    one = trees.combine(as_jax(base), as_jax(vectors), jnp.asarray([0.5, -2.0]))
    scale = base["blocks"]["norm"]["scale"] + np.einsum(
        "i,ilj->lj", [0.5, -2.0], vectors["blocks"]["norm"]["scale"]
    )
    np.testing.assert_allclose(one["blocks"]["norm"]["scale"], scale, atol=1e-5)


def test_what_is_combined_has_the_leaves_of_the_base_and_a_coefficient_for_each_block():
    base = {"w": jnp.ones(3), "blocks": {"k": jnp.ones((2, 4))}}
    vectors = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), base)
    each = trees.block_coefficients(base, 3)
    for change, said in (
        ({"coefficients": jnp.ones(1)}, r"coefficients are \[1\], expected \[3\]: one a vector"),
        ({"coefficients": jnp.ones((3, 2))}, r"coefficients are \[3, 2\], expected \[3\]"),
        ({"coefficients": each | {"blocks": {"k": jnp.ones((3, 1))}}},
         r"leaf 'blocks.k' of coefficients is \[3, 1\], expected \[3, 2\]"),
        ({"coefficients": {"blocks": each["blocks"]}}, r"'w' of coefficients is None, expected"),
        ({"vectors": vectors | {"w": jnp.ones((3, 1))}}, r"leaf 'w' of vectors is \[3, 1\]"),
        ({"mask": base | {"w": jnp.ones(1)}}, r"leaf 'w' of the mask is \[1\], expected \[3\]"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            trees.combine(**{"base": base, "vectors": vectors, "coefficients": each} | change)


def test_the_gradient_of_a_coefficient_is_an_inner_product(base):
    vectors, target = drawn(2), drawn()
    start = trees.block_coefficients(as_jax(base), 2, 0.3)

    def loss(coefficients):
        moved = trees.combine(as_jax(base), as_jax(vectors), coefficients)
        return trees.inner(moved, as_jax(target))

    found = jax.jit(jax.grad(loss))(start)
    wanted = np.einsum(
        "ilabcd,labcd->il", vectors["blocks"]["qkv"]["kernel"], target["blocks"]["qkv"]["kernel"]
    )
    assert found["blocks"]["qkv"]["kernel"].shape == (2, 3)
    np.testing.assert_allclose(found["blocks"]["qkv"]["kernel"], wanted, rtol=1e-4, atol=1e-4)
    bias = vectors["patches"]["bias"] @ target["patches"]["bias"]
    np.testing.assert_allclose(found["patches"]["bias"], bias, rtol=1e-4, atol=1e-4)


def test_vectors_masks_norms_and_bytes(base):
    experts = drawn(2)
    vectors = trees.task_vectors(as_jax(base), as_jax(experts))
    np.testing.assert_allclose(
        vectors["patches"]["bias"], experts["patches"]["bias"] - base["patches"]["bias"], atol=1e-6
    )
    mask = as_jax(jax.tree.map(lambda leaf: leaf > 0, base))
    hidden = trees.masked(vectors, mask)["patches"]["bias"]
    assert np.array_equal(np.asarray(hidden[1] == 0), base["patches"]["bias"] <= 0)
    sizes = trees.norms(as_jax(base))
    by_layer = np.sqrt((base["blocks"]["qkv"]["kernel"] ** 2).sum((1, 2, 3, 4)))
    np.testing.assert_allclose(sizes["blocks"]["qkv"]["kernel"], by_layer, rtol=1e-5)
    flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(base)])
    np.testing.assert_allclose(trees.norm(as_jax(base)), np.linalg.norm(flat), rtol=1e-5)
    assert trees.count_bytes(as_jax(base)) == 4 * flat.size
    assert trees.block_axes(as_jax(base))["blocks"]["norm"]["scale"] == (3,)
    assert trees.block_axes(as_jax(base))["patches"]["bias"] == ()


@pytest.mark.slow
def test_norms_have_no_slope_at_zero():
    tree = {"blocks": {"w": jnp.array([[0.0, 0.0], [3.0, 4.0]])}}
    of_blocks = jax.jit(jax.grad(lambda own: trees.norms(own)["blocks"]["w"].sum()))
    np.testing.assert_allclose(of_blocks(tree)["blocks"]["w"], [[0, 0], [0.6, 0.8]], rtol=1e-6)
    still = jax.jit(jax.grad(trees.norm))({"w": jnp.zeros((2, 2))})
    np.testing.assert_array_equal(still["w"], np.zeros((2, 2)))


@pytest.mark.slow
def test_low_rank_leaves_the_energy_of_the_smallest_singular_values(base):
    tree = as_jax(base)
    reduced = trees.low_rank(tree, rank=2)
    again = trees.whole(reduced, tree)
    kernel = base["blocks"]["qkv"]["kernel"].reshape(3, 6, 18)
    for layer in range(3):
        values = np.linalg.svd(kernel[layer], compute_uv=False)
        error = np.asarray(again["blocks"]["qkv"]["kernel"][layer]).reshape(6, 18) - kernel[layer]
        np.testing.assert_allclose((error**2).sum(), (values[2:] ** 2).sum(), rtol=1e-4)
    assert np.array_equal(reduced["blocks"]["norm"]["scale"], tree["blocks"]["norm"]["scale"])
    assert again["patches"]["kernel"].shape == (2, 2, 1, 6)
    assert reduced["patches"]["kernel"].left.shape == (4, 2)
    half = trees.low_rank(tree, fraction=0.5)
    assert half["blocks"]["qkv"]["kernel"].right.shape == (3, 3, 18)
    assert trees.count_bytes(half["blocks"]["qkv"]["kernel"]) == 4 * 3 * 3 * (6 + 18)
    # A bias of heads is a vector; a product of floats below a whole number loses no rank.
    own = {"qkv": {"bias": jnp.ones((3, 2, 3)), "kernel": jnp.ones((100, 101))}}
    reduced = trees.low_rank(own, fraction=0.29)["qkv"]
    assert reduced["bias"].shape == (3, 2, 3)
    assert reduced["kernel"].left.shape == (100, 29)
    assert trees.low_rank(own, fraction=0.2999)["qkv"]["kernel"].left.shape == (100, 29)
    # The first of the splits whose smaller side is largest.
    assert trees.matrix_shape((6, 3, 2, 3)) == (6, 18)
    assert trees.matrix_shape((2, 3, 6)) == (6, 6)
    assert trees.matrix_shape((5, 5, 1, 8)) == (25, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 7}, r"rank is 7, expected 1 to 6: leaf 'blocks.qkv.kernel' is a matrix \[6, 18"),
        ({}, "expected one of the two"),
        ({"rank": 1, "fraction": 0.5}, "expected one of the two"),
        *(
            ({"fraction": share}, f"fraction is {share}, expected above 0")
            for share in (-0.5, 0.0, 1.1)
        ),
    ],
)
def test_ranks_that_no_matrix_has_are_named(base, options, message):
    own = {"blocks": {"qkv": as_jax(base)["blocks"]["qkv"]}}
    with pytest.raises(UserError, match=message):
        trees.low_rank(own, **options)


def test_trees_that_do_not_agree_are_named_by_leaf_and_shapes(base):
    other = jax.tree.map(np.asarray, base)
    other["patches"]["bias"] = np.zeros(5)
    with pytest.raises(UserError, match=r"leaf 'patches.bias' of b is \[5\], expected \[6\]"):
        trees.check_trees(base, {"a": base, "b": other})
    del other["patches"]["bias"]
    with pytest.raises(UserError, match=r"the base has a leaf 'patches.bias', b has none"):
        trees.check_trees(base, {"b": other})
    with pytest.raises(UserError, match=r"b has a leaf 'patches.bias', the base has none"):
        trees.check_trees(other, {"b": base})
    with pytest.raises(UserError, match=r"is \[2, 2, 1, 6\], expected \[4, 2, 2, 1, 6\]"):
        trees.check_trees({"k": base["patches"]["kernel"]}, {"c": {"k": base["patches"]["kernel"]}},
                          lead=4)  # fmt: skip
    trees.check_trees(base, {"d": drawn(4)}, lead=4)


def test_values_that_are_not_finite_or_of_another_base_are_named(base):
    own = as_jax(base)
    near = jax.tree.map(lambda leaf: 1.1 * leaf, own)
    trees.check_values(own, {"near": near})
    broken = jax.tree.map(jnp.array, near)
    broken["blocks"]["norm"]["scale"] = broken["blocks"]["norm"]["scale"].at[1, 2].set(jnp.nan)
    with pytest.raises(UserError, match=r"leaf 'blocks.norm.scale' of broken holds NaN"):
        trees.check_values(own, {"broken": broken})
    with pytest.raises(UserError, match="was it fine-tuned from another base"):
        trees.check_values(own, {"near": near, "far": as_jax(drawn())})
    steps, used = {"steps": jnp.asarray(1000)}, {"used": jnp.asarray(True)}
    trees.check_values(
        own | jax.tree.map(jnp.zeros_like, steps | used), {"near": near | steps | used}
    )
    with pytest.raises(UserError, match=r"far lies 1\.\d\d times the base's norm from the base"):
        trees.check_values(own | steps | used, {"far": as_jax(drawn()) | steps | used})


@pytest.mark.parametrize("as_leaf", [np.asarray, jnp.asarray])
def test_leaves_of_any_type_are_looked_at_and_traced_ones_are_not(as_leaf):
    for value in (np.nan, np.inf, -np.inf):
        leaf = as_leaf(np.asarray([0.0, value], jnp.bfloat16))
        with pytest.raises(UserError, match="w holds NaN or infinite values, expected finite"):
            trees.check_leaf("w", leaf)
        jax.jit(lambda x: trees.check_leaf("w", x))(leaf)
    for kind in (np.float32, np.int32, bool, jnp.bfloat16):
        trees.check_leaf("w", as_leaf(np.ones(2, kind)))


def test_stacked_trees_are_counted_and_held_against_a_base(base):
    assert trees.check_stacked(base, "own", drawn(4)) == 4
    with pytest.raises(UserError, match="own is empty, expected at least one tree"):
        trees.check_stacked(base, "own", drawn(0))
    for nothing in ({}, {"w": jnp.zeros(())}):
        with pytest.raises(UserError, match="own is empty"):
            trees.check_stacked(base, "own", nothing)
    with pytest.raises(UserError, match=r"of own is \[2, 2, 1, 6\], expected \[2, 2, 2, 1, 6\]"):
        trees.check_stacked({"k": base["patches"]["kernel"]}, "own",
                            {"k": base["patches"]["kernel"]})  # fmt: skip
