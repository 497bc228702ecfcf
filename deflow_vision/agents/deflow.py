"""DeFlow: a flow-matching policy with a separate, small refinement in a trust region.

Paper: "DeFlow", arXiv 2601.10471. A multi-step flow mu(s, z) models the behaviour data and is
trained by flow matching alone. A refinement network f moves each sampled action uphill on Q,

    pi(s, z) = clip(mu(s, z) + f(s, mu(s, z))),    z ~ N(0, I),

while a learned Lagrange multiplier alpha holds the mean squared move D at `target_divergence`.
The critic's gradient reaches f only; it never passes through the flow's ODE solver.

Deviations from the reference:
    - With `use_lagrange` off, the penalty is alpha * D; the reference applies alpha twice.
    - A shared image encoder, trained by the flow, is the default; `encoder.sharing=separate` is the
      reference's form.
    - `fix_bc_flow_online` keeps the base flow and the encoder that it reads to the bit; the
      reference multiplies its loss by 0, and Adam's moments go on moving it for a while.
    - `inference=max_q` takes the proposal of the greatest Q; the reference, against its own
      docstring, takes that of the least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from deflow_vision.agents.base import (
    ActorCriticConfig,
    Agent,
    Losses,
    Metrics,
    best_of,
    check_at_least,
    detached,
    frozen,
    part_of,
    q_metrics,
    standard_normal,
)
from deflow_vision.flow import flow_matching_loss, sample_actions
from deflow_vision.losses import Aggregation, aggregate_q, global_mean, td_target
from deflow_vision.networks.actors import VelocityField
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec, UserError


@dataclass(frozen=True, kw_only=True)
class DeFlowConfig(ActorCriticConfig):
    """Hyper-parameters of DeFlow."""

    target_divergence: float | Literal["auto"] = 0.001
    """delta: the mean squared refinement, over samples and action dimensions, to hold. auto: what
    the dataset suggests, as `scripts/data.py suggest-delta` shows."""
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
    bc_flow_from: Path | None = None
    """A run folder whose flow, of a `bc_flow` run say, is the base flow at the start."""
    freeze_bc_flow: bool = False
    """Keep the base flow, and the encoder it reads, as it is at the start."""
    fix_bc_flow_online: bool = False
    """Keep the base flow, and the encoder it reads, as the offline phase left them."""
    refine_base_action: bool = True
    """f sees the base action; otherwise the state alone, as a residual policy would (ablation)."""
    inference: Literal["sample", "max_q", "iterate"] = "sample"
    """sample: one sample, as in the paper's tables. max_q: refine the base action with the greatest
    Q of `num_proposals`. iterate: refine up to `num_iterations` times, and take the best by Q."""
    num_proposals: int = 10
    """Base actions of `max_q`."""
    num_iterations: int = 5
    """Refinements of `iterate`."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        if self.target_divergence != "auto" and not self.target_divergence > 0:
            raise UserError(f"target_divergence is {self.target_divergence}, must be positive")
        check_at_least(self, 1, "flow_steps", "num_proposals", "num_iterations")
        check_at_least(self, 0, "alpha")


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
    value_heads: ClassVar[tuple[str, ...]] = ("critic",)
    """The networks of values that read the encoder; the first has a slow copy."""

    def __init__(self, spec: Spec, config: DeFlowConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        if config.target_divergence == "auto":
            raise UserError(
                "target_divergence is auto: training puts the data's number in its place"
            )
        self.target_divergence = config.target_divergence
        self.encoder = ObservationEncoder(
            spec,
            encoder_config,
            heads=(*self.value_heads, "flow", "refinement"),
            gradients_from=("flow",),
            targets=self.value_heads[:1],
        )
        dims = (self.encoder.feature_dim, spec.action_dim, config.hidden_dims)
        self.critic = Critic(*dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.bc_flow = VelocityField(*dims)
        self.refinement = VelocityField(*dims, timed=False)
        self.flow_learns = True
        if config.freeze_bc_flow:
            self._freeze_flow()
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

    def begin_online(self) -> None:
        """Freeze the base flow where that is asked for; all else goes on, the multiplier too."""
        if self.config.fix_bc_flow_online:
            self._freeze_flow()

    def _freeze_flow(self) -> None:
        """Keep the base actions: neither the flow nor the encoder that it reads learns on."""
        self.flow_learns = False
        self.bc_flow.requires_grad_(False)
        self.encoder.freeze_for("flow")

    def load_bc_flow(self, weights: Mapping[str, Tensor]) -> None:
        """Begin from the flow in another agent's state, and from the encoder that it reads."""
        self.bc_flow.load_state_dict(part_of(weights, "bc_flow."))
        encoder = part_of(weights, "encoder.encoders.flow.")
        self.encoder.load("flow", encoder or part_of(weights, "encoder.encoders.shared."))

    def forward(
        self, batch: Batch, noises: DeFlowNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the critic's, the flow's, the refinement's, the multiplier's.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("flow", "refinement"))
            # Both flows as one batch: a step of twice the rows takes less than two steps.
            base_actions, next_base_actions = self.base_actions(
                torch.cat([features["flow"], next_features["flow"]]),
                torch.cat([noises.base_action, noises.next_action]),
            ).chunk(2)
            next_actions, _ = self.refine(next_features["refinement"], next_base_actions)
        critic_loss, critic_metrics = self.critic_loss(batch, features, next_actions)
        actor_losses, actor_metrics = self.actor_loss(features, base_actions)
        losses = {"critic/loss": critic_loss, **actor_losses}
        if self.flow_learns:
            losses["flow/loss"] = self.flow_loss(batch, features, noises)
        return losses, {**critic_metrics, **actor_metrics}

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], next_actions: Tensor
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - y)^2 with y = r + gamma m agg_i Q_i^-(s', pi(s', z')), (B, A)."""
        with torch.no_grad():
            target_features = self.encoder.encode_target(batch.next_observations)
            next_q = self.target_critic(target_features, next_actions)  # (E, B)
            next_values = aggregate_q(next_q, self.config.q_agg)
            target_q = td_target(batch.rewards, batch.masks, next_values, self.config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        return (q - target_q).square().mean(), q_metrics(q)

    def flow_loss(self, batch: Batch, features: dict[str, Tensor], noises: DeFlowNoises) -> Tensor:
        """The flow-matching loss of v on the data's actions; nothing else trains v."""
        velocity = partial(self.bc_flow, features["flow"])
        return flow_matching_loss(velocity, batch.actions, noises.flow, noises.times)

    def actor_loss(
        self, features: dict[str, Tensor], base_actions: Tensor
    ) -> tuple[Losses, Metrics]:
        """Refinement: -mean_b Q(s, pi) / mean_b |Q| + alpha D.  Multiplier: -log alpha (D - delta).

        pi = clip(mu + f(s, mu)) of base actions mu (B, A); D = mean_{b,d} f(s, mu)^2, of the
        displacement before clipping. Q is the mean over members.
        """
        config = self.config
        actions, displacements = self.refine(features["refinement"], base_actions)
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
        return losses, detached(metrics)

    def noise_dim(self, *, explore: bool) -> int:
        """A, for each of the K proposals of `max_q`."""
        return self._num_proposals * self.spec.action_dim

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """One sample pi(s, z) a row, unless `inference` asks for more; the same when exploring."""
        heads = ("flow", "refinement") if self.config.inference == "sample" else None
        features = self.encoder(observations, heads)
        proposals, dim = self._num_proposals, self.spec.action_dim
        flow_features = features["flow"].repeat_interleave(proposals, 0)
        candidates = self.base_actions(flow_features, noises.view(-1, dim))  # (B K, A)
        path = [self._best(features, candidates.view(-1, proposals, dim))]
        for _ in range(self.config.num_iterations if self.config.inference == "iterate" else 1):
            path.append(self.refine(features["refinement"], path[-1])[0])
        if self.config.inference == "iterate":
            return self._best(features, torch.stack(path, dim=1))
        return path[-1]

    @property
    def _num_proposals(self) -> int:
        return self.config.num_proposals if self.config.inference == "max_q" else 1

    def _best(self, features: dict[str, Tensor], candidates: Tensor) -> Tensor:
        """Of `candidates` (B, K, A), those with the greatest mean Q, (B, A)."""
        batch_size, num_candidates, dim = candidates.shape
        if num_candidates == 1:
            return candidates[:, 0]
        repeated = features["critic"].repeat_interleave(num_candidates, 0)
        q = self.critic(repeated, candidates.reshape(-1, dim)).mean(0)
        return best_of(candidates, q.view(batch_size, num_candidates))

    def policy(self, features: dict[str, Tensor], noises: Tensor) -> tuple[Tensor, Tensor]:
        """pi(s, z) = clip(mu(s, z) + f(s, mu(s, z))).

        Args:
            features: of the heads "flow" and "refinement", (B, D) each.
            noises: z, (B, A).

        Returns:
            Actions in [-1, 1] and the displacements f, (B, A) each; gradients reach f alone.
        """
        return self.refine(features["refinement"], self.base_actions(features["flow"], noises))

    def refine(self, features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """clip(a + f(s, a)) and f(s, a), (B, A) each; f(s) where f is not to see the action."""
        seen = actions if self.config.refine_base_action else torch.zeros_like(actions)
        displacements = self.refinement(features, seen)
        return (actions + displacements).clamp(-1, 1), displacements

    @torch.no_grad()
    def base_actions(self, features: Tensor, noises: Tensor) -> Tensor:
        """mu(s, z): M Euler steps of the base flow from z, clipped at the end, no gradient."""
        return sample_actions(self.bc_flow.held(features), noises, self.config.flow_steps)

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)
