"""A bandit with two-dimensional actions whose value is known.

The state is constant. The data's actions come from six narrow modes on a ring; the value is
greatest in the middle of the ring, where there is no data, and rises a little towards one side, so
that the modes differ. A good policy keeps every mode and moves each inwards by as much as it is
allowed to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUM_MODES, RADIUS, WIDTH = 6, 0.68, 0.1
"""The ring of the data's modes, and the standard deviation of each."""
SUPPORT = 3.0
"""Within so many standard deviations of a mode's middle an action is in the data's support."""


def modes() -> Tensor:
    """The middles of the modes, (6, 2)."""
    angles = 2 * np.pi * (torch.arange(NUM_MODES) + 0.5) / NUM_MODES
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=-1)


def value(actions: Tensor) -> Tensor:
    """exp(-|a|^2 / (2 0.45^2)) + 0.2 a_0: the known value of actions (..., 2)."""
    return (-actions.square().sum(-1) / (2 * 0.45**2)).exp() + 0.2 * actions[..., 0]


def draw_data(size: int, generator: torch.Generator) -> Tensor:
    """Actions of the behaviour, (size, 2): a mode at random, and Gaussian noise around it."""
    which = torch.randint(NUM_MODES, (size,), generator=generator)
    return modes()[which] + WIDTH * torch.randn(size, 2, generator=generator)


@dataclass(frozen=True)
class Outcome:
    """What a policy's samples are, in numbers.

    Attributes:
        method: its name, with settings that are not the defaults.
        modes_kept: modes that get at least a quarter of the data's share of the samples.
        modes_uphill: those of them whose samples are worth more than the data's there, by more than
            two standard errors.
        gain: by how much, the mean over the modes that are kept.
        out_of_support: share of samples further than three deviations from every mode's middle.
        mean_value: the known value of the samples.
        refinement: mean squared move from the base action, where the method has one.
        target_divergence: what that is held at.
        seconds: time of the training.
    """

    method: str
    modes_kept: int
    modes_uphill: int
    gain: float
    out_of_support: float
    mean_value: float
    refinement: float | None = None
    target_divergence: float | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, method: str, actions: Tensor, data: Tensor, **more: Any) -> Outcome:
        """Measure samples (N, 2) against the data's (M, 2)."""
        (found, inside), (theirs, _) = nearest_mode(actions), nearest_mode(data)
        gains, errors = [], []
        for mode in range(NUM_MODES):
            values = value(actions[(found == mode) & inside])
            if len(values) >= 0.25 * len(actions) / NUM_MODES:
                gains.append((values.mean() - value(data[theirs == mode]).mean()).item())
                errors.append((values.std() / len(values) ** 0.5).item())
        return cls(
            method=method,
            modes_kept=len(gains),
            modes_uphill=sum(g > 2 * e for g, e in zip(gains, errors, strict=True)),
            gain=float(np.mean(gains)) if gains else float("nan"),
            out_of_support=1 - inside.float().mean().item(),
            mean_value=value(actions).mean().item(),
            **more,
        )

    def caption(self) -> str:
        """The numbers in a few lines."""
        lines = [
            f"modes kept {self.modes_kept}/{NUM_MODES}, uphill {self.modes_uphill}/{NUM_MODES}",
            f"value {self.mean_value:.3f}"
            + (f", within a mode {self.gain:+.3f}" if self.modes_kept else ""),
            f"out of support {100 * self.out_of_support:.1f} %",
        ]
        if self.refinement is not None:
            lines.append(f"move² {self.refinement:.4f}, allowed {self.target_divergence:g}")
        return "\n".join(lines)


def nearest_mode(actions: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest mode of each action, and whether the action is in its support."""
    distances, found = torch.cdist(actions, modes()).min(1)
    return found, distances <= SUPPORT * WIDTH
