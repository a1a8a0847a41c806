"""What is known of a compiled step, as one dictionary and as a table to read."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rml.evaluation.costs import program_flops
from rml.training.mesh import slice_of
from tpu import hlo, work
from tpu.chips import CHIPS, parse_topology
from tpu.collectives import summary
from tpu.compile import Compiled, DoesNotFit, build_task
from tpu.roofline import roofline

SOURCES = {
    "xla": "XLA's analysis of the compiled program; it counts the body of a loop once",
    "derived": "read off the compiled program, loops times their trip counts",
    "traced": "counted on the program before compiling, loops times their length",
    "datasheet": "the vendor's page, see chip.source",
    "estimate": "derived over datasheet figures; vector units, latency, contention and what memory "
    "keeps close are left out: nothing was run",
}


def examine(compiled: Compiled, config: Any, topology: str) -> dict[str, Any]:
    """Everything about a step compiled for a topology.

    Args:
      compiled: The step.
      config: Its config.
      topology: Name of the topology.

    Returns:
      Plain numbers and words, per chip unless said otherwise; seconds and bytes.
    """
    kind, shape = parse_topology(topology)
    chip, devices = CHIPS[kind], list(compiled.mesh.devices.flat)
    slices = np.array([slice_of(device) for device in devices])
    chips = math.prod(shape) * len(set(slices))
    shared = len(devices) // chips
    program = hlo.parse(compiled.text)
    line = roofline(
        program,
        chip,
        coordinates=np.array([place(device)[: len(shape)] for device in devices]),
        slices=slices,
        devices_per_chip=shared,
    )
    examples = jax.tree.leaves(compiled.task.batch_spec)[0].shape[0]
    platform = "cuda" if chip.target else "tpu"
    traced = traced_flops(compiled.task, platform)
    useful = useful_flops(config, traced, platform)
    floor = useful / chips / chip.flops
    analysis = compiled.step.step.cost_analysis() or {}
    return {
        "config": config.experiment,
        "topology": topology,
        "num_slices": len(set(slices)),
        "chips": chips,
        "devices": len(devices),
        "mesh": dict(compiled.mesh.shape),
        "batch_size": examples,
        "compile_seconds": compiled.seconds,
        "jax": jax.__version__,
        "chip": {
            "flops": chip.flops,
            "hbm": chip.hbm,
            "hbm_bandwidth": chip.hbm_bandwidth,
            "ici": chip.ici,
            "dcn": chip.dcn,
            "network": chip.network,
            "source": chip.source,
        },
        "memory": memory(compiled, shared),
        "flops": {
            "xla": analysis.get("flops", 0.0) * shared,
            "derived": line.flops * shared,
            "traced": traced / chips,
            "useful": useful / chips,
        },
        "bytes": {
            "xla": analysis.get("bytes accessed", 0.0) * shared,
            "derived": line.bytes * shared,
        },
        "loops": program.loops(),
        "kernels": kernels(program),
        "collectives": summary(line.exchanges, line.times),
        "largest_arrays": largest(program),
        "seconds": {
            "compute": line.matrix_seconds,
            "memory": line.memory_seconds,
            "compute_and_memory": line.local_seconds,
            **line.links,
            "roofline": line.whole,
            "overlapped": line.overlapped,
            "estimate": line.serial,
            "floor": floor,
        },
        "bound": line.bound,
        **rates(line.serial, floor=floor, examples=examples),
        "sources": SOURCES,
    }


def rates(step: float, *, floor: float, examples: int) -> dict[str, float]:
    """Computes what follows from the time of a step.

    Args:
      step: Seconds of a step, infinite where they are unknown.
      floor: Seconds of its useful FLOPs at the chip's peak.
      examples: Examples of a batch.

    Returns:
      Step over floor, floor over step, and examples a second; NaN where the step is unknown.
    """
    step = step if math.isfinite(step) else math.nan
    return {
        "estimate_over_floor": step / floor,
        "share_of_peak": floor / step,
        "examples_per_second": examples / step,
    }


def place(device: Any) -> Sequence[int]:
    """Where a chip lies on its torus, or a GPU on its host."""
    return getattr(device, "coords", (device.id,))


def kernels(program: hlo.Program) -> dict[str, float]:
    """How often a step runs each kernel of a library, by its name."""
    found: dict[str, float] = defaultdict(float)
    for _, instruction, count in program.executed():
        if instruction.opcode == "custom-call":
            found[instruction.attributes.partition('target="')[2].partition('"')[0]] += count
    return dict(found)


def memory(compiled: Compiled, shared: int = 1) -> dict[str, float]:
    """Bytes on a chip, by XLA.

    Args:
      compiled: The step.
      shared: Devices of a chip.

    Returns:
      Arguments, outputs, what of these is the same, temporaries, code and all together.
    """
    stats: Any = compiled.step.step.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    parts = {name: value * shared for name, value in parts.items()}
    return {**parts, "total": sum(parts.values()) - 2 * parts["aliased"]}


def check_fits(report: Mapping[str, Any]) -> None:
    """Raises `DoesNotFit` where the step needs more than the chip's memory."""
    total, hbm = report["memory"]["total"], report["chip"]["hbm"]
    if total > hbm:
        raise DoesNotFit(
            f"{gib(total)} needed on a chip, {gib(hbm)} there: a smaller train.batch_size, "
            "model.remat=True, a larger mesh.fsdp or more chips"
        )


