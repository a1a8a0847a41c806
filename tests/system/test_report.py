"""The report: every run and claim is on it, nothing outside it, whatever the directories hold."""

import fcntl
import html
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments.common import figures
from experiments.report import groups
from experiments.report.__main__ import main
from experiments.report.charts import POINTS
from experiments.report.claims import verdict
from experiments.report.groups import Group, mean_interval, varied_alone
from experiments.report.markup import duration, escape, number, tag, with_spread
from experiments.report.page import MARKER, render
from experiments.report.reading import find_runs, natural, read_run, read_runs
from experiments.report.runs import Run, decimate
from rml.ops import t_interval
from rml.training import Claim, judge
from tests.disk import full_after

HOSTILE = "<script>alert(1)</script> & \"x\" 'y' </td>"
VOID = {"meta", "link", "img", "input", "wbr", "line", "circle", "br"}


class Page(HTMLParser):
    """A parsed page: its elements, its text, whether every element is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.open, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def words(self):
        inside = (text for tag, text in self.text if tag not in ("script", "style"))
        return " ".join("".join(inside).split())

    def data(self):
        return json.loads(next(t for tag, t in self.text if tag == "script" and t[:1] == "{"))

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def claim(value, statement="Features beat pixels.", **more):
    return {
        "statement": statement, "source": "SimCLR (arXiv:2002.05709), Table 6",
        "metric": "knn_over_pixels", "value": value, "relation": ">=", "threshold": 0.02,
        "holds": value >= 0.02, "stated": "2025-01-01", "null": "", "null_run": "strangers",
        "null_value": None, **more,
    }  # fmt: skip


def make_run(path, *, seed=0, complete=True, experiment="contrastive.simclr", steps=100, **more):
    """A run directory as the launcher writes it."""
    path.mkdir(parents=True)
    config = {"experiment": experiment, "seed": seed, "loss": {"temperature": 0.1},
              "train": {"steps": steps}} | more.get("config", {})  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": s, "time": s / 10, "train/loss": 5 / s + 1} for s in range(5, steps + 1, 5)
    ] + [{"step": s, "time": s / 10, "eval/knn": 0.9 + s / 2000} for s in (steps // 2, steps)]
    lines = more.get("lines", sorted(lines, key=lambda line: line["step"]))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    if complete:
        summary = {
            "status": "complete", "experiment": experiment,
            "config_name": "configs/contrastive/simclr_mnist5k.py", "seed": seed, "steps": steps,
            "seconds": 97.1, "metrics": more.get("metrics", {"knn": 0.9671, "rankme": 71.5}),
            "claims": more.get("claims", [claim(0.031)]),
            "versions": {"jax": "0.10.0", "python": "3.11.2"}, "devices": ["TPU v4"] * 4,
            "finished": "2025-01-01T00:00:00+00:00",
        }  # fmt: skip
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def report(*roots, **options):
    return render(read_runs(find_runs(roots)), **options)


def test_every_run_and_claim_is_there(tmp_path):
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, claims=[claim(0.011), claim(0.5, "RankMe is high.")])
    make_run(tmp_path / "deep/er/c", seed=2, complete=False, experiment="contrastive.byol")
    page = Page(report(tmp_path))
    words = page.words()
    for text in ("a", "b", "deep/er/c", "Features beat pixels.", "RankMe is high.", "≥ 0.02",
                 "SimCLR (arXiv:2002.05709), Table 6", "knn_over_pixels", "0.9671", "97 s",
                 "4 × TPU v4", "0.10.0", "3 runs of 2 experiments: 2 complete, 1 interrupted",
                 "Claims: 0 of 1 holds, 1 undecided, 1 of 1 met in one run"):  # fmt: skip
        assert text in words
    assert "undecided" in words
    assert "0.02 ± 0.13" in words  # 0.031 and 0.011: t of one degree of freedom is 12.7
    assert "a: 0.031 ✓" in words
    assert "b: 0.011 ✗" in words
    assert [run["name"] for run in page.data()["runs"]] == ["a", "b", "deep/er/c"]
    assert "unfinished: measured at step 100" in {a.get("title") for a in page.all("td")}


def testverdict_is_in_words(tmp_path):
    make_run(tmp_path / "a", claims=[claim(0.01)])
    make_run(tmp_path / "b", seed=1, claims=[claim(0.3, "Another.")])
    words = Page(report(tmp_path)).words()
    assert "✗ one run: missed" in words
    assert "✓ one run: met" in words
    for name, low, statement in (("c", 0.010, "Claim."), ("d", 0.3, "Another.")):
        for seed in (1, 2):
            run = claim(low + seed / 1000, statement)
            make_run(tmp_path / f"{name}{seed}", seed=seed, config={"c": name}, claims=[run])
    words = Page(report(tmp_path)).words()
    assert "✗ not reproduced" in words
    assert "✓ holds" in words


def test_a_seed_counts_once(tmp_path):
    make_run(tmp_path / "claims/seed0", complete=False)
    for name in ("demo", "more"):  # the first that is complete counts
        make_run(tmp_path / name, config={"mesh": {"data": 2}})
    page = Page(report(tmp_path))
    assert [(g["name"], g["members"]) for g in page.data()["groups"]] == [
        ("simclr_mnist5k", [1]),
        ("claims/seed0, seed 0 again", [0]),
        ("simclr_mnist5k, seed 0 again", [2]),
    ]
    assert "✓ one run: met" in page.words()
    assert "– its seed counts in demo" in page.words()
    assert "Claims: 1 of 1 met in one run" in page.words()
    assert [(c["judged"], c["runs"]) for c in page.data()["claims"]] == [(True, [1]), (False, [2])]
    assert ("more: 0.031" in page.words(), "more: 0.031 ✓" in page.words()) == (True, False)


def test_extended_runs_are_apart(tmp_path):
    def kept(steps):
        return json.dumps({"step": 50, "config": {"train": {"steps": steps}}, "summary": None})

    for seed, history in enumerate((None, kept(100), kept(60), kept(60), "{")):
        run = make_run(tmp_path / f"seed{seed}", seed=seed)
        if history:  # of the second the evaluation alone was changed
            (run / "config.history.jsonl").write_text(history + "\n")
    page = Page(report(tmp_path))
    assert [(g["name"], g["members"]) for g in page.data()["groups"]] == [
        ("simclr_mnist5k", [0, 1, 4]), ("simclr_mnist5k, extended from 60 steps", [2, 3]),
    ]  # fmt: skip
    assert [(c["judged"], c["runs"]) for c in page.data()["claims"]] == [
        (True, [0, 1, 4]), (True, [2, 3]),
    ]  # fmt: skip
    assert "config.history.jsonl cannot be read" in page.words()


def test_runs_of_a_null_are_not_judged(tmp_path):
    for seed in range(3):
        held = claim(0.03 + seed / 1000)
        make_run(tmp_path / f"simclr/seed{seed}", seed=seed, claims=[held])
        make_run(tmp_path / f"simclr/strangers/seed{seed}", seed=seed, config={"pairs": "others"},
                 claims=[claim(0.001)])  # fmt: skip
    for root in (tmp_path, tmp_path / "simclr/strangers"):
        page = Page(report(root))
        assert "– run of the null strangers" in page.words()
        assert ("Claims: 1 of 1 holds." in page.words()) == (root == tmp_path)
        assert "✗ not reproduced" not in page.words()
    assert "No claims measured yet" in page.words()


def test_other_data_is_not_judged_and_never_pooled(tmp_path):
    note = "not judged on folder:x"
    config = {"data": {"name": "folder:x"}}
    held = {"holds": None, "value": None, "note": note}
    make_run(tmp_path / "own", config={"data": {"name": "digits"}})
    make_run(tmp_path / "a", config=config, claims=[claim(0.5) | held])
    make_run(tmp_path / "b", config=config, seed=1, claims=[claim(0.5) | held | {"value": 0.4}])
    page = Page(report(tmp_path))
    assert f"– {note}" in page.words()
    assert "Claims: 1 of 1 met in one run" in page.words()
    assert [(c["judged"], c["values"]) for c in page.data()["claims"]] == [
        (True, [0.031]), (False, [None, 0.4]),
    ]  # fmt: skip


def test_verdicts_are_those_of_the_library():
    found = [[0.1], [0.3], [0.1, 0.3], [0.3, 0.31], [0.1, 0.11], [0.2, 0.2], [0.3, None]]
    nulls = [[], *found]
    for values, null, relation in itertools.product(found, nulls, (">=", "<=")):
        stated = claim(0.0, relation=relation, threshold=0.2)
        given, absent = ([math.nan if v is None else v for v in some] for some in (values, null))
        expected = judge(Claim.of(stated), given, nulls=absent)["verdict"]
        assert verdict(stated, values, null) == expected


def test_a_claim_whose_null_holds_too_is_vacuous(tmp_path):
    for seed in range(2):
        own = claim(0.03 + seed / 1000, null="knn_untrained_over_pixels", null_run="")
        null = {"null_value": 0.04 + seed / 1000}
        make_run(tmp_path / f"vacuous/{seed}", seed=seed, claims=[own | null])
        null = {"null_value": 0.004 + seed / 1000}
        make_run(tmp_path / f"held/{seed}", seed=seed, claims=[own | null], config={"a": 1})
    page = Page(report(tmp_path))
    assert "○ vacuous" in page.words()
    assert "Claims: 1 of 2 hold, 1 vacuous" in page.words()
    assert "0.0045knn_untrained_over_pixels" in page.words()
    assert [c["nulls"] for c in page.data()["claims"]] == [[0.004, 0.005], [0.04, 0.041]]


@pytest.mark.filterwarnings("error")
def test_means_of_huge_values_are_finite():
    assert mean_interval([1e308, 1e308]) == (1e308, 0.0)
    assert mean_interval([-1e308, 1e308])[1] == math.inf
    mean, half = mean_interval([1e300, 3e300])
    assert (mean, half) == pytest.approx((2e300, 12.706204736174694 * 1e300))


def test_seeds_are_grouped_and_averaged(tmp_path):
    for temperature, knn in ((0.1, (0.9, 0.92, 0.94)), (0.5, (0.8, 0.81, 0.83))):
        for seed, value in enumerate(knn):
            config = {"loss": {"temperature": temperature}, "mesh": {"data": seed}}
            make_run(tmp_path / f"{temperature}/{seed}", seed=seed, config=config,
                     metrics={"knn": value})  # fmt: skip
    make_run(tmp_path / "0.5/more", seed=3, config=config | {"seed": 3}, complete=False)
    page = Page(report(tmp_path))
    data = page.data()
    name = "simclr_mnist5k, temperature="
    assert [(g["name"], g["members"]) for g in data["groups"]] == [
        (f"{name}0.1", [0, 1, 2]), (f"{name}0.5", [3, 4, 5, 6]),
    ]  # fmt: skip
    half = t_interval(np.array([0.9, 0.92, 0.94]))
    assert with_spread(0.92, float(half.high - half.mean)) in page.words()
    assert "3 of 4" in page.words()  # an unfinished run has no share in the mean
    assert data["quantiles"][3] == pytest.approx(4.302652729911275)  # of a table
    assert data["better"] == [1]
    assert data["keys"]["loss.temperature"] == [0.1] * 3 + [0.5] * 4
    assert data["shared"]["train.steps"] == 100
    assert [list(s["x"]) for s in data["charts"][0]["series"]] == [[50, 100]] * 7
    assert varied_alone(
        [Group("", (i,)) for i in range(3)], {"seed": [1, 2, 3], "a": "xxy", "b": "xyx", "c": "xyx"}
    ) == ["a", "b", "c"]
    chosen = [a["value"] for a in page.all("option") if "loss" in (a.get("value") or "")]
    assert chosen == ["loss.temperature"] * 2  # along the axis, as colour


def test_each_value_of_a_config_is_read_a_few_times_however_many_configs_there_are(monkeypatch):
    def run(rate):
        config = {"experiment": "a.b", "seed": 0, "rate": rate, "same": 1}
        config |= {"extra": None} if rate < 2 else {}
        summary = {"config_name": "configs/some.py"}
        return Run(str(rate), Path(), config, summary, {}, {}, [], "complete", [])

    def counting(value):
        read.append(value)
        return repr(value)

    read = []
    monkeypatch.setattr(groups, "repr", counting, raising=False)
    named = [group.name for group in groups.group_runs([run(rate) for rate in range(50)])]
    extra = ", extra=None"
    assert named == [f"some, rate={rate}{extra if rate < 2 else ''}" for rate in range(50)]
    assert len(read) <= 50 * 10


def test_a_run_that_died_of_nan_failed(tmp_path):
    run = make_run(tmp_path / "a", complete=False)
    message = "loss is nan at step 37 (batch 36); there is no checkpoint yet"
    (run / "failure.json").write_text(
        json.dumps({"step": 37, "message": message, "commit": "abc123"})
    )
    make_run(tmp_path / "b", seed=1, complete=False)
    words = Page(report(tmp_path)).words()
    for text in ("✗ failed at step 37", "37 of 100", message, "abc123", "1 interrupted, 1 failed"):
        assert text in words
    summary = json.loads((make_run(tmp_path / "c", seed=2) / "summary.json").read_text())
    (tmp_path / "c/summary.json").write_text(json.dumps(summary | {"commit": "def456-dirty"}))
    words = Page(report(tmp_path)).words()
    assert "abc123 (1 run), def456-dirty (1 run)" in words
    assert "unknown" in Page(report(make_run(tmp_path / "d"))).words()


def test_claims_of_different_configs_or_thresholds_stay_apart(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", claims=[claim(0.031, threshold=0.03)])
    make_run(tmp_path / "c", experiment="contrastive.byol")
    page = report(tmp_path)
    assert page.count('class="verdict') == 3


def test_the_time_of_compared_methods_counts_once(tmp_path):
    make_run(tmp_path / "whole")  # 97.1 seconds each
    for name in "abc":
        make_run(tmp_path / "whole/methods" / name, config={"method": name})
        make_run(tmp_path / "begun/methods" / name, config={"method": name})
    for folder, runs in (("", 4), ("whole", 1), ("whole/methods", 3)):
        total = duration(runs * 97.1).replace("\u00a0", " ")
        assert f"{total} of computing" in Page(report(tmp_path / folder)).words()


def test_runs_behind_links_are_found_once(tmp_path):
    root, far = tmp_path / "runs", tmp_path / "disk"
    make_run(root / "a")
    make_run(far / "big/r1")
    make_run(far / "secret")
    (root / "0_again").symlink_to("a")
    (root / "link").symlink_to(far / "big")
    (root / "one").symlink_to(far / "big/r1")
    (root / "loop").symlink_to(root)
    (root / "up").symlink_to(tmp_path)  # all that lies beside what was named
    (far / "big/up").symlink_to(far)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    found = find_runs([root])
    assert {name: path.resolve() for name, path in found.items()} == {
        "a": root / "a", "link/r1": far / "big/r1",
    }  # fmt: skip
    assert list(find_runs([root, root / "a", far])) == ["a", "link/r1", "secret"]
    (tmp_path / "all").symlink_to(root)
    assert list(find_runs([tmp_path / "all"])) == ["a", "link/r1"]


def test_nothing_outside_the_page(tmp_path):
    run = make_run(tmp_path / "a")
    figures.curves(run / "figures/loss.png", {"a": ([0, 1], [0, 1])}, "step", "loss")
    text = report(tmp_path)
    page = Page(text)
    for _, attributes in page.elements:
        for key in ("src", "href", "action", "srcset", "poster"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), value
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", text)
    addresses = set(re.findall(r"https?://[^\"' <]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of SVG, not a request
    policy = next(a for a in page.all("meta") if "Policy" in a.get("http-equiv", ""))
    assert policy["content"].startswith("default-src 'none'")


def test_everything_is_escaped(tmp_path):
    name = '<b>x</b> & "co" \'$title ${body}'
    run = make_run(
        tmp_path / name,
        experiment=HOSTILE,
        config={HOSTILE: HOSTILE},
        lines=[{"step": s, "time": 1.0, HOSTILE: s, "eval/" + HOSTILE: 1} for s in (1, 2)],
        metrics={HOSTILE: 1.0},
        claims=[claim(1.0, HOSTILE, source=HOSTILE, metric=HOSTILE, relation=HOSTILE)],
    )
    make_run(tmp_path / "other", experiment=HOSTILE, config={HOSTILE: 2})
    figures.curves(run / "figures/a.png", {"a": ([0, 1], [0, 1])}, "step", "loss")
    (run / "figures/captions.json").write_text(json.dumps({"a.png": HOSTILE}))
    (run / "failure.json").write_text(json.dumps({"step": 1, "message": HOSTILE}))
    text = report(tmp_path, title=HOSTILE)
    page = Page(text)
    assert "alert(1)</script>" not in text
    assert "b" not in {tag for tag, attributes in page.elements if attributes == {"x": None}}
    assert len(page.all("script")) == 3
    assert name in page.words().replace("\n", " ")
    assert page.words().count("<script>alert(1)</script>") > 8
    assert page.data()["charts"][0]["metric"] in (HOSTILE, "eval/" + HOSTILE)


@pytest.mark.parametrize(
    ("files", "status", "note"),
    [
        ({"config.json": "{bad"}, "interrupted", "config.json cannot be read"),
        ({"config.json": "[1]"}, "interrupted", "does not hold a JSON object"),
        ({"config.json": "[" * 100_000}, "interrupted", "config.json cannot be read"),
        ({"config.json": b"\xff\xfe\x00"}, "interrupted", "config.json cannot be read"),
        ({"metrics.jsonl": ""}, "interrupted", "No config.json."),
        ({"metrics.jsonl": '{"step": 1, "a": 1}\n{"step": 2, "a"'}, "interrupted", "cut short"),
        ({"metrics.jsonl": '{"st\n7\n{"step": 2, "a": 1}\n'}, "interrupted", "2 lines"),
        ({"metrics.jsonl": '{"step": 3, "a": "nan"}\n'}, "interrupted", "not finite at step 3"),
        ({"metrics.jsonl": '{"step": 3, "a": "-inf"}\n'}, "interrupted", "not finite at step 3"),
        ({"metrics.jsonl": '{"step": "x", "a": 1}\n'}, "interrupted", "cut short"),
        ({"metrics.jsonl": b'\x00\xff\n{"step": 1, "a": 1}\n'}, "interrupted", "1 line of"),
        ({"summary.json": "{}"}, "interrupted", "No metrics yet"),
        ({"summary.json": '{"status": "failed"}'}, "failed", "No curves"),
        ({"summary.json": '{"status": "odd <i>"}'}, "odd <i>", "No curves"),
        (
            {"summary.json": '{"metrics": [], "claims": {}, "versions": 1, "devices": 2}'},
            "complete",
            "No curves",
        ),
        (
            {"summary.json": '{"claims": [1, {}, {"value": NaN}], "metrics": {"a": NaN}}'},
            "complete",
            "No curves",
        ),
        ({"config.json": '{"train": 3, "seed": {"a": []}}'}, "interrupted", "No metrics yet"),
        ({"metrics.jsonl": '{"step": 1, "a": %s, "b": true}\n' % ("9" * 400)}, "interrupted", ""),
    ],
)
def test_damaged_runs_are_shown_with_what_there_is(tmp_path, files, status, note):
    make_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "bad" / name).write_bytes(content)
    run = read_run("bad", tmp_path / "bad")
    assert run.status == status
    assert note in " ".join(run.notes)
    page = Page(report(tmp_path))
    assert "bad" in page.words()
    assert len(page.data()["runs"]) == 2


def test_a_folder_whose_name_is_no_text_is_shown_too(tmp_path):
    make_run(tmp_path / "good")
    make_run(Path(os.fsdecode(bytes(tmp_path / "runs") + b"\xff")))
    out = tmp_path / "page.html"
    assert main([str(tmp_path), f"--out={out}"]) == 0
    page = Page(out.read_text())
    assert "runs\\udcff" in page.words()
    assert len(page.data()["runs"]) == 2


def test_unreadable_figures_are_named_not_shown(tmp_path):
    run = make_run(tmp_path / "a")
    good = run / "figures/good_one.png"
    figures.curves(good, {"a": ([0, 1], [0, 1])}, "step", "loss")
    (run / "figures/cut.png").write_bytes(good.read_bytes()[:-30])
    (run / "figures/empty.png").write_bytes(b"")
    (run / "figures/captions.json").write_text("{")
    page = Page(report(tmp_path))
    assert len([a for a in page.all("img") if a.get("src")]) == 1
    for text in ("figures/cut.png is not a whole PNG", "figures/empty.png is not", "Good one"):
        assert text in page.words()


def test_figures_share_a_budget(tmp_path):
    digits = load_digits()
    for name in "abc":
        run = make_run(tmp_path / name)
        for k in range(2):
            path = run / f"figures/views{k}.png"
            figures.image_grid(path, [list(digits.images[k : k + 3] / 16.0)])
    size = (tmp_path / "a/figures/views0.png").stat().st_size
    page = Page(report(tmp_path, figure_bytes=int(3.7 * size)))
    sources = [a["alt"] for a in page.all("img") if a.get("src")]
    assert sources == [f"Views0, run {name}" for name in "abc"]  # each run's first before seconds
    assert "3 figures left out" in page.words()


def test_running_is_told_from_interrupted_by_the_lock(tmp_path):
    run = make_run(tmp_path / "a", complete=False)
    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run("a", run).status == "running"
    assert read_run("a", run).status == "interrupted"


def test_steps_repeated_after_a_resume_count_once(tmp_path):
    steps = [10, 20, 30, 20, 30, 40]
    lines = [{"step": s, "time": float(k), "a": k} for k, s in enumerate(steps)]
    series = read_run("a", make_run(tmp_path / "a", lines=lines)).series["a"]
    assert series.steps.tolist() == [10, 20, 30, 40]
    assert series.values.tolist() == [0, 3, 4, 5]


def test_decimation_keeps_ends_and_extremes():
    rng = np.random.default_rng(0)
    values = rng.normal(size=100_000)
    values[[12345, 54321]] = 50.0, -60.0
    values[70_000:90_000] = np.nan
    kept = decimate(values.tolist(), 400)
    assert len(kept) <= 400
    assert kept == sorted(set(kept))
    assert {0, 12345, 54321, 99_999} <= set(kept)
    assert any(math.isnan(values[i]) for i in kept)
    assert decimate([1.0, 2.0], 400) == [0, 1]


@pytest.mark.slow
def test_long_runs_make_small_pages(tmp_path):
    lines = [{"step": s, "time": s * 0.01, "train/loss": math.sin(s / 999)} for s in range(50_000)]
    make_run(tmp_path / "a", lines=lines)
    text = report(tmp_path)
    series = Page(text).data()["charts"][0]["series"][0]
    assert len(series["x"]) == len(series["t"]) == len(series["y"]) <= POINTS
    assert series["x"][0] == 0
    assert series["x"][-1] == 49_999
    assert len(text) < 100_000


def test_two_hundred_runs(tmp_path):
    for seed in range(200):
        make_run(tmp_path / f"seed{seed}", seed=seed, claims=[claim(0.02 + seed / 1e5)])
    text = report(tmp_path)
    page = Page(text)
    names = [run["name"] for run in page.data()["runs"]]
    assert names == [f"seed{seed}" for seed in range(200)]  # 2 before 10
    assert text.count('class="verdict') == 1
    assert len(text) < 3_000_000


def test_non_finite_points_are_gaps(tmp_path):
    values = [1.0, "nan", "inf", 2.0]
    lines = [{"step": k, "time": k, "a": v} for k, v in enumerate(values)]
    make_run(tmp_path / "a", lines=lines)
    (chart,) = Page(report(tmp_path)).data()["charts"]
    assert chart["series"][0]["y"] == [1, None, None, 2]


def test_differences_between_configs(tmp_path):
    make_run(tmp_path / "a", seed=0, config={"loss": {"temperature": 0.1, "name": "same"}})
    make_run(tmp_path / "b", seed=0, config={"loss": {"temperature": 0.5, "name": "same"}})
    make_run(tmp_path / "c", seed=0, config={"loss": {"name": "same", "extra": None}})
    words = Page(report(tmp_path)).words()
    part = words[
        words.index("What differs", words.index("Figures") if "Figures" in words else 99) :
    ]
    table, _, shared = part.partition("keys that all 3 runs share")
    assert "loss.temperature" in table
    assert "loss.extra" in table
    assert "(absent)" in table
    assert "loss.name" not in table
    assert 'loss.name = "same"' in shared


def test_equal_configs_say_so(tmp_path):
    for name in "ab":
        make_run(tmp_path / name)
    assert "All 2 configs are equal." in Page(report(tmp_path)).words()


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    make_run(tmp_path / "x/one")
    make_run(tmp_path / "y/two")
    (tmp_path / "x/one/checkpoints/5").mkdir(parents=True)
    (tmp_path / "x/one/checkpoints/5/config.json").write_text("{}")
    assert list(find_runs([tmp_path])) == ["x/one", "y/two"]
    assert list(find_runs([tmp_path / "x/one"])) == ["one"]
    assert len(find_runs([tmp_path, tmp_path / "x", tmp_path / "x/one"])) == 2
    make_run(tmp_path / "z/one")
    assert len(find_runs([tmp_path / "x", tmp_path / "z"])) == 2  # one name, two directories


def test_command_line(tmp_path, capsys):
    make_run(tmp_path / "runs/a")
    out = tmp_path / "new/report.html"
    assert main([str(tmp_path / "runs"), f"--out={out}"]) == 0
    assert MARKER in out.read_text()[:200]
    assert f"{out}: 1 run, " in capsys.readouterr().out
    assert main([str(tmp_path / "runs"), f"--out={out}", "--title=Again"]) == 0  # ours: replaced
    assert "<h1>Again</h1>" in out.read_text()
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]


def test_another_file_is_kept(tmp_path, capsys):
    make_run(tmp_path / "a")
    out = tmp_path / "report.html"
    out.write_text("<!DOCTYPE html>mine")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), f"--out={out}"])
    assert stop.value.code == 1
    assert out.read_text() == "<!DOCTYPE html>mine"
    assert "not a report" in capsys.readouterr().err
    assert main([str(tmp_path), f"--out={out}", "--overwrite"]) == 0


def test_a_full_disk_leaves_no_page(tmp_path, capsys):
    make_run(tmp_path / "a")
    out = tmp_path / "new" / "report.html"
    with full_after(1000), pytest.raises(SystemExit):
        main([str(tmp_path), f"--out={out}"])
    assert capsys.readouterr().err == f"error: --out={out} cannot be written: File too large\n"
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "no runs in"),
        (["absent"], "is not a directory"),
        (["file"], "is not a directory"),
        (["a", "--out=empty"], "is a directory"),
        (["a", "--out=file/report.html"], "cannot be written"),
        (["empty", "--out=file/report.html"], "--out=file/report.html cannot"),
        (["a", "gs://b/runs"], "runs is 'gs://b/runs', a URL; expected a path of this machine"),
        (["a", "--out=gs://b/a.html"], "--out is 'gs://b/a.html', a URL"),
        ([], "required: runs; see --help"),
        (["a", "--figures_mb=-1"], "--figures_mb is -1, expected a number from 0"),
        (["a", "--figures_mb=nan"], "--figures_mb is nan"),
        (["a", "--figures_mb=inf"], "--figures_mb is inf"),
        (["a", "--figure_mb=x"], "--figure_mb"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_the_program_starts_without_jax(tmp_path):
    make_run(tmp_path / "a")
    out = tmp_path / "r.html"
    code = (
        "import sys; from experiments.report.__main__ import main;"
        f"main([{str(tmp_path)!r}, '--out={out}']);"
        "sys.exit(any(m in sys.modules for m in ('jax', 'numpy', 'matplotlib')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert out.exists()


def test_markup_escapes():
    assert tag("td", "<&>", class_='a"b', data_v=1, hidden=True, title=None) == (
        '<td class="a&quot;b" data-v="1" hidden>&lt;&amp;&gt;</td>'
    )
    assert escape([tag("b", 1), "<"]) == "<b>1</b>&lt;"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (1500, "1,500"), (-0.03123456, "−0.03123"), (math.nan, "nan"),
     (math.inf, "∞"), (-math.inf, "−∞"), (1e-9, "1e−09"), (1e300, "1e+300")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (math.nan, "–"), (0, "0 s"), (1.25, "1.2 s"), (97.1, "97 s"),
     (125, "2 min 5 s"), (7260, "2 h 1 min"), (190_000, "2 d 4 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds).replace("\u00a0", " ") == text


def test_a_mean_has_the_digits_of_its_spread():
    assert with_spread(0.021112, 0.0163) == "0.021 ± 0.016"
    assert with_spread(78.6412, 0.388) == "78.64 ± 0.39"
    assert with_spread(0.5, 0.0) == "0.5 ± 0"


def test_names_sort_naturally():
    names = ["run10", "run2", "Run1", "a/b", "a", ""]
    assert sorted(names, key=natural) == ["", "a", "a/b", "Run1", "run2", "run10"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_the_script_draws_filters_zooms_and_downloads(tmp_path):
    for temperature, least in ((0.1, 0.90), (0.5, 0.8)):
        for seed in range(3):
            value = least + seed / 100
            make_run(tmp_path / f"{temperature}/{seed}", seed=seed, steps=200,
                     config={"loss": {"temperature": temperature}},
                     metrics={"knn": value, "knn_pixels": 0.7, "rankme": value},
                     claims=[claim(value, threshold=0.85, holds=value > 0.85, null="knn_pixels",
                                   null_run="", null_value=0.7)])  # fmt: skip
    make_run(tmp_path / "100% <b>_&", config={"loss": {"temperature": 0.2}}, complete=False,
             steps=200)  # fmt: skip
    out = tmp_path / "r.html"
    main([str(tmp_path), f"--out={out}"])
    script = f"<script>{Path(__file__).with_name('report.js').read_text()}</script></body>"
    out.write_text(out.read_text().replace("</body>", script))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1280,4000",
               "--virtual-time-budget=3000", "--dump-dom", out.as_uri()]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    found = json.loads(html.unescape(text[1]))
    assert found["drawn"] == ["MMMMM"] * 2 + ["MMM"]  # two bands, three curves; a line, two bars
    assert found["best"] == ["0.910 ± 0.025"]  # not RankMe's, which has no better end
    assert (found["smooth"], found["plain"], found["each"]) == (3, 0, 7)
    assert found["zoomed"] != found["whole"] == found["reset"]
    assert "200" in found["whole"]
    assert "200" not in found["zoomed"]
    means = [
        "simclr_mnist5k, temperature=0.1",
        "3 of 3",
        "0.910 ± 0.025",
        "0.910 ± 0.025",
        "0.7 ± 0",
    ]
    assert found["few"][:2] == ["3 of 7 runs", [means]]
    assert found["few"][2][0] == "✓ holds"
    assert found["one"] == ["✓ one run: met", "✗ one run: missed"]
    assert found["none"] == "0 of 7 runs"
    saved = found["saved"]
    lines = saved["Means_by_config.csv"].split("\r\n")
    assert lines[0].startswith("Config,Complete,knn,knn (half of 95% interval),")
    number, spread = map(float, lines[1].split('",')[1].split(",")[1:3])
    assert (number, spread) == pytest.approx((0.91, 4.302652729911275 * 0.01 / 3**0.5))
    assert "100\\% \\textless{}b\\textgreater{}\\_\\&" in saved["Runs.tex"]
    assert "\\textbf{0.910 $\\pm$ 0.025}" in saved["Means_by_config.tex"]
    assert saved["Runs.tex"].count("rule\n") == 3
    assert len([name for name in saved if name.endswith(".svg")]) == 3
    for name, text in saved.items():
        if name.endswith(".svg"):
            root = ElementTree.fromstring(text)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert "var(" not in text
