"""Setting OGBench's arms to stored simulator states, and drawing what they show there."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium
import numpy as np


def state_shapes(env: gymnasium.Env) -> dict[str, tuple[int, ...]]:
    """Shape of each stored array that a state of this environment consists of.

    Args:
        env: from `make_env` or `make_collection_env`, an OGBench arm.

    Returns:
        Of a row of `qpos` and `qvel` and, where there are buttons, of `button_states`.
    """
    arm = _compiled(env)
    shapes: dict[str, tuple[int, ...]] = {"qpos": (arm.model.nq,), "qvel": (arm.model.nv,)}
    if hasattr(arm, "_cur_button_states"):
        shapes["button_states"] = arm._cur_button_states.shape
    return shapes


def draw_state(env: gymnasium.Env, state: Mapping[str, np.ndarray]) -> np.ndarray:
    """The frame that the environment draws of a stored state, as it does in an episode.

    The environment is left in that state; a reset makes it any other environment again.

    Args:
        env: as in `state_shapes`, of a pixel task.
        state: the arrays that `state_shapes` names, a row each.

    Returns:
        (H, W, 3) uint8. Equal to the observation of that state bit for bit where the state is of
        float64; rounded to float32, as stores have it, it moves single values by a few of 255.
    """
    import mujoco  # reads MUJOCO_GL

    arm = _compiled(env)
    qpos, qvel = (np.array(state[name], np.float64) for name in ("qpos", "qvel"))
    if "button_states" in state:
        arm.set_state(qpos, qvel, state["button_states"])
    else:
        # A step ends by integrating the positions. Only the environments with buttons compute
        # where things are after that; the others' frames show where they were one physics step
        # before, and that is what a policy sees.
        mujoco.mj_integratePos(arm.model, qpos, qvel, -arm.model.opt.timestep)
        arm.set_state(qpos, qvel)
    frame: np.ndarray = arm.render()
    return frame


def _compiled(env: gymnasium.Env) -> gymnasium.Env:
    """The environment without its wrappers; the first reset builds its model."""
    arm = env.unwrapped
    if arm._model is None:
        env.reset(seed=0)
    return arm
