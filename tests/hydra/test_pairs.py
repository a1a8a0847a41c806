"""Pairs: the numbering is a bijection, draws are uniform, batches hold what they promise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml.data import ArraySource
from rml.data.source import MEMORY_BOUND, Source
from rml.errors import UserError
from rml.hydra.pairs import (
    number_of_pairs,
    pair_batches,
    sample_pairs,
    sample_partners,
    unrank,
    view_partners,
)


@given(st.integers(1, 60))
@settings(max_examples=25)
def test_every_pair_has_one_index(classes):
    i, j = unrank(np.arange(number_of_pairs(classes)), classes=classes)
    expected = set(itertools.combinations_with_replacement(range(classes), 2))
    assert len(i) == len(expected)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected


@given(st.integers(2, 3_000_000), st.integers(0, 2**62))
@settings(max_examples=50)
def test_large_numbers_of_classes_are_exact(classes, seed):
    """Neighbouring indices give different pairs in range, as a square root's rounding would not."""
    index = (seed + np.arange(4)) % number_of_pairs(classes)
    i, j = unrank(index, classes=classes)
    assert ((i >= 0) & (i <= j) & (j < classes)).all()
    assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == len(set(index.tolist()))


def test_numpy_and_jax_agree():
    index = np.random.default_rng(0).integers(0, number_of_pairs(1000), 100)
    ours = unrank(jnp.asarray(index, jnp.int32), classes=1000)
    np.testing.assert_array_equal(ours, unrank(index, classes=1000))


def test_too_narrow_an_index_is_refused():
    unrank(jnp.zeros(1, jnp.int32), classes=65535)
    with pytest.raises(ValueError, match="65536 classes have 2147516416 pairs"):
        unrank(jnp.zeros(1, jnp.int32), classes=65536)
    with pytest.raises(ValueError, match="classes is 0"):
        number_of_pairs(0)


@pytest.mark.parametrize("classes", [1, 4, 7])
def test_drawn_pairs_are_uniform(classes):
    """Pearson's statistic of 200,000 draws is below its mean plus six standard deviations."""
    i, j = sample_pairs(jax.random.key(0), 200_000, classes=classes)
    counts = np.bincount(np.asarray(i) * classes + np.asarray(j), minlength=classes**2)
    pairs = number_of_pairs(classes)
    assert (counts > 0).sum() == pairs
    assert (np.asarray(i) <= np.asarray(j)).all()
    expected = 200_000 / pairs
    statistic = ((counts[counts > 0] - expected) ** 2 / expected).sum()
    assert statistic < pairs + 6 * np.sqrt(2 * pairs)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1000, 100_000])
def test_pairs_of_many_classes(classes):
    """Uniform over the triangle: i / C and j / C are the lesser and greater of two uniforms."""
    i, j = jax.jit(sample_pairs, static_argnums=1, static_argnames="classes")(
        jax.random.key(1), 100_000, classes=classes
    )
    assert int(i.min()) >= 0
    assert int(j.max()) < classes
    assert bool((i <= j).all())
    np.testing.assert_allclose(jnp.mean(i / classes), 1 / 3, atol=0.004)
    np.testing.assert_allclose(jnp.mean(j / classes), 2 / 3, atol=0.004)


def test_uniform_partners_make_unordered_pairs_uniform():
    labels = jnp.arange(300_000) % 5
    partners = sample_partners(jax.random.key(2), labels, classes=5)
    low, high = np.minimum(labels, partners), np.maximum(labels, partners)
    shares = np.bincount(low * 5 + high, minlength=25) / len(labels)
    np.testing.assert_allclose(shares[shares > 0], 1 / 15, rtol=0.04)
    assert (shares > 0).sum() == 15


def test_other_samplings_of_partners():
    labels, key = jnp.array([0, 0, 1, 2, 4, 4]), jax.random.key(0)
    np.testing.assert_array_equal(
        sample_partners(key, labels, classes=5, sampling="identical"), labels
    )
    batch = sample_partners(key, labels, classes=5, sampling="batch")
    np.testing.assert_array_equal(np.sort(batch), labels)
    distinct = sample_partners(key, jnp.arange(3000) % 3, classes=3, sampling="distinct")
    assert set(np.asarray((distinct - jnp.arange(3000)) % 3)) == {1, 2}
    with pytest.raises(ValueError, match="did you mean 'distinct'"):
        sample_partners(key, labels, classes=5, sampling="distnct")
    with pytest.raises(ValueError, match="at least 2 classes"):
        sample_partners(key, labels, classes=1, sampling="distinct")


def few_shot_source(classes, each=3, missing=()):
    labels = np.repeat([c for c in range(classes) if c not in missing], each)
    images = np.arange(len(labels), dtype=np.float32)[:, None]
    return ArraySource(images, labels, class_names=[str(c) for c in range(classes)])


def test_batches_hold_both_classes_of_every_pair():
    source = few_shot_source(300, missing=(7, 8))
    batches = pair_batches(source, batch_size=64, seed=0)
    first = next(iter(batches))
    assert first["label"].dtype == first["partner"].dtype == np.int32
    np.testing.assert_array_equal(
        first["label"].reshape(-1, 2), first["partner"].reshape(-1, 2)[:, ::-1]
    )
    np.testing.assert_array_equal(source.labels[first["image"][:, 0].astype(int)], first["label"])
    assert not np.isin(first["label"], (7, 8)).any()


