"""A sample of a store's states for analysis: observations, actions, and what is true in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deflow_vision.datasets.pick import pick_rows
from deflow_vision.datasets.relabel import environment_of
from deflow_vision.datasets.store import Split, Store
from deflow_vision.datasets.transitions import Transitions
from deflow_vision.envs.positions import arm_positions
from deflow_vision.envs.rendering import NO_DRAWING
from deflow_vision.envs.worker import run_in_worker
from deflow_vision.seeding import derive_seed
from deflow_vision.tasks import resolve_dataset
from deflow_vision.types import UserError

ARM_ACTIONS = ("x", "y", "z", "yaw", "gripper")
HELD_OUT_SHARE = 0.2
"""Of the sampled states, and of the training episodes where a store has no validation split."""


@dataclass(frozen=True)
class Sample:
    """N states that start transitions, those of training episodes first.

    Attributes:
        observations: (N, H, W, C * frame_stack) uint8, oldest frame first, or (N, D) float32.
        actions: the data's, (N, A).
        episodes: the number of each state's episode, (N,); no two splits share one.
        times: the step of each state in its episode, (N,).
        held_out: whether its episode is held out, (N,) bool.
        targets: what is true in each state by name, (N, T) float32, as `positions.arm_positions`
            has it, and `buttons`, the state of each, (N, number); empty where it is not known.
        why_no_targets: the reason, in words; empty where there are some.
        frame_stack: frames in an observation.
    """

    observations: np.ndarray
    actions: np.ndarray
    episodes: np.ndarray
    times: np.ndarray
    held_out: np.ndarray
    targets: dict[str, np.ndarray]
    why_no_targets: str
    frame_stack: int

    def __len__(self) -> int:
        """N."""
        return len(self.actions)

    @property
    def pixels(self) -> bool:
        """Whether observations are images."""
        return self.observations.dtype == np.uint8

    @property
    def pictures(self) -> np.ndarray:
        """The newest frame of each observation, (N, H, W, 3) uint8, a view."""
        channels = self.observations.shape[-1] // self.frame_stack
        return self.observations[..., -channels:]

    def describe(self) -> str:
        """Its counts in a line."""
        held = self.held_out
        return (
            f"{(~held).sum():,} states of {len(np.unique(self.episodes[~held]))} training "
            "episodes, "
            f"{held.sum():,} of {len(np.unique(self.episodes[held]))} held-out episodes"
        )


def draw_sample(store: Store, frames: int, *, frame_stack: int = 1, seed: int = 0) -> Sample:
    """Draw states without replacement.

    Memory grows with `frames`, not with the store, unless that has no validation split: then each
    of its transitions takes 16 bytes while the states are drawn.

    A fifth of them are of held-out episodes: of the validation split, which no agent is trained
    on, or, where there is none, of a fifth of the training episodes.

    Args:
        store: an open store.
        frames: N, how many; fewer where the store has fewer.
        frame_stack: frames in an observation.
        seed: of the draw. Which states are drawn does not depend on `frame_stack`.

    Raises:
        UserError: fewer than 10 frames asked for, or a store with a single episode.
    """
    if frames < 10:
        raise UserError(f"{frames} frames: at least 10 are needed, some thousands are better.")
    rng = np.random.default_rng(derive_seed(seed, "analysis", "frames"))
    count = round(HELD_OUT_SHARE * frames)
    indices = {
        name: Transitions(split.episode_ends, frame_stack)
        for name, split in store.splits.items()
        if split is not None
    }
    index = indices["train"]
    wanted: list[tuple[str, int | np.ndarray, int, bool]]
    if "val" in indices:
        wanted = [
            ("train", len(index), frames - count, False),
            ("val", len(indices["val"]), count, True),
        ]
    else:
        episodes = len(index.episode_ends)
        if episodes < 2:
            raise UserError(f"{store.path} has a single episode: none can be held out.")
        held = rng.permutation(episodes)[: max(1, round(HELD_OUT_SHARE * episodes))]
        out = np.isin(index.episodes(index.states(np.arange(len(index)))), held)
        wanted = [
            ("train", np.flatnonzero(~out), frames - count, False),
            ("train", np.flatnonzero(out), count, True),
        ]
    parts = []
    for name, transitions, number, held_out in wanted:
        number = min(number, transitions if isinstance(transitions, int) else len(transitions))
        chosen = indices[name].states(np.sort(rng.choice(transitions, number, replace=False)))
        split = store.splits[name]
        assert split is not None
        parts.append(_part(split, indices[name], chosen, held_out, name == "val"))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    observations, actions, episodes_of, times, held_mask, *side = columns
    targets, why = _targets(store, dict(zip(_side_names(store), side, strict=True)))
    return Sample(observations, actions, episodes_of, times, held_mask, targets, why, frame_stack)


def action_names(sample: Sample) -> tuple[str, ...]:
    """What the actions move, of an OGBench arm; empty of anything else."""
    arm = "gripper" in sample.targets and sample.actions.shape[1] == len(ARM_ACTIONS)
    return ARM_ACTIONS if arm else ()


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `count` rows."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _side_names(store: Store) -> list[str]:
    return [name for name in ("qpos", "button_states") if name in store.train.side]


def _part(
    split: Split, index: Transitions, states: np.ndarray, held_out: bool, is_val: bool
) -> list[np.ndarray]:
    """Observations, actions, episodes, times, held_out and the side arrays of some states."""
    numbers = index.frames(states)[:, :-1]  # (n, frame_stack)
    unique, places = np.unique(numbers, return_inverse=True)
    frames = pick_rows(split.observations, unique)[places.reshape(numbers.shape)]
    if split.pixels:
        frames = np.moveaxis(frames, 1, -2)  # (n, H, W, frame_stack, C)
    observations = frames.reshape(*frames.shape[: 3 if split.pixels else 1], -1)
    episodes = index.episodes(states)
    return [
        observations,
        pick_rows(split.actions, states),
        -1 - episodes if is_val else episodes,
        states - index.episode_starts[episodes],
        np.full(len(states), held_out),
        *(
            pick_rows(split.side[name], states)
            for name in ("qpos", "button_states")
            if name in split.side
        ),
    ]


def _targets(store: Store, side: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """What is true in states by name; or none, and why."""
    if "qpos" not in side:
        return {}, f"{store.path} has no qpos to read positions from"
    try:
        task = resolve_dataset(str(store.attributes["env_id"]))
    except UserError:
        return {}, f"{store.attributes['env_id']} is no dataset of OGBench's"
    name = environment_of(task.dataset).removeprefix("visual-")
    if task.suite != "ogbench" or not name.startswith(("cube", "scene", "puzzle")):
        return {}, f"positions are read of OGBench's arms, and {task.dataset} has none"
    targets = run_in_worker(arm_positions, name, side["qpos"], variables=NO_DRAWING)
    if "button_states" in side:
        targets["buttons"] = side["button_states"].astype(np.float32)
    return targets, ""
