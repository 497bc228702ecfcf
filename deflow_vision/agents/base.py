"""What every agent is: the contract between algorithms and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deflow_vision.networks.encoders import EncoderConfig
from deflow_vision.types import Batch, Spec

Losses = dict[str, Tensor]
Metrics = dict[str, Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a whole batch, or one a row (evaluation: one an episode)."""


class Agent(nn.Module, ABC):
    """A policy and its losses as one module.

    Training calls `agent(batch, noises, step)` and nothing else, since data-parallel wrappers and
    autocast act on `forward` alone; it is deterministic, all randomness comes in through `noises`.
    The loop sums the losses, calls backward once, calls `update_targets` and then steps its one
    optimizer: targets mix the parameters from before the step, as the reference does.

    Slow copies are parameters without gradient, not buffers. Loss and metric names are log keys.
    """

    Config: ClassVar[type]
    """The frozen dataclass of hyper-parameters."""
    batch_fields: ClassVar[tuple[str, ...]] = ()
    """Optional fields of `Batch` that the losses need: "next_actions", "mc_returns"."""

    @abstractmethod
    def __init__(self, spec: Spec, config: Any, encoder_config: EncoderConfig) -> None:
        super().__init__()
        self.spec = spec
        self.config = config

    @abstractmethod
    def sample_noises(self, batch_size: int, generator: torch.Generator) -> NamedTuple:
        """Draw what `forward` needs for `batch_size` transitions, on the CPU."""

    @abstractmethod
    def forward(self, batch: Batch, noises: Any, step: int) -> tuple[Losses, Metrics]:
        """The named losses of a batch, and detached metrics.

        Args:
            batch: B transitions on the device.
            noises: what `sample_noises` drew, on the device.
            step: the number of updates done before this one.
        """

    @abstractmethod
    def act(
        self, observations: Tensor, *, explore: bool = False, generator: Generators = None
    ) -> Tensor:
        """Actions (B, A) in [-1, 1], without gradient.

        Args:
            observations: (B, ...) on the device.
            explore: whether this is for collecting online data.
            generator: CPU generator(s) for the policy's noise.
        """

    @abstractmethod
    def features(self, observations: Tensor, head: str) -> Tensor:
        """Embeddings (B, D) of `observations` as `head` sees them, without gradient."""

    @abstractmethod
    def update_targets(self, step: int) -> None:
        """Move the slow copies; called after backward, before the optimizer's step."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups; by default one, of all that learns, at `config.lr`."""
        learning = [p for p in self.parameters() if p.requires_grad]
        return [{"params": learning, "lr": self.config.lr, "weight_decay": 0.0}]


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """`module` with its parameters held constant: gradients flow through it, not into it.

    Exact, and traceable by `torch.compile`, which toggling `requires_grad_` is not.
    """
    constants = {name: p.detach() for name, p in module.named_parameters()}

    def call(*inputs: Tensor) -> Tensor:
        return functional_call(module, constants, inputs)  # type: ignore[no-any-return]

    return call


def standard_normal(batch_size: int, dim: int, generator: Generators = None) -> Tensor:
    """Draw z ~ N(0, I), (B, dim), on the CPU.

    Args:
        batch_size: B.
        dim: numbers a row.
        generator: one for all rows, or a sequence of B, one a row.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(batch_size, dim, generator=generator)
    return torch.stack([torch.randn(dim, generator=row) for row in generator])
