"""The render profiles: the rate of each, and the likeness of its frames to the official ones.

Nothing here reaches torch: MuJoCo draws in the process that calls.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from deflow_vision.datasets.collect import Collector
from deflow_vision.envs.make import make_collection_env
from deflow_vision.envs.rendering import RENDER_PROFILES, probe
from deflow_vision.envs.simplify import ARM_MESHES, apply
from deflow_vision.envs.states import draw_state

STEPS_APART = 25
EPISODE_STEPS = 100
AMPLIFICATION = 8


@dataclass(frozen=True)
class Drawn:
    """What a profile came to in an environment.

    Attributes:
        rates: frames/s at the median of each turn.
        likeness: dB to the official frames, of each frame.
        triangles: the arm's.
        ready_in: seconds that the profile costs a process once.
        frame: the last one, (64, 64, 3).
    """

    rates: tuple[float, ...]
    likeness: tuple[float, ...]
    triangles: int
    ready_in: float
    frame: np.ndarray


def draw_profiles(environment: str, frames: int, rounds: int) -> tuple[str, dict[str, Drawn]]:
    """Draw the same states with each profile, in turns.

    The frames show OGBench's oracles at work, 25 steps apart, at 64 x 64. A rate is that of the
    median time of a frame, without physics.

    Args:
        environment: whose pixel version to draw.
        frames: how many states.
        rounds: turns of each profile.

    Returns:
        What draws, and what was found of each profile.
    """
    backend = probe()
    envs = {
        profile: make_collection_env(f"visual-{environment}", render_profile=profile)
        for profile in RENDER_PROFILES
    }
    states = oracle_states(environment, frames)
    rates: dict[str, list[float]] = {profile: [] for profile in envs}
    drawn: dict[str, np.ndarray] = {}
    for env in envs.values():
        draw_state(env, states[0])  # makes the renderer
    for _ in range(rounds):
        for profile, env in envs.items():
            drawn[profile], seconds = draw(env, states)
            rates[profile].append(1 / statistics.median(seconds))
    found = {}
    for profile, env in envs.items():
        errors = np.square(drawn[profile].astype(float) - drawn["official"]).mean((1, 2, 3))
        with np.errstate(divide="ignore"):
            likeness = 10 * np.log10(255**2 / errors)
        found[profile] = Drawn(
            tuple(rates[profile]),
            tuple(likeness.tolist()),
            arm_triangles(env.unwrapped.model),
            seconds_to_apply(envs["official"].unwrapped.model, profile),
            drawn[profile][-1],
        )
        env.close()
    return f"{backend.renderer}, {backend.name}, one process", found


def oracle_states(environment: str, count: int) -> list[dict[str, np.ndarray]]:
    """Simulator states out of episodes of the scripted oracles."""
    collector = Collector(environment, "play", 0, EPISODE_STEPS + 1, "official")
    states: list[dict[str, np.ndarray]] = []
    while len(states) < count:
        side = collector.episode("train", len(states)).side
        for step in range(STEPS_APART, EPISODE_STEPS + 1, STEPS_APART):
            states.append({name: rows[step] for name, rows in side.items()})
    return states[:count]


def draw(env: gymnasium.Env, states: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, list[float]]:
    """A frame of each state, (N, H, W, 3), and the seconds that each took."""
    frames, seconds = [], []
    for state in states:
        start = time.perf_counter()
        frames.append(draw_state(env, state))
        seconds.append(time.perf_counter() - start)
    return np.stack(frames), seconds


def arm_triangles(model: Any) -> int:
    """How many triangles the arm's meshes have, each counted once."""
    names = [model.mesh(mesh).name for mesh in range(model.nmesh)]
    is_arm = [name.startswith(ARM_MESHES) for name in names]
    return int(model.mesh_facenum[is_arm].sum())


def seconds_to_apply(model: Any, profile: str) -> float:
    """What a profile costs once a process, before its first frame."""
    savings = RENDER_PROFILES[profile]
    model = copy.copy(model)
    start = time.perf_counter()
    if savings is not None:
        apply(model, savings)
    return time.perf_counter() - start


def write_picture(path: Path, pictures: dict[str, dict[str, np.ndarray]]) -> None:
    """Frames side by side: a row an environment, then what each profile differs in, amplified."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    others = [profile for profile in RENDER_PROFILES if profile != "official"]
    titles = [*RENDER_PROFILES, *(f"|{name} - official|, {AMPLIFICATION} times" for name in others)]
    size = (2.0 * len(titles), 2.1 * len(pictures))
    figure, axes = plt.subplots(len(pictures), len(titles), figsize=size, squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize="medium")
    for row, (environment, drawn) in zip(axes, pictures.items(), strict=True):
        official = drawn["official"].astype(int)
        images = list(drawn.values())
        for name in others:
            difference = np.abs(drawn[name].astype(int) - official) * AMPLIFICATION
            images.append(np.minimum(difference, 255).astype(np.uint8))
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(environment)
    figure.tight_layout()
    figure.savefig(path, dpi=96)
