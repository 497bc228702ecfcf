"""A probe that breaks is a row; the doctor's table, its JSON and its exit status."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from deflow_vision.doctor import examine
from deflow_vision.doctor.probes import Probe, run_probe
from deflow_vision.doctor.rows import Row, as_json, as_table, worst
from scripts import doctor
from tests.doctor import broken

OK, WARN, FAIL = (
    Row("a", "ok", "fine"),
    Row("b", "warn", "slow", "hurry"),
    Row("c", "fail", "gone", "bring it"),
)


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (broken.crash, "SIGSEGV"),
        (broken.fail, "ImportError: libEGL.so.1"),
    ],
)
def test_a_probe_that_crashes_or_raises_is_a_row_that_fails(look, words):
    (row,) = run_probe(Probe("drawing", look, lambda facts: [], seconds=600))
    assert (row.name, row.status) == ("drawing", "fail")
    assert words in row.found
    assert row.remedy


def test_a_probe_that_hangs_is_a_row_that_fails():
    (row,) = run_probe(Probe("GPU", broken.hang, lambda facts: [], seconds=1.5))
    assert row.status == "fail"
    assert "no answer in 1.5 s" in row.found


def test_what_a_probe_saw_is_judged_here():
    def judge(facts: list[int]) -> list[Row]:
        return [Row("x", "ok", str(sum(facts)))]

    rows = run_probe(Probe("x", broken.numbers, judge, seconds=600))
    assert rows == [Row("x", "ok", "3")]


@pytest.mark.parametrize(("status", "remedy"), [("ok", "do this"), ("warn", ""), ("fail", "")])
def test_a_row_has_a_remedy_exactly_where_it_complains(status, remedy):
    with pytest.raises(ValueError, match="remedy"):
        Row("a", status, "found", remedy)


def test_the_worst_row_counts():
    assert worst([OK, FAIL, WARN]) == "fail"
    assert worst([WARN, OK]) == "warn"
    assert worst([]) == "ok"


def test_the_table_shows_each_remedy_under_its_finding():
    out = io.StringIO()
    Console(file=out, width=80).print(as_table([OK, FAIL]))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert lines[1:] == [["ok", "a", "fine"], ["fail", "c", "gone"], ["->", "bring", "it"]]


def test_as_json_has_plain_values():
    assert as_json([OK, WARN]) == {
        "status": "warn",
        "rows": [
            {"name": "a", "status": "ok", "found": "fine", "remedy": ""},
            {"name": "b", "status": "warn", "found": "slow", "remedy": "hurry"},
        ],
    }


@pytest.fixture
def call(monkeypatch, capsys):
    def call(rows: list[Row], *flags: str) -> tuple[int, str]:
        monkeypatch.setattr(examine, "examine", lambda task, stores: rows)
        monkeypatch.setattr(sys, "argv", ["doctor.py", *flags])
        with pytest.raises(SystemExit) as stop:
            doctor.main()
        return int(stop.value.code), capsys.readouterr().out

    return call


def test_only_a_row_that_fails_makes_the_script_fail(call):
    assert call([OK, WARN])[0] == 0
    code, text = call([OK, FAIL])
    assert code == 1
    assert "bring it" in text


def test_the_script_prints_json(call):
    code, text = call([OK, WARN, FAIL], "--json")
    assert code == 1
    assert json.loads(text) == as_json([OK, WARN, FAIL])


def test_task_and_stores_add_probes():
    names = [probe.name for probe in examine.probes("scene-play", ["a.zarr", "b.zarr"])]
    assert names[-3:] == ["plan of scene-play", "store a.zarr", "store b.zarr"]
    assert len(examine.probes()) == len(names) - 3
