"""The encoder seam: the only place where observations become features.

No other network sees an observation. One `ObservationEncoder`, owned by the agent, decides which
losses train the encoder; state tasks pass through the identity on the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.impala import Impala
from deflow_vision.types import Spec, UserError


@dataclass(frozen=True)
class EncoderConfig:
    """How observations become features."""

    name: str = "auto"
    """auto (identity for state, impala_small for pixels), identity, impala, impala_small,
    impala_large, impala_debug, or timm:<model>."""
    sharing: Literal["shared", "separate"] = "shared"
    """shared: one encoder for all heads. separate: one a head, as the reference code has it."""
    gradients_from: tuple[str, ...] | None = None
    """The heads whose losses train a shared encoder; the others get its features detached. By
    default the one that models the data's actions, or where a method has none its critic."""
    weights: Path | None = None
    """A local safetensors file of pretrained weights, for timm models."""
    freeze: bool = False
    """Whether the encoder stays as it is loaded; a timm model's projection learns all the same."""


class Identity(nn.Module):
    """Features are the state itself: z = s.

    Args:
        observation_shape: (D,).
    """

    def __init__(self, observation_shape: tuple[int, ...]) -> None:
        super().__init__()
        (self.feature_dim,) = observation_shape

    def forward(self, observations: Tensor) -> Tensor:
        """Return observations (B, D) float32 unchanged."""
        return observations


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "identity": Identity,
    "impala": Impala,
    "impala_small": partial(Impala, num_blocks=1),
    "impala_large": partial(Impala, stack_sizes=(64, 128, 128), feature_dim=1024),
    "impala_debug": partial(Impala, num_blocks=1, stack_sizes=(4, 4)),
}
"""Encoders by name. Each has `feature_dim` and maps (B, H, W, C) uint8 (or (B, D)) to (B, D)."""


def encoder_name(spec: Spec, config: EncoderConfig) -> str:
    """What `auto` means for these observations; other names as they are."""
    if config.name != "auto":
        return config.name
    return "impala_small" if spec.pixels else "identity"


def make_encoder(spec: Spec, config: EncoderConfig) -> nn.Module:
    """Build one encoder for the observations of `spec`.

    Raises:
        UserError: the name is unknown, or its encoder does not fit this kind of observation.
    """
    name = encoder_name(spec, config)
    if (name == "identity") == spec.pixels:
        kind = "pixel" if spec.pixels else "state"
        raise UserError(
            f"encoder {name!r} does not fit {kind} observations of shape "
            f"{spec.observation_shape}; use --encoder.name auto"
        )
    if name.startswith("timm:"):
        from deflow_vision.networks.timm_encoder import TimmEncoder  # slow to import

        return TimmEncoder(
            name.removeprefix("timm:"),
            spec.observation_shape,  # type: ignore[arg-type]
            weights=config.weights,
            freeze=config.freeze,
        )
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}; choose {', '.join(ENCODERS)} or timm:<model>")
    if config.weights is not None:
        raise UserError(f"encoder.weights is for timm:<model> encoders, not for {name!r}")
    return ENCODERS[name](spec.observation_shape).requires_grad_(not config.freeze)


class ObservationEncoder(nn.Module):
    """Features for every head of an agent, and who trains what.

    Shared: an observation is encoded once; the heads in `gradients_from` get the features with
    their graph, the others get them detached. Separate: one encoder a head, each trained by its own
    head alone. Target networks read EMA copies of their heads' encoders either way.

    Args:
        spec: what observations look like.
        config: which encoder, shared by whom.
        heads: names of the heads.
        gradients_from: those that train a shared encoder, unless `config` names others.
        targets: heads with a target network; a shared encoder has one EMA copy for all of them.

    Raises:
        UserError: `config.gradients_from` names a head that the agent does not have.
    """

    def __init__(
        self,
        spec: Spec,
        config: EncoderConfig,
        heads: Sequence[str],
        *,
        gradients_from: Sequence[str],
        targets: Sequence[str] = ("critic",),
    ) -> None:
        super().__init__()
        if unknown := set(config.gradients_from or ()) - set(heads):
            raise UserError(
                f"encoder.gradients_from names {sorted(unknown)}; this agent's heads are "
                f"{', '.join(heads)}"
            )
        self.heads = tuple(heads)
        self.shared = config.sharing == "shared"
        self.gradients_from = tuple(
            gradients_from if config.gradients_from is None else config.gradients_from
        )
        self.encoders = nn.ModuleDict(
            {name: make_encoder(spec, config) for name in (["shared"] if self.shared else heads)}
        )
        self.targets = nn.ModuleDict(
            {name: ema_copy(self.encoders[name]) for name in dict.fromkeys(map(self._key, targets))}
        )
        self.feature_dim = int(self.encoders[self._key(heads[0])].feature_dim)  # type: ignore[arg-type]

    def forward(
        self, observations: Tensor, heads: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Features (B, D) by head.

        Args:
            observations: (B, H, W, C) uint8 or (B, D) float32.
            heads: the heads that are needed; all of them by default.
        """
        heads = self.heads if heads is None else heads
        found = {
            name: self.encoders[name](observations) for name in dict.fromkeys(map(self._key, heads))
        }
        return {
            head: found[self._key(head)]
            if self._key(head) != "shared" or head in self.gradients_from
            else found["shared"].detach()
            for head in heads
        }

    @torch.no_grad()
    def encode_target(self, observations: Tensor, head: str = "critic") -> Tensor:
        """Features (B, D) for a head's target network."""
        return self.targets[self._key(head)](observations)  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode_targets(self, observations: Tensor, heads: Sequence[str]) -> dict[str, Tensor]:
        """Features (B, D) for the target networks of `heads`; a shared copy encodes once."""
        names = dict.fromkeys(map(self._key, heads))
        found = {name: self.targets[name](observations) for name in names}
        return {head: found[self._key(head)] for head in heads}

    def update_targets(self, tau: float) -> None:
        """Mix the encoders into their EMA copies."""
        for name, target in self.targets.items():
            ema_update(target, self.encoders[name], tau)

    def freeze(self) -> None:
        """Let the encoders learn no more."""
        self.encoders.requires_grad_(False)

    def freeze_for(self, head: str) -> None:
        """Keep the features of a head as they are.

        Its encoder learns no more; where other heads train it too, the head gets a copy instead.
        """
        name = self._key(head)
        if name == "shared" and set(self.gradients_from) - {head}:
            self.encoders[head] = ema_copy(self.encoders[name])
        else:
            self.encoders[name].requires_grad_(False)

    def load(self, head: str, weights: Mapping[str, Tensor]) -> None:
        """Put another run's weights into the encoder that a head reads, and into its EMA copy."""
        name = self._key(head)
        self.encoders[name].load_state_dict(weights)
        if name in self.targets:
            self.targets[name].load_state_dict(weights)

    def _key(self, head: str) -> str:
        return head if head in self.encoders else "shared"
