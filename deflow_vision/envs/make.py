"""Making environments and OGBench's scripted oracles. The only module that imports ogbench."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from typing import Any, Literal

import gymnasium

from deflow_vision.envs.d4rl import make_d4rl
from deflow_vision.envs.own import is_own, make_own_env
from deflow_vision.envs.rendering import RENDER_PROFILES, check_profile, worker_variables
from deflow_vision.envs.simplify import draw_with
from deflow_vision.envs.wrappers import ClipAction, FrameStack, SeededReset
from deflow_vision.tasks import d4rl_task, nearest
from deflow_vision.types import UserError


def make_env(
    env_id: str,
    *,
    frame_stack: int = 1,
    max_episode_steps: int | None = None,
    render_profile: str = "official",
    resolution: int | None = None,
) -> gymnasium.Env:
    """The environment of a task, for evaluation and online training.

    A pixel environment makes an OpenGL context in this process: keep it out of a process that
    imports torch (`EnvPool` does).

    Args:
        env_id: a task's full id, with the dataset's type or without it
            ("cube-double-play-singletask-task2-v0", "cube-double-singletask-task2-v0",
            "antmaze-umaze-v2"); or `module:factory`, see `own.make_own_env`.
        frame_stack: observations stacked along the last axis.
        max_episode_steps: time limit; by default the environment's own.
        render_profile: how frames are drawn, see `rendering.RENDER_PROFILES`.
        resolution: pixels a side of an observation, of OGBench's pixel tasks; by default 64.

    Returns:
        An environment whose observations are (H, W, C * frame_stack) uint8 or (D * frame_stack,)
        float32, whose actions are clipped to [-1, 1], and whose `reset(seed=...)` seeds all.

    Raises:
        UserError: unknown id or render profile, or one that this environment has not.
        NoRendererError: it draws its observations, and this machine cannot.
    """
    if is_own(env_id):
        return make_own_env(env_id, frame_stack=frame_stack, max_episode_steps=max_episode_steps)
    task = d4rl_task(env_id)
    if task is not None:
        env = SeededReset(make_d4rl(task, max_episode_steps))
        _apply_profile(env, render_profile)
    else:
        name = registered_id(env_id)
        limit = {"max_episode_steps": max_episode_steps}
        env = _make_ogbench(name, render_profile, resolution, **limit)
    return FrameStack(ClipAction(env), frame_stack)


def make_collection_env(
    name: str, *, render_profile: str = "official", resolution: int | None = None
) -> gymnasium.Env:
    """A manipulation environment in OGBench's data-collection mode: random targets, no end.

    Args:
        name: such as "visual-cube-double".
        render_profile: how frames are drawn.
        resolution: pixels a side of an observation, of a pixel environment; by default 64.

    Returns:
        The environment, neither stacked nor limited in time.
    """
    env = _make_ogbench(
        f"{name}-v0",
        render_profile,
        resolution,
        max_episode_steps=-1,
        mode="data_collection",
        terminate_at_goal=False,
    )
    if not name.startswith("visual-"):
        _compute_state_once(env.unwrapped)
    return env


def make_oracles(env: gymnasium.Env, name: str, kind: Literal["play", "noisy"]) -> dict[str, Any]:
    """OGBench's scripted oracles for an environment, with the settings of its data generation.

    Args:
        env: from `make_collection_env`.
        name: its name, such as "cube-double".
        kind: "play" for plans with smooth noise, "noisy" for closed-loop (Markov) oracles.

    Returns:
        Target kind ("cube", "button", "drawer", "window") -> oracle.
    """
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    classes: dict[str, Any]
    settings: dict[str, Any]
    if kind == "play":
        settings = {"noise": 0.1, "noise_smoothing": 0.5}
        classes = {
            "cube": CubePlanOracle,
            "button": ButtonPlanOracle,
            "drawer": DrawerPlanOracle,
            "window": WindowPlanOracle,
        }
    else:
        settings = {"min_norm": 0.4}
        classes = {
            "cube": CubeMarkovOracle,
            "button": ButtonMarkovOracle,
            "drawer": DrawerMarkovOracle,
            "window": WindowMarkovOracle,
        }
    if "cube" in name:
        targets: dict[str, dict[str, Any]] = {"cube": {}}
    elif "puzzle" in name:
        targets = {"button": {"gripper_always_closed": True}}
    else:
        cube = {"max_step": 100} if kind == "noisy" else {}
        targets = {"cube": cube, "button": {}, "drawer": {}, "window": {}}
    return {
        target: classes[target](env=env, **settings, **extra) for target, extra in targets.items()
    }


def registered_id(env_id: str) -> str:
    """The id under which ogbench registers a task: without the dataset's type.

    Args:
        env_id: such as "cube-double-play-singletask-task2-v0".

    Returns:
        Such as "cube-double-singletask-task2-v0"; other ids as they are.
    """
    words = env_id.split("-")
    if "singletask" in words:
        at = words.index("singletask")
        if words[at - 1] in ("play", "noisy", "navigate", "stitch", "explore"):
            del words[at - 1]
    return "-".join(words)


def _make_ogbench(
    name: str, render_profile: str, resolution: int | None, **arguments: Any
) -> gymnasium.Env:
    if resolution is not None:
        arguments |= {"width": resolution, "height": resolution}
    if "mujoco" not in sys.modules:
        os.environ.update(worker_variables(pixels=name.startswith("visual-")))
    _register()
    known = [key for key in gymnasium.registry if "ogbench" in str(gymnasium.spec(key).entry_point)]
    if name not in known:
        raise UserError(f"unknown environment {name!r}. {nearest(name, known)}")
    # The checker would draw further frames at each step, and its advice is for ogbench's authors.
    env = gymnasium.make(name, disable_env_checker=True, **arguments)
    _fix_spaces(env.unwrapped)
    _apply_profile(env, render_profile)
    return SeededReset(env)


def _apply_profile(env: gymnasium.Env, render_profile: str) -> None:
    check_profile(render_profile)
    savings = RENDER_PROFILES[render_profile]
    if savings is not None:
        draw_with(env.unwrapped, savings)


def _register() -> None:
    with warnings.catch_warnings():
        # dm_control tries every display library on import, and glfw warns that there is no display.
        warnings.simplefilter("ignore")
        import ogbench  # noqa: F401


def _fix_spaces(env: Any) -> None:
    """Give OGBench's arms constant spaces.

    Theirs are made anew at each access: the action space with a seed of its own, so that even a
    seeded reset (which steps random actions) is not repeatable, and the observation space by
    drawing a frame.
    """
    kind = type(env)
    if not isinstance(getattr(kind, "action_space", None), property):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's note that float64 bounds become float32
        actions = env.action_space
    observations = functools.cached_property(lambda self: kind.observation_space.fget(self))
    fixed = type(
        kind.__name__, (kind,), {"action_space": actions, "observation_space": observations}
    )
    observations.__set_name__(fixed, "observation_space")
    env.__class__ = fixed


def _compute_state_once(env: Any) -> None:
    """Let a step of an OGBench arm compute its state once instead of three times.

    OGBench computes it before the simulator moves, where only positions are read that are still
    those of the step before, then for the observation, and once more for `info`. The data are the
    same to the bit, in nine tenths of the time.
    """
    kind: Any = type(env)

    class Once(kind):  # type: ignore[misc]
        _state: Any = None
        _known = False

        def compute_ob_info(self) -> Any:
            if not self._known:
                self._state = super().compute_ob_info()
            return self._state

        def pre_step(self) -> None:
            # A reset calls this too, behind other positions.
            self._known = self._state is not None and (self._state["qpos"] == self._data.qpos).all()
            super().pre_step()
            self._known = False

        def get_step_info(self) -> Any:
            return self._state

    env.__class__ = Once
