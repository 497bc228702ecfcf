"""What a run folder says of the run: `config.yaml` and `environment.json`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from deflow_vision.config import TrainConfig, to_yaml
from deflow_vision.datasets.store import Store, StoreError, open_store
from deflow_vision.types import Spec, UserError

PACKAGES = (
    *("deflow-vision", "torch", "torchvision", "timm", "kornia", "accelerate", "zarr", "numpy"),
    *("ogbench", "mujoco", "dm_control", "gymnasium", "gymnasium-robotics", "wandb"),
)


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
        UserError: the folder holds a run already.
    """
    if (run_dir / "config.yaml").exists():
        raise UserError(
            f"{run_dir} holds a run already: continue it with --resume {run_dir}, or choose "
            "another --run-dir."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
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
    """
    record = read_record(run_dir)
    record.setdefault("resumed", []).append(describe_environment())
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
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def read_spec(run_dir: Path) -> Spec:
    """What the agent of a run was built for."""
    values = read_record(run_dir)["spec"]
    return Spec(
        observation_shape=tuple(values["observation_shape"]),
        observation_dtype=values["observation_dtype"],
        action_dim=values["action_dim"],
        reward_range=tuple(values["reward_range"]),
    )


def find_dataset(run_dir: Path) -> Store | None:
    """The dataset of a run, if it is still where it was, and the same."""
    dataset = read_record(run_dir)["dataset"]
    try:
        store = open_store(dataset["path"])
    except StoreError:
        return None
    return store if store.attributes["digests"] == dataset["digests"] else None


def read_render_profile(run_dir: Path) -> str:
    """The render profile of the pictures that a run was trained on."""
    return read_record(run_dir)["dataset"]["render_profile"] or "official"


def read_record(run_dir: Path) -> dict[str, Any]:
    """What `environment.json` of a run folder holds.

    Raises:
        UserError: it cannot be read.
    """
    path = run_dir / "environment.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); is {run_dir} a run folder?") from None
    return record


def _write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    write_atomically(run_dir / "environment.json", json.dumps(record, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old one or the new one, never a part."""
    part = path.with_name(f".{path.name}.partial")
    part.write_text(text)
    os.replace(part, path)


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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "unknown"
    )
