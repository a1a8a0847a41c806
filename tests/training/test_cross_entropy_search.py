"""Searches by the cross-entropy method: a separable toy, one round by hand, resuming."""

import json

import numpy as np
import pytest

from rml.errors import UserError
from rml.training.cross_entropy_search import (
    Search,
    cross_entropy_search,
    draw_settings,
    entropy,
    moved,
)

SPACE = {"a": (1, 2, 5, 9), "b": (0.1, 0.2, 0.3), "c": ("x", "y")}


def separable(settings):
    return [-((s["a"] - 5) ** 2) - 10 * abs(s["b"] - 0.3) + (s["c"] == "y") for s in settings]


def test_laws_collapse_to_the_best_setting_of_a_separable_score():
    found = cross_entropy_search(separable, SPACE, search=Search(rounds=12), seed=1)
    assert found.best == ({"a": 5, "b": 0.3, "c": "y"}, 1.0)
    assert max(found.entropies.values()) < 0.1
    assert found.rounds < 12  # it ends once all laws are sure
    assert len(found.scores) == 24 * found.rounds
    assert [found.laws["a"][2] > 0.97, found.laws["b"][2] > 0.97] == [True, True]


def test_a_round_moves_laws_to_the_frequencies_of_the_elite():
    settings = [{"a": a, "c": c} for a, c in ((1, "x"), (5, "y"), (9, "y"), (5, "x"), (2, "x"))]
    scores = [0.0, 3.0, np.nan, 3.0, 1.0]
    laws = {"a": [0.4, 0.3, 0.2, 0.1], "c": [0.5, 0.5]}
    space = {"a": SPACE["a"], "c": SPACE["c"]}
    new = moved(laws, space, settings, scores, Search(elite=0.5, step=0.6))
    # The three best are settings 1, 3 and 4; what is no number is the worst.
    np.testing.assert_allclose(new["a"], [0.16, 0.12 + 0.2, 0.08 + 0.4, 0.04])
    np.testing.assert_allclose(new["c"], [0.2 + 0.4, 0.2 + 0.2])
    still = moved(laws, space, settings, scores, Search(step=0.0))
    np.testing.assert_allclose(still["a"], laws["a"])


def test_a_share_of_draws_that_is_whole_is_not_rounded_up():
    settings = [{"a": a} for a in range(25)]
    laws, scores = {"a": [0.04] * 25}, [float(a) for a in range(25)]
    new = moved(laws, {"a": range(25)}, settings, scores, Search(elite=0.28, step=1.0))
    np.testing.assert_allclose(new["a"], [0.0] * 18 + [1 / 7] * 7)


def test_however_small_a_share_takes_the_best_setting():
    settings, laws = [{"a": a} for a in (1, 2, 5, 9)], {"a": [0.25] * 4}
    new = moved(
        laws, {"a": SPACE["a"]}, settings, [0.0, 2.0, 1.0, 0.0], Search(elite=1e-12, step=1.0)
    )
    assert new["a"] == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("values", [(0, False), (True, 1), (1, 1.0), ((0, 1), (False, True))])
def test_values_that_equal_one_another_have_laws_of_their_own(values):
    laws, settings = {"a": [0.5, 0.5]}, [{"a": value} for value in values]
    new = moved(laws, {"a": values}, settings, [0.0, 1.0], Search(elite=0.5, step=1.0))
    assert new["a"] == [0.0, 1.0]


def test_a_space_of_one_setting_has_a_best_one():
    found = cross_entropy_search(lambda settings: [2.0] * len(settings), {"x": [1]})
    assert (found.best, found.rounds) == (({"x": 1}, 2.0), 1)


def test_draws_follow_the_laws():
    laws = {"a": [0.1, 0.2, 0.3, 0.4], "b": [0.0, 1.0, 0.0], "c": [0.5, 0.5]}
    drawn = draw_settings(laws, SPACE, 4000, seed=3)
    share = np.mean([[s["a"] == value for value in SPACE["a"]] for s in drawn], axis=0)
    np.testing.assert_allclose(share, laws["a"], atol=0.03)
    assert {s["b"] for s in drawn} == {0.2}
    both = np.mean([s["a"] == 9 and s["c"] == "x" for s in drawn])
    assert both == pytest.approx(0.2, abs=0.03)
    assert entropy(laws["b"]) == 0.0
    assert entropy(laws["c"]) == pytest.approx(np.log(2))


