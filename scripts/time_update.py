"""Time one update of an agent on this machine: `python scripts/time_update.py [--help]`."""

import statistics
import time
from itertools import product
from pathlib import Path
from typing import Literal

import torch
import tyro
from accelerate import Accelerator

from deflow_vision.agents import AGENTS
from deflow_vision.config import compose
from deflow_vision.tasks import resolve_task
from deflow_vision.training.loop import make_optimizer
from deflow_vision.training.update import make_update
from deflow_vision.training.watch import Watch
from deflow_vision.types import Batch, Spec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

REFERENCE = {"cube-double-play-task2": (256, 69.0), "visual-cube-double-play-task1": (64, 653.0)}
"""Batch and milliseconds of an update of the official JAX code of DeFlow (jax 0.10.2, jitted,
float32, an encoder a head) on two CPU cores whose products ran at `REFERENCE_RATES`."""
REFERENCE_RATES = {"torch": 210.0, "oneDNN": 460.0}
"""GFLOP/s of float32 products of 256 x 512 by 512 x 512 there, by torch's linear layer (MKL) and by
oneDNN. What a product costs XLA lies between the two: its update alone multiplies at 235."""


def main(
    tasks: tuple[str, ...] = ("cube-double-play", "visual-cube-double-play"),
    algos: tuple[str, ...] = ("deflow",),
    batch_size: int = 0,
    mixed_precision: Literal["no", "bf16"] = "no",
    cuda_graphs: bool = True,
    updates: int = 20,
) -> None:
    """Print the median time of an update on random data, without sampling and evaluation.

    Args:
        tasks: whose shapes and settings to take.
        algos: the algorithms.
        batch_size: transitions of an update; 0 for the reference's, 256 from state, 64 from pixels.
        mixed_precision: bf16 for autocast.
        cuda_graphs: on a GPU, record an update once and replay it.
        updates: how many are timed, after six that are not.
    """
    accelerator = Accelerator(mixed_precision=mixed_precision)
    rates = product_rates()
    shown = ", ".join(f"{rate:.0f} GFLOP/s by {name}" for name, rate in rates.items())
    print(f"float32 products of 256 x 512 by 512 x 512: {shown}")
    for name, algo in product(tasks, algos):
        task, config = resolve_task(name), compose(name, algo)
        size = batch_size or (64 if task.pixels else 256)
        shape = (64, 64, 3 * (config.data.frame_stack or 1)) if task.pixels else (task.state_dim,)
        spec = Spec(shape, "uint8" if task.pixels else "float32", task.action_dim, (-1.0, 0.0))
        agent = AGENTS[algo](spec, config.agent, config.encoder).to(DEVICE)
        optimizer = make_optimizer(agent)
        batch = random_batch(spec, size)
        noises = agent.sample_noises(size, torch.Generator().manual_seed(0))
        noises = type(noises)(*(noise.to(DEVICE) for noise in noises))

        wrapped = accelerator.prepare(agent)
        watch = Watch(agent, optimizer, Path("runs/time_update"))
        update = make_update(agent, wrapped, optimizer, accelerator, watch, cuda_graphs=cuda_graphs)
        seconds = []
        for step in range(updates + 6):
            start = time.perf_counter()
            update(batch, noises, step)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        milliseconds = 1000 * statistics.median(seconds[6:])
        print(
            f"{task.name}: {milliseconds:.1f} ms an update of {algo}, "
            f"batch {size}, autocast {mixed_precision}, {config.encoder.sharing} encoder, "
            f"{type(update).__name__}, {DEVICE}, {torch.get_num_threads()} threads"
        )
        if DEVICE.type == "cpu" and algo == "deflow" and REFERENCE.get(task.name, (0,))[0] == size:
            there = REFERENCE[task.name][1]
            for library, rate in rates.items():
                rate_there = REFERENCE_RATES[library]
                here = there * rate_there / rate
                print(
                    f"  the reference took {there:.0f} ms at {rate_there:.0f} GFLOP/s "
                    f"by {library}, so about {here:.0f} ms at this machine's rate: ours takes "
                    f"{milliseconds / here:.2f} of it"
                )


def product_rates(repeats: int = 200) -> dict[str, float]:
    """The best rates of a linear layer in float32 here, in GFLOP/s, by library."""
    x, weight = torch.randn(256, 512, device=DEVICE), torch.randn(512, 512, device=DEVICE)
    products = {"torch": lambda: torch.nn.functional.linear(x, weight)}
    if DEVICE.type == "cpu" and torch.backends.mkldnn.is_available():
        one_dnn = torch.ops.mkldnn._linear_pointwise
        products["oneDNN"] = lambda: one_dnn(x, weight, None, "none", [], "")
    rates = {}
    for library, multiply in products.items():
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            multiply()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        rates[library] = 2 * 256 * 512 * 512 / best / 1e9
    return rates


def random_batch(spec: Spec, size: int) -> Batch:
    def observations() -> torch.Tensor:
        if spec.pixels:
            pictures = torch.randint(256, (size, *spec.observation_shape), dtype=torch.uint8)
            return pictures.to(DEVICE)
        return torch.randn(size, *spec.observation_shape, device=DEVICE)

    return Batch(
        observations=observations(),
        actions=torch.rand(size, spec.action_dim, device=DEVICE) * 2 - 1,
        rewards=-torch.ones(size, device=DEVICE),
        masks=torch.ones(size, device=DEVICE),
        next_observations=observations(),
        next_actions=torch.rand(size, spec.action_dim, device=DEVICE) * 2 - 1,
        mc_returns=-torch.ones(size, device=DEVICE),
    )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
