"""Tries meshes, batch sizes and recomputation, and finds what trains most examples a second."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rml.errors import UserError
from rml.training.mesh import slice_of
from tpu.chips import parse_topology
from tpu.compile import compile_step
from tpu.report import check_fits, examine, gib, known, milli, override


def candidates(config: Any, devices: int, slices: int) -> Iterator[Any]:
    """Configs to try: parameters whole or split over 8 or all devices, batches, remat.

    Args:
      config: Where to start; its batch is halved, kept and doubled.
      devices: Number of devices.
      slices: Number of slices.

    Yields:
      Configs.
    """
    per_slice = devices // slices
    splits = sorted({1, min(8, per_slice), per_slice})
    size = config.train.batch_size
    remat = sorted({bool(config.model.remat), False, True}) if "remat" in config.model else [None]
    for fsdp, batch, again in itertools.product(splits, (size // 2, size, 2 * size), remat):
        tried = config.copy_and_resolve_references()
        tried.mesh = dict(replica=slices, data=-1, fsdp=fsdp, model=1)
        tried.train.batch_size = batch
        if again is not None:
            tried.model.remat = again
        yield tried


def sweep(
    config: Any, devices: Sequence[Any], topology: str, *, write: Callable[[str], Any]
) -> dict[str, Any]:
    """Compiles all candidates and names the one with the most examples a second.

    Args:
      config: Where to start.
      devices: Devices to compile for.
      topology: Their name.
      write: Takes a line for each candidate.

    Returns:
      The rows, the best row and its overrides; None for both where no step's time is known.

    Raises:
      UserError: Nothing fits.
    """
    slices = len({slice_of(device) for device in devices})
    rows: list[dict[str, Any]] = []
    best, words = None, None
    for tried in candidates(config, len(devices), slices):
        asked = dict(
            fsdp=tried.mesh.fsdp, batch_size=tried.train.batch_size, remat=tried.model.get("remat")
        )
        label = ", ".join(f"{name}={value}" for name, value in asked.items() if value is not None)
        try:
            report = examine(compile_step(tried, devices), tried, topology)
            check_fits(report)
        except UserError as error:
            write(f"{label}: {error}")
            rows.append({**asked, "error": str(error)})
            continue
        rate, step = report["examples_per_second"], report["seconds"]["estimate"]
        write(
            f"{label}: {known(rate, ',.0f')} examples/s, step {milli(step)}, "
            f"{gib(report['memory']['total'])}, bound by {report['bound']}"
        )
        rows.append({**asked, **report})
        if math.isfinite(step) and (best is None or rate > best["examples_per_second"]):
            best, words = report, override(report, tried)
    if all("error" in row for row in rows):
        raise UserError(f"nothing of {len(rows)} candidates fits {topology}")
    if best is None:
        write(f"dcn of {parse_topology(topology)[0]} is not published: no best is named")
    else:
        write(f"best: {words}")
    return {"rows": rows, "best": best, "override": words}
