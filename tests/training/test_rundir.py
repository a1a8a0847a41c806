"""Run directories: nothing that exists is overwritten, and mistakes are named."""

import fcntl
import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from experiments.common.comparison import for_each
from rml.errors import UserError
from rml.training import MetricsWriter, RunDirectory, config_file, read_metrics
from rml.training.config_file import HISTORY, extended_from, read_history
from rml.training.writers import warn_of_gaps

CONFIG = {"experiment": "a.b", "seed": 0, "train": {"steps": 5, "batch_size": 8}}


def test_the_same_config_opens_again(tmp_path):
    RunDirectory(tmp_path, CONFIG).close()
    run = RunDirectory(tmp_path, CONFIG)
    assert run.resumed
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_another_config_is_refused_with_the_differing_keys(tmp_path):
    RunDirectory(tmp_path, CONFIG).close()
    before = (tmp_path / "config.json").read_bytes()
    other = {**CONFIG, "train": {"steps": 4, "lr": 0.1}}
    with pytest.raises(UserError) as caught:
        RunDirectory(tmp_path, other)
    message = str(caught.value)
    assert "train.steps: 5 there, 4 now" in message
    assert "train.lr: '(absent)' there, 0.1 now" in message
    assert "train.batch_size: 8 there" in message
    assert "seed" not in message
    assert (tmp_path / "config.json").read_bytes() == before


def test_differences_are_listed_and_those_that_are_left_out_counted():
    pairs = {f"key{i}": (i, -i) for i in range(10)}
    first = config_file.list_differences(dict(list(pairs.items())[:2]), between=" | ")
    assert first == "key0: 0 there, 0 now | key1: 1 there, -1 now"
    assert config_file.list_differences({}) == ""
    whole = config_file.list_differences(pairs)
    assert whole.endswith("key7: 7 there, -7 now; and 2 more")
    written = config_file.as_written({"a": {"b": (1, (2.0,))}})
    assert written == {"a": {"b": [1, [2.0]]}}


def test_a_run_from_before_a_key_is_still_one_of_its_config(tmp_path):
    RunDirectory(tmp_path, CONFIG).close()
    RunDirectory(tmp_path, {**CONFIG, "precision": "default"}).close()
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    with pytest.raises(UserError, match=r"\n  precision: 'default' there, 'highest' now$"):
        RunDirectory(tmp_path, {**CONFIG, "precision": "highest"})
    assert not config_file.differences(CONFIG, CONFIG)
    without = config_file.differences({**CONFIG, "precision": "default"}, CONFIG)
    assert without == {"precision": ("default", "(absent)")}
    RunDirectory(tmp_path / "new", {**CONFIG, "precision": "default"}).close()
    with pytest.raises(UserError, match="precision: 'default' there, 'highest' now"):
        RunDirectory(tmp_path / "new", {**CONFIG, "precision": "highest"})


def test_a_bucket_is_refused():
    with pytest.raises(UserError, match=r"work directory is 'gs://bucket/run', a URL.*gcsfuse"):
        RunDirectory("gs://bucket/run", CONFIG)


def test_a_run_may_continue_on_another_mesh(tmp_path):
    RunDirectory(tmp_path / "r", {"seed": 0, "mesh": {"data": -1}}).close()
    again = RunDirectory(tmp_path / "r", {"seed": 0, "mesh": {"data": 4, "fsdp": 2}})
    assert again.resumed
    again.close()
    with pytest.raises(UserError, match=r"\n  seed: 0 there, 1 now$"):
        RunDirectory(tmp_path / "r", {"seed": 1, "mesh": {"data": 1}})


def evaluated(k, steps=5, schedule="warmup_cosine"):
    """A config with an evaluation, so many steps and a schedule."""
    more = {"evaluation": {"knn_k": k}, "optimizer": {"schedule": schedule}}
    return {**CONFIG, **more, "train": {"steps": steps}}


def reopened(path, config):
    RunDirectory(path, config).close()
    return json.loads((path / "config.json").read_text())


