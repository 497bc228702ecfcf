"""Time an update of the official code of DeFlow: `python scripts/time_reference.py CHECKOUT`.

CHECKOUT is a copy of that code (the repository muzhancun/DeFlow); it needs an environment of its
own, with jax, flax, optax, distrax and ml_collections, and nothing of this project. What
`time_update.py` prints of ours is of the same shapes, on random data.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

SHAPES = {"state": (256, (37,)), "pixels": (64, (64, 64, 9))}
"""Batch and observation: those of cube-double-play and visual-cube-double-play."""


def main(checkout: Path, updates: int = 20) -> None:
    """Print the median time of an update, after three that are not timed.

    Args:
        checkout: the folder that holds `agents/deflow.py`.
        updates: how many are timed.
    """
    sys.path.insert(0, str(checkout))
    import jax
    from agents.deflow import DeFlowAgent, get_config

    rng = np.random.default_rng(0)
    for kind, (size, shape) in SHAPES.items():
        config = get_config()
        config.batch_size = size
        config.encoder = "impala_small" if kind == "pixels" else None

        def observations(size: int = size, shape: tuple[int, ...] = shape) -> np.ndarray:
            if len(shape) == 3:
                return rng.integers(256, size=(size, *shape), dtype=np.uint8)
            return rng.normal(size=(size, *shape)).astype(np.float32)

        batch = {
            "observations": observations(),
            "actions": rng.uniform(-1, 1, (size, 5)).astype(np.float32),
            "rewards": -np.ones(size, np.float32),
            "masks": np.ones(size, np.float32),
            "next_observations": observations(),
        }
        agent = DeFlowAgent.create(0, batch["observations"][:1], batch["actions"][:1], config)
        seconds = []
        for _ in range(updates + 3):
            start = time.perf_counter()
            agent, _ = agent.update(batch)
            jax.block_until_ready(agent.network.params)
            seconds.append(time.perf_counter() - start)
        milliseconds = 1000 * statistics.median(seconds[3:])
        print(f"{kind}: {milliseconds:.1f} ms an update, batch {size}, jax {jax.__version__}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "agents/deflow.py").is_file():
        sys.exit(
            "usage: python scripts/time_reference.py CHECKOUT  (a folder with agents/deflow.py)"
        )
    main(Path(sys.argv[1]))
