"""Trained agents, of run folders and of shared policies, for analysis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from deflow_vision.analysis.encoders import Subject
from deflow_vision.datasets.store import Store, open_store
from deflow_vision.sharing.policy import Policy
from deflow_vision.training.checkpoint import checkpoints
from deflow_vision.training.run_folder import find_dataset
from deflow_vision.types import UserError


def load_subjects(
    folders: Sequence[Path],
    which: Literal["newest", "all"] = "newest",
    device: torch.device | str = "cpu",
) -> tuple[list[Subject], int]:
    """The agents of some folders, with names that tell them apart, and their frame stack.

    Args:
        folders: run folders, or folders of exported policies, at least one.
        which: checkpoints of each run; an exported policy is one.
        device: where the agents go.

    Returns:
        The agents, checkpoints of a run from the first to the last; frames in an observation.

    Raises:
        UserError: one cannot be loaded, or they stack different numbers of frames.
    """
    policies = [(folder, policy) for folder in folders for policy in _policies(folder, which)]
    stacks = {policy.record.frame_stack for _, policy in policies}
    if len(stacks) != 1:
        raise UserError(
            f"these policies stack {sorted(stacks)} frames; only such as see the same observations "
            "can be compared."
        )
    names = _names({folder: policy for folder, policy in policies})
    subjects = []
    for folder, policy in policies:
        agent = policy.agent.to(device)
        updates = policy.record.updates
        subjects.append(Subject(names[folder], updates, agent, policy.config.encoder))
    return subjects, stacks.pop()


def open_data(path: str | None, run: Path) -> Store:
    """The store at a path or an address, or else the dataset of a run.

    Raises:
        UserError: none is named, and the run's is not where it was.
    """
    if path is not None:
        return open_store(path)
    store = find_dataset(run) if (run / "environment.json").is_file() else None
    if store is None:
        raise UserError(f"the dataset of {run} is not known here: name a store with --data.")
    return store


def _policies(folder: Path, which: Literal["newest", "all"]) -> list[Policy]:
    if not (folder / "environment.json").is_file():
        return [Policy.from_pretrained(folder)]
    if which == "newest":
        return [Policy.from_run(folder)]
    steps = sorted(checkpoint.step for checkpoint in checkpoints(folder))
    if not steps:
        raise UserError(f"{folder} has no checkpoint yet.")
    return [Policy.from_run(folder, step) for step in steps]


def _names(policies: dict[Path, Policy]) -> dict[Path, str]:
    """Algorithm, who trains which encoder, and seed; the folder too where that is not enough."""
    names = {}
    for folder, policy in policies.items():
        config, encoder = policy.config, policy.config.encoder
        kind = ", separate" if encoder.sharing == "separate" else ""
        if encoder.gradients_from is not None:
            kind += f", encoder of {' and '.join(encoder.gradients_from)}"
        names[folder] = f"{config.algo}{kind}, seed {config.seed}"
    counts = Counter(names.values())
    return {
        folder: name if counts[name] == 1 else f"{name} ({folder.name})"
        for folder, name in names.items()
    }
