"""Times of one call over those of another, with a clock that says what it is told."""

import pytest

from experiments.common import timing


def test_a_ratio_is_the_median_over_pairs_of_the_first_over_the_second(monkeypatch):
    """A call that disturbs one pair does not move it; which call comes first alternates."""
    seconds = {"first": iter([3.0, 40.0, 9.0]), "second": iter([2.0, 4.0, 3.0])}
    called = []

    def run(name):
        called.append(name)
        return name

    monkeypatch.setattr(timing, "_seconds", lambda call: next(seconds[call()]))
    calls = (lambda: run("first")), (lambda: run("second"))
    assert timing.median_ratio(*calls, repeats=3) == pytest.approx(3.0)
    assert called[2:] == ["first", "second", "second", "first", "first", "second"]
