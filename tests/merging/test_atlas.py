"""Compositions of task vectors against their definition, and what learns their coefficients."""

from functools import partial
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.merging import (
    block_slopes,
    coefficient_penalty,
    compose,
    compose_blocks,
    cosine_matrix,
    draw_parts,
    learn_blocks,
    learn_scaling,
    linearised,
    part_coefficients,
    select_blocks,
    take_blocks,
)
from rml.ops import trees

RNG = np.random.default_rng(3)
BASE = {"w": RNG.normal(size=(3,)), "blocks": {"k": RNG.normal(size=(2, 2, 3))}}
VECTORS = {"w": RNG.normal(size=(2, 3)), "blocks": {"k": RNG.normal(size=(2, 2, 2, 3))}}
LAMBDA = {"w": np.array([0.7, -0.4]), "blocks": {"k": np.array([[0.2, 1.1], [-0.6, 0.5]])}}
TARGET = RNG.normal(size=(4, 3))


def arrays(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def outputs(params):
    return jnp.tanh(params["w"]) * jnp.sum(params["blocks"]["k"] ** 2, axis=(0, 1))


def objective(params, batch):
    return jnp.sum((outputs(params) - batch) ** 2)


def test_each_part_of_a_block_moves_by_its_own_coefficient():
    part = {"w": np.array([0, 2, 1]), "blocks": {"k": np.array([[[0, 1, 2], [2, 1, 0]]] * 2)}}
    part["blocks"]["k"][1] = [[1, 1, 0], [0, 2, 2]]
    each = {"w": RNG.normal(size=(2, 3)), "blocks": {"k": RNG.normal(size=(2, 2, 3))}}
    found = jax.jit(compose)(
        arrays(BASE), arrays(VECTORS), arrays(each), parts=jax.tree.map(jnp.asarray, part)
    )
    wanted = BASE["w"] + sum(each["w"][i][part["w"]] * VECTORS["w"][i] for i in range(2))
    np.testing.assert_allclose(found["w"], wanted, rtol=1e-5)
    wanted = BASE["blocks"]["k"].copy()
    for i in range(2):
        for layer in range(2):
            own = each["blocks"]["k"][i, layer][part["blocks"]["k"][layer]]
            wanted[layer] += own * VECTORS["blocks"]["k"][i, layer]
    np.testing.assert_allclose(found["blocks"]["k"], wanted, rtol=1e-4, atol=1e-6)
    # Equal coefficients of all parts are those of whole blocks.
    whole = compose(arrays(BASE), arrays(VECTORS), arrays(LAMBDA))
    repeated = jax.tree.map(lambda x: jnp.repeat(x[..., None], 3, -1), arrays(LAMBDA))
    same = compose(arrays(BASE), arrays(VECTORS), repeated, parts=jax.tree.map(jnp.asarray, part))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_what_is_composed_of_parts_has_the_leaves_of_the_base():
    part = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, int), BASE)
    each = part_coefficients(arrays(BASE), 2, parts=3)
    given = {"base": arrays(BASE), "vectors": arrays(VECTORS), "coefficients": each, "parts": part}
    for change, said in (
        ({"coefficients": part_coefficients(arrays(BASE), 1, parts=3)},
         r"leaf '.*' of coefficients is \[1.*, expected \[2.* and an axis of parts"),
        ({"coefficients": arrays(LAMBDA)}, r"'blocks.k' of coefficients is \[2, 2\], expected \["),
        ({"vectors": arrays(VECTORS) | {"w": jnp.ones((2, 1))}}, r"leaf 'w' of vectors is \[2, 1"),
        ({"parts": part | {"w": jnp.zeros(1, int)}}, r"leaf 'w' of parts is \[1\], expected \[3\]"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            compose(**given | change)


def test_parts_are_of_equal_size_and_each_layer_draws_its_own():
    params = {"w": jnp.zeros(10), "v": jnp.zeros(10), "blocks": jnp.zeros((3, 4, 5))}
    drawn = draw_parts(jax.random.key(0), params, parts=4)
    assert sorted(np.bincount(drawn["w"])) == [2, 2, 3, 3]
    for layer in drawn["blocks"]:
        assert (np.bincount(np.asarray(layer).reshape(-1)) == 5).all()
    assert (drawn["w"] != drawn["v"]).any()
    assert (drawn["blocks"][0] != drawn["blocks"][1]).any()
    shapes = jax.tree.map(jnp.shape, part_coefficients(params, 2, parts=4))
    assert shapes == {"w": (2, 4), "v": (2, 4), "blocks": (2, 3, 4)}


@pytest.mark.parametrize(
    ("parts", "expected"), [(0, "a number at least 1"), (-1, "a number at least 1"),
                            (2.5, "a whole number")],
)  # fmt: skip
def test_blocks_have_a_part_at_least(unchecked, parts, expected):
    for call in (partial(draw_parts, jax.random.key(0), BASE), partial(part_coefficients, BASE, 2)):
        with pytest.raises(ValueError, match=f"parts is {parts}, expected {expected}"):
            call(parts=parts)


@pytest.mark.parametrize("clip", [0.0, -1.0, np.nan])
def test_gradients_keep_a_norm_above_0(clip):
    given = (objective, arrays(BASE), arrays(VECTORS), jnp.asarray(TARGET, jnp.float32))
    with pytest.raises(ValueError, match=f"clip is {clip}, expected a number above 0"):
        learn_scaling(*given, clip=clip)


def test_a_linearised_composition_is_right_to_first_order():
    base, vectors = arrays(BASE), arrays(VECTORS)

    def both(step):
        own = jax.tree.map(lambda x: step * x, arrays(LAMBDA))
        return linearised(outputs, base, vectors, own), outputs(compose(base, vectors, own))

    errors = []
    for step in (0.1, 0.05):
        tangent, exact = jax.jit(both)(step)
        errors.append(float(jnp.abs(tangent - exact).max()))
    assert 3 < errors[0] / errors[1] < 5
    # Its derivative is a difference of the exact outputs.
    plus, minus = (outputs(compose(base, vectors, jax.tree.map(lambda x, s=s: s * x,
                                                              arrays(LAMBDA))))
                   for s in (1e-2, -1e-2))  # fmt: skip
    slope = both(1.0)[0] - outputs(base)
    np.testing.assert_allclose(slope, (plus - minus) / 2e-2, rtol=5e-3, atol=1e-3)


@pytest.mark.slow
def test_slopes_are_products_of_the_gradient_with_each_block():
    base, vectors = arrays(BASE), arrays(VECTORS)
    found = block_slopes(lambda p: objective(p, TARGET[0]), base, vectors)
    gradient = jax.grad(objective)(base, TARGET[0])
    np.testing.assert_allclose(found["w"], VECTORS["w"] @ np.asarray(gradient["w"]), rtol=1e-4)
    wanted = np.einsum("nlij,lij->nl", VECTORS["blocks"]["k"], gradient["blocks"]["k"])
    np.testing.assert_allclose(found["blocks"]["k"], wanted, rtol=1e-4)


@pytest.mark.slow
def test_derivatives_by_coefficients_are_finite_differences():
    part = jax.tree.map(lambda x: np.arange(x.size).reshape(x.shape) % 2, BASE)
    each = jax.tree.map(lambda x: np.stack([x, 0.3 - x], -1), LAMBDA)
    with jax.enable_x64(True):
        part, base, vectors, target = jax.tree.map(jnp.asarray, (part, BASE, VECTORS, TARGET[0]))
        whole = jax.jit(lambda own: objective(compose(base, vectors, own), target))
        parted = jax.jit(lambda own: objective(compose(base, vectors, own, parts=part), target))
        slopes = jax.jit(lambda: block_slopes(lambda p: objective(p, target), base, vectors))()
        for value, at, found in (
            (whole, jax.tree.map(np.zeros_like, LAMBDA), slopes),
            (parted, each, jax.jit(jax.grad(parted))(each)),
        ):
            flat, unflatten = jax.flatten_util.ravel_pytree(at)
            steps = 1e-5 * np.eye(flat.size)
            wanted = [float(value(unflatten(flat + s)) - value(unflatten(flat - s))) for s in steps]
            got = jax.flatten_util.ravel_pytree(found)[0]
            np.testing.assert_allclose(got, np.array(wanted) / 2e-5, rtol=1e-7, atol=1e-7)


def test_the_steepest_blocks_are_selected():
    slopes = {"w": jnp.array([0.1, -3.0]), "blocks": jnp.array([[-2.0, 0.5], [1.0, 0.2]])}
    found = select_blocks(slopes, budget=2)
    np.testing.assert_array_equal(found["w"], [False, True])
    np.testing.assert_array_equal(found["blocks"], [[True, False], [False, False]])
    with pytest.raises(UserError, match="budget is 7, expected 1 to 6"):
        select_blocks(slopes, budget=7)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [1.5, 2.0, np.nan])
def test_a_budget_is_a_whole_number(wrong):
    with pytest.raises(ValueError, match=f"^budget is {wrong}, expected a whole number$"):
        select_blocks({"w": jnp.arange(6.0)}, budget=wrong)


def test_blocks_taken_out_are_learned_as_those_that_a_mask_keeps():
    base, vectors = arrays(BASE), arrays(VECTORS)
    kept = {"w": jnp.array([False, True]), "blocks": {"k": jnp.array([[0, 1], [1, 1]], bool)}}
    options = {"learning_rate": 0.2, "weight_decay": 0.5, "clip": 0.8}
    batches = jnp.asarray(TARGET, jnp.float32)
    wanted = jax.jit(lambda *own: learn_scaling(objective, *own, kept=kept, **options))(
        base, vectors, batches
    )
    blocks, zeros = take_blocks(base, vectors, kept)
    found = jax.jit(partial(learn_blocks, objective, **options))(base, blocks, zeros, batches)
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-5)
    own = found.params["blocks"]["k"]
    np.testing.assert_allclose(found.params["w"], wanted.params["w"][1:], rtol=1e-5)
    np.testing.assert_allclose(own, wanted.params["blocks"]["k"][[0, 1, 1], [1, 0, 1]], rtol=1e-5)
    assert np.min(np.abs(own)) > 0.1
    moved, whole = (
        compose_blocks(base, blocks, found.params), compose(base, vectors, wanted.params)
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), moved, whole)
    for wrong, shape in ((jnp.ones(1), r"\[1\]"), (jnp.ones(4), r"\[4\]"), (jnp.ones(()), r"\[\]")):
        said = rf"leaf 'blocks.k' of coefficients is {shape}, expected \[3\]: one a block"
        own = zeros | {"blocks": {"k": wrong}}
        with pytest.raises(UserError, match=said):
            compose_blocks(base, blocks, own)
        with pytest.raises(UserError, match=said):
            learn_blocks(objective, base, blocks, own, batches)


