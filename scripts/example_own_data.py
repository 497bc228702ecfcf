"""Your own data and environment in one file: `python scripts/example_own_data.py [flags]`."""

import sys

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from deflow_vision.datasets.store import StoreWriter
from deflow_vision.tasks import data_root


class Reach(gymnasium.Env):
    """A point in a square goes to its middle; a step that does not get there costs 1."""

    observation_space, action_space = Box(-1, 1, (2,)), Box(-0.2, 0.2, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.place, {}

    def step(self, action):
        self.place = np.clip(self.place + action, -1, 1)
        solved = bool(np.abs(self.place).max() < 0.1)
        return self.place, float(solved) - 1, solved, False, {"success": solved}


def make():
    """What --env names: it returns one environment, with a time limit."""
    return gymnasium.wrappers.TimeLimit(Reach(), max_episode_steps=30)


def record(path, episodes=300):
    """Write episodes of a noisy controller into a store, each tenth for validation."""
    about = {"source": "a noisy controller", "env_id": "reach", "seeds": 0, "goals": ["default"]}
    about |= {"observation_shape": (2,), "observation_dtype": "float32", "action_dim": 2}
    env, rng = make(), np.random.default_rng(0)
    with StoreWriter(path, **about) as writer:
        for number in range(episodes):
            state, steps, over = env.reset(seed=number)[0], [], False
            while not over:
                action = np.clip(rng.normal(-state, 0.7), -1, 1)  # a store's lie in [-1, 1]
                after, reward, terminated, truncated, _ = env.step(0.2 * action)
                steps.append((state, action, reward, not terminated))
                state, over = after, terminated or truncated
            states, actions, rewards, masks = map(np.stack, zip(*steps, strict=True))
            states = np.stack([*states, state])  # the last one too
            split = "train" if number % 10 else "val"
            writer.append_episode(split, states, actions, {"default": (rewards, masks)})


if __name__ == "__main__":
    from deflow_vision.config import load
    from deflow_vision.training.loop import train

    if not (store := data_root() / "reach.zarr").exists():
        record(store)
    # As scripts/train.py does with these flags; the task's name finds the store.
    flags = ["--env", "scripts.example_own_data:make", "--task", "reach"]
    flags += ["--agent.target-divergence", "0.1", "--agent.hidden-dims", "64", "64"]
    flags += ["--offline-steps", "4000"]
    train(load([*flags, *sys.argv[1:]]))
