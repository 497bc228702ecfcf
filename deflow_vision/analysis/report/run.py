"""The report of a run: its curves, videos, configuration and origin, on one page."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from deflow_vision.analysis.episodes import return_by_step, success_by_step
from deflow_vision.analysis.report.axes import number
from deflow_vision.analysis.report.charts import draw
from deflow_vision.analysis.report.curves import REST, chart_groups
from deflow_vision.analysis.report.dataset import dataset_card
from deflow_vision.analysis.report.page import without_secrets, write_page
from deflow_vision.analysis.report.settings import Section, sections_of
from deflow_vision.analysis.tables import read_table
from deflow_vision.types import UserError

FILES = ("config.yaml", "environment.json", "train.csv", "episodes.csv")
"""A folder with none of them holds no run."""
VIDEO_BYTES = 24 * 2**20
"""Of the videos that a page holds, the newest first; a page of more is slow to open."""


@dataclass
class Folder:
    """What can be read of a run folder, and what is missing."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    train: pd.DataFrame = field(default_factory=pd.DataFrame)
    episodes: pd.DataFrame = field(default_factory=pd.DataFrame)
    missing: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Updates that the run is to have."""
        return int(self.config.get("offline_steps") or 0) + int(
            self.config.get("online_steps") or 0
        )

    @property
    def done(self) -> int:
        """Updates that it has had, as far as its log tells."""
        return int(self.train["step"].max()) if "step" in self.train else 0


def write_run_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, from what is there; what is missing is named.

    Args:
        run_dir: the folder, of a run that may be unfinished, broken, or still going on.

    Returns:
        The file.

    Raises:
        UserError: the folder holds no run.
    """
    folder = read_folder(run_dir)
    videos, left_out = _videos(folder)
    missing = [*folder.missing]
    if left_out:
        missing.append(
            f"{left_out} of {left_out + len(videos)} videos, so that the page opens quickly: the "
            f"newest are shown, all are in {run_dir / 'videos'}"
        )
    if folder.steps and folder.done < folder.steps:
        missing.insert(0, f"the run is not finished: {folder.done:,} of {folder.steps:,} updates")
    groups = chart_groups(folder.train, folder.episodes, folder.config)
    return write_page(
        run_dir / "report.html",
        "run.html",
        title=_title(folder),
        subtitle=str(run_dir.resolve()),
        figures=dict(_figures(folder)),
        missing=missing,
        groups={
            subject: [drawing for chart in charts if (drawing := draw(chart)) is not None]
            for subject, charts in groups.items()
        },
        folded=REST,
        videos=videos,
        evaluations=_evaluations(run_dir),
        sections=_settings(folder),
        commands=list(_commands(folder)),
        record=folder.record,
        dataset=dataset_card(folder.record.get("dataset")),
    )


def read_folder(run_dir: Path) -> Folder:
    """Read what there is of a run.

    Raises:
        UserError: the folder holds no run.
    """
    if not any((run_dir / name).is_file() for name in FILES):
        raise UserError(
            f"{run_dir} is no run folder: it has none of {', '.join(FILES)}. Give the folder that "
            "scripts/train.py named at its end."
        )
    folder = Folder(run_dir)
    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "config.yaml": ("config", _read_config),
        "environment.json": ("record", lambda path: _mapping(json.loads(path.read_text()))),
        "train.csv": ("train", read_table),
        "episodes.csv": ("episodes", read_table),
    }
    for name, (attribute, read) in readers.items():
        if not (run_dir / name).is_file():
            if name == "episodes.csv" and folder.config.get("eval", {}).get("episodes") == 0:
                continue  # none were asked for
            folder.missing.append(f"{name} is not there")
            continue
        try:
            setattr(folder, attribute, read(run_dir / name))
        except (ValueError, yaml.YAMLError, OSError) as error:
            folder.missing.append(f"{name} cannot be read: {error}")
    return folder


def _read_config(path: Path) -> dict[str, Any]:
    return _mapping(yaml.safe_load(path.read_text()))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__}, not settings by name")
    return value


def _title(folder: Folder) -> str:
    if not folder.config:
        return folder.path.name
    words = [folder.config.get("algo"), folder.config.get("task")]
    return " · ".join([*map(str, words), f"seed {folder.config.get('seed')}"])


