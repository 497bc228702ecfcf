"""RLPD: soft actor-critic from scratch, each batch half of old and half of new data.

Paper: Ball, Smith, Kostrikov and Levine, "Efficient Online Reinforcement Learning with Offline
Data", arXiv 2302.02948, as "Flow Q-Learning" (arXiv 2502.02538) runs it: its code's SAC, whose
critic has LayerNorm, with balanced batches. The policy is a Gaussian that tanh takes to actions,

    y = r + gamma m agg_i Q_i^-(s', a'),    a' ~ pi(s'),
    mean_b (alpha log pi(a|s) - mean_i Q_i(s, a)),    a ~ pi(s),

and the weight alpha of the entropy holds it at half a nat below 0 for each action dimension.

What it wants of the loop, which decides what a batch is:
    - No offline phase: `offline_steps` 0.
    - Balanced batches: half of the transitions from the dataset, half from what was collected.
    - One update for each step of the environment, and no random steps at first. `explore` samples
      pi; evaluations take tanh of the mean.

Options that the FQL form does not use and RLPD's own code does: more critics (`num_critics` 10), of
which the least of a random few makes the target (`target_subset` 2, `q_agg` "min"), and the entropy
in the target (`entropy_backup`). That code also has 20 updates for each step of the environment,
5,000 random steps at first, and LayerNorm before ReLU in two or three layers of 256.

Deviations from the reference:
    - With several updates for each step of the environment the policy learns in all of them; in
      RLPD's own code in the last of them.
    - A shared image encoder, trained by the critic, is the default; `encoder.sharing=separate` is
      an encoder a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deflow_vision.agents.base import (
    ActorCriticConfig,
    Agent,
    Losses,
    Metrics,
    check_between,
    detached,
    frozen,
    q_metrics,
    standard_normal,
)
from deflow_vision.losses import Aggregation, aggregate_q, global_mean, td_target
from deflow_vision.networks.actors import SquashedGaussianActor, squashed_gaussian_sample
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec, UserError


@dataclass(frozen=True, kw_only=True)
class RLPDConfig(ActorCriticConfig):
    """Hyper-parameters of RLPD."""

    q_agg: Aggregation = "mean"
    """How the target's ensemble is aggregated; the policy always climbs the mean."""
    target_subset: int | None = None
    """Members of the slow ensemble, drawn anew for each update, that make the target. By default
    all of them."""
    entropy_backup: bool = False
    """Take alpha log pi(a'|s') off the value of the next state."""
    target_entropy: float = -0.5
    """The entropy that alpha holds, in nats an action dimension."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        if self.target_subset is not None and not 1 <= self.target_subset <= self.num_critics:
            raise UserError(
                f"target_subset is {self.target_subset}, must lie in 1 to num_critics "
                f"({self.num_critics})"
            )
        check_between(self, -float("inf"), float("inf"), "target_entropy")


class RLPDNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_action: eps of the target's action, (B, A), standard normal.
        action: eps of the action that climbs Q, (B, A), standard normal.
        members: the members with the greatest are the target's subset; (1, E), uniform in [0, 1).
    """

    next_action: Tensor
    action: Tensor
    members: Tensor


class RLPD(Agent):
    """Critic Q_i with a slow copy, squashed Gaussian policy pi, weight alpha of its entropy."""

    Config = RLPDConfig
    config: RLPDConfig
    offline = False

    def __init__(self, spec: Spec, config: RLPDConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        self.encoder = ObservationEncoder(
            spec, encoder_config, heads=("critic", "actor"), gradients_from=("critic",)
        )
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.actor = SquashedGaussianActor(*dims)
        self.log_entropy_weight = nn.Parameter(torch.tensor(0.0))

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> RLPDNoises:
        """Draw one update's noises on the CPU."""
        dim = self.spec.action_dim
        return RLPDNoises(
            next_action=standard_normal(batch_size, dim, generator),
            action=standard_normal(batch_size, dim, generator),
            members=torch.rand(1, self.config.num_critics, generator=generator),
        )

    def forward(
        self, batch: Batch, noises: RLPDNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the critic's, the policy's, that of alpha.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        critic_loss, critic_metrics = self.critic_loss(batch, features, noises)
        actor_losses, actor_metrics = self.actor_loss(features, noises)
        return {"critic/loss": critic_loss, **actor_losses}, {**critic_metrics, **actor_metrics}

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: RLPDNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - y)^2 with y = r + gamma m agg_i Q_i^-(s', a'), a' ~ pi(s').

        i in y runs over all members, or over the drawn subset; with `entropy_backup` the value of
        the next state is less by alpha log pi(a'|s').
        """
        config = self.config
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("actor",))["actor"]
            next_actions, log_probs = self.policy(next_features, noises.next_action)
            target_features = self.encoder.encode_target(batch.next_observations)
            next_q = self.target_critic(target_features, next_actions)  # (E, B)
            if config.target_subset is not None:
                # Means of the streams' draws: the same members in all streams and processes.
                drawn = global_mean(noises.members, 0).topk(config.target_subset).indices
                next_q = next_q[drawn]
            next_values = aggregate_q(next_q, config.q_agg)
            if config.entropy_backup:
                next_values = next_values - self.log_entropy_weight.exp() * log_probs
            target_q = td_target(batch.rewards, batch.masks, next_values, config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        return (q - target_q).square().mean(), q_metrics(q)

    def actor_loss(self, features: dict[str, Tensor], noises: RLPDNoises) -> tuple[Losses, Metrics]:
        """Policy: mean_b (alpha log pi - Q(s, a)), a ~ pi(s).  alpha: alpha (entropy - wanted).

        Q is the mean over members, its parameters constant; alpha is constant in the first, the
        entropy, -mean_b log pi, in the second.
        """
        actions, log_probs = self.policy(features["actor"], noises.action)
        q = frozen(self.critic)(features["critic"].detach(), actions).mean(0)  # (B,)
        alpha = self.log_entropy_weight.exp()
        entropy = -log_probs.mean()
        wanted = self.config.target_entropy * self.spec.action_dim
        losses = {
            "actor/loss": (alpha.detach() * log_probs - q).mean(),
            "entropy/loss": alpha * (entropy.detach() - wanted),
        }
        metrics = {"actor/q": q.mean(), "entropy/value": entropy, "entropy/weight": alpha}
        return losses, detached(metrics)

    def noise_dim(self, *, explore: bool) -> int:
        """A, when exploring alone."""
        return self.spec.action_dim if explore else 0

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """The mean, through tanh; a sample of pi when exploring."""
        features = self.features(observations, "actor")
        if not explore:
            return self.actor(features)[0].tanh()  # type: ignore[no-any-return]
        return self.policy(features, noises)[0]

    def policy(self, features: Tensor, noises: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, A) and log pi (B,): features (B, D), noises (B, A)."""
        means, log_stds = self.actor(features)
        return squashed_gaussian_sample(means, log_stds, noises)

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)