@pytest.mark.parametrize("changed", [evaluated(3), evaluated(5, 9), evaluated(3, 9)])
def test_evaluation_and_more_steps_may_differ_and_the_config_before_is_kept(
    tmp_path, caplog, changed
):
    old = evaluated(5)
    run = RunDirectory(tmp_path, old)
    summary = run.write_summary(metrics={"knn": 0.5}, claims=[], seconds=1.0)
    run.close()
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    assert reopened(tmp_path, changed) == changed
    assert read_history(tmp_path) == [{"step": 5, "config": old, "summary": summary}]
    again = RunDirectory(tmp_path, changed)
    assert again.summary() is None
    again.close()
    assert len(read_history(tmp_path)) == 1
    steps, k = changed["train"]["steps"], changed["evaluation"]["knn_k"]
    warned = [record.getMessage() for record in caplog.records]
    expected = [
        "train.steps rises from 5 to 9, on which optimizer.schedule (warmup_cosine) depends: this "
        "run differs from one of 9 steps from the beginning",
    ] * (steps == 9) + [
        f"{tmp_path}/metrics.jsonl keeps what was measured before the evaluation changed "
        "(evaluation.knn_k: 5 there, 3 now)"
    ] * (k == 3)  # fmt: skip
    assert warned == expected
    assert extended_from(tmp_path, changed) == (5 if steps == 9 else None)
    with pytest.raises(UserError, match=rf"\n  train\.steps: {steps} there, 4 now$"):
        RunDirectory(tmp_path, evaluated(7, steps=4))
    assert len(read_history(tmp_path)) == 1


def test_more_steps_need_no_warning_before_a_checkpoint_and_one_with_a_constant_schedule(
    tmp_path, caplog
):
    RunDirectory(tmp_path / "new", evaluated(5)).close()
    assert reopened(tmp_path / "new", evaluated(3, 9)) == evaluated(3, 9)
    assert extended_from(tmp_path / "new", evaluated(3, 9)) is None
    assert not caplog.records
    RunDirectory(tmp_path / "old", evaluated(5, schedule="constant")).close()
    (tmp_path / "old" / "checkpoints" / "5").mkdir(parents=True)
    reopened(tmp_path / "old", evaluated(5, 9, "constant"))
    (warned,) = caplog.records
    assert warned.getMessage() == (
        "train.steps rises from 5 to 9: this run differs from one of 9 steps from the beginning "
        "wherever its recipe reads train.steps"
    )


def test_more_steps_are_refused_where_a_stage_begins_from_what_another_has_learned(
    tmp_path, caplog
):
    run = RunDirectory(tmp_path, evaluated(5), staged=True)
    run.of_method("variants").close()
    run.close()
    before = (tmp_path / "config.json").read_bytes()
    said = r"run of 5 train\.steps, expected as many and not 9: .*; give another --workdir$"
    with pytest.raises(UserError, match=said):
        RunDirectory(tmp_path, evaluated(3, 9), staged=True)
    assert (tmp_path / "config.json").read_bytes() == before
    assert not caplog.records
    RunDirectory(tmp_path, evaluated(5, 9)).close()  # as where nobody knew that it has stages
    run = RunDirectory(tmp_path, evaluated(3, 9), staged=True)  # nothing was chosen by another yet
    with pytest.raises(UserError, match=said):
        run.of_method("variants")


def test_another_evaluation_is_refused_where_a_stage_has_chosen_by_it(tmp_path):
    free = {"batch_size": 8, "batch_tokens": 64, "test_queries": 10}
    old = evaluated(5)
    old["evaluation"] |= free
    run = RunDirectory(tmp_path, old, staged=True)
    inner = run.of_method("tries")
    for part in (inner, run):
        part.close()
    RunDirectory(tmp_path, evaluated(4), staged=True).close()  # nothing is trained yet
    RunDirectory(tmp_path, old, staged=True).close()
    (inner.path / "checkpoints" / "5").mkdir(parents=True)
    files = {file: file.read_bytes() for file in tmp_path.glob("*.json*")}
    said = (
        f"work directory {tmp_path} holds a run of another evaluation (evaluation.knn_k: 5 there, "
        "3 now): a stage that begins from what another has chosen by it would keep what it had of "
        "the earlier one; give the same values, or another --workdir"
    )
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        RunDirectory(tmp_path, old | {"evaluation": {"knn_k": 3} | free}, staged=True)
    assert {file: file.read_bytes() for file in tmp_path.glob("*.json*")} == files
    changed = {"mesh": {"data": 2}, "evaluation": {"knn_k": 5} | dict.fromkeys(free, 2)}
    run = RunDirectory(tmp_path, old | changed, staged=True)
    run.of_method("tries").close()
    run.close()
    assert json.loads((inner.path / "config.json").read_text())["evaluation"]["batch_size"] == 2
    other = old | {"evaluation": {"knn_k": 3}}
    run = RunDirectory(tmp_path, other)  # as where nobody knew that it has stages
    run.close()
    run = RunDirectory(tmp_path, other, staged=True)
    with pytest.raises(UserError, match=r"another evaluation \(.*knn_k: 5 there, 3 now"):
        run.of_method("tries")


