"""Features of the encoders of trained agents, and of what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from deflow_vision.agents.base import Agent
from deflow_vision.analysis.frames import Sample, batches
from deflow_vision.networks.encoders import EncoderConfig, encoder_name, make_encoder
from deflow_vision.networks.impala import Impala
from deflow_vision.seeding import derive_seed
from deflow_vision.types import UserError

BATCH_SIZE = 256
PIXEL_COMPONENTS, PIXEL_FIT = 128, 1000
"""Of the PCA of pixels: how many components, and the number of frames it is fitted on."""
CELLS = 4
"""Maps of a layer are averaged over a grid of at most so many cells a side."""


@dataclass(frozen=True)
class Features:
    """What an encoder makes of a sample.

    Attributes:
        policy: whose it is: a run's name, or the name of a baseline.
        encoder: what it is: "impala_small".
        heads: the heads that read it; none of a baseline.
        updates: those that it was trained with; None of a baseline.
        values: (N, D) float32.
    """

    policy: str
    encoder: str
    heads: tuple[str, ...]
    updates: int | None
    values: np.ndarray

    @property
    def name(self) -> str:
        """Whose, at which checkpoint, read by which heads; of a baseline, what it is."""
        if self.updates is None:
            return f"{self.policy} ({self.encoder})"
        return f"{self.policy}, {self.updates:,} updates: {', '.join(self.heads)}"


@dataclass(frozen=True)
class Subject:
    """A trained agent to be looked into.

    Attributes:
        policy: its name, the same for all checkpoints of a run.
        updates: those that it was trained with.
        agent: itself.
        config: of its encoder.
    """

    policy: str
    updates: int
    agent: Agent
    config: EncoderConfig

    @property
    def encoder(self) -> str:
        """The name of its architecture."""
        return encoder_name(self.agent.spec, self.config)


def check_fits(agent: Agent, sample: Sample, policy: str) -> None:
    """Refuse a sample that an agent cannot see.

    Raises:
        UserError: its observations have another shape or kind.
    """
    shape, found = agent.spec.observation_shape, sample.observations.shape[1:]
    if shape != found:
        raise UserError(
            f"{policy} sees observations of shape {shape}, the dataset has {found}: give --data "
            "the store that it was trained on, or one like it."
        )


def features_of(subject: Subject, sample: Sample) -> Iterator[Features]:
    """Features of each encoder of an agent: one where all heads share it, else one a head.

    Args:
        subject: the agent.
        sample: what it looks at.

    Raises:
        UserError: the sample's observations are not of the agent's kind.
    """
    agent = subject.agent
    check_fits(agent, sample, subject.policy)
    for heads in encoders_of(agent):
        values = encode(partial(agent.features, head=heads[0]), sample, agent)
        yield Features(subject.policy, subject.encoder, heads, subject.updates, values)


def encoders_of(agent: Agent) -> list[tuple[str, ...]]:
    """The heads that read each encoder of an agent."""
    own = [head for head in agent.encoder.heads if head in agent.encoder.encoders]
    rest = tuple(head for head in agent.encoder.heads if head not in own)
    return [*([rest] if rest else []), *((head,) for head in own)]


def module_of(agent: Agent, head: str) -> nn.Module:
    """The encoder that a head reads."""
    encoders = agent.encoder.encoders
    return encoders[head if head in encoders else "shared"]


def random_features(subject: Subject, sample: Sample, seed: int = 0) -> Features:
    """Features of an encoder of the agent's architecture, as it is before training.

    Args:
        subject: whose architecture. Pretrained weights are left out.
        sample: what it looks at.
        seed: of its weights.
    """
    agent = subject.agent
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "analysis", "random encoder"))
        encoder = make_encoder(agent.spec, replace(subject.config, weights=None)).eval()
    values = encode(encoder.to(_device(agent)), sample, agent)
    return Features("random", subject.encoder, (), None, values)


def pixel_features(sample: Sample, seed: int = 0) -> Features:
    """The first principal components of the raw pixels, as far as they explain anything.

    Fitted on at most `PIXEL_FIT` training states.

    Args:
        sample: of pixels.
        seed: of the choice of those, and of the randomised solver.
    """
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(derive_seed(seed, "analysis", "pixels"))
    train = np.flatnonzero(~sample.held_out)
    chosen = np.sort(rng.choice(train, min(PIXEL_FIT, len(train)), replace=False))
    count = min(PIXEL_COMPONENTS, len(chosen) - 1)
    pca = PCA(count, svd_solver="randomized", random_state=seed, copy=False)
    pca.fit(_flat(sample.observations[chosen]))
    parts = [
        pca.transform(_flat(sample.observations[rows])) for rows in batches(len(sample), BATCH_SIZE)
    ]
    return Features("pixels", f"PCA {count}", (), None, np.concatenate(parts))


@torch.no_grad()
def encode(function: Callable[[Tensor], Tensor], sample: Sample, agent: Agent) -> np.ndarray:
    """A function of observations on a whole sample, `BATCH_SIZE` at a time, (N, D) float32.

    Args:
        function: maps (B, ...) to (B, D).
        sample: N states.
        agent: on whose device it computes.
    """
    device = _device(agent)
    parts = []
    for rows in batches(len(sample), BATCH_SIZE):
        observations = torch.from_numpy(np.ascontiguousarray(sample.observations[rows]))
        parts.append(function(observations.to(device)).float().cpu().numpy())
    return np.concatenate(parts)


def layer_features(agent: Agent, sample: Sample, head: str) -> dict[str, np.ndarray]:
    """What each layer of the encoder of a head makes of a sample, from the first to the last.

    Of an IMPALA encoder its stacks, of another its parts; maps of (C, H, W) are averaged over a
    grid of at most `CELLS` x `CELLS`.

    Args:
        agent: a trained agent.
        sample: what it looks at.
        head: whose encoder.

    Returns:
        (N, D) by the layer's name; the last one, `features`, is what the head reads.
    """
    encoder = module_of(agent, head)
    stacks = encoder.stacks if isinstance(encoder, Impala) else encoder
    layers = {
        f"{'stack ' if isinstance(encoder, Impala) else ''}{name}": layer
        for name, layer in stacks.named_children()
        if name != "dense"
    }
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            last = output[-1] if isinstance(output, list | tuple) else output
            assert isinstance(last, Tensor)
            seen[name] = _pooled(last)

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]

    def run(observations: Tensor) -> Tensor:
        seen["features"] = encoder(observations)
        return torch.cat([seen[name] for name in order()], dim=1)

    def order() -> list[str]:
        return [*(name for name in layers if name in seen), "features"]

    try:
        joined = encode(run, sample, agent)
    finally:
        for handle in handles:
            handle.remove()
    ends = np.cumsum([seen[name].shape[1] for name in order()])
    return dict(zip(order(), np.split(joined, ends[:-1], axis=1), strict=True))


def _pooled(output: Tensor) -> Tensor:
    """Rows (B, D) of a layer's output (B, D), (B, tokens, D) or (B, C, H, W)."""
    if output.ndim == 4:
        size = (min(CELLS, output.shape[2]), min(CELLS, output.shape[3]))
        return nn.functional.adaptive_avg_pool2d(output, size).flatten(1)
    return output.flatten(1) if output.ndim == 2 else output.mean(1)


def _flat(observations: np.ndarray) -> np.ndarray:
    return observations.reshape(len(observations), -1).astype(np.float32) / 255


def _device(agent: Agent) -> torch.device:
    return next(agent.parameters()).device
