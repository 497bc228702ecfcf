"""BC: behavioural cloning with a Gaussian policy of unit variance.

The log-likelihood of the data's actions under N(mean(s), I) is, up to a constant, a mean squared
error,

    L = mean_b sum_d (mean(s) - a)^2 / 2.

Acting takes the mean. It is the row "BC" of the tables of OGBench (arXiv 2410.20092) and of "Flow
Q-Learning" (arXiv 2502.02538): what the data's average action is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deflow_vision.agents.base import Agent, AgentConfig, Losses, Metrics, detached
from deflow_vision.networks.actors import GaussianActor
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class BCConfig(AgentConfig):
    """Hyper-parameters of BC."""


class BCNoises(NamedTuple):
    """The draws of one update: none."""


class BC(Agent):
    """The mean of a Gaussian policy."""

    Config = BCConfig
    config: BCConfig

    def __init__(self, spec: Spec, config: BCConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        self.encoder = ObservationEncoder(
            spec, encoder_config, heads=("actor",), gradients_from=("actor",), targets=()
        )
        self.actor = GaussianActor(self.encoder.feature_dim, spec.action_dim, config.hidden_dims)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> BCNoises:
        """Draw nothing."""
        return BCNoises()

    def forward(self, batch: Batch, noises: BCNoises, stage: None = None) -> tuple[Losses, Metrics]:
        """The negative log-likelihood of the data's actions, without its constant.

        Args:
            batch: B transitions.
            noises: nothing.
            stage: nothing; there is one loss.
        """
        means = self.actor(self.encoder(batch.observations)["actor"])
        errors = (means - batch.actions).square()  # (B, A)
        return {"actor/loss": errors.sum(-1).mean() / 2}, detached({"actor/mse": errors.mean()})

    def noise_dim(self, *, explore: bool) -> int:
        """None: the policy is deterministic."""
        return 0

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """The mean, clipped; the same when exploring."""
        return self.actor(self.features(observations, "actor")).clamp(-1, 1)  # type: ignore[no-any-return]

    def update_targets(self, step: int) -> None:
        """Do nothing: there are no slow copies."""
