"""Sweeps as a user runs them: all checked first, launched, stopped, continued, extended, joined."""

import csv
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from experiments import launches, registry
from experiments.common.selection import NDCG, NEIGHBOURS
from experiments.results import config_hash
from experiments.sweep import __main__ as sweep
from experiments.sweep import plan, slurm, table
from experiments.sweep.job import Launch
from rml.errors import UserError, install
from rml.training import config_file

DIGITS = "configs/contrastive/simclr_digits.py"
RATES = "optimizer.learning_rate=1e-3,1e-2"
TINY = '''"""Seconds of training epochs with a few points."""

from configs.kernels import cost_noise


def get_config():
    config = cost_noise.get_config()
    config.data.update(dict(sparse_sizes=(20, 40), full_sizes=(5, 10)))
    config.model.update(dict(inducing=5, depth=1))
    config.train.update(dict(batch_size=20, repeats=1))
    return config
'''


HELD_OUT = '''"""A part of the training images is held out."""

from configs.contrastive import simclr_digits


def get_config():
    config = simclr_digits.get_config()
    config.data.update(dict(train="train[:80%]", test="train[80%:]"))
    return config
'''


def accuracy(config):
    """What a run of the stand-in for the launcher measures: best at 1e-2, seeds differ."""
    rate = config["optimizer"]["learning_rate"]
    return (
        0.9
        - 0.1 * abs(math.log10(rate) + 2)
        - config["loss"]["temperature"] * (0.01 + 0.02 * config["seed"] ** 2)
    )


