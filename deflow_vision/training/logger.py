"""What a run measures: CSV files on disk are the truth; wandb and TensorBoard are sinks.

A sink cannot stop a run: the first exception in one is logged, and that sink is dropped.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from deflow_vision.training.sinks import Sink, TensorBoardSink, WandbSink
from deflow_vision.types import UserError

log = logging.getLogger(__name__)

Value = str | int | float | bool


class RunLogger:
    """Writes `train.csv` and `episodes.csv` of a run folder, and feeds the sinks.

    Keys (such as `train/critic/loss`) are the columns, and keep their names in all sinks.

    Args:
        run_dir: the run folder; made where it is missing.
        tensorboard: whether to write event files into `run_dir/tensorboard`.
        wandb: off, offline (files in `run_dir/wandb`, for `wandb sync`) or online.
        wandb_project: the project in wandb.
        config: the resolved configuration, as wandb shows it.
        resume_step: None for a new run. Otherwise the step of the checkpoint from which the run
            goes on: later rows are cut (-1 cuts them all).

    Raises:
        UserError: a new run in a folder that holds the rows of another.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        tensorboard: bool = False,
        wandb: Literal["off", "offline", "online"] = "off",
        wandb_project: str = "deflow-vision",
        config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._train = CsvTable(run_dir / "train.csv", resume_step)
        last = resume_step
        if last is not None and not is_evaluated(run_dir, last):
            last -= 1  # the evaluation there did not end, and comes again
        self._episodes = CsvTable(run_dir / "episodes.csv", last)
        self._sinks: dict[str, Sink] = {}
        if tensorboard:
            self._add_sink("TensorBoard", lambda: TensorBoardSink(run_dir, resume_step))
        if wandb != "off":
            self._add_sink(
                "wandb", lambda: WandbSink(run_dir, wandb, wandb_project, dict(config or {}))
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row to `train.csv`.

        Args:
            step: gradient steps so far.
            metrics: values by key; keys may appear at any time.
        """
        row = {key: float(value) for key, value in metrics.items()}
        self._train.append([{"step": step, **row}])
        self._send(lambda sink: sink.log(step, row))

    def log_episodes(self, rows: Sequence[Mapping[str, Value]]) -> None:
        """Append evaluation episodes to `episodes.csv`; each row has a `step`."""
        self._episodes.append(rows)

    def log_video(self, step: int, path: Path) -> None:
        """Show the mp4 at `path`, which is in the run folder already, to the sinks."""
        self._send(lambda sink: sink.log_video(step, path))

    def close(self) -> None:
        """Close the sinks. The CSV files are complete at any time."""
        self._send(lambda sink: sink.close())
        self._sinks.clear()

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _add_sink(self, name: str, make: Callable[[], Sink]) -> None:
        try:
            self._sinks[name] = make()
        except Exception as error:
            log.warning("%s is off for this run, train.csv goes on: %r", name, error)

    def _send(self, call: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                call(sink)
            except Exception as error:
                del self._sinks[name]
                log.warning("%s is off from here on, train.csv goes on: %r", name, error)


def is_evaluated(run_dir: Path, step: int) -> bool:
    """Whether `train.csv` has the evaluation after `step` updates."""
    path = run_dir / "train.csv"
    return path.exists() and any(
        value and name.startswith(("eval/", "val/"))
        for row in _read(path)[1]
        if row["step"] == str(step)
        for name, value in row.items()
    )


class CsvTable:
    """A CSV file with a `step` column that grows by rows, and now and then by columns.

    A row is written whole before `append` returns. What a crash can leave is a torn last line,
    which is cut when the file is opened again.

    Args:
        path: the file; it appears with the first row.
        resume_step: see `RunLogger`.

    Raises:
        UserError: the file exists and `resume_step` is None.
    """

    def __init__(self, path: Path, resume_step: int | None) -> None:
        self.path = path
        self.columns: list[str] = []
        if not path.exists():
            return
        if resume_step is None:
            raise UserError(
                f"{path} holds the rows of an earlier run: resume that one, or choose a new folder"
            )
        self.columns, rows = _read(path)
        self._rewrite([row for row in rows if int(row["step"]) <= resume_step])

    def append(self, rows: Sequence[Mapping[str, Value]]) -> None:
        """Append rows; a column that a row lacks stays empty."""
        names = dict.fromkeys(name for row in rows for name in row)
        if new := [name for name in names if name not in self.columns]:
            known = _read(self.path)[1] if self.columns else []
            self.columns = [*self.columns, *new]
            self._rewrite(known)
        with self.path.open("a", newline="") as file:
            file.write(self._format(rows))

    def _rewrite(self, rows: Sequence[Mapping[str, Value]]) -> None:
        part = self.path.with_name(f"{self.path.name}.partial")
        with part.open("w", newline="") as file:
            if self.columns:
                csv.writer(file, lineterminator="\n").writerow(self.columns)
            file.write(self._format(rows))
        os.replace(part, self.path)

    def _format(self, rows: Sequence[Mapping[str, Value]]) -> str:
        text = StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        for row in rows:  # truth values as 0 and 1, so that a column's mean is a rate
            writer.writerow({k: int(v) if isinstance(v, bool) else v for k, v in row.items()})
        return text.getvalue()


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table.

    Raises:
        UserError: it is damaged.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        whole, _, _ = path.read_text().rpartition("\n")  # a line that lost its end is a torn one
        reader = csv.DictReader(StringIO(whole), restval="")
        columns, rows = list(reader.fieldnames or []), list(reader)
        for number, row in enumerate(rows, 2):
            if None in row or not row.get("step", "").isdecimal():
                raise ValueError(f"line {number} has no step, or more cells than there are columns")
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is damaged: {error}. Mend its text, or move it away; the run goes on from its "
            "checkpoint without it."
        ) from None
    return columns, rows
