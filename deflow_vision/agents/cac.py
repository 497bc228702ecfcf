"""CAC: a consistency policy that climbs Q through its own, short sampler.

Paper: "Consistency Models as a Rich and Efficient Policy Class for Reinforcement Learning", arXiv
2309.16984. The policy maps noise to an action in T evaluations of a consistency function f (see
`deflow_vision.consistency`), clipped at the end; its loss

    L_consistency - eta mean_b Q_i(s, pi(s, z)) / mean_b |Q_j(s, pi(s, z))|

is differentiated through all of them. i and j are the two critics, in an order that a coin decides
in each update. The value of a next state is the best of ten actions of the slow policy, critic by
critic, then the least of the critics. Acting draws 50 actions and picks one at random, with
probability softmax of its least Q^-.

Deviations from the reference:
    - Critic and actor learn in one step of one optimizer, from the same parameters; the reference
      steps the critic first. Slow copies mix the parameters from before the step.
    - Rewards are rescaled and shifted in the critic's target, not in the data; pen's standardised
      rewards are not here.
    - q_norm divides by the standard deviation of the whole global batch, without Bessel's factor.
    - From pixels, which the reference does not have, the encoder is shared, trained by both terms
      of the policy's loss; its slow copies move by `tau` at every update, those of the slow policy
      too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deflow_vision.agents.base import (
    ActorCriticConfig,
    Agent,
    Losses,
    Metrics,
    check_at_least,
    check_between,
    check_share,
    detached,
    frozen,
    q_metrics,
    standard_normal,
)
from deflow_vision.consistency import consistency_loss, consistency_sample, num_times
from deflow_vision.losses import aggregate_q, global_mean, td_target
from deflow_vision.networks.consistency import ConsistencyNetwork
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.networks.mlp import uniform_init_
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class CACConfig(ActorCriticConfig):
    """Hyper-parameters of CAC."""

    hidden_dims: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers of every network."""
    actor_lr: float = 3e-4
    """Learning rate of the policy; `lr` is the critic's."""
    eta: float = 1.0
    """Weight of Q against the consistency loss."""
    sampling_steps: int = 2
    """T: evaluations of the policy's network for an action."""
    schedule_steps: int = 50_000
    """K: updates in which the number of times grows from 2 to 150; then it begins again."""
    backup_actions: int = 10
    """Actions of the slow policy of which the target takes the best; 1 for a plain target."""
    q_norm: bool = False
    """Divide the critic's targets by their standard deviation in the batch."""
    reward_scale: float = 1.0
    """What the critic's target multiplies rewards by."""
    reward_shift: float = 0.0
    """What it then adds to them."""
    actor_tau: float = 0.005
    """Share of the policy mixed into its slow copy."""
    actor_target_every: int = 5
    """Updates from one such mix to the next."""
    actor_target_start: int = 1000
    """Updates before the first; until then the slow policy is the initial one."""
    max_grad_norm: float = 5.0
    """The greatest norm of the critic's gradient, and of the policy's."""
    num_candidates: int = 50
    """Actions to pick from when acting."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 0, "eta", "actor_target_start")
        check_at_least(self, 1, "sampling_steps", "schedule_steps", "backup_actions")
        check_at_least(self, 1, "actor_target_every", "num_candidates")
        check_between(self, 0, float("inf"), "actor_lr", "reward_scale", "max_grad_norm")
        check_share(self, "actor_tau")


class CACNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_actions: z' of the target's K actions, (B, K, T, A), standard normal.
        path: z of the consistency loss, (B, A), standard normal.
        times: u that picks its times, (B,), uniform in [0, 1).
        action: z of the action that climbs Q, (B, T, A), standard normal.
        coin: the first critic is climbed where it is below 1/2; (1,), uniform in [0, 1).
    """

    next_actions: Tensor
    path: Tensor
    times: Tensor
    action: Tensor
    coin: Tensor


