"""The time of one action, from an observation in NumPy to an action in NumPy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deflow_vision.agents.base import Agent
from deflow_vision.sharing.graph import example_inputs, program_of, write_onnx
from deflow_vision.timing.agents import make_agent
from deflow_vision.timing.figures import Figure, Goal, Sample, faster
from deflow_vision.timing.machine import Machine
from deflow_vision.timing.reference import Reference
from deflow_vision.timing.settings import Settings
from deflow_vision.timing.turns import alone, in_turns
from deflow_vision.timing.update import PIXELS, STATE

Act = Callable[[], np.ndarray]

EXPORTED = "deflow, ONNX"


def time_actions(machine: Machine, reference: Reference, settings: Settings) -> Iterator[Figure]:
    """Rows of one action: by the agent, by the graphs that it is exported as, and by others."""
    if not reference.live:
        reference.run()
    for kind, task in (("state", STATE), ("pixels", PIXELS)):
        samples: dict[str, Sample] = alone(_time, task, settings)
        for name, sample in samples.items():
            what = f"one action, {kind}, {name}, float32"
            if name.startswith("deflow"):
                against = reference.time(f"action, {kind}", machine)
                goal = Goal(1.0) if name == EXPORTED else None
            else:
                against, goal = (samples["deflow, PyTorch"], "deflow, PyTorch"), None
            if against is None:
                yield Figure("action", what, sample)
            else:
                yield Figure("action", what, sample, *against, faster(sample, against[0]), goal)


def _time(task: str, settings: Settings) -> dict[str, Sample]:
    agent = make_agent(task, network=settings.network).eval()
    calls: dict[str, Act] = {
        "deflow, PyTorch": eager(agent),
        "deflow, torch.export": graph(agent),
        EXPORTED: onnx(agent),
    }
    for other in ("bc_flow", "fql"):
        calls[f"{other}, PyTorch"] = eager(make_agent(task, other, network=settings.network).eval())
    return in_turns(calls, rounds=settings.rounds, count=settings.actions, warm_up=20)


def eager(agent: Agent) -> Act:
    """By the agent."""
    observations = example_inputs(agent, 1)["observations"].numpy()
    generator = torch.Generator().manual_seed(0)
    return lambda: agent.act(torch.from_numpy(observations), generator=generator).numpy()


def graph(agent: Agent) -> Act:
    """By the graph that `torch.export` makes of it."""
    program = program_of(agent).module()
    inputs = {name: value.numpy() for name, value in example_inputs(agent, 1).items()}
    generator = torch.Generator().manual_seed(0)

    def call() -> np.ndarray:
        tensors = {"observations": torch.from_numpy(inputs["observations"])}
        if "noises" in inputs:
            tensors["noises"] = torch.randn(inputs["noises"].shape, generator=generator)
        with torch.no_grad():
            actions: np.ndarray = program(**tensors).numpy()
            return actions

    return call


def onnx(agent: Agent) -> Act:
    """By onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.onnx"
        write_onnx(agent, path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {name: value.numpy() for name, value in example_inputs(agent, 1).items()}
    rng = np.random.default_rng(0)

    def call() -> np.ndarray:
        feed: dict[str, Any] = {"observations": inputs["observations"]}
        if "noises" in inputs:
            feed["noises"] = rng.standard_normal(inputs["noises"].shape, np.float32)
        actions: np.ndarray = session.run(None, feed)[0]
        return actions

    return call
