"""Memory, what a task will hold of it, and whether a store is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from deflow_vision.datasets.memory import available_memory
from deflow_vision.doctor.rows import GIB, Row
from deflow_vision.types import UserError

_LEAST, _ENOUGH = 1 * GIB, 4 * GIB


@dataclass(frozen=True)
class Plan:
    """Where a task's frames would live.

    Attributes:
        task: its name.
        problem: why there is no plan.
        residency: "device", "ram" or "stream".
        description: the plan in words.
    """

    task: str
    problem: str = ""
    residency: str = ""
    description: str = ""


@dataclass(frozen=True)
class Checked:
    """A store, read whole.

    Attributes:
        path: its folder or address.
        problems: what is wrong with it.
        env_id: the dataset's name.
        versions: of what made it.
        installed: of the same libraries here.
        pixels: whether it holds frames.
    """

    path: str
    problems: Sequence[str]
    env_id: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    installed: tuple[tuple[str, str], ...] = ()
    pixels: bool = False


def look_memory() -> tuple[int, int | None]:
    """Bytes that a process can still take, and those of the machine."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    total = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
    return available_memory(), total[0] if total else None


def judge_memory(facts: tuple[int, int | None]) -> list[Row]:
    """One row."""
    available, total = facts
    machine = "" if total is None else f" of the machine's {total / GIB:.1f}"
    found = f"{available / GIB:.1f} GiB can be taken{machine}"
    if available >= _ENOUGH:
        return [Row("memory", "ok", found)]
    remedy = "end other processes, or raise the container's limit (docker run --memory)"
    return [Row("memory", "fail" if available < _LEAST else "warn", found, remedy)]


def look_plan(name: str) -> Plan:
    """What a run of a task with its published settings would hold; reads no frame."""
    import torch

    from deflow_vision.agents import AGENTS
    from deflow_vision.config import compose
    from deflow_vision.datasets.residency import plan_residency
    from deflow_vision.tasks import resolve_task
    from deflow_vision.training.dataset import open_task_store
    from deflow_vision.training.devices import free_device_memory

    try:
        config = compose(name)
        store = open_task_store(config, resolve_task(config.task))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        plan = plan_residency(
            store.train,
            residency=config.data.residency,
            frame_stack=config.data.frame_stack or 1,
            fields=AGENTS[config.algo].batch_fields,
            device_bytes=free_device_memory(device),
        )
    except UserError as error:
        return Plan(name, problem=str(error))
    return Plan(name, residency=plan.residency, description=plan.describe())


def judge_plan(facts: Plan) -> list[Row]:
    """One row; a store that does not fit into memory is a warning."""
    name = f"plan of {facts.task}"
    if facts.problem:
        first, *rest = facts.problem.splitlines()
        remedy = "; or ".join(line.strip() for line in rest)
        return [Row(name, "fail", first, remedy or "mend that, or name another --task")]
    if facts.residency == "stream":
        remedy = "more memory would save the decoding of frames; docs/scaling.md has the figures"
        return [Row(name, "warn", facts.description, remedy)]
    return [Row(name, "ok", facts.description)]


def look_store(path: str) -> Checked:
    """Read a whole store."""
    from deflow_vision.datasets.store import open_store, verify

    problems = verify(path)
    if problems:
        return Checked(path, tuple(problems))
    store = open_store(path)
    made = store.attributes.get("versions", {})
    libraries = [name for name in ("mujoco", "ogbench") if name in made]
    here = tuple((name, metadata.version(name)) for name in libraries)
    versions = tuple((name, str(made[name])) for name in libraries)
    return Checked(path, (), store.attributes["env_id"], versions, here, store.train.pixels)


def judge_store(facts: Checked) -> list[Row]:
    """One row; frames that another simulator drew are a warning."""
    name = f"store {facts.path}"
    if facts.problems:
        more = f" (and {len(facts.problems) - 1} more)" if len(facts.problems) > 1 else ""
        remedy = "collect, convert or download it again: python scripts/data.py"
        return [Row(name, "fail", facts.problems[0] + more, remedy)]
    found = f"{facts.env_id}, every array matches its digest"
    if facts.pixels and facts.versions != facts.installed:
        made, here = (", ".join(map(" ".join, each)) for each in (facts.versions, facts.installed))
        remedy = (
            f"see whether frames are alike: python scripts/data.py verify {facts.path} --render"
        )
        return [Row(name, "warn", f"{found}; drawn with {made}, here is {here}", remedy)]
    return [Row(name, "ok", found)]
