"""Where OGBench's arms and their objects are in stored simulator states, without drawing."""

from __future__ import annotations

import numpy as np

from deflow_vision.envs.make import make_env

_PINCH, _DRIVER = "ur5e/robotiq/pinch", "ur5e/robotiq/right_driver_joint"
_CLOSED = 0.8  # radians of the gripper's driver, as OGBench scales it
_FREE, _SLIDE = 0, 2  # MuJoCo's numbers of the kinds of joints


def arm_positions(name: str, qpos: np.ndarray) -> dict[str, np.ndarray]:
    """The places of what an arm's environment holds, in each of some states.

    It imports ogbench and mujoco: call it in a worker (`worker.run_in_worker`) that never draws.

    Args:
        name: an OGBench environment such as "cube-double", of states, not of pixels.
        qpos: the simulator's positions, (N, Q).

    Returns:
        By name, float32: `effector`, the middle between the fingertips in metres, (N, 3);
        `gripper`, how far it is closed from 0 to 1, (N, 1); `cube 0` and so on in metres, (N, 3);
        `drawer` and `window`, how far they slid in metres, (N, 1), where there are such.
    """
    import mujoco

    env = make_env(f"{name}-singletask-v0")
    env.reset(seed=0)  # builds the model
    model = env.unwrapped._model
    data, site = mujoco.MjData(model), model.site(_PINCH).id
    effector = np.empty((len(qpos), 3))
    for row, positions in zip(effector, qpos, strict=True):
        data.qpos[:] = positions
        mujoco.mj_kinematics(model, data)
        row[:] = data.site_xpos[site]
    places = {
        "effector": effector,
        "gripper": np.clip(qpos[:, _address(model, _DRIVER)] / _CLOSED, 0, 1)[:, None],
    }
    for number in range(model.njnt):
        joint, start = model.joint(number).name, int(model.jnt_qposadr[number])
        if model.jnt_type[number] == _FREE:
            places[joint.replace("object_joint_", "cube ")] = qpos[:, start : start + 3]
        elif model.jnt_type[number] == _SLIDE and joint.endswith("_slide"):
            places[joint.removesuffix("_slide")] = qpos[:, start : start + 1]
    env.close()
    return {key: np.asarray(values, np.float32) for key, values in places.items()}


def _address(model: object, joint: str) -> int:
    return int(model.joint(joint).qposadr[0])  # type: ignore[attr-defined]
