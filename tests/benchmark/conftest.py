"""Tables in files of a test's own, and run folders as a finished run leaves them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from deflow_vision.benchmark.protocols import score_column
from deflow_vision.benchmark.table_file import load_table
from deflow_vision.benchmark.tables import Cell, Table
from deflow_vision.config import to_yaml
from deflow_vision.training.logger import RunLogger

TABLE = {
    "title": "A table",
    "tasks": ["cube-single-play-task1", "pen-human-v1"],
    "seeds": 2,
    "settings": {"offline_steps": 40, "eval": {"every": 10}},
    "methods": {"bc": {}, "iql": {"settings": {"agent": {"alpha": 7.0}}}},
}


@pytest.fixture
def write_table(tmp_path: Path):
    """A table's file; keys given replace those of `TABLE`."""

    def write(**changes: object) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(TABLE | changes))
        return path

    return write


@pytest.fixture
def make_table(write_table):
    def make(**changes: object) -> Table:
        return load_table(str(write_table(**changes)))

    return make


def write_run(cell: Cell, scores: Sequence[float], every: int = 10) -> None:
    """A run with a score, in percent, after every so many updates."""
    scale = 1 if cell.task.suite == "d4rl" else 100
    with RunLogger(cell.run_dir) as logger:
        for index, score in enumerate(scores, start=1):
            logger.log(every * index, {score_column(cell.task): score / scale})
            logger.log(every * index, {"time/step_seconds": 0.01 * index})
    (cell.run_dir / "config.yaml").write_text(to_yaml(cell.config()))


def write_runs(
    table: Table,
    root: Path,
    scores: Mapping[tuple[str, str], Sequence[Sequence[float]]],
    without: Container[tuple[str, str, int]] = (),
) -> None:
    """A finished run for each cell but some; scores by task and method, for each seed."""
    for cell in table.cells(root):
        key = (cell.task.name, cell.method.name)
        if (*key, cell.seed) not in without:
            write_run(cell, scores[key][cell.seed])
