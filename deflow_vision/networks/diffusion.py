"""The network inside a diffusion model of actions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deflow_vision.networks.mlp import LAYER_NORM_EPS, MLP
from deflow_vision.networks.products import Linear

TIME_DIM = 128
FREQUENCY_DEVIATION = 0.2


class NoiseNetwork(nn.Module):
    """eps_hat(z, x, t): a residual network on point, features and an embedding of t, as IDQL's.

    The embedding is cosines and sines of t at 64 learned frequencies, then two layers. A layer,
    blocks x + W_2 h(W_1 LayerNorm(dropout(x))), h and a layer follow, with h = swish and blocks
    four times as wide inside.

    Args:
        feature_dim: D.
        action_dim: A.
        width: W of the residual stream.
        num_blocks: K.
        dropout: share of the numbers that enter a block which training sets to 0.
    """

    def __init__(
        self, feature_dim: int, action_dim: int, width: int, num_blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(FREQUENCY_DEVIATION * torch.randn(TIME_DIM // 2))
        time_widths = (2 * TIME_DIM, 2 * TIME_DIM)
        self.time_mlp = MLP(TIME_DIM, time_widths[:1], time_widths[1], activation=F.silu)
        self.inward = Linear(action_dim + feature_dim + time_widths[1], width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(num_blocks))
        self.out = Linear(width, action_dim)
        for layer in (self.inward, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.keep_share = 1 - dropout

    def forward(
        self,
        features: Float[Tensor, "B D"],
        x: Float[Tensor, "B A"],
        times: Float[Tensor, " B"],
        keep: Bool[Tensor, "B K W"] | None = None,
    ) -> Float[Tensor, "B A"]:
        """The noise within points x.

        Args:
            features: z = encoder(s).
            x: points of the noising path.
            times: the index of each one's step.
            keep: where dropout leaves what enters a block; everywhere by default.
        """
        angles = 2 * math.pi * times.unsqueeze(-1) * self.frequencies
        embedding = self.time_mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        stream = self.inward(torch.cat([x, features, embedding], dim=-1))
        for i, block in enumerate(self.blocks):
            kept = stream if keep is None else stream * keep[:, i] / self.keep_share
            stream = stream + block(kept)
        with torch.autocast(x.device.type, enabled=False):
            return self.out(F.silu(stream.float()))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """W_2 swish(W_1 LayerNorm(x)), with flax's own initial weights, as the reference has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.wide = Linear(width, 4 * width)
        self.narrow = Linear(4 * width, width)
        for layer in (self.wide, self.narrow):
            # A normal of variance 1 / in, cut off at two deviations and widened to make up for it.
            deviation = 1 / math.sqrt(layer.in_features) / 0.87962566
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.wide(self.norm(x)))
        return self.narrow(hidden)  # type: ignore[no-any-return]