def test_blocks_left_out_take_no_memory():
    base = {"w": jnp.zeros(8), "blocks": {"k": jnp.zeros((4, 32, 32))}}
    vectors = jax.tree.map(lambda own: jnp.ones((16, *own.shape)), base)
    kept = {"w": np.zeros(16, bool), "blocks": {"k": np.arange(64).reshape(16, 4) % 32 == 5}}
    blocks, zeros = take_blocks(base, vectors, kept, farthest=np.inf)
    given = base, blocks, zeros, jnp.ones((3, 32))

    def squared(params, batch):
        return jnp.sum((batch @ params["blocks"]["k"] - 1) ** 2) + jnp.sum(params["w"])

    planned = jax.jit(partial(learn_blocks, squared)).lower(*given).compile().memory_analysis()
    needed = planned.argument_size_in_bytes + planned.temp_size_in_bytes
    assert trees.count_bytes(blocks["blocks"]["k"].values) == 2 * 32 * 32 * 4
    assert needed < 0.5 * trees.count_bytes(vectors)
    found = jax.jit(partial(learn_blocks, squared))(*given).params
    np.testing.assert_array_equal(found["w"].shape, (0,))
    assert found["blocks"]["k"].shape == (2,)
    with pytest.raises(UserError, match="kept"):
        take_blocks(base, vectors, {"w": kept["w"]}, farthest=np.inf)
    with pytest.raises(UserError, match="kept"):
        take_blocks(base, vectors, kept | {"w": np.zeros(15, bool)}, farthest=np.inf)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_coefficients_follow_clipped_adam_with_decay_from_zero(penalty):
    base, vectors = arrays(BASE), arrays(VECTORS)
    kept = {"w": jnp.array([True, True]), "blocks": {"k": jnp.array([[True, False], [True, True]])}}
    found = jax.jit(
        lambda batches: learn_scaling(
            objective, base, vectors, batches, learning_rate=0.2, weight_decay=0.5, clip=0.8,
            kept=kept, penalty=penalty, order=2,
        )
    )(jnp.asarray(TARGET, jnp.float32))  # fmt: skip

    def value(flat, batch):
        w, k = flat[:2], flat[2:].reshape(2, 2)
        own = {"w": w, "blocks": {"k": jnp.where(kept["blocks"]["k"], k, 0)}}
        columns = jnp.stack([w, *own["blocks"]["k"].T])
        norms = jnp.where(
            (columns**2).sum(1) > 0, jnp.sqrt(jnp.maximum((columns**2).sum(1), 1e-30)), 0
        )
        return objective(trees.combine(base, vectors, own), batch) + penalty * norms.mean() / 2

    slope = jax.jit(jax.value_and_grad(value))
    own, first, second = np.zeros(6), np.zeros(6), np.zeros(6)
    for step, batch in enumerate(TARGET, 1):
        loss, g = slope(jnp.asarray(own, jnp.float32), batch)
        np.testing.assert_allclose(found.losses[step - 1], loss, rtol=1e-3)
        g = np.asarray(g, float)
        g *= min(1, 0.8 / np.linalg.norm(g))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        change = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        own = own - 0.2 * (change + 0.5 * own)
    got = np.concatenate([found.params["w"], found.params["blocks"]["k"].reshape(-1)])
    np.testing.assert_allclose(got, own, rtol=2e-3, atol=1e-4)
    assert got[3] == 0


