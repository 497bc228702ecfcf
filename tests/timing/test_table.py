"""Figures, their goals, and the table on a page."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from deflow_vision.timing.figures import Figure, Goal, Sample, digits, faster, more
from deflow_vision.timing.machine import Machine
from deflow_vision.timing.table import (
    BEGIN,
    END,
    replace_in,
    to_markdown,
    to_terminal,
    write_json,
)
from deflow_vision.types import UserError

MACHINE = Machine("a machine", {"torch in float32": 100.0}, 10.0, False, 0.1)
OURS, THEIRS = Sample((50.0, 60.0, 40.0), "ms"), Sample((75.0,), "ms")
FIGURES = (
    Figure("update", "an update", OURS, THEIRS, "theirs", 1.5, Goal(1.2), "note"),
    Figure("update", "a slow one", THEIRS, OURS, "ours", 2 / 3, Goal(1.2)),
    Figure("wait", "waiting", OURS, THEIRS, "all", 2 / 3, Goal(0.03, at_least=False)),
    Figure("wait", "alone", Sample((1.0,), "GB")),
)


def test_a_sample_is_its_median_and_shows_its_range():
    assert OURS.median == 50
    assert str(OURS) == "50 ms (40 to 60)"
    assert str(THEIRS) == "75 ms"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.03, "0.03"),
        (0.1234, "0.123"),
        (1.2, "1.20"),
        (12.34, "12.3"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_are_shown_to_three_digits(value, shown):
    assert digits(value) == shown


def test_ratios_are_how_many_times_better_or_more():
    assert faster(OURS, THEIRS) == 1.5
    assert more(OURS, THEIRS) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("goal", "ratio", "met"),
    [
        (Goal(1.2), 1.2, True),
        (Goal(1.2), 1.19, False),
        (Goal(0.03, at_least=False), 0.03, True),
        (Goal(0.03, at_least=False), 0.031, False),
    ],
)
def test_a_goal_is_met_at_its_limit(goal, ratio, met):
    assert goal.met(ratio) is met


def test_the_terminal_shows_every_row_and_whether_its_goal_is_reached():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(to_terminal(FIGURES, MACHINE))
    text = console.export_text()
    assert "a machine" in text
    rows = {f.what: next(line for line in text.splitlines() if f.what in line) for f in FIGURES}
    assert "≥ 1.20 reached" in rows["an update"]
    assert "≥ 1.20 not reached" in rows["a slow one"]
    assert "≤ 0.03 not reached" in rows["waiting"]


def test_markdown_has_a_column_of_each_and_sets_reached_ratios_in_bold():
    lines = to_markdown(FIGURES, MACHINE, "2026-11-27", "python scripts/bench.py").splitlines()
    assert lines[0].startswith("`python scripts/bench.py`, 2026-11-27: a machine")
    rows = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"\|", row)) for row in rows} == {7}
    assert len(rows) == 2 + len(FIGURES)
    assert "**1.50**" in rows[2]
    assert "**" not in "".join(rows[3:])


def test_a_page_takes_the_table_between_its_marks_and_keeps_the_rest(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    replace_in(page, "| new |")
    replace_in(page, "| newer |")
    assert page.read_text() == f"before\n\n{BEGIN}\n\n| newer |\n\n{END}\n\nafter\n"
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    "text", ["nothing", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"], ids=range(4)
)
def test_a_page_without_its_marks_is_refused_and_stays(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(UserError, match=r"page\.md must hold"):
        replace_in(page, "| new |")
    assert page.read_text() == text


def test_a_page_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.md does not exist"):
        replace_in(tmp_path / "none.md", "| new |")


def test_values_are_written_whole(tmp_path):
    write_json(tmp_path / "bench.json", FIGURES, MACHINE)
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["products"] == MACHINE.products
    first, second, third, last = content["figures"]
    assert first["measured"] == {"values": [50, 60, 40], "unit": "ms"}
    assert [row["met"] for row in (first, second, third, last)] == [True, False, False, None]
    assert last["against"] is None


def test_a_machine_names_what_it_is_held_to():
    assert "no instructions for bfloat16" in MACHINE.describe()
    rates = {"torch in float32": 100.0, "oneDNN in float32": 150.0, "torch in bfloat16": 400.0}
    machine = dataclasses.replace(MACHINE, products=rates, bfloat16=True)
    assert "bfloat16, which" not in machine.describe()
    assert (machine.peak("no"), machine.peak("bf16")) == (150, 400)
    assert MACHINE.peak("bf16") == 100
