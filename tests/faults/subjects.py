"""What is mutated, and how the library opens it: a table of subjects.

A subject is made once, sound, into a folder. Its `read` opens a copy of that folder with the
library's own functions and returns what it found there, so that two readings can be compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deflow_vision.config import compose, from_yaml, load, to_dict, to_yaml
from deflow_vision.files import sealed_text
from deflow_vision.types import UserError
from tests.faults import tiny


@dataclass(frozen=True)
class Subject:
    """Something that is opened.

    Attributes:
        name: its own.
        make: writes it, sound, into an empty folder.
        read: opens it there; returns what it found, comparable.
        guarded: whether digests (or CRCs) say what each of these files holds, by its name below the
            folder: then nothing but what was written may be accepted.
        renew: makes digests fit after a mutation, as somebody with bad intentions would.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    guarded: Callable[[str], bool] = lambda name: False
    renew: Callable[[Path], None] | None = None


def _everything(name: str) -> bool:
    return True


def _hash(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def read_store(path: Path) -> Any:
    """Open it, verify it, read all of it, and draw its card."""
    from rich.console import Console

    from deflow_vision.datasets.card import card
    from deflow_vision.datasets.schema import read_all
    from deflow_vision.datasets.store import open_store, verify

    store = open_store(path)
    values = {}
    for name, split in store.splits.items():
        if split is None:
            continue
        arrays = {"observations": split.observations, "actions": split.actions, **split.side}
        found = {key: _hash(read_all(array)) for key, array in arrays.items()}
        found |= {
            goal: _hash(split.rewards(goal) + 2 * split.masks(goal)) for goal in split.goals()
        }
        values[name] = found | {"ends": split.episode_ends.tolist()}
    Console(file=io.StringIO(), width=100).print(card(path))
    if problems := verify(path):
        raise UserError("; ".join(problems))
    return values, store.attributes


def _renew_store(path: Path) -> None:
    from deflow_vision.datasets.schema import complete, open_root

    with contextlib.suppress(Exception):  # where nothing can be renewed, it is damaged as it is
        root = open_root(path, "r+")
        complete(root, {k: v for k, v in root.attrs.items() if k not in ("digests", "complete")})


def _in(name: str, function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: function(folder / name)


def _convert(source: Path) -> Any:
    from deflow_vision.datasets.convert import convert

    folder = source.parent
    target = folder.parent / "converted.zarr"
    for path in (target, target.with_name("converted.zarr.partial")):
        shutil.rmtree(path, ignore_errors=True)
    with tiny.goals_of_two_cubes():
        convert(source, target)
    values, attributes = read_store(target)
    return values, attributes["counts"]


def _go_on(folder: Path) -> Any:
    with tiny.unfinished_writer(folder / "a.zarr") as writer:
        tiny.fill_store(writer)
    return read_store(folder / "a.zarr")[0]


def _load_checkpoint(run: Path) -> Any:
    from deflow_vision.training import checkpoint
    from deflow_vision.training.loop import make_optimizer

    agent = tiny.agent()
    optimizer = make_optimizer(agent)
    newest = checkpoint.latest(run)
    if newest is None:
        raise UserError(f"{run} has no checkpoint")
    checkpoint.load(newest, agent, optimizer, tiny.IDENTITY)
    weights = {name: _hash(value.numpy()) for name, value in agent.state_dict().items()}
    moments = {
        f"{name}/{entry}": _hash(value.numpy())
        for name, parameter in agent.named_parameters()
        for entry, value in optimizer.state[parameter].items()
    }
    state = {k: v for k, v in checkpoint.read_state(newest).items() if k != "digest"}
    return newest.step, weights, moments, state


def _renew_checkpoint(run: Path) -> None:
    from deflow_vision.training import checkpoint

    for state in run.glob("checkpoints/*/state.json"):
        with contextlib.suppress(Exception):
            values = json.loads(state.read_text())
            files = {name: checkpoint.digest(state.parent / name) for name in checkpoint.FILES}
            state.write_text(sealed_text({**values, "digests": files}))


def _read_config(folder: Path) -> Any:
    config = compose(files=[folder / "config.yaml"])
    again = folder / "again.yaml"
    again.write_text(to_yaml(config))
    if to_dict(from_yaml(again)) != to_dict(config):
        raise AssertionError("a configuration that YAML does not bring back")
    return to_dict(config)


def _read_table(folder: Path) -> Any:
    from deflow_vision.benchmark.table_file import load_table

    table = load_table(str(folder / "table.yaml"))
    return [cell.arguments() for cell in table.cells(Path("runs"))]


def _read_run(run: Path) -> Any:
    """Resume it, draw it, sum it up, load its policy and list its evaluations."""
    from deflow_vision.analysis.plots import learning_curves
    from deflow_vision.analysis.summary import summarise
    from deflow_vision.analysis.tables import read_table
    from deflow_vision.sharing.policy import Policy
    from deflow_vision.training.loop import train

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            config = load(
                ["--resume", str(run), "--data.path", str(run.parent.parent / "task.zarr")]
            )
    except SystemExit as error:
        if error.code == 2:
            raise UserError(stderr.getvalue()) from error
        raise
    train(config)
    learning_curves(run)
    record = Policy.from_run(run).record
    return summarise(run, 6), read_table(run / "train.csv").to_csv(), repr(record)


def _read_policy(folder: Path) -> Any:
    from deflow_vision.sharing.policy import Policy

    policy = Policy.from_pretrained(folder)
    rows = np.zeros((2, *policy.record.observation_shape), policy.record.observation_dtype)
    actions = policy(rows, generator=torch.Generator().manual_seed(0))
    if not np.isfinite(actions).all():
        raise AssertionError(f"actions {actions}")
    return _hash(actions), repr(policy.record), to_dict(policy.config)


def _renew_policy(folder: Path) -> None:
    from deflow_vision.training.checkpoint import digest

    with contextlib.suppress(Exception):
        values = json.loads((folder / "spec.json").read_text())
        files = {name: digest(folder / name) for name in values["files"]}
        (folder / "spec.json").write_text(sealed_text({**values, "files": files}))


def _read_replay(folder: Path) -> Any:
    replay = tiny.replay(folder, json.loads((folder.parent / "replay.json").read_text()))
    try:
        batch = replay.batch(np.arange(len(replay)))
        return [_hash(column) for column in batch if column is not None]
    finally:
        replay.close()


NPZ, HDF5 = "cube-double-play-v0.npz", "pen-human-v1.hdf5"

SUBJECTS = (
    Subject("store", tiny.write_store, _in("a.zarr", read_store), _everything),
    Subject(
        "store, digests renewed",
        tiny.write_store,
        _in("a.zarr", read_store),
        renew=_in("a.zarr", _renew_store),
    ),
    Subject("npz", tiny.write_npz, _in(NPZ, _convert)),
    Subject(
        "npz, downloaded", tiny.write_downloaded(tiny.write_npz), _in(NPZ, _convert), _everything
    ),
    Subject("hdf5", tiny.write_hdf5, _in(HDF5, _convert)),
    Subject(
        "hdf5, downloaded", tiny.write_downloaded(tiny.write_hdf5), _in(HDF5, _convert), _everything
    ),
    Subject("unfinished store", tiny.write_unfinished, _go_on),
    Subject("checkpoint", tiny.write_checkpoints, _load_checkpoint, _everything),
    Subject(
        "checkpoint, digests renewed",
        tiny.write_checkpoints,
        _load_checkpoint,
        renew=_renew_checkpoint,
    ),
    Subject("configuration", tiny.write_config, _read_config),
    Subject("benchmark table", tiny.write_table, _read_table),
    Subject(
        "run folder", tiny.write_run, _in("run", _read_run), lambda name: "/checkpoints/" in name
    ),
    Subject("policy", tiny.write_policy, _read_policy, lambda name: name != "README.md"),
    Subject("policy, digests renewed", tiny.write_policy, _read_policy, renew=_renew_policy),
    Subject("online buffer", tiny.write_replay, _read_replay, _everything),
)
"""All that is mutated."""
