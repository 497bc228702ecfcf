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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deflow_vision.types import UserError

FILES = ("agent.safetensors", "optimizer.safetensors")


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another run."""


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
    part = folder / f".partial-step_{step}"
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
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old.path)
    return Checkpoint(final, step)


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
    save_file(_contiguous(_flatten(agent, optimizer)), part / FILES[1])
    state = {
        "step": step,
        "identity": dict(identity),
        "digests": {name: digest(part / name) for name in FILES},
    }
    if replay is not None:
        state["replay"] = dict(replay)
    (part / "state.json").write_text(json.dumps(state, indent=2) + "\n")
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
        device = str(next(agent.parameters()).device)
        arrays = load_file(checkpoint.path / FILES[1], device=device)
        parameters = dict(agent.named_parameters())
        for key, array in arrays.items():
            entry, _, name = key.partition("/")
            optimizer.state[parameters[name]][entry] = array


def load_weights(path: Path, agent: nn.Module) -> None:
    """Put the arrays of a safetensors file into `agent`.

    Raises:
        CheckpointError: they are not those of this agent.
    """
    weights = load_file(path, device=str(next(agent.parameters()).device))
    own = agent.state_dict()
    wrong = [n for n in own.keys() | weights.keys() if _shape(own, n) != _shape(weights, n)]
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{path.parent}: {len(wrong)} arrays do not fit this agent; {name} is "
            f"{_shape(weights, name)} there and {_shape(own, name)} here."
        )
    agent.load_state_dict(weights)


def write_weights(path: Path, agent: nn.Module) -> None:
    """Write all arrays of `agent` into a safetensors file."""
    save_file(_contiguous(agent.state_dict()), path)


def checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    found = []
    for path in (run_dir / "checkpoints").glob("step_*"):
        match = re.fullmatch(r"step_(\d+)", path.name)
        if match and (path / "state.json").is_file():
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


def _contiguous(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: array.detach().contiguous() for name, array in arrays.items()}


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `state.json` of a checkpoint says.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = checkpoint.path
    try:
        state = json.loads((path / "state.json").read_text())
        int(state["step"]), dict(state["identity"]), [state["digests"][name] for name in FILES]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}/state.json cannot be read ({error!r}); remove {path}."
        ) from None
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


def _shape(arrays: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(arrays[name].shape) if name in arrays else "missing"


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