def traced_flops(task: Any, platform: str) -> float:
    """Operations of a task's step over all chips, as it is written for a platform."""
    from flax import linen as nn

    state = jax.eval_shape(lambda key: nn.meta.unbox(task.init(key)), jax.random.key(0))
    return program_flops(task.step, state, task.batch_spec, platform=platform)


def useful_flops(config: Any, traced: float, platform: str) -> float:
    """The same without what is only computed again to save memory."""
    again = dict(remat=False, attention="xla")
    model = config.get("model", {})
    if all(model.get(key, value) == value for key, value in again.items()):
        return traced
    plain = config.copy_and_resolve_references()
    plain.model.update({key: value for key, value in again.items() if key in model})
    return traced_flops(build_task(plain), platform)


def largest(program: hlo.Program, count: int = 5) -> list[dict[str, Any]]:
    """The largest arrays that a program makes, of each shape one."""
    found = {
        str(shape): (shape.bytes, instruction.name)
        for _, instruction, _ in program.outer()
        for shape in work.made(instruction)
        if instruction.opcode not in ("tuple", "while", "parameter", "get-tuple-element")
    }
    ranked = sorted(found.items(), key=lambda item: -item[1][0])[:count]
    return [dict(shape=shape, bytes=size, name=name) for shape, (size, name) in ranked]


