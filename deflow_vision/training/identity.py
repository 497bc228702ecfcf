"""What a checkpoint must have in common with a run that goes on from it."""

from __future__ import annotations

from typing import Any

from deflow_vision.config import TrainConfig, to_dict
from deflow_vision.datasets.store import Store

PLACE = ("path", "cache", "cache_gib", "retry_minutes")
"""Settings of the data that say where they are, which a checkpoint does not depend on."""
FAULTS = ("timeout_seconds", "max_restarts")
"""Settings of the online phase that decide no number of a run without faults."""


def identity(config: TrainConfig, store: Store, step: int) -> dict[str, Any]:
    """What decided a run's numbers, and so must be equal where a checkpoint goes on.

    What the online phase alone uses belongs to it from the first online update on, so that several
    online phases can start from one offline checkpoint.

    Args:
        config: the run.
        store: its dataset.
        step: updates done at the checkpoint.
    """
    values = to_dict(config)
    keys = ("task", "algo", "seed", "batch_size", "mixed_precision", "agent", "encoder")
    data = {key: value for key, value in values["data"].items() if key not in PLACE}
    if data["residency"] == "device":
        data["residency"] = "ram"  # the same batches
    digests = store.attributes["digests"]
    found = {
        **{key: values[key] for key in keys},
        "data": data,
        "dataset": {name: digests[name] for name in sorted(digests) if name.startswith("train/")},
    }
    if step <= config.offline_steps:
        found["agent"].pop("fix_bc_flow_online", None)
        return found
    online = {key: value for key, value in values["online"].items() if key not in FAULTS}
    return found | {"offline_steps": config.offline_steps, "online": online}
