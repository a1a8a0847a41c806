"""What every method of merging has in common, and each against NumPy in float64."""

import importlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml.errors import UserError
from rml.merging import (
    METHODS,
    block_slopes,
    dare,
    drop_and_rescale,
    fisher_merge,
    learn_coefficients,
    learn_mask,
    learn_scaling,
    merge,
    modularise,
    regmean,
    ties,
    trim,
    weighted_average,
)
from rml.ops import trees

RNG = np.random.default_rng(1)
N = 3


def drawn(*lead):
    return {
        "dense": {
            "kernel": RNG.normal(size=(*lead, 4, 5)), "bias": RNG.normal(size=(*lead, 5)),
        },
        "blocks": {"scale": RNG.normal(size=(*lead, 2, 6))},
    }  # fmt: skip


def as_jax(tree, dtype=jnp.float32):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


BASE = drawn()
EXPERTS = jax.tree.map(lambda own, base: base + 0.3 * own, drawn(N), BASE)
FISHERS = jax.tree.map(lambda leaf: np.exp(2 * leaf), drawn(N))
INPUTS = np.random.default_rng(2).normal(size=(N, 6, 4))
GRAMS = {"dense.kernel": jnp.asarray(INPUTS.swapaxes(1, 2) @ INPUTS, jnp.float32)}
# Options away from neutral values, and those with which one expert alone is given back.
OPTIONS = {
    "average": {},
    "weighted_average": {"weights": jnp.asarray([0.2, 0.5, 0.1])},
    "task_arithmetic": {"scale": 0.7},
    "ties": {"scale": 0.8, "keep": 0.4},
    "dare": {"scale": 0.6, "rate": 0.3, "key": jax.random.key(3)},
    "fisher": {"weights": jnp.asarray([0.2, 0.5, 0.3]), "fishers": as_jax(FISHERS)},
    "regmean": {"weights": jnp.asarray([0.2, 0.5, 0.3]), "alpha": 0.6, "grams": GRAMS},
}
ALONE = {
    "average": {},
    "weighted_average": {"weights": jnp.ones(1)},
    "task_arithmetic": {"scale": 1.0},
    "ties": {"scale": 1.0, "keep": 1.0},
    "dare": {"scale": 1.0, "rate": 0.0, "key": jax.random.key(3)},
    "fisher": {"fishers": as_jax(jax.tree.map(lambda leaf: leaf[:1], FISHERS))},
    "regmean": {"grams": jax.tree.map(lambda leaf: leaf[:1], GRAMS)},
}


def close(found, wanted, **given):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **{"atol": 2e-5} | given),
                 found, wanted)  # fmt: skip


