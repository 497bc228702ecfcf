"""Time the official code of DeFlow: `python scripts/time_reference.py CHECKOUT`.

CHECKOUT is a copy of that code (the repository muzhancun/DeFlow); it needs an environment of its
own, with jax, flax, optax, distrax and ml_collections, and nothing of this project. Shapes are
those of `scripts/bench.py`, which runs this; data are random. The last line is JSON, milliseconds
by kind.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

SHAPES = {"state": (256, (37,)), "pixels": (64, (64, 64, 9))}
"""Batch and observation: those of cube-double-play and visual-cube-double-play."""


def main(checkout: Path, updates: int = 20, actions: int = 200) -> None:
    """Print the median times of an update and of one action, after some that are not timed.

    Args:
        checkout: the folder that holds `agents/deflow.py`.
        updates: how many updates are timed.
        actions: how many actions are.
    """
    sys.path.insert(0, str(checkout))
    import jax
    from agents.deflow import DeFlowAgent, get_config

    rng = np.random.default_rng(0)
    found = {}
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
        found[kind] = 1000 * statistics.median(seconds[3:])

        key, seconds = jax.random.PRNGKey(0), []
        for _ in range(actions + 20):
            start = time.perf_counter()
            key, drawn = jax.random.split(key)
            np.asarray(agent.sample_actions(batch["observations"][0], seed=drawn))
            seconds.append(time.perf_counter() - start)
        found[f"action, {kind}"] = 1000 * statistics.median(seconds[20:])
        print(
            f"{kind}: {found[kind]:.1f} ms an update of {size}, {found[f'action, {kind}']:.3f} ms "
            f"an action, jax {jax.__version__}"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "agents/deflow.py").is_file():
        sys.exit(
            "usage: python scripts/time_reference.py CHECKOUT  (a folder with agents/deflow.py)"
        )
    main(Path(sys.argv[1]))
