"""What every agent is: the contract between algorithms and the training loop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec, UserError

Losses = dict[str, Tensor]
Metrics = dict[str, Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a whole batch, or one a row (evaluation: one an episode)."""


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Hyper-parameters that every method has."""

    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of every network."""
    lr: float = 3e-4
    """Learning rate of the one Adam optimizer."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        check_at_least(self, 1, "hidden_dims")
        check_between(self, 0, float("inf"), "lr")


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(AgentConfig):
    """Hyper-parameters of methods with a critic."""

    discount: float = 0.99
    """gamma."""
    num_critics: int = 2
    """E: members of the critic ensemble."""
    tau: float = 0.005
    """Share of the online critic mixed into its target at each update."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_between(self, 0, 1, "discount")
        check_at_least(self, 1, "num_critics")
        check_share(self, "tau")


class Agent(nn.Module, ABC):
    """A policy and its losses as one module.

    Training calls `agent(batch, noises, stage)` and nothing else, since data-parallel wrappers and
    autocast act on `forward` alone; it is deterministic, all randomness comes in through `noises`.
    The loop sums the losses, calls backward once, calls `update_targets` and then steps its one
    optimizer: targets mix the parameters from before the step, as the reference does.

    Slow copies are parameters without gradient, not buffers. Loss and metric names are log keys.
    """

    Config: ClassVar[type]
    """The frozen dataclass of hyper-parameters."""
    batch_fields: ClassVar[tuple[str, ...]] = ()
    """Optional fields of `Batch` that the losses need: "next_actions", "mc_returns"."""
    offline: ClassVar[bool] = True
    """Whether it has an offline phase."""
    staged: ClassVar[bool] = False
    """Whether some updates leave parameters that learn without a gradient."""

    encoder: ObservationEncoder

    @abstractmethod
    def __init__(self, spec: Spec, config: Any, encoder_config: EncoderConfig) -> None:
        super().__init__()
        self.spec = spec
        self.config = config

    @abstractmethod
    def sample_noises(self, batch_size: int, generator: torch.Generator) -> NamedTuple:
        """Draw what `forward` needs for `batch_size` transitions, on the CPU."""

    @abstractmethod
    def forward(self, batch: Batch, noises: Any, stage: Any = None) -> tuple[Losses, Metrics]:
        """The named losses of a batch, and detached metrics.

        Args:
            batch: B transitions on the device.
            noises: what `sample_noises` drew, on the device.
            stage: what `stage` says of this update.
        """

    def stage(self, step: int) -> Any:
        """What the losses depend on beside the batch, after `step` updates; nothing, for most.

        A bool or a word where it decides which losses there are, so that each has a compiled graph
        of its own; a tensor where it is a quantity.
        """
        return None

    def noise_dim(self, *, explore: bool) -> int:
        """Standard normal numbers that one action takes; A, unless a method says otherwise."""
        return self.spec.action_dim

    @abstractmethod
    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """Actions (B, A) in [-1, 1], a pure function that can be exported.

        Args:
            observations: (B, ...).
            noises: standard normal, (B, `noise_dim(explore)`).
            explore: whether this is for collecting online data.
        """

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, explore: bool = False, generator: Generators = None
    ) -> Tensor:
        """Actions (B, A) in [-1, 1], without gradient: `decide`, with noise that is drawn here.

        Args:
            observations: (B, ...) on the device.
            explore: whether this is for collecting online data.
            generator: CPU generator(s) for the policy's noise.
        """
        noises = standard_normal(len(observations), self.noise_dim(explore=explore), generator)
        return self.decide(observations, noises.to(observations.device), explore=explore)

    @torch.no_grad()
    def features(self, observations: Tensor, head: str) -> Tensor:
        """Embeddings (B, D) of `observations` as `head` sees them, without gradient."""
        return self.encoder(observations, heads=(head,))[head]  # type: ignore[no-any-return]

    @abstractmethod
    def update_targets(self, step: int) -> None:
        """Move the slow copies; called after backward, before the optimizer's step."""

    def begin_online(self) -> None:
        """Make the agent ready for its online phase, once, before the first update of it.

        It may freeze parts and give them copies of networks. Whatever learns afterwards must have
        learnt before: the optimizer drops what learns no more, and takes nothing new.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups; by default one, of all that learns, at `config.lr`.

        Each has `params`, `lr` and `weight_decay` (decoupled from the gradient), and may have
        `clip`, the greatest norm of its gradient, and `schedule`, the factor of `lr` by step.
        """
        learning = [p for p in self.parameters() if p.requires_grad]
        return [{"params": learning, "lr": self.config.lr, "weight_decay": 0.0}]


def part_of(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one module of a state, under its own names."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def detached(metrics: dict[str, Tensor]) -> Metrics:
    """Metrics without their graphs."""
    return {name: value.detach() for name, value in metrics.items()}


def q_metrics(q: Tensor) -> Metrics:
    """What every critic logs of Q (E, B) at the batch's own actions."""
    return detached({"critic/q_mean": q.mean(), "critic/q_min": q.min(), "critic/q_max": q.max()})


def check_between(config: Any, low: float, high: float, *names: str) -> None:
    """Refuse fields of a configuration outside the open interval (low, high), NaN included.

    Raises:
        UserError: naming the field, its value and the interval.
    """
    for name in names:
        value = getattr(config, name)
        if not low < value < high:
            within = f"be greater than {low}" if high == float("inf") else f"lie in ({low}, {high})"
            raise UserError(f"{name} is {value}, must {within}")


def check_share(config: Any, *names: str) -> None:
    """Refuse fields of a configuration outside (0, 1], NaN included.

    Raises:
        UserError: naming the field, its value and the interval.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 < value <= 1:
            raise UserError(f"{name} is {value}, must lie in (0, 1]")


def check_at_least(config: Any, least: float, *names: str) -> None:
    """Refuse fields of a configuration below `least`, NaN included; of a tuple, every number.

    Raises:
        UserError: naming the field, its value and the bound.
    """
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(number >= least for number in numbers):
            raise UserError(f"{name} is {value}, must be at least {least}")


def half_cosine(step: int, num_steps: int) -> float:
    """(1 + cos(pi k / K)) / 2, a schedule: 1 at step k <= 0, 0 from K on."""
    return (1 + math.cos(math.pi * min(max(step, 0), num_steps) / num_steps)) / 2


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """`module` with its parameters held constant: gradients flow through it, not into it.

    Exact, and traceable by `torch.compile`, which toggling `requires_grad_` is not.
    """
    constants = {name: p.detach() for name, p in module.named_parameters()}

    def call(*inputs: Tensor) -> Tensor:
        return functional_call(module, constants, inputs)  # type: ignore[no-any-return]

    return call


def best_of(actions: Tensor, q: Tensor) -> Tensor:
    """For each state, the action with the greatest Q: actions (B, K, A), q (B, K) to (B, A)."""
    best: Tensor = q.argmax(1)
    return actions[torch.arange(actions.shape[0], device=actions.device), best]


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
