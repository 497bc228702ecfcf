"""Time one action of a policy on this machine: `python scripts/time_action.py [--help]`."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from deflow_vision.agents import AGENTS
from deflow_vision.agents.base import Agent
from deflow_vision.config import compose
from deflow_vision.sharing.graph import example_inputs, program_of, write_onnx
from deflow_vision.tasks import resolve_task
from deflow_vision.types import Spec

Act = Callable[[], np.ndarray]

REFERENCE = {"state": 0.51, "pixels": 2.4}
"""Milliseconds of an action of the official JAX code of DeFlow (jax 0.10.2, jitted, float32) on two
CPU cores, those of machine R in docs/benchmarks.md."""


def main(
    tasks: tuple[str, ...] = ("cube-double-play", "visual-cube-double-play"),
    algo: str = "deflow",
    ways: tuple[Literal["eager", "torch-export", "compiled", "onnx"], ...] = (
        "eager",
        "torch-export",
        "onnx",
    ),
    actions: int = 100,
    rounds: int = 7,
    threads: int = 0,
) -> None:
    """Print the median time of one action, of one observation in NumPy to an action in NumPy.

    Args:
        tasks: whose shapes and settings to take.
        algo: the algorithm.
        ways: how the action is computed. eager: by the agent. torch-export, onnx: by the graph of
            an exported policy. compiled: that of torch-export by torch.compile, which needs a C++
            compiler.
        actions: how many are timed in a round, after some that are not.
        rounds: the ways take turns so often; the median of their medians is printed.
        threads: of the CPU; 0 for all cores.
    """
    if threads:
        torch.set_num_threads(threads)
    for name in tasks:
        agent, kind = make_agent(name, algo)
        calls = {way: WAYS[way](agent) for way in ways}
        medians: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, call in calls.items():
                medians[way].append(time_calls(call, actions))
        print(f"{name}, {algo}, float32, {torch.get_num_threads()} threads")
        for way in ways:
            milliseconds = 1000 * statistics.median(medians[way])
            ratio = f", {milliseconds / REFERENCE[kind]:.2f} of the reference's {REFERENCE[kind]}"
            print(f"  {way:12} {milliseconds:.3f} ms{ratio if algo == 'deflow' else ''}")


def make_agent(name: str, algo: str) -> tuple[Agent, str]:
    task, config = resolve_task(name), compose(name, algo)
    shape = (64, 64, 3 * (config.data.frame_stack or 1)) if task.pixels else (task.state_dim,)
    spec = Spec(shape, "uint8" if task.pixels else "float32", task.action_dim, (-1.0, 0.0))
    agent = AGENTS[algo](spec, config.agent, config.encoder).eval()
    return agent, "pixels" if task.pixels else "state"


def time_calls(call: Act, count: int) -> float:
    """The median seconds of a call, after a tenth as many that are not timed."""
    seconds = []
    for _ in range(count + count // 10):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[count // 10 :])


def eager(agent: Agent) -> Act:
    observations = example_inputs(agent, 1)["observations"].numpy()
    generator = torch.Generator().manual_seed(0)
    return lambda: agent.act(torch.from_numpy(observations), generator=generator).numpy()


def exported(agent: Agent) -> Act:
    return _with_noise(agent, program_of(agent).module())


def compiled(agent: Agent) -> Act:
    return _with_noise(agent, torch.compile(program_of(agent).module(), dynamic=False))


def _with_noise(agent: Agent, graph: Callable[..., torch.Tensor]) -> Act:
    inputs = {name: value.numpy() for name, value in example_inputs(agent, 1).items()}
    generator = torch.Generator().manual_seed(0)

    def call() -> np.ndarray:
        tensors = {"observations": torch.from_numpy(inputs["observations"])}
        if "noises" in inputs:
            tensors["noises"] = torch.randn(inputs["noises"].shape, generator=generator)
        with torch.no_grad():
            return graph(**tensors).numpy()

    return call


def onnx(agent: Agent) -> Act:
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
        feed = {"observations": inputs["observations"]}
        if "noises" in inputs:
            feed["noises"] = rng.standard_normal(inputs["noises"].shape, np.float32)
        return session.run(None, feed)[0]

    return call


WAYS = {"eager": eager, "torch-export": exported, "compiled": compiled, "onnx": onnx}

if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
