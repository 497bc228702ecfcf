"""The flow in one state, its modes, and how it is refined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deflow_vision.agents.base import standard_normal
from deflow_vision.analysis.bandit import draw_data
from deflow_vision.analysis.bandit import modes as known_modes
from deflow_vision.analysis.refinement import (
    Moves,
    busiest_dims,
    flow_of,
    mode_counts,
    modes,
    moves,
    paths,
    vector_field,
)
from deflow_vision.analysis.refinement_plots import plot_flow, plot_moves
from deflow_vision.types import UserError
from tests.agents.conftest import make_agent

STATE = torch.arange(5.0)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("algo", ["deflow", "fql", "bc_flow"])
def test_paths_end_at_the_base_flows_actions(algo):
    agent = make_agent("state", algo=algo, flow_steps=10)
    noises = standard_normal(9, 3, draws())
    walked = paths(agent, STATE, noises)
    assert walked.shape == (11, 9, 3)
    torch.testing.assert_close(walked[0], noises)
    features = agent.features(STATE[None], "flow").expand(9, -1)
    if algo == "deflow":
        known = agent.base_actions(features, noises)
    elif algo == "fql":
        known = agent.flow_actions(features, noises)
    else:
        known = agent.decide(STATE.expand(9, -1), noises)
    torch.testing.assert_close(walked[-1].clamp(-1, 1), known)


def test_the_field_is_the_velocity_on_a_plane():
    agent, grid = make_agent("state"), torch.linspace(-1, 1, 4)
    at = torch.tensor([9.0, 0.5, 9.0])
    field = vector_field(agent, STATE, (0, 2), 0.3, at, grid)
    assert field.shape == (4, 4, 2)
    point = torch.tensor([[grid[3], 0.5, grid[1]]])
    known = agent.bc_flow(agent.features(STATE[None], "flow"), point, torch.tensor([0.3]))
    torch.testing.assert_close(field[1, 3], known[0, [0, 2]])


def test_an_agent_without_a_flow_is_refused():
    with pytest.raises(UserError, match="BC has no base flow"):
        flow_of(make_agent("state", algo="bc"))


@pytest.mark.parametrize("size", [300, 1000])
def test_the_modes_of_the_bandits_data_are_its_six(size):
    middles, shares = modes(draw_data(size, draws()).numpy())
    assert len(middles) == 6
    distances = np.linalg.norm(middles[:, None] - known_modes().numpy(), axis=-1)
    assert sorted(distances.argmin(1)) == list(range(6))
    assert distances.min(1).max() < 0.05
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 0).all()


@pytest.mark.parametrize("width", [0.2, 0.5])
@pytest.mark.parametrize("dim", [2, 5])
def test_a_gaussian_has_one_mode_clipped_or_not(width, dim):
    samples = np.random.default_rng(0).normal(0, width, (600, dim)).clip(-1, 1)
    middles, shares = modes(samples)
    assert middles.shape == (1, dim)
    assert np.abs(middles).max() < 0.1
    assert shares[0] > 0.9


def test_two_heaps_that_flow_into_each_other_are_one_mode():
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(m, 0.2, (400, 2)) for m in (-0.15, 0.15)])
    assert len(modes(samples)[0]) == 1


def test_modes_are_counted_in_each_state():
    agent = make_agent("state")
    noises = standard_normal(100, 3, draws())
    table = mode_counts(agent, torch.stack([STATE, -STATE, STATE]), noises)
    known = modes(paths(agent, -STATE, noises)[-1].clamp(-1, 1).numpy())[1]
    assert table["modes"].tolist()[1] == len(known)
    assert table["greatest share"][1] == pytest.approx(known.max())
    assert table.iloc[0].tolist() == table.iloc[2].tolist()


def test_few_stray_samples_are_no_mode():
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(0, 0.1, (500, 2)), rng.normal(0.9, 0.01, (10, 2))])
    assert len(modes(samples)[0]) == 1


def test_the_busiest_dimensions_are_those_that_vary_most():
    samples = np.random.default_rng(0).normal(size=(50, 4)) * [1, 3, 0.1, 2]
    assert busiest_dims(samples) == (1, 3)


@pytest.mark.parametrize("kind", ["state", "pixels"])
@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_moves_are_those_of_the_policy(kind, sharing, pixels):
    agent = make_agent(kind, sharing, target_divergence=0.02)
    observations = torch.from_numpy(pixels.observations[:4])
    if kind == "state":
        observations = torch.randn(4, 5, generator=draws(1))
    found = moves(agent, observations, 6, draws())
    base, refined, displacements = map(
        torch.from_numpy, (found.base, found.refined, found.displacements)
    )
    assert base.shape == (4, 6, 3)
    with torch.no_grad():
        noises = standard_normal(6, 3, draws())
        acted = agent.decide(observations[:1].repeat_interleave(6, 0), noises)
        features = agent.features(observations[1:2], "critic").expand(6, -1)
        gains = agent.critic(features, refined[1]) - agent.critic(features, base[1])
    torch.testing.assert_close(refined[0], acted)
    torch.testing.assert_close(refined, (base + displacements).clamp(-1, 1))
    torch.testing.assert_close(torch.from_numpy(found.gains[1]), gains.mean(0), atol=1e-6, rtol=0)
    assert found.target_divergence == 0.02
    assert (base[0] != base[1]).any()  # each state has noises of its own


def test_the_summary_is_in_the_units_of_delta():
    displacements = np.full((2, 3, 4), 0.1)
    displacements[0] = 0
    gains = np.array([[1.0, -1.0, 0.0], [2.0, 2.0, 2.0]])
    found = Moves(displacements, displacements, displacements, gains, 0.001)
    assert found.summary() == {
        "divergence": pytest.approx(0.005),
        "target_divergence": 0.001,
        "largest_tenth_divergence": pytest.approx(0.01),
        "q_gain": pytest.approx(1.0),
        "share_uphill": pytest.approx(4 / 6),
    }


def test_only_deflow_refines():
    with pytest.raises(UserError, match="FQL refines nothing"):
        moves(make_agent("state", algo="fql"), torch.randn(1, 5), 2, draws())


def test_flow_and_moves_are_drawn(tmp_path):
    agent = make_agent("state")
    for names in ((), ("x", "y", "z")):
        flow = plot_flow(agent, STATE, tmp_path / "flow.png", samples=60, names=names)
        found = moves(agent, torch.randn(3, 5), 9, draws())
        sizes = plot_moves(found, tmp_path / "moves.png", names)
        assert flow.stat().st_size > 20_000
        assert sizes.stat().st_size > 20_000


def test_moves_that_gain_nothing_are_drawn(tmp_path):
    still = np.zeros((2, 3, 4))
    found = Moves(still, still, still, np.zeros((2, 3)), 0.001)
    assert plot_moves(found, tmp_path / "moves.png").exists()
