"""What MuJoCo draws with, and how fast. Reaches no torch: see docs/architecture.md."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deflow_vision.doctor.rows import Row
from deflow_vision.envs.make import make_env
from deflow_vision.envs.rendering import GL_PACKAGES, probe, worker_variables
from deflow_vision.envs.worker import WorkerError, run_in_worker
from deflow_vision.types import UserError

ENVIRONMENT = "visual-cube-single-v0"
_STEPS = 3
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "swiftshader")
_EGL_CUDA_DEVICE_NV = 0x323A


@dataclass(frozen=True)
class Drawing:
    """How this machine draws.

    Attributes:
        problem: why it cannot; empty where it can.
        backend: the value of MUJOCO_GL.
        renderer: OpenGL's vendor and renderer.
        milliseconds: of a step with its frame of 64x64, by render profile.
    """

    problem: str = ""
    backend: str = ""
    renderer: str = ""
    milliseconds: Mapping[str, float] = field(default_factory=dict)


def look() -> Drawing:
    """Draw a few frames of an environment, in a process of its own for each profile."""
    try:
        backend = probe()
        variables = worker_variables(pixels=True)
        milliseconds = {
            profile: run_in_worker(draw_frames, profile, variables=variables)
            for profile in ("official", "fast")
        }
    except UserError as error:
        return Drawing(str(error))
    except WorkerError as error:
        return Drawing(f"drawing {ENVIRONMENT}: {str(error).strip().splitlines()[-1]}")
    renderer = f"{backend.vendor}, {backend.renderer}"
    return Drawing("", backend.name, renderer, milliseconds)


def draw_frames(profile: str) -> float:
    """Milliseconds of a step with its frame; the environment refuses frames of one colour."""
    env = make_env(ENVIRONMENT, render_profile=profile)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    env.step(action)
    start = time.perf_counter()
    for _ in range(_STEPS):
        env.step(action)
    seconds = time.perf_counter() - start
    env.close()
    return 1000 * seconds / _STEPS


def judge(facts: Drawing) -> list[Row]:
    """One row; software OpenGL is a warning."""
    if facts.problem:
        first, *rest = facts.problem.splitlines()
        remedy = " ".join(rest) or f"see the rows of the libraries; apt-get install {GL_PACKAGES}"
        return [Row("drawing", "fail", first, remedy)]
    times = ", ".join(f"{ms:.0f} ms {profile}" for profile, ms in facts.milliseconds.items())
    found = f"{facts.backend}, {facts.renderer}; a frame takes {times}"
    if any(name in facts.renderer.lower() for name in _SOFTWARE):
        remedy = (
            "drawn by the CPU: collect and render with --render-profile fast, and evaluate pixel "
            "policies seldom (--eval.every), or use a GPU whose driver brings EGL"
        )
        return [Row("drawing", "warn", found, remedy)]
    return [Row("drawing", "ok", found)]


def egl_devices() -> dict[int, int]:
    """The number of the EGL device of each GPU, by its number in CUDA."""
    from mujoco.egl import egl_ext

    found = {}
    for index, device in enumerate(egl_ext.eglQueryDevicesEXT()):
        try:
            found[int(egl_ext.eglQueryDeviceAttribEXT(device, _EGL_CUDA_DEVICE_NV))] = index
        except Exception:  # a software device, which has no such attribute
            continue
    return found