def test_every_method_has_its_row_of_options():
    assert set(OPTIONS) == set(ALONE) == set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_one_expert_alone_is_given_back(method):
    alone = [as_jax(trees.take_tree(EXPERTS, 0))]
    options = dict(ALONE[method])
    close(merge(method, as_jax(BASE), alone, **options), trees.take_tree(EXPERTS, 0))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_experts_that_learned_nothing_give_the_base_back(method):
    same = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (N, *leaf.shape)), BASE)
    close(merge(method, as_jax(BASE), as_jax(same), **OPTIONS[method]), BASE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_keeps_types_and_is_finite(method):
    base, experts = as_jax(BASE, jnp.bfloat16), as_jax(EXPERTS, jnp.bfloat16)
    found = merge(method, base, experts, **OPTIONS[method])
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    whole = merge(method, as_jax(base), as_jax(experts), **OPTIONS[method])
    close(jax.tree.map(np.float32, found), whole, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_it_maps_and_differentiates(method):
    function, options = METHODS[method].function, OPTIONS[method]
    base, experts = as_jax(BASE), as_jax(EXPERTS)

    def size(experts):
        return trees.norm(function(base, experts, **options))

    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), experts)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(size)))(many)
    alone = jax.jit(size)(experts)
    np.testing.assert_allclose(values[0], alone, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("method", METHODS)
def test_trees_that_do_not_agree_are_refused(method):
    other = as_jax(trees.take_tree(EXPERTS, 0))
    other["dense"]["bias"] = jnp.zeros(4)
    with pytest.raises(UserError, match=r"leaf 'dense.bias' of experts\[1\] is \[4\], expected \["):
        merge(method, as_jax(BASE), [as_jax(BASE), other], **OPTIONS[method])
    with pytest.raises(UserError, match="experts is empty"):
        merge(method, as_jax(BASE), [], **OPTIONS[method])


@pytest.mark.parametrize("method", METHODS)
def test_experts_that_are_not_stacked_are_refused_by_the_method_itself(method):
    call, base = partial(METHODS[method].function, as_jax(BASE)), as_jax(BASE)
    experts, options = as_jax(EXPERTS), OPTIONS[method]
    how = r"; trees are stacked by jax.tree.map\(lambda \*x: jnp.stack\(x\), \*trees\)"
    one = (
        r"leaf 'blocks.scale' of experts is \[2, 6\], expected \[2, 2, 6\] as the base has \[2, 6\]"
    )
    with pytest.raises(UserError, match=one + how):
        call(base, **options)
    narrow = experts | {"dense": experts["dense"] | {"kernel": experts["dense"]["kernel"][..., :1]}}
    with pytest.raises(UserError, match=r"leaf 'dense.kernel' of experts is \[3, 4, 1\], expected"):
        call(narrow, **options)
    fewer = experts | {"dense": jax.tree.map(lambda leaf: leaf[:2], experts["dense"])}
    with pytest.raises(
        UserError, match=r"leaf 'dense.bias' of experts is \[2, 5\], expected \[3, 5\]"
    ):
        call(fewer, **options)
    with pytest.raises(UserError, match="experts is a list, expected one tree" + how):
        call([base, base, base], **options)
    if "fishers" in options:
        fewer = jax.tree.map(lambda leaf: leaf[:2], options["fishers"])
        with pytest.raises(UserError, match="fishers are 2, expected 3"):
            call(experts, **options | {"fishers": fewer})


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_and_other_bases_are_refused(method):
    base, experts, options = as_jax(BASE), as_jax(EXPERTS), OPTIONS[method]
    for value in (jnp.nan, jnp.inf):
        broken = jax.tree.map(jnp.array, experts)
        broken["blocks"]["scale"] = broken["blocks"]["scale"].at[1, 0, 2].set(value)
        each = [trees.take_tree(broken, i) for i in range(N)]
        for given in (broken, each):
            with pytest.raises(UserError, match=r"leaf 'blocks.scale' of experts\[1\] holds NaN"):
                merge(method, base, given, **options)
        with pytest.raises(UserError, match=r"leaf 'blocks.scale' of the base holds NaN"):
            merge(method, each[1], experts, **options)
        if "fishers" in options:
            with pytest.raises(UserError, match=r"leaf 'blocks.scale' of fishers\[1\] holds NaN"):
                merge(method, base, experts, **options | {"fishers": broken})
    # Squares of huge values overflow; the values are finite.
    far = jax.tree.map(lambda leaf: leaf.at[2].set(1e30), experts)
    if METHODS[method].scaled:
        with pytest.raises(UserError, match=r"experts\[2\] lies inf times the base's norm"):
            merge(method, base, far, **options)
        wide = jax.tree.map(lambda leaf, start: leaf.at[2].set(2.5 * start), experts, base)
        with pytest.raises(
            UserError, match=r"lies 1.50 times .* from the base, expected at most 1"
        ):
            merge(method, base, wide, **options)
        found = merge(method, base, wide, farthest=1.6, **options)
    else:
        found = merge(method, base, far, **options)
    trees.check_finite({"merged": found})
    traced = jax.jit(lambda own: merge(method, base, own, **options))(far)
    assert jax.tree.structure(traced) == jax.tree.structure(base)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, own in METHODS.items() if own.scaled])
def test_a_scaled_method_is_the_base_and_a_multiple_of_one_vector(method):
    half, whole = (
        merge(method, as_jax(BASE), as_jax(EXPERTS), **OPTIONS[method] | {"scale": scale})
        for scale in (0.5, 1.0)
    )
    close(half, jax.tree.map(lambda a, b: (a + b) / 2, BASE, whole))