def test_a_run_is_complete_until_it_is_extended(tmp_path, caplog):
    said = rf"^bed\.run is '{tmp_path}', a run that has not ended; let it end first \(the same "
    run = RunDirectory(tmp_path, evaluated(5))
    with pytest.raises(UserError, match=said):
        config_file.check_complete(tmp_path, "bed.run")
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match=said):
        config_file.check_complete(tmp_path, "bed.run")
    run.write_summary(metrics={}, claims=[], seconds=1.0)
    run.close()
    config_file.check_complete(tmp_path, "bed.run")
    run = RunDirectory(tmp_path, evaluated(5, 9))
    (tmp_path / "checkpoints" / "7").mkdir()
    run.take_back_config()  # as where it is stopped
    run.close()
    with pytest.raises(UserError, match=said):
        config_file.check_complete(tmp_path, "bed.run")
    RunDirectory(tmp_path, evaluated(5, 9)).write_summary(metrics={}, claims=[], seconds=1.0)
    config_file.check_complete(tmp_path, "bed.run")


def test_a_change_that_fails_before_it_trains_is_taken_back(tmp_path):
    run = RunDirectory(tmp_path, evaluated(5))
    inner = run.of_method("a")
    for part in (inner, run):
        part.write_summary(metrics={}, claims=[], seconds=1.0)
        part.close()
    files = ("config.json", "summary.json", "methods/a/config.json", "methods/a/summary.json")
    before = [(tmp_path / name).read_bytes() for name in files]
    (inner.path / "checkpoints" / "5").mkdir(parents=True)

    run = RunDirectory(tmp_path, evaluated(5, 9))
    run.of_method("a").close()
    assert run.summary() is None
    run.abandon()
    assert [(tmp_path / name).read_bytes() for name in files] == before
    assert not list(tmp_path.rglob(HISTORY))

    run = RunDirectory(tmp_path, evaluated(5, 9))
    run.of_method("a").close()
    (inner.path / "checkpoints" / "7").mkdir()
    run.abandon()
    assert json.loads((tmp_path / "config.json").read_text()) == evaluated(5, 9)
    assert len(list(tmp_path.rglob(HISTORY))) == 2


def test_a_complete_run_whose_extension_fails_is_the_one_that_it_was(tmp_path):
    run = RunDirectory(tmp_path, evaluated(5))
    writer = MetricsWriter(tmp_path, step=0)
    for step in (1, 5):
        writer.write(step, float(step), {"train/loss": 1.0})
    run.write_summary(metrics={}, claims=[], seconds=1.0)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    run.close()
    files = ("config.json", "summary.json", "metrics.jsonl")
    before = [(tmp_path / name).read_bytes() for name in files]

    run = RunDirectory(tmp_path, evaluated(5, 9))
    writer.write(7, 7.0, {"train/loss": 2.0})
    writer.close()
    run.write_failure(8, "loss is nan")
    run.abandon()
    assert [(tmp_path / name).read_bytes() for name in files] == before
    assert not (tmp_path / "failure.json").exists()


def test_a_change_that_something_was_judged_with_is_not_taken_back(tmp_path):
    run = RunDirectory(tmp_path, evaluated(5))
    for part in (run.of_method("a"), run.of_method("b"), run):
        part.write_summary(metrics={"knn": 0.5}, claims=[], seconds=1.0)
        part.close()
    run = RunDirectory(tmp_path, evaluated(3))
    inner, other = run.of_method("a"), run.of_method("b")
    inner.write_summary(metrics={"knn": 0.7}, claims=[], seconds=1.0)
    run.take_back_config()  # as where the other's evaluation is interrupted
    assert other.summary()["metrics"] == {"knn": 0.5}
    assert json.loads((inner.path / "config.json").read_text()) == evaluated(3) | {"method": "a"}
    assert inner.summary()["metrics"] == {"knn": 0.7}
    assert json.loads((tmp_path / "config.json").read_text()) == evaluated(5)
    assert run.summary() is not None


