import gzip
import json

import numpy as np
import pytest

from rml.data import DataError, load_interactions

ROWS = [
    ("u2", "x", 5, 1),
    ("u10", "y", 9, 2),
    ("u10", "x", 1, 3),
    ("u10", "z", 9, 4),  # as late as y, and later in the file
    ("u10", "y", 2, 5),
    ("u2", "z", 4, 6),
    ("u3", "z", -1.5, 7),
    ("u3", "x", 2, 8),
    ("u3", "w", 3, 9),
]


@pytest.fixture
def save(tmp_path):
    def save(content, file="log.csv"):
        data = content.encode()
        (tmp_path / file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
        return f"interactions:{tmp_path / file}"

    return save


def text(delimiter=",", columns=("user", "item", "time", "rating"), rows=ROWS):
    return "\n".join(delimiter.join(map(str, row)) for row in [columns, *rows]) + "\n"


def named(found):
    """User, item and time of each interaction, as the file has them."""
    return [
        (found.user_ids[user], found.item_ids[item], time)
        for user, item, time in zip(found.user, found.item, found.time.tolist(), strict=True)
    ]


def test_users_are_together_in_the_order_of_time(save):
    found = load_interactions(save(text()), "all")
    assert (found.user_ids, found.item_ids) == (("u10", "u2", "u3"), ("w", "x", "y", "z"))
    assert named(found) == [
        ("u10", "x", 1), ("u10", "y", 2), ("u10", "y", 9), ("u10", "z", 9),
        ("u2", "z", 4), ("u2", "x", 5),
        ("u3", "z", -1.5), ("u3", "x", 2), ("u3", "w", 3),
    ]  # fmt: skip
    assert found.rating.tolist() == [3, 5, 2, 4, 6, 1, 7, 8, 9]
    assert (found.user.dtype, found.item.dtype, found.time.dtype) == (np.int32, np.int32, float)


def test_the_last_items_are_held_out(save):
    name = save(text())
    assert named(load_interactions(name, "test")) == [("u10", "z", 9), ("u3", "w", 3)]
    assert named(load_interactions(name, "validation")) == [("u10", "y", 9), ("u3", "x", 2)]
    train = load_interactions(name, "train")
    assert named(train) == [
        ("u10", "x", 1), ("u10", "y", 2), ("u2", "z", 4), ("u2", "x", 5), ("u3", "z", -1.5),
    ]  # fmt: skip
    assert train.item_ids == ("w", "x", "y", "z")
    assert len(load_interactions(name, "train[:40%]").user) == 2
    known = load_interactions(name, "validation+train")
    assert known.user.tolist() == sorted(known.user)
    assert named(known)[:3] == [("u10", "x", 1), ("u10", "y", 2), ("u10", "y", 9)]


def test_equal_times_are_in_the_order_of_lines(save):
    rows = [("u", item, 7) for item in "cabd"]
    columns = ("user", "item", "time")
    for lines in (rows, rows[::-1]):
        found = load_interactions(save(text(rows=lines, columns=columns)), "all")
        assert named(found) == lines
        assert found.rating is None


def test_other_formats_read_the_same(save):
    whole = load_interactions(save(text()), "all")
    objects = [dict(zip(("user", "item", "time", "rating", "more"), (*row, 0), strict=True))
               for row in ROWS]  # fmt: skip
    files = {
        "log.tsv": text("\t"),
        "log.csv.gz": text(),
        "log.jsonl": "\n".join(map(json.dumps, objects)),
        "more.csv": text(
            columns=("more", "time", "item", "rating", "user"),
            rows=[('"a, b"', time, item, rating, user) for user, item, time, rating in ROWS],
        ),
    }
    for file, content in files.items():
        found = load_interactions(save(content, file), "all")
        for ours, theirs in zip(found, whole, strict=True):
            assert np.array_equal(ours, theirs), file


def test_ids_that_are_numbers_are_strings(save):
    lines = [{"user": 7, "item": 10, "time": 0}, {"user": "7", "item": 9, "time": "1e3"}]
    found = load_interactions(save("\n".join(map(json.dumps, lines)), "log.jsonl"), "all")
    assert named(found) == [("7", "10", 0), ("7", "9", 1000)]


HEADER = "user,item,time\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("u,i,1\nu,j,2\n", r"line 1 has the columns \['u', 'i', '1'\], expected a header with"),
        ("user,item,time,time\n", "line 1 has the columns"),
        (HEADER + "u,i\n", "line 2 has 2 columns, expected 3"),
        (HEADER + "u,i,1\n\nu,j,May\n", "line 4: 'time' is 'May', expected a number"),
        (HEADER + "u,i,nan\n", "line 2: 'time' is 'nan', expected a number"),
        (HEADER + "u,i,\n", "line 2: 'time' is '', expected a number"),
        (HEADER + ",i,1\n", "line 2: 'user' is empty, expected an id"),
        (HEADER + 'u,"i,1\n', "line 2 is broken: unexpected end of data"),
        (HEADER + "u,i,1\nv,i,1\nu,i,1.0\n", "line 4 repeats line 2: the same user, item and time"),
        (HEADER, "holds no interactions, expected user, item, time in each line"),
        ("", "holds no interactions"),
        ("user,item,time,rating\nu,i,1,good\n", "line 2: 'rating' is 'good', expected a number"),
    ],
)
def test_a_broken_line_is_named(save, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load_interactions(save(content), "all")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"user": "u"'], "line 1 is not JSON"),
        (["3"], "line 1 is 3, expected an object with 'user', 'item' and 'time'"),
        (['{"user": "u", "item": "i"}'], "line 1: 'time' is None, expected a number"),
        (['{"user": null, "item": "i", "time": 1}'], "line 1: 'user' is None, expected a string"),
        (['{"user": "u", "item": "i", "time": true}'], "line 1: 'time' is True, expected"),
        (
            [
                '{"user": "u", "item": "i", "time": 1}',
                '{"user": "u", "item": "j", "time": 1, "rating": 3}',
            ],
            "line 2 has a rating, lines before it have none",
        ),
        (
            [
                '{"user": "u", "item": "i", "time": 1, "rating": 3}',
                '{"user": "u", "item": "j", "time": 1}',
            ],
            "line 2: 'rating' is None, expected a number",
        ),
    ],
)
def test_a_broken_object_is_named(save, lines, message):
    with pytest.raises(DataError, match=message):
        load_interactions(save("\n".join(lines), "log.jsonl"), "all")


def test_a_damaged_archive_is_named(save, tmp_path):
    rows = [(f"u{i % 7}", i * 7919 % 100_003, i * 104_729 % 1_000_003, 1) for i in range(500)]
    name = save(text(rows=rows), "log.csv.gz")
    body = (tmp_path / "log.csv.gz").read_bytes()
    for at in range(100, len(body) - 100, len(body) // 9):
        damaged = bytes(b ^ 0x55 for b in body[at : at + 9])
        (tmp_path / "log.csv.gz").write_bytes(body[:at] + damaged + body[at + 9 :])
        with pytest.raises(DataError, match=r"log\.csv\.gz"):
            load_interactions(name, "train")


def test_files_and_splits_that_are_not_there(save, tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*none\.csv"):
        load_interactions(f"interactions:{tmp_path}/none.csv", "all")
    with pytest.raises(DataError, match=r"ends in '\.txt', expected \.csv, \.tsv or \.jsonl"):
        load_interactions(save("", "log.txt"), "all")
    name = save(HEADER + "u,i,1\nu,j,2\n")
    assert len(load_interactions(name, "train").user) == 2
    with pytest.raises(DataError, match=r"no split 'test'; there are \['train'\]"):
        load_interactions(name, "test")
