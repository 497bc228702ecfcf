"""What is measured of a run, by the rules of its benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from deflow_vision.config import TrainConfig
from deflow_vision.tasks import Task
from deflow_vision.types import UserError

LAST_EVALUATIONS = 3
"""OGBench's score is the mean over as many evaluations, the last ones of a run."""


@dataclass(frozen=True)
class Protocol:
    """A measure of a run.

    Attributes:
        unit: what the figures are.
        phases: what each figure of a run is called; one figure, the last, ranks methods.
        column: of `train.csv`, which a finished run has in the row of its last update.
        measure: the figures, from the rows of `train.csv`.
        lower_is_better: whether the least is best.
    """

    unit: str
    phases: tuple[str, ...]
    column: Callable[[Task], str]
    measure: Callable[[pd.DataFrame, Task, TrainConfig], tuple[float, ...]]
    lower_is_better: bool = False


def score_column(task: Task) -> str:
    """The column that holds a task's score: success for OGBench, D4RL's normalized score."""
    return "eval/normalized_score" if task.suite == "d4rl" else "eval/success"


def score_at(rows: pd.DataFrame, task: Task, step: int) -> float:
    """The score, in percent, of the evaluation after `step` updates.

    Raises:
        UserError: there was none.
    """
    return _last_scores(rows[rows["step"] == step], task, 1, f"after {step:,} updates")


def final_score(rows: pd.DataFrame, task: Task, config: TrainConfig) -> tuple[float]:
    """The score of an offline run, in percent: never its best evaluation.

    Args:
        rows: of `train.csv`.
        task: OGBench's are scored by the mean of the last three evaluations, D4RL's by the last.
        config: the run's.

    Raises:
        UserError: an OGBench run has fewer evaluations after its first update.
    """
    if task.suite == "d4rl":
        return (score_at(rows, task, config.offline_steps),)
    trained = rows[(rows["step"] > 0) & (rows["step"] <= config.offline_steps)]
    return (_last_scores(trained, task, LAST_EVALUATIONS, "after its first update"),)


def both_scores(rows: pd.DataFrame, task: Task, config: TrainConfig) -> tuple[float, float]:
    """The scores, in percent, at the end of the offline phase and at the end of the run."""
    turn, last = config.offline_steps, config.offline_steps + config.online_steps
    return score_at(rows, task, turn), score_at(rows, task, last)


def update_milliseconds(rows: pd.DataFrame, task: Task, config: TrainConfig) -> tuple[float]:
    """The median time of an update, in ms, without the first row, in which things warm up."""
    seconds = rows["time/step_seconds"].dropna().iloc[1:]
    if seconds.empty:
        raise UserError("train.csv has one row of times: lower log.every, the first does not count")
    return (1000 * float(seconds.median()),)


def _last_scores(rows: pd.DataFrame, task: Task, count: int, when: str) -> float:
    column = score_column(task)
    scores = rows[column].dropna() if column in rows else pd.Series(dtype=float)
    if len(scores) < count:
        raise UserError(
            f"train.csv has {len(scores)} evaluations {when}, the score of {task.name} takes "
            f"{count}: evaluate more often (eval.every)"
        )
    percent = 1 if task.suite == "d4rl" else 100
    return percent * float(scores.iloc[-count:].mean())


PROTOCOLS = {
    "offline": Protocol("score", ("",), score_column, final_score),
    "offline-to-online": Protocol("score", ("offline", "online"), score_column, both_scores),
    "timing": Protocol(
        "ms an update", ("",), lambda task: "time/step_seconds", update_milliseconds, True
    ),
}
"""By their names in a table's file."""
