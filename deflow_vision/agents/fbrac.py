"""FBRAC: a flow policy that climbs Q through its own sampler, kept near the data.

Paper: a baseline of "Flow Q-Learning", arXiv 2502.02538, eq. 6: Diffusion-QL (arXiv 2208.06193)
with a flow. One flow v is the policy mu(s, z), M Euler steps from z, clipped at the end; its loss

    alpha mean_{b,d} (v(s, x_t, t) - (a - x_0))^2 - mean_b Q(s, mu(s, z))

is differentiated through all M steps. Every update costs M evaluations of v there and back, and the
gradient may grow from step to step: that is the method, nothing is detached.

Deviations from the reference:
    - A shared image encoder is the default, trained by both terms of the policy's loss;
      `encoder.sharing=separate` is an encoder a network.
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
from deflow_vision.losses import Aggregation, aggregate_q, td_target
from deflow_vision.networks.actors import VelocityField
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class FBRACConfig(ActorCriticConfig):
    """Hyper-parameters of FBRAC."""

    alpha: float = 100.0
    """Weight of the flow-matching loss against Q."""
    q_agg: Aggregation = "mean"
    """How the target's ensemble is aggregated; the policy always climbs the mean."""
    flow_steps: int = 10
    """M: Euler steps of the policy."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 0, "alpha")
        check_at_least(self, 1, "flow_steps")


class FBRACNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_action: z' of the target's action, (B, A), standard normal.
        flow: x_0 of flow matching, (B, A), standard normal.
        times: t of flow matching, (B,), uniform in [0, 1).
        action: z of the action that climbs Q, (B, A), standard normal.
    """

    next_action: Tensor
    flow: Tensor
    times: Tensor
    action: Tensor


class FBRAC(Agent):
    """Critic Q_i with a slow copy, flow policy v; no slow policy."""

    Config = FBRACConfig
    config: FBRACConfig

    def __init__(self, spec: Spec, config: FBRACConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        heads = ("critic", "flow")
        self.encoder = ObservationEncoder(spec, encoder_config, heads, gradients_from=("flow",))
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.flow = VelocityField(*dims)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> FBRACNoises:
        """Draw one update's noises on the CPU."""
        dim = self.spec.action_dim
        return FBRACNoises(
            next_action=standard_normal(batch_size, dim, generator),
            flow=standard_normal(batch_size, dim, generator),
            times=torch.rand(batch_size, generator=generator),
            action=standard_normal(batch_size, dim, generator),
        )

    def forward(
        self, batch: Batch, noises: FBRACNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the critic's, and the two terms of the policy's.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        critic_loss, critic_metrics = self.critic_loss(batch, features, noises)
        actor_losses, actor_metrics = self.actor_loss(batch, features, noises)
        return {"critic/loss": critic_loss, **actor_losses}, {**critic_metrics, **actor_metrics}

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: FBRACNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - y)^2 with y = r + gamma m agg_i Q_i^-(s', mu(s', z'))."""
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("flow",))["flow"]
            next_actions = self.policy(next_features, noises.next_action)
            target_features = self.encoder.encode_target(batch.next_observations)
            next_q = self.target_critic(target_features, next_actions)  # (E, B)
            next_values = aggregate_q(next_q, self.config.q_agg)
            target_q = td_target(batch.rewards, batch.masks, next_values, self.config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        return (q - target_q).square().mean(), q_metrics(q)

    def actor_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: FBRACNoises
    ) -> tuple[Losses, Metrics]:
        """-mean_b Q(s, mu(s, z)) + alpha L_FM, Q the mean over members, its parameters constant.

        The gradient passes through Q and through every Euler step of mu.
        """
        flow_loss = flow_matching_loss(
            lambda x, t: self.flow(features["flow"], x, t),
            batch.actions,
            noises.flow,
            noises.times,
        )
        actions = self.policy(features["flow"], noises.action)
        q = frozen(self.critic)(features["critic"].detach(), actions).mean(0)  # (B,)
        losses = {"actor/q_loss": -q.mean(), "actor/penalty": self.config.alpha * flow_loss}
        return losses, detached({"flow/loss": flow_loss, "actor/q": q.mean()})

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """One sample mu(s, z) a row; the same when exploring."""
        return self.policy(self.features(observations, "flow"), noises)

    def policy(self, features: Tensor, noises: Tensor) -> Tensor:
        """mu(s, z): M Euler steps of v from z, clipped at the end; differentiable; (B, A)."""
        return sample_actions(
            lambda x, t: self.flow(features, x, t), noises, self.config.flow_steps
        )

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)
