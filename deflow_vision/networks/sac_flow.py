"""The velocity fields of SAC Flow: forms of sequence models, for gradients through many steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deflow_vision.networks.gelu import gelu
from deflow_vision.networks.mlp import LAYER_NORM_EPS, MLP, fan_in_normal_
from deflow_vision.networks.products import Linear

GATE_DIM = 256
GATE_BIAS = 5.0
"""The gate is almost open at first."""


class DecodedField(nn.Module):
    """v(z, x, t) by a transformer's decoder: "Flow-T".

    The token of point and time attends to itself alone, as others' points of the path are masked,
    and to one token of the state. The softmax of one score is 1: queries and keys have no effect,
    whatever the number of heads, and are left out; what is left are the layers of value and output.

    Args:
        feature_dim: D.
        action_dim: A.
        dim: width of the tokens.
        depth: number of layers.
    """

    def __init__(self, feature_dim: int, action_dim: int, dim: int, depth: int) -> None:
        super().__init__()
        self.state = _swish_mlp(feature_dim, dim // 2, dim)
        self.point = _linear(action_dim, dim)
        self.time = _swish_mlp(1, dim // 4, dim // 2, dim)
        self.layers = nn.ModuleList(_DecoderLayer(dim) for _ in range(depth))
        self.out = _linear(dim, action_dim)

    def forward(
        self, features: Float[Tensor, "B D"], x: Float[Tensor, "B A"], times: Float[Tensor, " B"]
    ) -> Float[Tensor, "B A"]:
        """Velocities at points x and times t of z = encoder(s)."""
        state = self.state(features)
        token = self.point(x) + self.time(times.unsqueeze(-1))
        for layer in self.layers:
            token = layer(token, state)
        with torch.autocast(x.device.type, enabled=False):
            return self.out(token.float())  # type: ignore[no-any-return]


class GatedField(nn.Module):
    """v(z, x, t) = sigmoid(gate(z, x, t)) (f(z, x, t) - x), a step of a gated unit: "Flow-G".

    Args:
        feature_dim: D.
        action_dim: A.
        hidden_dims: widths of the hidden layers of f.
    """

    def __init__(self, feature_dim: int, action_dim: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        in_dim = feature_dim + action_dim + 1
        self.mlp = MLP(in_dim, hidden_dims, action_dim)
        self.gate_in = _linear(in_dim, GATE_DIM)
        self.gate_out = Linear(GATE_DIM, action_dim)
        nn.init.zeros_(self.gate_out.weight)
        nn.init.constant_(self.gate_out.bias, GATE_BIAS)

    def forward(
        self, features: Float[Tensor, "B D"], x: Float[Tensor, "B A"], times: Float[Tensor, " B"]
    ) -> Float[Tensor, "B A"]:
        """Velocities at points x and times t of z = encoder(s)."""
        inputs = torch.cat([features, x, times.unsqueeze(-1)], dim=-1)
        hidden = F.silu(self.gate_in(inputs))
        with torch.autocast(x.device.type, enabled=False):
            gate = self.gate_out(hidden.float()).sigmoid()
        return gate * (self.mlp(inputs) - x)  # type: ignore[no-any-return]


class _DecoderLayer(nn.Module):
    """Attention of the token to itself and to the state, and an MLP, each added, then normed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.own = nn.Sequential(_linear(dim, dim), _linear(dim, dim))  # value, output
        self.cross = nn.Sequential(_linear(dim, dim), _linear(dim, dim))
        self.mlp_in = _linear(dim, 4 * dim)
        self.mlp_out = _linear(4 * dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=LAYER_NORM_EPS) for _ in range(3))

    def forward(self, token: Tensor, state: Tensor) -> Tensor:
        own_norm, cross_norm, mlp_norm = self.norms
        token = own_norm(token + self.own(token))
        token = cross_norm(token + self.cross(state))
        return mlp_norm(token + self.mlp_out(gelu(self.mlp_in(token))))  # type: ignore[no-any-return]


def _linear(in_dim: int, out_dim: int) -> Linear:
    return fan_in_normal_(Linear(in_dim, out_dim))


def _swish_mlp(*dims: int) -> nn.Sequential:
    layers: list[nn.Module] = [_linear(dims[0], dims[1])]
    for in_dim, out_dim in pairwise(dims[1:]):
        layers += [nn.SiLU(), _linear(in_dim, out_dim)]
    return nn.Sequential(*layers)