class CAC(Agent):
    """Critic Q_i and consistency policy pi, a slow copy of each."""

    Config = CACConfig
    config: CACConfig

    def __init__(self, spec: Spec, config: CACConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        heads = ("critic", "actor")
        self.encoder = ObservationEncoder(
            spec, encoder_config, heads=heads, gradients_from=("actor",), targets=heads
        )
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(
            *dims, num_critics=config.num_critics, layer_norm=False, activation=F.mish
        )
        uniform_init_(self.critic.mlp)
        self.target_critic = ema_copy(self.critic)
        self.actor = ConsistencyNetwork(*dims)
        self.target_actor = ema_copy(self.actor)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> CACNoises:
        """Draw one update's noises on the CPU."""
        steps, dim = self.config.sampling_steps, self.spec.action_dim
        shape = (batch_size, self.config.backup_actions, steps, dim)
        return CACNoises(
            next_actions=torch.randn(shape, generator=generator),
            path=standard_normal(batch_size, dim, generator),
            times=torch.rand(batch_size, generator=generator),
            action=torch.randn(batch_size, steps, dim, generator=generator),
            coin=torch.rand(1, generator=generator),
        )

    def stage(self, step: int) -> Tensor:
        """N: how many times the consistency loss has in this update."""
        return torch.tensor(float(num_times(step, self.config.schedule_steps)))

    def forward(
        self, batch: Batch, noises: CACNoises, stage: Tensor | None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the critic's, and the two terms of the policy's.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: N, the number of times of the consistency loss; by default that of the start.
        """
        count = self.stage(0) if stage is None else stage
        features = self.encoder(batch.observations)
        critic_loss, critic_metrics = self.critic_loss(batch, features, noises)
        actor_losses, actor_metrics = self.actor_loss(batch, features, noises, count)
        return {"critic/loss": critic_loss, **actor_losses}, {**critic_metrics, **actor_metrics}

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: CACNoises
    ) -> tuple[Tensor, Metrics]:
        """sum_i mean_b (Q_i(s, a) - y)^2 with y = r + gamma m min_i max_k Q_i^-(s', a'_k).

        a'_k are samples of the slow policy. With `q_norm`, y is divided by std(y).
        """
        config = self.config
        batch_size, num_actions = noises.next_actions.shape[:2]
        with torch.no_grad():
            targets = self.encoder.encode_targets(batch.next_observations, self.encoder.heads)
            repeated = {
                head: found.repeat_interleave(num_actions, 0) for head, found in targets.items()
            }
            next_actions = self._sample(
                self.target_actor, repeated["actor"], noises.next_actions.flatten(0, 1)
            )
            next_q = self.target_critic(repeated["critic"], next_actions)  # (E, B K)
            best = next_q.view(-1, batch_size, num_actions).amax(-1)  # (E, B)
            rewards = config.reward_scale * batch.rewards + config.reward_shift
            target_q = td_target(rewards, batch.masks, aggregate_q(best, "min"), config.discount)
            if config.q_norm:
                variance = global_mean((target_q - global_mean(target_q)).square())
                target_q = target_q / (variance.sqrt() + 1e-6)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        metrics = {**q_metrics(q), **detached({"critic/target": target_q.mean()})}
        return (q - target_q).square().mean(1).sum(), metrics

    def actor_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: CACNoises, count: Tensor
    ) -> tuple[Losses, Metrics]:
        """The consistency loss, and -eta mean_b Q_i(s, pi) / mean_b |Q_j(s, pi)|.

        (i, j) is (first, last) critic or (last, first), by the coin; the same in all processes.
        """
        target_features = self.encoder.encode_target(batch.observations, "actor")
        consistency = consistency_loss(
            lambda x, t: self.actor(features["actor"], x, t),
            lambda x, t: self.target_actor(target_features, x, t),
            batch.actions,
            noises.path,
            noises.times,
            count,
        )
        actions = self._sample(self.actor, features["actor"], noises.action)
        q = frozen(self.critic)(features["critic"].detach(), actions)  # (E, B)
        first, last = q[0], q[-1]
        ratios = first.mean() / global_mean(last.abs()), last.mean() / global_mean(first.abs())
        # The mean of the streams' coins falls below 1/2 as often as each of them.
        q_loss = -torch.where(global_mean(noises.coin) < 0.5, *ratios)
        losses = {"actor/consistency_loss": consistency, "actor/q_loss": self.config.eta * q_loss}
        return losses, detached({"actor/q": q.mean(), "actor/num_times": count.to(q.device)})

    def noise_dim(self, *, explore: bool) -> int:
        """K paths of T steps, and one number that chooses."""
        return self.config.num_candidates * self.config.sampling_steps * self.spec.action_dim + 1

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """One of K samples, with probability softmax_k min_i Q_i^-; the same when exploring."""
        config, batch_size, dim = self.config, noises.shape[0], self.spec.action_dim
        num = config.num_candidates
        paths = noises[:, 1:].reshape(-1, config.sampling_steps, dim)  # (B K, T, A)
        features = self.features(observations, "actor").repeat_interleave(num, 0)
        actions = self._sample(self.actor, features, paths)
        target_features = self.encoder.encode_target(observations).repeat_interleave(num, 0)
        q = aggregate_q(self.target_critic(target_features, actions), "min").view(batch_size, num)
        # The inverse of the choice's distribution function, at a uniform number made of a normal.
        below = q.softmax(1).cumsum(1) < torch.special.ndtr(noises[:, :1])
        choice = below.sum(1).clamp(max=num - 1)
        rows = torch.arange(batch_size, device=actions.device)
        return actions.view(batch_size, num, dim)[rows, choice]

    def _sample(self, actor: ConsistencyNetwork, features: Tensor, noises: Tensor) -> Tensor:
        """pi(s, z) in [-1, 1], (B, A), of a policy or its slow copy; noises (B, T, A)."""
        return consistency_sample(lambda x, t: actor(features, x, t), noises).clamp(-1, 1)

    def update_targets(self, step: int) -> None:
        """Mix the critic and the encoders into their slow copies, at times the policy too."""
        config = self.config
        ema_update(self.target_critic, self.critic, config.tau)
        self.encoder.update_targets(config.tau)
        if step >= config.actor_target_start and step % config.actor_target_every == 0:
            ema_update(self.target_actor, self.actor, config.actor_tau)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Critic and policy, each with its encoder and its own bound of the gradient's norm."""
        groups: dict[bool, list[Tensor]] = {False: [], True: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[name.startswith(("actor.", "encoder.encoders.actor."))].append(parameter)
        common = {"weight_decay": 0.0, "clip": self.config.max_grad_norm}
        return [
            {"params": groups[False], "lr": self.config.lr, **common},
            {"params": groups[True], "lr": self.config.actor_lr, **common},
        ]
