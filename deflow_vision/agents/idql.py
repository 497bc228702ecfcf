"""IDQL: a diffusion model proposes the data's actions, and the best by IQL's critic is taken.

Paper: Hansen-Estruch et al., "IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion
Policies", arXiv 2304.10573. Q and V are IQL's (arXiv 2110.06169) and judge the data's actions
alone; the noise model eps_hat learns from them too, with dropout,

    mean_b sum_d (eps_hat(s, sqrt(abar_t) a + sqrt(1 - abar_t) eps, t) - eps)^2,

and acting draws N samples mu(s, z) by five denoising steps of its slow copy,

    pi(s) = argmax_k min_i Q_i^-(s, mu(s, z_k)),    z_k ~ N(0, I), k = 1..N.

Deviations from the reference:
    - All networks learn in one step of one optimizer, from the same parameters; the reference steps
      V before it bootstraps Q from it. Slow copies mix the parameters from before the step.
    - From pixels, which the reference does not have, the encoder is shared and trained by the
      diffusion model; what acts reads its slow copy, which moves at `tau`.
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
    best_of,
    check_at_least,
    check_between,
    check_share,
    detached,
    half_cosine,
    q_metrics,
    standard_normal,
)
from deflow_vision.diffusion import ddpm_sample, diffusion_loss
from deflow_vision.losses import aggregate_q, expectile_loss, td_target
from deflow_vision.networks.critics import Critic, Value
from deflow_vision.networks.diffusion import NoiseNetwork
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.types import Batch, Spec, UserError


@dataclass(frozen=True, kw_only=True)
class IDQLConfig(ActorCriticConfig):
    """Hyper-parameters of IDQL."""

    hidden_dims: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of Q and V."""
    expectile: float = 0.9
    """Which expectile of Q over the data's actions V is."""
    num_candidates: int = 32
    """N: samples of the diffusion model of which acting takes the best."""
    diffusion_steps: int = 5
    """T: steps from noise to an action."""
    diffusion_width: int = 256
    """Width of the noise model; its blocks are four times as wide inside."""
    diffusion_blocks: int = 3
    """Residual blocks of the noise model."""
    dropout: float = 0.1
    """Share of what enters a block of the noise model that training sets to 0."""
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
        check_at_least(self, 1, "num_candidates", "diffusion_steps", "decay_steps")
        check_at_least(self, 1, "diffusion_width", "diffusion_blocks")
        check_at_least(self, 0, "weight_decay")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}, must lie in [0, 1)")
        check_share(self, "diffusion_tau")


class IDQLNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        diffusion: eps of the diffusion loss, (B, A), standard normal.
        steps: t - 1 of its steps, (B,), uniform in 0..T-1.
        keep: where dropout leaves what enters a block, (B, K, W), true with probability 1 - p.
    """

    diffusion: Tensor
    steps: Tensor
    keep: Tensor


class IDQL(Agent):
    """Critic Q_i with a slow copy, value V, noise model eps_hat with a slow copy."""

    Config = IDQLConfig
    config: IDQLConfig

    def __init__(self, spec: Spec, config: IDQLConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        heads = ("critic", "value", "diffusion")
        self.encoder = ObservationEncoder(
            spec,
            encoder_config,
            heads=heads,
            gradients_from=("diffusion",),
            targets=("critic", "diffusion"),
        )
        feature_dim, dims = self.encoder.feature_dim, config.hidden_dims
        self.critic = Critic(
            feature_dim,
            spec.action_dim,
            dims,
            config.num_critics,
            layer_norm=False,
            activation=F.relu,
        )
        self.target_critic = ema_copy(self.critic)
        self.value = Value(feature_dim, dims, norm="input", activation=F.relu)
        self.diffusion = NoiseNetwork(
            feature_dim,
            spec.action_dim,
            config.diffusion_width,
            config.diffusion_blocks,
            config.dropout,
        )
        self.target_diffusion = ema_copy(self.diffusion)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> IDQLNoises:
        """Draw one update's noises on the CPU."""
        config = self.config
        shape = (batch_size, config.diffusion_blocks, config.diffusion_width)
        return IDQLNoises(
            diffusion=standard_normal(batch_size, self.spec.action_dim, generator),
            steps=torch.randint(config.diffusion_steps, (batch_size,), generator=generator),
            keep=torch.rand(shape, generator=generator) >= config.dropout,
        )

    def forward(
        self, batch: Batch, noises: IDQLNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: V's, the critic's, the noise model's.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
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
        self, batch: Batch, features: dict[str, Tensor], noises: IDQLNoises
    ) -> Tensor:
        """The denoising loss on the data's actions, a sum over dimensions; with dropout."""
        return diffusion_loss(
            lambda x, t: self.diffusion(features["diffusion"], x, t, noises.keep),
            batch.actions,
            noises.diffusion,
            noises.steps.float(),
            self.config.diffusion_steps,
        )

    def noise_dim(self, *, explore: bool) -> int:
        """N paths of T steps."""
        return self.config.num_candidates * self.config.diffusion_steps * self.spec.action_dim

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """The best of N samples by the least slow critic; the same when exploring."""
        num, dim = self.config.num_candidates, self.spec.action_dim
        features = self.encoder.encode_targets(observations, heads=("critic", "diffusion"))
        repeated = {head: found.repeat_interleave(num, 0) for head, found in features.items()}
        paths = noises.view(-1, self.config.diffusion_steps, dim)  # (B N, T, A)
        candidates = ddpm_sample(
            lambda x, t: self.target_diffusion(repeated["diffusion"], x, t), paths
        )
        q = aggregate_q(self.target_critic(repeated["critic"], candidates), "min")
        return best_of(candidates.view(-1, num, dim), q.view(-1, num))

    def update_targets(self, step: int) -> None:
        """Mix critic, noise model and the encoders that they read into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        ema_update(self.target_diffusion, self.diffusion, self.config.diffusion_tau)
        self.encoder.update_targets(self.config.tau)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Q and V at a constant rate; the noise model, with decay, at one that falls to 0."""
        groups: dict[bool, list[Tensor]] = {False: [], True: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[name.startswith(("diffusion.", "encoder.encoders.diffusion."))].append(
                    parameter
                )
        config = self.config
        return [
            {"params": groups[False], "lr": config.lr, "weight_decay": 0.0},
            {
                "params": groups[True],
                "lr": config.lr,
                "weight_decay": config.weight_decay,
                "schedule": lambda step: half_cosine(step, config.decay_steps),
            },
        ]
