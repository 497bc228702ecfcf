"""floq's critic: a velocity field over returns, whose integral is Q."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deflow_vision.networks.mlp import EnsembleMLP

TimeEmbedding = Literal["cos", "fourier"]

NUM_EDGES = 51
SIGMA_IN_BINS = 16.0
REWARD_OFFSET = 0.01
"""By how much rewards may leave their range before their returns leave the bins."""
NUM_FREQUENCIES = 64
MARGIN_IN_SIGMAS = 3.0
"""How far outside the bins a return is still told from others."""


def hl_gauss(
    values: Float[Tensor, "*R"], edges: Float[Tensor, " N"], sigma: float
) -> Float[Tensor, "*R M"]:
    """The masses of N(z, sigma^2) in M = N - 1 bins, divided by the mass in all of them.

    Source: Farebrother et al., "Stop Regressing" (arXiv 2403.03950), sec. 3.1.

    Args:
        values: z.
        edges: of the bins, ascending.
        sigma: the standard deviation.
    """
    below = torch.erf((edges - values.unsqueeze(-1)) / (math.sqrt(2) * sigma))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


class FloqCritic(nn.Module):
    """v_i(s, a, z, t), i = 1..E: how fast a return z moves at time t of its flow.

    A return starts at kappa times a uniform draw from the range of returns, and its integral to
    t = 1 is a value of (s, a). z enters as the masses of a wide Gaussian in 50 bins, t as cos(t) or
    as cos(pi k t), k = 1..64. LayerNorm is on.

    Returns lie between r / (1 - gamma) of the least and of the greatest reward, and of 0: an
    episode that ends earns nothing from then on. (The reference takes the range of rewards from a
    buffer padded with zeros, to the same effect.)

    Args:
        feature_dim: D.
        action_dim: A.
        hidden_dims: widths of the hidden layers, at least one.
        num_critics: E.
        reward_range: the least and the greatest reward.
        discount: gamma.
        noise_coverage: kappa.
        time_embedding: "cos" or "fourier".
    """

    edges: Tensor

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        num_critics: int = 2,
        *,
        reward_range: tuple[float, float],
        discount: float,
        noise_coverage: float = 0.1,
        time_embedding: TimeEmbedding = "cos",
    ) -> None:
        super().__init__()
        horizon = 1 / (1 - discount)
        low, high = min(reward_range[0], 0.0), max(reward_range[1], 0.0)
        q_min, q_max = (low - REWARD_OFFSET) * horizon, (high + REWARD_OFFSET) * horizon
        self.sigma = SIGMA_IN_BINS * (q_max - q_min) / (NUM_EDGES - 1)
        margin = MARGIN_IN_SIGMAS * self.sigma
        self.limits = (q_min - margin, q_max + margin)
        self.start_range = (noise_coverage * low * horizon, noise_coverage * high * horizon)
        self.num_critics = num_critics
        self.num_frequencies = NUM_FREQUENCIES if time_embedding == "fourier" else 0
        self.register_buffer("edges", torch.linspace(q_min, q_max, NUM_EDGES), persistent=False)
        in_dim = feature_dim + action_dim + NUM_EDGES - 1 + max(self.num_frequencies, 1)
        self.mlp = EnsembleMLP(num_critics, in_dim, hidden_dims, 1, layer_norm=True)

    def forward(
        self,
        features: Float[Tensor, "B D"],
        actions: Float[Tensor, "B M A"],
        returns: Float[Tensor, "B N"],
        times: Float[Tensor, "B N"],
    ) -> Float[Tensor, "E B N"]:
        """Every member's velocity at N returns a state.

        Args:
            features: of the states.
            actions: a in [-1, 1], M = N of them, or M = 1 for all.
            returns: z.
            times: t in [0, 1].
        """
        members = returns.expand(self.num_critics, *returns.shape)
        return self._velocities(self._given(features, actions, returns), members, times)

    def integrate(
        self,
        features: Float[Tensor, "B D"],
        actions: Float[Tensor, "B M A"],
        starts: Float[Tensor, "B N"],
        num_steps: int,
    ) -> Float[Tensor, "E B N"]:
        """Every member's Z: K Euler steps of its own velocity, z <- z + v(s, a, z, k/K) / K.

        The first layer's share of state and action is the same in all steps, and computed once.

        Args:
            features: of the states.
            actions: a in [-1, 1], M = N of them, or M = 1 for all.
            starts: z at t = 0, the same for all members.
            num_steps: K.
        """
        given = self._given(features, actions, starts)
        returns = starts.expand(self.num_critics, *starts.shape)
        for k in range(num_steps):
            times = torch.full_like(starts, k / num_steps)
            returns = returns + self._velocities(given, returns, times) / num_steps
        return returns

    def starts(self, uniforms: Tensor) -> Tensor:
        """Returns at t = 0: kappa (r_min + u (r_max - r_min)) / (1 - gamma), u in [0, 1)."""
        low, high = self.start_range
        return low + uniforms * (high - low)

    def _given(self, features: Tensor, actions: Tensor, returns: Tensor) -> Tensor:
        """The first layer's share of (s, a), (E, B N, width), for returns (B, N)."""
        repeated = features.unsqueeze(1).expand(-1, actions.shape[1], -1)
        share = self.mlp.share(torch.cat([repeated, actions], dim=-1).flatten(0, 1))
        return share.repeat_interleave(returns.shape[1] // actions.shape[1], 1)

    def _velocities(self, given: Tensor, returns: Tensor, times: Tensor) -> Tensor:
        """(E, B, N) at returns (E, B, N) and times (B, N)."""
        # Far from all bins the masses would be 0 / 0.
        masses = hl_gauss(returns.clamp(*self.limits), self.edges, self.sigma)  # (E, B, N, 50)
        embedded = self._embed(times).expand(self.num_critics, -1, -1, -1)
        inputs = torch.cat([masses, embedded], dim=-1).flatten(1, 2)
        velocities: Tensor = self.mlp(inputs, given)  # (E, B N, 1)
        return velocities.view(returns.shape)

    def _embed(self, times: Tensor) -> Tensor:
        """Times (B, N) as (B, N, 1) or (B, N, 64)."""
        if not self.num_frequencies:
            return times.cos().unsqueeze(-1)
        multiples = torch.arange(1, self.num_frequencies + 1, device=times.device)
        return (math.pi * multiples * times.unsqueeze(-1)).cos()
