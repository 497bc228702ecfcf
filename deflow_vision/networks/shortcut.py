"""The network inside a shortcut policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deflow_vision.networks.mlp import MLP


class ShortcutField(nn.Module):
    """v(z, x, t, h): the mean velocity over one of 2^h steps, from point x at time t, given z.

    t and h enter as raw scalars, without an embedding; the output is not squashed.

    Args:
        feature_dim: D.
        action_dim: A.
        hidden_dims: widths of the hidden layers.
    """

    def __init__(self, feature_dim: int, action_dim: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        self.mlp = MLP(feature_dim + action_dim + 2, hidden_dims, action_dim)

    def forward(
        self,
        features: Float[Tensor, "B D"],
        x: Float[Tensor, "B A"],
        times: Float[Tensor, " B"],
        levels: Float[Tensor, " B"],
    ) -> Float[Tensor, "B A"]:
        """Velocities at points `x`.

        Args:
            features: z = encoder(s).
            x: the point on the path.
            times: t in [0, 1].
            levels: h, log2 of the number of steps.
        """
        inputs = [features, x, times.unsqueeze(-1), levels.unsqueeze(-1)]
        return self.mlp(torch.cat(inputs, dim=-1))  # type: ignore[no-any-return]