def test_averages_and_arithmetic_are_their_formulas():
    base, experts = as_jax(BASE), as_jax(EXPERTS)
    close(merge("average", base, experts), jax.tree.map(lambda x: x.mean(0), EXPERTS))
    wanted = jax.tree.map(lambda x: (0.2 * x[0] + 0.5 * x[1] + 0.1 * x[2]) / 0.8, EXPERTS)
    close(merge("weighted_average", base, experts, **OPTIONS["weighted_average"]), wanted)
    wanted = jax.tree.map(lambda b, x: b + 0.7 * (x - b).sum(0), BASE, EXPERTS)
    close(merge("task_arithmetic", base, experts, scale=0.7), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("disjoint", ["mean", "sum"])
def test_ties_is_its_algorithm(disjoint):
    flat = np.stack([
        np.concatenate([(leaf[i] - start).ravel() for leaf, start in
                        zip(jax.tree.leaves(EXPERTS), jax.tree.leaves(BASE), strict=True)])
        for i in range(N)
    ])  # fmt: skip
    kept = round(0.4 * flat.shape[1])
    trimmed = np.zeros_like(flat)
    for row, own in zip(trimmed, flat, strict=True):
        top = np.argsort(-np.abs(own))[:kept]
        row[top] = own[top]
    merged = np.zeros(flat.shape[1])
    for j, column in enumerate(trimmed.T):
        agrees = [value for value in column if value * column.sum() > 0]
        merged[j] = getattr(np, disjoint)(agrees) if agrees else 0
    assert (merged == 0).any()
    wanted = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(BASE)]) + 0.8 * merged
    options = {} if disjoint == "mean" else {"disjoint": disjoint}
    found = merge("ties", as_jax(BASE), as_jax(EXPERTS), keep=0.4, scale=0.8, **options)
    flat_found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])
    np.testing.assert_allclose(flat_found, wanted, atol=1e-5)
    few = trim(as_jax(EXPERTS), keep=0.01)
    assert [sum(int((leaf[i] != 0).sum()) for leaf in jax.tree.leaves(few)) for i in range(N)] == [
        1
    ] * N
    for wrong in (-0.1, 2.0, np.nan):
        with pytest.raises(ValueError, match=f"keep is {wrong}, expected a number between 0 and 1"):
            trim(as_jax(EXPERTS), keep=wrong)
    with pytest.raises(ValueError, match="keep is 0"):
        ties(as_jax(BASE), as_jax(EXPERTS), keep=0.0)
    with pytest.raises(ValueError, match="disjoint is 'max', expected one of: mean, sum"):
        ties(as_jax(BASE), as_jax(EXPERTS), disjoint="max")


@pytest.mark.slow
@pytest.mark.parametrize(("share", "kept"), [(20, 12), (0.35, 21), (0.8, 48)])
def test_ties_gives_the_numbers_of_the_authors_code(share, kept):
    """`ties_merging` ("dis-mean") of tanganke/subspace_fusion at 67f8450, in float64.

    `golden/make_concrete_subspace.py` wrote them. Of 60 entries it keeps one more than the share:
    it keeps what is at least the (60 - kept)-th smallest, of which there are kept + 1.
    """
    golden = np.load(Path(__file__).parent / "golden" / "concrete_subspace.npz")
    with jax.enable_x64(True):
        start = np.random.default_rng(3).normal(size=60)
        trees_of = {"a": slice(0, 22), "b": slice(22, 60)}
        base = {name: jnp.asarray(start[own]) for name, own in trees_of.items()}
        experts = {
            name: jnp.asarray(start[own] + golden["flat"][:, own]) for name, own in trees_of.items()
        }
        found = ties(base, experts, keep=(kept + 1) / 60, scale=0.8)
    for name, own in trees_of.items():
        wanted = start[own] + 0.8 * golden[f"ties_{share}"][own]
        np.testing.assert_allclose(found[name], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("keep", [0.05, 0.325, 0.625, 1.0])
def test_the_least_magnitude_that_is_kept_is_that_of_a_sorted_row(keep, x64):
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2, 40)) * 10.0 ** rng.integers(-30, 30, (2, 40))
    own[0, :20] = rng.choice([0.0, -0.5, 0.5, 2.0], 20)  # equal ones stay or go together
    half = own[1, ::2].astype(np.float64 if x64 else np.float32)
    own[1, ::2], own[1, 1::2] = half, np.nextafter(half, 1e30, dtype=half.dtype)  # the last bit
    with jax.enable_x64(x64):
        leaves = {"a": jnp.asarray(own[:, :12].reshape(2, 3, 4)), "b": jnp.asarray(own[:, 12:])}
        found = jax.jit(trim, static_argnames="keep")(leaves, keep=keep)
        rows = np.concatenate([np.reshape(leaf, (2, -1)) for leaf in found.values()], axis=1)
        given = np.concatenate([np.reshape(leaf, (2, -1)) for leaf in leaves.values()], axis=1)
    assert rows.dtype == (np.float64 if x64 else np.float32)
    least = np.sort(np.abs(given), axis=1)[:, -max(1, round(keep * 40))]
    np.testing.assert_array_equal(rows, np.where(np.abs(given) >= least[:, None], given, 0))


