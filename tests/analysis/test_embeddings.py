"""Numbers of features whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.analysis import embeddings
from deflow_vision.analysis.embeddings import (
    effective_rank,
    linear_cka,
    linear_probe,
    nearest_neighbours,
    neighbours_action,
    r2,
    r2_error,
    singular_values,
    standardise,
)
from deflow_vision.types import UserError

N, D = 600, 12
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(N, D)).astype(np.float32)
EPISODES = np.repeat(np.arange(12), N // 12)
HELD_OUT = EPISODES >= 9


def orthonormal(rows: int, columns: int) -> np.ndarray:
    """Columns of length 1, at right angles to each other and with mean 0."""
    drawn = np.random.default_rng(1).normal(size=(rows, columns))
    return np.linalg.qr(drawn - drawn.mean(0))[0]


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)])
def test_singular_values_are_those_of_the_centred_features(shape):
    features = np.random.default_rng(2).normal(3, 1, shape)
    known = np.linalg.svd(features - features.mean(0), compute_uv=False)
    np.testing.assert_allclose(singular_values(features), known, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_effective_rank_of_k_equal_singular_values_is_k(k):
    columns = orthonormal(100, k) @ orthonormal(20, k).T * 7 + 2
    assert effective_rank(columns.astype(np.float32)) == pytest.approx(k, rel=1e-4)


def test_the_effective_rank_of_unequal_singular_values_is_exp_of_their_entropy():
    columns = orthonormal(100, 2) * [3, 1]
    assert effective_rank(columns) == pytest.approx(np.exp(-0.75 * np.log(0.75) + 0.25 * np.log(4)))


def test_features_that_do_not_vary_have_rank_0():
    assert effective_rank(np.ones((9, 4))) == 0


def probe(features, targets):
    found = linear_probe(features, {"x": targets}, EPISODES, HELD_OUT)["x"]
    return r2(targets[HELD_OUT], found)


def test_a_probe_finds_a_linear_function_of_features_of_any_scale():
    targets = 100 + FEATURES @ RNG.normal(size=(D, 2))
    assert probe(FEATURES * np.geomspace(1e-3, 1e3, D) - 5, targets) > 0.9999


def test_a_probe_finds_nothing_in_noise():
    assert -0.1 < probe(FEATURES, RNG.normal(size=(N, 2))) < 0.05


def test_more_features_than_states_do_not_overfit():
    features = np.concatenate([FEATURES[:, :1], RNG.normal(size=(N, 800))], axis=1)
    assert probe(features, RNG.normal(size=(N, 1))) > -0.2
    assert probe(10 * features[:, :1], features[:, :1]) > 0.99


def test_what_holds_within_episodes_alone_is_not_taken_for_knowledge():
    """Features that tell the episode, and a target that is constant in each."""
    one_hot = np.eye(12)[EPISODES] + 0.01 * RNG.normal(size=(N, 12))
    targets = RNG.normal(size=12)[EPISODES][:, None]
    assert probe(one_hot, targets) < 0.2


def test_targets_are_probed_each_for_itself():
    targets = {"known": FEATURES[:, :2] * 1e3, "noise": RNG.normal(size=(N, 1))}
    found = linear_probe(FEATURES, targets, EPISODES, HELD_OUT)
    assert {name: rows.shape for name, rows in found.items()} == {
        "known": (HELD_OUT.sum(), 2),
        "noise": (HELD_OUT.sum(), 1),
    }
    assert r2(targets["known"][HELD_OUT], found["known"]) > 0.999
    alone = linear_probe(FEATURES, {"noise": targets["noise"]}, EPISODES, HELD_OUT)["noise"]
    np.testing.assert_allclose(found["noise"], alone, atol=1e-4)


def test_a_single_training_episode_is_probed_in_stretches_of_time():
    episodes = HELD_OUT.astype(int)
    targets = {"x": FEATURES[:, :1]}
    found = linear_probe(FEATURES, targets, episodes, HELD_OUT)["x"]
    assert r2(targets["x"][HELD_OUT], found) > 0.99


@pytest.mark.parametrize("held_out", [np.ones(N, bool), np.zeros(N, bool)])
def test_a_probe_without_states_to_fit_or_to_test_is_refused(held_out):
    with pytest.raises(UserError, match="training states and held-out ones"):
        linear_probe(FEATURES, {"x": FEATURES[:, :1]}, EPISODES, held_out)


def test_r2_is_1_for_the_truth_0_for_the_mean_and_unknown_for_a_constant():
    targets = FEATURES[:, :3]
    assert r2(targets, targets) == 1
    assert r2(targets, np.broadcast_to(targets.mean(0), targets.shape)) == pytest.approx(0)
    assert r2(targets, -targets) < -2
    assert np.isnan(r2(np.full((9, 1), 0.1, np.float32), np.zeros((9, 1))))


def test_r2_weighs_dimensions_by_their_variance():
    targets = FEATURES[:, :2] * [10, 0.1]
    assert r2(targets, targets * [1, 0]) > 0.99


def test_the_error_of_r2_is_its_spread_over_draws_of_episodes():
    """Of fresh episodes of 20 states each, whose error of prediction is common to an episode."""
    rng = np.random.default_rng(6)

    def draw(episodes):
        groups = np.repeat(np.arange(episodes), 20)
        targets = rng.normal(size=(len(groups), 2))
        return targets, targets + 0.5 * rng.normal(size=(episodes, 2))[groups], groups

    spread = np.std([r2(*draw(25)[:2]) for _ in range(400)])
    found = np.mean([r2_error(*draw(25)) for _ in range(20)])
    assert found == pytest.approx(spread, rel=0.15)
    targets, predictions, _ = draw(25)
    assert r2_error(targets, predictions, np.arange(500)) < 0.6 * found  # as if independent


def test_the_error_of_r2_is_unknown_of_few_episodes_and_of_constants():
    targets, groups = FEATURES[:100, :2], np.repeat(np.arange(5), 20)
    assert r2_error(targets, 0.9 * targets, groups) > 0
    assert np.isnan(r2_error(targets, 0.9 * targets, groups.clip(max=3)))
    assert np.isnan(r2_error(np.ones((100, 1)), targets, groups))


def test_constant_features_are_dropped_and_the_others_scaled_by_the_first():
    train, other = standardise(np.c_[FEATURES * 3 + 4, np.ones(N)], np.c_[FEATURES, np.ones(N)])
    assert train.shape == other.shape == (N, D)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(0), 1, atol=1e-5)
    np.testing.assert_allclose(
        other, (FEATURES - (3 * FEATURES + 4).mean(0)) / (3 * FEATURES).std(0), atol=1e-4
    )
    with pytest.raises(UserError, match="constant"):
        standardise(np.ones((5, 3)))


@pytest.mark.parametrize("shift", [0, 1e5])
def test_neighbours_are_the_nearest_states_of_other_episodes(shift):
    features = np.array([[0.0], [0.1], [0.2], [5.0], [0.3]]) + shift
    episodes = np.array([0, 0, 1, 1, 2])
    found, distances = nearest_neighbours(features, episodes, np.array([0, 4]), np.arange(5), 2)
    assert found.tolist() == [[2, 4], [2, 1]]
    np.testing.assert_allclose(distances[0], [0.2, 0.3], rtol=1e-4)


def test_features_weigh_as_they_vary():
    features = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.01]])
    found, _ = nearest_neighbours(features, np.arange(3), np.array([0]), np.arange(3), 1)
    assert found.tolist() == [[2]]
    with pytest.raises(UserError, match="constant"):
        nearest_neighbours(np.ones((5, 2)), np.arange(5), np.array([0]), np.arange(5), 1)


def test_too_few_states_of_other_episodes_are_refused():
    with pytest.raises(UserError, match="fewer than 3"):
        nearest_neighbours(FEATURES[:4], np.array([0, 0, 1, 1]), np.arange(2), np.arange(4), 3)


def test_many_queries_are_searched_in_parts(monkeypatch):
    pool, queries = np.flatnonzero(~HELD_OUT), np.flatnonzero(HELD_OUT)
    whole = nearest_neighbours(FEATURES, EPISODES, queries, pool, 3)
    monkeypatch.setattr(embeddings, "QUERIES_AT_ONCE", 7)
    parts = nearest_neighbours(FEATURES, EPISODES, queries, pool, 3)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-5)


def consistency(features, actions, k):
    queries, pool = np.flatnonzero(HELD_OUT), np.flatnonzero(~HELD_OUT)
    neighbours, _ = nearest_neighbours(features, EPISODES, queries, pool, k)
    return r2(actions[queries], neighbours_action(actions, neighbours))


def test_neighbours_in_action_space_act_alike():
    assert consistency(FEATURES[:, :2], FEATURES[:, :2], k=3) > 0.9


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_at_random_are_minus_one_over_k(k):
    actions = np.random.default_rng(3).normal(size=(N, 40))
    assert consistency(FEATURES, actions, k) == pytest.approx(-1 / k, abs=0.05)


def test_cka_ignores_rotation_scale_and_shift():
    rotation = np.linalg.qr(RNG.normal(size=(D, D)))[0]
    cka = linear_cka([FEATURES, FEATURES @ rotation * 1e-2 + 3, np.c_[FEATURES, 0 * FEATURES]])
    np.testing.assert_allclose(cka, 1, atol=1e-6)


def test_cka_of_independent_features_is_near_0_however_many_they_are():
    few, other = (np.random.default_rng(seed).normal(size=(100, 400)) for seed in (4, 5))
    cka = linear_cka([few, other])
    assert abs(cka[0, 1]) < 0.05
    assert cka[0, 1] == cka[1, 0]


def test_cka_is_that_of_the_unbiased_estimator_on_gram_matrices():
    x, y = FEATURES[:30], FEATURES[:30, :3] ** 2 + FEATURES[:30, 3:6]

    def hsic(a, b):
        n = len(a)
        k, m = ((z @ z.T) * (1 - np.eye(n)) for z in (a.astype(float), b.astype(float)))
        cross = k.sum() * m.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * (k @ m).sum()
        return np.trace(k @ m) + cross

    known = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert linear_cka([x, y])[0, 1] == pytest.approx(known, rel=1e-6)


def test_cka_of_half_shared_features_lies_between():
    mixed = np.c_[FEATURES[:, : D // 2], RNG.normal(size=(N, D // 2))]
    assert linear_cka([FEATURES, mixed])[0, 1] == pytest.approx(0.5, abs=0.05)


def test_cka_of_constant_features_is_unknown():
    cka = linear_cka([FEATURES, np.ones((N, 2))])
    assert cka[0, 0] == pytest.approx(1)
    assert np.isnan(cka[0, 1])


def test_cka_of_different_states_is_refused():
    with pytest.raises(ValueError, match="equal numbers"):
        linear_cka([FEATURES, FEATURES[1:]])
