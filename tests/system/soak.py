"""Trains a small config for half an hour and measures whether its memory stays flat.

python tests/system/soak.py [--minutes=30] [--checkpoint_every=100] [--workdir=DIR]

The run is a real one of the launcher, with evaluations and checkpoints. The first fifth of the
time is warm-up; over the rest the resident set of the process is fitted by a line. Exit code 1
where that line rises by more than 2% of what the process holds.

Two things grow. TensorStore does not give back the JSON that Orbax asks it for in every save, 14 kB
and 0.4 kB an array (Orbax 0.12.8, TensorStore 0.1.86, by tracemalloc). And glibc's heaps, of which
threads have eight a core, fragment; the launcher holds it to one a core. Run this under
MALLOC_ARENA_MAX=16 to see them grow.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
RUN = (
    "--config=configs/contrastive/simclr_digits.py", "--config.train.steps=100000000",
    "--config.train.batch_size=32", "--config.train.log_every=20", "--config.train.eval_every=200",
    "--config.optimizer.ema_decay=0.9",
)  # fmt: skip
WARM_UP = 0.2
RISE = 0.02


def resident(pid: int) -> float:
    """Resident set of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(pid)


def sample(process: subprocess.Popen, seconds: float, *, every: float = 1.0) -> np.ndarray:
    """Rows of (seconds since the start, MB)."""
    began, rows = time.monotonic(), []
    while (now := time.monotonic() - began) < seconds and process.poll() is None:
        rows.append((now, resident(process.pid)))
        time.sleep(every)
    return np.array(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--checkpoint_every", type=int, default=100, help="steps")
    parser.add_argument("--workdir", type=Path, help="a directory of its own that is kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rml-soak-") as scratch:
        path = args.workdir or Path(scratch) / "run"
        with open(Path(scratch) / "output.txt", "w+") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments.run", *RUN, f"--workdir={path}",
                 f"--config.train.checkpoint_every={args.checkpoint_every}"],
                cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            rows = sample(process, 60 * args.minutes)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=600)
            output.seek(0)
            said = output.read()
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        steps = max(line["step"] for line in lines)
        evaluations = sum(any(key.startswith("eval/") for key in line) for line in lines)
    if code != 128 + signal.SIGTERM:
        print(said[-2000:], file=sys.stderr)
        print(f"error: the run ended with {code} before it was told to", file=sys.stderr)
        return 1
    for minute in range(0, int(args.minutes) + 1, max(1, round(args.minutes / 10))):
        near = rows[np.argmin(np.abs(rows[:, 0] - 60 * minute))]
        print(f"{minute:3} min: {near[1]:7.1f} MB")
    warm = rows[rows[:, 0] >= WARM_UP * rows[-1, 0]]
    slope, _ = np.polyfit(warm[:, 0] / 60, warm[:, 1], 1)
    minutes = (warm[-1, 0] - warm[0, 0]) / 60
    rise = slope * minutes / warm[:, 1].mean()
    print(
        f"{steps} steps, {evaluations} evaluations, {steps // args.checkpoint_every} checkpoints; "
        f"after warm-up {warm[:, 1].mean():.1f} MB, {slope:+.3f} MB a minute: "
        f"{rise:+.2%} in {minutes:.0f} min"
    )
    return int(rise > RISE)


if __name__ == "__main__":
    sys.exit(main())
