"""Tests of the pictures of a run."""

import imageio.v3 as iio
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from deflow_vision.analysis import plots
from deflow_vision.analysis.plots import learning_curves
from deflow_vision.analysis.tables import read_table
from deflow_vision.training.logger import RunLogger
from deflow_vision.types import UserError

METRICS = {
    "train/critic/loss": 2.0,
    "train/actor/q_loss": -1.0,
    "train/alpha/loss": 0.01,
    "train/actor/divergence": 0.002,
    "train/alpha/value": 20.0,
    "train/critic/q_mean": -90.0,
    "train/critic/q_min": -150.0,
    "train/critic/q_max": -10.0,
    "time/steps_per_second": 300.0,
    "time/data_wait": 0.01,
}


@pytest.fixture
def run_dir(tmp_path):
    with RunLogger(tmp_path) as logger:
        for step in (10, 20, 30):
            logger.log(step, METRICS)
        logger.log(30, {"val/critic/loss": 3.0})
        for step, wins in ((0, 1), (30, 3)):
            logger.log_episodes(
                [
                    {"step": step, "episode": i, "success": i < wins, "return": -i, "capped": False}
                    for i in range(4)
                ]
            )
    config = {"task": "t", "algo": "deflow", "seed": 3, "agent": {"target_divergence": 0.001}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def drawn(run_dir, monkeypatch):
    """The axes of the figure by title, instead of a file."""
    figures = []

    def keep(figure, path):
        figures.append(figure)
        return path

    monkeypatch.setattr(plots, "save_figure", keep)
    learning_curves(run_dir)
    (figure,) = figures
    assert isinstance(figure, Figure)
    return {axis.get_title(loc="left"): axis for axis in figure.axes}


def test_the_curves_are_written_into_the_run_folder(run_dir):
    (path,) = learning_curves(run_dir)
    assert path == run_dir / "plots" / "learning_curves.png"
    picture = iio.imread(path)
    assert picture.shape[0] > 500
    assert picture.std() > 5
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_everything_measured_has_a_panel(run_dir, monkeypatch):
    assert list(drawn(run_dir, monkeypatch)) == [
        "Success, 95 % interval",
        "Return, 95 % interval",
        "Divergence D, target 0.001",
        r"Multiplier $\alpha$",
        "Q of the data, mean and range of a batch",
        "Loss: critic/loss",
        "Loss: actor/q_loss",
        "Rate, median 300/s, data wait 1.0 %",
    ]


def test_success_is_shown_with_its_counts(run_dir, monkeypatch):
    axis = drawn(run_dir, monkeypatch)["Success, 95 % interval"]
    assert axis.lines[0].get_xydata().tolist() == [[0, 25], [30, 75]]
    assert [text.get_text() for text in axis.texts] == ["1/4", "3/4"]


def test_episodes_that_were_cut_short_are_named(run_dir, monkeypatch):
    table = read_table(run_dir / "episodes.csv").assign(capped=1)
    table.to_csv(run_dir / "episodes.csv", index=False)
    assert "Success, 95 % interval (episodes cut short)" in drawn(run_dir, monkeypatch)


def test_the_divergence_is_on_a_log_scale_beside_its_target(run_dir, monkeypatch):
    axis = drawn(run_dir, monkeypatch)["Divergence D, target 0.001"]
    assert axis.get_yscale() == "log"
    assert axis.lines[1].get_ydata() == [0.001, 0.001]


def test_validation_is_drawn_beside_training(run_dir, monkeypatch):
    axis = drawn(run_dir, monkeypatch)["Loss: critic/loss"]
    assert [line.get_xydata().tolist() for line in axis.lines] == [
        [[10, 2], [20, 2], [30, 2]],
        [[30, 3]],
    ]


def test_every_panel_names_its_axes(run_dir, monkeypatch):
    for title, axis in drawn(run_dir, monkeypatch).items():
        assert axis.get_xlabel() == "gradient steps"
        assert axis.get_ylabel() or title.startswith(("Loss", "Multiplier"))


def test_a_run_without_episodes_and_configuration_is_drawn(run_dir):
    (run_dir / "episodes.csv").unlink()
    (run_dir / "config.yaml").unlink()
    assert learning_curves(run_dir)[0].exists()


def test_a_run_of_one_row_is_drawn(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.log(1, {"train/critic/loss": 1.0})
    assert learning_curves(tmp_path)[0].exists()


def test_a_line_that_is_being_written_is_left_out(run_dir):
    path = run_dir / "train.csv"
    whole = read_table(path)
    path.write_text(path.read_text() + "40,1.")
    pd.testing.assert_frame_equal(read_table(path), whole)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no .*train\.csv"):
        learning_curves(tmp_path)


def test_a_run_with_nothing_that_is_drawn_is_refused(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.log(1, {"eval/length": 1.0})
    with pytest.raises(UserError, match="nothing yet"):
        learning_curves(tmp_path)


def test_a_run_without_rows_is_refused(run_dir):
    (run_dir / "train.csv").write_text("step,train/critic/loss\n")
    with pytest.raises(UserError, match="no rows yet"):
        learning_curves(run_dir)
