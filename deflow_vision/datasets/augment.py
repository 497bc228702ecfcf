"""Augmentation of frames on the training device: the reference's random shift, kornia for the rest.

Every draw is a pure function of (seed, step, stream), so a run resumes, and splits over ranks,
without changing what it sees.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from deflow_vision.datasets.planes import Spare, empty_rows, planes_of
from deflow_vision.datasets.threads import in_threads
from deflow_vision.seeding import derive_seed
from deflow_vision.types import UserError

_TOGETHER = 16  # samples that a thread shifts at once, within its cache

KORNIA_PRESETS = {
    "color_jitter": "ColorJitter(0.2, 0.2, 0.2, 0.05, p=0.5)",
    "gaussian_blur": "RandomGaussianBlur((3, 3), (0.1, 1.0), p=0.5)",
    "gaussian_noise": "RandomGaussianNoise(std=0.02, p=0.5)",
    "grayscale": "RandomGrayscale(p=0.1)",
    "random_affine": "RandomAffine(5.0, (0.05, 0.05), (0.95, 1.05), padding_mode='border', p=0.5)",
    "random_erasing": "RandomErasing((0.02, 0.1), p=0.5)",
}
"""Short names, and the kornia calls that they stand for: small enough to keep a scene legible."""


@dataclass(frozen=True)
class AugmentConfig:
    """How frames are augmented."""

    probability: float = 0.5
    """Chance of the random shift: of a whole global batch, as in the reference; 0 turns it off."""
    padding: int = 3
    """Greatest shift, in pixels to each side."""
    per_sample: bool = False
    """Toss the coin for each sample, rather than once a batch."""
    kornia: tuple[str, ...] = ()
    """kornia augmentations, applied in this order after the shift: short names such as color_jitter
    or gaussian_blur, or calls such as 'RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.3)'."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"augment probability is {self.probability}, choose one in [0, 1]")
        if self.padding < 0:
            raise UserError(f"augment padding is {self.padding} pixels, choose 0 or more")


class Augmentation:
    """Augments the frames of batch `step`: one draw a sample, the same for all of its frames.

    Args:
        config: what to apply.
        seed: the run's seed.
        num_streams: parts of the global batch.
        streams: the parts of this process, in the order in which they lie in its batches.

    Raises:
        UserError: a kornia augmentation that cannot be built.
        ValueError: a stream that does not exist.
    """

    def __init__(
        self, config: AugmentConfig, seed: int, num_streams: int = 1, streams: Sequence[int] = (0,)
    ) -> None:
        if not streams or not set(streams) <= set(range(num_streams)):
            raise ValueError(f"streams {tuple(streams)} are not among the {num_streams} of the run")
        self.config = config
        self.seed = seed
        self.streams = tuple(streams)
        self._kornia = _build_kornia(config.kornia) if config.kornia else None
        self._spare = Spare()

    def __call__(self, frames: UInt8[Tensor, "B T H W C"], step: int) -> UInt8[Tensor, "B T H W C"]:
        """Return the augmented frames; the input is not changed.

        Args:
            frames: the frames of s and s' of each sample, in [0, 255], on any device.
            step: the number of the batch.

        Raises:
            ValueError: frames that are not uint8 or do not divide among the streams.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5:
            raise ValueError(
                f"augmentation takes uint8 frames (B, T, H, W, C), "
                f"got {frames.dtype} {tuple(frames.shape)}"
            )
        if len(frames) % len(self.streams):
            raise ValueError(
                f"a batch of {len(frames)} does not divide among {len(self.streams)} streams"
            )
        offsets = self._offsets(step, len(frames) // len(self.streams))
        if offsets is not None:
            moved = torch.from_numpy(offsets)
            if frames.is_cuda:  # a copy from pinned memory does not wait for the device
                moved = moved.pin_memory().to(frames.device, non_blocking=True)
            frames = shift(frames, moved.to(frames.device), self.config.padding, self._spare)
        if self._kornia is None:
            return frames
        parts = frames.chunk(len(self.streams))
        return torch.cat(
            [self._apply_kornia(part, step, s) for part, s in zip(parts, self.streams, strict=True)]
        )

    def _offsets(self, step: int, samples: int) -> np.ndarray | None:
        """Offsets (B, 2) in [0, 2 * padding], or None where nothing is to be shifted."""
        config = self.config
        if config.per_sample:
            coin = config.probability > 0
        else:  # the key has no stream: every rank tosses the same coin
            rng = np.random.default_rng(derive_seed(self.seed, "augment-coin", step))
            coin = rng.random() < config.probability
        if not coin or config.padding == 0:
            return None
        parts = []
        for stream in self.streams:
            rng = np.random.default_rng(derive_seed(self.seed, "augment", step, stream))
            offsets = rng.integers(0, 2 * config.padding, size=(samples, 2), endpoint=True)
            if config.per_sample:
                offsets[rng.random(samples) >= config.probability] = config.padding  # no shift
            parts.append(offsets)
        return np.concatenate(parts)

    def _apply_kornia(self, frames: Tensor, step: int, stream: int) -> Tensor:
        """One stream's frames through kornia, whose draws come from the global generators."""
        assert self._kornia is not None
        on_gpu = frames.device.type == "cuda"
        seed = derive_seed(self.seed, "augment-kornia", step, stream)
        with torch.random.fork_rng([frames.device] if on_gpu else []), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(frames.device):
                    torch.cuda.manual_seed(seed)
            images = frames.movedim(-1, 2) / 255  # (B, T, C, H, W)
            augmented: Tensor = self._kornia(images)
        if augmented.shape != images.shape:
            raise UserError(
                f"augment.kornia {self.config.kornia} turns frames {tuple(images.shape)} into "
                f"{tuple(augmented.shape)}: choose augmentations that keep the size"
            )
        return (augmented * 255).round().clamp(0, 255).to(torch.uint8).movedim(2, -1)


