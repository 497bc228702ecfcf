"""Networks that make actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deflow_vision.networks.mlp import MLP


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
        return self.mlp(torch.cat(inputs, dim=-1))  # type: ignore[no-any-return]


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
