"""The launcher's commands, and what it does when a recorded `gcloud` fails on demand."""

import json
import os
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rml.errors import UserError
from tpu.gcloud import Pod, says_absent
from tpu.launch import CHECK, INSTALL, MISSING, check_run, risk

ROOT = Path(__file__).parents[2]
FAKE = f"""#!{sys.executable}
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["FAKE_GCLOUD"])
args = sys.argv[1:]
with open(folder / "calls.jsonl", "a") as log:
    log.write(json.dumps(args) + "\\n")
verb = args[3]
kind = verb + ("-status" if any("run.status" in a and "cat" in a for a in args) else "")
script = json.loads((folder / "script.json").read_text())
# Each kind of call takes its next answer; the last one stays.
answers = script.get(kind, [[0, "", ""]])
code, out, err = answers.pop(0) if len(answers) > 1 else answers[0]
script[kind] = answers
(folder / "script.json").write_text(json.dumps(script))
print(out)
print(err, file=sys.stderr)
sys.exit(code)
"""
GONE = [1, "", "ERROR: NOT_FOUND: resource not found"]
POD = ("--name=pod", "--zone=us-central1-a", "--topology=v5e:16x16")
RUN = "--run=--config=configs/contrastive/simclr_digits.py --workdir=runs/pod"