@pytest.fixture
def swept(monkeypatch, tmp_path, capsys):
    """The program with a stand-in for the launcher; `stop` interrupts it at that many runs.

    Learning rates of 1 and above end in the launcher's error. Returns exit code and output.
    """

    def run(*arguments, config=DIGITS, stop=None):
        started = []

        def start(run):
            if stop is not None and len(started) == stop:
                raise KeyboardInterrupt
            started.append(run.directory)
            values = plan.plain(
                registry.read_config(run.config, [*run.flags, f"--config.seed={run.seed}"])
            )
            run.directory.mkdir(parents=True, exist_ok=True)
            fails = values["optimizer"]["learning_rate"] >= 1
            run.log.write_text("compiling\nerror: loss is nan at step 2\n" if fails else "")
            (run.directory / "config.json").write_text(json.dumps(values))
            if not fails:
                line = {"step": 4, "time": 1.0, "train/loss": -accuracy(values)}
                (run.directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
                summary = dict.fromkeys(
                    ("experiment", "config_name", "claims", "versions", "devices", "finished"), ""
                )
                summary |= {"seed": 0, "seconds": 3.0, "metrics": {"knn": accuracy(values)}}
                (run.directory / "summary.json").write_text(json.dumps(summary))
            return subprocess.Popen(["false" if fails else "true"])

        monkeypatch.setattr(launches, "start", start)
        code = sweep.main(
            [f"--config={config}", f"--workdir={tmp_path / 'sweep'}", "--seeds=2", *arguments]
        )
        out, err = capsys.readouterr()
        run.started = [str(d.relative_to(tmp_path / "sweep")) for d in started]
        return code, out + err

    return run


@pytest.mark.slow
def test_real_runs_of_a_job_array_make_the_table(tmp_path, capsys, monkeypatch):
    """Two processes by submitit's own executor for one machine; a sweep finds them complete."""
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    (tmp_path / "tiny.py").write_text(TINY)
    command = [
        f"--config={tmp_path}/tiny.py", f"--workdir={tmp_path}/sweep", "--seeds=1",
        "--grid=optimizer.learning_rate=0.01,0.03", "--best=sparse_exponent:min",
    ]  # fmt: skip
    assert sweep.main([*command, "--slurm="]) == 0
    assert "submitted 2 runs as job " in capsys.readouterr().out
    runs = [tmp_path / f"sweep/optimizer.learning_rate={rate}/seed0" for rate in (0.01, 0.03)]
    deadline = time.monotonic() + 240
    while not all((run / "summary.json").exists() for run in runs) and time.monotonic() < deadline:
        time.sleep(0.2)
    logs = [file.read_text() for file in (tmp_path / "sweep").rglob("*log*") if file.is_file()]
    assert all((run / "summary.json").exists() for run in runs), logs
    metrics = [json.loads((run / "summary.json").read_text())["metrics"] for run in runs]
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    assert [config["optimizer"]["learning_rate"] for config in configs] == [0.01, 0.03]

    assert sweep.main(command) == 0
    out = capsys.readouterr().out
    assert "2 of 2 runs are complete already" in out
    assert "one seed has no interval" in out
    joined = json.loads((tmp_path / "sweep/sweep.json").read_text())
    for row, own in zip(joined["combinations"], metrics, strict=True):
        assert {name: found["values"] for name, found in row["metrics"].items()} == {
            name: [value] for name, value in own.items()
        }
    best = min((0, 1), key=lambda i: metrics[i]["sparse_exponent"])
    assert joined["best"] == runs[best].parent.name


@pytest.mark.slow
def test_two_values_and_two_seeds_make_table_and_figure(swept, tmp_path):
    code, out = swept("--grid", RATES, "--best=knn")
    assert code == 0, out
    # Every combination's first seed comes before any second one.
    assert swept_order(out) == ["0.001, seed 0", "0.01, seed 0", "0.001, seed 1", "0.01, seed 1"]
    assert "done learning_rate=0.001, seed 0 in" in out
    assert "; 1 of 4; about" in out
    assert "; knn 0.798" in out
    joined = json.loads((tmp_path / "sweep/sweep.json").read_text())
    lines = list(csv.DictReader((tmp_path / "sweep/sweep.csv").open()))
    for row, line in zip(joined["combinations"], lines, strict=True):
        values = []
        for seed in (0, 1):
            summary = tmp_path / "sweep" / row["folder"] / f"seed{seed}/summary.json"
            values.append(json.loads(summary.read_text())["metrics"]["knn"])
        mean = sum(values) / 2
        half = stats.t.ppf(0.975, 1) * abs(values[0] - values[1]) / 2  # s / sqrt(2)
        found = row["metrics"]["knn"]
        assert found["values"] == values
        expected = [mean, mean - half, mean + half]
        assert [found["mean"], found["low"], found["high"]] == pytest.approx(expected)
        assert [float(line[f"knn {part}"]) for part in ("mean", "low", "high")] == pytest.approx(
            expected
        )
        assert line["optimizer.learning_rate"] == str(row["values"]["optimizer.learning_rate"])
        assert line["seeds"] == "2"
        assert row["metrics"]["train/loss"]["mean"] == pytest.approx(-mean)
    assert joined["best"] == "optimizer.learning_rate=0.01"
    assert "best by knn (as --best asks; knn is measured on the split 'test'" in out
    assert "its interval" not in out
    markdown = (tmp_path / "sweep/sweep.md").read_text().splitlines()
    assert markdown[0] == "| learning_rate | knn | seeds |"
    assert markdown[3].startswith("| 0.01 | 0.896 (0.871 to 0.921) (best) | 2 |")
    image = np.asarray(Image.open(tmp_path / "sweep/sweep.png").convert("L"))
    assert (image < 100).mean() > 0.005


def swept_order(out):
    lines = [line for line in out.splitlines() if line.startswith("started")]
    return [line.partition("=")[2] for line in lines]


@pytest.mark.slow
def test_it_continues_where_it_stopped_and_another_grid_is_added(swept, tmp_path):
    code, out = swept("--grid", RATES, stop=1)
    assert code == 130
    assert "interrupted; the same command continues" in out
    first = tmp_path / "sweep/optimizer.learning_rate=0.001/seed0/summary.json"
    before = first.stat().st_mtime_ns
    code, out = swept("--grid", RATES)
    assert code == 0
    assert "1 of 4 runs are complete already" in out
    assert len(swept_order(out)) == 3
    code, out = swept("--grid", RATES)
    assert "4 of 4 runs are complete already" in out
    assert swept_order(out) == []

    # The temperature of the config is 0.2: these runs are those of the first grid.
    code, out = swept("--grid", RATES, "--grid", "loss.temperature=0.2,0.5", "--seeds=3")
    assert code == 0
    assert "4 of 12 runs are complete already" in out
    rows = json.loads((tmp_path / "sweep/sweep.json").read_text())["combinations"]
    keys = ("optimizer.learning_rate", "loss.temperature")
    assert [(*(row["values"][key] for key in keys), row["complete"]) for row in rows] == [
        (0.001, 0.2, [0, 1, 2]), (0.01, 0.2, [0, 1, 2]),
        (0.001, 0.5, [0, 1, 2]), (0.01, 0.5, [0, 1, 2]),
    ]  # fmt: skip
    assert first.stat().st_mtime_ns == before
    # Fewer seeds and values leave the others in the table.
    code, out = swept("--grid", "optimizer.learning_rate=1e-2", "--seeds=1")
    assert "1 of 1 runs are complete already" in out
    assert len(json.loads((tmp_path / "sweep/sweep.json").read_text())["combinations"]) == 4
    code, out = swept("--grid", RATES, "--config.train.batch_size=8")
    assert code == 1
    assert "holds a sweep of another config" in out
    assert "train.batch_size: 256 there, 8 now" in out


@pytest.mark.slow
def test_a_failed_combination_does_not_stop_the_rest(swept, tmp_path):
    code, out = swept("--grid", "optimizer.learning_rate=2.0,1e-2", "--best=knn")
    assert code == 1
    assert "done learning_rate=0.01, seed 1" in out
    end = out[out.index("2 of 4 runs failed:") :]
    assert "learning_rate=2.0, seed 1: exit code 1: error: loss is nan at step 2" in end
    assert "| 2.0 | – | 0 of 2 |" in (tmp_path / "sweep/sweep.md").read_text()
    assert "best by knn" in out
    # A combination without all of its seeds is not the best of those that have them.
    joined = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert joined["best"] == "optimizer.learning_rate=0.01"
    for row in joined["combinations"]:
        row["seeds"] = 3
    assert table.find_best(joined["combinations"], table.Judge("knn", "max", "")) is None


def retrain(folder, **changes):
    """Gives the run of a directory another config."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.slow
def test_runs_of_another_config_are_neither_shown_nor_the_best(swept, tmp_path):
    assert swept("--grid", RATES, "--best=knn")[0] == 0
    best = tmp_path / "sweep/optimizer.learning_rate=0.01"
    for seed in (0, 1):
        retrain(best / f"seed{seed}", train={"steps": 6000})
    out = swept("--grid", RATES, "--dry_run")[1]
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        "complete", "of another config"
    ] * 2  # fmt: skip
    code, out = swept("--grid", RATES, "--best=knn")
    assert code == 1
    assert out.count("learning_rate=0.01/seed0 holds a run of another config; remove it") == 2
    joined = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [row["complete"] for row in joined["combinations"]] == [[0, 1], []]
    assert joined["best"] == "optimizer.learning_rate=0.001"
    assert re.search(r"best by knn \(.*\): learning_rate=0.001: ", out)


@pytest.mark.slow
def test_nothing_is_chosen_on_test_data_unless_asked(swept):
    code, out = swept("--grid", RATES)
    assert code == 0
    assert "no best is named: knn is measured on the split 'test'; hold a part of the " in out
    assert "(best)" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (
            "data.train=train[:80%],train",
            "knn is measured on the training data ('train[80%:]' of 'train')",
        ),
        ("data.test=train[80%:],test", "knn is measured on the split 'test'"),
    ],
)
def test_no_best_is_named_where_one_combination_is_judged_on_other_data(
    swept, tmp_path, grid, reason
):
    (tmp_path / "held_out.py").write_text(HELD_OUT)

    def best(grid):
        code, out = swept("--grid", grid, "--seeds=1", config=tmp_path / "held_out.py")
        assert code == 0, out
        return json.loads((tmp_path / "sweep/sweep.json").read_text())["best"], out

    named, out = best(RATES)
    assert named == "optimizer.learning_rate=0.01"
    assert "best by knn (the recipe's validation metric)" in out
    for one in (grid, RATES):  # which is in the table after other grids too
        named, out = best(one)
        assert named is None
        assert f"no best is named: {reason}; " in out


def test_flags_that_are_not_of_the_config_do_not_tell_its_length(tmp_path):
    flags = ("--config.train.steps=7", "--mlflow=sqlite:///runs.db")
    run = launches.Run("a", (), DIGITS, "", 0, tmp_path, flags)
    (tmp_path / "checkpoints/5").mkdir(parents=True)
    for steps in (7, 8):
        (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": steps}}))
        assert run.is_of_other_length() == (steps == 8)


def test_the_best_has_all_of_its_seeds_and_the_least_of_what_falls():
    rows = [
        {"complete": list(range(done)), "seeds": 2, "metrics": {"m": {"mean": mean}}}
        for done, mean in ((2, 0.3), (2, 0.7), (1, 0.9), (1, 0.1))
    ]
    for mode, best in (("max", 1), ("min", 0)):
        assert table.find_best(rows, table.Judge("m", mode, "")) is rows[best]
    assert table.find_best(rows[2:], table.Judge("m", "max", "")) is None


def test_a_metric_that_is_finite_in_no_combination_has_a_table_and_a_figure(tmp_path, capsys):
    run = tmp_path / "a" / "seed0"
    run.mkdir(parents=True)
    summary = dict.fromkeys(config_file.SUMMARY_KEYS, 0) | {"metrics": {"m": math.nan}}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.json").write_text("{}")
    row = {"folder": "a", "values": {"k": 1}, "seeds": 1, "config_hash": config_hash({})}
    whole = {"config": "c.py", "base": {}, "grid": ["k"], "combinations": [row]}
    table.conclude(whole, tmp_path, table.Judge("m", "max", ""), Console())
    said = "no best is named: no combination has a finite mean of all of its seeds"
    assert said in capsys.readouterr().out
    assert (tmp_path / "sweep.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("selection", "data", "reason"),
    [
        (NEIGHBOURS, {"train": "train[:80%]", "test": "train[80%:]"}, ""),
        (NEIGHBOURS, {"train": "train", "test": "validation"}, ""),
        (NEIGHBOURS, {"train": "train", "test": "test[:50%]"}, "split 'test[:50%]'"),
        (NEIGHBOURS, {"train": "all", "test": "all"}, "measured on the split 'all'"),
        (NDCG, {"train": "train", "validation": "validation", "test": "test"}, ""),
        (NEIGHBOURS, {"train": "train[:80%]", "test": "all"}, "measured on the split 'all'"),
        (
            NEIGHBOURS,
            {"train": "train[:80%]", "test": "train[80%:]+test"},
            "measured on the split 'train[80%:]+test'",
        ),
        (NEIGHBOURS, {"train": "train[:500]", "test": "train[500:]"}, ""),
        (NEIGHBOURS, {"train": "train[:-500]", "test": "train[-500:]"}, ""),
        (NEIGHBOURS, {"train": "train[:33%]", "test": "train[33%:34%]"}, ""),
        (NEIGHBOURS, {"train": "train[:50%]", "test": "train[50%:]+validation"}, ""),
        (NEIGHBOURS, {"train": "sketch", "test": "photo"}, ""),
    ],
)
def test_a_validation_metric_is_of_held_out_training_data(selection, data, reason):
    found = selection.why_not(registry.ConfigDict({"data": data}))
    assert found.endswith(reason)
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("train", "test", "word"),
    [
        ("train[:80%]", "train[:20%]", "is"),
        ("train[:80%]", "train[50%:]", "is"),
        ("train[:80%]", "train[:80%]", "is"),
        ("train[:80%]", "train[79%:]", "is"),
        ("train[:500]", "train[499:]", "is"),
        ("train", "train[80%:]", "is"),
        ("train+validation", "validation", "is"),
        ("train[:50%]+validation[50%:]", "train[50%:]+validation[40%:60%]", "is"),
        ("all", "validation", "is"),
        ("train[:80%]", "train[-1000:]", "may be"),
        ("train[:80%]", "train[5000:]", "may be"),
        ("train[:500]", "train[-600:]", "may be"),
    ],
)
def test_splits_that_share_an_example_are_refused(train, test, word):
    found = NEIGHBOURS.why_not(registry.ConfigDict({"data": {"train": train, "test": test}}))
    assert found == f"knn {word} measured on the training data ({test!r} of {train!r})"


@pytest.mark.parametrize("wrong", ["train[80%:20%]", "train[:200%]", "train[80%", ""])
def test_a_split_that_cannot_be_read_is_named_by_its_key(wrong):
    config = registry.ConfigDict({"data": {"train": "train[:80%]", "test": wrong}})
    with pytest.raises(UserError, match=f"data.test is {re.escape(repr(wrong))}, expected splits"):
        NEIGHBOURS.why_not(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid=optimizer.learning_rat=1,2"], "did you mean 'optimizer.learning_rate'?"),
        (["--grid=optimizer.learning_rate=1e-3,fast"], "optimizer.learning_rate=fast"),
        (["--grid=optimizer.learning_rate=1e-3,-1"], "optimizer.learning_rate is -1.0, expected"),
        (["--grid=optimizer.learning_rate=0.001,1e-3"], "gives learning_rate=0.001 twice"),
        (["--grid=optimizer.learning_rate=1e-3,"], "expected key=value,value"),
        (["--grid=optimizer.learning_rate"], "expected key=value,value"),
        (["--grid=optimizer=1"], "--config.optimizer"),
        (["--grid=seed=1,2"], "--seeds=N"),
        (
            ["--grid=mesh.fsdp=1,2"],
            "--grid names mesh.fsdp, which tells no measurements apart; expected a key that "
            "changes what is measured",
        ),
        (["--grid", RATES, "--grid=mesh.fsdp=1"], "names mesh.fsdp, which tells no measurements"),
        (["--grid", RATES, "--grid", RATES], "names optimizer.learning_rate twice"),
        (["--grid", RATES, "--config.optimizer.learning_rate=1"], "which --grid varies"),
        (["--grid", RATES, "--config.seed=1"], "which --seeds varies"),
        (["--grid", RATES, "--seeds=0"], "--seeds is 0, expected at least 1"),
        (["--grid", RATES, "--workdir=gs://b/s", "--dry_run"], "--workdir is 'gs://b/s', a URL"),
        (["--grid", RATES, "--workdir=/dev/null/s"], "--workdir=/dev/null/s cannot be"),
        (["--grid", RATES, "--workdir=/proc/s"], "--workdir=/proc/s cannot be"),
        (["--grid", RATES, "--seeds=many"], "--seeds: invalid int value: 'many'"),
        (["--grid", RATES, "--best=knn:most"], "METRIC:max or METRIC:min"),
        (["--grid", RATES, "--jops=2"], "unexpected argument '--jops=2'"),
        (["--grid", RATES, "--slurm=partitio=gpu", "--dry_run"], "did you mean 'partition'?"),
        (["--grid", RATES, "--slurm=time=2h", "--dry_run"], "--slurm time is '2h', expected"),
        (["--grid", RATES, "--slurm=partition", "--dry_run"], "expected name=value"),
        (["--grid", RATES, "--config=configs/contrastive/simclr_digit.py"], "simclr_digits.py"),
        ([], "--grid"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(swept, tmp_path, arguments, message):
    code, out = swept(*arguments)
    assert code == 1
    assert out.startswith("error: ")
    assert out.count("\n") == 1
    assert message in out
    assert swept.started == []
    assert not (tmp_path / "sweep").exists()


def test_a_metric_that_no_run_has_is_named(swept):
    code, out = swept("--grid", RATES, "--best=knnn")
    assert code == 1
    assert out.endswith("error: unknown metric 'knnn'; did you mean 'knn'?\n")
    assert len(swept.started) == 1
    code, out = swept("--grid", RATES, "--best=knnn")
    assert (code, swept.started) == (1, [])


def test_directories_that_hold_something_else_are_left_alone(swept, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/notes.txt").write_text("mine")
    assert "holds no sweep, expected a new or empty directory" in swept("--grid", RATES)[1]
    (tmp_path / "sweep/sweep.json").write_text("{")
    assert "sweep.json is damaged" in swept("--grid", RATES)[1]


@pytest.mark.slow
def test_a_damaged_file_is_made_anew_of_the_runs(swept, tmp_path):
    assert swept("--grid", RATES)[0] == 0
    file = tmp_path / "sweep/sweep.json"
    before = file.read_bytes()
    file.write_text("{")
    assert "sweep.json is damaged; remove it to begin the sweep again" in swept("--grid", RATES)[1]
    file.unlink()
    code, out = swept("--grid", RATES)
    assert code == 0, out
    assert swept.started == []
    assert file.read_bytes() == before
    file.unlink()
    (tmp_path / "sweep/optimizer.learning_rate=0.01/notes.txt").write_text("mine")
    assert "holds no sweep, expected a new or empty directory" in swept("--grid", RATES)[1]


def test_two_sweeps_do_not_share_a_directory(swept, tmp_path):
    with plan.hold(tmp_path / "sweep"):
        code, out = swept("--grid", RATES)
        assert (code, out) == (1, f"error: --workdir {tmp_path}/sweep is in use by another sweep\n")
        assert swept("--grid", RATES, "--dry_run")[0] == 0
    with plan.hold(tmp_path / "sweep"):
        pass


def test_values_with_commas_and_long_names():
    grid = plan.parse_grid(["model.widths=(32, 64),(16,32)", "augment.order=()"])
    assert grid == {"model.widths": ["(32, 64)", "(16,32)"], "augment.order": ["()"]}
    nested = plan.parse_grid(["a=((1,2),(3,4)), ([5,6],(7,8))", "b='x,y','z',\"it's, so\""])
    assert nested == {
        "a": ["((1,2),(3,4))", "([5,6],(7,8))"], "b": ["'x,y'", "'z'", "\"it's, so\""]
    }  # fmt: skip
    found = plan.combine(DIGITS, [], {"model.widths": ["(32, 64)", "(16,32)"]})
    assert [one.values["model.widths"] for one in found] == [[32, 64], [16, 32]]
    folders = [one.folder for one in found]
    assert len(set(folders)) == 2
    assert all("/" not in name and " " not in name for name in folders)
    one = plan.Combination({"a/b" * 100: 1}, (), "")
    assert len(one.folder) < 170
    assert plan.Combination({"b": 1, "a": 2}, (), "").folder == "a=2,b=1"


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ((1e-3, 3e-3), True), ((1e-4, 3e-4, 1e-3, 3e-3), True), ((1, 2, 4, 8), True),
        ((0.1, 0.2), False), ((1, 2, 3, 4), False), ((0, 1, 10), False), ((0.5,), False),
        ((0.1, 0.2, 0.5), True), ((0.1, 0.4, 0.5), False),
    ],
)  # fmt: skip
def test_axes_are_logarithmic_where_ratios_are_even(values, log):
    assert table.log_spaced(values) is log


# SLURM.


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Programs of a cluster that accept a job array and say that its tasks wait."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {
        "srun": "",
        "sbatch": f'cp "$1" {tmp_path}/submitted.sh; echo Submitted batch job 7',
        "sacct": "echo 'JobID|State|NodeList'; for i in 0 1 2 3; do echo \"7_$i|$STATE|\"; done",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", "PENDING")
    return tmp_path


def test_a_dry_run_shows_what_sbatch_is_given(swept, cluster, monkeypatch):
    options = ("--grid", RATES, "--slurm=partition=gpu,time=90,array_parallelism=2")
    code, shown = swept(*options, "--dry_run")
    assert code == 0
    assert shown.count("to run: ") == 4
    assert not (cluster / "sweep").exists()
    code, out = swept(*options)
    assert code == 0
    assert "submitted 4 runs as job 7; scancel 7 ends them" in out
    assert "no run is complete" in out
    script = (cluster / "submitted.sh").read_text()
    for line in ("--array=0-3%2", "--partition=gpu", "--time=90"):
        assert f"#SBATCH {line}\n" in script
    assert script.strip() in shown

    code, out = swept(*options)
    assert "4 runs are queued or running already" in out
    assert "submitted" not in out
    monkeypatch.setenv("STATE", "FAILED")
    log = cluster / "sweep/optimizer.learning_rate=0.001/seed0.log"
    log.parent.mkdir()
    log.write_text("error: no such GPU\n")
    code, out = swept(*options)
    assert "submitted again: learning_rate=0.001, seed 0: error: no such GPU" in out
    assert "submitted 4 runs as job 7" in out


@pytest.mark.slow
def test_a_cluster_is_not_given_runs_of_another_config_and_they_are_named(swept, cluster):
    assert swept("--grid", RATES)[0] == 0
    folder = cluster / "sweep/optimizer.learning_rate=0.01/seed1"
    retrain(folder, train={"steps": 6000})
    code, out = swept("--grid", RATES, "--slurm=")
    assert code == 1
    assert f"{folder} holds a run of another config; remove it to measure this one" in out
    assert "submitted" not in out


def test_without_a_cluster_or_submitit_one_line_says_so(swept, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "error: --slurm found no srun" in swept("--grid", RATES, "--slurm=")[1]
    monkeypatch.setitem(sys.modules, "experiments.sweep.slurm", None)
    monkeypatch.delattr("experiments.sweep.slurm")
    assert swept("--grid", RATES, "--slurm=") == (
        1, f"error: --slurm needs submitit: {install('slurm')}\n"
    )  # fmt: skip


@pytest.mark.slow
def test_a_job_that_fails_says_why_and_one_that_must_end_saves_first(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 3: error: no data"):
        Launch()(["sh", "-c", "echo error: no data; exit 3"], tmp_path / "a.log")
    # Like SLURM, the signal goes to the whole step: it must not end the run unsaved.
    launch = Launch()
    script = (
        "trap 'echo saved; exit 143' TERM; kill -USR2 $$; echo ready; while :; do sleep 0.1; done"
    )
    log = tmp_path / "b.log"

    def stop(*_):
        launch.checkpoint(["again"], log)

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    with pytest.raises(RuntimeError, match="exit code 143"):
        launch(["sh", "-c", script], log)
    signal.signal(signal.SIGALRM, previous)
    assert log.read_text().splitlines()[1:] == ["ready", "saved"]
    again = launch.checkpoint(["again"], log)
    assert again.args == (["again"], log)
    assert isinstance(again.function, Launch)
