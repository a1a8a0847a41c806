"""Exports a config's step for GPUs; where there is one, compiles and times it."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np

from rml.ops import use_precision
from rml.training import CompiledTask, use_mesh
from rml.training.processes import split_cpu
from tpu import hlo
from tpu.collectives import collectives
from tpu.compile import build_task, mesh_of
from tpu.report import traced_flops


def export(config: Any, devices: int, *, write: Callable[[str], Any]) -> dict[str, Any]:
    """Exports the step for CUDA and lists what its devices exchange.

    Without a GPU the exchanges are those that XLA's partitioner puts in for as many virtual CPU
    devices: the program before a GPU's own passes, which may join or split them.

    Args:
      config: The run's config.
      devices: Number of GPUs to export for; ignored where there are GPUs.
      write: Takes lines.

    Returns:
      Size of the exported program, its exchanges by kind, and where there is a GPU seconds a step.

    Raises:
      UserError: A mesh or batch that does not fit the devices.
    """
    found = _devices(devices)
    there = found[0].platform == "gpu"
    mesh = mesh_of(config, found)
    task = build_task(config)
    with use_precision(config.precision):
        compiled = CompiledTask(task, mesh, seed=config.seed)
    batch = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding),
        task.batch_spec,
        compiled.batch_shardings,
    )
    with use_mesh(mesh, compiled.rules), use_precision(config.precision):
        exported = jax.export.export(jax.jit(task.step, donate_argnums=0), platforms=["cuda"])(
            compiled.abstract_state, batch
        )
    kinds: dict[str, dict[str, float]] = {}
    for one in collectives(hlo.parse(compiled.step.as_text() or "")):
        row = kinds.setdefault(one.kind, dict(runs=0.0, bytes=0.0))
        row["runs"] += one.count
        row["bytes"] += one.count * one.bytes
    report: dict[str, Any] = {
        "config": config.experiment,
        "platforms": list(exported.platforms),
        "devices": len(found),
        "mesh": dict(mesh.shape),
        "stablehlo_bytes": len(exported.mlir_module_serialized),
        "traced_flops": traced_flops(task, "cuda"),
        "compiled_for": found[0].device_kind,
        "collectives": kinds,
    }
    write(
        f"{config.experiment} exported for {', '.join(exported.platforms)}, {len(found)} devices, "
        f"mesh {report['mesh']}, {report['stablehlo_bytes']:,} bytes, "
        f"{report['traced_flops'] / 1e12:.3f} T FLOPs a step over all devices"
    )
    for kind, row in sorted(kinds.items()):
        write(f"  {kind}: {row['runs']:.0f} runs, {row['bytes'] / 1e6:.1f} MB a device")
    write(f"  exchanges as compiled for {report['compiled_for']}")
    if there:
        report["seconds"] = seconds = measure(compiled, batch)
        rate = report["traced_flops"] / seconds / len(found)
        write(f"  measured: {seconds * 1e3:.1f} ms a step, {rate / 1e12:.1f} TFLOP/s a device")
    else:
        write("  no GPU here: exported, not compiled for one, not timed")
    return report


def measure(compiled: Any, batch: Any, *, steps: int = 10) -> float:
    """Median seconds of a step on random data.

    Args:
      compiled: A `CompiledTask` of devices that exist.
      batch: Shapes of a batch.
      steps: How many are timed, after two that are not.

    Returns:
      Seconds.
    """
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(
        lambda s: jax.device_put(rng.integers(0, 2, s.shape).astype(s.dtype), s.sharding), batch
    )
    state, times = compiled.init(), []
    for _ in range(steps + 2):
        started = time.perf_counter()
        state, metrics = compiled.step(state, arrays)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - started)
    return float(np.median(times[2:]))


def _devices(count: int) -> list[jax.Device]:
    """All GPUs, else as many virtual CPU devices as asked for."""
    split_cpu(count)
    try:
        return jax.devices("gpu")
    except RuntimeError:
        return jax.devices("cpu")[:count]
