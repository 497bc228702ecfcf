"""The folder of a shared policy: written whole or not at all, read without a pickle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deflow_vision.sharing.record import Record, read_record
from deflow_vision.training.checkpoint import digest, sync
from deflow_vision.types import UserError

WEIGHTS, CONFIG, SPEC, CARD = "model.safetensors", "config.yaml", "spec.json", "README.md"
NEEDED = (WEIGHTS, CONFIG, SPEC, CARD)
"""What a policy is loaded from, and all that is asked of the hub."""
GRAPHS = {"torch-export": "policy.pt2", "onnx": "policy.onnx"}
"""Files that act without this library, by the name of their format."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@contextmanager
def new_folder(to: Path, record: Record, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill with all files but `spec.json`, which then takes the place of `to`.

    Args:
        to: where the policy is to lie.
        record: what `spec.json` shall say.
        overwrite: whether the policy of another run may be replaced.

    Raises:
        UserError: there is something at `to` that must stay.
    """
    _check_replaceable(to, record.run, overwrite)
    to = to.resolve()
    to.parent.mkdir(parents=True, exist_ok=True)
    part, old = (to.with_name(f".{word}-{to.name}") for word in ("partial", "replaced"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        files = sorted(part.iterdir())
        record.write(part / SPEC, {path.name: digest(path) for path in files if path.name != CARD})
        for path in (*files, part / SPEC, part):
            sync(path)
        shutil.rmtree(old, ignore_errors=True)
        if to.exists():
            to.rename(old)
        part.rename(to)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not to.exists():
            old.rename(to)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(to: Path, run: str, overwrite: bool) -> None:
    if not to.exists():
        return
    if not to.is_dir():
        raise UserError(f"{to} is a file; give a folder.")
    found = {path.name for path in to.iterdir()}
    if strange := found - {*NEEDED, *GRAPHS.values()}:
        raise UserError(
            f"{to} holds {min(strange)}, which no export has: give another folder, or move away "
            "what is not to be deleted."
        )
    if found and not overwrite and _run_of(to) != run:
        raise UserError(f"{to} holds a policy of another run: give another folder, or --overwrite.")


def _run_of(folder: Path) -> str | None:
    """The run of the policy in a folder, None where it does not tell."""
    try:
        return read_record(folder / SPEC)[0].run
    except UserError:
        return None


def open_folder(folder: Path) -> Record:
    """Check the folder of a policy, and tell what it holds.

    Raises:
        UserError: it is no such folder, a file is missing or damaged, there are pickles in place of
            the weights, or it is of a newer version.
    """
    names = {path.name for path in folder.iterdir()}
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise UserError(
            f"{folder} holds {pickles[0]}: a pickle runs code when it is opened, so folders with "
            "one are refused. A policy is shared as safetensors, by scripts/export.py."
        )
    if "checkpoints" in names and SPEC not in names:
        raise UserError(f"{folder} is a run: Policy.from_run loads it, scripts/export.py shares it")
    if missing := [name for name in (SPEC, CONFIG, WEIGHTS) if name not in names]:
        raise UserError(f"{folder} holds no policy: {', '.join(missing)} missing.")
    record, digests = read_record(folder / SPEC)
    for name in {WEIGHTS, CONFIG} | (digests.keys() & names):
        if digest(folder / name) != digests.get(name):
            raise UserError(
                f"{folder / name} does not match its digest in {SPEC}: it is damaged or was "
                "changed. Fetch or export the policy again."
            )
    return record
