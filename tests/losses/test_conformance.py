"""What every loss of `rml.losses` inherits: shapes, types, edges, symmetries and its derivative.

A new loss is a row of `LOSSES`, and passes these tests. Its axes are named: those called `n` are of
examples, which are permuted together, and arrays that name an axis alike must agree in it.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rml import losses

SIZES = {"n": 4, "d": 3, "e": 2, "h": 1, "k": 5, "p": 2, "r": 6, "t": 2}


class Row(NamedTuple):
    """A loss of arrays of floats, then of arrays of labels, and of numbers that may be learned."""

    loss: Callable[..., jax.Array]
    floats: tuple[str, ...]  # axes of each array
    numbers: Mapping[str, float] = MappingProxyType({})  # away from where they would be neutral
    labels: tuple[str, ...] = ()  # axes of each array
    each: bool = False  # a value of each example, not their mean
    constant: tuple[int, ...] = ()  # arrays through which no gradient flows
    scale: str = ""  # what may be scaled: each of the "rows" or "columns", or the whole "batch"
    fewest: int = 1  # examples
    fewer: tuple[tuple[int, str], ...] = ()  # arrays that may be shorter, along which axis


def hard_negatives(queries, documents, hard, **numbers):
    return losses.multiple_negatives_ranking(queries, documents, hard_negatives=hard, **numbers)


def with_negatives(queries, keys, negatives, **numbers):
    return losses.info_nce(queries, keys, negatives=negatives, **numbers)


def one_coded(first, second, **numbers):
    return losses.swav(jnp.stack([first, second]), coded=1, **numbers)


def centered(student, teacher, center, **numbers):
    return losses.dino(student, teacher, center=center, **numbers)


def hidden(logits, targets):
    return losses.masked_lm(logits, targets, where=targets == 0)


def by_class_vectors(features, prototypes, labels, kind, **numbers):
    return losses.normalized_softmax(features, labels, prototypes, margin_kind=kind, **numbers)


def episode(support, query, labels, **numbers):
    return losses.prototypical_loss(support, labels, query, labels, num_classes=2, **numbers)


def by_proxies(features, proxies, labels, **numbers):
    return losses.proxy_anchor(features, labels, proxies, **numbers)


def mined(how, squared=False):
    return partial(losses.triplet_loss, mining=how, squared=squared, margin=1.3)


PAIR, LOGITS, VIEWS = ("n d", "n d"), ("n k", "n k"), ("2 n d", "2 n d")
WARM = {"temperature": 0.7}
distillation = partial(Row, each=True, constant=(1,))
LOSSES = {
    "info_nce": Row(losses.info_nce, PAIR, WARM, fewer=((0, "n"),)),
    "info_nce, negatives": Row(with_negatives, (*PAIR, "r d"), WARM, fewer=((0, "n"),)),
    "info_nce_with_queue": Row(losses.info_nce_with_queue, (*PAIR, "r d"), WARM),
    "nnclr": Row(losses.nnclr, (*PAIR, "r d"), WARM, constant=(0, 2), scale="rows"),
    "nt_xent": Row(losses.nt_xent, PAIR, WARM, scale="rows"),
    "sup_con": Row(losses.sup_con, ("n d",), WARM, labels=("n",), scale="rows"),
    "sup_con, in": Row(
        partial(losses.sup_con, form="in"), ("n d",), WARM, labels=("n",), scale="rows"
    ),
    "clip_loss": Row(losses.clip_loss, PAIR, {"log_scale": 0.8}, scale="rows"),
    "siglip_loss": Row(losses.siglip_loss, PAIR, {"log_scale": 0.8, "bias": -1.5}, scale="rows"),
    "dcl": Row(losses.dcl, PAIR, WARM, scale="rows", fewest=2),
    "dcl, weighted": Row(losses.dcl, PAIR, {**WARM, "sigma": 0.6}, scale="rows", fewest=2),
    "multiple_negatives_ranking": Row(hard_negatives, (*PAIR, "n h d"), WARM, scale="rows"),
    "triplet_loss": Row(mined("hard"), ("n d",), labels=("n",)),
    "triplet_loss, semi-hard": Row(mined("semi-hard"), ("n d",), labels=("n",)),
    "triplet_loss, all": Row(mined("all", True), ("n d",), labels=("n",)),
    "contrastive_pairs": Row(
        losses.contrastive_pairs, ("n d",), {"margin": 2.3}, labels=("n",)
    ),
    "prototypical_loss": Row(episode, PAIR, WARM, labels=("n",)),
    "normalized_softmax": Row(
        partial(by_class_vectors, kind="none"), ("n d", "k d"), {"scale": 3.0},
        labels=("n",), scale="rows",
    ),
    "normalized_softmax, cosine": Row(
        partial(by_class_vectors, kind="cosine"), ("n d", "k d"),
        {"scale": 3.0, "margin": 0.3}, labels=("n",), scale="rows",
    ),
    "normalized_softmax, angle": Row(
        partial(by_class_vectors, kind="angle"), ("n d", "k d"),
        {"scale": 3.0, "margin": 0.4}, labels=("n",), scale="rows",
    ),
    "multi_similarity": Row(
        losses.multi_similarity, ("n d",), {"beta": 1.5, "gamma": 3.0, "margin": 0.2},
        labels=("n",), scale="rows",
    ),
    "proxy_anchor": Row(
        by_proxies, ("n d", "k d"), {"scale": 3.0, "margin": 0.2}, labels=("n",), scale="rows"
    ),
    "barlow_twins": Row(
        losses.barlow_twins, PAIR, {"redundancy": 0.3}, scale="columns", fewest=2
    ),
    "vicreg": Row(
        losses.vicreg, PAIR, {"invariance": 2.0, "variance": 3.0, "covariance": 0.7}, fewest=2
    ),
    "negative_cosine": Row(losses.negative_cosine, PAIR, constant=(1,), scale="rows"),
    "simsiam": Row(losses.simsiam, VIEWS, constant=(1,), scale="rows"),
    "byol": Row(losses.byol, VIEWS, constant=(1,), scale="rows"),
    "swav": Row(one_coded, LOGITS, WARM, constant=(0,)),
    "dino": Row(
        centered, ("3 n k", "t n k", "k"), {**WARM, "teacher_temperature": 0.4}, constant=(1,)
    ),
    "smoothed_cross_entropy": Row(
        losses.smoothed_cross_entropy, ("n k",), {"smoothing": 0.2}, labels=("n",), each=True
    ),
    "masked_lm": Row(hidden, ("n p k",), labels=("n p",)),
    "kd_loss": distillation(losses.kd_loss, LOGITS, {"temperature": 2.0}),
    "soft_cross_entropy": distillation(losses.soft_cross_entropy, LOGITS, {"temperature": 2.0}),
    "annealing_loss": distillation(
        losses.annealing_loss, LOGITS, {"progress": 0.4, "temperature": 3.0}
    ),
    "dkd_loss": distillation(
        losses.dkd_loss, LOGITS, {"target_weight": 0.6, "others_weight": 2.0, "temperature": 2.0},
        labels=("n",)
    ),
    "dist_loss": distillation(
        losses.dist_loss, LOGITS, {"inter": 0.6, "intra": 2.0, "temperature": 2.0}
    ),
    "target_enhanced_loss": distillation(
        losses.target_enhanced_loss, LOGITS, {"gamma": 1.4, "temperature": 2.0},
        labels=("n",)
    ),
    "fitnet_loss": distillation(losses.fitnet_loss, PAIR),
    "rkd_distance": distillation(losses.rkd_distance, ("n d", "n k"), scale="batch"),
    "rkd_angle": distillation(losses.rkd_angle, ("n d", "n k"), scale="batch"),
    "correlation_congruence": distillation(
        losses.correlation_congruence, ("n d", "n k"), {"gamma": 0.7}, scale="rows"
    ),
    "crd_loss": distillation(
        losses.crd_loss, PAIR, {**WARM, "size": 9.0}, constant=(), scale="rows",
        labels=("n",)
    ),
    "dpo_loss": Row(
        losses.dpo_loss, ("n", "n", "n", "n"), {"beta": 0.7, "smoothing": 0.2}, each=True,
        constant=(2, 3),
    ),
}  # fmt: skip
EXEMPT = {
    "PairForm": "it says which loss `pair_loss` is",
    "PairSide": "it is half of a `PairForm`",
    "binomial_form": "it is a form of `pair_loss`",
    "clamp_log_scale": "it bounds a parameter after a step",
    "contrastive_form": "it is a form of `pair_loss`",
    "minimum_loss": "it bounds `normalized_softmax`",
    "multi_similarity_form": "it is the form of `multi_similarity`",
    "nearest_support": "it finds what `nnclr` compares with",
    "pair_loss": "it is of similarities; `multi_similarity` and `proxy_anchor` are made of it",
    "proxy_anchor_form": "it is the form of `proxy_anchor`",
    "scale_for": "it bounds the scale of `normalized_softmax`",
    "sequence_log_prob": "it is a log-probability, of which `dpo_loss` is made",
    "sinkhorn_codes": "it assigns to the prototypes of `swav`",
    "update_center": "it moves the center of `dino`",
}


@pytest.fixture(params=LOSSES)
def name(request):
    """The name of a row."""
    return request.param


@pytest.fixture
def row(name):
    """A row of the table."""
    return LOSSES[name]


def shape_of(axes, **sizes):
    return tuple(int(axis) if axis.isdigit() else {**SIZES, **sizes}[axis] for axis in axes.split())


def given(row, seed=0, dtype=jnp.float32, **sizes):
    """Arrays and numbers of a problem."""
    rng = np.random.default_rng(seed)
    floats = [
        jnp.asarray(rng.standard_normal(shape_of(axes, **sizes)).astype(dtype))
        for axes in row.floats
    ]
    return (
        floats,
        labels_of(row, **sizes),
        {k: jnp.asarray(v, dtype) for k, v in row.numbers.items()},
    )


def labels_of(row, **sizes):
    shapes = [shape_of(axes, **sizes) for axes in row.labels]
    return [jnp.asarray(np.arange(np.prod(shape), dtype=np.int32).reshape(shape) % 2)
            for shape in shapes]  # fmt: skip


def call(row, floats, labels, numbers):
    return row.loss(*floats, *labels, **numbers)


@cache
def program(name):
    """Values, and derivatives of a sum in which each example counts otherwise."""
    row = LOSSES[name]

    def total(floats, numbers, labels):
        value = call(row, floats, labels, numbers)
        weights = jnp.arange(1, value.size + 1, dtype=value.dtype).reshape(value.shape)
        return jnp.sum(weights * value), value

    def both(floats, labels, numbers):
        (_, value), slopes = jax.value_and_grad(total, (0, 1), has_aux=True)(
            floats, numbers, labels
        )
        return value, slopes

    return jax.jit(both)


def require_finite(tree, what):
    for leaf in jax.tree.leaves(tree):
        assert jnp.all(jnp.isfinite(leaf)), what


def test_every_exported_loss_has_a_row_or_a_reason():
    rows = {name.partition(",")[0] for name in LOSSES}
    assert not rows & set(EXEMPT)
    assert set(losses.__all__) == rows | set(EXEMPT)
    assert all(EXEMPT.values())


@pytest.mark.slow
def test_float32_gives_float32(name, row):
    floats, labels, numbers = given(row)
    value, slopes = program(name)(floats, labels, numbers)
    assert (value.shape, value.dtype) == ((SIZES["n"],) if row.each else (), jnp.float32)
    require_finite((value, slopes), "plain")
    for index, slope in enumerate(slopes[0]):
        assert bool(jnp.all(slope == 0)) == (index in row.constant), index


@pytest.mark.slow
def test_half_precision_gives_nearly_the_same(name, row):
    floats, labels, numbers = given(row)
    floats = [x.astype(jnp.bfloat16) for x in floats]
    value, (slopes, _) = program(name)(floats, labels, numbers)
    wide = [x.astype(jnp.float32) for x in floats]
    expected, (wide_slopes, _) = program(name)(wide, labels, numbers)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    for slope, wide_slope in zip(slopes, wide_slopes, strict=True):
        assert slope.dtype == jnp.bfloat16
        largest = float(jnp.max(jnp.abs(wide_slope)))
        np.testing.assert_allclose(
            slope.astype(jnp.float32), wide_slope, rtol=1e-2, atol=1e-2 * largest
        )


@pytest.mark.slow
def test_the_order_of_examples_does_not_matter(name, row):
    floats, labels, numbers = given(row)
    order = np.array([2, 0, 3, 1])

    def permuted(arrays, axes):
        return [
            jnp.take(x, order, axis=a.split().index("n")) if "n" in a.split() else x
            for x, a in zip(arrays, axes, strict=True)
        ]

    value, _ = program(name)(floats, labels, numbers)
    found, _ = program(name)(permuted(floats, row.floats), permuted(labels, row.labels), numbers)
    np.testing.assert_allclose(found, value[order] if row.each else value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["rows", "columns", "batch"])
def test_what_is_normalised_has_no_scale(name, row, unit):
    """A loss that is indifferent to the scales of rows is so to that of a batch, as for columns."""
    floats, labels, numbers = given(row)
    rng = np.random.default_rng(5)
    scaled = []
    for x in floats:
        shape = {"rows": (*x.shape[:-1], 1), "columns": x.shape[-1:], "batch": ()}[unit]
        scaled.append(x * jnp.asarray(rng.uniform(1.5, 5, shape), x.dtype))
    value, _ = program(name)(floats, labels, numbers)
    found, _ = program(name)(scaled, labels, numbers)
    same = np.allclose(found, value, rtol=1e-4, atol=1e-5)
    assert same == (row.scale == unit or (unit == "batch" and bool(row.scale)))


def first_zero(x, axes):
    return x.at[(slice(None),) * axes.index("n") + (0,)].set(0) if "n" in axes else x


EDGES = {
    "a zero row": first_zero,
    "zeros": lambda x, axes: jnp.zeros_like(x),
    "duplicates": lambda x, axes: jnp.full_like(x, 0.37),
    "two alike": lambda x, axes: x if "n" not in axes else jnp.take(
        x, np.array([0, 0, 2, 3]), axis=axes.index("n")
    ),
}  # fmt: skip


@pytest.mark.slow
def test_edges_are_finite_and_so_are_their_derivatives(name, row):
    floats, labels, numbers = given(row)
    for edge, change in EDGES.items():
        changed = [change(x, axes.split()) for x, axes in zip(floats, row.floats, strict=True)]
        require_finite(program(name)(changed, labels, numbers), edge)


@pytest.mark.slow
def test_the_smallest_batch_is_finite_and_a_smaller_one_is_refused(name, row):
    require_finite(program(name)(*given(row, n=row.fewest)), row.fewest)
    if row.fewest > 1:
        with pytest.raises(ValueError, match=f"got {row.fewest - 1}"):
            call(row, *given(row, n=row.fewest - 1))


@pytest.mark.slow
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_seen_in_the_loss(name, row, value):
    """A loss that hid it would let a diverged run look well."""
    floats, labels, numbers = given(row)
    for index, x in enumerate(floats):
        changed = [*floats[:index], jnp.full_like(x, value), *floats[index + 1 :]]
        found, _ = program(name)(changed, labels, numbers)
        assert not jnp.any(jnp.isfinite(found)), index


@pytest.mark.usefixtures("unchecked")
def test_a_batch_without_examples_is_refused(name, row):
    if name == "fitnet_loss":  # of features of any axes
        assert call(row, *given(row, n=0)).shape == (0,)
        return
    with pytest.raises(ValueError, match=r"expected at least one example, got \w+ \("):
        call(row, *given(row, n=0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "axis"),
    [(name, axis) for name, row in LOSSES.items() for axis in "dk"
     if any(axis in axes.split() for axes in row.floats)],
)  # fmt: skip
def test_examples_without_features_or_classes_are_refused(row, axis):
    with pytest.raises(ValueError, match="expected at least one feature"):
        call(row, *given(row, **{axis: 0}))


ABOVE_0 = ("beta", "epsilon", "gamma", "scale", "sigma", "size")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [0.0, -0.5, np.nan])
def test_temperatures_and_other_scales_are_above_0(name, row, wrong):
    floats, labels, _ = given(row)
    for own in row.numbers:
        if own.endswith("temperature") or own in ABOVE_0:
            expected = "at least 1" if name == "annealing_loss" else "above 0"
            with pytest.raises(
                ValueError, match=f"^{own} is {wrong}, expected a number {expected}"
            ):
                call(row, floats, labels, {**row.numbers, own: wrong})


WEIGHTS = {
    "barlow_twins": ("redundancy",), "vicreg": ("invariance", "variance", "covariance"),
    "dkd_loss": ("target_weight", "others_weight"), "dist_loss": ("inter", "intra"),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [-0.5, np.nan])
@pytest.mark.parametrize(("name", "own"), [(name, x) for name in WEIGHTS for x in WEIGHTS[name]])
def test_weights_are_not_below_0(row, own, wrong):
    floats, labels, _ = given(row)
    with pytest.raises(ValueError, match=f"^{own} is {wrong}, expected a number at least 0$"):
        call(row, floats, labels, {**row.numbers, own: wrong})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "own"),
    [(name, x) for name in WEIGHTS for x in WEIGHTS[name]]
    + [("correlation_congruence", "gamma")]
    + [(name, "temperature") for name in ("annealing_loss", "kd_loss", "target_enhanced_loss")],
)
def test_weights_and_temperatures_of_teachers_are_not_infinite(row, own):
    floats, labels, _ = given(row)
    with pytest.raises(ValueError, match=f"^{own} is inf, expected a finite number$"):
        call(row, floats, labels, {**row.numbers, own: np.inf})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "own"),
    [("clip_loss", "log_scale"), ("siglip_loss", "log_scale"), ("siglip_loss", "bias"),
     ("triplet_loss", "margin")],
)  # fmt: skip
def test_numbers_of_either_sign_are_finite(row, own, wrong):
    floats, labels, _ = given(row)
    with pytest.raises(ValueError, match=f"^{own} is {wrong}, expected a finite number$"):
        call(row, floats, labels, {**row.numbers, own: wrong})


@pytest.mark.usefixtures("unchecked")
def test_a_list_is_no_array():
    rows = [[1.0, 0.0], [0.0, 1.0]]
    for loss, arrays in (
        (losses.nt_xent, {"a": rows, "b": rows}), (losses.clip_loss, {"images": rows}),
        (losses.sup_con, {"labels": [0, 1]}), (losses.info_nce, {"positives": [0, 1]}),
    ):  # fmt: skip
        name = next(iter(arrays))
        whole = {
            losses.clip_loss: {"texts": jnp.eye(2), "log_scale": 0.8},
            losses.sup_con: {"features": jnp.eye(2), "temperature": 0.7},
            losses.info_nce: {"queries": jnp.eye(2), "keys": jnp.eye(2), "temperature": 0.7},
        }.get(loss, {"temperature": 0.7})
        with pytest.raises(TypeError, match=f"{name} is a list, expected an array"):
            loss(**whole | arrays)


@pytest.mark.slow
def test_a_batch_of_problems_is_a_loop(name, row):
    problems = [given(row, seed) for seed in (0, 1)]
    together = jax.jit(jax.vmap(partial(call, row)))(
        *jax.tree.map(lambda *parts: jnp.stack(parts), *problems)
    )
    alone = jnp.stack([program(name)(*problem)[0] for problem in problems])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_derivative_is_that_of_differences(name, row):
    """In float64, along a direction of each array and each number."""
    dtype, step, tolerance = jnp.float64, 1e-5, 1e-7
    with jax.enable_x64(True):
        floats, labels, numbers = given(row, dtype=dtype)
        weights = np.arange(1, SIZES["n"] + 1) if row.each else 1
        value, slopes = program(name)(floats, labels, numbers)
        assert value.dtype == dtype
        rng = np.random.default_rng(9)
        places = [(0, i) for i in range(len(floats)) if i not in row.constant]
        for part, key in places + [(1, key) for key in numbers]:
            direction = jnp.asarray(rng.standard_normal(slopes[part][key].shape), dtype)

            def along(t, part=part, key=key, direction=direction):
                moved = [list(floats), dict(numbers)]
                moved[part][key] = moved[part][key] + t * direction
                return np.sum(weights * np.asarray(program(name)(moved[0], labels, moved[1])[0]))

            expected = (along(step) - along(-step)) / (2 * step)
            found = np.sum(np.asarray(slopes[part][key] * direction))
            np.testing.assert_allclose(
                found, expected, rtol=tolerance, atol=tolerance, err_msg=f"by {key}"
            )


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_arrays_that_do_not_fit_are_refused(name, row):
    """One that is shorter along an axis that it shares, and one of length 1: it would broadcast."""
    floats, labels, numbers = given(row)
    arrays, axes = floats + labels, [a.split() for a in row.floats + row.labels]
    tried = 0
    for index, own in enumerate(axes):
        shared = {a for other in axes[:index] + axes[index + 1 :] for a in other}
        for place, axis in enumerate(own):
            length = arrays[index].shape[place]
            if axis not in shared or (index, axis) in row.fewer:
                continue
            for size in {1, length - 1}:
                short = jax.lax.slice_in_dim(arrays[index], 0, size, axis=place)
                changed = [*arrays[:index], short, *arrays[index + 1 :]]
                with pytest.raises(ValueError, match=re.escape(str(short.shape))):
                    jax.eval_shape(partial(row.loss, **numbers), *changed)
                tried += 1
    assert tried or len(arrays) == 1


def _named(start):
    """Functions that the package's docstring names in the item of its list that begins so."""
    items = losses.__doc__.split("The losses and their sources:")[0].split("\n* ")[1:]
    (found,) = (item for item in items if item.startswith(start))
    names = re.findall(r"`(\w+)`", found.replace("`axis_name`", ""))
    assert set(names) <= set(losses.__all__)
    return set(names)


def _taking(argument):
    """Functions of the package with an argument of this name."""
    return {
        name for name in losses.__all__
        if argument in inspect.signature(getattr(losses, name)).parameters
    }  # fmt: skip


def test_what_streams_and_what_spreads_over_devices_is_what_the_package_says():
    spread, alone = _named("`info_nce`"), _named("`dcl`")
    assert spread == _taking("axis_name")
    assert not spread & alone
    # The queue's loss has no such option: its strips are those of `info_nce`.
    assert spread | alone == _taking("block_size") | {"info_nce_with_queue"}
