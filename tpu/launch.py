r"""Creates a TPU with `gcloud`, trains on it, follows, resumes after preemption, deletes.

python -m tpu.launch create --name=pod --zone=us-central1-a --topology=v5e:16x16
python -m tpu.launch run    --name=pod --zone=us-central1-a --topology=v5e:16x16 \
    --run="--config=configs/pods/simclr_imagenet2012_vit_b.py --workdir=/mnt/runs/simclr" \
    --setup="MOUNT /mnt/runs"
python -m tpu.launch follow ...      (the same flags; --resumes=10 starts again after preemption)
python -m tpu.launch resume ...
python -m tpu.launch delete ...

Prints the commands; --nodry_run runs them, and costs money until `delete`. The work directory lies
on storage that `--setup` mounts on all workers: a worker's own disk goes with it.
"""

import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags

from experiments import ranges, registry
from experiments.startup import fail, parse_flags
from rml.errors import UserError, local_path, unknown
from tpu import gcloud
from tpu.gcloud import ABSENT, GONE, READY, Pod

NAME = flags.DEFINE_string("name", None, "Name of the TPU.")
ZONE = flags.DEFINE_string("zone", None, "Zone.")
PROJECT = flags.DEFINE_string("project", None, "Project; the configured one if unset.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Chip and shape, such as v5e:16x16.")
SLICES = flags.DEFINE_integer("num_slices", 1, "Slices of this topology.")
SPOT = flags.DEFINE_bool("spot", True, "Cheaper, may be taken away at any time.")
QUEUED = flags.DEFINE_bool("queued", True, "Wait for capacity; --noqueued asks for it now.")
RUN = flags.DEFINE_string("run", "", "Flags of experiments.run.")
SETUP = flags.DEFINE_string("setup", "", "Shell command on every worker, such as one that mounts.")
RESUMES = flags.DEFINE_integer("resumes", 0, "How often follow starts again.")
POLL = flags.DEFINE_float("poll", 30.0, "Seconds between looks at the state.")
ATTEMPTS = flags.DEFINE_integer("attempts", 4, "Tries of a command that reaches workers by ssh.")
DRY = flags.DEFINE_bool("dry_run", True, "Only print the commands.")

ARCHIVE = "rml.tar.gz"
# The machines' own Python may be older than this package asks for; uv brings one.
INSTALL = (
    f"mkdir -p rml && tar xzf {ARCHIVE} -C rml && cd rml && rm -f installed && "
    "python3 -m pip install --user uv && "
    "python3 -m uv venv --allow-existing --python 3.11 .venv && "
    "python3 -m uv pip install --python .venv/bin/python -c constraints.txt -e '.[tpu]' && "
    "touch installed"
)
MISSING = "not installed yet"
CHECK = f"[ -e rml/installed ] || echo {MISSING}"
BUSY = "a run is still going on here; let it end, or delete the pod"
ENDING = 180  # seconds that workers of a run that has failed on another may take to notice
LOOK = "cat rml/run.status 2>/dev/null || echo running"
TAIL = "tail -n 20 rml/run.log"


class CommandError(UserError):
    """A command that failed.

    Attributes:
      said: All of what it said.
    """

    def __init__(self, words: Sequence[str], said: str):
        """Explains the failure of a command that said this."""
        super().__init__(explain(words, said))
        self.said = said


class Shell:
    """Runs commands, or prints them."""

    def __init__(self, *, dry: bool, attempts: int, poll: float, write: Callable[[str], None]):
        """Remembers how.

        Args:
          dry: Only print.
          attempts: Tries of a command that may fail by chance.
          poll: Seconds between tries and between looks.
          write: Takes lines.
        """
        self.dry, self.attempts, self.poll, self.write = dry, attempts, poll, write

    def __call__(
        self,
        words: Sequence[str],
        *,
        attempts: int = 1,
        is_answer: Callable[[str], bool] = lambda said: False,
    ) -> str:
        """Runs a command.

        Args:
          words: The command.
          attempts: Tries.
          is_answer: Function that tells whether what a failed command said is an answer, which
            another try would not change.

        Returns:
          Its standard output, empty where it is only printed.

        Raises:
          CommandError: It failed, with what it said.
        """
        self.write(shlex.join(words))
        if self.dry:
            return ""
        for left in reversed(range(attempts)):
            try:
                done = subprocess.run(words, capture_output=True, text=True)
            except FileNotFoundError:
                raise UserError(f"{words[0]} is not installed") from None
            if done.returncode == 0:
                return done.stdout.strip()
            if is_answer(done.stderr):
                break
            if left:
                self.write(f"failed ({last_line(done.stderr)}); {left} more tries")
                time.sleep(self.poll)
        raise CommandError(words, done.stderr)

    def reach(
        self, words: Sequence[str], is_answer: Callable[[str], bool] = lambda said: False
    ) -> str:
        """Runs a command that may fail by chance, such as by ssh to workers that are not up yet."""
        return self(words, attempts=self.attempts, is_answer=is_answer)


