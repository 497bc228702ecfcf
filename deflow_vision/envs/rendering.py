"""Which OpenGL backend MuJoCo draws with, and the profiles that frames may be drawn with.

MuJoCo reads `MUJOCO_GL` once, when it is imported. So it is decided before that, in a process of
its own, and handed to the workers as an environment variable; this process is left as it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from deflow_vision.types import UserError


@dataclass(frozen=True)
class Savings:
    """What a render profile spares when it draws one of OGBench's arms (`envs/simplify.py`).

    Attributes:
        cell: the arm's details below this size are merged, in metres.
        min_cells: but a small mesh keeps at least so many of them along its longest side.
        shadow_size: texels of the shadow map along a side; the official one has 4096.
        floor_square: the floor is drawn in squares of this half side, in metres.
    """

    cell: float
    min_cells: int
    shadow_size: int
    floor_square: float


RENDER_PROFILES: Mapping[str, Savings | None] = {
    "official": None,
    "fast": Savings(cell=0.012, min_cells=16, shadow_size=1024, floor_square=0.05),
    "draft": Savings(cell=0.02, min_cells=8, shadow_size=384, floor_square=0.05),
}
"""How frames may be drawn; "official" is the environment's own. All of them multisample: without it
a frame of draft costs about half as much, but is 6 dB (cube) to 15 dB (puzzle) less like the
official one."""

NO_DRAWING = {"MUJOCO_GL": "disable"}
"""Variables of a worker that never draws: it loads no OpenGL at all."""

_DRAWN = "DEFLOW_VISION_DREW_WITH"
"""Variable of a worker: the backend with which its parent has drawn."""

_DISABLED = ("disable", "disabled", "off", "false", "0")
_CANDIDATES = ("egl", "osmesa")
GL_PACKAGES = "libegl1 libgl1 libosmesa6"
"""Debian's and Ubuntu's packages that MuJoCo draws with where there is no screen and no GPU."""

_SECONDS = 120.0

_DRAW = """
import json, sys
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='.1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(data)
    if renderer.render().max() == 0:
        sys.exit("it draws black frames")
    from OpenGL import GL
    names = [GL.glGetString(name).decode() for name in (GL.GL_VENDOR, GL.GL_RENDERER)]
print(json.dumps(names))
"""


class NoRendererError(UserError):
    """MuJoCo cannot draw on this machine."""


@dataclass(frozen=True)
class Backend:
    """An OpenGL backend that works here.

    Attributes:
        name: the value of `MUJOCO_GL`: "egl", "osmesa" or "glfw".
        vendor: OpenGL's vendor string.
        renderer: OpenGL's renderer string, such as "llvmpipe (LLVM 15.0.6, 256 bits)".
    """

    name: str
    vendor: str
    renderer: str


def check_profile(profile: str) -> None:
    """Refuse a render profile that does not exist, naming those that do."""
    if profile not in RENDER_PROFILES:
        raise UserError(
            f"unknown render profile {profile!r}; choose one of: {', '.join(RENDER_PROFILES)}."
        )


def probe() -> Backend:
    """The backend to draw with: the user's `MUJOCO_GL`, else EGL, else OSMesa.

    Each is tried in a process of its own, which draws one small frame; remembered afterwards.

    Returns:
        The first that works.

    Raises:
        NoRendererError: none works; the message names the Debian packages that bring one.
    """
    return _probe(os.environ.get("MUJOCO_GL", "").lower())


@lru_cache
def _probe(wanted: str) -> Backend:
    failures = []
    for name in (wanted,) if wanted else _CANDIDATES:
        if name in _DISABLED:
            failures.append(f"MUJOCO_GL={name} switches drawing off")
            continue
        result = _try(name)
        if isinstance(result, Backend):
            return result
        failures.append(f"{name}: {result}")
    raise NoRendererError(
        f"MuJoCo cannot draw here, no OpenGL backend works ({'; '.join(failures)}).\n"
        f"On Debian or Ubuntu: apt-get install {GL_PACKAGES}\n"
        + (
            f"MUJOCO_GL is set to {wanted!r}: unset it to have a backend chosen."
            if wanted
            else "Elsewhere: install EGL or OSMesa, or set MUJOCO_GL to egl, osmesa or glfw."
        )
    )


def _try(name: str) -> Backend | str:
    """The backend `name`, or why it does not work."""
    environment = {**os.environ, "MUJOCO_GL": name}
    # MuJoCo sets this one from MUJOCO_GL and refuses a value left by another backend.
    environment.pop("PYOPENGL_PLATFORM", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DRAW, name],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no frame after {_SECONDS:.0f} s"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ended with code {done.returncode}"
    vendor, renderer = json.loads(done.stdout.splitlines()[-1])
    return Backend(name, vendor, renderer)


def worker_variables(*, pixels: bool) -> dict[str, str]:
    """The environment variables that a worker process needs in order to draw.

    A variable that the user has set is left alone. Which EGL device draws is left to MuJoCo, which
    takes the first that works; MUJOCO_EGL_DEVICE_ID picks another.

    Args:
        pixels: whether the environment draws its observations; otherwise a machine that cannot
            draw is fine, and drawing is switched off (`draws` tells).

    Returns:
        The variables to set.

    Raises:
        NoRendererError: `pixels`, and nothing here can draw; or the user's backend does not work.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    if wanted and wanted == os.environ.get(_DRAWN):
        return {}
    variables = {}
    try:
        backend = probe()
    except NoRendererError:
        if pixels or (wanted and wanted not in _DISABLED):
            raise
        return dict(NO_DRAWING)
    variables["MUJOCO_GL"] = variables[_DRAWN] = backend.name
    # llvmpipe in the calling thread: measured on 2 cores, two workers draw 6.1 frames/s together,
    # 3.6 with one extra thread each (a single worker: 4.1 with all its threads).
    variables["LP_NUM_THREADS"] = "0"
    return {name: value for name, value in variables.items() if name not in os.environ}


def draws(variables: Mapping[str, str]) -> bool:
    """Whether a worker that gets these variables can draw."""
    return {**os.environ, **variables}["MUJOCO_GL"].lower() not in _DISABLED


def check_frame(frame: np.ndarray, env_id: str) -> None:
    """Refuse a frame of one colour: what a lost OpenGL context draws, silently.

    Args:
        frame: (H, W, C) uint8.
        env_id: the environment, for the message.

    Raises:
        NoRendererError: all its values are equal.
    """
    if frame.min() == frame.max():
        raise NoRendererError(
            f"{env_id} drew a frame whose values are all {frame.min()}: its OpenGL context is "
            "lost. Make each environment that draws in a process of its own (EnvPool does), and "
            "see that MUJOCO_GL names a backend that works."
        )
