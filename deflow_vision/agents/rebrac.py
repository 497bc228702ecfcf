"""ReBRAC: a deterministic policy kept near the data, in the actor's and in the critic's loss.

Paper: "Revisiting the Minimalist Approach to Offline Reinforcement Learning", arXiv 2305.09836, as
the code of "Flow Q-Learning" (arXiv 2502.02538) has it. The actor climbs Q, normalised, and pays
for the squared distance to the data's action; the value of the next state pays for the distance of
the policy's next action to the data's,

    y = r + gamma m (min_i Q_i^-(s', a') - alpha_critic |a' - a'_data|^2),
    a' = clip(pi^-(s') + clip(0.2 eps, -0.5, 0.5)),    eps ~ N(0, I).

Both distances are sums over action dimensions. The actor learns, and both slow copies move, every
second update.

Deviations from the reference:
    - Updates are counted from 0, so the actor learns on the first, the third, ...; the reference
      counts from 1: the second, the fourth, ...
    - On the others the actor stays as it is; the reference's optimizer, given a gradient of zero,
      moves it by its remaining momentum.
    - The next action of the data at the end of an episode is the last action itself; the reference
      takes the first one of the next episode.
    - A shared image encoder, trained by the critic, is the default; `encoder.sharing=separate` is
      the reference's form.
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
from deflow_vision.losses import aggregate_q, global_mean, td_target
from deflow_vision.networks.actors import GaussianActor
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class ReBRACConfig(ActorCriticConfig):
    """Hyper-parameters of ReBRAC."""

    alpha_actor: float = 0.01
    """Weight of the actor's squared distance to the data's action."""
    alpha_critic: float = 0.01
    """Weight of the next action's squared distance to the data's, in the critic's target."""
    actor_every: int = 2
    """Updates from one of the actor, and of the slow copies, to the next."""
    actor_noise: float = 0.2
    """Standard deviation of the noise on the target's next action, and of exploration."""
    actor_noise_clip: float = 0.5
    """The greatest absolute value of that noise."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 0, "alpha_actor", "alpha_critic", "actor_noise", "actor_noise_clip")
        check_at_least(self, 1, "actor_every")


class ReBRACNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_action: eps of the target's action, (B, A), standard normal.
    """

    next_action: Tensor


class ReBRAC(Agent):
    """Critic Q_i and deterministic actor pi, a slow copy of each."""

    Config = ReBRACConfig
    config: ReBRACConfig
    batch_fields = ("next_actions",)
    staged = True

    def __init__(self, spec: Spec, config: ReBRACConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        self.encoder = ObservationEncoder(
            spec,
            encoder_config,
            heads=("critic", "actor"),
            gradients_from=("critic",),
            targets=("critic", "actor"),
        )
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.actor = GaussianActor(*dims, squashed=True)
        self.target_actor = ema_copy(self.actor)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> ReBRACNoises:
        """Draw one update's noises on the CPU."""
        return ReBRACNoises(standard_normal(batch_size, self.spec.action_dim, generator))

    def stage(self, step: int) -> bool:
        """Whether the actor learns in this update."""
        return step % self.config.actor_every == 0

    def forward(
        self, batch: Batch, noises: ReBRACNoises, stage: bool = True
    ) -> tuple[Losses, Metrics]:
        """The critic's loss, and every `actor_every`-th update the actor's.

        Args:
            batch: B transitions with the data's next actions.
            noises: the draws for them.
            stage: whether the actor learns.
        """
        features = self.encoder(batch.observations, heads=None if stage else ("critic",))
        critic_loss, metrics = self.critic_loss(batch, features, noises)
        losses = {"critic/loss": critic_loss}
        if stage:
            actor_losses, actor_metrics = self.actor_loss(batch, features)
            losses |= actor_losses
            metrics |= actor_metrics
        return losses, metrics

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: ReBRACNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - y)^2, y = r + gamma m (min_i Q_i^-(s', a') - alpha_critic d').

        d' = sum_d (a' - a'_data)^2, a' the slow actor's action with clipped noise.
        """
        assert batch.next_actions is not None  # asked for by batch_fields
        with torch.no_grad():
            next_features = self.encoder.encode_targets(
                batch.next_observations, heads=("critic", "actor")
            )
            next_actions = self._perturbed(
                self.target_actor(next_features["actor"]), noises.next_action
            )
            distances = (next_actions - batch.next_actions).square().sum(-1)  # (B,)
            next_q = self.target_critic(next_features["critic"], next_actions)  # (E, B)
            next_values = aggregate_q(next_q, "min") - self.config.alpha_critic * distances
            target_q = td_target(batch.rewards, batch.masks, next_values, self.config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        metrics = {**q_metrics(q), **detached({"critic/next_distance": distances.mean()})}
        return (q - target_q).square().mean(), metrics

    def actor_loss(self, batch: Batch, features: dict[str, Tensor]) -> tuple[Losses, Metrics]:
        """-lambda mean_b min_i Q_i(s, pi(s)) + alpha_actor mean_b sum_d (pi(s) - a)^2.

        lambda = 1 / mean_b |min_i Q_i(s, pi(s))|, constant for the gradient.
        """
        actions = self.actor(features["actor"])
        q = aggregate_q(frozen(self.critic)(features["critic"].detach(), actions), "min")  # (B,)
        distance = (actions - batch.actions).square().sum(-1).mean()
        losses = {
            "actor/q_loss": -q.mean() / global_mean(q.abs()),
            "actor/penalty": self.config.alpha_actor * distance,
        }
        return losses, detached({"actor/distance": distance, "actor/q": q.mean()})

    def noise_dim(self, *, explore: bool) -> int:
        """A, when exploring alone."""
        return self.spec.action_dim if explore else 0

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """pi(s); with clipped noise when exploring."""
        actions: Tensor = self.actor(self.features(observations, "actor"))
        return self._perturbed(actions, noises) if explore else actions

    def _perturbed(self, actions: Tensor, noises: Tensor) -> Tensor:
        """clip(a + clip(0.2 eps, -0.5, 0.5)), (B, A)."""
        limit = self.config.actor_noise_clip
        return (actions + (self.config.actor_noise * noises).clamp(-limit, limit)).clamp(-1, 1)

    def update_targets(self, step: int) -> None:
        """Mix critic, actor and their encoders into their slow copies, when the actor learns."""
        if self.stage(step):
            ema_update(self.target_critic, self.critic, self.config.tau)
            ema_update(self.target_actor, self.actor, self.config.tau)
            self.encoder.update_targets(self.config.tau)
