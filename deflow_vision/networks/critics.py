"""Networks that judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deflow_vision.networks.mlp import EnsembleMLP


class Critic(nn.Module):
    """Q_i(z, a), i = 1..E: independent members, LayerNorm on, on the same features.

    Args:
        feature_dim: D.
        action_dim: A.
        hidden_dims: widths of the hidden layers.
        num_critics: E.
    """

    def __init__(
        self, feature_dim: int, action_dim: int, hidden_dims: Sequence[int], num_critics: int = 2
    ) -> None:
        super().__init__()
        self.mlp = EnsembleMLP(
            num_critics, feature_dim + action_dim, hidden_dims, 1, layer_norm=True
        )

    def forward(
        self, features: Float[Tensor, "B D"], actions: Float[Tensor, "B A"]
    ) -> Float[Tensor, "E B"]:
        """Every member's value of `actions`.

        Args:
            features: z = encoder(s).
            actions: a in [-1, 1].
        """
        values: Tensor = self.mlp(torch.cat([features, actions], dim=-1))  # (E, B, 1)
        return values.squeeze(-1)
