"""Tests of the curves of several runs in one picture."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from deflow_vision.analysis import comparison
from deflow_vision.analysis.comparison import COLORS, compare_runs
from deflow_vision.training.logger import RunLogger
from deflow_vision.types import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path):
    """Two runs: one offline for 20 steps and then online, one without a multiplier."""
    for name, scale in (("deflow", 1.0), ("fql", 2.0)):
        with RunLogger(tmp_path / name) as logger:
            for step in range(1, 41):
                metrics = {"train/critic/q_mean": -scale * step}
                if name == "deflow":
                    metrics |= {"train/alpha/value": 5.0, "train/actor/divergence": 0.002}
                if step > 20:
                    metrics["online/success"] = step % 2
                logger.log(step, metrics)
            logger.log_episodes(
                [{"step": 40, "episode": i, "success": i < scale, "return": -i} for i in range(4)]
            )
        agent = {"target_divergence": 0.001} if name == "deflow" else {}
        config = {"offline_steps": 20, "online_steps": 20, "agent": agent}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    return [tmp_path / "deflow", tmp_path / "fql"]


def drawn(monkeypatch, *args, **kwargs):
    """The axes of the figure by title, instead of a file."""
    figures = []
    monkeypatch.setattr(comparison, "save_figure", lambda figure, path: figures.append(figure))
    compare_runs(*args, **kwargs)
    return {axis.get_title(loc="left"): axis for axis in figures[0].axes}, figures[0]


def curve(axis, color):
    (line,) = [line for line in axis.lines if line.get_color() == color]
    return line.get_xdata(), line.get_ydata()


def test_a_panel_has_a_line_for_each_run_that_knows_the_quantity(runs, monkeypatch, tmp_path):
    axes, figure = drawn(monkeypatch, runs, tmp_path / "x.png")
    assert list(axes)[1:] == ["online/success", "actor/divergence", "alpha/value", "critic/q_mean"]
    steps, values = curve(axes["critic/q_mean"], COLORS[1])
    assert np.array_equal(values, -2.0 * steps)
    assert COLORS[1] not in [line.get_color() for line in axes["alpha/value"].lines]
    assert [text.get_text() for text in figure.legends[0].texts] == ["deflow", "fql"]


def test_success_is_the_share_of_episodes_won(runs, monkeypatch, tmp_path):
    axes, _ = drawn(monkeypatch, runs, tmp_path / "x.png")
    success = axes["Success in evaluations, 95 % interval"]
    assert [curve(success, color)[1].tolist() for color in COLORS[:2]] == [[25.0], [50.0]]


def test_collected_episodes_are_averaged_over_ten_rows(runs, monkeypatch, tmp_path):
    axes, _ = drawn(monkeypatch, runs, tmp_path / "x.png")
    assert curve(axes["online/success"], COLORS[0])[1][-1] == 0.5


def test_the_start_of_collecting_and_the_divergence_to_hold_are_marked(runs, monkeypatch, tmp_path):
    axes, _ = drawn(monkeypatch, runs, tmp_path / "x.png")
    marks = {
        title: [
            (line.get_linestyle(), float(np.ravel(line.get_xdata())[0]), line.get_ydata()[0])
            for line in axis.lines
            if line.get_linestyle() in (":", "--")
        ]
        for title, axis in axes.items()
    }
    assert all((":", 20.0, 0) in found for found in marks.values())
    assert ("--", 0.0, 0.001) in marks["actor/divergence"]
    assert len(marks["alpha/value"]) == 1


def test_columns_are_chosen_and_smoothed(runs, monkeypatch, tmp_path):
    axes, _ = drawn(monkeypatch, runs, tmp_path / "x.png", ["train/critic/q_mean"], smooth=3)
    assert list(axes)[1:] == ["critic/q_mean"]
    assert curve(axes["critic/q_mean"], COLORS[0])[1][-1] == -39.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["train/flow/loss"]}, "no run has train/flow/loss; they have online/success"),
        ({"twice": True}, "no name twice"),
    ],
)
def test_what_cannot_be_drawn_is_refused(runs, tmp_path, change, message):
    chosen = [*runs, runs[0]] if change.pop("twice", False) else runs
    with pytest.raises(UserError, match=message):
        compare_runs(chosen, tmp_path / "x.png", **change)


def test_the_script_draws_a_picture(runs, tmp_path):
    command = [
        sys.executable,
        "scripts/compare.py",
        *map(str, runs),
        "--to",
        str(tmp_path / "c.png"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
