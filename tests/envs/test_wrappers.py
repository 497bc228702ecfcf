"""Wrappers, around an environment whose frames tell the step they come from."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from deflow_vision.envs.rendering import NoRendererError
from deflow_vision.envs.wrappers import ClipAction, FrameStack, SeededReset


class Frames(gymnasium.Env):
    """Pixels (3, 4, 2) whose value is 10 times the step, but for one darker corner."""

    action_space = gymnasium.spaces.Box(-1, 1, (5,), np.float32)
    observation_space = gymnasium.spaces.Box(0, 255, (3, 4, 2), np.uint8)

    def __init__(self, corner: int = 1) -> None:
        self.time = 0
        self.corner = corner
        self.last_action = np.zeros(5)

    def frame(self) -> np.ndarray:
        frame = np.full((3, 4, 2), 10 * self.time + 5, np.uint8)
        frame[0, 0] -= self.corner
        return frame

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        draws = {
            "own": self.np_random.random(),
            "global": np.random.random(),
            "space": self.action_space.sample(),
        }
        return self.frame(), draws

    def step(self, action: np.ndarray) -> Any:
        self.last_action = action
        self.time += 1
        return self.frame(), np.float64(-1), np.bool_(False), False, {}


class States(Frames):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)

    def frame(self) -> np.ndarray:
        return np.arange(4) + 10.0 * self.time


def marks(stack: np.ndarray, channels: int = 2) -> list[int]:
    """The time of each frame of a stack."""
    return [int(value) // 10 for value in stack[1, 1, ::channels]]


def test_a_stack_repeats_the_first_frame_of_an_episode() -> None:
    env = FrameStack(Frames(), 3)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (3, 4, 6)
    assert observation.dtype == np.uint8
    assert marks(observation) == [0, 0, 0]


def test_a_stack_holds_the_oldest_frame_first() -> None:
    env = FrameStack(Frames(), 3)
    env.reset()
    stacks = [marks(env.step(np.zeros(5))[0]) for _ in range(3)]
    assert stacks == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_a_new_episode_forgets_the_frames_of_the_last() -> None:
    env = FrameStack(Frames(), 3)
    env.reset()
    env.step(np.zeros(5))
    assert marks(env.reset()[0]) == [0, 0, 0]


def test_states_become_float32_and_stack_along_their_axis() -> None:
    env = FrameStack(States(), 2)
    env.reset()
    observation = env.step(np.zeros(5))[0]
    assert observation.dtype == np.float32
    assert observation.tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


@pytest.mark.parametrize("kind", [Frames, States])
def test_the_space_of_a_stack_contains_its_observations(kind: type[Frames]) -> None:
    env = FrameStack(kind(), 3)
    assert env.observation_space.contains(env.reset()[0])


def test_a_first_frame_of_one_colour_is_refused_as_a_lost_context() -> None:
    with pytest.raises(NoRendererError, match="values are all 5: its OpenGL context is lost"):
        FrameStack(Frames(corner=0), 3).reset()


def test_a_stack_of_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="frame_stack is 0"):
        FrameStack(Frames(), 0)


def test_actions_are_clipped() -> None:
    env = ClipAction(Frames())
    env.reset()
    env.step(np.array([-3.0, -1.0, 0.5, 1.0, 2.0]))
    assert env.unwrapped.last_action.tolist() == [-1, -1, 0.5, 1, 1]


def test_a_seeded_reset_seeds_numpy_and_the_action_space_too() -> None:
    env = SeededReset(Frames())
    large_seed = 2**62 + 7
    first, second = (env.reset(seed=large_seed)[1] for _ in range(2))
    other = env.reset(seed=large_seed + 1)[1]
    for key in ("own", "global", "space"):
        assert np.array_equal(first[key], second[key]), key
        assert not np.array_equal(first[key], other[key]), key


def test_a_reset_without_a_seed_goes_on_with_the_generators() -> None:
    env = SeededReset(Frames())
    first, second = env.reset(seed=1)[1], env.reset()[1]
    for key in ("own", "global", "space"):
        assert not np.array_equal(first[key], second[key]), key
