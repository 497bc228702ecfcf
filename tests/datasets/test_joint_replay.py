"""Several online buffers as one, against its parts."""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.datasets.joint_replay import JointReplay
from deflow_vision.datasets.replay import Replay
from tests.datasets.test_replay import fill, states_of


@pytest.fixture
def make(tmp_path):
    """Buffers of these episodes, a list a buffer, whose states are numbered through."""

    def make(*lengths, **changes):
        parts, start = [], 0
        for number, episodes in enumerate(lengths):
            part = Replay(
                tmp_path / str(number),
                observation_shape=(5,),
                dtype="float32",
                action_dim=2,
                frame_stack=3,
                capacity=100,
                **changes,
            )
            fill(part, episodes, pixels=False, start=start)
            start += sum(episodes)
            parts.append(part)
        return JointReplay(parts), parts

    return make


@pytest.mark.parametrize("fields", [(), ("next_actions", "mc_returns")])
def test_any_order_of_numbers_comes_back_as_the_parts_have_them(make, fields):
    joint, parts = make((4, 2), (), (3, 5), fields=fields)
    numbers = np.array([9, 0, 4, 3, 9, 6, 1])
    batch = joint.batch(numbers)
    owners = [(0, n) if n < 4 else (2, n - 4) for n in numbers]
    for name, column in batch._asdict().items():
        rows = [getattr(parts[part].batch(np.array([n])), name) for part, n in owners]
        if rows[0] is None:
            assert column is None
        else:
            np.testing.assert_array_equal(column, np.concatenate(rows))
    np.testing.assert_array_equal(states_of(batch, pixels=False), [12, 0, 6, 4, 12, 9, 1])


def test_it_counts_what_its_parts_hold(make):
    joint, parts = make((4, 2), (3,))
    assert (len(joint), joint.num_transitions, joint.num_episodes) == (6, 6, 3)
    assert joint.state() == {"0": parts[0].state(), "1": parts[1].state()}
    assert len(joint.batch(np.zeros(0, np.int64)).actions) == 0
