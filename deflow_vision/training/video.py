"""Episodes as mp4 films, and as sheets of pictures."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from deflow_vision.files import write_whole

MIN_SIDE = 256
"""Pixels of the longer side under which a film is enlarged, so that 64x64 can be watched."""


def write_video(path: Path, frames: np.ndarray, fps: int = 30) -> None:
    """Write frames as an mp4 that every browser plays (H.264, yuv420p).

    Small frames are enlarged by a whole factor, pixel by pixel; an odd side gets one more row or
    column. The file appears under its name only when it is complete.

    Args:
        path: the file to write, `*.mp4`.
        frames: (T, H, W, C) uint8, at least one; C is 3, or fewer for grey.
        fps: frames a second.

    Raises:
        ValueError: frames of another shape or type.
    """
    frames = enlarge(_checked(frames))
    height, width = frames.shape[1:3]
    # H.264 with halved colour planes has even sides only.
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    write_whole(
        path,
        lambda part: iio.imwrite(
            part,
            frames,
            plugin="FFMPEG",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            quality=8,
            macro_block_size=2,
        ),
    )


def contact_sheet(path: Path, frames: np.ndarray, num_pictures: int = 12, columns: int = 6) -> None:
    """Write evenly spaced frames of an episode, the first and the last among them, as one PNG.

    Args:
        path: the file to write, `*.png`.
        frames: (T, H, W, C) uint8, at least one; C is 3, or fewer for grey.
        num_pictures: pictures on the sheet, fewer where the episode is shorter.
        columns: pictures a row.

    Raises:
        ValueError: frames of another shape or type.
    """
    from torchvision.utils import make_grid  # takes seconds, which training need not wait

    frames = _checked(frames)
    chosen = np.linspace(0, len(frames) - 1, min(num_pictures, len(frames))).round().astype(int)
    pictures = torch.from_numpy(enlarge(frames[chosen], min_side=128)).movedim(-1, 1)
    sheet = make_grid(pictures, nrow=columns, padding=4, pad_value=255)  # (3, H, W)
    write_whole(path, lambda part: iio.imwrite(part, sheet.movedim(0, -1).numpy()))


def enlarge(frames: np.ndarray, min_side: int = MIN_SIDE) -> np.ndarray:
    """Repeat pixels by the least whole factor that brings the longer side to `min_side`.

    Args:
        frames: (T, H, W, 3).
        min_side: in pixels.

    Returns:
        (T, H * factor, W * factor, 3).
    """
    factor = -(-min_side // max(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2) if factor > 1 else frames


def _checked(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or not frames.size:
        raise ValueError(
            f"a film takes uint8 frames (T, H, W, C), got {frames.dtype} {frames.shape}"
        )
    # Of more channels than a picture has, such as depth after colours, the first ones are shown.
    return frames[..., :3] if frames.shape[-1] >= 3 else frames[..., :1].repeat(3, axis=-1)
