"""The online buffer against what went into it."""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.datasets.replay import Replay, ReplayError
from deflow_vision.datasets.transitions import returns_to_go
from tests.datasets.conftest import frames_of

A = 2
SHAPES = {True: (4, 6, 3), False: (5,)}


@pytest.fixture(params=[True, False], ids=["pixels", "state"])
def pixels(request):
    return request.param


@pytest.fixture
def make(tmp_path, pixels):
    """A buffer in the test's folder."""

    def make(**changes):
        arguments = {
            "observation_shape": SHAPES[pixels],
            "dtype": "uint8" if pixels else "float32",
            "action_dim": A,
            "frame_stack": 3,
            "capacity": 100,
        }
        return Replay(tmp_path / "replay", **arguments | changes)

    return make


def fill(replay, lengths, pixels, *, start=0, running=False):
    """Episodes of so many states; state n has the observation, reward and action of n."""
    for number, length in enumerate(lengths):
        frames = frames_of(start, length, pixels=pixels)
        replay.begin(frames[0])
        for i in range(1, length):
            n = start + i - 1
            replay.add(np.array([n, -n]) / 1000, -(n % 3), float(n % 5 != 0), frames[i])
        if not running or number + 1 < len(lengths):
            replay.end()
        start += length


def states_of(batch, pixels):
    """The states that the transitions of a batch start from, from their actions."""
    return np.rint(batch.actions[:, 0] * 1000).astype(int)


def test_every_transition_comes_back_with_stacks_of_its_own_episode(make, pixels):
    replay = make()
    fill(replay, (4, 2, 5), pixels)
    batch = replay.batch(np.arange(len(replay)))
    states = np.array([0, 1, 2, 4, 6, 7, 8, 9])
    np.testing.assert_array_equal(states_of(batch, pixels), states)
    np.testing.assert_array_equal(batch.rewards, -(states % 3))
    np.testing.assert_array_equal(batch.masks, states % 5 != 0)
    starts = np.array([0, 0, 0, 4, 6, 6, 6, 6])
    wanted = np.maximum(states[:, None] + [-2, -1, 0, 1], starts[:, None])
    np.testing.assert_array_equal(batch.frames, frames_of(0, 11, pixels=pixels)[wanted])


def test_the_newest_observation_is_stacked_and_never_from_another_episode(make, pixels):
    replay = make()
    fill(replay, (3,), pixels)
    frames = frames_of(50, 5, pixels=pixels)
    for i in range(5):
        if i:
            replay.add(np.zeros(A), 0.0, 1.0, frames[i])
        else:
            replay.begin(frames[0])
        wanted = np.concatenate([frames[max(0, i - back)] for back in (2, 1, 0)], axis=-1)
        np.testing.assert_array_equal(replay.observation(), wanted)


def test_a_running_episode_is_drawn_from(make, pixels):
    replay = make()
    fill(replay, (3, 1), pixels, running=True)
    assert len(replay) == 2
    replay.add(np.array([0.5, 0]), 0.0, 1.0, frames_of(4, 1, pixels=pixels)[0])
    assert len(replay) == 3
    assert states_of(replay.batch(np.array([2])), pixels) == 500


def test_the_oldest_whole_episodes_leave_first(make, pixels):
    replay = make(capacity=7)
    fill(replay, (4, 4), pixels)
    assert (len(replay), replay.num_evicted) == (6, 0)
    fill(replay, (3,), pixels, start=8, running=True)
    assert (len(replay), replay.num_evicted) == (5, 3)
    batch = replay.batch(np.arange(5))
    np.testing.assert_array_equal(states_of(batch, pixels), [4, 5, 6, 8, 9])
    frames = frames_of(0, 11, pixels=pixels)
    np.testing.assert_array_equal(batch.frames[0], frames[[4, 4, 4, 5]])
    assert (replay.num_transitions, replay.num_episodes) == (8, 3)


def test_the_newest_episode_stays_even_where_it_is_longer_than_the_capacity(make, pixels):
    replay = make(capacity=2)
    fill(replay, (2, 6), pixels)
    assert len(replay) == 5


