from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.datasets.memory import available_memory
from deflow_vision.datasets.residency import plan_residency
from deflow_vision.datasets.sampler import make_sampler
from deflow_vision.datasets.store import StoreError, StoreWriter, open_store

from .conftest import frames_of

EPISODES = (6, 2, 9)
FACTS = {"frame_stack": 3, "batch_size": 8, "seed": 7, "residency": "ram"}


def sampler_of(path, **changes):
    return make_sampler(open_store(path).train, "task1", **FACTS | changes)


def state_numbers(batch) -> np.ndarray:
    """The stored state of each row, which the fixture's actions tell."""
    return np.rint(batch.actions[:, 0] * 1000).astype(int)


def equal(one, other) -> None:
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def test_batch_holds_the_stack_and_the_next_frame(make_store):
    batch = sampler_of(make_store(EPISODES)).batch(0)
    assert batch.frames.shape == (8, 4, 4, 6, 3)
    assert batch.frames.dtype == np.uint8
    stored = frames_of(0, 17, pixels=True)
    for row, state in zip(batch.frames, state_numbers(batch), strict=True):
        start = max(s for s in (0, 6, 8) if s <= state)
        expected = [stored[max(start, state + offset)] for offset in (-2, -1, 0, 1)]
        np.testing.assert_array_equal(row, expected)


def test_states_keep_their_floats(make_store):
    batch = sampler_of(make_store(EPISODES, pixels=False), frame_stack=1).batch(3)
    stored = frames_of(0, 17, pixels=False)
    numbers = state_numbers(batch)
    np.testing.assert_array_equal(batch.frames[:, 0], stored[numbers])
    np.testing.assert_array_equal(batch.frames[:, 1], stored[numbers + 1])


def test_rewards_and_masks_are_those_of_the_current_state(make_store):
    batch = sampler_of(make_store(EPISODES)).batch(1)
    numbers = state_numbers(batch)
    np.testing.assert_array_equal(batch.rewards, -(numbers % 3))
    np.testing.assert_array_equal(batch.masks, numbers % 5 != 0)
    assert batch.rewards.dtype == batch.masks.dtype == np.float32


def test_last_states_of_episodes_are_never_drawn_and_all_others_are(make_store):
    sampler = sampler_of(make_store(EPISODES))
    drawn = np.concatenate([state_numbers(sampler.batch(step)) for step in range(40)])
    assert set(drawn) == set(range(17)) - {5, 7, 16}


def test_batch_depends_on_seed_and_step_alone(make_store):
    path = make_store(EPISODES)
    one, other = sampler_of(path), sampler_of(path)
    later = one.batch(5)
    one.batch(0)
    equal(later, other.batch(5))
    assert (state_numbers(later) != state_numbers(sampler_of(path, seed=8).batch(5))).any()


def test_streams_of_two_processes_make_the_batch_of_one(make_store):
    path = make_store(EPISODES)
    whole = sampler_of(path, num_streams=4, streams=range(4)).batch(2)
    parts = [sampler_of(path, num_streams=4, streams=s).batch(2) for s in ([0, 1], [2, 3])]
    assert len(parts[0].rewards) == 4
    equal(
        [value for value in whole if value is not None],
        [np.concatenate(pair) for pair in zip(*parts, strict=True) if pair[0] is not None],
    )


def test_actions_stay_inside_the_open_interval(tmp_path):
    path = tmp_path / "a.zarr"
    facts = {"source": "t", "env_id": "e", "seeds": 0, "observation_dtype": "float32"}
    facts |= {"observation_shape": (1,), "action_dim": 2, "goals": ["task1"]}
    with StoreWriter(path, **facts) as writer:
        goals = {"task1": (np.zeros(2), np.ones(2))}
        writer.append_episode("train", np.zeros((2, 1), np.float32), np.array([[1.0, -1.0]]), goals)
    actions = sampler_of(path).batch(0).actions
    np.testing.assert_array_equal(actions[0], np.array([1 - 1e-5, 1e-5 - 1], np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_streams": 3}, "8 does not divide into 3"),
        ({"num_streams": 2, "streams": [2]}, "0 to 1"),
        ({"residency": "disk"}, "'disk': the choices are auto, device, ram and stream"),
        ({"batch_size": 32, "num_streams": 16}, "14 transitions for 16"),
        ({"budget_bytes": 100}, "take residency stream"),
        ({"budget_bytes": 100, "residency": "stream"}, "lower --data.window-blocks"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make_store, changes, message):
    with pytest.raises(ValueError, match=message):
        sampler_of(make_store(EPISODES), **changes)


def test_unknown_goal_is_refused_with_the_choices(make_store):
    with pytest.raises(StoreError, match="'task9' in train/tasks; it has task1"):
        make_sampler(open_store(make_store()).train, "task9", **FACTS)


def test_auto_residency_follows_the_budget(make_store):
    split = open_store(make_store((200,), chunk=2)).train
    assert plan_residency(split, 10**6).residency == "ram"
    plan = plan_residency(split, 10_000, window_blocks=2)
    assert plan.residency == "stream"
    assert plan.total_bytes <= 10_000
    assert "200 of 4x6x3" in plan.describe()


def test_available_memory_is_within_reason():
    assert 1 << 27 < available_memory() < 1 << 46


MACHINE = {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 800 kB\n"}
V2 = MACHINE | {
    "proc/self/cgroup": "0::/pod/box\n",
    "sys/fs/cgroup/memory.stat": "inactive_file 1\n",
    "sys/fs/cgroup/pod/memory.max": "500000\n",
    "sys/fs/cgroup/pod/memory.current": "300000\n",
    "sys/fs/cgroup/pod/memory.stat": "anon 7\ninactive_file 100000\n",
    "sys/fs/cgroup/pod/box/memory.max": "max\n",
    "sys/fs/cgroup/pod/box/memory.current": "300000\n",
    "sys/fs/cgroup/pod/box/memory.stat": "inactive_file 100000\n",
}
V1 = MACHINE | {
    "proc/self/cgroup": "4:cpu,memory:/docker/outside\n1:cpu:/\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "400000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "150000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 9\ntotal_inactive_file 50000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(MACHINE, 800 * 1024, id="no group"),
        pytest.param(V2, 300_000, id="v2, the limit of the group above"),
        pytest.param(
            V2 | {"sys/fs/cgroup/pod/box/memory.max": "350000"}, 150_000, id="v2, its own limit"
        ),
        pytest.param(
            V2 | {"sys/fs/cgroup/pod/memory.max": "9" * 15}, 800 * 1024, id="v2, a limit too high"
        ),
        pytest.param(V1, 300_000, id="v1, in a container"),
        pytest.param(
            V1 | {"sys/fs/cgroup/memory/memory.usage_in_bytes": "470000"}, 0, id="v1, full"
        ),
    ],
)
def test_available_memory_is_what_control_groups_leave(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == expected
