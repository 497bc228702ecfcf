"""A trained policy as one object: to act with, to write into a folder, to fetch from the hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from deflow_vision.agents.base import Agent, Generators
from deflow_vision.config import TrainConfig, from_yaml, to_yaml
from deflow_vision.sharing.card import model_card
from deflow_vision.sharing.folder import (
    CARD,
    CONFIG,
    GRAPHS,
    NEEDED,
    WEIGHTS,
    new_folder,
    open_folder,
)
from deflow_vision.sharing.graph import WRITERS
from deflow_vision.sharing.hub import download, is_hub_name
from deflow_vision.sharing.origin import describe, without_places
from deflow_vision.sharing.record import Record
from deflow_vision.training.restore import build_agent, load_policy
from deflow_vision.training.weights import load_weights, write_weights
from deflow_vision.types import UserError


class Policy:
    """Maps observations to actions, NumPy arrays both.

    Attributes:
        agent: the module, on its device.
        config: the configuration of its run, without places on a machine.
        record: what it is, was trained on and reached.
    """

    def __init__(self, agent: Agent, config: TrainConfig, record: Record) -> None:
        self.agent = agent
        self.config = config
        self.record = record

    @classmethod
    def from_run(cls, run_dir: Path | str, step: int | None = None) -> Self:
        """The policy of a checkpoint, on the CPU.

        Args:
            run_dir: the run folder; of the dataset, only what is still there is described.
            step: which checkpoint; by default the newest.

        Raises:
            UserError: there is no such run or checkpoint, or it is damaged.
        """
        agent, config, updates = load_policy(Path(run_dir), step)
        record = describe(Path(run_dir), config, updates, agent.noise_dim(explore=False))
        return cls(agent, without_places(config), record)

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """A policy that somebody shared. Nothing in it is run: its files are numbers and text.

        Args:
            source: a folder of `save_pretrained`, or "owner/name" on the Hugging Face hub.
            revision: a branch, a tag or a commit there.
            device: where it goes, such as "cuda".

        Raises:
            UserError: there is none, or it is damaged, or of a newer version, or a pickle.
        """
        folder = _find(source, revision)
        record = open_folder(folder)
        config = from_yaml(folder / CONFIG)
        agent = build_agent(config, record.spec, record.updates, device, folder / WEIGHTS)
        load_weights(folder / WEIGHTS, agent)
        return cls(agent, config, record)

    def save_pretrained(
        self, folder: Path | str, *, formats: Iterable[str] = (), overwrite: bool = False
    ) -> None:
        """Write the policy into a folder, whole or not at all.

        Args:
            folder: a new one, or one that holds a policy of the same run.
            formats: graphs to write beside the weights: "torch-export", "onnx".
            overwrite: whether the policy of another run may be replaced.

        Raises:
            UserError: the folder holds something else, or there is no such format.
        """
        formats = sorted(set(formats))
        if unknown := [name for name in formats if name not in WRITERS]:
            raise UserError(f"there is no format {unknown[0]!r}; choose {', '.join(WRITERS)}.")
        with new_folder(Path(folder), self.record, overwrite=overwrite) as part:
            write_weights(part / WEIGHTS, self.agent)
            (part / CONFIG).write_text(to_yaml(self.config))
            for name in formats:
                WRITERS[name](self.agent, part / GRAPHS[name])
            files = [*NEEDED, *(GRAPHS[name] for name in formats)]
            (part / CARD).write_text(model_card(self.record, files))

    def __call__(self, observations: np.ndarray, *, generator: Generators) -> np.ndarray:
        """Actions in [-1, 1], float32: (A,) of one observation, (B, A) of a batch.

        Args:
            observations: one, or a batch of them; of the shape `record.observation_shape`, so with
                the frames of a stack along the last axis, as `envs.wrappers.FrameStack` puts them.
                Pixels are uint8, states floats.
            generator: a `torch.Generator` of the CPU for the policy's noise, or one a row; None
                draws from PyTorch's own.

        Raises:
            UserError: another shape or dtype, or another number of generators.
        """
        shape = self.record.observation_shape
        array = np.asarray(observations)
        single = array.shape == shape
        batch = array[None] if single else array
        if batch.shape[1:] != shape or not len(batch):
            raise UserError(self._misshapen(array.shape))
        if (array.dtype == np.uint8) != self.agent.spec.pixels or array.dtype.kind not in "uf":
            raise UserError(
                f"observations are {array.dtype}; this policy takes {self.record.observation_dtype}"
                f"{', from 0 to 255' if self.agent.spec.pixels else ''}."
            )
        if isinstance(generator, Sequence) and len(generator) != len(batch):
            raise UserError(f"{len(generator)} generators for {len(batch)} observations.")
        rows = torch.from_numpy(np.ascontiguousarray(batch, self.record.observation_dtype))
        device = next(self.agent.parameters()).device
        actions = self.agent.act(rows.to(device), generator=generator).cpu().numpy()
        return actions[0] if single else actions

    def _misshapen(self, found: tuple[int, ...]) -> str:
        shape, stack = self.record.observation_shape, self.record.frame_stack
        text = f"observations are of shape {found}; this policy takes {shape}, or a batch of those."
        single = (*shape[:-1], shape[-1] // stack)
        if stack > 1 and found[-len(single) :] == single:
            text += (
                f" That is a single frame: wrap the environment in FrameStack(env, {stack}), of "
                "deflow_vision.envs.wrappers, or make it by make_env(**policy.environment)."
            )
        return text

    @property
    def environment(self) -> dict[str, Any]:
        """Arguments of `make_env` and `EnvPool` for the environment that it was trained for.

        A policy for somebody's own environment names it as `module:factory`, which is imported when
        it is made: look at it first.
        """
        return {
            "env_id": self.record.env_id,
            "frame_stack": self.record.frame_stack,
            "render_profile": self.record.render_profile,
            "resolution": self.record.spec.resolution,
        }


def _find(source: Path | str, revision: str | None) -> Path:
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise UserError(f"{source} is a folder here, which has no revision {revision!r}.")
        return path
    if path.is_file():
        raise UserError(f"{source} is a file; a policy is a folder with its {WEIGHTS}.")
    if not is_hub_name(str(source)):
        raise UserError(f"{source} is no folder, nor a name on the hub: those are owner/name.")
    return download(str(source), revision)