@pytest.mark.parametrize("there", [None, evaluated(5), "{"])
def test_other_processes_than_the_first_write_no_config(tmp_path, monkeypatch, there):
    """Their view of a file system that they share may be an older one."""
    config = tmp_path / "config.json"
    if there == "{":
        config.write_text(there)
        (tmp_path / "checkpoints" / "5").mkdir(parents=True)
        monkeypatch.setattr(config_file, "saved_config", lambda _: (5, evaluated(5)))
    elif there is not None:
        RunDirectory(tmp_path, there).close()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    monkeypatch.setattr("jax.process_index", lambda: 1)
    run = RunDirectory(tmp_path, evaluated(3, 9))
    assert run.resumed == (there is not None)
    run.abandon()
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json*")} == before


def test_a_comparison_that_did_not_begin_is_taken_back(tmp_path):
    run = RunDirectory(tmp_path / "run", CONFIG)
    run.of_method("a")
    run.abandon()
    assert not (tmp_path / "run").exists()
    RunDirectory(tmp_path / "run", CONFIG | {"another": 1})


def test_a_comparison_that_is_closed_lets_go_of_the_method_that_it_was_in(tmp_path):
    def measure(name, inner):
        raise KeyboardInterrupt

    run = RunDirectory(tmp_path, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        for_each(run, ["a"], measure)
    for _ in range(2):
        run.close()
    for_each(RunDirectory(tmp_path, CONFIG), ["a"], lambda name, inner: ({}, None))
    assert run.of_method("a").summary() is not None


@pytest.mark.parametrize("there", [False, True])
def test_what_is_made_of_the_data_before_the_training_is_taken_back_too(tmp_path, there):
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    run = RunDirectory(folder, CONFIG)
    inner = run.of_method("a")
    for part in (run, inner):
        (part.path / "tokenizer.json").write_text("{}")
    run.abandon()
    assert folder.exists() == there
    assert not list(folder.rglob("*"))
    run = RunDirectory(folder, CONFIG)
    for name in ("tokenizer.json", "metrics.jsonl"):
        (folder / name).write_text("")
    run.abandon()
    assert (folder / "tokenizer.json").exists()
    RunDirectory(folder, CONFIG).abandon()  # of another start, which may have trained
    assert (folder / "config.json").exists()


@pytest.mark.parametrize("there", [False, True])
def test_hidden_files_of_others_stay_and_the_rest_is_taken_back(tmp_path, there):
    hidden = tmp_path / "run" / ".gitkeep"
    if there:
        hidden.parent.mkdir()
        hidden.write_text("mine")
    run = RunDirectory(hidden.parent, CONFIG)
    hidden.write_text("mine")
    run.abandon()
    assert [(p, p.read_text()) for p in hidden.parent.iterdir()] == [(hidden, "mine")]
    run = RunDirectory(hidden.parent, CONFIG | {"corrected": 1}, commit="abc")
    run.note_commit()  # which says that something was trained
    run.abandon()
    assert (hidden.parent / "config.json").exists()


@pytest.mark.slow
def test_who_waits_for_a_directory_that_is_given_up_holds_it_alone(tmp_path):
    tmp_path.joinpath("run").mkdir()
    first = RunDirectory(tmp_path / "run", CONFIG)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(RunDirectory, tmp_path / "run", CONFIG)
        time.sleep(0.2)
        first.abandon()
        second = waiting.result()
    with pytest.raises(UserError, match="in use by another run"):
        RunDirectory(tmp_path / "run", CONFIG)
    second.close()


@pytest.mark.slow
def test_a_lock_whose_file_goes_before_it_is_taken_is_taken_anew(tmp_path, monkeypatch):
    lock, taken = tmp_path / ".lock", []

    def flock(file, how, real=fcntl.flock):
        if not taken:  # as `abandon` of another run does just then
            lock.unlink()
        taken.append(how)
        real(file, how)

    monkeypatch.setattr("rml.training.rundir.fcntl.flock", flock)
    run = RunDirectory(tmp_path, CONFIG)
    monkeypatch.undo()
    with pytest.raises(UserError, match="in use by another run"):
        RunDirectory(tmp_path, CONFIG)
    run.close()


def test_somebody_elses_directory_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(UserError, match=r"holds 'thesis\.tex' and no run"):
        RunDirectory(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_a_lock_that_was_there_stays_where_a_directory_is_refused(tmp_path):
    run = RunDirectory(tmp_path, CONFIG)
    with pytest.raises(UserError, match="in use by another run"):
        RunDirectory(tmp_path, CONFIG)
    run.close()
    with pytest.raises(UserError, match="experiment"):
        RunDirectory(tmp_path, CONFIG | {"experiment": "another"})
    assert (tmp_path / ".lock").exists()


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, expected a directory"):
        RunDirectory(tmp_path / "file", CONFIG)
    with pytest.raises(UserError, match=r"run cannot be made: .*/file is a file, expected"):
        RunDirectory(tmp_path / "file" / "run", CONFIG)


def test_an_empty_path_is_not_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the work directory is empty, expected a path"):
        RunDirectory("", CONFIG)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "is not readable as JSON"), ("[]", "is not a JSON object"), (None, "is missing")],
)
def test_a_lost_config_without_a_checkpoint_is_named(tmp_path, content, reason):
    (tmp_path / "metrics.jsonl").write_text("")
    if content:
        (tmp_path / "config.json").write_text(content)
    message = rf"^{tmp_path}/config\.json {reason} and no checkpoint holds the config; [^\n]*$"
    with pytest.raises(UserError, match=message):
        RunDirectory(tmp_path, CONFIG)
    assert (tmp_path / "config.json").exists() == bool(content)


