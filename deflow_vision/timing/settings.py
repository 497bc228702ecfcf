"""How much is timed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Part = Literal[
    "update",
    "action",
    "evaluation",
    "wait",
    "growth",
    "streaming",
    "conversion",
    "mixing",
    "render",
    "methods",
]


BY_DEFAULT: tuple[Part, ...] = get_args(Part)[:-1]
"""All that the library is held to; `methods` has no goals."""


@dataclass(frozen=True)
class Settings:
    """How much is timed; the defaults take 23 minutes on two slow cores.

    Args:
        rounds: what is compared takes turns so often.
        updates: updates of each case in a turn.
        actions: actions of each way in a turn.
        episodes: of an evaluation.
        wait_updates: pixel updates whose wait for data is counted.
        growth: transitions of the two datasets that are compared.
        stream_frames: frames of the store that is streamed.
        convert_frames: frames of the files that are converted.
        seconds: of each rate that is not counted in calls.
        render_frames: pictures of each environment and profile.
        render_envs: environments whose pictures are drawn.
        task: whose shapes and settings `methods` takes.
        algos: that it times beside DeFlow; every algorithm by default.
        batch_size: transitions of its updates.
        precision: of its updates, bf16 for autocast.
        cuda_graphs: on a GPU, record them once and replay them.
        picture: where to write a frame of each of them side by side, as PNG or JPEG.
        network: layers of the networks whose updates are timed; the published ones by default.
        folder: where the data for it are written; a temporary folder by default, which is removed.
    """

    rounds: int = 5
    updates: int = 8
    actions: int = 100
    episodes: int = 50
    wait_updates: int = 100
    growth: tuple[int, int] = (100_000, 10_000_000)
    stream_frames: int = 20_000
    convert_frames: int = 100_000
    seconds: float = 10.0
    render_frames: int = 8
    render_envs: tuple[str, ...] = ("cube-double", "scene", "puzzle-4x4")
    task: str = "cube-single-play"
    algos: tuple[str, ...] = ()
    batch_size: int = 256
    precision: Literal["no", "bf16"] = "no"
    cuda_graphs: bool = True
    picture: Path | None = None
    network: tuple[int, ...] = ()
    folder: Path | None = None
