"""Cal-QL: a conservative critic that is never pushed below what the data itself returned.

Paper: Nakamoto et al., "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online
Fine-Tuning", arXiv 2303.05479. Soft actor-critic whose critic pays for high values of actions that
are not the data's, estimated by importance sampling with K actions a' each of the uniform
distribution, of pi(s') and of pi(s), all judged at s:

    C_i = mean_b [ log sum_a' exp(floor(Q_i(s, a')) - log density(a')) - Q_i(s, a) ].

floor is max(., R), R the data's return from s, for the policy's actions, and nothing for uniform
ones: values are pushed down to R and no further, which is what lets them go on learning online. The
target takes the best of K next actions,

    y = r + gamma m max_k min_i Q_i^-(s', a'_k),    a'_k ~ pi(s').

C weighs `cql_weight`; with `cql_gap` it weighs `cql_weight` times a multiplier that holds C at it.

What it wants of the loop:
    - `mc_returns` of rewards times `reward_scale` plus `reward_shift`, discounted by `discount`,
      for the dataset and for collected episodes.
    - Online, half of each batch from the dataset and half from what was collected. All losses stay.
      `explore` samples pi; evaluations take tanh of the mean.

Deviations from the reference:
    - Online the reference collects an episode and then makes an update for each of its steps.
    - Slow copies mix the parameters from before the step; the reference's, those from after it.
    - Rewards are rescaled in the critic's target and in R, not in the data.
    - An episode counts as a failure throughout, with R = r / (1 - gamma), where all of its rewards
      are the least of the data.
    - From pixels, which the reference does not have, the critic's losses train the encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deflow_vision.agents.base import (
    ActorCriticConfig,
    Agent,
    Losses,
    Metrics,
    check_at_least,
    check_between,
    detached,
    frozen,
    q_metrics,
)
from deflow_vision.losses import aggregate_q, td_target
from deflow_vision.networks.actors import SquashedGaussianActor, squashed_gaussian_sample
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.networks.mlp import orthogonal_init_
from deflow_vision.types import Batch, Spec

MAX_MULTIPLIER = 1e6


@dataclass(frozen=True, kw_only=True)
class CalQLConfig(ActorCriticConfig):
    """Hyper-parameters of Cal-QL."""

    critic_hidden_dims: tuple[int, ...] | None = None
    """Widths of the critic's hidden layers; by default `hidden_dims`."""
    actor_lr: float = 1e-4
    """Learning rate of the policy and of its entropy's weight; `lr` is that of all else."""
    cql_weight: float = 5.0
    """w: weight of the conservative term C against the squared error of Q."""
    cql_gap: float | None = None
    """The C that a learned multiplier of w holds; by default there is no multiplier."""
    num_actions: int = 10
    """K: actions of each kind in C, and of the policy in the target."""
    reward_scale: float = 1.0
    """What rewards are multiplied by, in the critic's target and in returns."""
    reward_shift: float = 0.0
    """What is then added to them."""
    target_entropy: float = -1.0
    """The entropy that the policy is held at, in nats an action dimension."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        if self.critic_hidden_dims is not None:
            check_at_least(self, 1, "critic_hidden_dims")
        check_at_least(self, 0, "cql_weight")
        check_at_least(self, 1, "num_actions")
        check_between(self, 0, float("inf"), "actor_lr", "reward_scale")
        check_between(self, -math.inf, math.inf, "reward_shift", "target_entropy")
        if self.cql_gap is not None:
            check_between(self, -math.inf, math.inf, "cql_gap")


class CalQLNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        target: eps of the target's actions, (B, K, A), standard normal.
        uniform: the uniform actions of C, (B, K, A), in [-1, 1).
        next: eps of C's actions of the next state, (B, K, A), standard normal.
        current: eps of C's actions of the state, (B, K, A), standard normal.
        action: eps of the action that climbs Q, (B, 1, A), standard normal.
    """

    target: Tensor
    uniform: Tensor
    next: Tensor
    current: Tensor
    action: Tensor


