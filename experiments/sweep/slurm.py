"""Runs of a sweep as one SLURM job array, through submitit."""

import inspect
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm import slurm

from experiments.launches import Run
from experiments.spawn import complaint
from experiments.sweep.job import Launch
from rml.errors import UserError, unknown
from rml.training.durable import write_json

JOBS = "jobs.json"
MINUTES = 60
CLUSTER = "slurm"
"""Executor of submitit."""


def parse_parameters(text: str) -> dict[str, Any]:
    """Reads `--slurm`, `name=value,name=value`.

    Raises:
      UserError: A name is none of submitit's, or a value does not parse; time is in minutes.
    """
    names = inspect.signature(slurm._make_sbatch_string).parameters
    known = set(names) - {"command", "folder", "map_count"}
    parameters: dict[str, Any] = {"job_name": "rml", "time": MINUTES, "stderr_to_stdout": True}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if not value:
            raise UserError(f"--slurm has {pair!r}, expected name=value")
        if name not in known:
            raise unknown("option of --slurm", name, known)
        if names[name].annotation is int and not value.isdigit():
            raise UserError(f"--slurm {name} is {value!r}, expected a whole number")
        parameters[name] = int(value) if value.isdigit() else value
    return parameters


def script(runs: Sequence[Run], parameters: Mapping[str, Any], folder: Path) -> str:
    """The script that submitit would hand to sbatch."""
    command = (
        f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    )
    array: dict[str, Any] = {"map_count": len(runs)} if len(runs) > 1 else {}
    return slurm._make_sbatch_string(command=command, folder=folder, **array, **parameters)


def submit(runs: Sequence[Run], parameters: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Submits runs as one job array, without those that are in one that has not ended.

    Args:
      runs: Runs that are not complete.
      parameters: See `parse_parameters`.
      folder: Where submitit keeps jobs, on a file system that all nodes share.

    Yields:
      What was done, in lines.

    Raises:
      UserError: There is no SLURM on this machine.
    """
    folder = folder.resolve()
    file = folder / JOBS
    jobs = json.loads(file.read_text()) if file.exists() else {}
    queued = [run for run in runs if is_active(jobs.get(str(run.directory)), folder)]
    if queued:
        yield f"{len(queued)} runs are queued or running already"
    missing = [run for run in runs if run not in queued]
    for run in missing:
        if str(run.directory) in jobs and (line := complaint(run.log)):
            yield f"submitted again: {run.name}: {line} ({run.log})"
    if not missing:
        return
    try:
        executor = submitit.AutoExecutor(folder, cluster=CLUSTER)
    except RuntimeError:
        raise UserError("--slurm found no srun, expected a machine of a SLURM cluster") from None
    executor.update_parameters(**{f"slurm_{name}": value for name, value in parameters.items()})
    tasks = zip(*((run.command, run.log.resolve()) for run in missing), strict=True)
    submitted = executor.map_array(Launch(), *tasks)
    jobs |= {str(run.directory): job.job_id for run, job in zip(missing, submitted, strict=True)}
    write_json(file, jobs)
    array = submitted[0].job_id.partition("_")[0]
    yield f"submitted {len(missing)} runs as job {array}; scancel {array} ends them"
    yield "the same command tells what is complete, and submits again what has failed"


def is_active(job: str | None, folder: Path) -> bool:
    """Whether a job has been submitted and has not ended."""
    return job is not None and not submitit.SlurmJob(folder, job).done(force_check=True)
