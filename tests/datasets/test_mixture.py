"""Which rows of a batch are online ones, and which transitions they are."""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.datasets.mixture import Mixture
from deflow_vision.datasets.replay import Replay
from tests.datasets.test_replay import fill, states_of


@pytest.fixture
def replay(tmp_path):
    return Replay(
        tmp_path / "replay",
        observation_shape=(5,),
        dtype="float32",
        action_dim=2,
        frame_stack=1,
        capacity=100,
    )


def numbers_of(replacement):
    return states_of(replacement.batch, pixels=False)


def test_an_empty_buffer_replaces_nothing(replay):
    assert Mixture(replay, 10, 6, seed=0)(3) is None


def test_a_union_is_uniform_over_both(replay):
    fill(replay, (31,), pixels=False)
    mixture = Mixture(replay, 90, 64, seed=0)  # 30 online transitions, 90 offline ones
    drawn = [mixture(step) for step in range(200)]
    share = np.mean([len(d.rows) for d in drawn]) / 64
    assert share == pytest.approx(30 / 120, abs=0.02)
    counts = np.bincount(np.concatenate([numbers_of(d) for d in drawn]), minlength=30)
    assert counts.min() > 0.6 * counts.mean()
    assert counts.max() < 1.5 * counts.mean()


@pytest.mark.parametrize(("sampling", "wanted"), [("balanced", 8), ("ratio", 4)])
def test_a_fixed_share_of_every_batch_is_online(replay, sampling, wanted):
    fill(replay, (4,), pixels=False)
    mixture = Mixture(replay, 1000, 16, seed=0, sampling=sampling, ratio=0.25)
    rows = [mixture(step).rows for step in range(50)]
    assert {len(set(r)) for r in rows} == {wanted}
    assert len({tuple(r) for r in rows}) > 1  # so that no stream of the batch has all of them
    assert set(np.concatenate(rows)) == set(range(16))


def test_a_draw_depends_on_the_seed_the_step_and_the_buffer_alone(replay):
    fill(replay, (9,), pixels=False)
    first, again, other, later = (
        numbers_of(Mixture(replay, 5, 32, seed=seed)(step))
        for seed, step in ((1, 7), (1, 7), (2, 7), (1, 8))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, later)


@pytest.mark.parametrize("added", [1, 3, 4, 6, 9, 14])
def test_overwriting_draws_from_the_slots_of_a_ring_buffer(replay, added):
    offline, slots, batch_size = 5, 8, 64
    ring = [("offline", i) for i in range(offline)] + [None] * (slots - offline)
    for i in range(added):
        ring[(offline + i) % slots] = ("online", i)
    fill(replay, (added + 1,), pixels=False)
    rng = np.random.default_rng(0)
    places = [rng.integers(offline, size=batch_size) for _ in range(100)]
    mixture = Mixture(
        replay, offline, batch_size, seed=0, slots=slots, offline=lambda step: places[step]
    )
    seen = []
    for step in range(100):
        drawn = mixture(step)
        batch = [("offline", int(i)) for i in places[step]]
        for row, number in zip(drawn.rows, numbers_of(drawn), strict=True):
            batch[row] = ("online", int(number))
        seen += batch
    filled = [slot for slot in ring if slot is not None]
    assert set(seen) == set(filled)
    counts = np.array([seen.count(slot) for slot in filled])
    assert np.abs(counts / counts.mean() - 1).max() < 0.15


def test_overwriting_leaves_out_a_running_episode_where_returns_are_wanted(tmp_path):
    replay = Replay(
        tmp_path / "replay",
        observation_shape=(5,),
        dtype="float32",
        action_dim=2,
        frame_stack=1,
        capacity=100,
        fields=("mc_returns",),
    )
    fill(replay, (4, 6), pixels=False, running=True)
    mixture = Mixture(
        replay, 5, 64, seed=0, slots=20, offline=lambda step: np.zeros(64, dtype=np.int64)
    )
    drawn = np.concatenate([numbers_of(mixture(step)) for step in range(20)])
    assert set(drawn) == {0, 1, 2}