def test_a_restored_buffer_is_cut_back_and_goes_on_to_the_same_files(make, pixels, tmp_path):
    replay = make(capacity=9)
    fill(replay, (4, 3), pixels)
    saved = replay.state()
    fill(replay, (5, 2), pixels, start=7)
    whole = [(tmp_path / "replay" / f"{n}.bin").read_bytes() for n in ("frames", "steps")]
    state, batch = replay.state(), replay.batch(np.arange(len(replay)))
    replay.close()
    again = make(capacity=9, saved=saved)
    assert (len(again), again.num_episodes) == (5, 2)
    fill(again, (5, 2), pixels, start=7)
    assert again.state() == state
    for ours, theirs in zip(again.batch(np.arange(len(again)))[:4], batch[:4], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    files = [(tmp_path / "replay" / f"{n}.bin").read_bytes() for n in ("frames", "steps")]
    assert files == whole


def test_a_buffer_that_is_not_restored_starts_empty(make, pixels):
    fill(make(), (4,), pixels)
    assert make().num_transitions == 0


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_buffer_is_refused_by_name(make, pixels, tmp_path, damage):
    replay = make()
    fill(replay, (4, 3), pixels)
    saved, path = replay.state(), tmp_path / "replay" / "frames.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(ReplayError, match=r"frames\.bin is not as the checkpoint left it"):
        make(saved=saved)


def test_returns_are_of_finished_episodes_and_no_other_is_drawn_from(make, pixels):
    arguments = {"fields": ("mc_returns",), "discount": 0.9, "failure": -2.0}
    arguments |= {"reward_scale": 10.0, "reward_shift": 0.1}
    replay = make(**arguments)
    fill(replay, (4, 3), pixels, running=True)
    assert len(replay) == 3
    replay.end()
    assert len(replay) == 5
    number = np.arange(7)
    rewards, masks = -(number % 3).astype(np.float32), (number % 5 != 0).astype(np.float32)
    scaled = (10 * rewards + 0.1, masks, np.array([4, 7]))
    wanted = returns_to_go(*scaled, 0.9, -19.9)[[0, 1, 2, 4, 5]]
    np.testing.assert_allclose(replay.batch(np.arange(5)).mc_returns, wanted)
    saved = replay.state()
    replay.close()
    again = make(**arguments, saved=saved)
    np.testing.assert_allclose(again.batch(np.arange(5)).mc_returns, wanted)


def test_the_next_action_of_the_newest_transition_is_its_own_until_there_is_another(make, pixels):
    replay = make(fields=("next_actions",))
    fill(replay, (4,), pixels, running=True)
    batch = replay.batch(np.arange(3))
    np.testing.assert_allclose(batch.next_actions[:, 0], [0.001, 0.002, 0.002])


def test_an_episode_of_nothing_but_failure_returns_as_if_it_went_on(make, pixels):
    replay = make(fields=("mc_returns",), discount=0.9, failure=-0.3, reward_scale=0.7)
    frames = frames_of(0, 3, pixels=pixels)
    replay.begin(frames[0])
    for frame in frames[1:]:
        replay.add(np.zeros(A), -0.3, 1.0, frame)
    replay.end()
    np.testing.assert_allclose(replay.batch(np.arange(2)).mc_returns, -2.1, rtol=1e-6)


def test_returns_of_a_buffer_that_was_saved_inside_an_episode_go_on(make, pixels):
    arguments = {"fields": ("mc_returns",), "discount": 0.9, "failure": -2.0}
    replay = make(**arguments)
    fill(replay, (4, 3), pixels, running=True)
    saved = replay.state()
    replay.close()
    again = make(**arguments, saved=saved)
    assert len(again) == 3
    again.end()
    fill(again, (3,), pixels, start=7)
    number = np.arange(10)
    rewards, masks = -(number % 3).astype(np.float32), (number % 5 != 0).astype(np.float32)
    wanted = returns_to_go(rewards, masks, np.array([4, 7, 10]), 0.9, -2.0)
    found = again.batch(np.arange(len(again))).mc_returns
    np.testing.assert_allclose(found, wanted[[0, 1, 2, 4, 5, 7, 8]])
