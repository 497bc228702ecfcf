from __future__ import annotations

import tracemalloc
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deflow_vision.datasets.draws import Epochs, Key
from deflow_vision.datasets.residency import plan_residency
from deflow_vision.datasets.sampler import make_sampler
from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import StoreError, StoreWriter, open_store
from deflow_vision.datasets.transitions import Transitions, returns_to_go

from .conftest import frames_of, write_store

FACTS = {
    "frame_stack": 3,
    "batch_size": 6,
    "seed": 3,
    "residency": "stream",
    "block_length": 4,
    "window_blocks": 2,
}


def sampler_of(path, **changes):
    return make_sampler(open_store(path).train, "task1", **FACTS | changes)


def state_numbers(batch) -> np.ndarray:
    return np.rint(batch.actions[:, 0] * 1000).astype(int)


def naive_transitions(episode_lengths) -> list[int]:
    ends = set(np.cumsum(episode_lengths))
    return [state for state in range(sum(episode_lengths)) if state + 1 not in ends]


def naive_frames(episode_lengths, states, frame_stack) -> np.ndarray:
    stored = frames_of(0, sum(episode_lengths), pixels=True)
    starts = [0, *np.cumsum(episode_lengths)]
    rows = []
    for state in states:
        start = max(s for s in starts if s <= state)
        rows.append([stored[max(start, n)] for n in range(state - frame_stack + 1, state + 2)])
    return np.array(rows)


