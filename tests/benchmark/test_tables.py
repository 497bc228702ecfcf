"""What the files of tables mean, and what is refused in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deflow_vision.benchmark.published import read_published
from deflow_vision.benchmark.table_file import load_table, table_names
from deflow_vision.benchmark.tables import flags, merge
from deflow_vision.config import ConfigError, load
from deflow_vision.tasks import offline_tasks, offline_to_online_tasks
from deflow_vision.types import UserError

ROOT = Path("runs/benchmarks")


@pytest.mark.parametrize("name", table_names())
def test_every_command_of_a_table_means_the_configuration_of_its_cell(name):
    cells = {cell.method.name: cell for cell in load_table(name).cells(ROOT)}  # one a method
    for cell in cells.values():
        assert load(cell.arguments()) == cell.config()


def test_the_papers_tables_have_their_tasks_and_seeds():
    offline, online = load_table("offline"), load_table("offline-to-online")
    assert len(offline.tasks) == 73
    assert set(offline.tasks) == set(offline_tasks())
    assert set(online.tasks) == set(offline_to_online_tasks())
    seeds = {task.pixels: offline.num_seeds(task) for task in offline.tasks}
    assert seeds == {False: 8, True: 4}


def test_published_figures_stand_at_the_tasks_and_categories_of_the_tables():
    offline, online = load_table("offline"), load_table("offline-to-online")
    by_name = {published.name: published for published in offline.published}
    rows = {row for row, _ in by_name["fql_table3"].figures}
    assert rows == {task.name for task in offline.tasks}
    for name in ("fql_table2", "deflow_table1"):
        assert {row for row, _ in by_name[name].figures} == set(offline.categories)
    for published in online.published:
        assert {row for row, _ in published.figures} == {task.name for task in online.tasks}


def test_a_published_category_is_the_mean_of_its_published_tasks():
    table = load_table("offline")
    tasks, means = (read_published(f"fql_table{number}").figures for number in (3, 2))
    for category, members in table.categories.items():
        for method in ("iql", "rebrac", "ifql", "fql"):
            values = [tasks[task.name, method][0].mean for task in members]
            published = means[category, method][0].mean
            assert sum(values) / len(values) == pytest.approx(published, abs=1.0)


def test_a_published_figure_has_mean_deviation_and_phases():
    offline = read_published("fql_table3").figures
    (figure,) = offline["cube-double-play-task2", "fql"]
    assert (figure.mean, figure.std) == (36, 6)
    assert offline["antmaze-umaze-v2", "bc"][0].std is None
    assert ("visual-scene-play-task1", "bc") not in offline
    before, after = read_published("fql_table4").figures[
        "humanoidmaze-medium-navigate-task1", "fql"
    ]
    assert (before.mean, before.std, after.mean, after.std) == (12, 7, 22, 12)


def test_every_published_table_names_its_paper():
    for name in ("fql_table2", "fql_table3", "fql_table4", "deflow_table1", "deflow_table2"):
        assert "arXiv" in read_published(name).source
        assert "table" in read_published(name).source


def test_settings_become_flags():
    settings = {"seed": 1, "agent": {"hidden_dims": [8, 12], "use_lagrange": False}, "log": {}}
    wanted = ["--seed", "1", "--agent.hidden-dims", "8", "12", "--agent.no-use-lagrange"]
    assert list(flags(settings)) == wanted
    assert list(flags({"cuda_graphs": False})) == ["--no-cuda-graphs"]


def test_the_stronger_settings_win_key_by_key():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


def test_settings_of_a_method_and_of_its_tasks_win(make_table):
    table = make_table(
        task_settings={"pen-human-v1": {"batch_size": 8}, "cube-single": {"batch_size": 4}},
        methods={
            "bc": {"settings": {"batch_size": 2}, "task_settings": {"pen": {"batch_size": 16}}},
            "iql": {},
        },
    )
    sizes = {(c.task.name, c.method.name): c.settings["batch_size"] for c in table.cells(ROOT)}
    assert sizes == {
        ("cube-single-play-task1", "bc"): 2,
        ("cube-single-play-task1", "iql"): 4,
        ("pen-human-v1", "bc"): 16,
        ("pen-human-v1", "iql"): 8,
    }


def test_a_method_can_leave_out_pixels(make_table):
    table = make_table(
        tasks=["cube-single-play", "visual-cube-single-play"],
        methods={"bc": {"observations": "state"}, "iql": None},
        seeds={"state": 2, "pixels": 1},
    )
    cells = [(cell.method.name, cell.task.pixels) for cell in table.cells(ROOT)]
    assert cells == [("bc", False)] * 2 + [("iql", False)] * 2 + [("iql", True)]


def test_an_unknown_table_is_refused():
    with pytest.raises(UserError, match=r"unknown table 'ofline'.*offline"):
        load_table("ofline")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["cube-singel-play"]}, "unknown task 'cube-singel-play'.*cube-single-play"),
        ({"tasks": 5}, "5 must be the name of a task, or a list of names"),
        ({"tasks": [5]}, r"\[5\] must be the name of a task"),
        ({"methods": {"iqll": {}}}, "iqll on .*unknown algorithm 'iqll'.*iql"),
        ({"methods": {"a b": {"algo": "bc"}}}, "methods.a b: a name has"),
        ({"methods": {"bc": {"setings": {}}}}, "unknown key 'setings'.*settings"),
        ({"methods": {"iql": {"settings": {"agent": {"alfa": 1}}}}}, "'agent.alfa'.*alpha"),
        ({"methods": ["bc"]}, "must be a mapping of names"),
        ({"methods": {"bc": {"observations": "rays"}}}, "'rays': state or pixels"),
        ({"protocol": "ofline"}, "unknown protocol 'ofline'. Valid:.*offline"),
        ({"protocol": ["offline"]}, r"unknown protocol \['offline'\]"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": 1 << 31}, "must be a count from 1 to 1,000"),
        ({"seeds": {"state": 2}}, "one for each of state and pixels"),
        ({"task_settings": {"pan": {}}}, "unknown task 'pan'"),
        ({"column": []}, "unknown key 'column'"),
        ({"preset": "onlin"}, "onlin"),
        ({"settings": 5}, "settings is 5, must be a mapping"),
        ({"task_settings": {"pen": [1]}}, r"pen is \[1\], must be a mapping"),
        ({"categories": {"all": ["scene-play"]}}, "category all has scene-play-task2"),
        ({"published": ["fql_table9"]}, "unknown published table 'fql_table9'"),
        ({"published": ["fql_table4"]}, "fql_table4 has figures of 2 phases"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_runs(make_table, changes, message):
    with pytest.raises(UserError, match=message):
        make_table(**changes)


def test_a_preset_is_part_of_every_run(make_table):
    table = make_table(preset="offline-to-online", methods={"fql": {}}, tasks=["antsoccer-arena"])
    cell = next(table.cells(Path("runs")))
    assert "--preset offline-to-online" in " ".join(cell.arguments())
    assert cell.config().agent.alpha == 30.0
    assert load(cell.arguments()).agent.alpha == 30.0


def test_a_missing_part_is_named(write_table):
    path = write_table()
    path.write_text("tasks: [scene-play]\nseeds: 2\n")
    with pytest.raises(ConfigError, match="methods is missing"):
        load_table(str(path))
