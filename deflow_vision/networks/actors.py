"""Networks that make actions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deflow_vision.flow import Velocity
from deflow_vision.networks.gelu import gelu
from deflow_vision.networks.mlp import MLP, Activation


class VelocityField(nn.Module):
    """v(z, x, t), the velocity at point x and time t of a flow over actions, given features z.

    t enters as a raw scalar, without an embedding; the output is not squashed. Called without time
    it is a map of (z, a) to a vector of A numbers: DeFlow's refinement, FQL's one-step policy.

    Args:
        feature_dim: D.
        action_dim: A.
        hidden_dims: widths of the hidden layers.
        timed: whether the network takes t.
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        *,
        timed: bool = True,
    ) -> None:
        super().__init__()
        in_dim = feature_dim + action_dim + int(timed)
        self.mlp = MLP(in_dim, hidden_dims, action_dim)

    def forward(
        self,
        features: Float[Tensor, "B D"],
        actions: Float[Tensor, "B A"],
        times: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B A"]:
        """Velocities (or displacements) at `actions`.

        Args:
            features: z = encoder(s).
            actions: x, the point on the flow's path, or the base action.
            times: t in [0, 1], or None for a network without time.
        """
        inputs = [features, actions] if times is None else [features, actions, times.unsqueeze(-1)]
        velocities: Tensor = self.mlp(torch.cat(inputs, dim=-1))
        return velocities

    def held(self, features: Float[Tensor, "B D"]) -> Velocity:
        """The field at features that stay, for an integration without gradient."""
        mlp = self.mlp.held(features)
        return lambda actions, times: mlp(torch.cat([actions, times.unsqueeze(-1)], dim=-1))


class GaussianActor(nn.Module):
    """The mean of N(mean(z), I) over actions; squashed by tanh, a deterministic policy.

    The last layer starts ten times smaller than Xavier's, so that the first actions are near 0.

    Args:
        feature_dim: D.
        action_dim: A.
        hidden_dims: widths of the hidden layers.
        squashed: whether the mean is tanh of the last layer, in (-1, 1).
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        *,
        squashed: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = MLP(feature_dim, hidden_dims, action_dim, out_gain=0.1)
        self.squashed = squashed

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B A"]:
        """The means, of z = encoder(s)."""
        means: Tensor = self.mlp(features)
        return means.tanh() if self.squashed else means


class SquashedGaussianActor(nn.Module):
    """Mean and log standard deviation, a row each, of a Gaussian that tanh takes to actions.

    Both come from one trunk. Their layers start ten times smaller than Xavier's.

    Args:
        feature_dim: D.
        action_dim: A.
        hidden_dims: widths of the hidden layers.
        activation: in place of GELU.
        log_std_range: what log std is clipped to.
        learned_log_std_scale: whether log std is k times its layer plus o, with learned scalars k
            and o that start at 1 and -1.
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        *,
        activation: Activation = gelu,
        log_std_range: tuple[float, float] = (-5.0, 2.0),
        learned_log_std_scale: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = MLP(feature_dim, hidden_dims, 2 * action_dim, activation=activation)
        with torch.no_grad():
            for head in self.mlp.out.weight.chunk(2):  # two layers: the fans are those of one
                nn.init.xavier_uniform_(head, gain=0.1)
        self.log_std_range = log_std_range
        self.log_std_scale = nn.Parameter(torch.tensor(1.0)) if learned_log_std_scale else None
        self.log_std_shift = nn.Parameter(torch.tensor(-1.0)) if learned_log_std_scale else None

    def forward(
        self, features: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A"]]:
        """Means and log standard deviations before tanh, of z = encoder(s)."""
        means, log_stds = self.mlp(features).chunk(2, dim=-1)
        if self.log_std_scale is not None and self.log_std_shift is not None:
            log_stds = self.log_std_scale * log_stds + self.log_std_shift
        return means, log_stds.clamp(*self.log_std_range)


def squashed_gaussian_sample(
    means: Float[Tensor, "*B A"], log_stds: Float[Tensor, "*B A"], noises: Float[Tensor, "*B A"]
) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B"]]:
    """Actions a = tanh(u), u = mean + std eps, and log pi(a), the density of a.

    log pi(a) = sum_d log N(u; mean, std^2) - log(1 - tanh(u)^2), of which the second term is
    computed as 2 (log 2 - u - softplus(-2 u)), from u and not from a: exact where a rounds to 1.

    Args:
        means: of the Gaussian before tanh.
        log_stds: its log standard deviations.
        noises: eps, standard normal.
    """
    points = means + log_stds.exp() * noises
    log_normal = -noises.square() / 2 - log_stds - math.log(2 * math.pi) / 2
    log_slope = 2 * (math.log(2) - points - F.softplus(-2 * points))
    return points.tanh(), (log_normal - log_slope).sum(-1)
