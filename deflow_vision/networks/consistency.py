"""The network inside a consistency policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deflow_vision.networks.mlp import MLP, uniform_init_

TIME_DIM = 16


class ConsistencyNetwork(nn.Module):
    """F(z, x, t): a Mish MLP on features, point and an embedding of the time, as CAC has it.

    The embedding is sines and cosines of t at 8 frequencies from 1 down to 1/10,000, then two
    layers. PyTorch's initial weights; float32 under autocast too, since x may be hundreds.

    Args:
        feature_dim: D.
        action_dim: A.
        hidden_dims: widths of the hidden layers.
    """

    frequencies: Tensor

    def __init__(self, feature_dim: int, action_dim: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        half = TIME_DIM // 2
        exponents = torch.arange(half) / (half - 1)
        frequencies = torch.exp(-math.log(10_000) * exponents)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time_mlp = MLP(TIME_DIM, (2 * TIME_DIM,), TIME_DIM, activation=F.mish)
        self.mlp = MLP(
            feature_dim + action_dim + TIME_DIM, hidden_dims, action_dim, activation=F.mish
        )
        uniform_init_(self.time_mlp)
        uniform_init_(self.mlp)

    def forward(
        self, features: Float[Tensor, "B D"], x: Float[Tensor, "B A"], times: Float[Tensor, " B"]
    ) -> Float[Tensor, "B A"]:
        """F at points x and times t of z = encoder(s)."""
        with torch.autocast(x.device.type, enabled=False):
            angles = times.unsqueeze(-1) * self.frequencies
            embedding = self.time_mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))
            inputs = torch.cat([x, embedding, features.float()], dim=-1)
            return self.mlp(inputs)  # type: ignore[no-any-return]
