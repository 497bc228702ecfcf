"""Time one update of an agent on this machine: `python scripts/time_update.py [--help]`."""

import statistics
import time
from typing import Literal

import torch
import tyro

from deflow_vision.agents import AGENTS
from deflow_vision.config import compose
from deflow_vision.tasks import resolve_task
from deflow_vision.training.loop import make_optimizer
from deflow_vision.types import Batch, Spec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(
    tasks: tuple[str, ...] = ("cube-double-play", "visual-cube-double-play"),
    algo: str = "deflow",
    batch_size: int | None = None,
    mixed_precision: Literal["no", "bf16"] = "no",
    updates: int = 20,
) -> None:
    """Print the median time of an update on random data, without sampling and evaluation.

    Args:
        tasks: whose shapes and settings to take.
        algo: the algorithm.
        batch_size: transitions of an update; by default the task's own.
        mixed_precision: bf16 for autocast.
        updates: how many are timed, after three that are not.
    """
    for name in tasks:
        task, config = resolve_task(name), compose(name, algo)
        size = batch_size or config.batch_size
        shape = (64, 64, 3 * (config.data.frame_stack or 1)) if task.pixels else (task.state_dim,)
        spec = Spec(shape, "uint8" if task.pixels else "float32", task.action_dim, (-1.0, 0.0))
        agent = AGENTS[algo](spec, config.agent, config.encoder).to(DEVICE)
        optimizer = make_optimizer(agent)
        batch = random_batch(spec, size)
        noises = agent.sample_noises(size, torch.Generator().manual_seed(0))
        noises = type(noises)(*(noise.to(DEVICE) for noise in noises))

        seconds = []
        for step in range(updates + 3):
            start = time.perf_counter()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=mixed_precision == "bf16"):
                losses, _ = agent(batch, noises, step)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            agent.update_targets(step)
            optimizer.step()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        milliseconds = 1000 * statistics.median(seconds[3:])
        print(
            f"{task.name}: {milliseconds:.1f} ms an update of {algo}, "
            f"batch {size}, autocast {mixed_precision}, {DEVICE}, {torch.get_num_threads()} threads"
        )


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
    )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
