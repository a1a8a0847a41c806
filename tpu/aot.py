"""Compiles a config's train step for a pod, on any machine, and says what to expect of it.

python -m tpu.aot --config=configs/pods/simclr_imagenet2012_vit_b.py --topology=v5e:16x16
python -m tpu.aot --config=FILE --topology=v5e:4x4 --num_slices=2 --config.mesh.replica=2
python -m tpu.aot --config=FILE --topology=v5e:4x4 --sweep --json=sweep.json
python -m tpu.aot --config=FILE --topology=h100:8
python -m tpu.aot --config=FILE --platform=cuda --devices=8
python -m tpu.aot --tokens=131072 --topology=v5e:2x4

`--tokens` compiles no config but a decoder of SmolLM2-135M's shape that trains on one text of so
many tokens, spread over all devices. Exit code 1, with one line that says why, where the step does
not fit, or a name, mesh or batch is wrong. TPUs need the `tpu` extra, topologies of GPUs the `cuda`
extra, and no device. `--platform=cuda` needs neither, and exports the step for GPUs.
"""

import json
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.run import CONFIG, TRACEBACK, parse_flags
from experiments.startup import check_writable, fail, quiet_libraries
from rml.errors import UserError, local_path, unknown
from tpu.chips import CHIPS, parse_topology

TOPOLOGY = flags.DEFINE_string("topology", None, "Chip and shape, such as v5e:16x16 or h100:8.")
SLICES = flags.DEFINE_integer("num_slices", 1, "Slices of this topology.")
SWEEP = flags.DEFINE_bool("sweep", False, "Try meshes, batch sizes and remat; print the best.")
JSON = flags.DEFINE_string("json", None, "Write figures to a new file; - for standard output.")
PLATFORM = flags.DEFINE_string("platform", "tpu", "tpu, or cuda: export the step for GPUs.")
DEVICES = flags.DEFINE_integer("devices", None, "Devices of --platform=cuda, 8 if not given.")
TOKENS = flags.DEFINE_integer("tokens", None, "Tokens of one text over all devices; no config.")
HLO = flags.DEFINE_string("hlo", None, "Write the compiled program to a new file.")


# The compiler alone is wanted: no chip is looked for, and several processes may hold it.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
}
# Without a GPU no kernel can be timed: XLA takes the libraries' own, which it need not choose.
UNTUNED = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


def use_compiler_only() -> None:
    """Sets what JAX and libtpu read when they are loaded."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {UNTUNED}".strip()


def write_json(value: Any) -> None:
    """Writes figures where --json says, null for those that are not finite."""
    text = json.dumps(finite(value), indent=1, default=str)
    if JSON.value == "-":
        print(text)
    elif JSON.value:
        write(JSON, text + "\n")


def finite(value: Any) -> Any:
    """Copies figures with None for each that is not finite, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    return [finite(part) for part in value] if isinstance(value, list | tuple) else value


def write(flag: flags.FlagHolder, text: str) -> None:
    """Writes the file that a flag names."""
    path = file_of(flag)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def file_of(flag: flags.FlagHolder) -> Path:
    """Reads and checks the path of a file that a flag names.

    Raises:
      UserError: It is a URL, a directory or a file that exists, or its folder cannot be written.
    """
    path = local_path(flag.value, f"--{flag.name}")
    if path.is_dir():
        raise UserError(f"--{flag.name}={path} is a directory, expected a file")
    if path.is_file():  # /dev/null may be written
        raise UserError(f"{path} exists and is not overwritten; give another --{flag.name}")
    check_writable(path.parent, f"--{flag.name}={path}")
    return path


def check_flags() -> None:
    """Raises `UserError` where a flag is wrong, before anything slow is imported."""
    named = [flag for flag in (JSON, HLO) if flag.value and (flag is HLO or flag.value != "-")]
    paths = [file_of(flag).resolve() for flag in named]
    if len({*paths}) < len(paths):
        raise UserError(f"--json and --hlo are both {paths[0]}, expected two files")
    if PLATFORM.value not in ("tpu", "cuda"):
        raise unknown("platform", PLATFORM.value, ("tpu", "cuda"))
    if TOKENS.value is not None and (SWEEP.value or PLATFORM.value != "tpu" or CONFIG.value):
        raise UserError("--tokens goes with --topology alone: no --config, --sweep or --platform")
    if SWEEP.value and HLO.value:
        raise UserError("--sweep goes with --topology and --json: no --hlo")
    if PLATFORM.value == "cuda":
        if SWEEP.value or HLO.value or TOPOLOGY.value or SLICES.value != 1:
            raise UserError(
                "--platform=cuda goes with --devices and --json: no --sweep, --hlo, --topology or "
                "--num_slices"
            )
        if DEVICES.value is not None and DEVICES.value < 1:
            raise UserError(f"devices is {DEVICES.value}, expected at least 1")
    elif DEVICES.value is not None:
        raise UserError("--devices goes with --platform=cuda; a TPU's --topology has its own")
    elif TOPOLOGY.value is None:
        raise UserError("no --topology; for example --topology=v5e:4x4")
    else:
        kind, _ = parse_topology(TOPOLOGY.value)
        if SLICES.value < 1:
            raise UserError(f"num_slices is {SLICES.value}, expected at least 1")
        if SLICES.value > 1 and CHIPS[kind].target:
            raise UserError(f"num_slices is {SLICES.value}, expected 1: {kind} are of one host")


def run(config: Any) -> None:
    """Does what the flags say."""
    out = partial(print, file=sys.stderr if JSON.value == "-" else sys.stdout, flush=True)
    if PLATFORM.value == "cuda":
        from tpu.cuda import export

        write_json(export(config, DEVICES.value or 8, write=out))
        return
    from tpu.compile import compile_step, topology_devices
    from tpu.report import check_fits, examine, show
    from tpu.sweep import sweep

    topology = str(TOPOLOGY.value)
    devices = topology_devices(topology, num_slices=SLICES.value)
    if TOKENS.value is not None:
        from tpu.long_text import compile_text

        compiled, config = compile_text(TOKENS.value, devices)
    elif SWEEP.value:
        write_json(sweep(config, devices, topology, write=out))
        return
    else:
        compiled = compile_step(config, devices)
    if HLO.value:
        write(HLO, compiled.text)
    report = examine(compiled, config, topology)
    show(report, out)
    write_json(report)
    check_fits(report)


def main(argv: Sequence[str]) -> None:
    """Checks the flags and compiles."""
    del argv
    if CONFIG.value is None and TOKENS.value is None:
        fail("no --config; for example --config=configs/contrastive/simclr_mnist5k.py")
    quiet_libraries()
    try:
        check_flags()
        if PLATFORM.value == "tpu":
            use_compiler_only()
        run(CONFIG.value)
    except (ValueError, OSError) as error:
        if TRACEBACK.value:
            traceback.print_exc()
        elif not isinstance(error, UserError):
            fail(f"{error} (--traceback shows where)")
        fail(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
