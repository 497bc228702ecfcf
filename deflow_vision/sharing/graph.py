"""Policies as graphs that act without this library: torch.export and ONNX.

A graph is `Agent.decide`: actions (B, A) from `observations` (B, ...) and, where the policy takes
noise, from `noises` (B, noise_dim), standard normal. B is free.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from deflow_vision.agents.base import Agent
from deflow_vision.types import UserError


class Acting(nn.Module):
    """`agent.decide` without exploration as a module's `forward`.

    Args:
        agent: on any device.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, observations: Tensor, noises: Tensor | None = None) -> Tensor:
        """Actions (B, A); a deterministic policy is called without `noises`."""
        if noises is None:
            noises = torch.empty(observations.shape[0], 0, device=observations.device)
        return self.agent.decide(observations, noises)


def example_inputs(agent: Agent, batch_size: int) -> dict[str, Tensor]:
    """Random inputs of an agent's graph, by name."""
    spec, device = agent.spec, next(agent.parameters()).device
    noise_dim = agent.noise_dim(explore=False)
    shape = (batch_size, *spec.observation_shape)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    inputs = {"observations": pixels if spec.pixels else torch.randn(shape, device=device)}
    if noise_dim:
        inputs["noises"] = torch.randn(batch_size, noise_dim, device=device)
    return inputs


@torch.no_grad()
def program_of(agent: Agent) -> ExportedProgram:
    """The graph of an agent's policy, with a free batch size, on the agent's device."""
    inputs = example_inputs(agent, 2)
    batch = Dim("batch")
    program = torch.export.export(
        Acting(agent).eval(), (), inputs, dynamic_shapes={name: {0: batch} for name in inputs}
    )
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    for node in chain.from_iterable(graph.nodes for graph in graphs):
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def write_torch_export(agent: Agent, path: Path) -> None:
    """Write a policy's graph for `torch.export.load`; it holds all weights of the agent."""
    torch.export.save(program_of(agent), path)


def write_onnx(agent: Agent, path: Path) -> None:
    """Write a policy's graph for ONNX runtimes; it holds the weights that acting needs.

    Raises:
        UserError: what PyTorch writes ONNX with is not installed.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UserError(f"ONNX needs {' and '.join(missing)}: pip install 'deflow-vision[export]'.")
    program = torch.onnx.export(
        program_of(agent), output_names=["actions"], dynamo=True, verbose=False
    )
    assert program is not None
    program.save(path)


WRITERS: dict[str, Callable[[Agent, Path], None]] = {
    "torch-export": write_torch_export,
    "onnx": write_onnx,
}
"""What writes a graph, by the name of its format."""
