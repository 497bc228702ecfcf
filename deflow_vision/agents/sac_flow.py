"""SAC Flow (extra): soft actor-critic with a flow whose steps are noisy, so that log pi is known.

Paper: "SAC Flow: Sample-Efficient Reinforcement Learning of Flow-Based Policies via
Velocity-Reparameterized Sequential Modeling", arXiv 2509.25756, the offline-to-online form. The
policy pi takes K Euler steps of v with Gaussian noise in each, and tanh at the end (see
`deflow_vision.noisy_flow`); v has the form of a transformer's decoder or of a gated unit, through
which the gradient of Q passes all K steps:

    L_FM + alpha mean_{b,d} (pi(s) - a)^2 - mean_b (Q(s, pi(s)) - w log pi(s)),
    y = r + gamma m (agg_i Q_i^-(s', a') - w log pi(a'|s')),    a' ~ pi(s').

w descends w mean_b log pi, as in the released code: it falls while the entropy is below its target,
0, where SAC's own rule has it rise. But log pi is of the whole path, and the size of its noise is
fixed: it stays near 5 an action dimension, so that SAC's rule would let w grow without end. As
released, w decays to 0.

Deviations from the reference:
    - Actions are single steps; the reference has chunks of 5.
    - One optimizer step an update, with all losses and one move of the slow critic. The reference
      makes two on each batch, one with flow matching and one with the policy's other terms, both
      with the critic's loss and a move of its slow copy.
    - Flow matching goes on online, where the reference drops it.
    - The gated form has new noise in each step; the reference's has the same noise in all of them.
    - Attention over one token is written as the linear map that it is: see `networks.sac_flow`.
    - A shared image encoder is the default, trained by all terms of the policy's loss;
      `encoder.sharing=separate` is an encoder a network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
    standard_normal,
)
from deflow_vision.flow import flow_matching_loss
from deflow_vision.losses import Aggregation, aggregate_q, td_target
from deflow_vision.networks.critics import Critic
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, ObservationEncoder
from deflow_vision.networks.sac_flow import DecodedField, GatedField
from deflow_vision.noisy_flow import noisy_flow_sample
from deflow_vision.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class SACFlowConfig(ActorCriticConfig):
    """Hyper-parameters of SAC Flow."""

    alpha: float = 100.0
    """Weight of the squared distance to the data's action."""
    entropy_weight: float = 0.2
    """w: weight of the policy's entropy against Q, at first."""
    tune_entropy_weight: bool = True
    """Whether w learns."""
    q_agg: Aggregation = "mean"
    """How the target's ensemble is aggregated; the policy always climbs the mean."""
    velocity: Literal["transformer", "gated"] = "transformer"
    """The form of v: Flow-T or Flow-G."""
    flow_steps: int = 4
    """K: Euler steps of the policy."""
    noise_std: float = 0.02
    """Standard deviation of a step's noise when acting and in the critic's target."""
    actor_noise_std: float = 0.05
    """The same in the policy's own loss."""
    model_dim: int = 128
    """Width of the transformer; `hidden_dims` are the critic's, and those of the gated form."""
    model_depth: int = 2
    """Its number of layers."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        super().__post_init__()
        check_at_least(self, 0, "alpha")
        check_at_least(self, 1, "flow_steps", "model_depth")
        check_at_least(self, 4, "model_dim")
        check_between(self, 0, float("inf"), "entropy_weight", "noise_std", "actor_noise_std")


class SACFlowNoises(NamedTuple):
    """The draws of one update.

    Attributes:
        next_action: x_0 and each step's noise of the target's action, (B, K + 1, A), normal.
        flow: x_0 of flow matching, (B, A), standard normal.
        times: t of flow matching, (B,), uniform in [0, 1).
        action: x_0 and each step's noise of the action that climbs Q, (B, K + 1, A), normal.
    """

    next_action: Tensor
    flow: Tensor
    times: Tensor
    action: Tensor


class SACFlow(Agent):
    """Critic Q_i with a slow copy, noisy flow v, weight w of the entropy; no slow policy."""

    Config = SACFlowConfig
    config: SACFlowConfig

    def __init__(self, spec: Spec, config: SACFlowConfig, encoder_config: EncoderConfig) -> None:
        super().__init__(spec, config, encoder_config)
        heads = ("critic", "flow")
        self.encoder = ObservationEncoder(spec, encoder_config, heads, gradients_from=("flow",))
        dims = (self.encoder.feature_dim, spec.action_dim)
        self.critic = Critic(*dims, config.hidden_dims, num_critics=config.num_critics)
        self.target_critic = ema_copy(self.critic)
        self.flow: nn.Module
        if config.velocity == "transformer":
            self.flow = DecodedField(*dims, config.model_dim, config.model_depth)
        else:
            self.flow = GatedField(*dims, config.hidden_dims)
        log_weight = torch.tensor(math.log(config.entropy_weight))
        self.log_entropy_weight = nn.Parameter(log_weight, config.tune_entropy_weight)

    def sample_noises(self, batch_size: int, generator: torch.Generator) -> SACFlowNoises:
        """Draw one update's noises on the CPU."""
        dim, shape = self.spec.action_dim, (batch_size, *self._path_shape)
        return SACFlowNoises(
            next_action=torch.randn(shape, generator=generator),
            flow=standard_normal(batch_size, dim, generator),
            times=torch.rand(batch_size, generator=generator),
            action=torch.randn(shape, generator=generator),
        )

    def forward(
        self, batch: Batch, noises: SACFlowNoises, stage: None = None
    ) -> tuple[Losses, Metrics]:
        """All losses of one update: the critic's, the three of the policy, that of w.

        Args:
            batch: B transitions.
            noises: the draws for them.
            stage: nothing; every loss is on from the first update.
        """
        features = self.encoder(batch.observations)
        critic_loss, critic_metrics = self.critic_loss(batch, features, noises)
        flow_loss = flow_matching_loss(
            lambda x, t: self.flow(features["flow"], x, t),
            batch.actions,
            noises.flow,
            noises.times,
        )
        actor_losses, actor_metrics = self.actor_loss(batch, features, noises)
        losses = {"critic/loss": critic_loss, "flow/loss": flow_loss, **actor_losses}
        return losses, {**critic_metrics, **actor_metrics}

    def critic_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: SACFlowNoises
    ) -> tuple[Tensor, Metrics]:
        """mean_{i,b} (Q_i(s, a) - y)^2, y = r + gamma m (agg_i Q_i^-(s', a') - w log pi(a'|s'))."""
        config = self.config
        with torch.no_grad():
            next_features = self.encoder(batch.next_observations, heads=("flow",))["flow"]
            next_actions, log_probs = self.policy(
                next_features, noises.next_action, config.noise_std
            )
            target_features = self.encoder.encode_target(batch.next_observations)
            next_q = self.target_critic(target_features, next_actions)  # (E, B)
            weight = self.log_entropy_weight.exp()
            next_values = aggregate_q(next_q, config.q_agg) - weight * log_probs
            target_q = td_target(batch.rewards, batch.masks, next_values, config.discount)
        q = self.critic(features["critic"], batch.actions)  # (E, B)
        return (q - target_q).square().mean(), q_metrics(q)

    def actor_loss(
        self, batch: Batch, features: dict[str, Tensor], noises: SACFlowNoises
    ) -> tuple[Losses, Metrics]:
        """-mean_b (Q(s, pi) - w log pi) + alpha mean_{b,d} (pi - a)^2, and w's own loss.

        Q is the mean over members, its parameters constant; w is constant but in its own loss,
        w mean_b log pi, where log pi is.
        """
        config = self.config
        actions, log_probs = self.policy(features["flow"], noises.action, config.actor_noise_std)
        q = frozen(self.critic)(features["critic"].detach(), actions).mean(0)  # (B,)
        distance = (actions - batch.actions).square().mean()
        weight = self.log_entropy_weight.exp()
        losses = {
            "actor/q_loss": (weight.detach() * log_probs - q).mean(),
            "actor/penalty": config.alpha * distance,
        }
        if config.tune_entropy_weight:
            losses["entropy/loss"] = weight * log_probs.detach().mean()
        metrics = {
            "actor/distance": distance,
            "actor/q": q.mean(),
            "entropy/value": -log_probs.mean(),
            "entropy/weight": weight,
        }
        return losses, detached(metrics)

    def noise_dim(self, *, explore: bool) -> int:
        """The start of a path, and the noise of each step."""
        return math.prod(self._path_shape)

    def decide(self, observations: Tensor, noises: Tensor, *, explore: bool = False) -> Tensor:
        """One sample of pi a row, noise in its steps included; the same when exploring."""
        paths = noises.view(-1, *self._path_shape)
        return self.policy(self.features(observations, "flow"), paths, self.config.noise_std)[0]

    def policy(self, features: Tensor, noises: Tensor, std: float) -> tuple[Tensor, Tensor]:
        """Actions (B, A) and log pi (B,): features (B, D), noises (B, K + 1, A)."""
        return noisy_flow_sample(lambda x, t: self.flow(features, x, t), noises, std)

    @property
    def _path_shape(self) -> tuple[int, int]:
        return self.config.flow_steps + 1, self.spec.action_dim

    def update_targets(self, step: int) -> None:
        """Mix the critic, and the encoder it reads, into their slow copies."""
        ema_update(self.target_critic, self.critic, self.config.tau)
        self.encoder.update_targets(self.config.tau)