TIES = importlib.import_module("rml.merging.ties")


def test_counts_beyond_int32_are_compared_with_a_place():
    most = 2**30
    counts = jnp.full((5, 2), most, jnp.int32).at[:, 1].add(-1)
    for place, reached in (
        (1000, [True, True]), (5 * most - 5, [True, True]), (5 * most - 4, [True, False]),
        (5 * most, [True, False]), (5 * most + 1, [False, False]), (6 * most, [False, False]),
    ):  # fmt: skip
        np.testing.assert_array_equal(TIES._reaches(counts, place), reached)


@pytest.mark.parametrize("digit", [2, 3])
def test_a_large_leaf_is_counted_in_parts(monkeypatch, digit):
    large = {"a": jax.ShapeDtypeStruct((2, 3, 2**30), jnp.float32)}
    jax.eval_shape(partial(trim, keep=0.9), large)  # of it neither a row nor the place is int32's
    monkeypatch.setattr(TIES, "DIGIT", digit)
    rows = np.random.default_rng(0).permuted(np.arange(1.0, 41) * [[1], [-1]], axis=1)
    given = jnp.asarray(rows, jnp.float32)
    found = trim({"a": given[:, :12].reshape(2, 3, 4), "b": given[:, 12:]}, keep=0.325)
    kept = np.concatenate([found["a"].reshape(2, -1), found["b"]], axis=1)
    np.testing.assert_array_equal(kept, np.where(np.abs(rows) > 40 - 13, rows, 0))


def test_dropped_entries_are_of_the_rate_and_expectations_stay():
    vectors = {"a": jnp.ones((2, 40, 50)), "b": jnp.ones((2, 30, 50))}
    found = drop_and_rescale(vectors, key=jax.random.key(0), rate=0.8)
    values = np.unique(np.concatenate([np.ravel(leaf) for leaf in found.values()]))
    np.testing.assert_allclose(values, [0, 5], rtol=1e-5)
    share = np.mean([np.mean(np.asarray(leaf) == 0) for leaf in found.values()])
    assert abs(share - 0.8) < 0.02
    # Experts and leaves draw for themselves.
    assert (found["a"][0] != found["a"][1]).any()
    assert (found["a"][0, :30] != found["b"][0]).any()


@pytest.mark.parametrize("rate", [-1, 1, 1.5, np.nan])
def test_rates_that_are_no_share_below_one_are_refused(rate):
    base, experts, key = as_jax(BASE), as_jax(EXPERTS), jax.random.key(0)
    for call in (
        lambda: dare(base, experts, key=key, rate=rate),
        lambda: merge("dare", base, experts, key=key, rate=rate),
        lambda: drop_and_rescale(experts, key=key, rate=jnp.asarray(rate)),
    ):
        with pytest.raises(UserError, match=rf"rate is {rate}.*, expected a number in \[0, 1\)"):
            call()


def test_running_variances_that_vectors_make_negative_are_refused():
    scale, var = np.array([[1.0, 2.0], [4.0, 3.0]])
    base = as_jax({"params": {"scale": scale}, "batch_stats": {"bn": {"var": var}}})
    experts = [jax.tree.map(lambda leaf: leaf - 1.5, base) for _ in range(3)]
    with pytest.raises(UserError, match=r"leaf 'batch_stats.bn.var' is a variance and as low as"
                       r" -1.5 once merged, .* the method 'average', or estimated"):  # fmt: skip
        merge("task_arithmetic", base, experts, scale=1.0)
    merged = merge("task_arithmetic", base, experts, scale=0.5)
    np.testing.assert_allclose(merged["batch_stats"]["bn"]["var"], [1.75, 0.75])
    # Traced values are not looked at, and what is negative in an expert is no variance.
    jax.eval_shape(partial(merge, "task_arithmetic"), base, experts)
    experts[0]["batch_stats"]["bn"]["var"] -= 3
    merge("task_arithmetic", base, experts, scale=1.0, farthest=2.0)


