"""What is said at the end of a run."""

from __future__ import annotations

import pytest

from deflow_vision.analysis.summary import summarise

ROWS = "step,episode,success,return,length,capped\n0,0,0,-5,5,0\n4,0,{last},-5,5,0\n"


@pytest.fixture
def run(tmp_path):
    def make(last):
        (tmp_path / "config.yaml").write_text(
            "{task: cube-single-play-task1, algo: fql, offline_steps: 4}"
        )
        (tmp_path / "episodes.csv").write_text(ROWS.format(last=last))
        return tmp_path

    return make


@pytest.mark.parametrize(("last", "solved"), [(0, False), (1, True)])
def test_a_short_run_names_the_full_command_of_its_own_method(run, last, solved):
    text = summarise(run(last), 1000)
    assert "accelerate launch scripts/train.py --task cube-single-play-task1 --algo fql" in text
    assert ("does not solve the task" in text) != solved
    assert f"Success after 4 updates: {100 * last}% of 1 episodes" in text


def test_the_report_is_named_where_there_is_one(run):
    folder = run(1)
    assert "Report" not in summarise(folder, 4)
    (folder / "report.html").write_text("a page")
    assert f"Report: {folder / 'report.html'}" in summarise(folder, 4)


def test_a_run_of_full_length_suggests_no_other(run):
    assert "accelerate" not in summarise(run(1), 4)