def test_batches_of_pairs_are_uniform_and_take_two_examples_of_one_class():
    batches = iter(pair_batches(few_shot_source(4), batch_size=2000, seed=1))
    rows = [next(batches) for _ in range(10)]
    label = np.concatenate([b["label"] for b in rows]).reshape(-1, 2)
    image = np.concatenate([b["image"][:, 0] for b in rows]).reshape(-1, 2)
    key = np.sort(label, 1) @ [4, 1]
    shares = np.bincount(key, minlength=16) / len(key)
    np.testing.assert_allclose(shares[shares > 0], 0.1, rtol=0.12)
    assert (shares > 0).sum() == 10
    assert (image[:, 0] != image[:, 1]).all()
    np.testing.assert_allclose(
        np.bincount(image.reshape(-1).astype(int)) / image.size, 1 / 12, rtol=0.1
    )


def test_a_class_of_one_example_pairs_it_with_itself():
    source = few_shot_source(1, each=1)
    batch = next(iter(pair_batches(source, batch_size=4, seed=0)))
    np.testing.assert_array_equal(batch["image"], np.zeros((4, 1)))


@pytest.mark.parametrize("in_memory_bytes", [2**20, 0])
def test_batches_resume_where_they_stopped(in_memory_bytes):
    def batches():
        return iter(
            pair_batches(few_shot_source(50), batch_size=8, seed=3, in_memory_bytes=in_memory_bytes)
        )

    straight = batches()
    expected = [next(straight) for _ in range(5)]
    stopped = batches()
    for _ in range(2):
        next(stopped)
    resumed = batches()
    resumed.set_state(stopped.get_state())
    for one in expected[2:]:
        jax.tree.map(np.testing.assert_array_equal, next(resumed), one)


def test_both_ways_of_reading_give_the_same_batches():
    source = few_shot_source(50)
    memory, read = (
        next(iter(pair_batches(source, batch_size=16, seed=5, in_memory_bytes=size)))
        for size in (2**20, 0)
    )
    jax.tree.map(np.testing.assert_array_equal, memory, read)


@pytest.mark.parametrize("in_memory_bytes", [2**20, 0])
def test_parts_of_a_batch_are_its_rows(in_memory_bytes):
    def third(part, parts):
        options = dict(part=part, parts=parts, in_memory_bytes=in_memory_bytes)
        batches = iter(pair_batches(few_shot_source(50), batch_size=16, seed=5, **options))
        return [next(batches) for _ in range(3)][2]

    whole, parts = third(0, 1), [third(part, 4) for part in range(4)]
    jax.tree.map(lambda w, *p: np.testing.assert_array_equal(np.concatenate(p), w), whole, *parts)


@pytest.mark.parametrize("in_memory_bytes", [2**20, 0])
def test_examples_without_a_label_are_in_no_pair(in_memory_bytes):
    labels = np.array([-1, 2, 0, -1, 2, -1])
    source = ArraySource(np.arange(6.0)[:, None], labels, class_names="abc")
    options = dict(batch_size=200, seed=0, in_memory_bytes=in_memory_bytes)
    batch = next(iter(pair_batches(source, **options)))
    assert set(batch["image"][:, 0].tolist()) == {1, 2, 4}
    assert set(batch["partner"].tolist()) == {0, 2}
    nothing = ArraySource(np.zeros((2, 1)), np.array([-1, -1]), class_names="abc", name="none")
    with pytest.raises(UserError, match="'none' has no example of a known class"):
        pair_batches(nothing, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": 2, "parts": 2}, r"part=2 is not in 0\.\.1"),
        ({"part": -1}, r"part=-1 is not in 0\.\.0"),
        ({"parts": 0}, r"part=0 is not in 0\.\.-1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_parts_and_seeds_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        pair_batches(few_shot_source(3), **{"batch_size": 8, "seed": 0, **options})


@pytest.mark.parametrize("size", [0, 7])
def test_odd_batches_are_refused(size):
    with pytest.raises(ValueError, match=f"even batch_size, got {size}"):
        pair_batches(few_shot_source(3), batch_size=size, seed=0)


def test_each_view_of_an_image_has_a_partner_of_its_own():
    labels, options = jnp.arange(40) % 7, dict(classes=7, sampling="uniform")
    partners = view_partners(jax.random.key(0), labels, **options).reshape(40, 2)
    assert (partners[:, 0] != partners[:, 1]).any()
    rows = sample_partners(jax.random.key(0), jnp.tile(labels, 2), **options)
    np.testing.assert_array_equal(partners, rows.reshape(2, 40).T)


def test_partners_of_views_stand_beside_their_labels():
    labels = jnp.array([4, 0, 2])
    found = view_partners(jax.random.key(0), labels, classes=5, sampling="identical", views=3)
    np.testing.assert_array_equal(found, [4, 4, 4, 0, 0, 0, 2, 2, 2])


class Claimed(Source):
    """A source that says it is of more bytes than are loaded without being asked."""

    nbytes = MEMORY_BOUND + 1

    def _load(self):
        return {"image": np.zeros((6, 1, 1, 1), np.uint8), "label": np.arange(6) % 3}


def test_as_much_is_loaded_as_is_asked_for():
    large = Claimed(name="large", split="all", class_names="abc", size=6)
    batch = next(iter(pair_batches(large, batch_size=4, seed=0, in_memory_bytes=large.nbytes)))
    assert batch["image"].shape == (4, 1, 1, 1)