@pytest.mark.parametrize("method", METHODS)
def test_integers_stay_what_all_experts_have(method):
    function, options = METHODS[method].function, dict(OPTIONS[method])
    whole = {"steps": jnp.asarray([2**24 + 1, 7]), "used": jnp.asarray([True, False])}
    base = as_jax(BASE) | jax.tree.map(jnp.zeros_like, whole)
    same = as_jax(EXPERTS) | jax.tree.map(lambda leaf: jnp.stack([leaf] * N), whole)
    if method == "fisher":
        ones = {name: jnp.ones(same[name].shape) for name in whole}
        options["fishers"] = options["fishers"] | ones
    plain = function(as_jax(BASE), as_jax(EXPERTS), **OPTIONS[method])
    found = function(base, same, **options)
    merged = merge(method, base, same, **options)
    for name, leaf in whole.items():
        assert merged[name].dtype == found[name].dtype == leaf.dtype
        np.testing.assert_array_equal(merged[name], leaf)
        np.testing.assert_array_equal(found[name], leaf)
    close({name: found[name] for name in BASE}, plain)
    said = r"leaf 'steps' is of int32, which has no average, and holds 9 in experts\[1\] and 7 in"
    apart = same | {"steps": same["steps"].at[1, 1].set(9)}
    for call in (function, partial(merge, method)):
        with pytest.raises(UserError, match=said):
            call(base, apart, **options)


@pytest.mark.parametrize("method", METHODS)
def test_trees_without_a_floating_point_leaf_are_refused(method):
    many = {"steps": jnp.zeros((N, 2), int)}
    own = {"fisher": {"fishers": many}, "regmean": {"grams": {}}}.get(method, {})
    for call in (METHODS[method].function, partial(merge, method)):
        with pytest.raises(UserError, match=r"^base has no floating-point leaf, expected at least"):
            call({"steps": jnp.zeros(2, int)}, many, **OPTIONS[method] | own)


def test_trees_without_a_leaf_are_refused():
    with pytest.raises(UserError, match=r"^base has no floating-point leaf, expected at least"):
        merge("average", {}, [{}, {}])


def test_integers_do_not_count_in_distances_from_the_base():
    base, steps = as_jax(BASE), jnp.full(N, 1000)
    experts, vectors = as_jax(EXPERTS), trees.task_vectors(base, as_jax(EXPERTS))
    early, late = ({"steps": jnp.asarray(number)} for number in (0, 10**6))
    merged = merge("task_arithmetic", base | early, experts | {"steps": steps})
    assert merged["steps"] == 1000
    trees.check_vectors(base | early, vectors | {"steps": steps})
    far = jax.tree.map(lambda leaf: leaf + 9, experts)
    with pytest.raises(UserError, match=r"experts\[0\] lies .* times the base's norm from the"):
        merge("task_arithmetic", base | late, far | {"steps": steps})
    broken = experts | {"steps": jnp.full(N, jnp.nan)}  # of a float in the experts alone
    with pytest.raises(UserError, match=r"leaf 'steps' of experts\[0\] holds NaN"):
        trees.check_fine_tuned(base | early, {"experts": broken})


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_scales_and_starts_are_finite(wrong):
    base, experts = as_jax(BASE), as_jax(EXPERTS)
    vectors = trees.task_vectors(base, experts)
    scaled = [name for name, method in METHODS.items() if method.scaled]
    calls = [partial(METHODS[name].function, base, experts, **OPTIONS[name]) for name in scaled]
    calls += [partial(merge, name, base, experts, **OPTIONS[name]) for name in scaled]
    calls += [partial(modularise, base, experts), partial(LEARNERS["vectors"][2], base, vectors)]
    for call in calls:
        with pytest.raises(ValueError, match=f"^scale is {wrong}, expected a finite number$"):
            call(scale=wrong)
    with pytest.raises(ValueError, match=f"^start is {wrong}, expected a finite number$"):
        learn_coefficients(size, base, vectors, STEPS, start=wrong)


