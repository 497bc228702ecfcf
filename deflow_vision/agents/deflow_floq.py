"""DeFlow on floq's value: a flow with a refinement as the actor, a flow of returns as the critic.

Papers: "DeFlow", arXiv 2601.10471, whose third table has this combination, and floq, arXiv
2509.06863. The actor's part is DeFlow's, see there. The value is the integral of a velocity field
over returns, v_i(s, a, z, t), that takes a random z0 to Z_i(s, a, z0) in K Euler steps:

    v:  mean_{i,b} sum_j (v_i(s, a, (1-t_j) z0_j + t_j y, t_j) - (y - z0_j))^2
    y = mean_j r + gamma m agg_i Z_i^-(s', a'_j, z0'_j),    a'_j = pi(s', x'_j),
    Q:  mean_{i,b} (Q_i(s, a) - mean_{i,j} Z_i(s, a, z0_j))^2,

over n draws j a transition; the refinement climbs Q, which bootstraps nothing. Each draw has a next
action of its own, n base flows and refinements a transition: an update passes each transition
through about 420 networks forwards and backwards (DeFlow: 39), n (M + 1) = 88 of them for that.

Deviations from the reference:
    - Those of DeFlow.
    - Pixels work: the integral of the online field reads the online encoder, that of the slow
      field the slow one. The reference takes states only.
    - A return far outside the bins of the field's input is moved to 3 sigma from them; the
      reference divides 0 by 0 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deflow_vision.agents.base import Losses, Metrics, check_at_least, q_metrics, standard_normal
from deflow_vision.agents.deflow import DeFlow, DeFlowConfig, DeFlowNoises
from deflow_vision.losses import aggregate_q, td_target
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig
from deflow_vision.networks.floq import FloqCritic, TimeEmbedding
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class DeFlowFloqConfig(DeFlowConfig):
    """Hyper-parameters of DeFlow on floq's value."""

    critic_flow_steps: int = 8
    """K: Euler steps of the flow of returns."""
    noise_samples: int = 8
    """n: draws of z0, and of the next action, a transition."""
    noise_coverage: float = 0.1
    """kappa: z0 covers this part of the range of returns."""
    floq_depth: int = 4
    """Hidden layers of the velocity field, each as wide as the first of `hidden_dims`."""
    time_embedding: TimeEmbedding = "cos"
    """How the field sees t. cos: cos(t), as the published code. fourier: cos(pi k t) for k = 1 to
    64, as it was meant."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 1, "critic_flow_steps", "noise_samples", "floq_depth")
        check_at_least(self, 0, "noise_coverage")


class DeFlowFloqNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_actions: x' of the target's actions, (B, n, A), standard normal.
        next_starts: u of the target's z0', (B, n), uniform in [0, 1).
        starts: u of z0, (B, n), uniform in [0, 1).
        return_times: t on the paths of returns, (B, n), uniform in [0, 1).
        flow: x_0 of flow matching of actions, (B, A), standard normal.
        times: t of flow matching of actions, (B,), uniform in [0, 1).
        base_action: z of the action to refine, (B, A), standard normal.
    """

    next_actions: Tensor
    next_starts: Tensor
    starts: Tensor
    return_times: Tensor
    flow: Tensor
    times: Tensor
    base_action: Tensor


