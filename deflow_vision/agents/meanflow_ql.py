"""MeanFlow-QL (extra): a one-step policy that is trained as a MeanFlow and climbs Q.

Paper: "One-Step Generative Policies with Q-Learning: A Reformulation of MeanFlow", arXiv
2511.13035. One transformer g(s, x, t) (see `deflow_vision.meanflow`) maps noise to an action in one
evaluation, mu(s, z) = g(s, z, 1), clipped. Its loss

    alpha L_MF - mean_b Q(s, clip(mu(s, z))) + mean_{b,d} max(|mu(s, z)| - 1, 0)

has no teacher and no integration. The target's next action and the action taken are the best of
five by the mean of the slow critics. alpha follows L_MF: every 2,000 updates it grows by 20% where
L_MF is above five times its mean at the last 20 such updates, and falls by 20% where it is below a
fifth of it.

Deviations from the reference:
    - Observations are not normalised, and no run is stopped early by its success: both are this
      library's protocol.
    - A new alpha counts from the next update on, and the mean is of what has been recorded, from
      two values on; the reference's mean, until there are 20, is of the empty places of its list.
    - Attention over one token is written as the linear map that it is: see `networks.dit`.
    - The slow critic mixes the parameters from before the step, as in the other methods.
    - A shared image encoder is the default, trained by all terms of the policy's loss;
      `encoder.sharing=separate` is an encoder a network.
    - The consistency loss of the code, whose weight is 0, is left out.
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
    check_at_least,
    check_between,
    detached,
    frozen,
    half_cosine,
    q_metrics,
    standard_normal,
)
from deflow_vision.losses import Aggregation, aggregate_q, global_mean, td_target
from deflow_vision.meanflow import adaptive_mean, load_forward_mode, meanflow_errors
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.dit import DiT
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec

LR_WARMUP, LR_FLOOR = 0.05, 0.1
"""Share of the run in which the policy's learning rate rises, and to what share it falls."""
ALPHA_WARMUP, ALPHA_RANGE = 0.1, 10.0
"""Share of the run in which alpha stays, and by what factor it may ever differ from its start."""
RISE, FALL, SURPRISE, WINDOW = 1.2, 0.8, 5.0, 20
"""How alpha moves, from which ratio of L_MF to its mean on, and over how many values that is."""


@dataclass(frozen=True, kw_only=True)
class MeanFlowQLConfig(ActorCriticConfig):
    """Hyper-parameters of MeanFlow-QL."""

    alpha: float = 2000.0
    """Weight of the MeanFlow loss against Q, at first."""
    adapt_alpha: bool = True
    """Whether the weight follows the MeanFlow loss."""
    alpha_every: int = 2000
    """Updates from one look at alpha to the next."""
    q_agg: Aggregation = "mean"
    """How the target's ensemble is aggregated; the policy always climbs the mean."""
    num_candidates: int = 5
    """Actions of which the target, and acting, take the one with the greatest mean slow Q."""
    num_times: int = 50
    """T: the MeanFlow loss has times 1/T, 2/T, ..., 1; 0 for any time in [0, 1)."""
    adaptive_power: float = 0.2
    """p: a sample's loss is divided by its (mean square error + offset)^p, held constant."""
    adaptive_offset: float = 1e-4
    """That offset."""
    bound_weight: float = 1.0
    """Weight of how far actions lie outside [-1, 1]."""
    flow_lr: float = 1e-4
    """Greatest learning rate of the policy; `lr` is the critic's, and constant."""
    schedule_steps: int = 1_000_000
    """Updates of the whole run: the policy's learning rate rises in the first 5% of them and falls
    to a tenth along a cosine; alpha stays in the first 10%."""
    policy_dim: int = 256
    """Width of the policy's transformer; `hidden_dims` are the critic's."""
    policy_depth: int = 3
    """Its number of blocks."""
    max_grad_norm: float = 1.0
    """The greatest norm of the critic's gradient, and of the policy's."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 0, "num_times", "adaptive_power", "bound_weight")
        check_at_least(self, 1, "alpha_every", "num_candidates", "schedule_steps")
        check_at_least(self, 1, "policy_dim", "policy_depth")
        check_between(self, 0, float("inf"), "alpha", "adaptive_offset", "flow_lr")
        check_between(self, 0, float("inf"), "max_grad_norm")


class MeanFlowQLNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_actions: z' of the target's K candidates, (B, K, A), standard normal.
        flow: z of the MeanFlow loss, (B, A), standard normal.
        times: its t, (B,), uniform in {1/T, ..., 1} or in [0, 1).
        action: z of the action that climbs Q, (B, A), standard normal.
    """

    next_actions: Tensor
    flow: Tensor
    times: Tensor
    action: Tensor


