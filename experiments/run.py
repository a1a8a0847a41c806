"""The one launcher: `python -m experiments.run --config=FILE [--workdir=DIR] [--config.key=value]`.

The config names the experiment, the experiment says what happens. Heavy imports wait until the
flags are known to be right, so that `--help` and mistakes answer at once.
"""

import ctypes
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_flags

from experiments import registry
from rml.errors import UserError

M_ARENA_MAX = -8  # of glibc's malloc.h
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
LIST = flags.DEFINE_bool(
    "list", False, "Show the configs instead, those with SUBSTRING if it follows the flag."
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code a user error arose.")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; a mistake ends the program with one line."""
    try:
        rest = registry.parse_flags(argv, flags.FLAGS)
    except UserError as error:
        fail(error)
    expected = 2 if LIST.value else 1
    if len(rest) > expected:
        fail(f"unexpected argument {rest[expected]!r}; values are given as --config.key=value")
    return rest


def fail(message: object) -> NoReturn:
    """Ends the program with a user's mistake in one line."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def quiet_libraries() -> None:
    """Silences what libraries log about themselves, not warnings about the run."""
    import logging

    from absl import logging as absl_logging

    # Their errors are raised as well, and told in one line.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = show_unraisable
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logger = logging.getLogger("rml")
    logger.setLevel(logging.WARNING)  # absl's verbosity is that of the root
    logger.addHandler(handler)
    logger.propagate = False


def show_unraisable(unraisable: Any) -> None:
    """Leaves out what the other writes of a checkpoint complain of after one of them failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


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


def limit_arenas() -> None:
    """Holds glibc to one heap a core, unless MALLOC_ARENA_MAX says how many.

    By default there are up to eight a core, and what evaluations and checkpoints free in one is not
    used from another: a long run's memory creeps up (tests/system/soak.py).
    """
    if "MALLOC_ARENA_MAX" in os.environ or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(M_ARENA_MAX, len(os.sched_getaffinity(0)))


def prepare_devices() -> None:
    """Splits the CPU and joins the other processes, as the flags say."""
    if CPU_DEVICES.value is None and not several_processes():
        return
    import jax

    from rml.training.processes import join

    if CPU_DEVICES.value is not None:
        jax.config.update("jax_num_cpu_devices", CPU_DEVICES.value)
    if COORDINATOR.value is not None:
        join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    elif DISTRIBUTED.value:
        join()


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


def show(summary: Mapping[str, Any], directory: Path) -> None:
    """Prints the closing table: metrics, claims, where to look."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    table = Table(title=f"{summary['config_name']}, seed {summary['seed']}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in summary["metrics"].items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    for claim in summary["claims"]:
        verdict = "holds" if claim["holds"] else "NOT REPRODUCED"
        console.print(
            f"claim {verdict}: {claim['statement']} "
            f"[{claim['metric']} = {claim['value']:.4g}, {claim['relation']} {claim['threshold']}]",
            markup=False,
        )
    console.print(f"{summary['seconds']:.0f} s; figures in {directory / 'figures'}", markup=False)


def launch(config: Any, directory: Path, config_name: str) -> None:
    """Runs the experiment of a config in its directory, unless it is complete."""
    started = time.perf_counter()
    experiment = registry.find_experiment(config.experiment)
    quiet_libraries()
    prepare_devices()
    from rml.training import Interrupted, RunDirectory, measure_claims, read_metrics
    from rml.training.processes import barrier, is_primary

    run = RunDirectory(directory, config.to_dict(), config_name=config_name)
    summary = run.summary()
    barrier("looked for the summary")
    if summary is not None:
        if is_primary():
            print(f"{directory} holds this run, complete; give another --workdir to run it again")
            show(summary, directory)
        interact(experiment, config, run)
        return
    lines = read_metrics(directory / "metrics.jsonl")
    before = max((float(line["time"]) for line in lines), default=0.0)
    try:
        metrics = experiment.run(config, run)
    except Interrupted as stop:
        name = signal.Signals(stop.signum).name
        print(f"{name}: saved after step {stop.step}; continue with:\n  {command()}", flush=True)
        raise SystemExit(128 + stop.signum) from None
    except (ValueError, OSError):
        run.abandon()
        raise
    summary = run.write_summary(
        metrics=metrics,
        claims=measure_claims(experiment.CLAIMS, metrics),
        seconds=before + time.perf_counter() - started,
        captions=experiment.CAPTIONS,
    )
    if is_primary():
        show(summary, directory)
    barrier("complete")
    interact(experiment, config, run)
    run.close()


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
    print(
        f"error: another process of this run has ended or cannot be reached ({reason}); start all "
        f"processes again to continue from the last checkpoint:\n  {command()}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(1)  # the runtime would wait for the lost process and abort


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
    check_processes()
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    directory = Path(WORKDIR.value or Path("runs") / Path(path).stem)
    catch_sigterm()
    limit_arenas()
    try:
        launch(CONFIG.value, directory, os.path.relpath(path))
    except (KeyboardInterrupt, Terminated) as stop:
        print(f"interrupted; continue from the last checkpoint with:\n  {command()}", flush=True)
        signum = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        raise SystemExit(128 + signum) from None
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