def equal(one, other) -> None:
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6).filter(lambda n: max(n) > 3),
    frame_stack=st.integers(1, 4),
    block_length=st.integers(1, 9),
    window_blocks=st.integers(1, 5),
    num_streams=st.integers(1, 3),
    rows=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_each_epoch_holds_each_transition_once_with_the_frames_of_a_naive_loop(
    tmp_path_factory, lengths, frame_stack, block_length, window_blocks, num_streams, rows, seed
):
    path = write_store(tmp_path_factory.mktemp("stream") / "a.zarr", lengths, val_lengths=())
    transitions, epochs = naive_transitions(lengths), 2
    drawn: list[list[int]] = [[] for _ in range(epochs)]
    for stream in range(num_streams):
        sampler = sampler_of(
            path,
            frame_stack=frame_stack,
            block_length=block_length,
            window_blocks=window_blocks,
            num_streams=num_streams,
            streams=[stream],
            batch_size=rows * num_streams,
            seed=seed,
        )
        assert sampler.transitions_per_epoch == len(transitions)
        count = len(transitions)
        share = count * (stream + 1) // num_streams - count * stream // num_streams
        numbers: list[int] = []
        for step in range(-(-share * epochs // rows)):
            batch = sampler.batch(step)
            states = state_numbers(batch)
            np.testing.assert_array_equal(batch.frames, naive_frames(lengths, states, frame_stack))
            np.testing.assert_array_equal(batch.rewards, -(states % 3))
            numbers.extend(states)
        for epoch in range(epochs):
            drawn[epoch].extend(numbers[epoch * share : (epoch + 1) * share])
        sampler.close()
    for epoch in range(epochs):
        assert sorted(drawn[epoch]) == transitions


def test_batch_is_the_same_out_of_order_and_after_a_restart(make_store):
    path = make_store((20, 7, 31))
    one, other = sampler_of(path), sampler_of(path)
    in_order = [one.batch(step) for step in range(20)]
    for step in (13, 0, 19, 7, 8):
        equal(other.batch(step), in_order[step])
    one.close()
    other.close()


def test_streams_of_two_processes_make_the_batch_of_one(make_store):
    path = make_store((20, 7, 31))
    groups = (range(4), [0, 1], [2, 3])
    samplers = [sampler_of(path, num_streams=4, batch_size=8, streams=group) for group in groups]
    for step in (0, 5, 11):
        whole, *parts = (sampler.batch(step) for sampler in samplers)
        for name in ("frames", "actions", "rewards", "masks"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(getattr(whole, name), joined)
    for sampler in samplers:
        sampler.close()


def test_epochs_and_seeds_have_orders_of_their_own(make_store):
    path = make_store((20, 7, 31))
    orders = set()
    for seed in (0, 1):
        sampler = sampler_of(path, seed=seed, batch_size=55)
        orders |= {tuple(state_numbers(sampler.batch(epoch))) for epoch in range(3)}
        sampler.close()
    assert len(orders) == 6


def test_window_mixes_the_transitions_of_its_blocks(make_store):
    sampler = sampler_of(make_store((400,)), block_length=10, window_blocks=10, batch_size=20)
    states = state_numbers(sampler.batch(0))
    sampler.close()
    assert len(np.unique(states // 10)) > 6


def test_memory_stays_below_two_windows_and_a_little(tmp_path):
    path = tmp_path / "a.zarr"
    facts = {"source": "t", "env_id": "e", "seeds": 0, "observation_dtype": "uint8", "chunk": 25}
    facts |= {"observation_shape": (64, 64, 3), "action_dim": 1, "goals": ["task1"]}
    with StoreWriter(path, **facts) as writer:
        for number in range(20):
            frames = np.full((100, 64, 64, 3), number, np.uint8)
            goals = {"task1": (np.zeros(100), np.ones(100))}
            writer.append_episode("train", frames, np.zeros((99, 1)), goals)
    sampler = sampler_of(path, batch_size=16, block_length=50)  # two windows: 2.6 of 24.6 MB
    tracemalloc.start()
    for step in range(60):
        sampler.batch(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sampler.close()
    assert peak < 8e6


def test_columns_are_read_window_by_window_too(tmp_path):
    path, count = tmp_path / "a.zarr", 300_000
    facts = {"source": "t", "env_id": "e", "seeds": 0, "observation_dtype": "float32"}
    facts |= {"observation_shape": (1,), "action_dim": 6, "goals": ["task1"]}
    with StoreWriter(path, **facts) as writer:
        goals = {"task1": (np.zeros(count), np.ones(count))}
        writer.append_episode(
            "train", np.zeros((count, 1), np.float32), np.zeros((count - 1, 6)), goals
        )
    tracemalloc.start()  # of columns there are 9.6 MB
    sampler = sampler_of(path, block_length=4096)
    for step in range(5):
        sampler.batch(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sampler.close()
    assert peak < 5e6


@pytest.mark.parametrize("num_streams", [1, 2])
def test_every_field_equals_that_of_the_whole_columns(make_store, num_streams):
    path, lengths = make_store((20, 7, 31)), (20, 7, 31)
    facts = {"num_streams": num_streams, "streams": range(num_streams)}
    sampler = sampler_of(path, fields=("next_actions", "mc_returns"), **facts)
    split = open_store(path).train
    returns = returns_to_go(split.rewards("task1"), split.masks("task1"), np.cumsum(lengths), 0.99)
    actions, ends = read_all(split.actions), np.cumsum(lengths)
    for step in range(20):
        batch = sampler.batch(step)
        states = state_numbers(batch)
        np.testing.assert_array_equal(batch.actions, actions[states])
        np.testing.assert_array_equal(batch.masks, states % 5 != 0)
        np.testing.assert_array_equal(batch.mc_returns, returns[states])
        following = np.where(np.isin(states + 2, ends), states, states + 1)
        np.testing.assert_array_equal(batch.next_actions, actions[following])
    sampler.close()


def test_plan_tells_how_often_an_epoch_decodes_each_frame(make_store):
    split = open_store(make_store((400,))).train
    plan = plan_residency(split, residency="stream", frame_stack=3)
    epochs = Epochs(
        Transitions(split.episode_ends, 3),
        5,
        block_length=plan.block_length,
        window_blocks=100,
        seed=0,
        num_streams=1,
        streams=[0],
    )
    starts, stops = epochs.order(Key(0, 0, 0)).ranges.T
    chunks = -(-stops // 4) - starts // 4
    assert chunks.max() == 5
    assert plan.decoded == pytest.approx(chunks.sum() / 100) == 1.24
    assert "decodes each frame 1.24 times" in plan.describe()


def test_a_default_window_has_as_many_frames_whatever_the_chunks(make_store):
    plans = [
        plan_residency(open_store(make_store(chunk=chunk, name=f"{chunk}.zarr")).train)
        for chunk in (2, 4)
    ]
    assert [plan.block_length for plan in plans] == [8, 16]
    assert len({plan.block_length * plan.window_blocks for plan in plans}) == 1


def test_altered_block_is_named_when_its_window_is_read(make_store):
    path = make_store((200,))
    file = path / "train/observations/c/16/0/0/0"
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)
    sampler = sampler_of(path)
    with pytest.raises(StoreError, match=r"array train/observations, block 16 .*data.py verify"):
        deque(map(sampler.batch, range(40)))
    sampler.close()


def test_plan_and_mixing_are_logged_before_anything_is_read(make_store, caplog):
    with caplog.at_level("INFO"):
        sampler_of(make_store((20, 7, 31))).close()
    assert "4 frames, 2 in a window, two windows" in caplog.text
    assert "episodes in a batch (drawn uniformly: " in caplog.text