def last_line(text: str) -> str:
    """The last line of what a program said."""
    return (text.strip().splitlines() or ["no message"])[-1]


def explain(words: Sequence[str], said: str) -> str:
    """A failure in one line, with what can be done where that is known."""
    message = f"{shlex.join(words[:6])} failed: {last_line(said)}"
    if BUSY in said:  # behind which gcloud says more
        return f"{shlex.join(words[:6])} failed: {BUSY}"
    lower = said.lower()
    if "quota" in lower:
        return f"{message}; ask for quota of this chip and zone, or choose another --zone"
    if "resource_exhausted" in lower or "no more capacity" in lower:
        return f"{message}; there is no capacity: use --queued to wait for it"
    return message


def state(shell: Shell, pod: Pod) -> str:
    """The pod's state, `ABSENT` where there is none of this name."""

    def is_absent(said: str) -> bool:
        return gcloud.says_absent(said, pod)

    try:
        return shell.reach(gcloud.describe(pod), is_absent).upper() or ABSENT
    except CommandError as error:
        if is_absent(error.said):
            return ABSENT
        raise


def create(shell: Shell, pod: Pod) -> None:
    """Asks for the pod unless that was done before, waits until it is there, installs."""
    prepare(shell, pod, state(shell, pod))


def prepare(shell: Shell, pod: Pod, now: str) -> None:
    """Does what is left to do of `create` for a pod in this state."""
    if now == ABSENT:
        shell(gcloud.create(pod))
    while (now := state(shell, pod)) not in READY and not shell.dry:
        if now in GONE:
            raise UserError(f"{pod.name} is {now}: delete it and create it again")
        shell.write(f"{pod.name} is {now}, waiting")
        time.sleep(shell.poll)
    shell(["git", "archive", f"--output={ARCHIVE}", "HEAD"])
    shell.reach(gcloud.copy(pod, ARCHIVE, ARCHIVE))
    shell.reach(gcloud.ssh(pod, INSTALL))


def train(shell: Shell, pod: Pod, run: str, setup: str) -> None:
    """Starts training on all workers; it goes on when the connection ends.

    A worker that still trains refuses. One that this call has reached before, in a try that failed
    on another worker, is left to go on.
    """
    if setup:
        shell.reach(gcloud.ssh(pod, setup))
    start = uuid.uuid4().hex
    program = f".venv/bin/python -m experiments.run --distributed {run}"
    inner = f"{program} > run.log 2>&1; echo $? > run.status"
    # The processes that are started hold the lock until the last of them has ended.
    command = (
        f"cd rml && if ! grep -qsx {start} run.start; then exec 9>> run.lock && "
        f"{{ flock -w {ENDING} 9 || {{ echo {shlex.quote(BUSY)} >&2; exit 1; }}; }} && "
        f"echo {start} > run.start && rm -f run.status && "
        f"(setsid nohup bash -c {shlex.quote(inner)} > /dev/null 2>&1 &); fi"
    )
    shell.reach(gcloud.ssh(pod, command), lambda said: BUSY in said)


def resume(shell: Shell, pod: Pod, run: str, setup: str) -> None:
    """Continues: where the pod is gone it is made again, then the same command is run again.

    A pod that `create` was stopped at is waited for, and installed where that was left out.
    """
    now = state(shell, pod)
    if now in GONE or shell.dry:
        shell(gcloud.delete(pod))
        now = ABSENT
    if now not in READY or MISSING in shell.reach(gcloud.ssh(pod, CHECK)):
        prepare(shell, pod, now)
    train(shell, pod, run, setup)


