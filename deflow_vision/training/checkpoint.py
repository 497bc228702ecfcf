"""Checkpoints: all that a run needs to go on, bit for bit, without a pickle.

A folder `checkpoints/step_N/` holds `agent.safetensors`, `optimizer.safetensors` and `state.json`
(the step, what the run is, a digest of each file, and how long the online buffer in `replay/` was).
It is written under another name and renamed when complete. No random state is kept, because there
is none: every draw of update k is a function of (seed, k).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from deflow_vision.files import is_sound, read_json, sealed_text
from deflow_vision.training.weights import (
    CheckpointError,
    load_weights,
    read_arrays,
    write_arrays,
    write_weights,
)

FILES = ("agent.safetensors", "optimizer.safetensors")
_HIDDEN = ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        path: its folder.
        step: updates done when it was taken.
    """

    path: Path
    step: int


def save(
    run_dir: Path,
    step: int,
    agent: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    keep: int,
    replay: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write `checkpoints/step_N`, then remove all but the newest `keep` checkpoints.

    Args:
        run_dir: the run folder.
        step: N, the updates done.
        agent: the module, unwrapped.
        optimizer: its optimizer, unwrapped.
        identity: what a resuming run must have in common with this one, as plain values.
        keep: how many checkpoints stay; at least 1.
        replay: the online buffer's length, cursor and digests, where there is one.

    Raises:
        CheckpointError: the disk is full, or does not take it; earlier checkpoints stay.
    """
    folder = run_dir / "checkpoints"
    part = folder / f"{_HIDDEN}step_{step}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write(part, step, agent, optimizer, identity, replay)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the checkpoint of step {step} into {folder}: {error}. The checkpoints "
            f"before it are whole; when there is room, go on with --resume {run_dir}."
        ) from error
    final = folder / f"step_{step}"
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    sync(folder)
    remove_old(run_dir, keep)
    return Checkpoint(final, step)


def remove_old(run_dir: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what a kill has left of any.

    Args:
        run_dir: the run folder.
        keep: how many stay; at least 1.
    """
    folder = run_dir / "checkpoints"
    for old in checkpoints(run_dir)[:-keep]:
        # Under another name first: what a kill leaves of it is no checkpoint, and goes next time.
        old.path.rename(folder / f"{_HIDDEN}{old.path.name}")
    for path in folder.glob(f"{_HIDDEN}step_*"):
        shutil.rmtree(path, ignore_errors=True)


def _write(
    part: Path,
    step: int,
    agent: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    replay: Mapping[str, Any] | None,
) -> None:
    part.mkdir(parents=True)
    write_weights(part / FILES[0], agent)
    write_arrays(part / FILES[1], _flatten(agent, optimizer))
    state = {
        "step": step,
        "identity": dict(identity),
        "digests": {name: digest(part / name) for name in FILES},
    }
    if replay is not None:
        state["replay"] = dict(replay)
    (part / "state.json").write_text(sealed_text(state))
    for name in (*FILES, "state.json"):
        sync(part / name)


def load(
    checkpoint: Checkpoint,
    agent: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Put a checkpoint's values into `agent` and `optimizer`.

    Args:
        checkpoint: from `checkpoints` or `latest`.
        agent: the module, unwrapped, of the same shapes.
        optimizer: its optimizer, unwrapped; None to load the weights alone.
        identity: what this run is; None skips the comparison.

    Raises:
        CheckpointError: a file is damaged, or the checkpoint is of another configuration.
    """
    state = read_state(checkpoint)
    for name in FILES:
        if digest(checkpoint.path / name) != state["digests"][name]:
            raise CheckpointError(
                f"{checkpoint.path / name} does not match its digest: the file is damaged. Remove "
                f"{checkpoint.path} to resume from the checkpoint before it."
            )
    if identity is not None:
        _compare(checkpoint.path, state["identity"], identity)
    load_weights(checkpoint.path / FILES[0], agent)
    if optimizer is not None:
        _load_optimizer(checkpoint.path / FILES[1], agent, optimizer)


def _load_optimizer(path: Path, agent: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the arrays of a safetensors file into the state of `optimizer`."""
    parameters = dict(agent.named_parameters())
    for key, array in read_arrays(path, next(agent.parameters()).device).items():
        entry, _, name = key.partition("/")
        shape = parameters[name].shape if name in parameters else None
        wanted = {"step": torch.Size(()), "exp_avg": shape, "exp_avg_sq": shape}.get(entry)
        if shape is None or array.shape != wanted or array.dtype != torch.float32:
            raise CheckpointError(
                f"{path}: {key!r}, {tuple(array.shape)} {array.dtype}, is nothing that the "
                "optimizer of this agent has."
            )
        optimizer.state[parameters[name]][entry] = array


def checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    found = []
    for path in (run_dir / "checkpoints").glob("step_*"):
        match = re.fullmatch(r"step_(\d+)", path.name)
        if match and path.is_dir():
            found.append(Checkpoint(path, int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest(run_dir: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None."""
    found = checkpoints(run_dir)
    return found[-1] if found else None


def _flatten(agent: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as "<entry>/<parameter's name>" -> tensor."""
    return {
        f"{entry}/{name}": value
        for name, parameter in agent.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `state.json` of a checkpoint says.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = checkpoint.path
    try:
        state = read_json(path / "state.json")
        int(state["step"]), dict(state["identity"]), [state["digests"][name] for name in FILES]
    except (OSError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}/state.json cannot be read ({error!r}); remove {path}."
        ) from None
    if not is_sound(state):
        raise CheckpointError(
            f"{path}/state.json does not match its own digest: it is damaged. Remove {path} to "
            "resume from the checkpoint before it."
        )
    if state["step"] != checkpoint.step:
        raise CheckpointError(
            f"{path} is the checkpoint of step {state['step']}: give it that name, or remove it."
        )
    return state  # type: ignore[no-any-return]


def _compare(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    ours = json.loads(json.dumps(ours))  # tuples become lists, as in the file
    wrong = [key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)]
    if wrong:
        lines = "\n".join(
            f"  {k}: {theirs.get(k)} there, {ours.get(k)} here" for k in sorted(wrong)
        )
        raise CheckpointError(
            f"{path} is of another configuration:\n{lines}\n"
            "Resume with the values of its own run, or start a new run."
        )


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        CheckpointError: it is missing.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; remove {path.parent}.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
