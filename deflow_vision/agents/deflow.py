"""DeFlow: a flow-matching policy with a separate, small refinement in a trust region.

Paper: "DeFlow", arXiv 2601.10471. A multi-step flow mu(s, z) models the behaviour data and is
trained by flow matching alone. A refinement network f moves each sampled action uphill on Q,

    pi(s, z) = clip(mu(s, z) + f(s, mu(s, z))),    z ~ N(0, I),

while a learned Lagrange multiplier alpha holds the mean squared move D at `target_divergence`.
The critic's gradient reaches f only; it never passes through the flow's ODE solver.

Deviations from the reference:
    - With `use_lagrange` off, the penalty is alpha * D; the reference applies alpha twice.
    - A shared image encoder is the default; `encoder.sharing=separate` is the reference's form.
    - There is no `fix_bc_flow_online`: training is offline only.
    - Of the reference's inference modes only the one that it uses, a single sample, is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from deflow_vision.agents.base import (
    Agent,
    Generators,
    Losses,
    Metrics,
    frozen,
    standard_normal,
)
from deflow_vision.flow import euler_sample, flow_matching_loss
from deflow_vision.losses import Aggregation, aggregate_q, global_mean, td_target
from deflow_vision.networks.actors import VelocityField
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec, UserError


@dataclass(frozen=True)
class DeFlowConfig:
    """Hyper-parameters of DeFlow."""

    target_divergence: float | Literal["auto"] = 0.001
    """delta: the mean squared refinement, over samples and action dimensions, to hold. auto: what
    the dataset suggests, as `scripts/data.py suggest-delta` shows."""
    discount: float = 0.99
    """gamma."""
    q_agg: Aggregation = "mean"
    """How the target's ensemble is aggregated; the refinement always climbs the mean."""
    normalize_q_loss: bool = True
    """Divide the refinement's Q loss by the batch mean of |Q|."""
    use_lagrange: bool = True
    """Learn the multiplier; otherwise it stays at `alpha`."""
    alpha: float = 10.0
    """Weight of the divergence when `use_lagrange` is off."""
    initial_log_alpha: float = 1.0
    """Logarithm of the learned multiplier at the start."""
    flow_steps: int = 10
    """M: Euler steps of the base flow."""
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of every network."""
    num_critics: int = 2
    """E: members of the critic ensemble."""
    tau: float = 0.005
    """Share of the online critic mixed into its target at each update."""
    lr: float = 3e-4
    """Learning rate of the one Adam optimizer."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.target_divergence != "auto" and not self.target_divergence > 0:
            raise UserError(f"target_divergence is {self.target_divergence}, must be positive")
        if not 0 < self.discount < 1:
            raise UserError(f"discount is {self.discount}, must lie in (0, 1)")
        if not 0 < self.tau <= 1:
            raise UserError(f"tau is {self.tau}, must lie in (0, 1]")
        if min(self.flow_steps, self.num_critics, *self.hidden_dims) < 1:
            raise UserError("flow_steps, num_critics and every hidden width must be at least 1")


class DeFlowNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_action: z' of the target's action, (B, A), standard normal.
        flow: x_0 of flow matching, (B, A), standard normal.
        times: t of flow matching, (B,), uniform in [0, 1).
        base_action: z of the action to refine, (B, A), standard normal.
    """

    next_action: Tensor
    flow: Tensor
    times: Tensor
    base_action: Tensor


class DeFlow(Agent):
    """Critic Q_i with a slow copy, base flow v, refinement f, multiplier alpha; no slow policy."""

    Config = DeFlowConfig
    config: DeFlowConfig

    def __init__(self, spec: Spec, config: DeFlowConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        if config.target_divergence == "auto":
            raise UserError(
                "target_divergence is auto: training puts the data's number in its place"
            )
        self.target_divergence = config.target_divergence
        self.encoder = ObservationEncoder(spec, encoder_config, ("critic", "flow", "refinement"))
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.bc_flow = VelocityField(*dims)
        self.refinement = VelocityField(*dims, timed=False)
        if config.use_lagrange:
            self.log_alpha = nn.Parameter(torch.tensor(config.initial_log_alpha))

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> DeFlowNoises:
        """Draw one update's noises on the CPU."""
        dim = self.spec.action_dim
        return DeFlowNoises(
            next_action=standard_normal(batch_size, dim, generator),
            flow=standard_normal(batch_size, dim, generator),
            times=torch.rand(batch_size, generator=generator),
            base_action=standard_normal(batch_size, dim, generator),
        )

    def forward(self, batch: Batch, noises: DeFlowNoises, step: int) -> tuple[Losses, Metrics]:
        """All losses of one update: the critic's, the flow's, the refinement's, the multiplier's.

        Args:
            batch: B transitions.
            noises: the draws for them.
            step: unused; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        critic_loss, critic_metrics = self.critic_loss(batch, features, noises)
        actor_losses, actor_metrics = self.actor_loss(features, noises)
        losses = {
            "critic/loss": critic_loss,
            "flow/loss": self.flow_loss(batch, features, noises),
            **actor_losses,
        }
        return losses, {**critic_metrics, **actor_metrics}

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: DeFlowNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - y)^2 with y = r + gamma m agg_i Q_i^-(s', pi(s', z'))."""
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("flow", "refinement"))
            next_actions, _ = self.policy(next_features, noises.next_action)
            target_features = self.encoder.encode_target(batch.next_observations)
            next_q = self.target_critic(target_features, next_actions)  # (E, B)
            next_values = aggregate_q(next_q, self.config.q_agg)
            target_q = td_target(batch.rewards, batch.masks, next_values, self.config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        metrics = {"critic/q_mean": q.mean(), "critic/q_min": q.min(), "critic/q_max": q.max()}
        return (q - target_q).square().mean(), _detached(metrics)

    def flow_loss(self, batch: Batch, features: dict[str, Tensor], noises: DeFlowNoises) -> Tensor:
        """The flow-matching loss of v on the data's actions; nothing else trains v."""
        return flow_matching_loss(
            lambda x, t: self.bc_flow(features["flow"], x, t),
            batch.actions,
            noises.flow,
            noises.times,
        )

    def actor_loss(
        self, features: dict[str, Tensor], noises: DeFlowNoises
    ) -> tuple[Losses, Metrics]:
        """Refinement: -mean_b Q(s, pi) / mean_b |Q| + alpha D.  Multiplier: -log alpha (D - delta).

        D = mean_{b,d} f(s, mu)^2, of the displacement before clipping. Q is the mean over members.
        """
        config = self.config
        actions, displacements = self.policy(features, noises.base_action)
        divergence = displacements.square().mean()
        q = frozen(self.critic)(features["critic"].detach(), actions).mean(0)  # (B,)
        q_loss = -q.mean()
        if config.normalize_q_loss:
            q_loss = q_loss / global_mean(q.abs())
        losses = {"actor/q_loss": q_loss}
        if config.use_lagrange:
            alpha = self.log_alpha.exp()
            slack = divergence.detach() - self.target_divergence
            losses["alpha/loss"] = -self.log_alpha * slack
        else:
            alpha = torch.full_like(divergence, config.alpha)
        losses["actor/penalty"] = alpha.detach() * divergence
        metrics = {"actor/divergence": divergence, "actor/q": q.mean(), "alpha/value": alpha}
        return losses, _detached(metrics)

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, explore: bool = False, generator: Generators = None
    ) -> Tensor:
        """One sample pi(s, z) a row; the same when exploring, the policy being stochastic."""
        features = self.encoder(observations, heads=("flow", "refinement"))
        noises = standard_normal(len(observations), self.spec.action_dim, generator)
        actions, _ = self.policy(features, noises.to(observations.device))
        return actions

    def policy(self, features: dict[str, Tensor], noises: Tensor) -> tuple[Tensor, Tensor]:
        """pi(s, z) = clip(mu(s, z) + f(s, mu(s, z))).

        Args:
            features: of the heads "flow" and "refinement", (B, D) each.
            noises: z, (B, A).

        Returns:
            Actions in [-1, 1] and the displacements f, (B, A) each; gradients reach f alone.
        """
        base_actions = self.base_actions(features["flow"], noises)
        displacements = self.refinement(features["refinement"], base_actions)
        return (base_actions + displacements).clamp(-1, 1), displacements

    @torch.no_grad()
    def base_actions(self, features: Tensor, noises: Tensor) -> Tensor:
        """mu(s, z): M Euler steps of the base flow from z, clipped at the end, no gradient."""
        ends = euler_sample(
            lambda x, t: self.bc_flow(features, x, t), noises, self.config.flow_steps
        )
        return ends.clamp(-1, 1)

    @torch.no_grad()
    def features(self, observations: Tensor, head: str) -> Tensor:
        """Embeddings (B, D) for "critic", "flow" or "refinement"."""
        return self.encoder(observations, heads=(head,))[head]  # type: ignore[no-any-return]

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_target(self.config.tau)


def _detached(metrics: dict[str, Any]) -> Metrics:
    return {name: value.detach() for name, value in metrics.items()}
