"""FAWAC: a flow policy fitted to the data's actions, each weighted by its advantage.

Paper: a baseline of "Flow Q-Learning", arXiv 2502.02538, eq. 10: advantage-weighted regression
(AWAC, arXiv 2006.09359) with flow matching in place of the log-likelihood. The policy
mu(s, z), M Euler steps of v from z, is trained by

    mean_b [ w mean_d (v(s, x_t, t) - (a - x_0))^2 ],    w = min(exp(alpha (Q(s, a) - V(s))), 100),

and the critic bootstraps from its own samples. There is no official code; what the paper leaves
open is taken from the re-implementation in the code of "Q-learning with Adjoint Matching".

Deviations from the reference:
    - V regresses to the slow critics' values of the data's actions by least squares, and weights
      are limited to 100, as that re-implementation has it; the paper says neither.
    - That re-implementation's ten critics, their pessimistic mean and its action chunks are not
      here: two critics, aggregated as FQL aggregates them for the task.
    - A shared image encoder, trained by the flow, is the default; `encoder.sharing=separate` is an
      encoder a network.
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
    q_metrics,
    standard_normal,
)
from deflow_vision.flow import flow_matching_loss, sample_actions
from deflow_vision.losses import Aggregation, aggregate_q, awr_weights, td_target
from deflow_vision.networks.actors import VelocityField
from deflow_vision.networks.critics import Critic, Value
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class FAWACConfig(ActorCriticConfig):
    """Hyper-parameters of FAWAC."""

    alpha: float = 1.0
    """Inverse temperature of the weights; 0 fits the data's actions alike."""
    q_agg: Aggregation = "mean"
    """How the target's ensemble is aggregated; the advantage takes the mean."""
    flow_steps: int = 10
    """M: Euler steps of the policy."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 0, "alpha")
        check_at_least(self, 1, "flow_steps")


class FAWACNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_action: z' of the target's action, (B, A), standard normal.
        flow: x_0 of flow matching, (B, A), standard normal.
        times: t of flow matching, (B,), uniform in [0, 1).
    """

    next_action: Tensor
    flow: Tensor
    times: Tensor


class FAWAC(Agent):
    """Critic Q_i with a slow copy, value V, flow policy v; no slow policy."""

    Config = FAWACConfig
    config: FAWACConfig

    def __init__(self, spec: Spec, config: FAWACConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        heads = ("critic", "value", "flow")
        self.encoder = ObservationEncoder(spec, encoder_config, heads, gradients_from=("flow",))
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.value = Value(self.encoder.feature_dim, config.hidden_dims)
        self.flow = VelocityField(*dims)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> FAWACNoises:
        """Draw one update's noises on the CPU."""
        dim = self.spec.action_dim
        return FAWACNoises(
            next_action=standard_normal(batch_size, dim, generator),
            flow=standard_normal(batch_size, dim, generator),
            times=torch.rand(batch_size, generator=generator),
        )

    def forward(
        self, batch: Batch, noises: FAWACNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: V's, the critic's, the policy's.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        value_loss, value_metrics = self.value_loss(batch, features)
        critic_loss, critic_metrics = self.critic_loss(batch, features, noises)
        actor_loss, actor_metrics = self.actor_loss(batch, features, noises)
        losses = {"value/loss": value_loss, "critic/loss": critic_loss, "actor/loss": actor_loss}
        return losses, {**value_metrics, **critic_metrics, **actor_metrics}

    def value_loss(self, batch: Batch, features: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (V(s) - Q_i^-(s, a))^2 at the data's actions."""
        target_features = self.encoder.encode_target(batch.observations)
        with torch.no_grad():
            target_q = self.target_critic(target_features, batch.actions)  # (E, B)
        values = self.value(features["value"])  # (B,)
        return (values - target_q).square().mean(), detached({"value/mean": values.mean()})

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: FAWACNoises
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
        self, batch: Batch, features: dict[str, Tensor], noises: FAWACNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_b [ min(exp(alpha (Q(s, a) - V(s))), 100) mean_d (v(s, x_t, t) - (a - x_0))^2 ].

        Q is the mean over members, at the data's action; neither Q nor V is trained by it.
        """
        with torch.no_grad():
            q = self.critic(features["critic"], batch.actions).mean(0)  # (B,)
            advantages = q - self.value(features["value"])
        weights = awr_weights(advantages, self.config.alpha)
        loss = flow_matching_loss(
            lambda x, t: self.flow(features["flow"], x, t),
            batch.actions,
            noises.flow,
            noises.times,
            weights,
        )
        metrics = {"actor/advantage": advantages.mean(), "actor/weight": weights.mean()}
        return loss, detached(metrics)

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """One sample mu(s, z) a row; the same when exploring."""
        return self.policy(self.features(observations, "flow"), noises)

    @torch.no_grad()
    def policy(self, features: Tensor, noises: Tensor) -> Tensor:
        """mu(s, z): M Euler steps of v from z, clipped at the end, no gradient; (B, A)."""
        return sample_actions(self.flow.held(features), noises, self.config.flow_steps)

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)
