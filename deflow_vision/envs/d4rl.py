"""D4RL's antmaze and adroit tasks, on Gymnasium-Robotics; the only module that imports it.

Gymnasium-Robotics has tasks of the same names that are others. What is brought back to D4RL's code
(arXiv 2004.07219, commit 89141a6) here:

- Antmaze: the ant (a fifth of the torque, twice the time step, softer contacts), the maze's place
  and direction in the plane, the start (the corner, 0.1 of noise in all joints), the goal (drawn in
  the far corner's cell at each reset), how near is there (0.5), observations of 29 numbers.
- Adroit: the sign of the distance to the object in the reward, the end of a pen's episode where
  the pen is dropped, success as so many steps at the goal, the pen's time limit.
- Both: at what distance two surfaces begin to touch, which MuJoCo doubled.

What cannot be brought back is the simulator: `Task.deviation` says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from deflow_vision.envs.rendering import worker_variables
from deflow_vision.tasks import Task

_PICTURE = {"render_mode": "rgb_array", "width": 200, "height": 200}

_CELL = 4.0  # metres
_START = (1, 1)  # row and column in the maze
_MAZES = {
    "umaze": ("U_MAZE", (3, 1)),
    "medium": ("MEDIUM_MAZE", (6, 6)),
    "large": ("LARGE_MAZE", (7, 9)),
}
"""Gymnasium-Robotics' name of the maze, and the goal's row and column."""

_ANT = {
    "option": {"timestep": "0.02"},
    "default/geom": {"solimp": ".8 .8 .01"},
    "actuator/motor": {"gear": "30"},
}
"""Where D4RL's model of the ant has other numbers than Gymnasium's, and which."""

_REACHED = 0.5  # metres
_NOISE = 0.1  # of the first state

_STEPS_AT_GOAL = {"pen": 20, "door": 25, "hammer": 25, "relocate": 25}
_DROPPED = 0.075  # metres of a pen's height


def make_d4rl(task: Task, max_episode_steps: int | None = None) -> gymnasium.Env:
    """The environment of a D4RL task.

    Rewards are D4RL's own: 1 at the goal of a maze, else 0 (`Task.reward_shift` comes on top).
    `info["success"]` is whether the goal was reached, for adroit in as many steps as D4RL asks for.

    Args:
        task: of the suite "d4rl".
        max_episode_steps: time limit; by default D4RL's.

    Returns:
        An environment with D4RL's observations as one vector of `task.state_dim` numbers.
    """
    if "mujoco" not in sys.modules:
        os.environ.update(worker_variables(pixels=False))
    name, kind = task.name.split("-")[:2]
    env = AntMaze(kind) if name == "antmaze" else Adroit(name)
    return TimeLimit(env, max_episode_steps or task.max_episode_steps)


class AntMaze(gymnasium.Wrapper):  # type: ignore[misc]
    """An ant that walks from a maze's corner to the opposite one.

    Observations are 15 positions (x and y from the start's cell, height, quaternion, 8 joints) and
    14 velocities, in metres, radians and seconds.

    Args:
        maze: "umaze", "medium" or "large".
    """

    def __init__(self, maze: str) -> None:
        robotics = _import_robotics()
        from gymnasium_robotics.envs.maze.ant_maze_v5 import AntMazeEnv

        name, goal_cell = _MAZES[maze]
        # D4RL's y grows with the row of the map, Gymnasium-Robotics' falls.
        rows = getattr(robotics.maps, name)[::-1]
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "ant.xml"
            _write_ant(model)
            overview = {"distance": 1.2 * _CELL * len(rows[0]), "elevation": -90.0, "azimuth": 90.0}
            env = AntMazeEnv(
                maze_map=rows,
                continuing_task=False,
                xml_file=str(model),
                default_camera_config={"lookat": np.zeros(3), **overview},
                camera_id=-1,
                **_PICTURE,
            )
        Path(env.tmp_xml_file_path).unlink()  # it is loaded; the library forgets it in /tmp
        _restore_margins(env.model)
        super().__init__(env)
        self.observation_space = Box(-np.inf, np.inf, (29,), np.float64)
        self._origin = env.maze.cell_rowcol_to_xy(np.array([len(rows) - 1 - _START[0], _START[1]]))
        row, column = goal_cell
        self._goal_cell = _CELL * np.array([column - _START[1], row - _START[0]])
        self._goal = self._goal_cell

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Put the ant into its corner, and draw the goal."""
        env = self.env
        env.reset(seed=seed)  # a start and a goal of its own, which are replaced here
        random = env.np_random
        noise = random.uniform(0, 0.25 * _CELL, 2) + random.uniform(0, 0.125 * _CELL, 2)
        self._goal = self._goal_cell + noise
        env.goal = self._goal + self._origin
        env.update_target_site_pos()
        ant = env.ant_env
        qpos = np.concatenate([self._origin, ant.init_qpos[2:]])
        ant.set_state(
            qpos + random.uniform(-_NOISE, _NOISE, len(qpos)),
            ant.init_qvel + _NOISE * random.standard_normal(len(ant.init_qvel)),
        )
        return self._observation(), {"success": False}

    def step(self, action: np.ndarray) -> Any:
        """Step; the episode ends at the goal."""
        self.env.step(action)
        observation = self._observation()
        reached = bool(np.linalg.norm(observation[:2] - self._goal) <= _REACHED)
        return observation, float(reached), reached, False, {"success": reached}

    def _observation(self) -> np.ndarray:
        data = self.env.data
        observation: np.ndarray = np.concatenate([data.qpos, data.qvel])
        observation[:2] -= self._origin
        return observation


class Adroit(gymnasium.Wrapper):  # type: ignore[misc]
    """A hand of 24 joints with a pen, a door, a hammer or a ball.

    Args:
        name: "pen", "door", "hammer" or "relocate".
    """

    def __init__(self, name: str) -> None:
        _import_robotics()
        registered = f"AdroitHand{name.capitalize()}-v1"
        super().__init__(
            gymnasium.make(registered, disable_env_checker=True, max_episode_steps=-1, **_PICTURE)
        )
        _restore_margins(self.unwrapped.model)
        self._name = name
        self._steps_at_goal = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset; see `gymnasium.Env.reset`."""
        self._steps_at_goal = 0
        return self.env.reset(seed=seed)[0], {"success": False}

    def step(self, action: np.ndarray) -> Any:
        """Step, with D4RL's reward; see `gymnasium.Env.step`."""
        observation, reward, _, _, info = self.env.step(action)
        self._steps_at_goal += bool(info["success"])
        success = self._steps_at_goal > _STEPS_AT_GOAL[self._name]
        # Since its release 1.2.1 the distance from palm to object raises the reward.
        reward = float(reward) - 0.2 * self._palm_to_object(observation)
        dropped = self._name == "pen" and bool(observation[26] < _DROPPED)
        return observation, reward, dropped, False, {"success": success}

    def _palm_to_object(self, observation: np.ndarray) -> float:
        """From palm to handle, hammer or ball, in metres; a pen's reward does not look at it."""
        if self._name == "door":
            between = observation[35:38]
        elif self._name == "hammer":
            between = observation[33:36] - observation[36:39]
        else:
            between = observation[30:33] if self._name == "relocate" else np.zeros(3)
        return float(np.linalg.norm(between))


def _restore_margins(model: Any) -> None:
    """Let contacts begin where they did in MuJoCo 2, one margin from the surface.

    Since MuJoCo 3.5 the margins of the two geoms add up, where the greater one counted. Without
    this a control step of D4RL's ant ends 0.01 from where MuJoCo 2.3.7 has it (in the median of the
    greatest differences of a joint), with it 0.00002.
    """
    import mujoco

    if tuple(int(number) for number in mujoco.__version__.split(".")[:2]) >= (3, 5):
        # One value in each of these models, but for a board that has none: there, too, the greater.
        model.geom_margin[:] = model.geom_margin.max() / 2


def _write_ant(path: Path) -> None:
    """D4RL's ant, from Gymnasium's."""
    import gymnasium.envs.mujoco

    tree = ET.parse(Path(gymnasium.envs.mujoco.__file__).with_name("assets") / "ant.xml")
    for where, values in _ANT.items():
        for element in tree.findall(where):
            element.attrib.update(values)
    tree.write(path)


def _import_robotics() -> Any:
    # It prints a notice about the rewards that Adroit puts right.
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    return gymnasium_robotics
