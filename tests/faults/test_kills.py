"""Kills in short: `make soak` has sixty."""

from __future__ import annotations

import pytest

from tests.faults.kills import JOBS, Killer, _difference

SHARES = {
    "offline, state": (0.35, 0.8),
    "offline, streamed pixels": (0.6,),
    "offline to online": (0.7,),
    "conversion": (0.5,),
    "download": (0.5,),
}
"""Moments to be killed at, as shares of a job's operations on files."""


@pytest.mark.parametrize(
    "job", [job for job in JOBS if job.name in SHARES], ids=lambda job: job.name
)
def test_a_job_that_is_killed_and_started_again_ends_as_if_it_had_not_been(job, tmp_path):
    killer = Killer(job, tmp_path / "job")
    whole = killer.whole()
    for share in SHARES[job.name]:
        assert killer.kill(whole, [int(share * whole.operations)]) == ""


def test_a_difference_is_named():
    ours = (["a", "b"], {"x": "1", "y": "2"})
    assert _difference(ours, (["a", "b"], {"x": "1", "y": "3"})) == "y: 2 became 3"
    assert _difference(ours, (["a"], {})) == "['b']"