def test_an_unknown_method_and_wrong_numbers_are_named():
    base, experts = as_jax(BASE), as_jax(EXPERTS)
    with pytest.raises(UserError, match="unknown method 'tie'; did you mean 'ties'"):
        merge("tie", base, experts)
    with pytest.raises(UserError, match=r"weights is \[1\.0, 1\.0\], expected one for each of 3"):
        merge("weighted_average", base, experts, weights=jnp.ones(2))
    with pytest.raises(UserError, match=r"weights is 0\.5, expected one for each of 3 experts$"):
        merge("weighted_average", base, experts, weights=0.5)
    with pytest.raises(UserError, match=r"weights is an array of shape \[3, 9\], expected one"):
        merge("weighted_average", base, experts, weights=jnp.ones((3, 9)))
    with pytest.raises(UserError, match=r"weights is an array of shape \[2\], expected one"):
        jax.eval_shape(lambda traced: weighted_average(base, experts, weights=traced), jnp.ones(2))
    with pytest.raises(UserError, match="expected one of each for every expert"):
        merge("fisher", base, experts, fishers=[base, base])


WEIGHTED = [
    (weighted_average, {}),
    (fisher_merge, {"fishers": as_jax(FISHERS)}),
    (regmean, {"grams": GRAMS}),
]


@pytest.mark.parametrize(("method", "options"), WEIGHTED)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([-1.0, 2.0, 1.0], r"weights is \[-1.0, 2.0, 1.0\], expected numbers of at least 0"),
        ([0.0, 0.0, 0.0], r"weights is \[0.0, 0.0, 0.0\], .* of which one is above 0"),
        (
            [1.0, 2.0, 3.0, 4.0],
            r"weights is \[1.0, 2.0, 3.0, 4.0\], expected one for each of 3 experts",
        ),
        ([np.inf, 2.0, 1.0], r"weights is \[inf, 2.0, 1.0\], .* above 0 and none infinite"),
    ],
)
def test_weights_are_refused_without_merge_as_well(method, options, weights, message):
    with pytest.raises(UserError, match=message):
        method(as_jax(BASE), as_jax(EXPERTS), weights=jnp.array(weights), **options)


KEY, STEPS = jax.random.key(0), jnp.zeros(2)
LEARNERS = {
    "experts": (modularise,),
    "vectors": (
        lambda base, own, batches=STEPS, **given: learn_coefficients(
            size, base, own, batches, **given
        ),
        lambda base, own, batches=STEPS, **given: learn_scaling(size, base, own, batches, **given),
        lambda base, own, batches=STEPS, **given: learn_mask(
            size, base, own, batches, key=KEY, **given
        ),
        lambda base, own, **given: block_slopes(trees.norm, base, own, **given),
    ),
}


def size(params, batch):
    return trees.norm(params)


@pytest.mark.parametrize(
    ("name", "at"), [(k, i) for k, v in LEARNERS.items() for i in range(len(v))]
)
def test_what_is_learned_from_trees_that_do_not_agree_is_refused(name, at):
    call, base, experts = LEARNERS[name][at], as_jax(BASE), as_jax(EXPERTS)
    said = rf"leaf 'dense.bias' of {name} is \[3, 1\], expected \[3, 5\] as the base has \[5\]"
    other = experts | {"dense": experts["dense"] | {"bias": jnp.ones((N, 1))}}
    with pytest.raises(UserError, match=said):
        call(base, other)
    with pytest.raises(UserError, match=f"the base has a leaf 'dense.bias', {name} has none"):
        call(base, experts | {"dense": {"kernel": experts["dense"]["kernel"]}})
    with pytest.raises(UserError, match=f"{name} is empty"):
        call(base, jax.tree.map(lambda leaf: leaf[:0], experts))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at"), [(k, i) for k, v in LEARNERS.items() for i in range(len(v))]
)
def test_what_is_learned_from_broken_values_or_another_base_is_refused(name, at):
    call, base, own = LEARNERS[name][at], as_jax(BASE), as_jax(EXPERTS)
    start = base if name == "experts" else jax.tree.map(jnp.zeros_like, base)
    own = own if name == "experts" else trees.task_vectors(base, own)
    for value in (jnp.nan, jnp.inf):
        broken = jax.tree.map(jnp.array, own)
        broken["blocks"]["scale"] = broken["blocks"]["scale"].at[1, 0, 2].set(value)
        with pytest.raises(UserError, match=rf"leaf 'blocks.scale' of {name}\[1\] holds NaN"):
            call(base, broken)
        with pytest.raises(UserError, match=r"leaf 'blocks.scale' of the base holds NaN"):
            call(trees.take_tree(broken, 1), own)
    far = jax.tree.map(lambda x, y, z: x.at[2].set(y + 1.5 * z), own, start, base)
    model = "" if name == "experts" else r"the base \+ "
    said = rf"{model}{name}\[2\] lies 1.50 times the base's norm from the base, expected at most 1"
    with pytest.raises(UserError, match=said):
        call(base, far)
    with pytest.raises(UserError, match=said):  # constants of a traced function have values
        jax.eval_shape(lambda: call(base, far))
    jax.eval_shape(lambda: call(base, far, farthest=1.6))
    jax.eval_shape(call, base, broken)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (jnp.zeros((0, 4)), r"\[\[0, 4\]\]"), (jnp.zeros((2, 0, 4)), r"\[\[2, 0, 4\]\]"),
        ({"x": jnp.zeros((2, 4)), "y": jnp.zeros(0)}, r"\[\[2, 4\], \[0\]\]"), ({}, r"\[\]"),
    ],
)  # fmt: skip
def test_batches_without_a_step_or_an_example_are_refused(at, batches, said):
    call, base = LEARNERS["vectors"][at], as_jax(BASE)
    own = trees.task_vectors(base, as_jax(EXPERTS))
    wanted = rf"^batches hold arrays of {said}, expected at least 1 step and 1 example in each"
    with pytest.raises(UserError, match=wanted):
        call(base, own, batches)
    with pytest.raises(UserError, match=wanted):
        jax.eval_shape(call, base, own, batches)
    if at == 2:
        with pytest.raises(UserError, match=f"^inner_{wanted[1:]}"):
            call(base, own, inner_batches=batches)


