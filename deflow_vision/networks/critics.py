"""Networks that judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deflow_vision.networks.gelu import gelu
from deflow_vision.networks.mlp import LAYER_NORM_EPS, MLP, Activation, EnsembleMLP


class Critic(nn.Module):
    """Q_i(z, a), i = 1..E: independent members on the same features.

    Args:
        feature_dim: D.
        action_dim: A.
        hidden_dims: widths of the hidden layers.
        num_critics: E.
        layer_norm: normalise after each activation.
        activation: in place of GELU.
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int],
        num_critics: int = 2,
        *,
        layer_norm: bool = True,
        activation: Activation = gelu,
    ) -> None:
        super().__init__()
        self.mlp = EnsembleMLP(
            num_critics,
            feature_dim + action_dim,
            hidden_dims,
            1,
            layer_norm=layer_norm,
            activation=activation,
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


class Value(nn.Module):
    """V(z), LayerNorm on.

    Args:
        feature_dim: D.
        hidden_dims: widths of the hidden layers.
        norm: where LayerNorm is, after each activation or on z alone.
        activation: in place of GELU.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_dims: Sequence[int],
        *,
        norm: Literal["hidden", "input"] = "hidden",
        activation: Activation = gelu,
    ) -> None:
        super().__init__()
        hidden = norm == "hidden"
        self.norm = nn.Identity() if hidden else nn.LayerNorm(feature_dim, eps=LAYER_NORM_EPS)
        self.mlp = MLP(feature_dim, hidden_dims, 1, layer_norm=hidden, activation=activation)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """The value of each state, of z = encoder(s)."""
        return self.mlp(self.norm(features)).squeeze(-1)  # type: ignore[no-any-return]