def test_who_only_reads_a_lost_config_writes_nothing(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    monkeypatch.setattr(config_file, "saved_config", lambda _: (5, evaluated(5)))
    assert config_file.read_config(tmp_path) == evaluated(5)
    assert not (tmp_path / "config.json").exists()
    RunDirectory(tmp_path, evaluated(5)).close()
    assert json.loads((tmp_path / "config.json").read_text()) == evaluated(5)


@pytest.mark.parametrize("content", ["", "{", "[1]", "5", '{"metrics": {}, "claims": []}', b"\xff"])
def test_a_damaged_summary_warns_and_the_run_counts_as_not_complete(tmp_path, caplog, content):
    run = RunDirectory(tmp_path, CONFIG)
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "summary.json").write_bytes(content)
    assert run.summary() is None
    assert run.summary() is None  # as a start does several times
    (record,) = caplog.records
    assert f"{tmp_path}/summary.json " in record.getMessage()
    assert "counts as not complete until it is written again" in record.getMessage()
    written = run.write_summary(metrics={}, claims=[], seconds=1.0)
    assert run.summary() == written


def test_a_directory_that_cannot_be_opened_is_not_held(tmp_path):
    """An error keeps its frames alive, such as in a notebook."""
    RunDirectory(tmp_path, CONFIG).close()
    with pytest.raises(UserError, match="holds a run of a different config") as kept:
        RunDirectory(tmp_path, CONFIG | {"seed": 99})
    RunDirectory(tmp_path, CONFIG).close()
    assert kept.tb is not None


