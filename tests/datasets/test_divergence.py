"""The intrinsic action variance: against a naive loop, and where its value is known."""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.datasets.divergence import action_variance, simulator_states
from deflow_vision.datasets.store import StoreWriter, open_store
from deflow_vision.types import UserError


def made(rng, lengths=(30, 2, 25), state_dim=3, action_dim=2):
    """Random states and actions of a few episodes; the last state's action is no action."""
    ends = np.cumsum(lengths)
    states = rng.normal(size=(ends[-1], state_dim)).astype(np.float32)
    actions = rng.uniform(-1, 1, (ends[-1], action_dim)).astype(np.float32)
    actions[ends - 1] = np.nan
    return states, actions, ends


def naive(states, actions, ends, k, metric, apart):
    """The definition, word for word, for every state that starts a transition."""
    valid = [row for row in range(len(states)) if row + 1 not in ends]
    scale = states[valid].std(0) if metric == "standardised" else 1
    values = []
    for row in valid:
        near = []
        for other in valid:
            same = np.searchsorted(ends, row, "right") == np.searchsorted(ends, other, "right")
            if not same or abs(row - other) >= apart:
                near.append((np.linalg.norm((states[row] - states[other]) / scale), other))
        chosen = [other for _, other in sorted(near)[:k]]
        values.append(np.mean([np.var(actions[chosen, dim]) for dim in range(actions.shape[1])]))
    return values


@pytest.mark.parametrize("metric", ["standardised", "raw"])
def test_it_is_what_a_naive_loop_finds(metric):
    states, actions, ends = made(np.random.default_rng(0))
    states[:, 1] *= 7
    found = action_variance(states, actions, ends, k=4, metric=metric, apart=(0, 1, 4))
    for answer, apart in zip(found, (0, 1, 4), strict=True):
        expected = naive(states, actions, ends, 4, metric, apart)
        np.testing.assert_allclose(answer.per_state, expected, rtol=1e-5)
        assert answer.iav == pytest.approx(np.mean(expected))


def test_gaussian_noise_around_a_policy_is_found_within_its_sampling_error():
    # Dense states, so that a neighbour's policy action is nearly the state's own.
    rng, noise, k = np.random.default_rng(0), 0.2, 5
    ends = np.arange(1, 201) * 101
    states = rng.uniform(size=(ends[-1], 2)).astype(np.float32)
    policy = 0.3 * np.stack([np.sin(states[:, 0]), states[:, 1], states.sum(1)], 1)
    actions = policy + rng.normal(scale=noise, size=policy.shape)
    (found,) = action_variance(states, actions, ends, k=k)
    known = noise**2 * (k - 1) / k
    assert found.standard_error is not None
    assert found.standard_error < 0.02 * known
    assert abs(found.iav - known) < 4 * found.standard_error


def test_a_deterministic_policy_has_none():
    rng = np.random.default_rng(0)
    ends = np.arange(1, 21) * 201
    states = rng.uniform(size=(ends[-1], 2)).astype(np.float32)
    (found,) = action_variance(states, np.cos(3 * states), ends)
    assert found.iav < 1e-3


def test_steps_of_the_same_trajectory_may_be_left_out():
    # Three episodes at each of two places; each has one action, and stays nearer to itself.
    episode, step = np.divmod(np.arange(120), 20)
    place, kind = np.divmod(episode, 3)
    states = np.stack([100 * place + kind, step / 1000], 1).astype(np.float32)
    actions = 0.6 * (kind[:, None] - 1.0)
    ends = np.arange(20, 121, 20)
    found = {
        k: action_variance(states, actions, ends, k=k, metric="raw", apart=(0, 20))
        for k in (19, 38)
    }
    assert found[19][0].iav == 0  # all 19 are steps of its own episode
    # All 38 are steps of the other two episodes: half of them each.
    assert found[38][1].iav == pytest.approx(np.mean([0.3**2, 0.6**2, 0.3**2]))


def test_units_of_the_states_do_not_matter_unless_asked_for():
    states, actions, ends = made(np.random.default_rng(1))
    scaled = states * np.float32([1, 100, 0.01])
    for metric, same in (("standardised", True), ("raw", False)):
        one, other = (
            action_variance(x, actions, ends, metric=metric)[0].iav for x in (states, scaled)
        )
        assert (one == pytest.approx(other, rel=1e-4)) == same