def _figures(folder: Folder) -> Iterator[tuple[str, tuple[str, str]]]:
    """What a run came to, each with a word on how it was measured."""
    rows = folder.episodes
    if len(found := success_by_step(rows)):
        last = found.iloc[-1]
        about = f"of {last['episodes']:.0f} episodes after {found.index[-1]:,} updates; "
        about += f"95% interval {last['low']:.0f} to {last['high']:.0f}%"
        yield "Success, last evaluation", (f"{last['rate']:.0f}%", about)
        rates = found.loc[found.index > 0, "rate"]
        if len(rates) >= 3:
            mean = f"{rates.iloc[-3:].mean():.0f}%"
            yield "Success, last three", (mean, "mean of the last three evaluations")
    elif "return" in rows and len(rows):
        last = return_by_step(rows).iloc[-1]
        about = f"of {last['episodes']:.0f} episodes"
        yield "Return, last evaluation", (number(float(last["mean"])), about)
    of = f"of {folder.steps:,}" if folder.steps else ""
    yield "Updates", (f"{folder.done:,}", of)
    if "time/step_seconds" in folder.train and folder.train["time/step_seconds"].notna().any():
        median = 1000 * float(folder.train["time/step_seconds"].median())
        yield "Time of an update", (f"{median:.3g} ms", "median, evaluations left out")


def _videos(folder: Folder) -> tuple[list[dict[str, str]], int]:
    """Videos as data URIs, by step and episode, and how many are left out."""
    found = []
    for path in folder.path.glob("videos/*.mp4"):
        words = path.stem.split("_")  # step_600_episode_0
        if len(words) == 4 and words[1].isdigit() and words[3].isdigit():
            found.append((int(words[1]), int(words[3]), path))
    found.sort(key=lambda each: (-each[0], each[1]))
    videos, size = [], 0
    for step, episode, path in found:
        size += path.stat().st_size
        if size > VIDEO_BYTES:
            break
        data = base64.b64encode(path.read_bytes()).decode()
        label = f"{step:,} updates, episode {episode}"
        outcome = _outcome(folder.episodes, step, episode)
        videos.append({"label": label, "outcome": outcome, "data": data})
    return videos, len(found) - len(videos)


def _outcome(episodes: pd.DataFrame, step: int, episode: int) -> str:
    if not {"step", "episode", "return", "length"} <= set(episodes):
        return ""
    rows = episodes[(episodes["step"] == step) & (episodes["episode"] == episode)]
    if rows.empty:
        return ""
    row = rows.iloc[-1]
    known = "success" in rows and pd.notna(row["success"])
    won = ("success, " if row["success"] else "no success, ") if known else ""
    return f"{won}return {number(float(row['return']))}, {row['length']:.0f} steps"


def _evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """What `scripts/evaluate.py` found."""
    found = []
    for path in sorted((run_dir / "evaluations").glob("*/evaluation.json")):
        try:
            values = _mapping(json.loads(path.read_text()))
        except (ValueError, OSError):
            values = {"cannot be read": str(path)}
        found.append({"name": path.parent.name, "values": values})
    return found


def _settings(folder: Folder) -> list[Section]:
    return sections_of(without_secrets(folder.config)) if folder.config else []


def _commands(folder: Folder) -> Iterator[tuple[str, str]]:
    """What to type to have this run again, with a word on each command."""
    commit = str(folder.record.get("git_commit") or "")
    if commit:
        changed = " (it had uncommitted changes, which no commit has)" if " " in commit else ""
        yield f"The code{changed}", f"git checkout {commit.split()[0]}"
    for index, started in enumerate([folder.record, *folder.record.get("resumed", [])]):
        if isinstance(argv := started.get("command"), list):
            what = "As it was started" if index == 0 else f"As it was resumed, time {index}"
            yield what, "python " + shlex.join(map(str, without_secrets(argv)))
    if folder.config:
        yield (
            "From the resolved configuration, in a folder of its own",
            f"python scripts/train.py --config {shlex.quote(str(folder.path / 'config.yaml'))} "
            "--run-dir runs/again",
        )
