"""IQL: values from the data's actions alone, and a policy cloned from the better of them.

Paper: Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning", arXiv
2110.06169, as the code of "Flow Q-Learning" (arXiv 2502.02538) has it. V leans to the greater Q by
an expectile, Q bootstraps from V, and a Gaussian policy of unit variance maximises

    mean_b min(exp(alpha (min_i Q_i(s, a) - V(s))), 100) log N(a; mean(s), I).

No action but the data's is ever judged.

Deviations from the reference:
    - The policy's extraction by DDPG with behavioural cloning, which no table has, is not here.
    - A shared image encoder, trained by the actor, is the default;
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
    check_between,
    detached,
    q_metrics,
)
from deflow_vision.losses import aggregate_q, awr_weights, expectile_loss, td_target
from deflow_vision.networks.actors import GaussianActor
from deflow_vision.networks.critics import Critic, Value
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class IQLConfig(ActorCriticConfig):
    """Hyper-parameters of IQL."""

    alpha: float = 10.0
    """Inverse temperature of the policy's weights; 0 is behavioural cloning."""
    expectile: float = 0.9
    """Which expectile of Q over the data's actions V is."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 0, "alpha")
        check_between(self, 0, 1, "expectile")


class IQLNoises(NamedTuple):
    """The draws of one update: none."""


class IQL(Agent):
    """Critic Q_i with a slow copy, value V, the mean of a Gaussian policy."""

    Config = IQLConfig
    config: IQLConfig

    def __init__(self, spec: Spec, config: IQLConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        heads = ("critic", "value", "actor")
        self.encoder = ObservationEncoder(spec, encoder_config, heads, gradients_from=("actor",))
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.value = Value(self.encoder.feature_dim, config.hidden_dims)
        self.actor = GaussianActor(*dims)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> IQLNoises:
        """Draw nothing."""
        return IQLNoises()

    def forward(
        self, batch: Batch, noises: IQLNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: V's, the critic's, the policy's.

        Args:
            batch: B transitions.
            noises: nothing.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        value_loss, value_metrics = self.value_loss(batch, features)
        critic_loss, critic_metrics = self.critic_loss(batch, features)
        actor_loss, actor_metrics = self.actor_loss(batch, features)
        losses = {"value/loss": value_loss, "critic/loss": critic_loss, "actor/loss": actor_loss}
        return losses, {**value_metrics, **critic_metrics, **actor_metrics}

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

    def actor_loss(self, batch: Batch, features: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """mean_b w sum_d (mean(s) - a)^2 / 2, w = min(exp(alpha (min_i Q_i(s, a) - V(s))), 100).

        That is -w log N(a; mean(s), I) without its constant. Neither Q nor V is trained by it.
        """
        with torch.no_grad():
            q = aggregate_q(self.critic(features["critic"], batch.actions), "min")  # (B,)
            advantages = q - self.value(features["value"])
        weights = awr_weights(advantages, self.config.alpha)
        errors = (self.actor(features["actor"]) - batch.actions).square()  # (B, A)
        metrics = {
            "actor/advantage": advantages.mean(),
            "actor/weight": weights.mean(),
            "actor/mse": errors.mean(),
        }
        return (weights * errors.sum(-1)).mean() / 2, detached(metrics)

    def noise_dim(self, *, explore: bool) -> int:
        """A, when exploring alone."""
        return self.spec.action_dim if explore else 0

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """The mean, clipped; when exploring, noise of unit variance is added before the clip."""
        actions: Tensor = self.actor(self.features(observations, "actor"))
        if explore:
            actions = actions + noises
        return actions.clamp(-1, 1)

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)