@pytest.fixture
def fake(tmp_path):
    """Runs the launcher with a `gcloud` that follows a script; returns the result and its calls."""
    for name, text in (("gcloud", FAKE), ("git", "#!/bin/sh\nexit 0\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)

    def run(*args, script=None):
        (tmp_path / "script.json").write_text(json.dumps(script or {}))
        (tmp_path / "calls.jsonl").unlink(missing_ok=True)
        environment = {
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE_GCLOUD": str(tmp_path),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "tpu.launch", *args, "--poll=0.01"],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        log = tmp_path / "calls.jsonl"
        calls = [json.loads(x) for x in log.read_text().splitlines()] if log.exists() else []
        return done, calls

    return run


def verbs(calls):
    return [call[3] for call in calls]


def test_dry_run_prints_the_commands_and_runs_none(fake):
    done, calls = fake("create", *POD, "--project=lab")
    assert (done.returncode, calls) == (0, [])
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert lines[1] == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "pod",
        "--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite",
        "--node-id=pod", "--spot", "--zone=us-central1-a", "--project=lab",
    ]  # fmt: skip
    for line in (0, 2):
        assert lines[line][4:7] == ["describe", "pod", "--format=value(state.state)"]
    assert lines[3] == ["git", "archive", "--output=rml.tar.gz", "HEAD"]
    assert lines[4][4:9] == ["scp", "rml.tar.gz", "pod:rml.tar.gz", "--worker=all", "--node=all"]
    assert lines[5][4] == "ssh"
    assert ".[tpu]" in lines[5][6]
    assert len(lines) == 6


@pytest.mark.slow
def test_virtual_machine_and_several_slices(fake):
    done, _ = fake("create", "--name=vm", "--zone=z", "--topology=v5p:2x2x1", "--noqueued",
                   "--nospot")  # fmt: skip
    made = shlex.split(done.stdout.splitlines()[1])
    assert made[3:] == ["tpu-vm", "create", "vm", "--accelerator-type=v5p-8",
                         "--version=v2-alpha-tpuv5", "--zone=z"]  # fmt: skip
    done, _ = fake("create", *POD, "--num_slices=2")
    made = shlex.split(done.stdout.splitlines()[1])
    assert {"--node-count=2", "--node-prefix=pod"} <= set(made)
    assert "--node-id=pod" not in made
    done, _ = fake("delete", *POD)
    assert shlex.split(done.stdout)[3:] == [
        "queued-resources", "delete", "pod", "--force", "--quiet", "--zone=us-central1-a",
    ]  # fmt: skip


def test_waits_for_capacity_then_installs(fake):
    states = [
        GONE, [0, "WAITING_FOR_RESOURCES", ""], [0, "PROVISIONING", ""], [0, "ACTIVE", ""]
    ]  # fmt: skip
    done, calls = fake("create", *POD, "--nodry_run", script={"describe": states})
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["describe", "create", "describe", "describe", "describe", "scp", "ssh"]


@pytest.mark.parametrize("verb", ["create", "resume"])
def test_a_pod_that_waits_already_is_waited_for_and_not_asked_for_again(fake, verb):
    states = [[0, "WAITING_FOR_RESOURCES", ""], [0, "ACTIVE", ""]]
    done, calls = fake(verb, *POD, RUN, "--nodry_run", script={"describe": states})
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["describe", "describe", "scp", "ssh", *["ssh"] * (verb == "resume")]


@pytest.mark.slow
def test_a_pod_that_is_there_is_installed_where_that_was_left_out(fake):
    script = {"describe": [[0, "ACTIVE", ""]]}
    assert verbs(fake("create", *POD, "--nodry_run", script=script)[1]) == [
        "describe", "describe", "scp", "ssh",
    ]  # fmt: skip
    for said, installs in (("not installed yet", ["describe", "scp", "ssh"]), ("", [])):
        script |= {"ssh": [[0, said, ""], [0, "", ""]]}
        done, calls = fake("resume", *POD, RUN, "--nodry_run", script=script)
        assert done.returncode == 0, done.stderr
        assert verbs(calls) == ["describe", "ssh", *installs, "ssh"]
        assert "--worker=all" in calls[1]


def test_the_look_at_what_is_installed_is_one_that_a_shell_runs(tmp_path):
    def look():
        return subprocess.run(
            ["bash", "-c", CHECK], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert look() == f"{MISSING}\n"
    (tmp_path / "rml").mkdir()
    (tmp_path / "rml/installed").touch()
    assert look() == ""
    assert INSTALL.endswith("&& touch installed")  # in rml, after all else


@pytest.mark.slow
def test_run_is_detached_and_records_its_exit_code(fake):
    done, calls = fake("run", *POD, RUN, "--nodry_run", "--setup=mount")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["ssh", "ssh"]
    assert "--command=mount" in calls[0]
    shell = next(word for word in calls[1] if word.startswith("--command="))
    assert "--workdir=runs/pod" in shell
    assert "echo $? > run.status" in shell
    assert "--worker=all" in calls[1]


@pytest.mark.slow
def test_detached_command_is_one_that_a_shell_runs(fake, tmp_path):
    """What is sent to a worker, run here with another program in the place of Python's."""
    _, calls = fake("run", *POD, RUN, "--nodry_run")
    shell = next(w for w in calls[0] if w.startswith("--command=")).removeprefix("--command=")
    python = tmp_path / "rml/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    python.chmod(stat.S_IRWXU)
    subprocess.run(["bash", "-c", f"{shell}; sleep 1"], cwd=tmp_path, check=True, timeout=20)
    log = (tmp_path / "rml/run.log").read_text().split()
    assert log[:3] == ["-m", "experiments.run", "--distributed"]
    assert log[-1] == "--workdir=runs/pod"
    assert (tmp_path / "rml/run.status").read_text().strip() == "7"


@pytest.mark.slow
def test_a_worker_that_still_trains_refuses_another_start_and_not_a_second_try(fake, tmp_path):
    def command():
        _, calls = fake("run", *POD, RUN, "--nodry_run")
        shell = next(w for w in calls[0] if w.startswith("--command=")).removeprefix("--command=")
        assert "flock -w 180" in shell
        return shell.replace("flock -w 180", "flock -w 0")

    def start(shell):
        return subprocess.run(
            ["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, timeout=20
        )

    python, end = tmp_path / "rml/.venv/bin/python", tmp_path / "end"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho begun >> {tmp_path}/starts\n"
                      f"until [ -e {end} ]; do sleep 0.05; done\n")  # fmt: skip
    python.chmod(stat.S_IRWXU)
    first = command()
    try:
        for _ in range(2):  # another worker had failed
            assert start(first).returncode == 0
        refused = start(command())
        assert refused.returncode == 1
        assert "a run is still going on here" in refused.stderr
        assert (tmp_path / "starts").read_text() == "begun\n"
    finally:
        end.touch()
    deadline = time.monotonic() + 20
    while start(command()).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_refusal_of_workers_is_not_tried_again(fake):
    said = "a run is still going on here; let it end, or delete the pod\n##### worker 0"
    done, calls = fake("run", *POD, RUN, "--nodry_run", script={"ssh": [[1, "", said]]})
    assert done.returncode == 1
    assert verbs(calls) == ["ssh"]
    assert "a run is still going on here; let it end, or delete the pod" in done.stderr


@pytest.mark.slow
def test_ssh_that_fails_twice_is_tried_again(fake):
    down = [255, "", "ssh: connect to host: Connection refused"]
    script = {"ssh": [down, down, [0, "", ""]]}
    done, calls = fake("run", *POD, RUN, "--nodry_run", script=script)
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["ssh"] * 3
    done, calls = fake("run", *POD, RUN, "--nodry_run", "--attempts=2", script={"ssh": [down]})
    assert done.returncode == 1
    assert verbs(calls) == ["ssh"] * 2
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("ERROR: Quota exceeded for quota metric 'TPUV5sPreemptible'", "--zone"),
        ("ERROR: RESOURCE_EXHAUSTED: There is no more capacity in the zone", "--queued"),
        ("ERROR: permission denied", "permission denied"),
    ],
)
def test_refusals_are_explained_in_one_line(fake, said, advice):
    done, calls = fake("create", *POD, "--nodry_run", script={"create": [[1, "", said]]})
    assert done.returncode == 1
    assert verbs(calls) == ["describe", "create"]
    (line,) = done.stderr.strip().splitlines()
    assert said in line
    assert advice in line


def test_queue_that_gives_up_is_an_error(fake):
    done, _ = fake("create", *POD, "--nodry_run", script={"describe": [[0, "FAILED", ""]]})
    assert done.returncode == 1
    assert "pod is FAILED" in done.stderr


@pytest.mark.slow
def test_follow_ends_with_the_run(fake):
    script = {
        "describe": [[0, "ACTIVE", ""]],
        "ssh": [[0, "step 10", ""], [0, "step 20", ""]],
        "ssh-status": [[0, "running", ""], [0, "0", ""]],
    }
    done, calls = fake("follow", *POD, RUN, "--nodry_run", script=script)
    assert done.returncode == 0, done.stderr
    assert "step 10" in done.stdout
    assert "step 20" in done.stdout
    assert "complete" in done.stdout
    assert verbs(calls) == ["describe", "ssh", "ssh"] * 2


@pytest.mark.slow
def test_follow_starts_again_after_preemption(fake):
    script = {
        "describe": [[0, "ACTIVE", ""], [0, "SUSPENDED", ""], [0, "SUSPENDED", ""],
                     [0, "PROVISIONING", ""], [0, "ACTIVE", ""]],
        "ssh-status": [[0, "running", ""], [0, "0", ""]],
    }  # fmt: skip
    done, calls = fake("follow", *POD, RUN, "--nodry_run", "--resumes=1", script=script)
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == [
        "describe", "ssh", "ssh",  # runs
        "describe",  # taken away
        "describe", "delete", "create", "describe", "describe", "scp", "ssh",  # made again
        "ssh",  # the same command
        "describe", "ssh", "ssh",  # complete
    ]  # fmt: skip


@pytest.mark.slow
def test_preemption_between_two_looks(fake):
    script = {
        "describe": [[0, "ACTIVE", ""], [0, "SUSPENDED", ""]],
        "ssh": [[255, "", "Connection closed"]],
    }
    done, _ = fake("follow", *POD, RUN, "--nodry_run", "--attempts=1", script=script)
    assert done.returncode == 1
    assert "pod is SUSPENDED" in done.stderr
    assert "resume" in done.stderr


@pytest.mark.slow
def test_follow_without_resumes_says_how_to_go_on(fake):
    script = {"describe": [[0, "ACTIVE", ""]], "ssh-status": [[0, "137", ""]]}
    done, _ = fake("follow", *POD, RUN, "--nodry_run", script=script)
    assert done.returncode == 1
    assert "exit code 137" in done.stderr
    assert "resume" in done.stderr


@pytest.mark.slow
def test_a_look_that_fails_by_chance_is_taken_again(fake):
    script = {
        "describe": [[1, "", "ERROR: 503 the service is unavailable"], [0, "ACTIVE", ""]],
        "ssh-status": [[0, "0", ""]],
    }
    done, calls = fake("follow", *POD, RUN, "--nodry_run", script=script)
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["describe", "describe", "ssh", "ssh"]


@pytest.mark.parametrize(
    ("said", "absent"),
    [
        ("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource "
         "'projects/lab/locations/z/queuedResources/pod' was not found\nThis command is", True),
        ("ERROR: NOT_FOUND: resource not found", True),
        ("ERROR: NOT_FOUND: Resource 'projects/lab/locations/z/nodes/pod-2' was not found", False),
        ("ERROR: NOT_FOUND: Resource 'projects/lab/locations/zz' was not found", False),
        ("ssh: command not found", False),
    ],
)  # fmt: skip
def test_a_pod_is_absent_where_the_service_says_so_of_it(said, absent):
    pod = Pod("pod", "z", "v5e:4x4")
    assert says_absent(said, pod) == absent


@pytest.mark.parametrize(
    ("topology", "run", "setup", "resumes", "part"),
    [
        ("v5e:16x16", "--workdir=runs/a", "mount", 0, "runs/a, is on each worker's own disk"),
        ("v5e:16x16", "--workdir runs/a", "mount", 0, "runs/a, is on each worker's own disk"),
        ("v5e:16x16", "--config=c.py", "mount", 0, "runs, is on each worker's own disk"),
        ("v5e:16x16", "--workdir=/mnt/a", "", 1, "has an empty disk, and nothing mounts /mnt/a"),
        ("v5e:2x4", "--workdir=runs/a", "", 1, "has an empty disk, and nothing mounts runs/a"),
        ("v5e:16x16", "--workdir /mnt/a", "mount", 1, None),
        ("v5e:2x4", "--workdir=runs/a", "", 0, None),
    ],
)
def test_a_work_directory_that_may_be_lost_is_told(topology, run, setup, resumes, part):
    told = risk(Pod("pod", "z", topology), run, setup, resumes)
    assert told is None if part is None else part in told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.seed 3 --config.train.batch_size=-2", "train.batch_size is -2, expected"),
        ("--config.train.batch_size 0", "train.batch_size is 0, expected"),
        ("--config.train.batch_size -8", "train.batch_size is -8, expected"),
        ("--config.seed", "Missing value for flag --config.seed"),
    ],
)
def test_values_may_stand_behind_their_flags(override, message):
    run = "--config=configs/contrastive/simclr_digits.py --config.train.steps 200 --workdir /mnt/x"
    check_run(run)
    with pytest.raises(UserError, match=message):
        check_run(f"{run} {override}")


