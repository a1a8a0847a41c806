"""The command line of `tpu.aot`; what needs libtpu is skipped without it (the `tpu` extra)."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.registry import read_config
from rml.errors import UserError, install
from tpu.compile import compile_step, topology_devices
from tpu.long_text import compile_text

ROOT = Path(__file__).parents[2]
DIGITS = "--config=configs/contrastive/simclr_digits.py"
TPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the tpu extra"
)
PLUGIN = importlib.util.find_spec("jax_cuda12_plugin")
CUDA = pytest.mark.skipif(PLUGIN is None, reason="needs JAX's plugin, the cuda extra")


def aot(*args, **env):
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), **env}
    return subprocess.run(
        [sys.executable, "-m", "tpu.aot", *args],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["no --config"]),
        ([DIGITS], ["no --topology", "v5e:4x4"]),
        ([DIGITS, "--topology=v5e:4x4", "--config.mesh.dota=2"], ["mesh.dota", "mesh.data"]),
        ([DIGITS, "--topology=v5q:4x4"], ["v5q", "v5"]),
        ([DIGITS, "--topology=v5p:4x4"], ["2 dimensions", "v5p:4x4x4"]),
        ([DIGITS, "--topology=v5e:4x4", "--num_slices=0"], ["num_slices is 0"]),
        ([DIGITS, "--topology=h100:8", "--num_slices=2"], ["num_slices is 2", "h100 are of one"]),
        ([DIGITS, "--platform=rocm"], ["rocm", "cuda, tpu"]),
        ([DIGITS, "--platform=cuda", "--devices=0"], ["devices is 0"]),
        ([DIGITS, "--platform=cuda", "--json=/dev/null/a"], ["--json=/dev/null/a cannot be"]),
        ([DIGITS, "--platform=cuda", "--json=/tmp"], ["--json=/tmp is a directory"]),
        ([DIGITS, "--platform=cuda", "--json=gs://b/a"], ["--json is 'gs://b/a', a URL"]),
        ([DIGITS, "--topology=v5e:4x4", "--hlo=/proc/a"], ["--hlo=/proc/a cannot be written"]),
    ],
)
def test_mistakes_end_with_one_line(args, parts):
    done = aot(*args)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert all(part in lines[0] for part in parts), done.stderr


CHECK = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from rml.errors import UserError
from tpu import aot

flags.FLAGS.mark_as_parsed()
for given in json.loads(sys.argv[1]):
    with flagsaver.flagsaver(**given):
        try:
            aot.check_flags()
            print("")
        except UserError as error:
            print(error)
"""


def checked(*given):
    """What the check of the flags says of each of these, in one process that compiles nothing."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, json.dumps(given)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_a_file_is_not_overwritten_and_two_flags_name_two_files(tmp_path):
    (there := tmp_path / "there").write_text("mine")
    new = f"{tmp_path}/new"
    said = checked(*(
        {"topology": "v5e:2x2"} | files
        for files in (
            {"json": str(there)}, {"hlo": str(there)},
            {"json": new, "hlo": f"{tmp_path}/../{tmp_path.name}/new"},
            {"json": new, "hlo": f"{new}.txt"}, {"json": "-", "hlo": new},
        )
    ))  # fmt: skip
    assert said == [
        f"{there} exists and is not overwritten; give another --json",
        f"{there} exists and is not overwritten; give another --hlo",
        f"--json and --hlo are both {new}, expected two files",
        "", "",
    ]  # fmt: skip


def test_flags_that_would_be_ignored_are_refused():
    cuda = {"platform": "cuda"}
    several = {"sweep": True}, {"hlo": "new"}, {"topology": "h100:8"}, {"num_slices": 2}
    said = checked(
        cuda, *(cuda | one for one in several),
        {"topology": "v5e:2x2", "sweep": True, "hlo": "new"}, {"topology": "v5e:2x2", "devices": 4},
    )  # fmt: skip
    alone = (
        "--platform=cuda goes with --devices and --json: no --sweep, --hlo, --topology or "
        "--num_slices"
    )
    assert said == [
        "", *[alone] * 4, "--sweep goes with --topology and --json: no --hlo",
        "--devices goes with --platform=cuda; a TPU's --topology has its own",
    ]  # fmt: skip


def test_a_text_that_devices_do_not_divide_is_named():
    with pytest.raises(UserError, match="tokens is 131072, expected a multiple of the 7 devices"):
        compile_text(131_072, [None] * 7)


def test_a_config_without_a_mesh_is_named():
    config = read_config("configs/attention/random_features_small.py")
    with pytest.raises(UserError, match=r"attention\.random_features has no mesh"):
        compile_step(config, jax.devices())


SWEEP = """
import math
from types import SimpleNamespace
from absl import app
from tpu import aot, compile, sweep

