"""The IMPALA encoder as the reference builds it (OGBench, FQL)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deflow_vision.networks.gelu import gelu
from deflow_vision.networks.products import Linear


class Impala(nn.Module):
    """Residual convolutional stacks, flattened, Dense, GELU (Espeholt et al., arXiv 1802.01561).

    Each stack: conv 3x3, max-pool 3x3 of stride 2, then residual blocks (ReLU, conv, ReLU, conv,
    add). Kernels are Xavier uniform, biases zero, nothing is normalised. Pixels are divided by 255.

    Args:
        observation_shape: (H, W, C), C already times the frame stack.
        stack_sizes: channels of each stack.
        num_blocks: residual blocks a stack.
        feature_dim: D, the width of the last layer.
    """

    def __init__(
        self,
        observation_shape: tuple[int, int, int],
        stack_sizes: Sequence[int] = (16, 32, 32),
        num_blocks: int = 2,
        feature_dim: int = 512,
    ) -> None:
        super().__init__()
        height, width, channels = observation_shape
        self.feature_dim = feature_dim
        self.stacks = nn.ModuleList()
        for size in stack_sizes:
            conv = nn.Conv2d if self.stacks else _PixelConv
            self.stacks.append(_Stack(conv(channels, size, 3, padding=1), num_blocks))
            height, width, channels = (height + 1) // 2, (width + 1) // 2, size
        self.dense = Linear(height * width * channels, feature_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, observations: Tensor) -> Tensor:
        """Encode observations (B, H, W, C) uint8 into features (B, D)."""
        # Channels last is the fast layout for convolutions, however the observations lie. Whole
        # numbers up to 255 are exact in bfloat16 too; the first kernel divides them.
        device = observations.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else torch.float32
        images = observations.permute(0, 3, 1, 2)
        x = images.to(dtype, memory_format=torch.channels_last)
        for stack in self.stacks:
            x = stack(x)
        x = F.relu(x).permute(0, 2, 3, 1).flatten(1)  # the reference flattens (H, W, C)
        return gelu(self.dense(x))


class _PixelConv(nn.Conv2d):
    """A convolution of pixels / 255: the division is done on the kernel, which is smaller."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / 255, self.bias)  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + residual


class _Stack(nn.Module):
    def __init__(self, conv: nn.Conv2d, num_blocks: int) -> None:
        super().__init__()
        self.conv = conv
        self.blocks = nn.Sequential(*(_Block(conv.out_channels) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(same_max_pool(self.conv(x)))  # type: ignore[no-any-return]


def same_max_pool(x: Tensor) -> Tensor:
    """Max-pool 3x3 of stride 2 with the reference's SAME padding.

    Of an even side only the right (bottom) edge is padded, which is what rounding the size up does;
    `padding=1` alone would shift the windows.

    Args:
        x: (B, C, H, W).

    Returns:
        (B, C, ceil(H / 2), ceil(W / 2)).
    """
    padding = (x.shape[-2] % 2, x.shape[-1] % 2)
    if padding == (0, 0) and x.device.type == "cpu" and not torch.is_grad_enabled():
        return _max_of_neighbours(_max_of_neighbours(x, -2), -1)  # in half the time
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=padding, ceil_mode=True)


def _max_of_neighbours(x: Tensor, dim: int) -> Tensor:
    """The greatest of elements 2i, 2i + 1 and, if there is one, 2i + 2 along `dim`, of even size.

    Args:
        x: (B, C, H, W).
        dim: -2 for rows, -1 for columns.
    """
    even, odd = (x[..., start::2, :] if dim == -2 else x[..., start::2] for start in (0, 1))
    pairs = torch.maximum(even, odd)
    count = pairs.shape[dim] - 1
    overlapping = pairs.narrow(dim, 0, count)
    torch.maximum(overlapping, even.narrow(dim, 1, count), out=overlapping)
    return pairs