def shift(
    frames: UInt8[Tensor, "B T H W C"],
    offsets: Int[Tensor, "B 2"],
    padding: int,
    spare: Spare | None = None,
) -> UInt8[Tensor, "B T H W C"]:
    """Pad each frame by its edge pixels and crop it back at the sample's offset, without padding.

    Args:
        frames: the frames of each sample.
        offsets: top and left corner of the crop in the padded frame, in [0, 2 * padding].
        padding: pixels to each side.
        spare: memory for the result on a CPU.

    Returns:
        frames of the same size: pixel (i, j) is padded[i + top, j + left].
    """
    if frames.device.type == "cpu":
        return torch.from_numpy(_shift_lines(frames.numpy(), offsets.numpy() - padding, spare))
    return _shift_pixels(frames, offsets - padding)


def _shift_pixels(frames: Tensor, moves: Tensor) -> Tensor:
    """Every pixel by itself: one kernel on a GPU, but slow on a CPU."""
    num_samples, num_frames, height, width, _ = frames.shape
    device = frames.device
    # Clamping the index is edge padding, without a padded copy.
    rows = torch.arange(height, device=device) + moves[:, :1]  # (B, H)
    columns = torch.arange(width, device=device) + moves[:, 1:]  # (B, W)
    return frames[
        torch.arange(num_samples, device=device)[:, None, None, None],
        torch.arange(num_frames, device=device)[:, None, None],
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None, :],
    ]


def _shift_lines(frames: np.ndarray, moves: np.ndarray, spare: Spare | None) -> np.ndarray:
    """The same in runs of memory, by planes, for some samples that move alike to the side."""
    _, num_frames, height, width, channels = frames.shape
    num_planes = num_frames * channels
    shifted = empty_rows(frames.shape, frames.dtype, spare)
    lines, target = planes_of(frames).reshape(-1, width), planes_of(shifted)
    rows = (np.arange(height) + moves[:, :1]).clip(0, height - 1)  # (B, H)
    sideways = moves[:, 1].clip(1 - width, width - 1)

    def fill(samples: np.ndarray) -> None:
        planes = samples[:, None] * num_planes + np.arange(num_planes)
        places = planes[:, :, None] * height + rows[samples, None]  # (b, T * C, H)
        run = np.empty(width * (places.size + 2), np.uint8)
        lines.take(places, axis=0, out=run[width:-width].reshape(*places.shape, width), mode="clip")
        # Another start moves all lines; what comes from the line beside is overwritten.
        move = int(sideways[samples[0]])
        moved = run[width + move : run.size - width + move].reshape(-1, width)
        first, last = max(0, -move), width - max(0, move)
        for column in range(first):
            moved[:, column] = moved[:, first]
        for column in range(last, width):
            moved[:, column] = moved[:, last - 1]
        target[samples] = moved.reshape(-1, *target.shape[1:])

    alike = [np.flatnonzero(sideways == move) for move in np.unique(sideways)]
    in_threads(
        fill, [some[i : i + _TOGETHER] for some in alike for i in range(0, len(some), _TOGETHER)]
    )
    return shifted


def _build_kornia(texts: Sequence[str]) -> torch.nn.Module:
    """The named augmentations as one module over (B, T, C, H, W), one draw a sample."""
    from kornia import augmentation

    sequence: torch.nn.Module = augmentation.VideoSequential(
        *(_build_one(text) for text in texts), data_format="BTCHW", same_on_frame=True
    )
    return sequence


def _build_one(text: str) -> torch.nn.Module:
    """One kornia augmentation from its short name, its class name, or a call with literals."""
    from kornia import augmentation

    known = {
        name: cls
        for name, cls in vars(augmentation).items()
        if isinstance(cls, type)
        and issubclass(cls, augmentation.AugmentationBase2D)
        and "Base" not in name
    }
    try:
        call = ast.parse(KORNIA_PRESETS.get(text, text), mode="eval").body
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        if isinstance(call, ast.Call):
            args = [ast.literal_eval(argument) for argument in call.args]
            kwargs = {str(key.arg): ast.literal_eval(key.value) for key in call.keywords}
            call = call.func
        name = ast.unparse(call)
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f"cannot read augment.kornia {text!r}: write a name, or a call with plain values such "
            f"as 'RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.3)' ({error})"
        ) from error
    if name not in known:
        near = difflib.get_close_matches(name, [*KORNIA_PRESETS, *known], n=3, cutoff=0.5)
        raise UserError(
            f"unknown kornia augmentation {name!r}; "
            f"nearest: {', '.join(near) or 'none'}; short names: {', '.join(KORNIA_PRESETS)}"
        )
    try:
        module: torch.nn.Module = known[name](*args, **kwargs)
    except Exception as error:  # kornia's checks raise many types
        raise UserError(f"kornia refuses augment.kornia {text!r}: {error}") from error
    return module
