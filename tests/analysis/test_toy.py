"""The toy bandit: its data and value, what its numbers mean, and that every method runs on it."""

import runpy
from pathlib import Path

import imageio.v3 as iio
import pandas as pd
import pytest
import torch

from deflow_vision.agents import AGENTS
from deflow_vision.analysis import toy
from deflow_vision.analysis.bandit import Outcome, draw_data, modes, value
from deflow_vision.analysis.toy import compare, make_agent, train

ROOT = Path(__file__).resolve().parents[2]
SMALL = "hidden_dims=[8,8]"


def data(size=6000, seed=0):
    return draw_data(size, torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(toy, "NUM_SAMPLES", 60)
    monkeypatch.setattr(toy, "BATCH_SIZE", 8)


def test_the_value_is_greatest_without_data_and_rises_inwards_in_every_mode():
    assert value(torch.zeros(2)) == 1
    assert value(modes()).max() < 0.6
    assert (value(0.9 * modes()) > value(modes()) + 0.02).all()


def test_the_datas_own_samples_keep_every_mode_and_lie_in_its_support():
    found = Outcome.of("data", data(seed=1), data())
    assert (found.modes_kept, found.gain) == (6, pytest.approx(0, abs=0.01))
    # Outside of three deviations: exp(-9 / 2) of a Gaussian in two dimensions.
    assert found.out_of_support == pytest.approx(0.011, abs=0.005)


def test_modes_that_move_inwards_are_uphill():
    found = Outcome.of("inwards", 0.95 * data(seed=1), data())
    assert (found.modes_kept, found.modes_uphill) == (6, 6)
    assert found.gain == pytest.approx(0.035, abs=0.01)


def test_a_move_of_all_samples_to_one_side_is_uphill_in_some_modes_alone():
    found = Outcome.of("left", data(seed=1) - torch.tensor([0.05, 0.0]), data())
    assert found.modes_kept == 6
    assert 0 < found.modes_uphill < 6


def test_a_collapse_onto_one_mode_or_between_modes_is_seen():
    one = Outcome.of("one", modes()[:1].expand(100, 2), data())
    assert (one.modes_kept, one.out_of_support) == (1, 0)
    middle = Outcome.of("middle", torch.zeros(100, 2), data())
    assert (middle.modes_kept, middle.modes_uphill, middle.out_of_support) == (0, 0, 1)
    assert middle.mean_value == pytest.approx(1)


@pytest.mark.parametrize("algo", AGENTS)
def test_every_method_learns_and_acts_by_its_name(algo):
    agent = make_agent(f"{algo}:{SMALL}", seed=0)
    train(agent, data(50), updates=2, seed=0)
    actions = agent.act(torch.ones(5, 1), generator=torch.Generator().manual_seed(0))
    assert actions.shape == (5, 2)
    assert torch.isfinite(actions).all()


def test_a_critic_learns_the_value(monkeypatch):
    monkeypatch.setattr(toy, "BATCH_SIZE", 64)
    agent = make_agent("rebrac:hidden_dims=[32,32]", seed=0)
    train(agent, data(), updates=300, seed=0)
    actions = data(200, seed=1)
    with torch.no_grad():
        errors = agent.critic(torch.ones(200, 1), actions).mean(0) - value(actions)
    assert errors.square().mean() < 0.2 * value(actions).var()


def test_the_same_seed_gives_the_same_numbers_and_files_of_them(tmp_path):
    methods = (f"deflow:{SMALL}", f"fbrac:{SMALL}:flow_steps=2")
    first, again = (compare(methods, seed=3, updates=2, out=tmp_path / name) for name in "ab")
    names = [outcome.method for outcome in first]
    assert names == ["data", "base flow", *methods]
    assert [o.mean_value for o in first] == [o.mean_value for o in again]
    assert first[2].target_divergence == 0.002
    table = pd.read_csv(tmp_path / "a" / "toy.csv")
    assert list(table["method"]) == names
    assert table["refinement"][2] == pytest.approx(first[2].refinement)
    assert iio.imread(tmp_path / "a" / "toy.png").std() > 5


@pytest.mark.parametrize(
    ("method", "message"),
    [("deflwo", "unknown method 'deflwo'.*deflow"), ("fbrac:alhpa=1", "unknown key 'alhpa'")],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(method, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare(("deflow", method), seed=0, updates=10**9, out=tmp_path)


def test_the_script_explains_an_error_and_exits_with_2(monkeypatch, capsys, tmp_path):
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["toy.py", "--methods", "sac", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(str(ROOT / "scripts" / "toy.py"), run_name="__main__")
    torch.set_num_threads(threads)
    assert refused.value.code == 2
    assert "unknown method 'sac'" in capsys.readouterr().err
