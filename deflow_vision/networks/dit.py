"""A diffusion transformer for actions, of one token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deflow_vision.networks.gelu import gelu
from deflow_vision.networks.mlp import fan_in_normal_
from deflow_vision.networks.products import Linear

NUM_FREQUENCIES = 128
MAX_PERIOD = 10_000
INIT_SCALE = 0.01
RESIDUAL_SCALE = 0.1
"""What a block's change of the token is multiplied by, beside its own gates."""


class DiT(nn.Module):
    """g(z, x, t): features and point as one token, modulated by an embedding of the time.

    The transformer of MeanFlowQL. Its attention is over that one token: the softmax of one score is
    1, so that queries and keys have no effect, whatever the number of heads, and are left out; what
    is left are the layers of value and output. At first the output is 0: the last layer and all
    modulations begin at zero. float32 under autocast too, since the losses differentiate it in t.

    Args:
        feature_dim: D.
        action_dim: A.
        dim: width of the token.
        depth: number of blocks.
    """

    frequencies: Tensor

    def __init__(self, feature_dim: int, action_dim: int, dim: int, depth: int) -> None:
        super().__init__()
        exponents = torch.arange(NUM_FREQUENCIES) / NUM_FREQUENCIES
        frequencies = torch.exp(-math.log(MAX_PERIOD) * exponents)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed = _linear(feature_dim + action_dim, dim)
        self.position = nn.Parameter(0.005 * torch.randn(dim))
        self.time_in = _linear(2 * NUM_FREQUENCIES, dim)
        self.time_out = _linear(dim, dim)
        self.blocks = nn.ModuleList(_Block(dim) for _ in range(depth))
        self.norm = _RMSNorm(dim)
        self.modulation = _zero_linear(dim, 2 * dim)
        self.out = _zero_linear(dim, action_dim)

    def forward(
        self, features: Float[Tensor, "B D"], x: Float[Tensor, "B A"], times: Float[Tensor, " B"]
    ) -> Float[Tensor, "B A"]:
        """The values of g at points x and times t of z = encoder(s)."""
        with torch.autocast(x.device.type, enabled=False):
            angles = times.unsqueeze(-1) * self.frequencies
            waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
            condition = F.silu(self.time_out(F.silu(self.time_in(waves))))
            token = self.embed(torch.cat([features.float(), x], dim=-1)) + self.position
            for block in self.blocks:
                token = token + RESIDUAL_SCALE * block(token, condition)
            shift, scale = self.modulation(condition).chunk(2, dim=-1)
            return self.out(_modulate(self.norm(token), shift, scale))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """What attention and MLP add to a token, each modulated and gated by the condition."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.modulation = _zero_linear(dim, 6 * dim)
        self.attention_norm = _RMSNorm(dim)
        self.value = _linear(dim, dim)
        self.project = _linear(dim, dim)
        self.mlp_norm = _RMSNorm(dim)
        self.mlp_in = _linear(dim, 4 * dim)
        self.mlp_out = _linear(4 * dim, dim)

    def forward(self, token: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition).chunk(6, -1)
        attended = self.project(self.value(_modulate(self.attention_norm(token), shift, scale)))
        change = gate * attended
        hidden = _modulate(self.mlp_norm(token + change), mlp_shift, mlp_scale)
        return change + mlp_gate * self.mlp_out(gelu(self.mlp_in(hidden)))  # type: ignore[no-any-return]


class _RMSNorm(nn.Module):
    """x / rms(x) sqrt(dim) g: the root of the width is on top of the usual norm, as there."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        inverse = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return x * inverse * (math.sqrt(x.shape[-1]) * self.gain)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _linear(in_dim: int, out_dim: int) -> Linear:
    return fan_in_normal_(Linear(in_dim, out_dim), INIT_SCALE)


def _zero_linear(in_dim: int, out_dim: int) -> Linear:
    layer = Linear(in_dim, out_dim)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