def show(report: Mapping[str, Any], write: Callable[[str], Any]) -> None:
    """Prints a report.

    Args:
      report: Figures of a compiled step, see `examine`.
      write: Takes lines.
    """
    seconds, use = report["seconds"], report["memory"]
    mesh = ", ".join(f"{name}={size}" for name, size in report["mesh"].items())
    slices = f"{report['num_slices']} x " if report["num_slices"] > 1 else ""
    write(
        f"{report['config']} on {slices}{report['topology']}, {report['chips']} chips, mesh {mesh}"
    )
    write(f"batch {report['batch_size']}, compiled in {report['compile_seconds']:.0f} s")
    hbm = report["chip"]["hbm"]
    rows = [
        (f"memory of a chip: {name}", gib(use[name]), "XLA")
        for name in ("arguments", "temporaries", "outputs", "aliased", "code")
    ]
    rows.append(("memory: total of HBM", f"{gib(use['total'])} of {gib(hbm)}", "XLA / datasheet"))
    flops, moved = report["flops"], report["bytes"]
    if flops["xla"]:  # of GPUs it says nothing
        rows += [
            ("FLOPs of a chip: loops counted once", tera(flops["xla"]), "XLA"),
            ("bytes of HBM moved: loops counted once", giga(moved["xla"]), "XLA"),
        ]
    rows += [
        ("FLOPs: matrix products and convolutions", tera(flops["derived"]), "derived"),
        ("FLOPs: asked for by the program", tera(flops["traced"]), "traced"),
        ("FLOPs: the same, nothing made again", tera(flops["useful"]), "traced"),
        ("bytes of HBM moved", giga(moved["derived"]), "derived"),
    ]
    rows += [
        (f"kernel {name}", f"{runs:.0f} runs", "derived")
        for name, runs in report["kernels"].items()
    ]
    near = report["chip"]["network"]
    for row in report["collectives"]:
        network = near if row["network"] == "ici" else row["network"]
        rows.append(
            (
                f"{row['kind']} over {network}: {row['runs']:.0f} runs",
                f"{giga(row['bytes'])}, {milli(row['seconds'])}",
                "derived / datasheet",
            )
        )
    rows += [
        ("largest array made", f"{a['shape']}, {gib(a['bytes'])}", "derived")
        for a in report["largest_arrays"][:3]
    ]
    for name, what in (
        ("compute", "matrix products alone"),
        ("memory", "HBM alone"),
        ("compute_and_memory", "the larger of both, instruction by instruction"),
        ("ici", f"links between chips ({near})"),
        ("dcn", "network between slices"),
    ):
        rows.append((f"time: {what}", milli(seconds[name]), "estimate"))
    rows += [
        ("step: roofline, the longest of the above alone", milli(seconds["roofline"]), "estimate"),
        ("step: one by one, all exchanges hidden", milli(seconds["overlapped"]), "estimate"),
        ("step: one by one, no exchange hidden", milli(seconds["estimate"]), "estimate"),
        (
            "floor: FLOPs, nothing made again, at peak",
            milli(seconds["floor"]),
            "traced / datasheet",
        ),
        ("step over floor", known(report["estimate_over_floor"], ".2f"), "estimate"),
        ("share of peak", known(report["share_of_peak"], ".1%"), "estimate"),
        ("examples a second", known(report["examples_per_second"], ",.0f"), "estimate"),
        ("bound by", report["bound"], "estimate"),
    ]
    width = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for name, value, source in rows:
        write(f"  {name:<{width[0]}}  {value:>{width[1]}}  {source}")
    unread = [name for name, trips in report["loops"].items() if trips is None]
    if unread:
        write(f"  loops whose trip count was not found, counted once: {', '.join(unread)}")
    write(f"  datasheet: {report['chip']['source']}; nothing was run")


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.2f} GiB"


def tera(value: float) -> str:
    """Operations in units of 10¹²."""
    return f"{value / 1e12:.3f} T"


def giga(size: float) -> str:
    """Bytes in GB."""
    return f"{size / 1e9:.2f} GB"


def milli(seconds: float) -> str:
    """Seconds in milliseconds."""
    if math.isinf(seconds):
        return "unknown"
    return f"{seconds * 1e3:.{1 if seconds >= 1e-3 else 4}f} ms"


def known(value: float, form: str) -> str:
    """Formats a number, or says "unknown" where it is not finite."""
    return format(value, form) if math.isfinite(value) else "unknown"


def override(report: Mapping[str, Any], config: Any) -> str:
    """The command line's overrides that give a report's mesh, batch and remat.

    Args:
      report: Figures of a compiled step, see `examine`.
      config: The config that was compiled.

    Returns:
      Words such as "--config.mesh.fsdp=8 --config.train.batch_size=4096".
    """
    words = [f"--config.mesh.{name}={size}" for name, size in report["mesh"].items()]
    words.append(f"--config.train.batch_size={report['batch_size']}")
    if "remat" in config.model:
        words.append(f"--config.model.remat={config.model.remat}")
    return " ".join(words)
