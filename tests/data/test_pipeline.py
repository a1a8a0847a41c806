import collections
import itertools
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml.data import ArraySource, DataError, batches, decode_and_resize, load
from rml.data.pipeline import _Order, _random_box
from rml.data.source import MEMORY_BOUND, Source

N = 23


def source(n=N, side=4):
    # Each image states its own position.
    image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, side, side, 1))
    return ArraySource(image, np.arange(n) % 5, class_names="abcde", name="numbers")


def positions(batch):
    return batch["image"][:, 0, 0, 0].tolist()


def equal(first, second):
    return all(np.array_equal(first[key], second[key]) for key in ("image", "label"))


BY_EXAMPLE = {"in_memory_bytes": 0, "num_threads": 3}


@pytest.mark.parametrize("how", [{}, BY_EXAMPLE], ids=["gathered", "by example"])
@settings(max_examples=15)
@given(
    batch_size=st.integers(1, N), seed=st.integers(0, 99), shuffle=st.booleans(), drop=st.booleans()
)
def test_one_epoch_holds_every_example_once(how, batch_size, seed, shuffle, drop):
    dataset = batches(
        source(),
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        repeat=False,
        drop_remainder=drop,
        **how,
    )
    got = list(dataset)
    whole, rest = divmod(N, batch_size)
    assert [len(b["label"]) for b in got] == [batch_size] * whole + [rest] * (rest > 0 and not drop)
    seen = [at for batch in got for at in positions(batch)]
    assert len(set(seen)) == len(seen) == (whole * batch_size if drop else N)
    assert shuffle or seen == list(range(len(seen)))
    for batch in got:
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        assert batch["label"].tolist() == [at % 5 for at in positions(batch)]


@pytest.mark.parametrize("how", [{}, BY_EXAMPLE], ids=["gathered", "by example"])
def test_epochs_are_reshuffled_and_seeds_differ(how):
    def orders(seed):
        stream = iter(batches(source(), batch_size=N, seed=seed, **how))
        return [positions(next(stream)) for _ in range(4)]

    four = orders(0)
    assert all(sorted(order) == list(range(N)) for order in four)
    assert len({tuple(order) for order in four + orders(1)}) == 8
    assert orders(0) == four


@pytest.fixture
def drawn(monkeypatch):
    """How often each generator was made, by its seed and epoch."""
    found, make = collections.Counter(), np.random.default_rng

    def counted(seed):
        found[tuple(seed)] += 1
        return make(seed)

    monkeypatch.setattr(np.random, "default_rng", counted)
    return found


@pytest.mark.parametrize("how", [{}, BY_EXAMPLE], ids=["gathered", "by example"])
def test_orders_are_drawn_once_an_epoch_however_many_runs_are_read_in_turn(how, drawn):
    how = how | {"num_threads": 0}  # threads that begin at once draw the same order twice
    runs = [iter(batches(source(), batch_size=5, seed=seed, **how)) for seed in range(6)]
    orders = [[positions(next(run)) for run in runs] for _ in range(12)]
    assert drawn == {(seed, epoch): 1 for seed in range(6) for epoch in range(3)}
    for seed, epoch in list(drawn):
        got = np.concatenate([orders[4 * epoch + batch][seed] for batch in range(4)])
        expected = np.random.default_rng([seed, epoch]).permutation(N)[:20]
        np.testing.assert_array_equal(got, expected)


def test_both_orders_of_the_turn_of_an_epoch_are_kept(drawn):
    order = _Order(n=N, batch_size=5, seed=3, drop_remainder=True, first=0, rows=5)
    for index in (3, 4, 3, 4, 7, 8, 7, 8):
        order.batch(index)
    assert drawn == {(3, 0): 1, (3, 1): 1, (3, 2): 1}