def test_a_shared_expert_of_broken_values_is_refused():
    base, experts = as_jax(BASE), as_jax(EXPERTS)
    shared = base | {"dense": base["dense"] | {"bias": jnp.full(5, jnp.nan)}}
    with pytest.raises(UserError, match=r"leaf 'dense.bias' of shared holds NaN or infinite"):
        modularise(base, experts, shared=shared)
    jax.eval_shape(lambda own: modularise(base, experts, shared=own), shared)


def test_constants_of_a_traced_function_are_merged_and_looked_at():
    base, experts = as_jax(BASE), as_jax(EXPERTS)
    found = jax.jit(lambda scale: merge("task_arithmetic", base, experts, scale=scale))(0.7)
    close(found, merge("task_arithmetic", base, experts, scale=0.7))
    broken = experts | {"dense": experts["dense"] | {"bias": jnp.full((N, 5), jnp.nan)}}
    with pytest.raises(UserError, match=r"leaf 'dense.bias' of experts\[0\] holds NaN"):
        jax.eval_shape(lambda scale: merge("task_arithmetic", base, broken, scale=scale), 0.7)


def test_shared_experts_and_parts_that_do_not_agree_are_refused():
    base, experts = as_jax(BASE), as_jax(EXPERTS)
    other = base | {"dense": base["dense"] | {"bias": jnp.zeros(1)}}
    with pytest.raises(UserError, match=r"leaf 'dense.bias' of shared is \[1\], expected \[5\]"):
        modularise(base, experts, shared=other)
    with pytest.raises(UserError, match=r"leaf 'dense.bias' of parts is \[1\], expected \[5\]"):
        learn_scaling(size, base, experts, jnp.zeros(2), parts=other, count=2)


@pytest.mark.slow
def test_weights_may_be_a_list():
    for method in ("weighted_average", "regmean"):
        options = {"grams": GRAMS} if method == "regmean" else {}
        listed, array = (
            merge(method, BASE, EXPERTS, weights=own, **options)
            for own in ([1, 2, 4], jnp.array([1.0, 2.0, 4.0]))
        )
        close(listed, array)
    for method, options in WEIGHTED:
        call = partial(method, as_jax(BASE), as_jax(EXPERTS), **options)
        close(call(weights=[1, 2, 4]), call(weights=jnp.array([1.0, 2.0, 4.0])))


@pytest.mark.parametrize(("method", "options"), WEIGHTED)
@pytest.mark.parametrize(
    ("weights", "alike"),
    [([1e-50, 2e-50, 0], [1, 2, 0]), ([3e38, 3e38, 1e38], [3, 3, 1]), ([1e308] * 3, [1] * 3)],
)
@pytest.mark.slow
def test_weights_count_by_their_ratios_alone(method, options, weights, alike):
    call = partial(method, as_jax(BASE), as_jax(EXPERTS), **options)
    close(call(weights=weights), call(weights=alike))
