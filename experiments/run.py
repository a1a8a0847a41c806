"""The one launcher: `python -m experiments.run --config=FILE [--workdir=DIR] [--config.key=value]`.

The config names the experiment, the experiment says what happens. Heavy imports wait until the
flags are known to be right, so that `--help` and mistakes answer at once.
"""

import os
import signal
import sys
from typing import NoReturn

if __name__ == "__main__":
    from experiments.cpu import convolve_on_all_cores, use_huge_pages
    from experiments.interrupts import stop_at_once

    use_huge_pages("experiments.run")
    convolve_on_all_cores()
    stop_at_once()

import atexit
import math
import shlex
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from experiments import ranges, registry, startup
from experiments.commit import current_commit
from experiments.interrupts import end_at_once, raise_interrupts
from experiments.startup import fail, keep_compiled, limit_arenas, quiet_libraries
from rml.errors import UserError, local_path

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; --config.key=value overrides one of its values."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run directory, new or of the same config; runs/<name of the config> if unset."
)
CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "Devices that a CPU is split into, such as one a core; for config.mesh.",
    lower_bound=1,
)  # fmt: skip
COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, where several processes train together."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes train together.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this one is, from 0.", lower_bound=0
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Find the other processes as TPU pods, SLURM and Kubernetes tell of them."
)
MLFLOW = flags.DEFINE_string(
    "mlflow", None, "MLflow store to log to beside the files, such as sqlite:///mlflow.db."
)
PILOT = flags.DEFINE_bool(
    "pilot", False, "Of a trial: two seeds on validation data say what effects it would decide."
)
BUDGET = flags.DEFINE_string(
    "budget", None, "Time that a trial may train, such as 30m or 2h: seeds, then tries are cut."
)
LIST = flags.DEFINE_bool(
    "list", False, "Show the configs instead, those with SUBSTRING if it follows the flag."
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code a user error arose.")
ENDING = threading.Lock()


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line, see `experiments.startup.parse_flags`."""
    rest = startup.parse_flags(argv, show_help)
    expected = 2 if LIST.value else 1
    if len(rest) > expected:
        fail(f"unexpected argument {rest[expected]!r}; values are given as --config.key=value")
    return rest


def show_help(*, shorthelp: bool) -> None:
    """Shows the flags, or of a config what it says of itself and its values."""
    if CONFIG.value is None:
        app.usage(shorthelp=shorthelp, writeto_stdout=True)
        return
    from experiments.systems import show_config

    print(registry.docstring(config_path()), show_config(CONFIG.value), sep="\n\n")
    print("\n--config.key=value changes a value; --help without --config shows the flags.")


def config_path() -> Path:
    """The file that --config names."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])


class Terminated(BaseException):
    """SIGTERM came where nothing waits for it, as KeyboardInterrupt says of SIGINT."""


def catch_sigterm() -> None:
    """Raises `Terminated` on the first SIGTERM; of several processes JAX's runtime catches it."""

    def handler(signum: int, _: Any) -> NoReturn:
        signal.signal(signum, signal.SIG_DFL)
        raise Terminated

    if not several_processes():
        signal.signal(signal.SIGTERM, handler)


def several_processes() -> bool:
    """Whether the flags ask for more than this process."""
    return COORDINATOR.value is not None or DISTRIBUTED.value


def prepare_devices() -> None:
    """Splits the CPU and joins the other processes, as the flags say."""
    if CPU_DEVICES.value is None and not several_processes():
        return
    from rml.training.processes import join, split_cpu

    if CPU_DEVICES.value is not None:
        split_cpu(CPU_DEVICES.value)
    if COORDINATOR.value is not None:
        join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, lost=end_after_a_loss)
    elif DISTRIBUTED.value:
        join(lost=end_after_a_loss)


def check_processes() -> None:
    """Ends the program where the flags about processes do not fit together."""
    number, own = NUM_PROCESSES.value, PROCESS_ID.value
    if COORDINATOR.value is None:
        if number is not None or own is not None:
            fail("--num_processes and --process_id need --coordinator_address=host:port")
        return
    if DISTRIBUTED.value:
        fail("--distributed finds the coordinator itself; leave out --coordinator_address")
    host, _, port = COORDINATOR.value.rpartition(":")
    if not host or not port.isdigit():
        fail(f"--coordinator_address is {COORDINATOR.value!r}, expected host:port")
    if number is None or own is None:
        fail("--coordinator_address needs --num_processes and --process_id too")
    if own >= number:
        fail(f"--process_id is {own}, expected 0 to {number - 1}: --num_processes is {number}")


def command() -> str:
    """The command that was typed, to type again."""
    return shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]])


def how_to_continue() -> str:
    """Says how a run that was stopped goes on."""
    if __name__ != "__main__":  # in a notebook the command line is that of its kernel
        return "start it again with the same config and work directory to continue"
    return f"continue with:\n  {command()}"


def launch(config: Any, directory: Path, config_name: str) -> None:
    """Runs the experiment of a config in its directory, unless it is complete."""
    started = time.perf_counter()
    experiment = ranges.checked_experiment(config)
    options = trial_options(experiment, config)
    from rml.training import RunDirectory
    from rml.training.tracking import check_uri

    check_uri(MLFLOW.value)
    quiet_libraries()
    keep_compiled()
    prepare_devices()
    raise_interrupts()
    run = RunDirectory(
        directory, config.to_dict(), config_name=config_name, commit=current_commit(),
        staged=getattr(experiment, "STAGED", False),
    )  # fmt: skip
    try:
        if PILOT.value:
            pilot(experiment, run, config, options)
        else:
            conduct(experiment, run, config, config_name, started, options)
    finally:  # in a notebook the next start of this run is in the same process
        run.close()


