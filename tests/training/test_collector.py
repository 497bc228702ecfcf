"""Which environment takes which step, in environments that do as they are told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deflow_vision.config.schema import OnlineConfig
from deflow_vision.datasets.replay import Replay
from deflow_vision.envs.pool import EnvError
from deflow_vision.envs.server import EnvStep
from deflow_vision.seeding import derive_seed
from deflow_vision.training.online import Collector

BEGINS = 4
SEEDS = [derive_seed(derive_seed(0, "online"), "episode", i) for i in range(50)]


class Pool:
    """Episodes of so many steps, by their number; `fails` has the steps at which a copy breaks."""

    env_id = "stub"

    def __init__(self, lengths, fails=()):
        self.lengths, self.fails = lengths, set(fails)
        self.episodes, self.steps = {}, {}
        self.begun, self.restarts = [], []

    def restart(self, index):
        self.restarts.append(index)

    def reset(self, index, seed):
        self.episodes[index], self.steps[index] = SEEDS.index(seed), 0
        self.begun.append(SEEDS.index(seed))
        return self.see(index)

    def try_step(self, indices, actions):
        assert len(indices) == len(actions)
        return [self.step(index) for index in indices]

    def step(self, index):
        self.steps[index] += 1
        if (index, self.episodes[index], self.steps[index]) in self.fails:
            return EnvError("it broke")
        over = self.steps[index] == self.lengths[self.episodes[index]]
        return EnvStep(self.see(index), -1.0, False, over, {})

    def see(self, index):
        return np.array([self.episodes[index], self.steps[index]], np.float32)


class Policy:
    """Stands still, and remembers what it saw and drew from."""

    def __init__(self):
        self.seen, self.seeds = [], []

    def act(self, observations, *, explore, generator):
        assert explore
        self.seen.append([tuple(row) for row in observations.tolist()])
        self.seeds += [g.initial_seed() for g in generator]
        return torch.zeros(len(observations), 1)


@pytest.fixture
def make(tmp_path):
    def make(pool, num_envs, **changes):
        buffers = [
            Replay(
                tmp_path / str(index),
                observation_shape=(2,),
                dtype="float32",
                action_dim=1,
                frame_stack=1,
                capacity=100,
            )
            for index in range(num_envs)
        ]
        config = SimpleNamespace(
            offline_steps=BEGINS, seed=0, online=OnlineConfig(num_envs=num_envs, **changes)
        )
        setup = SimpleNamespace(
            run_dir=tmp_path,
            accelerator=SimpleNamespace(device=torch.device("cpu")),
            config=config,
            task=SimpleNamespace(reward_shift=0.5),
        )
        return Collector(pool, buffers, setup), buffers

    return make


def collect(collector, policy, num_updates, **settings):
    """Transitions so far at each update, and the rows of the episodes that ended."""
    counts, rows = [], []
    for step in range(BEGINS, BEGINS + num_updates):
        rows += collector(policy, step, **settings)
        counts.append(collector.replay.num_transitions)
    return counts, rows


@pytest.mark.parametrize(("num_envs", "utd_ratio"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_each_transition_has_as_many_updates_whatever_the_number_of_environments(
    make, num_envs, utd_ratio
):
    policy, pool = Policy(), Pool([5] * 50)
    collector, _ = make(pool, num_envs, utd_ratio=utd_ratio)
    counts, _ = collect(collector, policy, 20)
    rounds = np.arange(20) // (num_envs * utd_ratio) + 1
    assert counts == list(num_envs * rounds)
    assert [len(seen) for seen in policy.seen] == [num_envs] * rounds[-1]  # one call a round
    updates = [BEGINS + utd_ratio * i for i in range(len(policy.seeds))]
    online = derive_seed(0, "online")
    assert policy.seeds == [derive_seed(online, "exploration", update) for update in updates]


@pytest.mark.parametrize("num_envs", [1, 2, 3])
def test_episodes_are_seeded_by_their_number_and_lie_in_one_piece(make, num_envs):
    lengths = [3, 1, 4, 2, 5, 1, 2, 3] + [50] * 9
    pool = Pool(lengths)
    collector, buffers = make(pool, num_envs)
    _, rows = collect(collector, Policy(), 25)
    assert pool.begun == list(range(len(pool.begun)))
    assert [row["online/episodes"] for row in rows] == list(range(1, len(rows) + 1))
    assert sum(row["online/length"] for row in rows) == -sum(row["online/return"] for row in rows)
    found = []
    for buffer in buffers:
        batch = buffer.batch(np.arange(len(buffer)))
        before, after = batch.frames[:, 0], batch.frames[:, 1]
        np.testing.assert_array_equal(after - before, [[0, 1]] * len(before))
        np.testing.assert_array_equal(batch.rewards, -0.5)
        found += [tuple(state) for state in before]
    assert len(set(found)) == len(found) == collector.replay.num_transitions
    ended = {episode for episode, step in found if step == lengths[int(episode)] - 1}
    assert len(ended) == len(rows)


def test_no_episode_begins_while_a_checkpoint_waits_for_the_others(make):
    pool, policy = Pool([2, 6, 4, *[3] * 20]), Policy()
    collector, _ = make(pool, 3)
    collect(collector, policy, 4)  # two rounds: episode 0 has ended
    assert not collector.at_rest
    for step in range(BEGINS + 4, BEGINS + 14):
        if collector.at_rest:
            break
        collector(policy, step, hold=True)
    assert collector.at_rest
    assert pool.begun == [0, 1, 2]
    assert [len(seen) for seen in policy.seen] == [3, 3, 2, 2, 1, 1]
    assert collector.replay.num_transitions == 2 + 6 + 4
    collect(collector, policy, 20)
    assert policy.seen[6] == [(3, 0), (4, 0), (5, 0)]  # all of them begin anew


def test_an_environment_that_breaks_leaves_the_others_and_takes_the_next_episode(make, caplog):
    pool, policy = Pool([4] * 50, fails=[(1, 1, 2)]), Policy()
    collector, buffers = make(pool, 3)
    counts, _ = collect(collector, policy, 9)
    assert counts == [3] * 3 + [5] * 2 + [8] * 3 + [11]
    assert pool.restarts == [1]
    assert policy.seen[2] == [(0, 2), (3, 0), (2, 2)]
    assert "made anew" in caplog.text
    first = buffers[1].batch(np.arange(1))
    np.testing.assert_array_equal(first.frames[0], [[1, 0], [1, 1]])
    assert first.masks == 1  # what was seen stays, as if time had run out


def test_an_environment_that_never_ends_an_episode_ends_the_run_whatever_the_others_do(make):
    fails = [(1, episode, 1) for episode in range(50)]
    collector, _ = make(Pool([1] * 50, fails), 2, max_restarts=4)
    with pytest.raises(EnvError, match=r"(?s)it broke.*failed 5 times"):
        collect(collector, Policy(), 50)
