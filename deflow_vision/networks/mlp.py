"""Multilayer perceptrons as the reference builds them (FQL, OGBench).

Each hidden layer is Dense -> GELU in its tanh approximation -> LayerNorm (eps 1e-6) where asked
(methods from elsewhere have another activation); kernels are Xavier uniform, biases zero. Under
autocast the trunk runs in bfloat16 and the last layer in float32: in bfloat16 a Q of -97.3 would
become -97.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deflow_vision.networks.gelu import gelu
from deflow_vision.networks.products import Linear, fuses, held, linear, linear_gelu

LAYER_NORM_EPS = 1e-6


Activation = Callable[[Tensor], Tensor]
"""An elementwise function."""

Layer = tuple[Tensor, Tensor, nn.Module]
"""A hidden layer: weight (O, I), bias (O,), norm."""


def _activated(activation: Activation, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A hidden layer without its norm, (..., I) to (..., O)."""
    if activation is gelu:
        return linear_gelu(x, weight, bias)
    return activation(linear(x, weight, bias))


class MLP(nn.Module):
    """x -> W_L h(... h(W_1 x)), with h = GELU (then LayerNorm).

    Args:
        in_dim: width of the input.
        hidden_dims: widths of the hidden layers.
        out_dim: width of the output.
        layer_norm: normalise after each activation.
        activation: in place of GELU.
        out_gain: what the last layer's initial kernel is multiplied by.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        *,
        layer_norm: bool = False,
        activation: Activation = gelu,
        out_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        widths = [in_dim, *hidden_dims]
        self.hidden = nn.ModuleList(Linear(i, o) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, eps=LAYER_NORM_EPS) if layer_norm else nn.Identity()
            for width in hidden_dims
        )
        self.out = Linear(widths[-1], out_dim)
        for layer in [*self.hidden, self.out]:
            nn.init.xavier_uniform_(layer.weight, gain=out_gain if layer is self.out else 1.0)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_dim) to (..., out_dim) float32."""
        return self._map(self._layers(), x)

    def held(self, leading: Tensor) -> Callable[[Tensor], Tensor]:
        """The map of the other columns of the input, for many calls without gradient.

        What the leading columns (B, D) add to the first layer is computed once for all calls, and
        weights are cast once.
        """
        (weight, bias, norm), *layers = self._layers()
        columns = leading.shape[-1]
        with torch.autocast(leading.device.type, enabled=False):
            given = linear(leading.float(), weight[:, :columns], bias)
        layers = [(held(weight), held(bias), norm) for weight, bias, norm in layers]
        return partial(self._map_held, given, weight[:, columns:].t(), norm, layers)

    def _map_held(
        self, given: Tensor, kernel: Tensor, norm: nn.Module, layers: Sequence[Layer], x: Tensor
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = self.activation(torch.addmm(given, x, kernel))
        return self._map(layers, norm(x))

    def _layers(self) -> list[Layer]:
        layers = [cast(Linear, layer) for layer in self.hidden]
        return [(layer.weight, layer.bias, n) for layer, n in zip(layers, self.norms, strict=True)]

    def _map(self, layers: Sequence[Layer], x: Tensor) -> Tensor:
        for weight, bias, norm in layers:
            x = norm(_activated(self.activation, x, weight, bias))
        with torch.autocast(x.device.type, enabled=False):
            return self.out(x.float())  # type: ignore[no-any-return]


class EnsembleMLP(nn.Module):
    """E independent MLPs on the same input, their weights stacked: on a GPU one batched product a
    layer; on a CPU one member after the other, which spares what lies between the products.

    Args:
        num_members: E.
        in_dim: width of the input.
        hidden_dims: widths of the hidden layers.
        out_dim: width of the output.
        layer_norm: normalise after each activation, with a scale and a shift a member.
        activation: in place of GELU.
    """

    def __init__(
        self,
        num_members: int,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        *,
        layer_norm: bool = False,
        activation: Activation = gelu,
    ) -> None:
        super().__init__()
        self.activation = activation
        widths = [in_dim, *hidden_dims, out_dim]
        self.weights = nn.ParameterList(
            _stacked_xavier(num_members, i, o) for i, o in pairwise(widths)
        )
        self.biases = nn.ParameterList(torch.zeros(num_members, 1, o) for o in widths[1:])
        normed = hidden_dims if layer_norm else ()
        self.norm_scales = nn.ParameterList(torch.ones(num_members, 1, o) for o in normed)
        self.norm_shifts = nn.ParameterList(torch.zeros(num_members, 1, o) for o in normed)
        self.num_members = num_members

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Map x (B, in_dim), the same for all members, to (E, B, out_dim) float32.

        With `given`, what `share` made of the leading columns, x is the other columns, of every
        member (E, B, ...).
        """
        x = x.expand(self.num_members, *x.shape[-2:])
        if fuses(x):
            return self._one_by_one(x, given)
        for i in range(len(self.weights) - 1):
            weights, biases = self.weights[i], self.biases[i]
            if i == 0 and given is not None:
                weights, biases = weights[:, -x.shape[-1] :], given
            x = self.activation(torch.baddbmm(biases, x, weights))
            if self.norm_scales:
                x = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
                x = torch.addcmul(self.norm_shifts[i], x, self.norm_scales[i])
        with torch.autocast(x.device.type, enabled=False):
            return torch.baddbmm(self.biases[-1], x.float(), self.weights[-1])

    def _one_by_one(self, x: Tensor, given: Tensor | None) -> Tensor:
        """`forward` for x (E, B, ...), a member after the other."""
        members = [
            tuple(parameter.unbind() for parameter in parameters)
            for parameters in (self.weights, self.biases, self.norm_scales, self.norm_shifts)
        ]
        outputs = []
        for member, rows in enumerate(x):
            weights, biases, scales, shifts = ([layer[member] for layer in m] for m in members)
            for i, weight in enumerate(weights[:-1]):
                if i == 0 and given is not None:
                    kernel = weight[-rows.shape[-1] :].t()
                    rows = self.activation(given[member] + linear(rows, kernel))
                else:
                    rows = _activated(self.activation, rows, weight.t(), biases[i][0])
                if scales:
                    scale, shift = scales[i][0], shifts[i][0]
                    rows = F.layer_norm(rows, rows.shape[-1:], scale, shift, LAYER_NORM_EPS)
            with torch.autocast(x.device.type, enabled=False):
                outputs.append(linear(rows.float(), weights[-1].t(), biases[-1][0]))
        return torch.stack(outputs)

    def share(self, x: Tensor) -> Tensor:
        """What x (B, ...), leading columns of the input, adds to the first layer's products.

        (E, B, width), bias included: for inputs of which a part stays while the others change.
        """
        x = x.expand(self.num_members, *x.shape)
        return torch.baddbmm(self.biases[0], x, self.weights[0][:, : x.shape[-1]])


def _stacked_xavier(num_members: int, in_dim: int, out_dim: int) -> Tensor:
    weight = torch.empty(num_members, in_dim, out_dim)
    for member in weight:  # a member at a time: the fans are those of one member
        nn.init.xavier_uniform_(member)
    return weight


def uniform_init_(mlp: MLP | EnsembleMLP) -> None:
    """Draw weights and biases again as PyTorch does, U(-1 / sqrt(in), 1 / sqrt(in)).

    For methods from code that keeps PyTorch's own initial weights.
    """
    if isinstance(mlp, MLP):
        for layer in [*mlp.hidden, mlp.out]:
            layer.reset_parameters()
        return
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        bound = 1 / math.sqrt(weight.shape[1])
        nn.init.uniform_(weight, -bound, bound)
        nn.init.uniform_(bias, -bound, bound)


def fan_in_normal_(layer: Linear, scale: float = 1.0) -> Linear:
    """Draw kernels from a normal of variance scale / in, cut at two deviations; zero biases.

    Flax's variance scaling "fan_in", "truncated_normal", its default where scale is 1. The variance
    is that of what is left by the cut.
    """
    std = math.sqrt(scale / layer.in_features) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer


def orthogonal_init_(mlp: MLP | EnsembleMLP, out_gain: float = 0.01) -> None:
    """Draw kernels again as orthogonal matrices, times sqrt(2) but for the last; zero biases.

    Args:
        mlp: the network.
        out_gain: what the last layer's kernel is multiplied by.
    """
    if isinstance(mlp, MLP):
        layers = [*mlp.hidden, mlp.out]
        kernels: list[list[Tensor]] = [[layer.weight] for layer in layers]
        biases = [layer.bias for layer in layers]
    else:
        kernels = [list(weight.detach()) for weight in mlp.weights]  # a member at a time
        biases = list(mlp.biases)
    for members, bias in zip(kernels, biases, strict=True):
        for kernel in members:
            nn.init.orthogonal_(kernel, out_gain if members is kernels[-1] else math.sqrt(2))
        nn.init.zeros_(bias)
