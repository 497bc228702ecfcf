"""What run folders come to, and how it is printed."""

from __future__ import annotations

import csv
import logging
from io import StringIO

import pytest
import yaml

from deflow_vision.benchmark.render import RENDERERS
from deflow_vision.benchmark.results import collect, near_best
from deflow_vision.benchmark.runs import figures_of, state_of
from deflow_vision.types import UserError
from tests.benchmark.conftest import write_run, write_runs

SCORES = {  # of 10, 20, 30 and 40 updates; the last three count for cube, the last for pen
    ("cube-single-play-task1", "bc"): [[99, 10, 20, 30], [99, 20, 30, 40]],
    ("cube-single-play-task1", "iql"): [[0, 90, 90, 90], [0, 80, 80, 80]],
    ("pen-human-v1", "bc"): [[0, 0, 0, 70], [0, 0, 0, 80]],
    ("pen-human-v1", "iql"): [[0, 0, 0, 71], [0, 0, 0, 73]],
}


@pytest.fixture
def fill(tmp_path):
    """The run folders of all cells of a table but some."""

    def write(table, without=()):
        write_runs(table, tmp_path, SCORES, without)
        return table

    return write


def cells_of(text):
    """The cells of every line of Markdown tables, by the first one."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def test_ogbench_is_scored_by_the_last_three_evaluations_and_d4rl_by_the_last(
    make_table, fill, tmp_path
):
    table = fill(make_table())
    scores = {
        (cell.task.name, cell.method.name, cell.seed): figures_of(cell, table.protocol)[0]
        for cell in table.cells(tmp_path)
    }
    assert scores["cube-single-play-task1", "bc", 0] == pytest.approx(20)
    assert scores["pen-human-v1", "bc", 1] == pytest.approx(80)


def test_the_evaluation_before_the_first_update_never_counts(make_table, tmp_path):
    table = make_table()
    cell = next(table.cells(tmp_path))
    write_run(cell, [50, 60], every=20)
    path = cell.run_dir / "train.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, "0,0.7,", *rows]) + "\n")
    with pytest.raises(UserError, match=r"2 evaluations after its first update.*takes 3.*every"):
        figures_of(cell, table.protocol)


def test_both_phases_are_scored_at_their_ends(make_table, tmp_path):
    table = make_table(
        protocol="offline-to-online",
        tasks=["cube-single-play"],
        settings={"offline_steps": 20, "online_steps": 20, "eval": {"every": 10}},
    )
    for cell in table.cells(tmp_path):
        write_run(cell, [0, 30 + 10 * cell.seed, 99, 80])
    (row,) = collect(table, tmp_path).rows
    before, after = row.ours["bc"].estimates
    assert (before.mean, after.mean, after.std) == (35, 80, 0)
    text = RENDERERS["markdown"](collect(table, tmp_path))
    assert cells_of(text)["cube-single-play-task2"] == ["**35 ± 7 → 80 ± 0**"] * 2


def test_the_time_of_an_update_is_a_median_without_the_first_row_and_the_least_is_best(
    make_table, tmp_path
):
    table = make_table(protocol="timing", tasks=["cube-single-play"], seeds=1)
    bc, iql = table.cells(tmp_path)
    write_run(bc, [0, 0, 0, 0])  # 10, 20, 30, 40 ms
    write_run(iql, [0, 0], every=20)  # 10, 20 ms
    text = RENDERERS["markdown"](collect(table, tmp_path))
    assert cells_of(text)["cube-single-play-task2"] == ["30.0", "**20.0**"]
    assert "IQM" not in text


@pytest.mark.parametrize(
    ("values", "lower", "best"),
    [
        ({"a": 100.0, "b": 95.0, "c": 94.9}, False, {"a", "b"}),
        ({"a": 0.0, "b": 0.0}, False, {"a", "b"}),
        ({"a": -10.0, "b": -10.4, "c": -11.0}, False, {"a", "b"}),
        ({"a": 20.0, "b": 21.0, "c": 21.1}, True, {"a", "b"}),
        ({}, False, set()),
    ],
)
def test_bold_is_what_is_within_95_percent_of_the_best(values, lower, best):
    assert near_best(values, lower) == best


def test_markdown(make_table, fill, tmp_path):
    categories = {"all": ["cube-single-play-task1", "pen-human-v1"]}
    table = fill(make_table(published=["fql_table3"], categories=categories))
    text = RENDERERS["markdown"](collect(table, tmp_path))
    assert text.startswith("## A table\n")
    cells = cells_of(text)
    assert cells["task"] == ["bc", "bc, published", "iql", "iql, published"]
    assert cells["cube-single-play-task1"] == ["25 ± 7", "*10 ± 5*", "**85 ± 7**", "*88 ± 3*"]
    assert cells["pen-human-v1"] == ["**75 ± 7**", "*71*", "**72 ± 1**", "*78*"]
    # Seeds' means over both tasks: bc 45 and 55; iql 80.5 and 76.5.
    assert cells["all"] == ["50 ± 7", "**78 ± 3**"]
    # All eight scores of a method: bc 20, 30, 70, 80; iql 71, 73, 80, 90, without the ends.
    assert cells["bc"][0].startswith("50.0 [")
    assert cells["iql"][0].startswith("76.5 [")
    # bc against iql: worse on cube, and of the four pairs on pen better in two.
    assert cells["iql"][1].startswith("25% [")
    assert "Published, fql_table3: FQL, arXiv 2502.02538" in text


def test_what_is_unfinished_is_shown_with_its_seeds_and_never_bold(make_table, fill, tmp_path):
    table = fill(make_table(), without={("cube-single-play-task1", "iql", 1)})
    cells = cells_of(RENDERERS["markdown"](collect(table, tmp_path)))
    assert cells["cube-single-play-task1"] == ["**25 ± 7**", "90 (1/2)"]
    assert cells["bc"][0].startswith("50.0 [")
    assert cells["iql"] == ["-", "-"]


def test_a_category_is_empty_until_all_its_runs_are_finished(make_table, fill, tmp_path):
    changes = {"categories": {"all": ["cube-single-play-task1", "pen-human-v1"]}}
    table = fill(make_table(**changes), without={("pen-human-v1", "bc", 0)})
    cells = cells_of(RENDERERS["markdown"](collect(table, tmp_path)))
    assert cells["all"] == ["- (3/4)", "**78 ± 3**"]


def test_a_table_of_nothing_says_so(make_table, tmp_path):
    cells = cells_of(RENDERERS["markdown"](collect(make_table(), tmp_path)))
    assert cells["pen-human-v1"] == ["- (0/2)", "- (0/2)"]


def test_latex(make_table, fill, tmp_path):
    table = fill(make_table(published=["fql_table3"], title="50% & more_or_less"))
    text = RENDERERS["latex"](collect(table, tmp_path))
    assert r"% 50\% \& more\_or\_less" in text
    assert r"\begin{tabular}{lrrrr}" in text
    line = (
        r"cube-single-play-task1 & 25 $\pm$ 7 & \textit{10 $\pm$ 5} & "
        r"\textbf{85 $\pm$ 7} & \textit{88 $\pm$ 3} \\"
    )
    assert line in text.splitlines()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert "±" not in text


def test_csv_has_every_figure_unrounded(make_table, fill, tmp_path):
    table = fill(make_table(published=["fql_table3"]), without={("pen-human-v1", "iql", 0)})
    rows = list(csv.DictReader(StringIO(RENDERERS["csv"](collect(table, tmp_path)))))
    found = {(r["kind"], r["row"], r["method"], r["source"]): r for r in rows}
    assert len(found) == len(rows)
    ours = found["task", "cube-single-play-task1", "bc", "ours"]
    assert float(ours["value"]) == pytest.approx(25)
    assert float(ours["std"]) == pytest.approx(50**0.5)
    assert (ours["done"], ours["wanted"]) == ("2", "2")
    assert found["task", "pen-human-v1", "iql", "ours"]["done"] == "1"
    assert found["task", "pen-human-v1", "iql", "published"]["value"] == "78.0"
    iqm = found["iqm", "from state: 2 tasks, 2 seeds", "bc", "ours"]
    assert float(iqm["low"]) <= float(iqm["value"]) == 50 <= float(iqm["high"])
    assert found["iqm", "from state: 2 tasks, 2 seeds", "iql", "ours"]["value"] == ""


def test_a_run_is_missing_then_interrupted_then_finished(make_table, tmp_path):
    table = make_table()
    cell = next(table.cells(tmp_path))
    assert state_of(cell, table.protocol) == "missing"
    write_run(cell, [10, 20, 30])
    assert state_of(cell, table.protocol) == "interrupted"
    (cell.run_dir / "train.csv").unlink()
    assert state_of(cell, table.protocol) == "interrupted"
    write_run(cell, [10, 20, 30, 40])
    assert state_of(cell, table.protocol) == "finished"


def test_a_run_of_other_settings_is_refused(make_table, tmp_path):
    table = make_table()
    write_run(list(table.cells(tmp_path))[2], [1, 2, 3, 4])
    changed = make_table(methods={"bc": {}, "iql": {"settings": {"agent": {"alpha": 8.0}}}})
    cell = list(changed.cells(tmp_path))[2]
    with pytest.raises(UserError, match=r"run with agent.alpha 7.0, the table asks for 8.0: move"):
        state_of(cell, table.protocol)


def test_a_setting_that_no_score_depends_on_may_differ(make_table, tmp_path):
    table = make_table()
    cell = next(table.cells(tmp_path))
    write_run(cell, [1, 2, 3, 4])
    path = cell.run_dir / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    saved |= {"num_threads": 7, "mixed_precision": "no"}
    saved["data"] |= {"path": "elsewhere", "num_streams": 1, "residency": "ram"}
    path.write_text(yaml.safe_dump(saved))
    assert state_of(cell, table.protocol) == "finished"


def test_a_broken_run_folder_is_warned_of_and_counts_as_missing(make_table, fill, tmp_path, caplog):
    table = fill(make_table())
    (tmp_path / "tiny/pen-human-v1/bc/seed1/config.yaml").write_text("task: [")
    with caplog.at_level(logging.WARNING):
        cells = cells_of(RENDERERS["markdown"](collect(table, tmp_path)))
    assert cells["pen-human-v1"][0] == "70 (1/2)"
    assert "pen-human-v1 bc seed 1 counts as missing" in caplog.text
    assert "not valid YAML" in caplog.text
