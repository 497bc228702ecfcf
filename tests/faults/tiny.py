"""One sound, tiny specimen of everything that the library writes and reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from deflow_vision.agents import AGENTS
from deflow_vision.agents.base import Agent
from deflow_vision.config import compose, load, to_yaml
from deflow_vision.datasets.relabel import Goal
from deflow_vision.datasets.replay import Replay
from deflow_vision.datasets.store import StoreWriter
from deflow_vision.networks.encoders import EncoderConfig
from deflow_vision.training import checkpoint
from deflow_vision.training.loop import make_optimizer, train
from deflow_vision.types import Spec
from tests.datasets import conftest as stores
from tests.datasets.test_d4rl_hdf5 import PEN, rows_of
from tests.datasets.test_ogbench_npz import arrays_of
from tests.datasets.test_replay import SHAPES, fill
from tests.training.conftest import TASKS, write_task_store

DATASET = "cube-double-play"
IDENTITY = {"task": "tiny", "agent": {"discount": 0.99}}
EPISODES = {"train": (6, 2, 9), "val": (4,)}


def flags(store: Path, run: Path, *more: str, kind: str = "state") -> list[str]:
    """The command line of a run of six updates on a store of `write_task_store`."""
    return [
        *("--task", TASKS[kind], "--data.path", str(store), "--run-dir", str(run)),
        *("--agent.hidden-dims", "8", "--batch-size", "6", "--offline-steps", "6"),
        *("--checkpoint.every", "3", "--checkpoint.keep", "9", "--log.every", "1"),
        *("--eval.every", "3", "--eval.episodes", "0", "--eval.val-batches", "1"),
        *("--num-threads", "1", *more),
    ]


def write_store(folder: Path) -> None:
    """A store of pixels in `a.zarr`."""
    stores.write_store(folder / "a.zarr")


@contextlib.contextmanager
def goals_of_two_cubes() -> Iterator[None]:
    """Goals in place of OGBench's, which take a simulator to find."""
    goals = {"task1": Goal(cubes=np.zeros((2, 3))), "task2": Goal(cubes=np.eye(3)[[0, 0]])}
    with mock.patch("deflow_vision.datasets.ogbench_npz.read_goals", return_value=goals):
        yield


def write_npz(folder: Path) -> None:
    """An OGBench file and its validation file."""
    for split, ending in (("train", ""), ("val", "-val")):
        np.savez_compressed(folder / f"{DATASET}-v0{ending}.npz", **arrays_of(split, pixels=False))


def write_hdf5(folder: Path) -> None:
    """A D4RL file."""
    with h5py.File(folder / f"{PEN}.hdf5", "w") as file:
        for key, value in rows_of(PEN, (4, 5, 30), (9, 19, 39)).items():
            if "/" not in key:
                file.create_dataset(key, data=value, compression="gzip")


def write_downloaded(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same files, with their digests recorded beside them as a download does."""

    def write_with_digests(folder: Path) -> None:
        write(folder)
        for file in sorted(folder.iterdir()):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            file.with_name(f"{file.name}.sha256").write_text(f"{digest}  {file.name}\n")

    return write_with_digests


def unfinished_writer(path: Path) -> StoreWriter:
    """A writer that can go on with what was written of a store."""
    return StoreWriter(
        path,
        source="test",
        env_id="env-v0",
        seeds=0,
        observation_shape=(5,),
        observation_dtype="float32",
        action_dim=stores.ACTION_DIM,
        chunk=4,
        plan={"episodes": 3},
    )


def fill_store(writer: StoreWriter, stop: int | None = None) -> None:
    """Append the episodes that a writer lacks; Ctrl-C before number `stop` of the training ones."""
    for split, lengths in EPISODES.items():
        for number, length in enumerate(lengths):
            if number == stop:
                raise KeyboardInterrupt
            if number >= writer.episodes_done(split):
                actions = np.full((length - 1, stores.ACTION_DIM), number / 10)
                frames = stores.frames_of(length * number, length, pixels=False)
                writer.append_episode(split, frames, actions)


def write_unfinished(folder: Path) -> None:
    """What a writer leaves that is stopped after two episodes."""
    with contextlib.suppress(KeyboardInterrupt), unfinished_writer(folder / "a.zarr") as writer:
        fill_store(writer, stop=2)


def agent() -> Agent:
    """A small agent."""
    spec = Spec((5,), "float32", 2, (-1.0, 0.0))
    return AGENTS["deflow"](spec, AGENTS["deflow"].Config(hidden_dims=(8,)), EncoderConfig())


def write_checkpoints(folder: Path) -> None:
    """Two checkpoints of an agent after an update each."""
    ours = agent()
    optimizer = make_optimizer(ours)
    for step in (3, 6):
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.grad = parameter.detach() + 0.1
        optimizer.step()
        checkpoint.save(folder, step, ours, optimizer, IDENTITY, keep=9)


def write_config(folder: Path) -> None:
    """A configuration file."""
    (folder / "config.yaml").write_text(to_yaml(compose("cube-single-play", "deflow")))


def write_table(folder: Path) -> None:
    """A benchmark's table."""
    shutil.copy(Path("configs/benchmarks/mini.yaml"), folder / "table.yaml")


def write_run(folder: Path) -> None:
    """A run folder, with evaluation episodes as they would be there; its data in `task.zarr`."""
    train(load(flags(write_task_store(folder.parent / "task.zarr", "state"), folder / "run")))
    run = folder / "run"
    header = "step,episode,seed,success,return,length,terminated,capped\n"
    (run / "episodes.csv").write_text(f"{header}6,0,11,1,-4.5,5,1,0\n6,1,12,0,-30,30,0,0\n")
    again = run / "evaluations" / "20260101-000000"
    again.mkdir(parents=True)
    asked = {"env": "cube-single-play-singletask-task1-v0", "seed": 9, "acting": {}}
    (again / "evaluation.json").write_text(json.dumps({"arguments": asked}))
    shutil.copy(run / "episodes.csv", again)


def write_policy(folder: Path) -> None:
    """An exported policy."""
    from deflow_vision.sharing.policy import Policy

    with tempfile.TemporaryDirectory() as place:
        write_run(Path(place, "sound"))
        Policy.from_run(Path(place, "sound", "run")).save_pretrained(folder)


def replay(folder: Path, saved: Any = None) -> Replay:
    """An online buffer of states."""
    return Replay(
        folder,
        observation_shape=SHAPES[False],
        dtype="float32",
        action_dim=2,
        frame_stack=3,
        capacity=100,
        saved=saved,
    )


def write_replay(folder: Path) -> None:
    """An online buffer, and beside its folder what a checkpoint says of it."""
    ours = replay(folder)
    fill(ours, (4, 2, 5), False)
    (folder.parent / "replay.json").write_text(json.dumps(ours.state()))
    ours.close()
