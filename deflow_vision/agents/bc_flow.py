"""BC-flow: behavioural cloning with a flow, which models every mode of the data's actions.

A velocity field v(s, x, t) learns by flow matching (Lipman et al., arXiv 2210.02747) alone,

    L = mean_{b,d} (v(s, (1-t) x0 + t a, t) - (a - x0))^2,

and acting takes ten Euler steps from noise, clipped at the end. It is what DeFlow refines, FQL
distils and IFQL chooses from: a run of it is a base flow for `--agent.bc-flow-from`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deflow_vision.agents.base import (
    Agent,
    AgentConfig,
    Losses,
    Metrics,
    check_at_least,
    standard_normal,
)
from deflow_vision.flow import flow_matching_loss, sample_actions
from deflow_vision.networks.actors import VelocityField
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class BCFlowConfig(AgentConfig):
    """Hyper-parameters of BC-flow."""

    flow_steps: int = 10
    """M: Euler steps of the flow."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 1, "flow_steps")


class BCFlowNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        flow: x_0 of flow matching, (B, A), standard normal.
        times: t of flow matching, (B,), uniform in [0, 1).
    """

    flow: Tensor
    times: Tensor


class BCFlow(Agent):
    """A flow over actions."""

    Config = BCFlowConfig
    config: BCFlowConfig

    def __init__(self, spec: Spec, config: BCFlowConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        self.encoder = ObservationEncoder(
            spec, encoder_config, heads=("flow",), gradients_from=("flow",), targets=()
        )
        self.bc_flow = VelocityField(self.encoder.feature_dim, spec.action_dim, config.hidden_dims)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> BCFlowNoises:
        """Draw one update's noises on the CPU."""
        return BCFlowNoises(
            flow=standard_normal(batch_size, self.spec.action_dim, generator),
            times=torch.rand(batch_size, generator=generator),
        )

    def forward(
        self, batch: Batch, noises: BCFlowNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """The flow-matching loss.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; there is one loss.
        """
        features = self.encoder(batch.observations)["flow"]
        loss = flow_matching_loss(
            lambda x, t: self.bc_flow(features, x, t), batch.actions, noises.flow, noises.times
        )
        return {"flow/loss": loss}, {}

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """One sample mu(s, z) a row; the same when exploring."""
        features = self.features(observations, "flow")
        return sample_actions(self.bc_flow.held(features), noises, self.config.flow_steps)

    def update_targets(self, step: int) -> None:
        """Do nothing: there are no slow copies."""
