"""What a table's run folders come to: figures, categories, aggregates; with what is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deflow_vision.benchmark.published import Estimate
from deflow_vision.benchmark.runs import figures_of, state_of
from deflow_vision.benchmark.statistics import (
    bootstrap_interval,
    interquartile_mean,
    mean_and_std,
    probability_of_improvement,
)
from deflow_vision.benchmark.tables import Cell, Table
from deflow_vision.tasks import Task
from deflow_vision.types import UserError

log = logging.getLogger(__name__)

NEAR_BEST = 0.95
"""Share of the best value from which on a value is set in bold."""


@dataclass(frozen=True)
class Entry:
    """What a method came to in a row.

    Attributes:
        figures: of each finished seed, (seeds, phases); of a category empty until all is finished.
        done: finished runs.
        wanted: all runs.
    """

    figures: np.ndarray
    done: int
    wanted: int

    @property
    def complete(self) -> bool:
        """Whether no run is missing."""
        return self.done == self.wanted

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """Over the seeds that are there, for each phase; empty where there are none."""
        return tuple(Estimate(*mean_and_std(phase)) for phase in self.figures.T)


@dataclass(frozen=True)
class Row:
    """A task or a category.

    Attributes:
        name: its own.
        ours: by method.
        published: by method, where a figure was published.
    """

    name: str
    ours: Mapping[str, Entry]
    published: Mapping[str, tuple[Estimate, ...]]


@dataclass(frozen=True)
class Aggregate:
    """A statistic of a method over all tasks and seeds, with its 95% interval.

    Attributes:
        value: the statistic.
        low: the interval's lower end; None where one seed gives none.
        high: its upper end.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Summary:
    """Aggregates over the tasks of one kind.

    Attributes:
        title: which tasks, and how many seeds.
        iqm: interquartile mean by method; None where runs are missing.
        improvement: how likely the table's first method is better than this one, likewise.
    """

    title: str
    iqm: Mapping[str, Aggregate | None]
    improvement: Mapping[str, Aggregate | None]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        cell: the run.
        state: missing, interrupted, finished, or failed, for a folder that cannot be used.
        figures: what it scored, in the table's unit; empty where it is not finished.
        problem: why the folder cannot be used.
    """

    cell: Cell
    state: str
    figures: tuple[float, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Results:
    """All that a table shows.

    Attributes:
        table: what was to be run.
        outcomes: of every run.
        rows: a row a task.
        categories: a row a category.
        summaries: aggregates.
    """

    table: Table
    outcomes: Sequence[Outcome]
    rows: Sequence[Row]
    categories: Sequence[Row]
    summaries: Sequence[Summary]


def collect(table: Table, root: Path) -> Results:
    """Read the run folders of a table.

    A folder that cannot be used counts as a missing run, and is warned of.

    Args:
        table: the table.
        root: the folder of all tables' runs.
    """
    outcomes = [_outcome(cell, table) for cell in table.cells(root)]
    entries: dict[tuple[Task, str], list[tuple[float, ...]]] = {}
    for outcome in outcomes:
        key = (outcome.cell.task, outcome.cell.method.name)
        entries.setdefault(key, []).append(outcome.figures)

    def entry(task: Task, method: str) -> Entry:
        seeds = entries[task, method]
        done = [figures for figures in seeds if figures]
        phases = len(table.protocol.phases)
        return Entry(np.array(done).reshape(-1, phases), len(done), len(seeds))

    by_task = {
        task: {m.name: entry(task, m.name) for m in table.methods if m.runs_on(task)}
        for task in table.tasks
    }
    rows = [Row(task.name, ours, _published(table, task.name)) for task, ours in by_task.items()]
    categories = [
        Row(name, _category([by_task[task] for task in tasks]), _published(table, name))
        for name, tasks in table.categories.items()
    ]
    summaries = [] if table.protocol.lower_is_better else _summaries(by_task)
    return Results(table, outcomes, rows, categories, summaries)


def near_best(values: Mapping[str, float], lower_is_better: bool) -> set[str]:
    """The names whose value is within 95% of the best one, that one among them."""
    if not values:
        return set()
    best = min(values.values()) if lower_is_better else max(values.values())
    slack = (1 - NEAR_BEST) * abs(best) + 1e-9
    return {name for name, value in values.items() if abs(value - best) <= slack}


def _outcome(cell: Cell, table: Table) -> Outcome:
    try:
        state = state_of(cell, table.protocol)
        figures = figures_of(cell, table.protocol) if state == "finished" else ()
    except UserError as error:
        log.warning("%s counts as missing: %s", cell.name, error)
        return Outcome(cell, "failed", problem=str(error))
    return Outcome(cell, state, figures)


def _published(table: Table, row: str) -> dict[str, tuple[Estimate, ...]]:
    """The published figures of a row, by method; an earlier table's win."""
    found: dict[str, tuple[Estimate, ...]] = {}
    for published in table.published:
        for method in table.methods:
            if (figures := published.figures.get((row, method.name))) is not None:
                found.setdefault(method.name, figures)
    return found


def _category(tasks: Sequence[Mapping[str, Entry]]) -> dict[str, Entry]:
    """The mean over tasks of each seed, of the methods that run on all of them."""
    methods = [name for name in tasks[0] if all(name in ours for ours in tasks)]
    return {name: _mean_over_tasks([ours[name] for ours in tasks]) for name in methods}


def _mean_over_tasks(entries: Sequence[Entry]) -> Entry:
    done = sum(entry.done for entry in entries)
    wanted = sum(entry.wanted for entry in entries)
    figures = entries[0].figures[:0]
    if done == wanted:
        figures = np.mean([entry.figures for entry in entries], axis=0)
    return Entry(figures, done, wanted)


def _summaries(by_task: Mapping[Task, Mapping[str, Entry]]) -> list[Summary]:
    """Aggregates from state and from pixels apart, which differ in their seeds."""
    summaries = []
    for kind in ("state", "pixels"):
        ours = [entry for task, entry in by_task.items() if task.pixels == (kind == "pixels")]
        methods = list(ours[0]) if ours else []
        if not methods:
            continue
        scores = {name: _scores([entry[name] for entry in ours]) for name in methods}
        first = scores[methods[0]]
        seeds = ours[0][methods[0]].wanted
        summaries.append(
            Summary(
                f"from {kind}: {len(ours)} tasks, {seeds} seeds",
                {name: _aggregate(interquartile_mean, scores[name]) for name in methods},
                {
                    name: _aggregate(probability_of_improvement, first, scores[name])
                    for name in methods[1:]
                },
            )
        )
    return summaries


def _scores(entries: Sequence[Entry]) -> np.ndarray | None:
    """The last figure of each run, (R, T); None where runs are missing."""
    if not all(entry.complete for entry in entries):
        return None
    return np.stack([entry.figures[:, -1] for entry in entries], axis=1)


def _aggregate(statistic: Callable[..., float], *groups: np.ndarray | None) -> Aggregate | None:
    known = [scores for scores in groups if scores is not None]
    if len(known) < len(groups):
        return None
    if any(len(scores) < 2 for scores in known):
        return Aggregate(statistic(*known), None, None)
    return Aggregate(statistic(*known), *bootstrap_interval(statistic, *known))
