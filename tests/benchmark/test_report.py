"""The report of a table: its figures, its curves, its runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deflow_vision.analysis.report.run import write_run_report
from deflow_vision.benchmark.report import write_table_report
from tests.benchmark.conftest import write_run, write_runs
from tests.pages import Page

ROOT = Path(__file__).resolve().parents[2]

SCORES = {
    ("cube-single-play-task1", "bc"): [[10, 10, 20, 30], [10, 20, 30, 40]],
    ("cube-single-play-task1", "iql"): [[0, 90, 90, 90], [0, 80, 80, 80]],
    ("pen-human-v1", "bc"): [[0, 0, 0, 70], [0, 0, 0, 101]],
    ("pen-human-v1", "iql"): [[0, 0, 0, 8], [0, 0, 0, 9]],
}


@pytest.fixture
def table(make_table):
    return make_table(
        title="A <b>table</b>",
        published=["fql_table3"],
        categories={"cube": ["cube-single-play-task1"]},
    )


@pytest.fixture
def fill(table, tmp_path):
    """The run folders of all cells but some; gives the root."""

    def write(without=()) -> Path:
        write_runs(table, tmp_path, SCORES, without)
        return tmp_path

    return write


ONE = [("cube-single-play-task1", "iql", 1)]


def test_figures_stand_beside_the_published_ones_which_are_marked(table, fill):
    path = write_table_report(table, fill())
    html, text = path.read_text(), Page(path).text
    assert path == path.parents[1] / table.name / "report.html"
    assert '<td class="right best" data-sort="85.0">85 ± 7</td>' in html
    assert '<td class="right published" data-sort="10.0">10 ± 5</td>' in html
    assert "Published, fql_table3: " in text
    assert "A <b>table</b>" in text
    assert "Missing" not in text


def test_curves_are_means_over_seeds_with_an_interval(table, fill):
    charts = Page(write_table_report(table, fill())).charts()
    assert list(charts) == ["cube-single-play-task1", "pen-human-v1"]
    assert [p[2:] for p in charts["cube-single-play-task1"]["iql"]] == [
        ["10", "0 [0, 0]"],
        *([step, "85 [80, 90]"] for step in ("20", "30", "40")),
    ]


def test_a_method_has_one_colour_in_all_charts(table, fill):
    path = write_table_report(table, fill(without=[("pen-human-v1", "bc", s) for s in (0, 1)]))
    styles = [
        [line["style"] for line in json.loads(attributes["data-lines"])]
        for tag, attributes in Page(path).elements
        if "data-lines" in attributes
    ]
    assert styles == [["c0", "c1"], ["c1"]]


def test_aggregates_have_their_intervals(table, fill):
    text = Page(write_table_report(table, fill())).text
    assert "How likely bc is better" in text
    # bc: 20 and 30 on cube, 70 and 101 on pen; the middle half of four.
    assert "bc: 50 [" in text
    assert "iql: 50 [50, 50]" in text


def test_runs_that_are_missing_or_broken_are_named_and_the_others_shown(table, fill):
    root = fill(without=ONE)
    cells = list(table.cells(root))
    train = cells[0].run_dir / "train.csv"
    train.write_text("\n".join(train.read_text().splitlines()[:4]) + "\n")
    (cells[1].run_dir / "config.yaml").write_text("offline_steps: many\n")
    text = Page(write_table_report(table, root)).text
    assert "3 of 8 runs (1 missing, 1 interrupted, 1 failed)" in text
    assert f"python scripts/benchmark.py run {table.name}" in text
    assert "is no run's config" in text
    assert "(1/2)" in text
    assert "No method has all of its runs yet" in text


def test_a_table_without_a_run_has_a_page(table, tmp_path):
    text = Page(write_table_report(table, tmp_path)).text
    assert "8 of 8 runs (8 missing)" in text
    assert "No run has been evaluated yet" in text


def test_every_run_has_its_command_and_leads_to_its_report(table, fill):
    root = fill()
    cell = next(table.cells(root))
    target = write_run_report(cell.run_dir)
    page = Page(path := write_table_report(table, root))
    links = [address for address in page.addresses() if not address.startswith("#")]
    assert [(path.parent / link).resolve() for link in links] == [target.resolve()]
    for cell in table.cells(root):
        assert " ".join(["python scripts/train.py", *cell.arguments()]) in page.text


def test_times_have_no_aggregates_and_their_own_unit(make_table, tmp_path):
    table = make_table(protocol="timing", tasks=["cube-single-play"], seeds=1)
    for cell in table.cells(tmp_path):
        write_run(cell, [0, 0, 0, 0])
    page = Page(write_table_report(table, tmp_path))
    assert "This table has none" in page.text
    assert page.charts()["cube-single-play-task2"]["bc"][0][3] == "10"  # ms


def test_the_script_writes_the_page_of_a_table(write_table, tmp_path):
    command = ["scripts/benchmark.py", "report", str(write_table()), "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"{tmp_path / 'tiny' / 'report.html'}\n", done.stderr


COLUMN = """
(() => {
  const table = document.querySelectorAll("table.sortable")[TABLE];
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex((head) => head.textContent.trim() === NAME);
  heads[column].querySelector("button").click();
  return [heads[column].getAttribute("aria-sort"),
          ...[...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim())];
})()
"""


def click(page, table, name):
    return page.run(COLUMN.replace("TABLE", str(table)).replace("NAME", f'"{name}"'))


def test_a_click_on_a_column_sorts_by_it(browser, table, fill, tmp_path):
    root = fill(without=[("pen-human-v1", "iql", 0), ("pen-human-v1", "iql", 1)])
    page = browser.open(write_table_report(table, root))
    cube, pen = "cube-single-play-task1", "pen-human-v1"
    assert click(page, 0, "bc") == ["descending", pen, cube]
    assert click(page, 0, "bc") == ["ascending", cube, pen]
    assert click(page, 0, "iql") == ["descending", cube, pen]
    assert click(page, 0, "iql") == ["ascending", cube, pen], "rows without a figure stay last"
    assert click(page, 0, "Tasks") == ["ascending", cube, pen]
    assert click(page, 0, "Tasks") == ["descending", pen, cube]
    # 9 and 70 as numbers, not as texts.
    assert click(page, 2, "Figure")[:2] == ["descending", pen]
    assert page.complaints() == []
    assert {address.partition(":")[0] for address in page.requests()} <= {"file", "data"}


def test_runs_are_found_by_words_and_lead_to_their_reports(browser, table, fill):
    root = fill()
    cell = next(table.cells(root))
    write_run_report(cell.run_dir)
    page = browser.open(write_table_report(table, root))
    found = page.run(
        """(() => {
          const input = document.querySelector("#runs input");
          input.value = "iql pen-human";
          input.dispatchEvent(new Event("input"));
          return [...document.querySelectorAll("#runs tbody tr")].filter((row) => row.offsetParent)
            .map((row) => [row.cells[0].textContent, row.cells[1].textContent]);
        })()"""
    )
    assert found == [["pen-human-v1", "iql"]] * 2
    assert page.run("document.querySelector('#runs a').href") == (
        (cell.run_dir / "report.html").resolve().as_uri()
    )