def test_rounds_draw_anew():
    search = Search(draws=6, rounds=2, step=0.0)
    found = cross_entropy_search(separable, SPACE, search=search)
    assert found.settings[:6] != found.settings[6:]
    assert found == cross_entropy_search(separable, SPACE, search=search)


def test_a_stopped_search_continues_to_the_same_end(tmp_path):
    calls = []

    def counted(settings):
        calls.append(len(settings))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return separable(settings)

    search = Search(draws=6, rounds=4, least_entropy=0.0)
    whole = cross_entropy_search(separable, SPACE, search=search, seed=2)
    path = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        cross_entropy_search(counted, SPACE, search=search, seed=2, path=path)
    assert json.loads(path.read_text())["rounds"] == 2
    again = cross_entropy_search(counted, SPACE, search=search, seed=2, path=path)
    assert again == whole
    assert calls == [6] * 5
    longer = search._replace(rounds=6)
    further = cross_entropy_search(counted, SPACE, search=longer, seed=2, path=path)
    assert further == cross_entropy_search(separable, SPACE, search=longer, seed=2)
    assert calls == [6] * 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": Search(draws=6, rounds=1)}, "holds 2 rounds, expected at most 1"),
        ({"space": SPACE | {"b": (1,)}}, "of another space"),
        ({"space": SPACE | {"b": (0.1, 0.2, 0.4)}}, "of another space"),
        ({"space": dict(reversed(SPACE.items()))}, "of another space"),
        ({"seed": 3}, "of another seed, 2, expected 3"),
        ({"search": Search(draws=6, rounds=2, step=0.5)}, "of another search"),
    ],
)
def test_a_file_of_another_search_is_refused(changes, message, tmp_path):
    path = tmp_path / "search.json"
    own = {"space": SPACE, "search": Search(draws=6, rounds=2), "seed": 2, "path": path}
    found = cross_entropy_search(separable, **own)
    assert cross_entropy_search(separable, **own) == found
    with pytest.raises(UserError, match=message):
        cross_entropy_search(separable, **own | changes)
    old = json.loads(path.read_text())
    del old["of"]
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match="does not say of which space, seed and search it is"):
        cross_entropy_search(separable, **own)


def test_a_file_is_of_the_same_search_however_its_numbers_are_written(tmp_path):
    own = {"space": SPACE, "path": tmp_path / "search.json"}
    first = cross_entropy_search(separable, **own, search=Search(draws=6, rounds=2, step=1))
    assert first == cross_entropy_search(
        separable, **own, search=Search(draws=6, rounds=2, step=1.0)
    )
    with pytest.raises(UserError, match="of another space"):
        cross_entropy_search(
            separable, **own | {"space": SPACE | {"a": (True, 2, 5, 9)}},
            search=Search(draws=6, rounds=2, step=1),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("space", "search", "message"),
    [
        ({}, Search(), "expected some"),
        ({"a": ()}, Search(), r"no values for \['a'\]"),
        (SPACE, Search(elite=0.0), "elite of 0 to 1"),
        (SPACE, Search(step=1.5), "step is 1.5, expected 0 to 1"),
        (SPACE, Search(rounds=0), "rounds of at least 1"),
    ],
)
def test_wrong_searches_are_named(space, search, message):
    with pytest.raises(UserError, match=message):
        cross_entropy_search(separable, space, search=search)
    with pytest.raises(UserError, match="1 scores for 24 settings"):
        cross_entropy_search(lambda settings: [1.0], SPACE)


def test_values_that_the_file_cannot_hold_are_named_before_a_round(tmp_path):
    def objective(settings):
        raise AssertionError("not reached")

    with pytest.raises(UserError, match=r"values of width are .*JSON.*int64"):
        cross_entropy_search(
            objective, {"width": list(np.arange(3))}, path=tmp_path / "search.json"
        )
    assert not list(tmp_path.iterdir())


def test_a_continued_search_gives_the_values_of_its_space(tmp_path):
    own = {"space": {"widths": [(64, 64), (128,)]}, "path": tmp_path / "search.json"}
    first, again = (
        cross_entropy_search(lambda settings: [len(s["widths"]) for s in settings], **own)
        for _ in range(2)
    )
    assert first == again
    assert again.best[0] == {"widths": (64, 64)}
