"""SRPO: a deterministic policy that climbs Q and a frozen diffusion model's score of its actions.

Paper: Chen et al., "Score Regularized Policy Optimization through Diffusion Behavior", arXiv
2310.07297. First IQL's Q and V (arXiv 2110.06169) and a noise model eps_hat of the data's actions
learn, as in IDQL (arXiv 2304.10573); then they stay as they are and pi alone learns. The gradient
of its loss is that of -beta Q plus one towards more likely actions, at all levels of noise,

    mean_b sigma_t^2 <eps_hat(s, a_t, t), pi(s)> - beta <grad_a Q^-(s, pi(s)), pi(s)>,
    a_t = sqrt(abar_t) pi(s) + sigma_t z,    sigma_t^2 = 1 - abar_t,    z ~ N(0, I),

where only the second factors have a gradient: no sampler, and no network of the first stage, is
differentiated through. The difference eps_hat - z, which has the same mean, is not taken, as in the
official code's own settings.

Deviations from the reference:
    - The first stage, its schedule of five steps and its slow noise model are IDQL's, as in the
      comparison of "Flow Q-Learning" (arXiv 2502.02538), whose code is not public. So t is uniform
      over five steps; the official code has continuous times in (0.02, 0.98).
    - Both stages are one run: one size of batches, and critics that learn as long as the model.
    - A gradient of Q with a root mean square below 1e-8 is divided by that.
    - From pixels, which the reference does not have, a shared encoder is trained in the first stage
      alone; the frozen networks read its slow copy.
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
    half_cosine,
    q_metrics,
    standard_normal,
)
from deflow_vision.diffusion import diffusion_loss, vp_scales
from deflow_vision.losses import aggregate_q, expectile_loss, td_target
from deflow_vision.networks.critics import Critic, Value
from deflow_vision.networks.diffusion import NoiseNetwork
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.networks.mlp import MLP, uniform_init_
from deflow_vision.types import Batch, Spec, UserError


@dataclass(frozen=True, kw_only=True)
class SRPOConfig(ActorCriticConfig):
    """Hyper-parameters of SRPO."""

    hidden_dims: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of Q and V."""
    actor_hidden_dims: tuple[int, ...] = (256, 256)
    """Widths of the policy's hidden layers."""
    beta: float = 0.1
    """Weight of Q against the score."""
    normalize_guidance: bool = False
    """Divide each action's gradient of Q by its root mean square over dimensions."""
    pretrain_steps: int = 3_000_000
    """Updates of the first stage; the policy learns in those that follow."""
    actor_decay_steps: int = 1_000_000
    """Updates in which the policy's learning rate falls to 0, as half a cosine."""
    expectile: float = 0.9
    """Which expectile of Q over the data's actions V is."""
    diffusion_steps: int = 5
    """T: levels of noise."""
    diffusion_width: int = 256
    """Width of the noise model; its blocks are four times as wide inside."""
    diffusion_blocks: int = 3
    """Residual blocks of the noise model."""
    dropout: float = 0.1
    """Share of what enters a block of the noise model that the first stage sets to 0."""
    diffusion_tau: float = 0.001
    """Share of the noise model mixed into its slow copy at each update."""
    weight_decay: float = 1e-4
    """AdamW's, of the noise model alone."""
    decay_steps: int = 3_000_000
    """Updates in which the noise model's learning rate falls to 0, as half a cosine."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_between(self, 0, 1, "expectile")
        check_at_least(self, 1, "actor_hidden_dims", "pretrain_steps", "actor_decay_steps")
        check_at_least(self, 1, "diffusion_steps", "diffusion_width", "diffusion_blocks")
        check_at_least(self, 1, "decay_steps")
        check_at_least(self, 0, "beta", "weight_decay")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}, must lie in [0, 1)")
        check_share(self, "diffusion_tau")


class SRPONoises(NamedTuple):
    """The draws of one update, of either stage.

    Attributes:
        diffusion: eps of the diffusion loss, or z of the policy's, (B, A), standard normal.
        steps: t - 1 of the levels of noise, (B,), uniform in 0..T-1.
        keep: where dropout leaves what enters a block, (B, K, W), true with probability 1 - p.
    """

    diffusion: Tensor
    steps: Tensor
    keep: Tensor


class SRPO(Agent):
    """Critic Q_i and noise model eps_hat, a slow copy of each, value V, deterministic policy pi."""

    Config = SRPOConfig
    config: SRPOConfig
    staged = True

    def __init__(self, spec: Spec, config: SRPOConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        self.encoder = ObservationEncoder(
            spec,
            encoder_config,
            heads=("critic", "value", "diffusion", "actor"),
            gradients_from=("diffusion",),
            targets=("critic", "diffusion"),
        )
        feature_dim, action_dim = self.encoder.feature_dim, spec.action_dim
        dims, num = config.hidden_dims, config.num_critics
        self.critic = Critic(
            feature_dim, action_dim, dims, num, layer_norm=False, activation=F.relu
        )
        self.target_critic = ema_copy(self.critic)
        self.value = Value(feature_dim, dims, norm="input", activation=F.relu)
        self.diffusion = NoiseNetwork(
            feature_dim,
            action_dim,
            config.diffusion_width,
            config.diffusion_blocks,
            config.dropout,
        )
        self.target_diffusion = ema_copy(self.diffusion)
        self.actor = MLP(feature_dim, config.actor_hidden_dims, action_dim, activation=F.relu)
        uniform_init_(self.actor)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> SRPONoises:
        """Draw one update's noises on the CPU."""
        config = self.config
        shape = (batch_size, config.diffusion_blocks, config.diffusion_width)
        return SRPONoises(
            diffusion=standard_normal(batch_size, self.spec.action_dim, generator),
            steps=torch.randint(config.diffusion_steps, (batch_size,), generator=generator),
            keep=torch.rand(shape, generator=generator) >= config.dropout,
        )

    def stage(self, step: int) -> bool:
        """Whether this update is of the first stage."""
        return step < self.config.pretrain_steps

    def forward(
        self, batch: Batch, noises: SRPONoises, stage: bool = True
    ) -> tuple[Losses, Metrics]:
        """V's, the critic's and the noise model's loss; in the second stage the policy's alone.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: whether this is the first stage.
        """
        if not stage:
            return self.actor_loss(batch, noises)
        features = self.encoder(batch.observations, heads=("critic", "value", "diffusion"))
        value_loss, value_metrics = self.value_loss(batch, features)
        critic_loss, critic_metrics = self.critic_loss(batch, features)
        losses = {
            "value/loss": value_loss,
            "critic/loss": critic_loss,
            "diffusion/loss": self.diffusion_loss(batch, features, noises),
        }
        return losses, {**value_metrics, **critic_metrics}

    def value_loss(self, batch: Batch, features: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """The expectile loss of min_i Q_i^-(s, a) - V(s), at the data's actions."""
        target_features = self.encoder.encode_target(batch.observations)
        with torch.no_grad():
            target_q = aggregate_q(self.target_critic(target_features, batch.actions), "min")
        values = self.value(features["value"])  # (B,)
        loss = expectile_loss(target_q - values, self.config.expectile)
        return loss, detached({"value/mean": values.mean()})

    def critic_loss(self, batch: Batch, features: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - y)^2 with y = r + gamma m V(s')."""
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("value",))["value"]
            next_values = self.value(next_features)
            target_q = td_target(batch.rewards, batch.masks, next_values, self.config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        return (q - target_q).square().mean(), q_metrics(q)

    def diffusion_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: SRPONoises
    ) -> Tensor:
        """The denoising loss on the data's actions, a sum over dimensions; with dropout."""
        return diffusion_loss(
            lambda x, t: self.diffusion(features["diffusion"], x, t, noises.keep),
            batch.actions,
            noises.diffusion,
            noises.steps.float(),
            self.config.diffusion_steps,
        )

    def actor_loss(self, batch: Batch, noises: SRPONoises) -> tuple[Losses, Metrics]:
        """mean_b sigma_t^2 <eps_hat, pi(s)> and -beta mean_b <g, pi(s)>, g = grad_a mean_i Q_i^-.

        eps_hat, of the noised pi(s), and g are constant for the gradient; no dropout.
        """
        actions = self.policy(self.encoder(batch.observations, heads=("actor",))["actor"])
        features = self.encoder.encode_targets(batch.observations, heads=("critic", "diffusion"))
        indices = noises.steps.float()
        with torch.no_grad():
            data_scales, noise_scales = vp_scales(indices, self.config.diffusion_steps)
            points = data_scales * actions + noise_scales * noises.diffusion
            noise = self.target_diffusion(features["diffusion"], points, indices)
        q, guidance = self.guidance(features["critic"], actions.detach())
        losses = {
            "actor/score_loss": (noise_scales.square() * noise * actions).sum(-1).mean(),
            "actor/q_loss": -self.config.beta * (guidance * actions).sum(-1).mean(),
        }
        return losses, detached({"actor/q": q.mean()})

    def guidance(self, features: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q^-(s, a), the mean over members, (B,), and its gradient in a, (B, A)."""

        def total(a: Tensor) -> tuple[Tensor, Tensor]:
            q = self.target_critic(features, a).mean(0)
            return q.sum(), q

        gradients, q = torch.func.grad(total, has_aux=True)(actions)
        if self.config.normalize_guidance:
            size = gradients.square().mean(-1, keepdim=True).sqrt()
            gradients = gradients / size.clamp(min=1e-8)
        return q, gradients

    def policy(self, features: Tensor) -> Tensor:
        """pi(s) in (-1, 1), (B, A)."""
        return self.actor(features).tanh()  # type: ignore[no-any-return]

    def noise_dim(self, *, explore: bool) -> int:
        """None: the policy is deterministic."""
        return 0

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """pi(s), deterministic; the same when exploring. In the first stage it is untrained."""
        return self.policy(self.features(observations, "actor"))

    def update_targets(self, step: int) -> None:
        """In the first stage, mix critic, noise model and their encoders into their slow copies."""
        if self.stage(step):
            ema_update(self.target_critic, self.critic, self.config.tau)
            ema_update(self.target_diffusion, self.diffusion, self.config.diffusion_tau)
            self.encoder.update_targets(self.config.tau)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Q and V at a constant rate; noise model and policy at rates that fall to 0."""
        config = self.config
        groups: dict[str, list[Tensor]] = {"values": [], "diffusion": [], "actor": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                head = name.removeprefix("encoder.encoders.").split(".")[0]
                groups[head if head in groups else "values"].append(parameter)

        def diffusion_rate(step: int) -> float:
            return half_cosine(step, config.decay_steps)

        def actor_rate(step: int) -> float:
            return half_cosine(step - config.pretrain_steps, config.actor_decay_steps)

        common = {"lr": config.lr, "weight_decay": 0.0}
        decay = {"weight_decay": config.weight_decay, "schedule": diffusion_rate}
        return [
            {"params": groups["values"], **common},
            {"params": groups["diffusion"], **common, **decay},
            {"params": groups["actor"], **common, "schedule": actor_rate},
        ]