def test_an_order_is_the_same_in_threads_and_pickled():
    order = _Order(n=N, batch_size=5, seed=3, drop_remainder=True, first=0, rows=5)
    epochs = [np.random.default_rng([3, epoch]).permutation(N)[:20] for epoch in range(40)]
    expected = np.concatenate(epochs).reshape(160, 5)
    with ThreadPoolExecutor(8) as pool:
        for index, rows in enumerate(pool.map(order.batch, range(160))):
            np.testing.assert_array_equal(rows, expected[index])
    again = pickle.loads(pickle.dumps(order))
    for index in (159, 0, 77, 3):
        np.testing.assert_array_equal(again.batch(index), expected[index])


@pytest.mark.parametrize("how", [{}, BY_EXAMPLE], ids=["gathered", "by example"])
@pytest.mark.parametrize("at", [0, 1, 4, 11])
def test_a_resumed_iterator_continues_bit_for_bit(how, at):
    def dataset():
        return batches(source(), batch_size=5, seed=7, **how)

    first = iter(dataset())
    for _ in range(at):
        next(first)
    state = json.loads(json.dumps(first.get_state()))  # small and plain
    assert len(json.dumps(state)) < 100
    wanted = [next(first) for _ in range(9)]
    second = iter(dataset())
    second.set_state(state)
    assert all(equal(next(second), batch) for batch in wanted)
    first.set_state(state)  # backwards, in the same iterator
    assert equal(next(first), wanted[0])


@pytest.mark.parametrize("how", [{}, BY_EXAMPLE], ids=["gathered", "by example"])
@pytest.mark.parametrize("drop", [False, True])
def test_the_state_after_the_last_batch_is_the_end(how, drop):
    dataset = batches(source(), batch_size=5, seed=7, repeat=False, drop_remainder=drop, **how)
    first = iter(dataset)
    got = list(first)
    for state, left in ((first.get_state(), []), ({"next_index": len(got) - 1}, got[-1:])):
        again = iter(dataset)
        again.set_state(state)
        assert [positions(batch) for batch in again] == [positions(batch) for batch in left]


class Claimed(Source):
    """A source that says it is of more bytes than are loaded without being asked."""

    nbytes = MEMORY_BOUND + 1

    def _load(self):
        return source().arrays()


def test_as_much_is_loaded_as_is_asked_for():
    large = Claimed(name="large", split="all", class_names="abcde", size=N)
    loaded = iter(batches(large, batch_size=5, seed=1, in_memory_bytes=MEMORY_BOUND + 1))
    assert equal(next(loaded), next(iter(batches(source(), batch_size=5, seed=1))))
    with pytest.raises(DataError, match=r"takes 2,147,483,649 bytes in memory, more than max"):
        large.arrays()


def test_reading_by_example_equals_gathering():
    gathered = iter(batches(source(), batch_size=4, seed=3))
    read = iter(batches(source(), batch_size=4, seed=3, **BY_EXAMPLE))
    assert all(equal(next(gathered), next(read)) for _ in range(20))


@pytest.mark.parametrize("how", [{}, BY_EXAMPLE], ids=["gathered", "by example"])
def test_processes_share_the_global_batch(how):
    alone = iter(batches(source(), batch_size=6, seed=2, **how))
    parts = [
        iter(batches(source(), batch_size=6, seed=2, part=p, parts=3, **how)) for p in range(3)
    ]
    for _ in range(9):
        rows = [next(part) for part in parts]
        assert [len(row["label"]) for row in rows] == [2, 2, 2]
        joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        assert equal(next(alone), joined)