class MeanFlowQL(Agent):
    """Critic Q_i with a slow copy, one-step policy g; no slow policy."""

    Config = MeanFlowQLConfig
    config: MeanFlowQLConfig
    alpha: Tensor
    past_losses: Tensor
    num_past: Tensor
    flow_loss: Tensor

    def __init__(self, spec: Spec, config: MeanFlowQLConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        load_forward_mode()
        heads = ("critic", "flow")
        self.encoder = ObservationEncoder(spec, encoder_config, heads, gradients_from=("flow",))
        dims = (self.encoder.feature_dim, spec.action_dim)
        self.critic = Critic(*dims, config.hidden_dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.flow = DiT(*dims, config.policy_dim, config.policy_depth)
        self.register_buffer("alpha", torch.tensor(float(config.alpha)))
        self.register_buffer("past_losses", torch.zeros(WINDOW))  # the newest last
        self.register_buffer("num_past", torch.tensor(0.0))
        # From forward to update_targets of the same update: nothing that a run has to keep.
        self.register_buffer("flow_loss", torch.tensor(0.0), persistent=False)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> MeanFlowQLNoises:
        """Draw one update's noises on the CPU."""
        dim, num, count = self.spec.action_dim, self.config.num_candidates, self.config.num_times
        uniforms = torch.rand(batch_size, generator=generator)
        return MeanFlowQLNoises(
            next_actions=torch.randn(batch_size, num, dim, generator=generator),
            flow=standard_normal(batch_size, dim, generator),
            times=((uniforms * count).floor() + 1) / count if count else uniforms,
            action=standard_normal(batch_size, dim, generator),
        )

    def forward(
        self, batch: Batch, noises: MeanFlowQLNoises, stage: None = None
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
        self, batch: Batch, features: dict[str, Tensor], noises: MeanFlowQLNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - y)^2, y = r + gamma m agg_i Q_i^-(s', a'), a' the best of K."""
        with torch.no_grad():
            _, next_q = self.best_candidates(batch.next_observations, noises.next_actions)
            next_values = aggregate_q(next_q, self.config.q_agg)
            target_q = td_target(batch.rewards, batch.masks, next_values, self.config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        return (q - target_q).square().mean(), q_metrics(q)

    def actor_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: MeanFlowQLNoises
    ) -> tuple[Losses, Metrics]:
        """The terms alpha L_MF, -mean_b Q(s, clip(mu(s, z))), mean_{b,d} max(|mu(s, z)| - 1, 0).

        L_MF weighs samples by their error; Q is the mean over members, its parameters constant.
        """
        config = self.config
        errors = meanflow_errors(
            lambda x, t: self.flow(features["flow"], x, t), batch.actions, noises.flow, noises.times
        )
        flow_loss = adaptive_mean(errors, config.adaptive_power, config.adaptive_offset)
        self.flow_loss.copy_(global_mean(flow_loss))
        outputs = self.one_step(features["flow"], noises.action)
        critic = frozen(self.critic)
        q = critic(features["critic"].detach(), outputs.clamp(-1, 1)).mean(0)  # (B,)
        excess = (outputs.abs() - 1).relu().mean()
        losses = {
            "actor/flow_loss": self.alpha * flow_loss,
            "actor/q_loss": -q.mean(),
            "actor/bound_loss": config.bound_weight * excess,
        }
        metrics = {
            "flow/loss": flow_loss,
            "flow/error": errors.mean(),
            "actor/q": q.mean(),
            "alpha/value": self.alpha.clone(),
        }
        return losses, detached(metrics)

    def noise_dim(self, *, explore: bool) -> int:
        """A, for each of the K samples."""
        return self.config.num_candidates * self.spec.action_dim

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """The best of K samples by the mean of the slow critics; the same when exploring."""
        candidates = noises.view(-1, self.config.num_candidates, self.spec.action_dim)
        return self.best_candidates(observations, candidates)[0]

    @torch.no_grad()
    def best_candidates(self, observations: Tensor, noises: Tensor) -> tuple[Tensor, Tensor]:
        """Of K samples a state, the one with the greatest mean_i Q_i^-, and its Q.

        Args:
            observations: (B, ...).
            noises: z of the candidates, (B, K, A).

        Returns:
            Actions (B, A) and slow Q (E, B).
        """
        batch_size, num, dim = noises.shape
        features = self.features(observations, "flow").repeat_interleave(num, 0)
        actions = self.one_step(features, noises.view(-1, dim)).clamp(-1, 1)  # (B K, A)
        target_features = self.encoder.encode_target(observations).repeat_interleave(num, 0)
        q = self.target_critic(target_features, actions).view(-1, batch_size, num)
        best = q.mean(0).argmax(1)  # (B,)
        rows = torch.arange(batch_size, device=best.device)
        return actions.view(noises.shape)[rows, best], q[:, rows, best]

    def one_step(self, features: Tensor, noises: Tensor) -> Tensor:
        """mu(s, z) = g(s, z, 1) before clipping: features (B, D), z (B, A) to (B, A)."""
        ones = torch.ones(noises.shape[0], device=noises.device)
        return self.flow(features, noises, ones)  # type: ignore[no-any-return]

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies; adapt alpha if due."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)
        if self.config.adapt_alpha and step > 0 and step % self.config.alpha_every == 0:
            self._adapt_alpha(frozen=step < ALPHA_WARMUP * self.config.schedule_steps)

    @torch.no_grad()
    def _adapt_alpha(self, *, frozen: bool) -> None:
        """Compare the update's L_MF with the mean of the recorded ones, then record it."""
        if not frozen:
            mean = self.past_losses.sum() / self.num_past.clamp(min=1)
            known = self.num_past >= 2
            rises = known & (self.flow_loss > SURPRISE * mean)
            falls = known & (self.flow_loss < mean / SURPRISE)
            self.alpha.mul_(1 + (RISE - 1) * rises.float() + (FALL - 1) * falls.float())
            self.alpha.clamp_(self.config.alpha / ALPHA_RANGE, self.config.alpha * ALPHA_RANGE)
        self.past_losses.copy_(torch.cat([self.past_losses[1:], self.flow_loss.view(1)]))
        self.num_past.add_(1).clamp_(max=WINDOW)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Critic and policy, each with its encoder, learning rate and bound of the gradient."""
        groups: dict[bool, list[Tensor]] = {False: [], True: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[name.startswith(("flow.", "encoder.encoders.flow."))].append(parameter)
        common = {"weight_decay": 0.0, "clip": self.config.max_grad_norm}
        return [
            {"params": groups[False], "lr": self.config.lr, **common},
            {
                "params": groups[True],
                "lr": self.config.flow_lr,
                "schedule": lambda step: self._lr_factor(step),
                **common,
            },
        ]

    def _lr_factor(self, step: int) -> float:
        """What the policy's greatest learning rate is multiplied by in update `step`."""
        total = self.config.schedule_steps
        warmup = int(LR_WARMUP * total)
        if step < warmup:
            return step / warmup
        return LR_FLOOR + (1 - LR_FLOOR) * half_cosine(step - warmup, max(total - warmup, 1))
