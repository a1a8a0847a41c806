"""The plan on paper: its interval is the one that loses least."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.optimize import minimize_scalar

from rml.errors import UserError
from tpu.chips import CHIPS
from tpu.plan import checkpoint_interval, overhead, ring_seconds

ROOT = Path(__file__).parents[2]


def plan_of(*args):
    """Runs the command."""
    return subprocess.run(
        [sys.executable, "-m", "tpu.plan", *args], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(("chips", "save"), [(256, 1.0), (10_240, 5.0), (10_240, 60.0)])
def test_interval_loses_least(chips, save):
    found = checkpoint_interval(chips=chips, failures_per_day=1e-3, save=save, restart=300.0)
    assert found.between_failures == pytest.approx(86_400 / (chips * 1e-3))
    best = minimize_scalar(
        lambda t: overhead(t, mean=found.between_failures, save=save, restart=300.0),
        bounds=(1.0, 1e5), method="bounded",
    )  # fmt: skip
    assert found.interval == pytest.approx(best.x, rel=1e-3)
    assert found.lost == pytest.approx(best.fun, rel=1e-6)


def test_ring_waits_for_its_slowest_link():
    sizes = dict(chips=8, rows=4, features=16, ici=100.0, dcn=10.0)
    one = ring_seconds(slices=1, **sizes)
    assert one == (pytest.approx(3 * 8 * 4 * 16 * 4 / 100),) * 2
    two = ring_seconds(slices=2, **sizes)
    assert two[0] == pytest.approx(10 * two[1])


def test_ring_over_slices_is_never_faster_than_inside_one():
    sizes = dict(chips=8, rows=4, features=16, slices=2, ici=100.0)
    slow, fast = ring_seconds(dcn=300.0, **sizes)
    assert slow == fast == pytest.approx(3 * 8 * 4 * 16 * 4 / 100)
    assert ring_seconds(dcn=None, **sizes) == (math.inf, fast)
    assert ring_seconds(dcn=None, **sizes | {"slices": 1}) == (fast, fast)


@pytest.mark.parametrize(
    ("slices", "ring"), [(2, "unknown (no dcn is published)"), (1, "90 ms a ")]
)
def test_ring_over_a_network_of_unpublished_bandwidth_is_unknown(slices, ring):
    assert CHIPS["v4"].dcn is None
    done = plan_of("--chip=v4", f"--slices={slices}")
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert line.startswith(f"loss: ring {ring}")
    assert f"over {slices} slices, 90 ms were it one" in line


def test_impossible_rates_are_named():
    with pytest.raises(UserError, match=r"failures is 0"):
        checkpoint_interval(chips=1, failures_per_day=0, save=1.0, restart=1.0)
    with pytest.raises(UserError, match=r"restart is -1.0, expected at least 0"):
        checkpoint_interval(chips=1, failures_per_day=1e-3, save=1.0, restart=-1.0)
    assert checkpoint_interval(chips=1, failures_per_day=1e-3, save=1.0, restart=0.0).lost > 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("decodes", "0"), ("decodes", "-250"), ("epochs", "-1"), ("epochs", "0"), ("pairs", "-1e9"),
        ("pairs", "inf"), ("pairs", "nan"), ("parameters", "-1"), ("example_bytes", "0"),
        ("step", "0"), ("save", "inf"),
    ],
)  # fmt: skip
def test_impossible_numbers_end_with_one_line(flag, value):
    done = plan_of(f"--{flag}={value}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {flag} is {float(value)}, expected more than 0 and finite\n"


def test_a_run_that_failures_leave_no_time_to_is_refused():
    found = checkpoint_interval(chips=1000, failures_per_day=0.01, save=5.0, restart=8000.0)
    assert found.lost == pytest.approx(8000 / 8640 + math.sqrt(2 * 5 / 8640))
    with pytest.raises(UserError, match=r"a failure every 8640 s leaves no time .* take 106% of"):
        checkpoint_interval(chips=1000, failures_per_day=0.01, save=5.0, restart=8900.0)


def test_a_part_of_a_host_is_a_host():
    def checkpoint(chips):
        done = subprocess.run(
            [sys.executable, "-m", "tpu.plan", "--chip=v5e", f"--chips={chips}", "--slices=1"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()[1]

    assert CHIPS["v5e"].host_chips == 8
    assert checkpoint(1) == "checkpoint: 5.2 GB, 5160.0 MB a host where all write"
    assert checkpoint(9) == "checkpoint: 5.2 GB, 2580.0 MB a host where all write"


def test_command():
    done = subprocess.run(
        [sys.executable, "-m", "tpu.plan", "--chips=512", "--slices=1", "--step=0.5",
         "--per_chip=64", "--pairs=32768000", "--epochs=1"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # 512 x 64 examples a step, 1,000 steps of half a second.
    assert done.stdout.startswith("batch 32,768, 1,000 steps, 0.1 h, 71 chip hours")
    wrong = subprocess.run(
        [sys.executable, "-m", "tpu.plan", "--chip=v9"], cwd=ROOT, capture_output=True, text=True
    )
    assert wrong.returncode == 1
    assert "unknown chip 'v9'" in wrong.stderr
