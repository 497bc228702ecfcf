"""Weights in safetensors files: compared with an agent before any memory is taken for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deflow_vision.types import UserError

_DTYPES = {
    **{torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"},
    **{torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"},
}


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another run."""


def read_arrays(path: Path, device: torch.device) -> dict[str, Tensor]:
    """The arrays of a safetensors file.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def load_weights(path: Path, agent: nn.Module) -> None:
    """Put the arrays of a safetensors file into `agent`.

    Raises:
        CheckpointError: they are not those of this agent, or not finite.
    """
    check_fit(path, agent)
    weights = read_arrays(path, next(agent.parameters()).device)
    if wrong := [n for n, array in weights.items() if not array.isfinite().all()]:
        raise CheckpointError(f"{path}: {min(wrong)} holds numbers that are not finite.")
    agent.load_state_dict(weights)


def check_fit(path: Path, agent: nn.Module) -> None:
    """Compare what a safetensors file says of its arrays with those of an agent.

    Args:
        path: the file.
        agent: on any device, "meta" included.

    Raises:
        CheckpointError: they are not those of this agent, or the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            theirs = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    own = agent.state_dict()
    ours = {n: (tuple(array.shape), _DTYPES.get(array.dtype, "?")) for n, array in own.items()}
    wrong = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{path.parent}: {len(wrong)} arrays do not fit this agent; {name} is "
            f"{_words(theirs.get(name))} there and {_words(ours.get(name))} here."
        )


def write_weights(path: Path, agent: nn.Module) -> None:
    """Write all arrays of `agent` into a safetensors file."""
    write_arrays(path, agent.state_dict())


def write_arrays(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Write arrays into a safetensors file."""
    save_file({name: array.detach().contiguous() for name, array in arrays.items()}, path)


def _words(array: tuple[tuple[int, ...], str] | None) -> str:
    return "missing" if array is None else f"{array[0]} {array[1]}"
