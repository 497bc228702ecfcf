"""Agents and batches of the shapes of a task, on random data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from deflow_vision.agents import AGENTS
from deflow_vision.agents.base import Agent
from deflow_vision.config import compose
from deflow_vision.tasks import resolve_task
from deflow_vision.training.loop import make_optimizer
from deflow_vision.training.update import Update, make_update
from deflow_vision.training.watch import Watch
from deflow_vision.types import Batch, Spec

Precision = Literal["no", "bf16"]
Sharing = Literal["shared", "separate"]


def make_agent(
    task: str,
    algo: str = "deflow",
    *,
    sharing: Sharing | None = None,
    network: tuple[int, ...] = (),
    freeze: bool = False,
) -> Agent:
    """An agent for a task's shapes, with the task's settings.

    Args:
        task: its name.
        algo: the algorithm.
        sharing: "shared" or "separate" encoders; the default's where None.
        network: widths of its layers; the algorithm's where empty.
        freeze: whether DeFlow's base flow learns no more.
    """
    resolved, config = resolve_task(task), compose(task, algo)
    changes: dict[str, Any] = {"hidden_dims": network} if network else {}
    settings: Any = replace(config.agent, **changes, **({"freeze_bc_flow": True} if freeze else {}))
    encoder = config.encoder if sharing is None else replace(config.encoder, sharing=sharing)
    stack = config.data.frame_stack or 1
    shape = (64, 64, 3 * stack) if resolved.pixels else (resolved.state_dim,)
    dtype: Literal["uint8", "float32"] = "uint8" if resolved.pixels else "float32"
    spec = Spec(shape, dtype, resolved.action_dim, (-1.0, 0.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AGENTS[algo](spec, settings, encoder)


def make_updates(agent: Agent, precision: Precision, *, cuda_graphs: bool = True) -> Update:
    """The update that training makes of it, on the device that is there.

    Args:
        agent: goes to the device.
        precision: bf16 for autocast.
        cuda_graphs: on a GPU, record an update once and replay it.
    """
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, by default
    accelerator = Accelerator(mixed_precision=precision)
    agent.to(accelerator.device)
    optimizer = make_optimizer(agent)
    wrapped = accelerator.prepare(agent)
    watch = Watch(agent, optimizer, Path("runs/bench"))  # written to only by a loss that diverges
    return make_update(agent, wrapped, optimizer, accelerator, watch, cuda_graphs=cuda_graphs)


def random_batch(spec: Spec, size: int, device: torch.device) -> Batch:
    """A batch of numbers that mean nothing."""

    def observations() -> torch.Tensor:
        if spec.pixels:
            pictures = torch.randint(256, (size, *spec.observation_shape), dtype=torch.uint8)
            return pictures.to(device)
        return torch.randn(size, *spec.observation_shape, device=device)

    return Batch(
        observations=observations(),
        actions=torch.rand(size, spec.action_dim, device=device) * 2 - 1,
        rewards=-torch.ones(size, device=device),
        masks=torch.ones(size, device=device),
        next_observations=observations(),
        next_actions=torch.rand(size, spec.action_dim, device=device) * 2 - 1,
        mc_returns=-torch.ones(size, device=device),
    )


def random_noises(agent: Agent, size: int, device: torch.device) -> Any:
    """What the agent draws for a batch."""
    noises = agent.sample_noises(size, torch.Generator().manual_seed(0))
    return type(noises)(*(noise.to(device) for noise in noises))
