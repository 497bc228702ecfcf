"""Every part, as small as it goes: its rows, what they are held against, and their goals."""

from __future__ import annotations

import dataclasses
import functools
import importlib

import pytest

from deflow_vision.timing import action, evaluation, update, wait
from deflow_vision.timing import bench as module
from deflow_vision.timing.action import eager, graph, onnx
from deflow_vision.timing.bench import bench
from deflow_vision.timing.machine import Machine
from deflow_vision.timing.reference import Reference
from deflow_vision.timing.settings import BY_DEFAULT, Settings
from scripts import bench as script
from tests.agents.conftest import make_agent

PRODUCTS = {"torch in float32": 100.0, "oneDNN in float32": 100.0}
MACHINE = Machine("a machine", PRODUCTS, 10.0, False, 0.0)
TINY = Settings(
    rounds=1,
    updates=1,
    actions=1,
    episodes=2,
    wait_updates=2,
    growth=(500, 1000),
    stream_frames=300,
    convert_frames=300,
    seconds=0.1,
    render_frames=1,
    render_envs=("cube-single",),
    network=(8, 8),
    algos=("bc",),
    batch_size=4,
)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(module, "look", lambda: MACHINE)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches of two, episodes of three steps, and no process of its own, which takes seconds."""
    for name in ("action", "conversion", "evaluation", "growth", "streaming", "update", "wait"):
        part = importlib.import_module(f"deflow_vision.timing.{name}")
        monkeypatch.setattr(part, "alone", lambda function, *arguments: function(*arguments))

    def of_two(case):
        return dataclasses.replace(case, batch=2)

    for name in ("PLAIN", "SHARED", "SEPARATE"):
        monkeypatch.setattr(update, name, of_two(getattr(update, name)))
    goals = {of_two(case): goal for case, goal in update.GOALS.items()}
    monkeypatch.setattr(update, "GOALS", goals)
    monkeypatch.setattr(update, "COSTS", tuple(map(of_two, update.COSTS)))
    monkeypatch.setattr(wait, "BATCH", {update.PIXELS: 2})
    for name in ("EnvPool", "make_env"):
        short = functools.partial(getattr(evaluation, name), max_episode_steps=3)
        monkeypatch.setattr(evaluation, name, short)


def rows(part, tmp_path, **changes):
    settings = dataclasses.replace(TINY, folder=tmp_path, **changes)
    said = []
    _, figures = bench((part,), settings, Reference(), said.append)
    assert said[-1].startswith(f"{part}: ")
    for figure in figures:
        assert figure.measured.median >= 0
        assert (figure.against is None) == (figure.ratio is None)
        if figure.against is not None and figure.against.median:
            ratio = figure.measured.median / figure.against.median
            assert figure.ratio == pytest.approx(ratio) or figure.ratio == pytest.approx(1 / ratio)
    return {figure.what: figure for figure in figures}


def test_updates_are_held_against_the_official_code_and_memory_against_the_bare_process(tmp_path):
    found = rows("update", tmp_path)
    state = found["update of deflow, state, batch 2, float32"]
    assert state.goal is not None
    assert state.goal.limit == 1.2
    assert state.against.median == pytest.approx(69 * 4.6)
    assert "GFLOP" in state.note
    assert found["update of fql, state, batch 2, float32"].against.values == state.measured.values
    assert sum(what.startswith("memory of an update") for what in found) == 3
    assert not any("bf16" in what for what in found)  # this machine has no instructions for it


def test_an_action_is_held_against_the_official_code_and_others_against_deflow(
    tmp_path, monkeypatch
):
    # Exporting an encoder takes half a minute.
    monkeypatch.setattr(action, "PIXELS", action.STATE)
    monkeypatch.setattr(action, "_time", functools.cache(action._time))
    found = rows("action", tmp_path)
    assert len(found) == 10
    goals = [what for what, figure in found.items() if figure.goal is not None]
    assert goals == [f"one action, {kind}, deflow, ONNX, float32" for kind in ("state", "pixels")]


@pytest.mark.parametrize("act", [eager, graph, onnx])
def test_every_way_of_acting_gives_an_action(act):
    assert act(make_agent("state"))().shape == (1, 3)


def test_an_evaluation_is_held_against_a_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "POOLS", ((1, 1), (2, 2), (3, 2)))
    *others, default = rows("evaluation", tmp_path).values()
    assert [figure.goal for figure in others] == [None, None]
    assert default.goal.limit == 1.8
    assert {figure.against for figure in others} == {default.against}


def test_waiting_is_a_share_of_the_step(tmp_path):
    (figure,) = rows("wait", tmp_path).values()
    assert not figure.goal.at_least
    assert figure.ratio <= 1


def test_growth_holds_the_larger_dataset_against_the_smaller(tmp_path):
    found = rows("growth", tmp_path)
    assert len(found) == 6
    assert all("1,000" in what for what in found)
    assert {figure.basis for figure in found.values()} == {"500 transitions"}
    assert found["memory of the process, ram, 1,000 transitions"].goal is None


def test_data_are_streamed_and_converted_beside_what_bounds_them(tmp_path):
    rate, memory = rows("streaming", tmp_path).values()
    assert (rate.measured.unit, memory.measured.unit) == ("transitions/s", "GB")
    plain, compressed, store = rows("conversion", tmp_path).values()
    assert plain.basis == "asked"
    assert compressed.basis == "zlib alone"
    assert store.measured.median > 1


def test_mixing_is_held_against_independent_draws(tmp_path):
    found = rows("mixing", tmp_path)
    assert all(0 < figure.ratio <= 1 for figure in found.values())


def test_profiles_are_held_against_the_official_one_and_drawn_side_by_side(tmp_path):
    picture = tmp_path / "profiles.png"
    fast, draft = rows("render", tmp_path, picture=picture).values()
    assert fast.what == "drawing cube-single, profile fast"
    assert draft.goal.limit == 10
    assert "dB like it" in draft.note
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_methods_are_held_against_deflow(tmp_path):
    deflow, bc = rows("methods", tmp_path).values()
    assert deflow.against is None
    assert bc.what == "update of bc, state, batch 4, float32"
    assert bc.against == deflow.measured


def test_a_busy_machine_is_told_of(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "look", lambda: dataclasses.replace(MACHINE, load=9.0))
    said = []
    bench(("mixing",), TINY, Reference(), said.append)
    assert said[0].startswith("Other work runs on this machine (load 9.0)")


def test_the_script_writes_the_table_where_it_is_told_to(monkeypatch, tmp_path, capsys):
    page, values = tmp_path / "page.md", tmp_path / "values.json"
    page.write_text("<!-- measured: begin -->\n<!-- measured: end -->\n")
    words = ["--parts", "mixing", "--to", str(page), "--json", str(values)]
    monkeypatch.setattr("sys.argv", ["bench.py", *words])
    script.main()
    assert "independent draws" in capsys.readouterr().out
    assert "`python scripts/bench.py --parts mixing`, 2" in page.read_text()
    assert values.is_file()


def test_the_script_says_what_is_wrong(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["bench.py", "--parts", "mixing", "--to", str(tmp_path / "no")])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2
    assert "does not exist" in capsys.readouterr().err


def test_folders_of_this_machine_stay_out_of_a_page():
    words = ["--reference", "/home/me/x", "--reference-python", "/a/python", "--to", "b"]
    assert script._shown(words) == ["--reference", "CHECKOUT", "--reference-python", "PYTHON"]


def test_all_parts_but_the_methods_are_timed_by_default():
    assert script.Arguments().parts == BY_DEFAULT
    assert "methods" not in BY_DEFAULT
