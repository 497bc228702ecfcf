"""How far a run is: a bar on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

SHOWN = (
    *("/loss", "/q_loss", "/divergence"),
    *("eval/success", "eval/return", "online/success", "online/return"),
)
"""Ends of the keys that are shown; `train.csv` has them all."""


class TrainingProgress:
    """Shows steps, rate, time left and the last losses. A context manager.

    Args:
        total_steps: the step at which the run ends.
        start_step: the step at which this process starts.
        description: a word for the phase, such as "offline".
        enabled: False on all but the main process: nothing is shown.
        console: where to; by default standard error, so that a pipe gets results only.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        description: str = "train",
        enabled: bool = True,
        console: Console | None = None,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._total, self._enabled, self._description = total_steps, enabled, description
        self._last_step, self._last_time = start_step, time.perf_counter()
        self._rate = 0.0
        self._shown: dict[str, float] = {}
        # The losses give way where the terminal is narrow.
        losses = TextColumn(
            "{task.fields[losses]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        )
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            losses,
            console=self._console,
            refresh_per_second=2,
            speed_estimate_period=60,
            expand=True,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task(
            description, total=total_steps, completed=start_step, rate="", losses=""
        )

    def update(self, step: int) -> None:
        """Tell that `step` steps are done. Cheap enough for every step."""
        self._bar.update(self._task, completed=step)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the rate of the last steps and the losses among `metrics`; in a file, as a line.

        Args:
            step: gradient steps so far.
            metrics: values by key, as they are logged.
        """
        if not self._enabled:
            return
        now = time.perf_counter()
        if step > self._last_step:  # what comes between two calls of one step is an evaluation
            self._rate = (step - self._last_step) / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        fresh = {k: v for k, v in metrics.items() if k.endswith(SHOWN)}
        self._shown |= fresh
        losses = "  ".join(  # the bar keeps what it showed, a line says what is new
            f"{key.removeprefix('train/').removesuffix('/loss')} {value:.4g}"
            for key, value in (self._shown if self._console.is_terminal else fresh).items()
        )
        rate = f"{self._rate:.1f} steps/s"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, rate=rate, losses=losses)
            return
        left = _clock((self._total - step) / self._rate) if self._rate else "?"
        self._console.print(
            f"{self._description} {step}/{self._total}  {rate}  {left} left  {losses}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
