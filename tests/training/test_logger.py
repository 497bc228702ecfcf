"""Tests of the run folder's CSV files and of their sinks."""

import csv
import math
import time
from pathlib import Path

import pytest

from deflow_vision.training import logger as module
from deflow_vision.training.logger import RunLogger
from deflow_vision.types import UserError

KEY = "0123456789abcdef" * 2 + "01234567"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def run_of_three_rows(run_dir):
    with RunLogger(run_dir) as logger:
        for step in (10, 20, 30):
            logger.log(step, {"train/critic/loss": step / 8})
            logger.log_episodes([{"step": step, "episode": i, "success": True} for i in range(2)])


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    logger = RunLogger(tmp_path / "run")
    logger.log(10, {"train/critic/loss": 0.1, "train/flow/loss": 2})
    assert (tmp_path / "run" / "train.csv").read_text() == (
        "step,train/critic/loss,train/flow/loss\n10,0.1,2.0\n"
    )


def test_columns_may_appear_later(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.log(10, {"train/critic/loss": 0.5})
        logger.log(20, {"eval/success": 1.0})
        logger.log(30, {"train/critic/loss": 0.25})
    assert rows_of(tmp_path / "train.csv") == [
        {"step": "10", "train/critic/loss": "0.5", "eval/success": ""},
        {"step": "20", "train/critic/loss": "", "eval/success": "1.0"},
        {"step": "30", "train/critic/loss": "0.25", "eval/success": ""},
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"train.csv"}


def test_values_keep_their_precision(tmp_path):
    values = {"a": 1 / 3, "b": -97.30000305175781, "c": math.inf, "d": math.nan}
    with RunLogger(tmp_path) as logger:
        logger.log(1, values)
    (row,) = rows_of(tmp_path / "train.csv")
    assert [float(row[key]) for key in "abc"] == [values[key] for key in "abc"]
    assert math.isnan(float(row["d"]))


def test_episodes_are_rows_with_truth_values_as_numbers(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.log_episodes(
            [
                {"step": 5, "episode": 0, "success": True, "return": -1.5, "task": "a, b"},
                {"step": 5, "episode": 1, "success": False, "return": -200.0, "task": "c"},
            ]
        )
    rows = rows_of(tmp_path / "episodes.csv")
    assert [row["success"] for row in rows] == ["1", "0"]
    assert rows[0]["task"] == "a, b"


@pytest.mark.parametrize("checkpoint", [20, 30])
def test_resuming_cuts_what_comes_after_the_checkpoint_and_an_evaluation_that_did_not_end(
    tmp_path, checkpoint
):
    with RunLogger(tmp_path) as logger:
        for step in (10, 20, 30):
            logger.log(step, {"train/critic/loss": step / 8})
            logger.log_episodes([{"step": step, "episode": 0}])
            if step < 30:
                logger.log(step, {"eval/success": 1.0})
    RunLogger(tmp_path, resume_step=checkpoint)
    assert [row["step"] for row in rows_of(tmp_path / "episodes.csv")] == ["10", "20"]
    assert rows_of(tmp_path / "train.csv")[-1]["step"] == str(checkpoint)


def test_resuming_before_the_first_checkpoint_cuts_every_row(tmp_path):
    run_of_three_rows(tmp_path)
    RunLogger(tmp_path, resume_step=-1)
    assert rows_of(tmp_path / "train.csv") == []


def test_a_resumed_run_writes_what_an_unbroken_one_writes(tmp_path):
    run_of_three_rows(tmp_path / "unbroken")
    run_of_three_rows(tmp_path / "broken")
    with RunLogger(tmp_path / "broken", resume_step=20) as logger:
        logger.log(30, {"train/critic/loss": 30 / 8})
    unbroken, broken = (tmp_path / name / "train.csv" for name in ("unbroken", "broken"))
    assert broken.read_bytes() == unbroken.read_bytes()


@pytest.mark.parametrize("torn", ["30", "30,3.7", "30,3.75"])
def test_a_torn_last_line_is_cut_on_resume(tmp_path, torn):
    run_of_three_rows(tmp_path)
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace("30,3.75\n", torn))
    RunLogger(tmp_path, resume_step=30)
    assert path.read_text() == "step,train/critic/loss\n10,1.25\n20,2.5\n"


def test_a_torn_header_leaves_an_empty_table(tmp_path):
    (tmp_path / "train.csv").write_text("step,train/cri")
    with RunLogger(tmp_path, resume_step=5) as logger:
        logger.log(6, {"a": 1.0})
    assert (tmp_path / "train.csv").read_text() == "step,a\n6,1.0\n"


def test_a_new_run_does_not_write_over_an_earlier_one(tmp_path):
    run_of_three_rows(tmp_path)
    with pytest.raises(UserError, match="resume that one"):
        RunLogger(tmp_path)
    assert len(rows_of(tmp_path / "train.csv")) == 3


class BreakingSink:
    """Fails from its second row on."""

    def __init__(self, *_):
        self.rows = 0
        self.closed = False

    def log(self, step, metrics):
        self.rows += 1
        if self.rows > 1:
            raise ConnectionError("the network is gone")

    def log_video(self, step, path):
        raise AssertionError("a dropped sink is not called again")

    def close(self):
        raise AssertionError("a dropped sink is not called again")


def test_a_sink_that_fails_is_dropped_with_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "TensorBoardSink", BreakingSink)
    with RunLogger(tmp_path, tensorboard=True) as logger:
        for step in range(4):
            logger.log(step, {"a": 1.0})
        logger.log_video(4, Path("x.mp4"))
    assert len(rows_of(tmp_path / "train.csv")) == 4
    (warning,) = warnings_in(caplog)
    assert "the network is gone" in warning


def test_a_sink_that_cannot_start_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("no account")

    monkeypatch.setattr(module, "WandbSink", refuse)
    with RunLogger(tmp_path, wandb="online") as logger:
        logger.log(1, {"a": 1.0})
    assert len(rows_of(tmp_path / "train.csv")) == 1
    assert "wandb is off" in warnings_in(caplog)[0]


def test_tensorboard_keeps_the_names_and_the_rows_of_the_csv(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLogger(tmp_path, tensorboard=True) as logger:
        logger.log(10, {"train/critic/loss": 0.5})
        logger.log(20, {"train/critic/loss": 0.25, "eval/success": 1.0})
        logger.log_video(20, tmp_path / "videos" / "x.mp4")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/critic/loss", "eval/success"]
    points = [(point.step, point.value) for point in events.Scalars("train/critic/loss")]
    assert points == [(10, 0.5), (20, 0.25)]


def test_wandb_offline_stays_in_the_run_folder_and_keeps_no_secret(tmp_path, monkeypatch, caplog):
    run_dir = tmp_path / "run"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    config = {"task": "cube-single-play", "agent": {"target_divergence": 0.001}}
    with RunLogger(run_dir, wandb="offline", config=config) as logger:
        logger.log(10, {"train/critic/loss": 0.5})
        logger.log(20, {"eval/success": 1.0})
        (run_dir / "episode.mp4").write_bytes(b"a film")
        logger.log_video(20, run_dir / "episode.mp4")
    assert warnings_in(caplog) == [], "a sink was dropped"
    assert len(list(run_dir.glob("wandb/offline-run-*/files/media/videos/eval/*.mp4"))) == 1
    (record,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60  # wandb's own process writes the record, in its own time
    while b"eval/success" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    for text in (b"train/critic/loss", b"eval/success", b"target_divergence"):
        assert text in record.read_bytes()
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
