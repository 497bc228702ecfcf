"""SORL (extra): a shortcut policy that climbs Q through one, two, four or eight of its own steps.

Paper: "Scaling Offline RL via Efficient and Expressive Shortcut Models", arXiv 2505.22866. One
shortcut field v(s, x, t, h) (see `deflow_vision.shortcut`) is the policy mu_k(s, z): k = 2^h Euler
steps from z, clipped at the end. It learns the data's actions at the finest step, consistency at
the coarser ones, and climbs a normalised Q:

    10 L_FM + 10 L_consistency - c_q mean_b Q(s, mu_k(s, z), k) / mean_b |Q|.

The number of steps k is drawn anew in each update, one for the target and one for the policy, and
is an input of the critic: Q(s, a, k).

Deviations from the reference:
    - Critic and policy learn in one step of the optimizer, from the same parameters. The reference
      steps the critic first, then the policy, with one Adam, which sees a gradient of zero for each
      of them every other time; what it moves them by in an update is up to sqrt(2) times as far.
    - The critic's target is a constant. The reference lets its gradient flow through the slow
      critic into the policy that made the next action.
    - x_t = (1 - t) x_0 + t a, without the reference's 1e-5 x_0 left at t = 1.
    - A shared image encoder is the default, trained by all terms of the policy's loss;
      `encoder.sharing=separate` is an encoder a network. The reference was run from state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deflow_vision.agents.base import (
    ActorCriticConfig,
    Agent,
    Losses,
    Metrics,
    best_of,
    check_at_least,
    check_between,
    detached,
    frozen,
    q_metrics,
    standard_normal,
)
from deflow_vision.flow import flow_matching_loss
from deflow_vision.losses import Aggregation, aggregate_q, global_mean, td_target
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.networks.shortcut import ShortcutField
from deflow_vision.shortcut import (
    consistency_levels,
    grid_times,
    shortcut_loss,
    shortcut_sample,
)
from deflow_vision.types import Batch, Spec, UserError


@dataclass(frozen=True, kw_only=True)
class SORLConfig(ActorCriticConfig):
    """Hyper-parameters of SORL."""

    lr: float = 1e-4
    """Learning rate of the one Adam optimizer."""
    q_weight: float = 100.0
    """c_q: weight of the normalised Q."""
    flow_weight: float = 10.0
    """Weight of flow matching."""
    consistency_weight: float = 10.0
    """Weight of the shortcut consistency."""
    q_agg: Aggregation = "mean"
    """How the target's ensemble, and that which picks among candidates, is aggregated; the policy
    always climbs the mean."""
    max_steps: int = 8
    """The most Euler steps, a power of 2: those of flow matching."""
    inference_steps: int = 1
    """Euler steps when acting, a power of 2 up to `max_steps`."""
    num_candidates: int = 1
    """Actions of which acting takes the one with the greatest Q."""
    max_grad_norm: float = 1.0
    """The greatest norm of the critic's gradient, and of the policy's."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 0, "q_weight", "flow_weight", "consistency_weight")
        check_at_least(self, 2, "max_steps")
        check_at_least(self, 1, "inference_steps", "num_candidates")
        check_between(self, 0, float("inf"), "max_grad_norm")
        for name in ("max_steps", "inference_steps"):
            steps = getattr(self, name)
            if steps & (steps - 1):
                raise UserError(f"{name} is {steps}, must be a power of 2")
        if self.inference_steps > self.max_steps:
            raise UserError(
                f"inference_steps is {self.inference_steps}, must be at most max_steps, "
                f"{self.max_steps}"
            )


class SORLNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_action: z' of the target's action, (B, A), standard normal.
        next_level: log2 of its number of steps, one for all rows, (1,).
        flow: x_0 of flow matching, (B, A), standard normal.
        flow_times: u that picks its times, (B,), uniform in [0, 1).
        shortcut: x_0 of the consistency, (B, A), standard normal.
        shortcut_times: u that picks its times, (B,), uniform in [0, 1).
        action: z of the action that climbs Q, (B, A), standard normal.
        level: log2 of its number of steps, one for all rows, (1,).
    """

    next_action: Tensor
    next_level: Tensor
    flow: Tensor
    flow_times: Tensor
    shortcut: Tensor
    shortcut_times: Tensor
    action: Tensor
    level: Tensor


class SORL(Agent):
    """Critic Q_i(s, a, k) and shortcut field v, a slow copy of each."""

    Config = SORLConfig
    config: SORLConfig

    def __init__(self, spec: Spec, config: SORLConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        heads = ("critic", "flow")
        self.encoder = ObservationEncoder(
            spec, encoder_config, heads=heads, gradients_from=("flow",), targets=heads
        )
        self.finest = config.max_steps.bit_length() - 1
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(
            self.encoder.feature_dim,
            spec.action_dim + 1,  # and the number of steps
            config.hidden_dims,
            num_critics=config.num_critics,
        )
        self.target_critic = ema_copy(self.critic)
        self.flow = ShortcutField(*dims)
        self.target_flow = ema_copy(self.flow)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> SORLNoises:
        """Draw one update's noises on the CPU."""
        dim = self.spec.action_dim

        def level() -> Tensor:
            return torch.randint(self.finest + 1, (1,), generator=generator).float()

        return SORLNoises(
            next_action=standard_normal(batch_size, dim, generator),
            next_level=level(),
            flow=standard_normal(batch_size, dim, generator),
            flow_times=torch.rand(batch_size, generator=generator),
            shortcut=standard_normal(batch_size, dim, generator),
            shortcut_times=torch.rand(batch_size, generator=generator),
            action=standard_normal(batch_size, dim, generator),
            level=level(),
        )

    def forward(
        self, batch: Batch, noises: SORLNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the critic's, and the three terms of the policy's.

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
        self, batch: Batch, features: dict[str, Tensor], noises: SORLNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a, k) - y)^2, y = r + gamma m agg_i Q_i^-(s', mu_k(s', z'), k)."""
        level = noises.next_level
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("flow",))["flow"]
            next_actions = self.policy(next_features, noises.next_action, level)
            target_features = self.encoder.encode_target(batch.next_observations)
            next_q = self.target_critic(target_features, with_steps(next_actions, level))  # (E, B)
            next_values = aggregate_q(next_q, self.config.q_agg)
            target_q = td_target(batch.rewards, batch.masks, next_values, self.config.discount)
        q = self.critic(features["critic"], with_steps(batch.actions, level))  # (E, B)
        return (q - target_q).square().mean(), q_metrics(q)

    def actor_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: SORLNoises
    ) -> tuple[Losses, Metrics]:
        """10 L_FM + 10 L_consistency - c_q mean_b Q(s, mu_k(s, z), k) / mean_b |Q|.

        Q is the mean over members, its parameters constant; the gradient passes through all k
        steps. Flow matching has the times at which the finest step may begin.
        """
        config = self.config
        finest = torch.full_like(noises.flow_times, self.finest)
        flow_loss = flow_matching_loss(
            lambda x, t: self.flow(features["flow"], x, t, finest),
            batch.actions,
            noises.flow,
            grid_times(noises.flow_times, finest),
        )
        levels = consistency_levels(len(finest), self.finest, finest.device)
        target_features = self.encoder.encode_target(batch.observations, "flow")
        consistency = shortcut_loss(
            lambda x, t, h: self.flow(features["flow"], x, t, h),
            lambda x, t, h: self.target_flow(target_features, x, t, h),
            batch.actions,
            noises.shortcut,
            grid_times(noises.shortcut_times, levels),
            levels,
        )
        actions = self.policy(features["flow"], noises.action, noises.level)
        critic = frozen(self.critic)
        q = critic(features["critic"].detach(), with_steps(actions, noises.level)).mean(0)  # (B,)
        losses = {
            "actor/flow_loss": config.flow_weight * flow_loss,
            "actor/consistency_loss": config.consistency_weight * consistency,
            "actor/q_loss": -config.q_weight * q.mean() / global_mean(q.abs()),
        }
        metrics = {"flow/loss": flow_loss, "flow/consistency": consistency, "actor/q": q.mean()}
        return losses, detached(metrics)

    def noise_dim(self, *, explore: bool) -> int:
        """A, for each of the candidates."""
        return self.config.num_candidates * self.spec.action_dim

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """mu_k(s, z), the best by Q of its candidates; the same when exploring."""
        num, dim = self.config.num_candidates, self.spec.action_dim
        steps = self.config.inference_steps
        level = torch.tensor([steps], device=noises.device).float().log2()
        features = self.features(observations, "flow").repeat_interleave(num, 0)
        actions = self.policy(features, noises.view(-1, dim), level, max_steps=steps)
        if num == 1:
            return actions
        critic_features = self.features(observations, "critic").repeat_interleave(num, 0)
        q = aggregate_q(self.critic(critic_features, with_steps(actions, level)), self.config.q_agg)
        return best_of(actions.view(-1, num, dim), q.view(-1, num))

    def policy(
        self, features: Tensor, noises: Tensor, level: Tensor, max_steps: int | None = None
    ) -> Tensor:
        """mu_k(s, z) (B, A): k = 2^level Euler steps from z, clipped at the end; differentiable."""
        ends = shortcut_sample(
            lambda x, t, h: self.flow(features, x, t, h),
            noises,
            level,
            max_steps or self.config.max_steps,
        )
        return ends.clamp(-1, 1)

    def update_targets(self, step: int) -> None:
        """Mix critic, field and their encoders into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        ema_update(self.target_flow, self.flow, self.config.tau)
        self.encoder.update_targets(self.config.tau)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Critic and policy, each with its encoder and its own bound of the gradient's norm."""
        groups: dict[bool, list[Tensor]] = {False: [], True: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[name.startswith(("flow.", "encoder.encoders.flow."))].append(parameter)
        common = {
            "lr": self.config.lr,
            "weight_decay": 0.0,
            "clip": self.config.max_grad_norm,
        }
        return [{"params": params, **common} for params in groups.values()]


def with_steps(actions: Tensor, level: Tensor) -> Tensor:
    """(a, k) as the critic takes them: actions (B, A), level (1,) to (B, A + 1)."""
    return torch.cat([actions, level.exp2().expand(actions.shape[0], 1)], dim=-1)
