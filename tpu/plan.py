"""A large run on paper: time, checkpoints against failures, input, and the loss's ring.

python -m tpu.plan --chip=v5p --chips=10240 --slices=2 --per_chip=64 --step=0.1
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from absl import app, flags

from rml.errors import UserError, unknown
from tpu.chips import CHIPS

# As reported of the training of Llama 3 405B (arXiv:2407.21783): 419 unexpected interruptions in 54
# days of 16,384 GPUs. No such figure was found for TPUs.
FAILURES = 419 / (54 * 16_384)

CHIP = flags.DEFINE_string("chip", "v5p", "Kind of chip.")
COUNT = flags.DEFINE_integer("chips", 10_240, "Chips.", lower_bound=1)
SLICES = flags.DEFINE_integer("slices", 2, "Slices that they form.", lower_bound=1)
EXAMPLES = flags.DEFINE_integer("per_chip", 64, "Examples of a batch on a chip.", lower_bound=1)
STEP = flags.DEFINE_float("step", 0.1, "Seconds of a step, such as tpu.aot estimates.")
PAIRS = flags.DEFINE_float("pairs", 1e9, "Examples of the data set.")
EPOCHS = flags.DEFINE_float("epochs", 32, "Passes over them.")
PARAMETERS = flags.DEFINE_float("parameters", 430e6, "Trained numbers.")
EXAMPLE_BYTES = flags.DEFINE_float("example_bytes", 100e3, "Bytes of a stored example.")
DECODES = flags.DEFINE_float("decodes", 250, "Images that a CPU core decodes a second.")
FEATURES = flags.DEFINE_integer("features", 512, "Numbers of an embedding.", lower_bound=1)
DAILY = flags.DEFINE_float("failures", FAILURES, "Failures of a chip a day.")
SAVE = flags.DEFINE_float("save", 5.0, "Seconds that a checkpoint stops the run for.")
RESTART = flags.DEFINE_float("restart", 600.0, "Seconds from a failure to the next step.")


@dataclass(frozen=True)
class Interval:
    """How often to save.

    Attributes:
      between_failures: Mean seconds from one failure of any chip to the next.
      interval: Seconds between checkpoints that lose least.
      lost: Share of the time that saving, repeating and restarting take.
    """

    between_failures: float
    interval: float
    lost: float


def checkpoint_interval(
    *, chips: int, failures_per_day: float, save: float, restart: float
) -> Interval:
    """The interval between checkpoints that loses least, to first order.

    Args:
      chips: Each of which stops the run when it fails.
      failures_per_day: Failures of one chip in a day.
      save: Seconds that a checkpoint stops the run for.
      restart: Seconds from a failure to the next step.

    Returns:
      Interval √(2 · save · M) for a mean time M between failures, and the share lost,
      save / T + (T / 2 + restart) / M.

    Raises:
      UserError: A number that is not positive, a negative restart, or no time is left to train.

    Source: J. W. Young, A first order approximation to the optimum checkpoint interval, 1974.
    """
    check_positive("failures", failures_per_day)
    check_positive("save", save)
    if not restart >= 0:
        raise UserError(f"restart is {restart}, expected at least 0")
    mean = 86_400 / (chips * failures_per_day)
    interval = math.sqrt(2 * save * mean)
    lost = overhead(interval, mean=mean, save=save, restart=restart)
    if lost >= 1:
        raise UserError(
            f"a failure every {mean:.0f} s leaves no time to train: saving, repeating and "
            f"restarting take {lost:.0%} of it"
        )
    return Interval(mean, interval, lost)


def check_positive(name: str, value: float) -> None:
    """Raises `UserError` where a number is zero, negative, infinite or none."""
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}, expected more than 0 and finite")


def overhead(interval: float, *, mean: float, save: float, restart: float) -> float:
    """Share of the time lost with a checkpoint every `interval` seconds."""
    return save / interval + (interval / 2 + restart) / mean


def ring_seconds(
    *, chips: int, slices: int, rows: int, features: int, ici: float, dcn: float | None
) -> tuple[float, float]:
    """How long an embedding's shards take to travel round all chips twice, values and gradients.

    Args:
      chips: Number of chips on the ring.
      slices: Where there are several, two neighbours of the ring lie on different ones, and all
        wait for them at every step.
      rows: Embeddings on a chip.
      features: Number of features of an embedding, float32.
      ici: Bytes/s of a link inside a slice.
      dcn: Bytes/s of a chip between slices; None where it is not published.

    Returns:
      Seconds, with the slowest link that the ring crosses, and if all links were a slice's. The
      first are infinite where the ring crosses a network of unpublished bandwidth. The gradients'
      turn carries twice the data: keys, and their gradients.
    """
    size = rows * features * 4
    sent = 3 * chips * size
    inside = sent / ici
    if slices == 1:
        return inside, inside
    return math.inf if dcn is None else sent / min(ici, dcn), inside


def plan() -> list[str]:
    """The plan of the flags, line by line."""
    if CHIP.value not in CHIPS:
        raise unknown("chip", str(CHIP.value), CHIPS)
    for flag in (STEP, PAIRS, EPOCHS, PARAMETERS, EXAMPLE_BYTES, DECODES):
        check_positive(flag.name, flag.value)
    chip, chips = CHIPS[str(CHIP.value)], COUNT.value
    batch = chips * EXAMPLES.value
    steps = math.ceil(PAIRS.value * EPOCHS.value / batch)
    state = 12 * PARAMETERS.value  # parameters and Adam's two moments, float32
    save = checkpoint_interval(
        chips=chips, failures_per_day=DAILY.value, save=SAVE.value, restart=RESTART.value
    )
    hours = steps * STEP.value / 3600
    rate = batch / STEP.value
    hosts = math.ceil(chips / chip.host_chips)
    slow, fast = ring_seconds(
        chips=chips,
        slices=SLICES.value,
        rows=EXAMPLES.value,
        features=FEATURES.value,
        ici=chip.ici / chip.ports,
        dcn=chip.dcn,
    )
    ring = "unknown (no dcn is published)" if math.isinf(slow) else f"{slow * 1e3:,.0f} ms a step"
    everything = batch * FEATURES.value * 4
    return [
        f"batch {batch:,}, {steps:,} steps, {hours:,.1f} h, {hours * chips:,.0f} chip hours, "
        f"{hours / (1 - save.lost):,.1f} h with failures",
        f"checkpoint: {state / 1e9:.1f} GB, {state / hosts / 1e6:.1f} MB a host where all write",
        f"failures: one every {save.between_failures / 3600:.1f} h, checkpoint every "
        f"{save.interval:.0f} s ({save.interval / STEP.value:,.0f} steps), {save.lost:.1%} lost",
        f"input: {rate:,.0f} examples/s, {rate * EXAMPLE_BYTES.value / 1e9:,.0f} GB/s in all, "
        f"{rate * EXAMPLE_BYTES.value / hosts / 1e6:,.0f} MB/s and "
        f"{rate / hosts / DECODES.value:,.0f} cores a host",
        f"data set: {PAIRS.value * EXAMPLE_BYTES.value / 1e12:,.0f} TB",
        f"loss: ring {ring} over {SLICES.value} slices, {fast * 1e3:,.0f} ms were it one; "
        f"the batch's embeddings, gathered, are {everything / 2**30:.2f} GiB a chip",
    ]


def main(argv: Sequence[str]) -> None:
    """Prints the plan."""
    del argv
    try:
        print("\n".join(plan()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    app.run(main)