class CalQL(Agent):
    """Critic Q_i with a slow copy, squashed Gaussian pi, weights of its entropy and of C."""

    Config = CalQLConfig
    config: CalQLConfig
    batch_fields = ("mc_returns",)

    def __init__(self, spec: Spec, config: CalQLConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        self.encoder = ObservationEncoder(
            spec, encoder_config, heads=("critic", "actor"), gradients_from=("critic",)
        )
        dims = (self.encoder.feature_dim, spec.action_dim)
        self.critic = Critic(
            *dims,
            config.critic_hidden_dims or config.hidden_dims,
            num_critics=config.num_critics,
            layer_norm=False,
            activation=torch.relu,
        )
        orthogonal_init_(self.critic.mlp)
        self.target_critic = ema_copy(self.critic)
        self.actor = SquashedGaussianActor(
            *dims,
            config.hidden_dims,
            activation=torch.relu,
            log_std_range=(-20.0, 2.0),
            learned_log_std_scale=True,
        )
        orthogonal_init_(self.actor.mlp)
        self.log_entropy_weight = nn.Parameter(torch.tensor(0.0))
        if config.cql_gap is not None:
            self.log_multiplier = nn.Parameter(torch.tensor(1.0))

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> CalQLNoises:
        """Draw one update's noises on the CPU."""
        shape = (batch_size, self.config.num_actions, self.spec.action_dim)
        return CalQLNoises(
            target=torch.randn(shape, generator=generator),
            uniform=2 * torch.rand(shape, generator=generator) - 1,
            next=torch.randn(shape, generator=generator),
            current=torch.randn(shape, generator=generator),
            action=torch.randn(batch_size, 1, self.spec.action_dim, generator=generator),
        )

    def forward(
        self, batch: Batch, noises: CalQLNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the critic's two, the policy's, those of both weights.

        Args:
            batch: B transitions with the data's returns.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("actor",))
            features["next_actor"] = next_features["actor"]
        critic_losses, critic_metrics = self.critic_loss(batch, features, noises)
        actor_losses, actor_metrics = self.actor_loss(features, noises)
        return {**critic_losses, **actor_losses}, {**critic_metrics, **actor_metrics}

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: CalQLNoises
    ) -> tuple[Losses, Metrics]:
        """sum_i mean_b (Q_i(s, a) - y)^2, w sum_i C_i, and with a multiplier its own loss.

        y = r + gamma m max_k min_i Q_i^-(s', a'_k). A multiplier beta, at most a million, makes the
        second beta w sum_i (C_i - gap), beta constant; its own loss is -beta w mean_i (C_i - gap),
        C constant.
        """
        config = self.config
        with torch.no_grad():
            next_actions, _ = self.policy(features["next_actor"], noises.target)
            target_features = self.encoder.encode_target(batch.next_observations)
            next_q = judged(self.target_critic, target_features, next_actions)  # (E, B, K)
            next_values = next_q.amin(0).amax(-1)
            rewards = config.reward_scale * batch.rewards + config.reward_shift
            target_q = td_target(rewards, batch.masks, next_values, config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        terms, metrics = self.conservative_terms(batch, features, noises, q)
        losses = {"critic/loss": (q - target_q).square().mean(1).sum()}
        if config.cql_gap is None:
            losses["critic/cql_loss"] = config.cql_weight * terms.sum()
        else:
            multiplier = self.log_multiplier.exp().clamp(max=MAX_MULTIPLIER)
            excess = config.cql_weight * (terms - config.cql_gap)
            losses["critic/cql_loss"] = multiplier.detach() * excess.sum()
            losses["multiplier/loss"] = -multiplier * excess.detach().mean()
            metrics["multiplier/value"] = multiplier.detach()
        return losses, {**q_metrics(q), **metrics}

    def conservative_terms(
        self, batch: Batch, features: dict[str, Tensor], noises: CalQLNoises, q: Tensor
    ) -> tuple[Tensor, Metrics]:
        """C_i of each member, (E,), as the top of this file has it; q is Q_i(s, a), (E, B)."""
        assert batch.mc_returns is not None  # asked for by batch_fields
        num, dim = noises.uniform.shape[1:]
        with torch.no_grad():
            next_actions, next_log_probs = self.policy(features["next_actor"], noises.next)
            actions, log_probs = self.policy(features["actor"], noises.current)
            log_uniform = torch.full_like(log_probs, -dim * math.log(2))
            log_densities = torch.cat([log_uniform, next_log_probs, log_probs], dim=1)  # (B, 3 K)
            others = torch.cat([noises.uniform, next_actions, actions], dim=1)
        other_q = judged(self.critic, features["critic"], others)  # (E, B, 3 K)
        returns = batch.mc_returns.unsqueeze(-1)
        of_policy = other_q[..., num:]
        floored = torch.cat([other_q[..., :num], torch.maximum(of_policy, returns)], dim=-1)
        terms = ((floored - log_densities).logsumexp(-1) - q).mean(1)
        metrics = {
            "cql/term": terms.mean(),
            "cql/bound_rate": (of_policy < returns).float().mean(),
        }
        return terms, detached(metrics)

    def actor_loss(
        self, features: dict[str, Tensor], noises: CalQLNoises
    ) -> tuple[Losses, Metrics]:
        """Policy: mean_b (alpha log pi - min_i Q_i(s, a)).  alpha: log alpha (entropy - wanted).

        Q's parameters and alpha are constant in the first, the entropy in the second.
        """
        actions, log_probs = (x.squeeze(1) for x in self.policy(features["actor"], noises.action))
        q = aggregate_q(frozen(self.critic)(features["critic"].detach(), actions), "min")  # (B,)
        alpha = self.log_entropy_weight.exp()
        entropy = -log_probs.mean()
        wanted = self.config.target_entropy * self.spec.action_dim
        losses = {
            "actor/loss": (alpha.detach() * log_probs - q).mean(),
            "entropy/loss": self.log_entropy_weight * (entropy.detach() - wanted),
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
        return self.policy(features, noises.unsqueeze(1))[0].squeeze(1)

    def policy(self, features: Tensor, noises: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, K, A) and log pi (B, K): features (B, D), noises (B, K, A)."""
        means, log_stds = (x.unsqueeze(1).expand_as(noises) for x in self.actor(features))
        return squashed_gaussian_sample(means, log_stds, noises)

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What learns at `lr`, and the policy with its entropy's weight, at `actor_lr`."""
        groups: dict[bool, list[Tensor]] = {False: [], True: []}
        policys = ("actor.", "encoder.encoders.actor.", "log_entropy_weight")
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[name.startswith(policys)].append(parameter)
        return [
            {"params": groups[False], "lr": self.config.lr, "weight_decay": 0.0},
            {"params": groups[True], "lr": self.config.actor_lr, "weight_decay": 0.0},
        ]


def judged(critic: nn.Module, features: Tensor, actions: Tensor) -> Tensor:
    """Q_i of several actions of each state, (E, B, K): features (B, D), actions (B, K, A)."""
    batch_size, num = actions.shape[:2]
    repeated = features.repeat_interleave(num, 0)
    q: Tensor = critic(repeated, actions.flatten(0, 1))
    return q.view(-1, batch_size, num)
