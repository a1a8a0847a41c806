import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from rml.data import splits
from rml.errors import UserError

SIZES = {"train": 10, "test": 4}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", [("train", range(10))]),
        ("train[:80%]", [("train", range(8))]),
        ("train[80%:]", [("train", range(8, 10))]),
        ("train[-20%:]", [("train", range(8, 10))]),
        ("train[2:5]", [("train", range(2, 5))]),
        ("train[:-3]", [("train", range(7))]),
        ("train[:]", [("train", range(10))]),
        ("train+test[1:]", [("train", range(10)), ("test", range(1, 4))]),
        (" train + test ", [("train", range(10)), ("test", range(4))]),
        ("all", [("train", range(10)), ("test", range(4))]),
    ],
)
def test_parse_reads_tfds_syntax(split, expected):
    got = splits.parse(split, SIZES)
    assert [(name, list(at)) for name, at in got] == [(name, list(at)) for name, at in expected]


@settings(max_examples=60)
@given(n=st.integers(1, 500), a=st.integers(-100, 100), b=st.integers(-100, 100), pct=st.booleans())
def test_parse_agrees_with_tfds(n, a, b, pct):
    unit = "%" if pct else ""
    split = f"train[{a}{unit}:{b}{unit}]"
    info = tfds.core.SplitInfo(name="train", shard_lengths=[n], num_bytes=0, filename_template=None)
    instruction = tfds.core.ReadInstruction.from_spec(split)
    try:
        (wanted,) = instruction.to_absolute({"train": info})
    except ValueError:
        wanted = None  # TFDS refuses the boundary, and so do we
    expected = list(range(n))[wanted.from_ : wanted.to] if wanted else []
    if expected:
        ((_, got),) = splits.parse(split, {"train": n})
        assert list(got) == expected
    else:
        with pytest.raises(ValueError, match=r"outside|selects no"):
            splits.parse(split, {"train": n})


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val", r"no split 'val'; there are \['test', 'train'\]"),
        ("train[", "not of the form"),
        ("train[80]", "not of the form"),
        ("", "not of the form"),
        ("train+", "not of the form"),
        ("train[5:5]", "selects no example"),
        ("train[:120%]", "outside"),
        ("train[:11]", "outside the 10 examples"),
    ],
)
def test_parse_says_what_is_wrong(split, message):
    with pytest.raises(ValueError, match=message):
        splits.parse(split, SIZES)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("train[:60%]", "train[59%:]", True),
        ("train[10:20]+test", "validation[:30]+train[19:]", True),
        ("own", "all", True),
        ("train[:60%]", "train[60%:]", False),
        ("train[10:20]", "train[20:]", False),
        ("train", "test+own", False),
        ("train[:60%]", "train[-2000:]", None),
        ("train[10%:20%]", "train[500:600]", None),
        ("train[400:500]", "train[-500:-450]", None),
        ("train[30%:40%]", "train[-2000:-1900]", None),
        ("train[10%:300]", "train[:200]", None),
        ("train[100:-100]", "train[99:101]", True),
        # Halves are rounded to even numbers: of 15 the 14th is in both. Of 50, -1% is 0.
        ("train[:90%]", "train[-10%:]", None),
        ("train[:90%]", "train[-10%:300]", None),  # of 315 they share one
        ("train[:99%]", "train[-1%:]", None),
        ("train[:90%]", "train[90%:]", False),
        ("train[:-1%]", "train[-1%:]", False),
        ("train[:10]", "train[50%:]", None),  # of 15 they share three
        ("train[1200:2000]", "train[:60%]", None),  # of 2000 none, of more some
    ],
)
def test_splits_overlap_where_they_share_an_example_whatever_its_number(first, second, expected):
    for texts in ((first, second), (second, first)):
        assert splits.overlap(dict(zip("ab", texts, strict=True))) is expected


BOUNDARY = st.one_of(
    st.integers(0, 60).map(str),
    st.integers(1, 60).map("-{}".format),
    st.integers(1, 20).map(lambda share: f"{5 * share}%"),
    st.integers(1, 20).map(lambda share: f"-{5 * share}%"),
)


@settings(max_examples=25, deadline=None)
@given(ends=st.tuples(BOUNDARY, BOUNDARY, BOUNDARY, BOUNDARY))
@pytest.mark.slow
def test_whether_splits_overlap_is_what_all_sizes_say(ends):
    """Of numbers up to 60 and shares from 5% on, nothing changes beyond 100 x 60.5 / 5 examples."""
    texts = f"train[{ends[0]}:{ends[1]}]", f"train[{ends[2]}:{ends[3]}]"
    found = set()
    for size in range(1, 1300):
        try:
            (one,), (other,) = (splits.parse(text, {"train": size}) for text in texts)
        except ValueError:
            continue  # one of them has no example
        shared = bool(np.intersect1d(one[1], other[1], assume_unique=True).size)
        if shared or size >= 100:
            found.add(shared)
    if not found:
        with pytest.raises(UserError, match="expected splits such as"):
            splits.overlap(dict(zip("ab", texts, strict=True)))
    else:
        expected = found.pop() if len(found) == 1 else None
        assert splits.overlap(dict(zip("ab", texts, strict=True))) is expected


def test_of_splits_that_overlap_each_text_is_read():
    with pytest.raises(UserError, match=r"data\.base is 'train\[80%', expected splits such as"):
        splits.overlap({"data.validation": "train", "data.base": "train[80%"})


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 10),
)
def test_every_contiguous_slice_of_interleaved_classes_is_balanced(counts, cut, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    order = splits.interleave(labels, seed=seed)
    assert sorted(order) == list(range(len(labels)))
    low, high = sorted(round(c * len(labels)) for c in cut)
    got = np.bincount(labels[order[low:high]], minlength=len(counts))
    share = np.array(counts) * (high - low) / len(labels)
    # Each class is evenly spaced, so a slice errs by what its two ends can cut off.
    np.testing.assert_allclose(got, share, atol=2 + 2 * np.sqrt(len(counts)))


def test_classes_start_at_places_of_their_own():
    labels = np.repeat(np.arange(8), 5)
    starts = [labels[splits.interleave(labels, seed=seed)[0]] for seed in range(60)]
    assert np.bincount(starts, minlength=8).min() > 0


def test_stratified_keeps_proportions_and_is_a_partition():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 2, 1])
    train, test = splits.stratified(labels, test_fraction=0.2, seed=3)
    assert sorted(np.concatenate([train, test])) == list(range(len(labels)))
    assert np.bincount(labels[test], minlength=4).tolist() == [20, 10, 1, 0]
    much = splits.stratified(labels, test_fraction=0.9, seed=3)
    assert np.bincount(labels[much[0]], minlength=4).tolist() == [10, 5, 1, 0]
    again = splits.stratified(labels, test_fraction=0.2, seed=3)
    assert np.array_equal(train, again[0])
    assert not np.array_equal(test, splits.stratified(labels, test_fraction=0.2, seed=4)[1])