def trial_options(experiment: Any, config: Any) -> dict[str, Any]:
    """What --pilot and --budget ask of a trial; nothing of any other experiment.

    Raises:
      UserError: The experiment compares no arms, or the budget is no time.
    """
    if not PILOT.value and BUDGET.value is None:
        return {}
    flag = "--pilot" if PILOT.value else "--budget"
    if not hasattr(experiment, "TRIAL"):
        raise UserError(f"{flag} needs an experiment that compares arms, got {config.experiment}")
    if BUDGET.value is None:
        return {"pilot": True}
    number, unit = BUDGET.value[:-1], BUDGET.value[-1:]
    scale = {"s": 1, "m": 60, "h": 3600}.get(unit)
    try:
        seconds = float(number) * (scale or math.nan)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"--budget is {BUDGET.value!r}, expected a time such as 90s, 30m or 2h")
    return {"pilot": PILOT.value, "budget": seconds}


def pilot(experiment: Any, run: Any, config: Any, options: dict[str, Any]) -> None:
    """Conducts a trial's pilot, which says what the trial would decide and completes no run."""
    from rml.ops import use_precision

    with use_precision(config.precision):
        experiment.run(config, run, **options)
    print(f"pilot: {run.path} keeps what was tuned; the same command without --pilot measures")


def conduct(
    experiment: Any, run: Any, config: Any, config_name: str, started: float,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Runs an experiment in the directory that is held for it, unless that is complete."""
    from experiments.closing import show
    from experiments.common.claims import other_data
    from rml.ops import use_precision
    from rml.training import Interrupted, measure_claims
    from rml.training.processes import barrier, is_primary
    from rml.training.tracking import track

    directory, summary = run.path, run.summary()
    barrier("looked for the summary")
    if summary is not None:
        if is_primary():
            print(f"{directory} holds this run, complete; give another --workdir to run it again")
            show(summary, directory)
        with track(run, MLFLOW.value):
            pass
        interact(experiment, config, run)
        return
    before = run.seconds()
    try:
        with track(run, MLFLOW.value):
            with use_precision(config.precision):
                metrics = experiment.run(config, run, **options)
            judged = measure_claims(
                experiment.CLAIMS, metrics, other_data=other_data(config, config_name)
            )
            summary = run.write_summary(
                metrics=metrics,
                claims=judged,
                seconds=before + time.perf_counter() - started,
                captions=experiment.CAPTIONS,
            )
    except Interrupted as stop:
        name = signal.Signals(stop.signum).name
        print(f"{name}: saved after step {stop.step}; {how_to_continue()}", flush=True)
        raise SystemExit(128 + stop.signum) from None
    except (ValueError, OSError, AttributeError, KeyError):
        run.abandon()
        raise
    finally:  # whatever ends it, a run that was complete is not lost
        run.take_back_config()
    if is_primary():
        show(summary, directory)
    barrier("complete")
    interact(experiment, config, run)


def interact(experiment: Any, config: Any, run: Any) -> None:
    """What an experiment offers to a person when its run is complete, such as to be asked."""
    if hasattr(experiment, "interact") and not several_processes():
        experiment.interact(config, run)


def end_if_a_process_is_lost(error: Exception) -> None:
    """Ends the program at once where the error is another process's end."""
    if not several_processes():
        return
    from rml.training.processes import lost_process

    reason = lost_process(error)
    if reason is None:
        return
    if TRACEBACK.value:
        traceback.print_exc()
    end_after_a_loss(reason)


def end_after_a_loss(reason: str) -> NoReturn:
    """Ends this process with one line because another process of the run has ended."""
    ENDING.acquire()  # the main thread and the runtime's may notice at the same time
    print(
        f"error: another process of this run has ended or cannot be reached ({reason}); start all "
        f"processes again to continue from the last checkpoint, if any:\n  {command()}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(1)  # the runtime would wait for the lost process and abort


def lacking(error: AttributeError | KeyError) -> str | None:
    """What to say where a config was asked for a key that it lacks; None for any other error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if not str(frame.f_globals.get("__name__")).startswith("ml_collections"):
        return None
    name = error.name if isinstance(error, AttributeError) else error.args[0]
    return f"the config has no key {name!r}, which the experiment reads"


def main(argv: Sequence[str]) -> None:
    """Checks the flags and launches."""
    if LIST.value:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `head` may leave early
        try:
            print(registry.list_configs(*argv[1:]))
        except UserError as error:
            fail(error)
        return
    if CONFIG.value is None:
        fail("no --config; for example --config=configs/contrastive/simclr_mnist5k.py")
    if WORKDIR.value == "":
        fail("--workdir is empty, expected a directory")
    check_processes()
    path = config_path()
    catch_sigterm()
    limit_arenas()
    try:
        directory = local_path(WORKDIR.value or Path("runs") / path.stem, "--workdir")
        launch(CONFIG.value, directory, os.path.relpath(path))
    except (KeyboardInterrupt, Terminated) as stop:
        print(
            f"interrupted; continue from the last checkpoint, if any, with:\n  {command()}",
            flush=True,
        )
        signum = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        if not several_processes():  # these take leave of one another
            atexit.register(end_at_once, 128 + signum)
        raise SystemExit(128 + signum) from None
    except (AttributeError, KeyError) as error:
        line = lacking(error)
        if line is None:
            raise
        fail(line)
    except (ValueError, OSError, RuntimeError) as error:
        end_if_a_process_is_lost(error)
        if isinstance(error, RuntimeError):
            raise
        if TRACEBACK.value:
            traceback.print_exc()
        elif not isinstance(error, UserError):
            fail(f"{error} (--traceback shows where)")
        fail(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