@pytest.mark.slow
def test_a_directory_in_use_or_read_only_is_refused(tmp_path, obedient_python):
    run = RunDirectory(tmp_path / "used", CONFIG)
    locked = RunDirectory(tmp_path / "locked", CONFIG)
    locked.close()
    locked.path.chmod(0o555)
    code = (
        "import sys\nfrom rml.training import RunDirectory\nfor path in sys.argv[1:]:\n"
        f"  try: RunDirectory(path, {CONFIG!r})\n  except ValueError as error: print(error)"
    )
    other = subprocess.run(
        [*obedient_python, "-c", code, str(run.path), str(locked.path)],
        capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert other.stdout.splitlines() == [
        f"work directory {run.path} is in use by another run",
        f"work directory {locked.path} cannot be used: Permission denied",
    ], other.stderr
    run.close()
    RunDirectory(run.path, CONFIG)


def test_the_summary_marks_a_run_complete(tmp_path):
    run = RunDirectory(tmp_path, CONFIG, config_name="configs/a/b.py")
    assert run.summary() is None
    written = run.write_summary(metrics={"knn": 0.5}, claims=[], seconds=1.25)
    assert run.summary() == written
    assert written["versions"]["jax"]
    assert written["steps"] == 5


def test_a_summary_names_the_commits_of_all_that_has_trained(tmp_path):
    def start(commit):
        run = RunDirectory(tmp_path, CONFIG, commit=commit)
        return run, run.of_method("a")

    def end(*parts):
        for part in parts:
            part.close()

    for commit in ("one", "two", "one"):
        run, inner = start(commit)
        inner.note_commit()
        end(run, inner)
    end(*start("of no checkpoint"))
    run, inner = start("three")
    assert inner.write_summary(metrics={}, claims=[], seconds=1.0)["commit"] == "one, two, three"
    end(run, inner)
    assert (inner.path / ".commits").read_text() == "one\ntwo"
    run, inner = start("four")
    written = run.write_summary(metrics={}, claims=[], seconds=1.0)
    assert written["commit"] == "one, two, three, four"


def test_captions_have_a_place_where_nothing_was_drawn(tmp_path):
    run = RunDirectory(tmp_path, CONFIG)
    captions = {"loss.png": "The loss against steps."}
    run.write_summary(metrics={}, claims=[], seconds=1.0, captions=captions)
    assert json.loads((tmp_path / "figures" / "captions.json").read_text()) == captions


def test_the_time_of_earlier_starts_is_that_of_all_methods(tmp_path):
    run = RunDirectory(tmp_path / "run", CONFIG)
    assert run.seconds() == 0
    for folder, seconds in ((run.path, 3.0), (run.of_method("begun").path, 4.5)):
        writer = MetricsWriter(folder, step=0)
        for step in (1, 2):
            writer.write(step, seconds * step / 2, {"train/loss": 1.0})
        writer.close()
    run.of_method("not_begun")
    run.of_method("done").write_summary(metrics={}, claims=[], seconds=10.0)
    assert run.seconds() == 3 + 4.5 + 10
    run.write_summary(metrics={}, claims=[], seconds=20.0)
    assert run.seconds() == 20


def test_a_method_that_was_continued_took_both_its_times(tmp_path):
    run = RunDirectory(tmp_path / "run", CONFIG)
    writer = MetricsWriter(run.of_method("one").path, step=0)
    writer.write(1, 100.0, {"train/loss": 1.0})
    writer.close()
    run.close()
    run = RunDirectory(tmp_path / "run", CONFIG)
    for_each(run, ["one"], lambda name, inner: ({}, None))
    assert 100 <= run.of_method("one").summary()["seconds"] < 110


def test_metrics_after_the_restored_step_are_forgotten(tmp_path, caplog):
    writer = MetricsWriter(tmp_path, step=0)
    for step in (1, 2, 3):
        writer.write(step, float(step), {"train/loss": 1.0 / step})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "tra')  # killed while writing
    writer = MetricsWriter(tmp_path, step=2)
    assert caplog.messages == [
        f"the last line of {tmp_path}/metrics.jsonl is cut short (16 bytes) and removed; the run "
        "continues after step 2"
    ]
    assert writer.seconds == 2.0
    writer.write(3, 9.0, {"train/loss": float("nan"), "x": float("-inf")})
    writer.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1] == {"step": 3, "time": 9.0, "train/loss": "nan", "x": "-inf"}


def test_damaged_lines_of_metrics_cost_no_other_line(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    whole = [{"step": step, "time": 0.1, "train/loss": 1.0} for step in (1, 2, 3, 4)]
    texts = [json.dumps(line) for line in whole]
    texts[2:2] = ["\0" * 9, "7", '{"step": 2}', '{"step": null, "time": 1}']
    path.write_text("\n".join(texts) + "\n")
    assert read_metrics(path) == whole
    MetricsWriter(tmp_path, step=3).close()
    assert read_metrics(path) == whole[:3]
    assert caplog.messages == [
        f"damaged lines of {path} are removed: 3, 4, 5, 6; the run continues after step 3"
    ]


def test_missing_metrics_are_counted(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "time": 0.1, "train/loss": 1.0} for step in (2, 4, 6, 8)]
    lines.insert(2, {"step": 4, "time": 0.1, "eval/knn": 0.5})

    def warned(lines, step=9, **every):
        caplog.clear()
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        warn_of_gaps(path, step, **every)
        return [message.removeprefix(f"{path} lacks ") for message in caplog.messages]

    assert not warned(lines, train=2, eval=4, step=7)
    assert not warned([], train=5, eval=2, step=4)
    rest = "; curves have a gap there, the training does not"
    assert warned(lines, train=2, eval=4) == [
        "1 of the 2 lines of eval/ metrics up to step 9 (the first of step 8)" + rest
    ]
    assert warned(lines[:1] + lines[4:], train=2, eval=4) == [
        "2 of the 4 lines of train/ metrics up to step 9 (the first of step 4)" + rest
    ]
    path.unlink()
    warn_of_gaps(path, 4, train=2)
    assert "lacks 2 of the 2 lines of train/ metrics" in caplog.text


def test_tensorboard_reads_the_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path, step=0)
    for step in (1, 2, 3):
        writer.write(step, 0.1, {"train/loss": 1.0 / step})
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("train/loss")] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3),
    ]  # fmt: skip