class DeFlowFloq(DeFlow):
    """DeFlow with a field v_i, which has the slow copy, and a distilled critic Q_i without one."""

    Config = DeFlowFloqConfig
    config: DeFlowFloqConfig
    value_heads = ("floq", "critic")

    def __init__(self, spec: Spec, config: DeFlowFloqConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        del self.target_critic  # Q bootstraps nothing
        self.floq = FloqCritic(
            self.encoder.feature_dim,
            spec.action_dim,
            config.hidden_dims[:1] * config.floq_depth,
            config.num_critics,
            reward_range=spec.reward_range,
            discount=config.discount,
            noise_coverage=config.noise_coverage,
            time_embedding=config.time_embedding,
        )
        self.target_floq = ema_copy(self.floq)

    def sample_noises(  # type: ignore[override]
        self, batch_size: int, generator: torch.Generator
    ) -> DeFlowFloqNoises:
        """Draw one update's noises on the CPU."""
        draws, dim = self.config.noise_samples, self.spec.action_dim
        next_actions = standard_normal(batch_size, draws * dim, generator)
        return DeFlowFloqNoises(
            next_actions=next_actions.view(batch_size, draws, dim),
            next_starts=torch.rand(batch_size, draws, generator=generator),
            starts=torch.rand(batch_size, draws, generator=generator),
            return_times=torch.rand(batch_size, draws, generator=generator),
            flow=standard_normal(batch_size, dim, generator),
            times=torch.rand(batch_size, generator=generator),
            base_action=standard_normal(batch_size, dim, generator),
        )

    def forward(  # type: ignore[override]
        self, batch: Batch, noises: DeFlowFloqNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the field's, the critic's, and those of DeFlow's actor.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        floq_loss, floq_metrics = self.floq_loss(batch, features, noises)
        critic_loss, critic_metrics = self.critic_loss(batch, features, noises)
        of_actor = DeFlowNoises(  # which reads nothing of the first
            noises.next_actions[:, 0], noises.flow, noises.times, noises.base_action
        )
        base_actions = self.base_actions(features["flow"], noises.base_action)
        actor_losses, actor_metrics = self.actor_loss(features, base_actions)
        losses = {"floq/loss": floq_loss, "critic/loss": critic_loss, **actor_losses}
        if self.flow_learns:
            losses["flow/loss"] = self.flow_loss(batch, features, of_actor)
        return losses, floq_metrics | critic_metrics | actor_metrics

    def floq_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: DeFlowFloqNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} sum_j (v_i(s, a, z_t, t_j) - (y - z0_j))^2, z_t = (1 - t_j) z0_j + t_j y."""
        ends = self.target_returns(batch, noises).unsqueeze(-1)  # (B, 1)
        starts, times = self.floq.starts(noises.starts), noises.return_times  # (B, n)
        points = (1 - times) * starts + times * ends
        velocities = self.floq(features["floq"], batch.actions.unsqueeze(1), points, times)
        loss = (velocities - (ends - starts)).square().sum(-1).mean()  # of (E, B, n)
        return loss, {"floq/target": ends.mean()}

    @torch.no_grad()
    def target_returns(self, batch: Batch, noises: DeFlowFloqNoises) -> Tensor:
        """The target y = mean_j r + gamma m agg_i Z_i^-(s', pi(s', x'_j), z0'_j), (B,)."""
        draws = self.config.noise_samples
        features = self.encoder(batch.next_observations, heads=("flow", "refinement"))
        repeated = {head: z.repeat_interleave(draws, 0) for head, z in features.items()}
        next_actions, _ = self.policy(repeated, noises.next_actions.flatten(0, 1))  # (B n, A)
        returns = self.target_floq.integrate(
            self.encoder.encode_target(batch.next_observations, "floq"),
            next_actions.view_as(noises.next_actions),
            self.floq.starts(noises.next_starts),
            self.config.critic_flow_steps,
        )  # (E, B, n)
        next_values = aggregate_q(returns.flatten(1), self.config.q_agg).view(-1, draws).mean(1)
        return td_target(batch.rewards, batch.masks, next_values, self.config.discount)

    def critic_loss(  # type: ignore[override]
        self, batch: Batch, features: dict[str, Tensor], noises: DeFlowFloqNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - mean_{i,j} Z_i(s, a, z0_j))^2 with the online field, constant."""
        with torch.no_grad():
            returns = self.floq.integrate(
                features["floq"],
                batch.actions.unsqueeze(1),
                self.floq.starts(noises.starts),
                self.config.critic_flow_steps,
            ).mean(0)  # (B, n)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        spread = returns.var(1, correction=0).mean().sqrt()
        return (q - returns.mean(1)).square().mean(), q_metrics(q) | {"floq/spread": spread}

    def update_targets(self, step: int) -> None:
        """Mix the field, and the encoder it reads, into their slow copies."""
        ema_update(self.target_floq, self.floq, self.config.tau)
        self.encoder.update_targets(self.config.tau)