def follow(shell: Shell, pod: Pod, run: str, setup: str, resumes: int) -> None:
    """Prints the end of the log until the run ends; starts again after preemption if asked to."""
    while True:
        now = state(shell, pod)
        status = "running"
        if now in READY or shell.dry:
            try:
                shell.write(shell.reach(gcloud.ssh(pod, TAIL, everywhere=False)))
                status = shell.reach(gcloud.ssh(pod, LOOK, everywhere=False))
            except UserError:  # taken away between the two looks
                now = state(shell, pod)
                if now in READY:
                    raise
        if shell.dry:
            return
        if status == "0":
            shell.write("the run is complete")
            return
        if now in GONE or now == ABSENT or status != "running":
            reason = f"{pod.name} is {now}" if status == "running" else f"exit code {status}"
            if resumes == 0:
                raise UserError(f"the run stopped ({reason}); continue it with: resume")
            resumes -= 1
            shell.write(f"the run stopped ({reason}), starting it again")
            resume(shell, pod, run, setup)
        time.sleep(shell.poll)


def given(flag: flags.FlagHolder) -> str:
    """The value of a flag that must be given."""
    if flag.value is None:
        raise UserError(f"no --{flag.name}")
    return flag.value


def check_run(run: str) -> None:
    """Raises `UserError` where the config or its values would end the run on every worker."""
    if not run:
        raise UserError('no --run; for example --run="--config=configs/... --workdir=/mnt/..."')
    try:
        words = shlex.split(run)
    except ValueError as error:
        raise UserError(f"--run is {run!r}: {error}") from None
    for word, before in zip(words, ["", *words], strict=False):
        if not word.startswith("-") and (not before.startswith("-") or "=" in before):
            raise UserError(f"--run has {word!r}, expected flags alone, each --NAME=VALUE")
        if word.startswith("--workdir=") or before == "--workdir":
            local_path(word.removeprefix("--workdir="), "--workdir")
    path = [word for word in words if word.startswith("--config=")]
    overrides = [
        word
        for word, before in zip(words, ["", *words], strict=False)
        if word.startswith("--config.") or (takes_next(before) and not word.startswith("--"))
    ]
    if not path:
        raise UserError(f"--run is {run!r}, expected --config=FILE in it")
    ranges.check_config(registry.read_config(path[-1].removeprefix("--config="), overrides))


def takes_next(word: str) -> bool:
    """Tells whether a word is an override whose value may be the next word, perhaps negative."""
    return word.startswith("--config.") and "=" not in word


def risk(pod: Pod, run: str, setup: str, resumes: int) -> str | None:
    """Tells why a run may fail or be lost where its work directory lies; None where it may not."""
    words = shlex.split(run.replace("--workdir ", "--workdir="))
    named = [word for word in words if word.startswith("--workdir=")]
    folder = named[-1].removeprefix("--workdir=") if named else "runs"
    cure = "give --workdir=/mnt/... that --setup mounts on all workers"
    if pod.has_several_hosts and not folder.startswith("/"):
        return f"the work directory, {folder}, is on each worker's own disk and not shared: {cure}"
    if resumes and not setup:
        return f"a pod that is made again has an empty disk, and nothing mounts {folder}: {cure}"
    return None


def dispatch(verb: str) -> None:
    """Does what the command line says."""
    verbs = ("create", "run", "follow", "resume", "delete")
    if verb not in verbs:
        raise unknown("command", verb, verbs)
    pod = Pod(
        name=given(NAME), zone=given(ZONE), topology=given(TOPOLOGY), num_slices=SLICES.value,
        project=PROJECT.value, spot=SPOT.value, queued=QUEUED.value,
    )  # fmt: skip
    # What follow starts again is the same command.
    if verb in ("run", "resume") or (verb == "follow" and RESUMES.value) or RUN.value:
        check_run(RUN.value)
    shell = Shell(
        dry=DRY.value,
        attempts=ATTEMPTS.value,
        poll=POLL.value,
        write=lambda line: print(line, flush=True),
    )
    if RUN.value and (why := risk(pod, RUN.value, SETUP.value, RESUMES.value)):
        shell.write(f"warning: {why}")
    if verb == "create":
        create(shell, pod)
    elif verb == "run":
        train(shell, pod, RUN.value, SETUP.value)
    elif verb == "follow":
        follow(shell, pod, RUN.value, SETUP.value, RESUMES.value)
    elif verb == "resume":
        resume(shell, pod, RUN.value, SETUP.value)
    else:
        shell(gcloud.delete(pod))


def main(argv: Sequence[str]) -> None:
    """Checks the command line."""
    if len(argv) != 2:
        fail("expected one of create, run, follow, resume, delete; see --help")
    if not Path("pyproject.toml").is_file():
        fail("run this where pyproject.toml is")
    try:
        dispatch(argv[1])
    except UserError as error:
        fail(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
