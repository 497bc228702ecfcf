"""The learning curves of a run, by subject: from the rows of its CSV files to charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from deflow_vision.analysis.episodes import return_by_step, success_by_step, wilson
from deflow_vision.analysis.report.charts import Chart, Line, turn_online

EPISODE_GROUPS, EPISODES_A_GROUP = 20, 5
"""The success of online episodes is a rate over several: at most how many, and of how many."""

REST = "Everything else that was logged"
"""The subject that is folded away."""

Q_KEYS = ("critic/q_mean", "critic/q_min", "critic/q_max")


def chart_groups(
    train: pd.DataFrame, episodes: pd.DataFrame, config: Mapping[str, Any]
) -> dict[str, list[Chart]]:
    """All that was measured, each key in one chart.

    Args:
        train: the rows of `train.csv`.
        episodes: the rows of `episodes.csv`.
        config: the run's.

    Returns:
        Subject -> its charts; a subject without charts is left out.
    """
    turn = turn_online(config.get("offline_steps") or 0, config.get("online_steps") or 0)
    drawer = _Drawer(train, episodes, config.get("agent") or {}, turn)
    groups = {
        "Evaluation": [*drawer.evaluation()],
        "Online episodes": [*drawer.online()],
        "Trust region": [*drawer.trust_region()],
        "Q": [*drawer.values()],
        "Losses": [*drawer.losses()],
        "Time": [*drawer.times()],
        REST: [*drawer.others()],  # the last: what nothing else has drawn
    }
    return {subject: charts for subject, charts in groups.items() if charts}


class _Drawer:
    """Makes the charts, and knows which keys have been drawn."""

    def __init__(
        self,
        train: pd.DataFrame,
        episodes: pd.DataFrame,
        agent: Mapping[str, Any],
        turn: tuple[float, str] | None,
    ) -> None:
        self._train, self._episodes, self._agent, self._turn = train, episodes, agent, turn
        steps = [
            float(step) for rows in (train, episodes) if "step" in rows for step in rows["step"]
        ]
        self._span = (min(steps), max(steps)) if steps else ()
        # The means of what episodes.csv has in full, and what never changes.
        self._drawn = {"step", "time/steps_per_second", "eval/episodes", "eval/capped"}
        self._drawn |= {"eval/success", "eval/return", "online/episodes", "online/buffer_size"}

    def evaluation(self) -> Iterator[Chart]:
        rows = self._episodes
        cut = "Episodes were cut short of the task's limit." if _any(rows, "capped") else ""
        if len(found := success_by_step(rows)):
            line = _with_interval("success", found, "rate")
            least, most = found["episodes"].min(), found["episodes"].max()
            number = f"{least}" if least == most else f"{least} to {most}"
            note = f"95% interval (Wilson) over {number} episodes an evaluation. {cut}"
            yield self._chart("Success", [line], "episodes won [%]", bounds=(0, 100), note=note)
        if "return" in rows:
            line = _with_interval("return", return_by_step(rows), "mean")
            note = f"95% interval of the mean. {cut}"
            yield self._chart("Return", [line], "mean sum of rewards", note=note)
        if lines := self._lines(("eval/normalized_score", "score")):
            yield self._chart("Normalized score", lines, "100 is the expert's")
        if lines := self._lines(("eval/length", "length")):
            yield self._chart("Episode length", lines, "steps")

    def online(self) -> Iterator[Chart]:
        self._drawn.add("online/success")
        rows = self._train.dropna(subset=[k for k in ["online/success"] if k in self._train])
        if "online/success" in rows and len(rows):
            number = min(EPISODE_GROUPS, max(1, len(rows) // EPISODES_A_GROUP))
            groups = np.array_split(np.arange(len(rows)), number)
            ended = rows["online/success"].to_numpy()
            wins = np.array([ended[group].sum() for group in groups])
            counts = np.array([len(group) for group in groups])
            low, high = wilson(wins, counts)
            steps = np.array([rows["step"].iloc[group].max() for group in groups], float)
            line = Line("success", steps, 100 * wins / counts, 100 * low, 100 * high, True)
            size = "" if len(groups) == 1 else "about "
            size += f"{len(rows) / len(groups):.0f}"
            note = f"95% interval (Wilson) over {size} episodes a point."
            yield self._chart(
                "Success while training", [line], "episodes won [%]", bounds=(0, 100), note=note
            )
        for key, title, unit in (
            ("return", "Return while training", "sum of rewards"),
            ("length", "Episode length while training", "steps"),
            ("env_steps", "Steps of the environment", "steps"),
        ):
            if lines := self._lines((f"online/{key}", key)):
                yield self._chart(title, lines, unit)

    def trust_region(self) -> Iterator[Chart]:
        delta = self._agent.get("target_divergence")
        delta = delta if isinstance(delta, float) else None
        if lines := self._both("actor/divergence"):
            yield self._chart(
                "Mean squared refinement D",
                lines,
                log=True,
                level=None if delta is None else (delta, f"δ = {delta:g}"),
                note="" if delta is None else "δ is agent.target_divergence.",
            )
        if lines := self._both("alpha/value"):
            yield self._chart("Multiplier \N{GREEK SMALL LETTER ALPHA}", lines, log=True)

    def values(self) -> Iterator[Chart]:
        lines = []
        for split, name in (("train", "training"), ("val", "validation")):
            keys = [f"{split}/{key}" for key in Q_KEYS]
            if keys[0] not in self._train:
                continue
            rows = self._train.dropna(subset=keys[:1])
            low, high = (rows[key].to_numpy(float) if key in rows else None for key in keys[1:])
            mean = rows[keys[0]].to_numpy(float)
            dots = split == "val"
            lines.append(Line(name, rows["step"].to_numpy(float), mean, low, high, dots))
            self._drawn |= set(keys)
        if lines:
            note = "Mean of a batch, and its least and greatest value."
            yield self._chart("Q of the data's actions", lines, "discounted return", note=note)
        for key in self._names():
            if key.split("/")[-1].startswith("q") and "loss" not in key:
                yield self._chart(key, self._both(key))

    def losses(self) -> Iterator[Chart]:
        for key in self._names():
            if key.endswith(("/loss", "_loss")):
                lines = self._both(key)
                values = np.concatenate([line.y for line in lines])
                wide = bool((values > 0).all()) and values.max() > 20 * np.median(values)
                yield self._chart(key.removesuffix("/loss"), lines, "loss", log=wide)

    def times(self) -> Iterator[Chart]:
        if lines := self._lines(("time/step_seconds", "time"), scale=1000):
            note = f"Median {np.median(lines[0].y):.3g} ms, evaluations left out."
            yield self._chart("Time of an update", lines, "ms", bounds=(0,), note=note)
        shares = [("time/data_wait", "waiting for data"), ("time/collect", "collecting")]
        if lines := self._lines(*shares, scale=100):
            # A chart of one line has no legend.
            what = f" {lines[0].name}" if len(lines) == 1 else ""
            yield self._chart(f"Share of the time{what}", lines, "%", bounds=(0,))

    def others(self) -> Iterator[Chart]:
        for key in self._names():
            yield self._chart(key, self._both(key))
        for key in map(str, self._train.columns):
            if key not in self._drawn and (lines := self._lines((key, key))):
                yield self._chart(key, lines)

    def _names(self) -> list[str]:
        """Keys of updates that are not drawn yet, without train/ or val/."""
        keys = map(str, self._train.columns)
        waiting = [k for k in keys if k.startswith(("train/", "val/")) and k not in self._drawn]
        return list(dict.fromkeys(key.partition("/")[2] for key in waiting))

    def _both(self, key: str) -> list[Line]:
        """One key on training and on validation batches."""
        return self._lines((f"train/{key}", "training"), (f"val/{key}", "validation"))

    def _lines(self, *named: tuple[str, str], scale: float = 1) -> list[Line]:
        lines = []
        for key, name in named:
            self._drawn.add(key)
            if key in self._train and (rows := self._train.dropna(subset=[key])).size:
                dots = key.startswith(("val/", "eval/"))
                steps, values = (rows[name].to_numpy(float) for name in ("step", key))
                lines.append(Line(name, steps, scale * values, dots=dots))
        return lines

    def _chart(self, title: str, lines: list[Line], unit: str = "", **more: Any) -> Chart:
        return Chart(title, lines, unit, turn=self._turn, span=self._span, **more)


def _with_interval(name: str, found: pd.DataFrame, column: str) -> Line:
    values, low, high = (found[each].to_numpy(float) for each in (column, "low", "high"))
    return Line(name, found.index.to_numpy(float), values, low, high, dots=True)


def _any(rows: pd.DataFrame, column: str) -> bool:
    return column in rows and bool(rows[column].any())
