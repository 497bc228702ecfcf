"""The report of a table: its figures to sort, aggregates and learning curves, and every run."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from deflow_vision.analysis.report.charts import (
    Chart,
    Drawing,
    Interval,
    Line,
    draw,
    draw_intervals,
    turn_online,
)
from deflow_vision.analysis.report.page import without_secrets, write_page
from deflow_vision.analysis.tables import read_table
from deflow_vision.benchmark.render import (
    MARKDOWN,
    columns_of,
    entry_text,
    estimates_text,
    improvement_title,
    legend_of,
)
from deflow_vision.benchmark.results import Aggregate, Outcome, Results, Row, collect, near_best
from deflow_vision.benchmark.statistics import mean_curve
from deflow_vision.benchmark.tables import Cell, Table
from deflow_vision.tasks import Task

log = logging.getLogger(__name__)

SCALES = {"eval/success": 100.0, "time/step_seconds": 1000.0}
"""From a column of `train.csv` to the unit of a table."""
_UNFINISHED = ("missing", "interrupted", "failed")


@dataclass(frozen=True)
class Figure:
    """A cell of the page's tables.

    Attributes:
        text: what is shown.
        sort: what the column is sorted by; empty where there is no figure.
        best: whether it is near the best of its row.
        published: whether it is not ours.
    """

    text: str
    sort: str = ""
    best: bool = False
    published: bool = False


@dataclass(frozen=True)
class Run:
    """A line of the list of runs.

    Attributes:
        outcome: what it came to.
        report: its own report, relative to the page; empty where it has none.
        command: that makes it.
    """

    outcome: Outcome
    report: str
    command: str


def write_table_report(table: Table, root: Path) -> Path:
    """Write `report.html` into a table's folder, from its run folders; it may be unfinished.

    Args:
        table: the table.
        root: the folder of all tables' runs.

    Returns:
        The file.
    """
    folder = root / table.name
    results = collect(table, root)
    cells = [outcome.cell for outcome in results.outcomes]
    states = Counter(outcome.state for outcome in results.outcomes)
    finished = states["finished"]
    missing = []
    if finished < len(cells):
        words = [f"{states[state]} {state}" for state in _UNFINISHED if states[state]]
        missing.append(
            f"{len(cells) - finished} of {len(cells)} runs ({', '.join(words)}): "
            f"python scripts/benchmark.py run {table.name}"
        )
    return write_page(
        folder / "report.html",
        "table.html",
        title=table.title,
        subtitle=str(folder.resolve()),
        figures={
            "Runs finished": (f"{finished}", f"of {len(cells)}"),
            "Tasks": (str(len(table.tasks)), ""),
            "Methods": (str(len(table.methods)), ", ".join(m.name for m in table.methods)),
        },
        missing=missing,
        legend=legend_of(results),
        tables=[
            (title, list(columns_of(rows, results)), [_line(row, rows, results) for row in rows])
            for title, rows in (("Tasks", results.rows), ("Categories", results.categories))
            if rows
        ],
        aggregates=[*_aggregates(results)],
        curves=[
            drawing
            for task in table.tasks
            if (drawing := _curves(task, [c for c in cells if c.task == task], table))
        ],
        sources=table.published,
        runs=[_run(outcome, folder) for outcome in results.outcomes],
    )


def _run(outcome: Outcome, folder: Path) -> Run:
    page = outcome.cell.run_dir / "report.html"
    report = os.path.relpath(page, folder) if page.is_file() else ""
    arguments = without_secrets(outcome.cell.arguments())
    return Run(outcome, report, shlex.join(["python", "scripts/train.py", *arguments]))


def _line(row: Row, rows: Sequence[Row], results: Results) -> tuple[str, list[Figure]]:
    """A row: its name, and for each column ours or the published figure."""
    complete = {name: e.estimates[-1].mean for name, e in row.ours.items() if e.complete}
    best = near_best(complete, results.table.protocol.lower_is_better)
    found = []
    for name, theirs in columns_of(rows, results):
        if theirs:
            estimates = row.published.get(name)
            text = MARKDOWN.dash if estimates is None else estimates_text(estimates, 0, MARKDOWN)
            sort = "" if estimates is None else str(estimates[-1].mean)
            found.append(Figure(text, sort, published=True))
        elif (entry := row.ours.get(name)) is None:
            found.append(Figure(MARKDOWN.dash))
        else:
            sort = str(entry.estimates[-1].mean) if len(entry.figures) else ""
            found.append(Figure(entry_text(entry, results, MARKDOWN), sort, name in best))
    return row.name, found


def _aggregates(results: Results) -> Iterator[tuple[str, list[Drawing]]]:
    """Of each kind of tasks, the aggregates that are complete."""
    colors = {method.name: i for i, method in enumerate(results.table.methods)}
    for summary in results.summaries:
        iqm, better = (
            [_interval(name, one, scale, colors[name]) for name, one in found.items() if one]
            for found, scale in ((summary.iqm, 1), (summary.improvement, 100))
        )
        first = improvement_title(results).removesuffix(" [95%]")
        drawings = [
            draw_intervals(
                "Interquartile mean", iqm, f"{results.table.protocol.unit}, 95% interval"
            ),
            draw_intervals(f"How likely {first}", better, "%, 95% interval", level=50),
        ]
        yield summary.title, [drawing for drawing in drawings if drawing is not None]


def _interval(name: str, found: Aggregate, scale: float, color: int) -> Interval:
    low, high = (None if end is None else scale * end for end in (found.low, found.high))
    return Interval(name, scale * found.value, low, high, color)


def _curves(task: Task, cells: Sequence[Cell], table: Table) -> Drawing | None:
    """Learning curves of a task, a line a method, over the seeds that there are."""
    protocol, methods = table.protocol, [method.name for method in table.methods]
    column = protocol.column(task)
    by_method: dict[str, list[pd.Series]] = {}
    for cell in cells:
        if (curve := _curve(cell, column)) is not None:
            by_method.setdefault(cell.method.name, []).append(SCALES.get(column, 1) * curve)
    if not by_method:
        return None
    lines = []
    for name, curves in by_method.items():
        frame = pd.concat(curves, axis=1).sort_index()
        mean, low, high = mean_curve(frame.to_numpy(float).T)
        line = Line(
            name, frame.index.to_numpy(float), mean, low, high, dots=True, color=methods.index(name)
        )
        lines.append(line if len(curves) > 1 else replace(line, low=None, high=None))
    seeds = sorted({len(curves) for curves in by_method.values()})
    interval = ", with a 95% interval by the bootstrap" if seeds[-1] > 1 else ""
    note = f"Mean over seeds ({' or '.join(map(str, seeds))}){interval}."
    config = cells[0].config()
    turn = turn_online(config.offline_steps, config.online_steps)
    bounds = (0.0,) if protocol.lower_is_better else (0.0, 100.0)
    return draw(Chart(task.name, lines, protocol.unit, bounds=bounds, turn=turn, note=note))


def _curve(cell: Cell, column: str) -> pd.Series | None:
    """The values of a column by step, None where the run has none."""
    path = cell.run_dir / "train.csv"
    if not path.is_file():
        return None
    try:
        rows = read_table(path)
    except ValueError as error:
        log.warning("%s has no curve: %s", cell.name, error)
        return None
    if not {"step", column} <= set(rows):
        return None
    values = rows.dropna(subset=[column]).drop_duplicates("step", keep="last")
    return values.set_index("step")[column] if len(values) else None
