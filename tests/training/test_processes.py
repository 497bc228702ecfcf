"""Several processes of one run over gloo: equal to one, in whatever number they go on."""

from __future__ import annotations

import time

import pandas as pd
import pytest
import torch

from deflow_vision.config import load
from deflow_vision.training import checkpoint
from deflow_vision.training.loop import train
from tests.ranks import die_before_third_update, launch
from tests.training.test_loop import rows, weights

UPDATES = 20
STREAMS = (
    *("--data.num-streams", "4", "--batch-size", "8", "--offline-steps", str(UPDATES)),
    *("--eval.every", "5"),
)


def assert_ended_well(ranks):
    assert [rank.code for rank in ranks] == [0] * len(ranks), ranks


def assert_equal_within_rounding(ours, theirs):
    a, b = weights(ours, UPDATES), weights(theirs, UPDATES)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-5, msg=name)
    columns = [c for c in rows(ours) if "q_min" not in c and "q_max" not in c]  # means of extremes
    pd.testing.assert_frame_equal(
        rows(ours)[columns], rows(theirs)[columns], rtol=0, atol=1e-5, check_exact=False
    )


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("residency", ["ram", "stream"])
def test_processes_equal_one_with_the_same_global_batch(
    kind, residency, processes, arguments, configure, tmp_path
):
    flags = (*STREAMS, "--data.residency", residency)
    one = train(configure(kind, tmp_path / "one", *flags))
    assert_ended_well(launch(arguments(kind, tmp_path / "many", *flags), processes))
    assert_equal_within_rounding(one, tmp_path / "many")


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(
    before, after, arguments, configure, tmp_path
):
    one = train(configure("state", tmp_path / "one", *STREAMS))
    run = tmp_path / "run"
    half = (*STREAMS, "--offline-steps", str(UPDATES // 2))
    assert_ended_well(launch(arguments("state", run, *half), before))
    assert checkpoint.latest(run).step == UPDATES // 2
    more = ["--resume", str(run), "--offline-steps", str(UPDATES)]
    assert_ended_well(launch(more, after))
    assert_equal_within_rounding(one, run)


def test_a_number_that_does_not_divide_the_streams_is_refused_with_both(
    arguments, configure, tmp_path
):
    run = train(configure("state", tmp_path / "run", *STREAMS))
    ranks = launch(["--resume", str(run), "--offline-steps", "24"], 3)
    assert [rank.code for rank in ranks] == [2] * 3
    for rank in ranks:
        assert "UserError: data.num_streams is 4: it must be a multiple" in rank.said
        assert "the number of processes (3)" in rank.said


def test_a_process_that_dies_ends_the_job_with_a_message_and_it_goes_on(
    arguments, configure, tmp_path
):
    run = tmp_path / "run"
    flags = (*STREAMS, "--checkpoint.every", "1")
    start = time.monotonic()
    first, second = launch(arguments("state", run, *flags), 2, die_before_third_update)
    assert time.monotonic() - start < 60
    assert (first.code, second.code) == (2, -9)
    assert "UserError: another of the 2 processes has ended" in first.said
    assert f"its last checkpoint is {run}/checkpoints/step_2" in first.said
    train(load(["--resume", str(run)]))
    assert_equal_within_rounding(train(configure("state", tmp_path / "one", *flags)), run)
