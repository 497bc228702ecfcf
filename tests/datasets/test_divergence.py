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


def test_the_sample_is_a_function_of_the_seed_and_of_no_more_states_than_there_are():
    states, actions, ends = made(np.random.default_rng(2))
    few = [action_variance(states, actions, ends, samples=20, seed=s)[0] for s in (0, 0, 1)]
    np.testing.assert_array_equal(few[0].per_state, few[1].per_state)
    assert few[0].standard_error == few[1].standard_error
    assert few[0].iav != few[2].iav
    assert len(few[0].per_state) == 20
    assert len(action_variance(states, actions, ends)[0].per_state) == 54


def test_the_standard_error_is_the_spread_over_samples_of_correlated_states():
    # Each episode has noise of its own size, so that its states tell the same tale.
    rng = np.random.default_rng(0)
    ends = np.arange(1, 301) * 21
    states = np.repeat(np.arange(300.0), 21)[:, None] * 9 + rng.uniform(size=(ends[-1], 1))
    actions = rng.normal(size=(ends[-1], 2)) * np.repeat(rng.uniform(0, 0.3, 300), 21)[:, None]
    found = [
        action_variance(states[s], actions[s], ends[:50], metric="raw")[0]
        for s in (slice(i * 1050, (i + 1) * 1050) for i in range(6))
    ]
    spread = np.std([each.iav for each in found], ddof=1)
    claimed = np.mean([each.standard_error for each in found])
    assert 0.4 < spread / claimed < 2.0


def test_a_single_episode_has_no_standard_error():
    states, actions, ends = made(np.random.default_rng(0), lengths=(30,))
    assert action_variance(states, actions, ends)[0].standard_error is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"apart": (0, 30)}, "54 transitions are too few for 5 neighbours 30 steps apart"),
        ({"k": 1}, "k is 1"),
        ({"samples": 0}, "samples 0"),
    ],
)
def test_a_search_without_an_answer_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        action_variance(*made(np.random.default_rng(0)), **options)


def test_pixels_are_searched_in_the_simulators_state(make_store):
    split = open_store(make_store(lengths=(6, 4))).train
    states = simulator_states(split)
    assert states.dtype == np.float32
    np.testing.assert_array_equal(states, np.repeat(np.arange(10.0)[:, None], 3, 1))


def test_states_are_searched_as_they_are_observed(make_store):
    split = open_store(make_store(pixels=False)).train
    np.testing.assert_array_equal(simulator_states(split), split.observations[:])


def test_pixels_alone_are_refused(tmp_path):
    path = tmp_path / "pixels.zarr"
    with StoreWriter(
        path,
        **{"source": "test", "env_id": "visual-test-v0", "seeds": {"train": 0}},
        observation_shape=(4, 6, 3),
        observation_dtype="uint8",
        action_dim=2,
    ) as writer:
        writer.append_episode("train", np.zeros((5, 4, 6, 3), np.uint8), np.zeros((4, 2)))
    with pytest.raises(UserError, match=r"without qpos.*a number"):
        simulator_states(open_store(path).train)
