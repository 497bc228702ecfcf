"""floq: the value is the integral of a velocity field over returns; the actor is FQL's.

Paper: Agrawalla et al., "floq: Training Critics via Flow-Matching for Scaling Compute in
Value-Based RL", arXiv 2509.06863. A field v_i(s, a, z, t) carries a random return z0 to the value
of (s, a) in K Euler steps, Z_i(s, a, z0). It is trained by flow matching towards the TD target y,

    v:  mean_{i,b} sum_j (v_i(s, a, (1-t_j) z0_j + t_j y, t_j) - (y - z0_j))^2
    y = mean_j r + gamma m agg_i Z_i^-(s', a'_j, z0'_j),    a'_j = pi(s', x'_j),
    Q:  mean_{i,b} (Q_i(s, a) - mean_{i,j} Z_i(s, a, z0_j))^2,

over n draws j a transition. Q distils the integral for the actor: a flow mu(s, x) models the data,
and a one-step policy pi(s, x) = clip(mu_1(s, x)) imitates it while it climbs Q.

An update is the costliest of all: with E = 2, n = K = 8 each transition goes through about 340
networks forwards and backwards (FQL: 29), 2 n K E = 256 of them in the two integrals.

Deviations from the reference:
    - Pixels work: features are computed once an observation; the integral of the online field
      reads the online encoder and that of the slow field the slow one (the reference, whose code
      does not run on pixels, has the slow one for both).
    - A shared image encoder, trained by the flow, is the default; `encoder.sharing=separate` is the
      reference's form.
    - A return far outside the bins of the field's input is moved to 3 sigma from them; the
      reference divides 0 by 0 there.
    - There is no residual form of the field.
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
from deflow_vision.networks.floq import FloqCritic, TimeEmbedding
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class FloqConfig(ActorCriticConfig):
    """Hyper-parameters of floq."""

    alpha: float = 10.0
    """Weight of the one-step policy's distance to the flow."""
    q_agg: Aggregation = "mean"
    """How the members' integrals are aggregated in the target; Q and the actor take the mean."""
    normalize_q_loss: bool = False
    """Divide the policy's Q loss by the batch mean of |Q|."""
    flow_steps: int = 10
    """M: Euler steps of the flow of actions."""
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
        check_at_least(self, 1, "flow_steps", "critic_flow_steps", "noise_samples", "floq_depth")
        check_at_least(self, 0, "alpha", "noise_coverage")


class FloqNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_actions: x' of the target's actions, (B, n, A), standard normal.
        next_starts: u of the target's z0', (B, n), uniform in [0, 1).
        starts: u of z0, (B, n), uniform in [0, 1).
        return_times: t on the paths of returns, (B, n), uniform in [0, 1).
        flow: x_0 of flow matching of actions, (B, A), standard normal.
        times: t of flow matching of actions, (B,), uniform in [0, 1).
        policy: x of the policy and of the flow that it imitates, (B, A), standard normal.
    """

    next_actions: Tensor
    next_starts: Tensor
    starts: Tensor
    return_times: Tensor
    flow: Tensor
    times: Tensor
    policy: Tensor


class Floq(Agent):
    """Field v_i with a slow copy, distilled critic Q_i without, flow mu, one-step policy."""

    Config = FloqConfig
    config: FloqConfig

    def __init__(self, spec: Spec, config: FloqConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        self.encoder = ObservationEncoder(
            spec,
            encoder_config,
            heads=("floq", "critic", "flow", "actor"),
            gradients_from=("flow",),
            targets=("floq",),
        )
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
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
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.bc_flow = VelocityField(*dims)
        self.one_step = VelocityField(*dims, timed=False)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> FloqNoises:
        """Draw one update's noises on the CPU."""
        draws, dim = self.config.noise_samples, self.spec.action_dim
        next_actions = standard_normal(batch_size, draws * dim, generator)
        return FloqNoises(
            next_actions=next_actions.view(batch_size, draws, dim),
            next_starts=torch.rand(batch_size, draws, generator=generator),
            starts=torch.rand(batch_size, draws, generator=generator),
            return_times=torch.rand(batch_size, draws, generator=generator),
            flow=standard_normal(batch_size, dim, generator),
            times=torch.rand(batch_size, generator=generator),
            policy=standard_normal(batch_size, dim, generator),
        )

    def forward(
        self, batch: Batch, noises: FloqNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the field's, the critic's, the flow's, the policy's.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        floq_loss, floq_metrics = self.floq_loss(batch, features, noises)
        critic_loss, critic_metrics = self.critic_loss(batch, features, noises)
        flow_loss = flow_matching_loss(
            lambda x, t: self.bc_flow(features["flow"], x, t),
            batch.actions,
            noises.flow,
            noises.times,
        )
        actor_losses, actor_metrics = self.actor_loss(features, noises)
        losses = {"floq/loss": floq_loss, "critic/loss": critic_loss, "flow/loss": flow_loss}
        return losses | actor_losses, floq_metrics | critic_metrics | actor_metrics

    def floq_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: FloqNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} sum_j (v_i(s, a, z_t, t_j) - (y - z0_j))^2, z_t = (1 - t_j) z0_j + t_j y."""
        ends = self.target_returns(batch, noises).unsqueeze(-1)  # (B, 1)
        starts, times = self.floq.starts(noises.starts), noises.return_times  # (B, n)
        points = (1 - times) * starts + times * ends
        velocities = self.floq(features["floq"], batch.actions.unsqueeze(1), points, times)
        loss = (velocities - (ends - starts)).square().sum(-1).mean()  # of (E, B, n)
        return loss, {"floq/target": ends.mean()}

    @torch.no_grad()
    def target_returns(self, batch: Batch, noises: FloqNoises) -> Tensor:
        """The target y = mean_j r + gamma m agg_i Z_i^-(s', pi(s', x'_j), z0'_j), (B,)."""
        draws = self.config.noise_samples
        features = self.encoder(batch.next_observations, heads=("actor",))["actor"]
        repeated = features.repeat_interleave(draws, 0)
        next_actions = self.policy(repeated, noises.next_actions.flatten(0, 1))  # (B n, A)
        returns = self.target_floq.integrate(
            self.encoder.encode_target(batch.next_observations, "floq"),
            next_actions.view_as(noises.next_actions),
            self.floq.starts(noises.next_starts),
            self.config.critic_flow_steps,
        )  # (E, B, n)
        next_values = aggregate_q(returns.flatten(1), self.config.q_agg).view(-1, draws).mean(1)
        return td_target(batch.rewards, batch.masks, next_values, self.config.discount)

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: FloqNoises
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

    def actor_loss(self, features: dict[str, Tensor], noises: FloqNoises) -> tuple[Losses, Metrics]:
        """Policy: alpha mean_{b,d} (mu_1(s, x) - mu(s, x))^2 and -mean_b Q(s, pi(s, x)).

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
        """One sample pi(s, x) a row; the same when exploring."""
        return self.policy(self.features(observations, "actor"), noises)

    def policy(self, features: Tensor, noises: Tensor) -> Tensor:
        """pi(s, x) = clip(mu_1(s, x)): features (B, D) of the head "actor", x (B, A) to (B, A)."""
        return self.one_step(features, noises).clamp(-1, 1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def flow_actions(self, features: Tensor, noises: Tensor) -> Tensor:
        """mu(s, x): M Euler steps of the flow of actions, clipped at the end, no gradient."""
        return sample_actions(
            lambda x, t: self.bc_flow(features, x, t), noises, self.config.flow_steps
        )

    def update_targets(self, step: int) -> None:
        """Mix the field, and the encoder it reads, into their slow copies."""
        ema_update(self.target_floq, self.floq, self.config.tau)
        self.encoder.update_targets(self.config.tau)
