"""What a run folder says of the run: `config.yaml` and `environment.json`."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from deflow_vision.config import TrainConfig, to_yaml
from deflow_vision.datasets.store import Store, StoreError, open_store
from deflow_vision.files import read_json, refuse_links, write_atomically
from deflow_vision.types import Spec, UserError

log = logging.getLogger(__name__)

PACKAGES = (
    *("deflow-vision", "torch", "torchvision", "timm", "kornia", "accelerate", "zarr", "numpy"),
    *("ogbench", "mujoco", "dm_control", "gymnasium", "gymnasium-robotics", "wandb"),
)


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold the folder of a run alone; the system frees the lock of a process that dies.

    Raises:
        UserError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(run_dir / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(
            f"another process is training in {run_dir}: wait for it, end it, or choose another "
            "--run-dir."
        ) from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): start no second run in it", run_dir, error)
    try:
        yield
    finally:
        os.close(lock)


def is_held(run_dir: Path) -> bool:
    """Whether a process holds the folder of a run; False on a disk that cannot tell."""
    try:
        lock = os.open(run_dir / ".lock", os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)  # and the lock with it
    return False


def create_run_folder(
    run_dir: Path,
    config: TrainConfig,
    store: Store,
    spec: Spec,
    divergence: Mapping[str, Any] | None = None,
) -> None:
    """Make the folder of a new run.

    Args:
        run_dir: where; it must not hold a run yet.
        config: the resolved configuration.
        store: the dataset.
        spec: what the agent was built for.
        divergence: how the data's `target_divergence` was found, where it was.

    Raises:
        UserError: the folder holds a run already, or symbolic links.
    """
    if (run_dir / "config.yaml").exists():
        raise UserError(
            f"{run_dir} holds a run already: continue it with --resume {run_dir}, or choose "
            "another --run-dir."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    refuse_links(run_dir)
    record = describe_environment() | {
        "spec": asdict(spec),
        "dataset": {
            "path": str(store.path.resolve() if isinstance(store.path, Path) else store.path),
            "digests": store.attributes["digests"],
            "versions": store.attributes["versions"],
            "render_profile": store.attributes["render_profile"],
        },
    }
    if divergence:
        record["target_divergence"] = dict(divergence)
    _write_record(run_dir, record)
    # Last: a folder with this file holds a run that can be resumed and evaluated.
    write_atomically(run_dir / "config.yaml", to_yaml(config))


def reopen_run_folder(run_dir: Path, config: TrainConfig) -> None:
    """Write down what a resumed run changes, and where it goes on.

    Args:
        run_dir: its folder.
        config: the resolved configuration.

    Raises:
        UserError: there are symbolic links in it.
    """
    refuse_links(run_dir)
    record = read_record(run_dir)
    before = record.get("resumed", [])
    record["resumed"] = [*(before if isinstance(before, list) else []), describe_environment()]
    _write_record(run_dir, record)
    write_atomically(run_dir / "config.yaml", to_yaml(config))


def describe_environment() -> dict[str, Any]:
    """Versions, commit, machine and command line of this process, without secrets."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": versions,
        "git_commit": _git_commit(),
        "machine": {
            "system": platform.platform(),
            "processor": processor_name(),
            "cores": len(os.sched_getaffinity(0)),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def read_spec(run_dir: Path) -> Spec:
    """What the agent of a run was built for."""
    return parse_spec(read_record(run_dir)["spec"], run_dir / "environment.json")


def parse_spec(values: Mapping[str, Any], source: Path) -> Spec:
    """A `Spec` from JSON.

    Args:
        values: its fields.
        source: the file that has them, for messages.

    Raises:
        UserError: a field is missing, or is not what it must be.
    """
    for name, (fits, what) in _SPEC.items():
        if not fits(value := values.get(name)):
            raise UserError(f"{source}: {name} is {value!r}, must be {what}.")
    return Spec(
        observation_shape=tuple(values["observation_shape"]),
        observation_dtype=values["observation_dtype"],
        action_dim=values["action_dim"],
        reward_range=tuple(values["reward_range"]),
    )


def _count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1 << 31


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _GREATEST


_GREATEST = 3.4e38  # of float32
_SPEC: dict[str, tuple[Callable[[Any], bool], str]] = {
    "observation_shape": (
        lambda value: isinstance(value, list) and len(value) in (1, 3) and all(map(_count, value)),
        "a list of one or three counts",
    ),
    "observation_dtype": (lambda value: value in ("uint8", "float32"), "uint8 or float32"),
    "action_dim": (_count, "a count"),
    "reward_range": (
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_number, value)),
        "two numbers",
    ),
}


def find_dataset(run_dir: Path) -> Store | None:
    """The dataset of a run, if it is still where it was, and the same."""
    dataset = read_record(run_dir)["dataset"]
    try:
        store = open_store(dataset["path"])
    except (StoreError, OSError, ValueError):  # the record's path may be of another machine
        return None
    return store if store.attributes["digests"] == dataset["digests"] else None


def read_render_profile(run_dir: Path) -> str:
    """The render profile of the pictures that a run was trained on."""
    return read_record(run_dir)["dataset"]["render_profile"] or "official"


def read_record(run_dir: Path) -> dict[str, Any]:
    """What `environment.json` of a run folder holds.

    Raises:
        UserError: it cannot be read, or lacks something that every run writes.
    """
    path = run_dir / "environment.json"
    try:
        record = read_json(path)
        for name, kind in _RECORD.items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is {record[name]!r}")
        for name, kind in _DATASET.items():
            if not isinstance(record["dataset"][name], kind):
                raise TypeError(f"dataset.{name} is {record['dataset'][name]!r}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); is {run_dir} a run folder?") from None
    return record  # type: ignore[no-any-return]


_RECORD: dict[str, Any] = {
    **{"started": str, "machine": dict, "versions": dict, "spec": dict, "dataset": dict},
}
_DATASET: dict[str, Any] = {"path": str, "digests": dict, "render_profile": str | None}


def _write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    write_atomically(run_dir / "environment.json", json.dumps(record, indent=2) + "\n")


def _git_commit() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "-uno"])
    try:
        commit, changes = (
            subprocess.run(c, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with uncommitted changes" if changes else "")


def processor_name() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "unknown"
    )
