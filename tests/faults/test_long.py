"""What is said of a run that grows, and a look at one that trains; `make soak` looks longer."""

from __future__ import annotations

import pytest

from tests.faults.long import SLACK, Holding, growth, watch

STEADY = [Holding(100 << 20, 30, 8, 3, rows) for rows in range(0, 800, 50)]


def test_a_steady_run_has_not_grown_and_neither_has_one_that_set_itself_up():
    assert growth(STEADY) == []
    assert growth([row._replace(memory=0, handles=1) for row in STEADY[:4]] + STEADY[4:]) == []


@pytest.mark.parametrize(
    ("name", "by", "text"),
    [
        ("memory", SLACK // 4, "memory grew from 1"),
        ("handles", 1, "handles grew from 3"),
        ("threads", 1, "threads grew from 1"),
        ("processes", 1, "processes grew from "),
    ],
)
def test_whatever_grows_is_named(name, by, text):
    growing = [
        row._replace(**{name: getattr(row, name) + by * index}) for index, row in enumerate(STEADY)
    ]
    assert [found[: len(text)] for found in growth(growing)] == [text]


def test_a_table_that_stands_still_and_a_short_look_are_named():
    assert growth([row._replace(rows=7) for row in STEADY]) == ["train.csv stayed at 7 rows"]
    with pytest.raises(ValueError, match="7 looks tell nothing"):
        growth(STEADY[:7])


def test_a_run_is_looked_at_from_outside_with_its_environments(tmp_path):
    seen = watch(tmp_path / "run", 2.0, "--eval.max-episode-steps", "2")
    assert seen[-1].rows > 0
    assert seen[-1].processes >= 3  # and two environments
    assert seen[-1].memory > 100 << 20
    assert min(seen[-1].handles, seen[-1].threads) > 3


def test_a_run_that_ends_by_itself_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"has ended by itself \(2\): .*batch_size"):
        watch(tmp_path / "run", 4.0, "--batch-size", "0")