def examine(config, tried, topology):
    seconds, rate = {"estimate": math.inf, "ici": 0.5}, math.nan
    return dict(mesh={}, batch_size=64, examples_per_second=rate, seconds=seconds,
                memory={"total": 1.0}, chip={"hbm": 2.0}, bound="unknown", times=[math.inf, (2.0,)])

chips = [SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]
compile.topology_devices = lambda name, num_slices: chips
sweep.compile_step, sweep.examine = lambda config, devices: config, examine
app.run(aot.main, flags_parser=aot.parse_flags)
"""


@pytest.mark.slow
def test_figures_that_are_not_known_are_null_in_json():
    """The command, with stand-ins for the compiler; JSON has no word for infinity."""

    def refuse(word):
        raise AssertionError(word)

    done = subprocess.run(
        [sys.executable, "-c", SWEEP, DIGITS, "--topology=v4:2x2x1", "--num_slices=2", "--sweep",
         "--json=-"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "dcn of v4 is not published: no best is named"
    found = json.loads(done.stdout, parse_constant=refuse)
    assert found["best"] is None
    row = found["rows"][0]
    assert row["seconds"] == {"estimate": None, "ici": 0.5}
    assert (row["examples_per_second"], row["batch_size"]) == (None, 64)
    assert row["times"] == [None, [2.0]]


@pytest.mark.slow
def test_without_libtpu_the_extra_is_named():
    if importlib.util.find_spec("libtpu") is not None:
        pytest.skip("libtpu is installed")
    done = aot(DIGITS, "--topology=v5e:2x2")
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: compiling for TPUs needs libtpu: {install('tpu')}"


def test_without_a_gpus_compiler_the_extra_is_named():
    if PLUGIN is not None:
        pytest.skip("JAX's plugin is installed")
    with pytest.raises(UserError, match=re.escape(f"needs JAX's plugin: {install('cuda')}")):
        topology_devices("h100:8")


@CUDA
def test_step_compiled_for_gpus_that_are_not_there(tmp_path):
    """Each device gets a quarter of a ViT's batch; cuDNN attends, forward and back."""
    out = tmp_path / "report.json"
    done = aot(
        "--config=configs/pods/simclr_imagenet2012_vit_b.py", "--topology=h100:4",
        "--config.train.batch_size=64", f"--json={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert (report["chips"], report["mesh"]["data"], report["batch_size"]) == (4, 4, 64)
    assert 0 < report["memory"]["total"] < report["chip"]["hbm"]
    # Each of 12 blocks is computed once more in the backward pass.
    assert report["kernels"]["__cudnn$fmhaSoftmax"] == 24
    assert report["kernels"]["__cudnn$fmhaSoftmaxBackward"] == 12
    # cuDNN makes logits once more for their gradient, which is little of a step.
    assert 1 < report["flops"]["derived"] / report["flops"]["traced"] < 1.05
    assert {row["kind"] for row in report["collectives"]} >= {"all-reduce"}
    seconds = report["seconds"]
    assert seconds["floor"] <= seconds["compute"] <= seconds["estimate"]
    assert "over NVLink" in done.stdout


@CUDA
def test_neighbours_among_earlier_projections_compile_for_gpus():
    """XLA could not, of projections and predictions that lie side by side in one array."""
    done = aot("--config=configs/contrastive/nnclr_mnist5k.py", "--topology=h100:1")
    assert done.returncode == 0, done.stderr


ESTIMATE = """
from tpu.aot import use_compiler_only
use_compiler_only()
import jax, jax.numpy as jnp
from tpu.estimate import estimate
x = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
found = [estimate(lambda x: jnp.matmul(x, x, precision=p), (x,), "h100") for p in (None, "highest")]
print([(one.products, one.seconds) for one in found], found[0].kernels)
"""


@CUDA
def test_a_product_is_estimated_at_the_peak_of_its_precision():
    done = subprocess.run(
        [sys.executable, "-c", ESTIMATE], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (default, highest), kernels = ast.literal_eval("[" + done.stdout.replace("] {", "], {") + "]")
    flops, size = 2 * 2048**3, 3 * 4 * 2048**2
    assert default == pytest.approx((flops / 494e12, max(flops / 494e12, size / 3350e9)))
    assert highest == pytest.approx((flops / 67e12,) * 2)
    assert kernels == {"__cublas$lt$matmul": 1} or list(kernels) == ["__cublas$gemm"]


@pytest.mark.slow
def test_cuda_export_lists_what_devices_exchange(tmp_path):
    out = tmp_path / "report.json"
    done = aot(
        DIGITS, "--platform=cuda", "--devices=4", "--config.train.batch_size=64", f"--json={out}",
        JAX_PLATFORMS="cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["platforms"] == ["cuda"]
    assert report["mesh"]["data"] == 4
    # Each gradient is summed over the devices at least once.
    assert report["collectives"]["all-reduce"]["bytes"] > 4 * 1000
    assert "no GPU here" in done.stdout


@TPU
def test_step_compiled_for_four_chips(tmp_path):
    out = tmp_path / "report.json"
    done = aot(DIGITS, "--topology=v5e:2x2", "--config.train.batch_size=64", f"--json={out}")
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert (report["chips"], report["mesh"]["data"], report["batch_size"]) == (4, 4, 64)
    assert 0 < report["memory"]["total"] < report["chip"]["hbm"]
    assert report["memory"]["aliased"] <= report["memory"]["outputs"]
    # The chips do what the program asks for, nothing less; round their ring they make the loss's
    # logits of 128 views, which no chip holds, once more for the gradient.
    again = 2 * 128 * 128 * 64 / 4
    assert report["flops"]["derived"] == pytest.approx(report["flops"]["traced"] + again, rel=1e-6)
    assert {row["kind"] for row in report["collectives"]} >= {"all-reduce"}
    seconds = report["seconds"]
    assert seconds["floor"] <= seconds["compute"] <= seconds["estimate"]
    assert seconds["roofline"] <= seconds["overlapped"] <= seconds["estimate"]
    assert report["sources"].keys() == {"xla", "derived", "traced", "datasheet", "estimate"}
    assert all(trips is not None for trips in report["loops"].values())


@TPU
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--topology=v5e:3x5"], ["v5e:3x5", "v5e:4x4"]),
        (["--topology=v5e:2x2", "--config.train.batch_size=66"], ["66", "split"]),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=3"], ["fsdp=3", "4 devices"]),
        (["--topology=v5e:2x2", "--num_slices=2"], ["--config.mesh.replica=2"]),
        (["--topology=v5e:2x2", "--config.train.batch_size=8388608"], ["emory"]),
        (["--topology=v5e:2x2", "--config=configs/fewshot/clustering_mnist5k.py"], ["no task"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(args, parts):
    done = aot(DIGITS, *args)
    assert done.returncode == 1, done.stdout
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert all(part in line for part in parts), done.stderr


MESHES = """
from tpu.aot import use_compiler_only
use_compiler_only()
from rml.training.mesh import make_mesh, slice_of
from tpu.compile import topology_devices
for name, slices, shape, devices in [
    ("v4:2x2x1", 1, {}, 4), ("v5p:2x2x1", 1, {}, 4), ("v6e:2x2", 1, {}, 4),
    ("tpu7x:2x2x1", 1, {}, 8), ("v5e:2x2", 2, dict(replica=2, fsdp=2), 8),
]:
    mesh = make_mesh(shape, topology_devices(name, num_slices=slices))
    assert mesh.size == devices, (name, mesh.size)
    of = [slice_of(device) for device in mesh.devices.flat]
    assert of == sorted(of) and len(set(of)) == slices, (name, of)
"""


@TPU
def test_every_chip_has_topologies_and_replicas_lie_on_slices():
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run(
        [sys.executable, "-c", MESHES], cwd=ROOT, env=environment, check=True, timeout=120
    )