def test_one_coefficient_a_vector_takes_no_blocks():
    given = (objective, arrays(BASE), arrays(VECTORS), jnp.asarray(TARGET, jnp.float32))
    found = learn_scaling(*given, by_block=False, learning_rate=0.1)
    assert found.params.shape == (2,)
    assert np.asarray(found.params).all()
    with pytest.raises(ValueError, match="by_block=True"):
        learn_scaling(*given, by_block=False, kept=arrays(LAMBDA))


def test_parts_come_with_their_number_and_only_kept_blocks_move():
    given = (objective, arrays(BASE), arrays(VECTORS), jnp.asarray(TARGET[:2], jnp.float32))
    part = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape) % 3, BASE)
    kept = {
        "w": jnp.array([True, False]),
        "blocks": {"k": jnp.array([[True, False], [False, True]])},
    }
    found = jax.jit(lambda *given: learn_scaling(
        objective, *given, parts=part, count=3, kept=kept, learning_rate=0.1
    ))(*given[1:]).params  # fmt: skip
    np.testing.assert_array_equal(found["w"] != 0, [[True] * 3, [False] * 3])
    moved = np.asarray(found["blocks"]["k"] != 0)
    np.testing.assert_array_equal(moved, np.repeat(kept["blocks"]["k"][..., None], 3, -1))
    for options, said in (
        ({"parts": part}, "parts is given alone"), ({"count": 2}, "count is given alone"),
        ({"parts": part, "count": 2}, "count is 2 and parts go up to 2, expected count=3"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            learn_scaling(*given, **options)


def test_cosines_of_vectors_are_over_all_leaves():
    moved = {"w": np.vstack([VECTORS["w"], np.zeros((1, 3))]),
             "k": np.concatenate([VECTORS["blocks"]["k"], np.zeros((1, 2, 2, 3))])}  # fmt: skip
    flat = np.concatenate([moved["w"], moved["k"].reshape(3, -1)], axis=1)
    size = np.linalg.norm(flat, axis=1)
    wanted = flat @ flat.T / np.maximum(np.outer(size, size), 1e-30)
    np.testing.assert_allclose(cosine_matrix(arrays(moved)), wanted, rtol=1e-5, atol=1e-6)


def test_cosines_have_no_slope_at_a_vector_that_is_zero():
    vectors = jnp.asarray([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]])
    slope = jax.jit(jax.grad(lambda x: cosine_matrix({"w": x}).sum()))(vectors)
    assert np.isfinite(slope).all()
    assert not slope[0].any()
    assert slope[1:].any(axis=1).all()


def test_a_penalty_is_half_the_mean_norm_of_a_blocks_coefficients():
    columns = np.array([[0.7, -0.4], [0.2, -0.6], [1.1, 0.5]])
    for order in (1, 2):
        found, slope = jax.value_and_grad(lambda x, o=order: coefficient_penalty(x, order=o))(
            arrays(LAMBDA)
        )
        np.testing.assert_allclose(
            found, np.linalg.norm(columns, ord=order, axis=1).mean() / 2, rtol=1e-5
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    flat = jax.grad(lambda x: coefficient_penalty(x, order=2))(jnp.zeros((2, 3)))
    assert not np.asarray(flat).any()
    with pytest.raises(ValueError, match="order is 3"):
        coefficient_penalty(arrays(LAMBDA), order=3)


def of_authors():
    """Values of github.com/fredzzhang/atlas at 557d7fb, see golden/make_atlas.py."""
    file = np.load(Path(__file__).parent / "golden" / "atlas.npz")
    names = [name.removeprefix("base/") for name in file if name.startswith("base/")]
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]

    def tree(own):
        return {name: jnp.asarray(file[f"{own}/{name}"]) for name in names}

    def apply(params):
        hidden = jnp.tanh(file["x"] @ params["0.weight"].T + params["0.bias"])
        return hidden @ params["2.weight"].T + params["2.bias"]

    return file, tree, apply


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blockwise", "isotropic"])
def test_compositions_and_their_slopes_are_those_of_the_authors(kind):
    """Of `WeightedImageEncoder` and `WeightedLinearizedModel`, in float64.

    Their task vectors come as float16; these were given as they are.
    """
    with jax.enable_x64(True):
        file, tree, apply = of_authors()
        base, vectors, given = tree("base"), tree("vectors"), jnp.asarray(file[kind])

        def coefficients(own):
            return own if kind == "isotropic" else dict(zip(base, own.T, strict=True))

        for case, outputs in (
            (kind, lambda own: apply(compose(base, vectors, coefficients(own)))),
            (f"linearised_{kind}", lambda own: linearised(apply, base, vectors, coefficients(own))),
        ):
            out, slopes = jax.jit(
                lambda own, f=outputs: (f(own), jax.grad(lambda own: jnp.sum(f(own) ** 2))(own))
            )(given)
            np.testing.assert_allclose(out, file[f"{case}/out"], rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(slopes, file[f"{case}/slopes"], rtol=1e-11, atol=1e-11)


def test_compositions_of_parts_are_those_of_the_authors_where_blocks_are_matrices():
    """Of `WeightedImageEncoder` with `partition`, in float64.

    Theirs moves matrices alone: what is no matrix gets no task vector, here by vectors of zeros.
    """
    with jax.enable_x64(True):
        file, tree, apply = of_authors()
        base, vectors, parts = tree("base"), tree("vectors"), tree("parts")
        vectors = {k: own if own.ndim == 3 else jnp.zeros_like(own) for k, own in vectors.items()}

        def outputs(own):
            each = dict(zip(base, own.swapaxes(0, 1), strict=True))
            return apply(compose(base, vectors, each, parts=parts))

        out, slopes = jax.jit(
            lambda own: (outputs(own), jax.grad(lambda own: jnp.sum(outputs(own) ** 2))(own))
        )(jnp.asarray(file["parted"]))
        np.testing.assert_allclose(out, file["parted/out"], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(slopes, file["parted/slopes"], rtol=1e-11, atol=1e-11)
