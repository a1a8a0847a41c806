"""Progress of a run: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

PLAIN_EVERY = 10.0  # seconds between plain lines


def duration(seconds: float) -> str:
    """Writes seconds as 1:02 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Shows step, rate, time left and key metrics; the rate leaves compilation out."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        keys: tuple[str, ...] = (),
        quiet: bool = False,
        unit: str = "step",
    ):
        """Chooses the form.

        Args:
          stream: Stream to write to, standard output by default.
          keys: Metrics to show, such as "train/loss"; all that come where none is named.
          quiet: Show nothing.
          unit: Name of what is counted, in the singular.
        """
        self._stream = stream or sys.stdout
        self._keys, self._quiet, self._unit = keys, quiet, unit
        self._live: Any = None
        self._shown: dict[str, float] = {}
        self._last_plain = 0.0

    def note(self, text: str) -> None:
        """Prints one line about what happens now."""
        if not self._quiet:
            print(text, file=self._stream, flush=True)

    def start(self, step: int, steps: int) -> None:
        """Begins to count."""
        self._first, self._step, self._steps = step, step, steps
        self._began = self._last_plain = time.perf_counter()
        if self._quiet or not self._stream.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._live = RichProgress(
            TextColumn(self._unit + " {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[rate]} {task.fields[left]} {task.fields[metrics]}"),
            console=Console(file=self._stream),
            refresh_per_second=4,
        )
        self._live.start()
        self._bar = self._live.add_task(
            "", total=steps, completed=step, rate="", left="", metrics=""
        )

    def _state(self) -> dict[str, str]:
        done = self._step - self._first
        rate = done / max(time.perf_counter() - self._began, 1e-9)
        left = (self._steps - self._step) / rate if done else 0.0
        metrics = "  ".join(f"{k.split('/', 1)[-1]} {v:.4g}" for k, v in self._shown.items())
        return {
            "rate": f"{rate:{'.1f' if rate >= 1 else '.2g'}} {self._unit}s/s",
            "left": f"{duration(left)} left" if done else "",
            "metrics": metrics,
        }

    def advance(self, step: int) -> None:
        """Shows the step that was just started."""
        self._step = step
        if self._quiet:
            return
        if self._live:
            # Formatting a line costs more than a fast step: leave most of them out.
            now = time.perf_counter()
            if now - self._last_plain > 0.25 or step == self._steps:
                self._last_plain = now
                self._live.update(self._bar, completed=step, **self._state())
        elif time.perf_counter() - self._last_plain > PLAIN_EVERY or step == self._steps:
            self._last_plain = time.perf_counter()
            parts = " ".join(part for part in self._state().values() if part)
            print(f"{self._unit} {step}/{self._steps} {parts}", file=self._stream, flush=True)

    def show(self, metrics: Mapping[str, float]) -> None:
        """Remembers the metrics to show beside the step."""
        self._shown |= {k: v for k, v in metrics.items() if not self._keys or k in self._keys}

    def stop(self) -> None:
        """Leaves the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None
