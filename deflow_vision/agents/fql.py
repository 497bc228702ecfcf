"""FQL: a one-step policy distilled from a behaviour flow while it climbs Q.

Paper: Park, Li and Levine, "Flow Q-Learning", arXiv 2502.02538. A flow mu(s, z) models the data by
flow matching alone. A network mu_1 without time maps the same noise to an action in one step,
pi(s, z) = clip(mu_1(s, z)), and learns from both,

    alpha mean_{b,d} (mu_1(s, z) - mu(s, z))^2  -  mean_b Q(s, pi(s, z)).

Neither term passes through the flow's solver; acting costs one evaluation.

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
    check_at_least,
    detached,
    frozen,
    q_metrics,
    standard_normal,
)
from deflow_vision.flow import flow_matching_loss, sample_actions
from deflow_vision.losses import Aggregation, aggregate_q, global_mean, td_target
from deflow_vision.networks.actors import VelocityField
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class FQLConfig(ActorCriticConfig):
    """Hyper-parameters of FQL."""

    alpha: float = 10.0
    """Weight of the one-step policy's distance to the flow."""
    q_agg: Aggregation = "mean"
    """How the target's ensemble is aggregated; the policy always climbs the mean."""
    normalize_q_loss: bool = False
    """Divide the policy's Q loss by the batch mean of |Q|; off in the paper's runs."""
    flow_steps: int = 10
    """M: Euler steps of the flow."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 0, "alpha")
        check_at_least(self, 1, "flow_steps")


class FQLNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_action: z' of the target's action, (B, A), standard normal.
        flow: x_0 of flow matching, (B, A), standard normal.
        times: t of flow matching, (B,), uniform in [0, 1).
        policy: z of the policy and of the flow that it imitates, (B, A), standard normal.
    """

    next_action: Tensor
    flow: Tensor
    times: Tensor
    policy: Tensor


class FQL(Agent):
    """Critic Q_i with a slow copy, flow mu, one-step policy; no slow policy."""

    Config = FQLConfig
    config: FQLConfig

    def __init__(self, spec: Spec, config: FQLConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        self.encoder = ObservationEncoder(
            spec,
            encoder_config,
            heads=("critic", "flow", "actor"),
            gradients_from=("flow",),
        )
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.bc_flow = VelocityField(*dims)
        self.one_step = VelocityField(*dims, timed=False)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> FQLNoises:
        """Draw one update's noises on the CPU."""
        dim = self.spec.action_dim
        return FQLNoises(
            next_action=standard_normal(batch_size, dim, generator),
            flow=standard_normal(batch_size, dim, generator),
            times=torch.rand(batch_size, generator=generator),
            policy=standard_normal(batch_size, dim, generator),
        )

    def forward(
        self, batch: Batch, noises: FQLNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the critic's, the flow's, the policy's.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        critic_loss, critic_metrics = self.critic_loss(batch, features, noises)
        flow_loss = flow_matching_loss(
            lambda x, t: self.bc_flow(features["flow"], x, t),
            batch.actions,
            noises.flow,
            noises.times,
        )
        actor_losses, actor_metrics = self.actor_loss(features, noises)
        losses = {"critic/loss": critic_loss, "flow/loss": flow_loss, **actor_losses}
        return losses, {**critic_metrics, **actor_metrics}

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: FQLNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - y)^2 with y = r + gamma m agg_i Q_i^-(s', pi(s', z'))."""
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("actor",))["actor"]
            next_actions = self.policy(next_features, noises.next_action)
            target_features = self.encoder.encode_target(batch.next_observations)
            next_q = self.target_critic(target_features, next_actions)  # (E, B)
            next_values = aggregate_q(next_q, self.config.q_agg)
            target_q = td_target(batch.rewards, batch.masks, next_values, self.config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        return (q - target_q).square().mean(), q_metrics(q)

    def actor_loss(self, features: dict[str, Tensor], noises: FQLNoises) -> tuple[Losses, Metrics]:
        """Policy: alpha mean_{b,d} (mu_1(s, z) - mu(s, z))^2 and -mean_b Q(s, pi(s, z)).

        The distance is of the policy before clipping, and Q the mean over members.
        """
        config = self.config
        outputs = self.one_step(features["actor"], noises.policy)
        flow_actions = self.flow_actions(features["flow"], noises.policy)
        distance = (outputs - flow_actions).square().mean()
        q = frozen(self.critic)(features["critic"].detach(), outputs.clamp(-1, 1)).mean(0)  # (B,)
        q_loss = -q.mean()
        if config.normalize_q_loss:
            q_loss = q_loss / global_mean(q.abs())
        losses = {"actor/distill_loss": config.alpha * distance, "actor/q_loss": q_loss}
        return losses, detached({"actor/distance": distance, "actor/q": q.mean()})

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """One sample pi(s, z) a row; the same when exploring."""
        return self.policy(self.features(observations, "actor"), noises)

    def policy(self, features: Tensor, noises: Tensor) -> Tensor:
        """pi(s, z) = clip(mu_1(s, z)): features (B, D) of the head "actor", z (B, A) to (B, A)."""
        return self.one_step(features, noises).clamp(-1, 1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def flow_actions(self, features: Tensor, noises: Tensor) -> Tensor:
        """mu(s, z): M Euler steps of the flow from z, clipped at the end, no gradient."""
        return sample_actions(self.bc_flow.held(features), noises, self.config.flow_steps)

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)
