"""Which probes there are, and in what order."""

from __future__ import annotations

from collections.abc import Sequence

from deflow_vision.doctor import compute, data, drawing, packages, storage, tracking
from deflow_vision.doctor.probes import Probe, run_probe
from deflow_vision.doctor.rows import Row
from deflow_vision.tasks import data_root

_HOUR = 3600.0


def probes(task: str | None = None, stores: Sequence[str] = ()) -> list[Probe]:
    """Everything to look at.

    Args:
        task: whose memory plan to make.
        stores: folders or addresses of stores to read whole.
    """
    folders = (str(data_root()), "runs")
    found = [
        Probe("libraries", packages.look, packages.judge, seconds=20),
        Probe("drawing", drawing.look, drawing.judge, seconds=90),
        Probe("CPU", compute.look_cpu, compute.judge_cpu),
        Probe("GPU", compute.look_gpus, compute.judge_gpus),
        Probe("memory", data.look_memory, data.judge_memory, seconds=20),
        Probe("disk", storage.look_disks, storage.judge_disks, (folders,)),
        Probe("limits", storage.look_limits, storage.judge_limits, seconds=20),
        Probe("wandb", tracking.look, tracking.judge, seconds=20),
    ]
    if task is not None:
        found.append(Probe(f"plan of {task}", data.look_plan, data.judge_plan, (task,)))
    for store in stores:
        name = f"store {store}"
        found.append(Probe(name, data.look_store, data.judge_store, (store,), seconds=_HOUR))
    return found


def examine(task: str | None = None, stores: Sequence[str] = ()) -> list[Row]:
    """Run all probes, one after another so that none takes another's time.

    Args:
        task: whose memory plan to make.
        stores: folders or addresses of stores to read whole.
    """
    return [row for probe in probes(task, stores) for row in run_probe(probe)]