def test_transforms_are_seeded_by_epoch_and_example():
    def noisy(example, rng):
        return {**example, "image": example["image"] + rng.normal(size=(1, 1, 1))}

    def stream(batch_size, seed=5, **how):
        data = batches(source(), batch_size=batch_size, seed=seed, transform=noisy, **how)
        taken = itertools.islice(data, N // batch_size * 2)
        return [batch["image"].ravel()[:: 4 * 4] for batch in taken]

    whole = stream(N, num_threads=0)
    assert not np.array_equal(np.sort(whole[0]), np.sort(whole[1]))  # epochs differ
    assert not np.array_equal(np.sort(whole[0]), np.sort(stream(N, seed=6)[0]))
    assert np.array_equal(whole[0], stream(N, num_threads=4)[0])
    small = np.concatenate(stream(4)[: N // 4])
    assert np.array_equal(small, whole[0][: len(small)])


def test_boxes_have_their_shape_and_the_first_that_fits_is_taken():
    """Boxes half as wide again as tall fit a tall image seldom: one of ten draws does."""
    rngs = map(np.random.default_rng, range(300))
    boxes = np.array([_random_box(60, 40, (0.3, 0.9), (1.5, 1.5), rng) for rng in rngs])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    fitting = np.isclose(wide / tall, 1.5)
    assert fitting.mean() > 0.85  # 0.94 of them, 0.24 of first draws
    assert (wide * tall)[fitting].min() >= 0.3 * 2400 - 1e-6
    assert wide.max() <= 40
    assert tall.max() <= 60


def test_decode_and_resize_draws_boxes_in_range():
    ramp = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[:, None, None], (120, 90, 1))
    image = np.ascontiguousarray(ramp)
    crop = decode_and_resize(16, scale=(0.25, 0.5), ratio=(1.0, 1.0))
    spans = []
    for seed in range(200):
        out = crop({"image": image, "label": 1}, np.random.default_rng(seed))
        assert out["image"].shape == (16, 16, 1)
        assert out["label"] == 1
        # The ramp rises by 2 a row: the difference of the ends tells the height.
        column = out["image"][:, 0, 0].astype(float)
        spans.append((column[-2] - column[1]) / 2 * 16 / 13)
    shares = (np.array(spans) ** 2) / (120 * 90)
    assert shares.min() > 0.23
    assert shares.max() < 0.53
    assert shares.max() - shares.min() > 0.2
    centre = decode_and_resize((8, 6))({"image": image, "label": 0}, np.random.default_rng(0))
    assert centre["image"].shape == (8, 6, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": N + 1}, "batch_size=24 is larger than the 23 examples of 'numbers'"),
        ({"batch_size": 4, "seed": -1}, "seed must not be negative, got -1"),
        ({"batch_size": 0}, "must be positive, got 0"),
        ({"batch_size": 4, "parts": 3}, "not divisible by 3"),
        ({"batch_size": 4, "parts": 2, "part": 2}, r"not in 0\.\.1"),
        ({"batch_size": 4, "parts": 2, "drop_remainder": False}, "equal batches"),
        ({"batch_size": 4, "drop_remainder": False, **BY_EXAMPLE}, "repeat=False"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(DataError, match=message):
        batches(source(), **{"seed": 0, **options})


@pytest.mark.parametrize(
    "options", [{"scale": (0.5, 2.0)}, {"ratio": (2.0, 1.0)}, {"scale": (0, 1)}]
)
def test_ranges_of_decode_and_resize(options):
    with pytest.raises(DataError, match=r"range|at most 1"):
        decode_and_resize(8, **options)


def test_works_under_grains_device_put():
    device = jax.devices()[0]
    dataset = grain.experimental.device_put(batches(source(), batch_size=5, seed=1), device)
    iterator = iter(dataset)
    taken = [next(iterator) for _ in range(3)]
    assert isinstance(taken[0]["image"], jax.Array)
    state = iterator.get_state()
    following = next(iterator)
    again = iter(dataset)
    again.set_state(state)
    assert equal(next(again), following)
    plain = iter(batches(source(), batch_size=5, seed=1))
    assert all(equal(next(plain), batch) for batch in taken)


@pytest.mark.slow
def test_gathering_is_fast():
    iterator = iter(batches(load("mnist5k", "train"), batch_size=256, seed=0))
    next(iterator)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(10):
            next(iterator)
        seconds.append((time.perf_counter() - start) / 10)
    assert min(seconds) < 0.5e-3
