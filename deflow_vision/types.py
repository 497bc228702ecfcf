"""The values that travel between data, agents and environments. Imports neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class UserError(ValueError):
    """Something that the person at the keyboard can mend.

    The message says what was wrong, the value, and the way out; scripts print it without a
    traceback.
    """


class Batch(NamedTuple):
    """A batch of transitions on the training device, as every agent takes it.

    Attributes:
        observations: s, (B, D) float32 or (B, H, W, C * frame_stack) uint8, oldest frame first.
        actions: a in (-1, 1), (B, A) float32.
        rewards: r of the current state, (B,) float32.
        masks: 0 where no bootstrap follows, 1 elsewhere, (B,) float32. Not `1 - terminals`.
        next_observations: s', like `observations`.
        next_actions: a' of the data, (B, A), where the agent's `batch_fields` ask for it.
        mc_returns: discounted return-to-go of the data, (B,), likewise.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    next_observations: Tensor
    next_actions: Tensor | None = None
    mc_returns: Tensor | None = None


class FrameBatch(NamedTuple):
    """A batch as the samplers make it, on the host: each stored state once.

    Attributes:
        frames: the stack of s and the last frame of s', (B, frame_stack + 1, H, W, C) uint8, or
            (B, frame_stack + 1, D) float32. `frames[:, :-1]` is s, `frames[:, 1:]` is s'. Where the
            device holds all frames: their numbers, (B, frame_stack + 1) int64.
        actions: (B, A) float32, clipped to [-1 + 1e-5, 1 - 1e-5].
        rewards: (B,) float32.
        masks: (B,) float32.
        next_actions: (B, A) float32 or None.
        mc_returns: (B,) float32 or None.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    masks: np.ndarray
    next_actions: np.ndarray | None = None
    mc_returns: np.ndarray | None = None


@dataclass(frozen=True)
class Spec:
    """What an agent must know of a task to build its networks.

    Attributes:
        observation_shape: (D,) or (H, W, C * frame_stack).
        observation_dtype: "float32" for state, "uint8" for pixels.
        action_dim: A.
        reward_range: the least and the greatest reward of the dataset.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: Literal["float32", "uint8"]
    action_dim: int
    reward_range: tuple[float, float]

    @property
    def pixels(self) -> bool:
        """Whether observations are images."""
        return self.observation_dtype == "uint8"

    @property
    def resolution(self) -> int | None:
        """Pixels from top to bottom of an image, None of a state."""
        return self.observation_shape[0] if self.pixels else None
