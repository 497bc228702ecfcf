"""IFQL: a flow proposes the data's actions, and the best of them by IQL's critic is taken.

A baseline of "Flow Q-Learning" (arXiv 2502.02538): IDQL (Hansen-Estruch et al., arXiv 2304.10573)
with a flow in the place of its diffusion model. Q and V are IQL's (arXiv 2110.06169) and judge the
data's actions alone; the flow learns by flow matching alone; acting draws N samples,

    pi(s) = argmax_k min_i Q_i(s, mu(s, z_k)),    z_k ~ N(0, I), k = 1..N.

Deviations from the reference:
    - A shared image encoder, trained by the flow, is the default;
      `encoder.sharing=separate` is the reference's form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deflow_vision.agents.base import (
    ActorCriticConfig,
    Agent,
    Losses,
    Metrics,
    best_of,
    check_at_least,
    check_between,
    detached,
    q_metrics,
    standard_normal,
)
from deflow_vision.flow import flow_matching_loss, sample_actions
from deflow_vision.losses import aggregate_q, expectile_loss, td_target
from deflow_vision.networks.actors import VelocityField
from deflow_vision.networks.critics import Critic, Value
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class IFQLConfig(ActorCriticConfig):
    """Hyper-parameters of IFQL."""

    expectile: float = 0.9
    """Which expectile of Q over the data's actions V is."""
    num_candidates: int = 32
    """N: samples of the flow of which acting takes the best."""
    flow_steps: int = 10
    """M: Euler steps of the flow."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_between(self, 0, 1, "expectile")
        check_at_least(self, 1, "num_candidates", "flow_steps")


class IFQLNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        flow: x_0 of flow matching, (B, A), standard normal.
        times: t of flow matching, (B,), uniform in [0, 1).
    """

    flow: Tensor
    times: Tensor


class IFQL(Agent):
    """Critic Q_i with a slow copy, value V, flow mu."""

    Config = IFQLConfig
    config: IFQLConfig

    def __init__(self, spec: Spec, config: IFQLConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        heads = ("critic", "value", "flow")
        self.encoder = ObservationEncoder(spec, encoder_config, heads, gradients_from=("flow",))
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.value = Value(self.encoder.feature_dim, config.hidden_dims)
        self.bc_flow = VelocityField(*dims)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> IFQLNoises:
        """Draw one update's noises on the CPU."""
        return IFQLNoises(
            flow=standard_normal(batch_size, self.spec.action_dim, generator),
            times=torch.rand(batch_size, generator=generator),
        )

    def forward(
        self, batch: Batch, noises: IFQLNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: V's, the critic's, the flow's.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        value_loss, value_metrics = self.value_loss(batch, features)
        critic_loss, critic_metrics = self.critic_loss(batch, features)
        flow_loss = flow_matching_loss(
            lambda x, t: self.bc_flow(features["flow"], x, t),
            batch.actions,
            noises.flow,
            noises.times,
        )
        losses = {"value/loss": value_loss, "critic/loss": critic_loss, "flow/loss": flow_loss}
        return losses, {**value_metrics, **critic_metrics}

    def value_loss(self, batch: Batch, features: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """The expectile loss of min_i Q_i^-(s, a) - V(s), at the data's actions."""
        target_features = self.encoder.encode_target(batch.observations)
        with torch.no_grad():
            target_q = aggregate_q(self.target_critic(target_features, batch.actions), "min")
        values = self.value(features["value"])  # (B,)
        loss = expectile_loss(target_q - values, self.config.expectile)
        return loss, detached({"value/mean": values.mean()})

    def critic_loss(self, batch: Batch, features: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """sum_i mean_b (Q_i(s, a) - y)^2 with y = r + gamma m V(s')."""
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("value",))["value"]
            next_values = self.value(next_features)
            target_q = td_target(batch.rewards, batch.masks, next_values, self.config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        return (q - target_q).square().mean(1).sum(), q_metrics(q)

    def noise_dim(self, *, explore: bool) -> int:
        """A, for each of the N samples."""
        return self.config.num_candidates * self.spec.action_dim

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """The best of N samples by the least critic; the same when exploring."""
        num, dim = self.config.num_candidates, self.spec.action_dim
        features = self.encoder(observations, heads=("critic", "flow"))
        repeated = {head: found.repeat_interleave(num, 0) for head, found in features.items()}
        candidates = self.flow_actions(repeated["flow"], noises.view(-1, dim))  # (B N, A)
        q = aggregate_q(self.critic(repeated["critic"], candidates), "min")
        return best_of(candidates.view(-1, num, dim), q.view(-1, num))

    @torch.no_grad()
    def flow_actions(self, features: Tensor, noises: Tensor) -> Tensor:
        """mu(s, z): M Euler steps of the flow from z, clipped at the end, (B, A)."""
        return sample_actions(self.bc_flow.held(features), noises, self.config.flow_steps)

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)