def test_several_slices_are_several_hosts():
    assert risk(Pod("pod", "z", "v5e:2x2", num_slices=2), "--workdir=runs/a", "", 0) is not None


@pytest.mark.slow
def test_resume_makes_a_pod_that_was_deleted(fake):
    script = {"describe": [GONE, [0, "ACTIVE", ""]]}
    done, calls = fake("resume", *POD, RUN, "--nodry_run", script=script)
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["describe", "create", "describe", "scp", "ssh", "ssh"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ((), ("create, run, follow",)),
        (("destroy", *POD), ("'destroy'", "expected one of")),
        (("create", "--name=pod", "--zone=z"), ("--topology",)),
        (("create", "--name=pod", "--topology=v5e:4x4"), ("--zone",)),
        (("create", "--name=p", "--zone=z", "--topology=tpu7x:2x2x1"), ("Kubernetes",)),
        (("create", *POD, "--num_slices=2", "--noqueued"), ("--queued",)),
        (("create", *POD, "--num_slices=0"), ("at least 1",)),
        (("run", *POD), ("--run",)),
        (("follow", *POD, "--resumes=1", "--nodry_run"), ("no --run", "--config=configs")),
        (("create", "--name=my pod", "--zone=z", "--topology=v5e:4x4"), ("'my pod'", "lower-case")),
        (("create", "--name=p", "--zone=z", "--topology=v5e:3x3"), ("'v5e:3x3'", "v5e:4x4")),
        (("run", *POD, "--run=--workdir=runs/pod"), ("--workdir=runs/pod", "--config=FILE")),
        (("run", *POD, "--run=--config='x"), ("--config='x", "quotation")),
        (("run", *POD, "--run=--config=configs/simclr_digitz.py"), ("simclr_digits.py'?",)),
        (("resume", *POD, f"{RUN} --config.train.stpes=3"), ("'train.stpes'", "'train.steps'?")),
        (("run", *POD, f"{RUN} --config.train.batch_size=0"), ("batch_size is 0", "at least 1")),
        (("run", *POD, f"{RUN} --workdir=gs://b/x"), ("--workdir", "gs://b/x")),
        (("resume", *POD, f"{RUN} simclr"), ("'simclr'", "flags alone")),
        (("create", *POD, "--naem=x"), ("'naem'",)),
    ],
)
def test_wrong_command_lines(fake, args, parts):
    done, calls = fake(*args)
    assert (done.returncode, calls) == (1, [])
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert all(part in done.stderr for part in parts), done.stderr


def test_help_is_no_mistake(fake):
    done, calls = fake("--help")
    assert (done.returncode, done.stderr, calls) == (0, "", [])
    assert "--topology" in done.stdout


def test_missing_gcloud_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tpu.launch", "delete", *POD, "--nodry_run"],
        cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "gcloud is not installed" in done.stderr
