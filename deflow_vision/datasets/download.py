"""Downloads of published files: locked, resumed where they broke off, checked, then renamed.

A file whose digest is not known beforehand is read through when it arrives. Its SHA-256 is recorded
beside it, in `<file>.sha256`, and holds from then on: a file that has changed since is refused,
here and before it is converted.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deflow_vision.datasets.intact import has_end, refuse_damaged
from deflow_vision.datasets.transfer import DownloadError, forget, lock, state_file, transfer
from deflow_vision.tasks import configs_root, resolve_dataset

__all__ = ["DownloadError", "check", "check_recorded", "download", "fetch", "set_aside_damaged"]

_log = logging.getLogger(__name__)

_TIMEOUT = 60.0


def download(
    dataset: str,
    folder: Path,
    *,
    addresses: Sequence[str] | None = None,
    offline: bool = False,
    pause: float = 2.0,
    timeout: float = _TIMEOUT,
) -> list[Path]:
    """Download the files of a dataset, as `configs/datasets.yaml` names them.

    A file that is there already is checked and kept; one that is there in part is gone on with.

    Args:
        dataset: the dataset's name, with or without its version.
        folder: where the files go.
        addresses: where to look, in order, each with `{file}`; by default those of the table.
        offline: take what is there, and do not touch the network.
        pause: seconds before the second attempt at an address; longer before further ones.
        timeout: seconds without a byte after which a connection counts as broken off.

    Returns:
        The paths: of OGBench `<dataset>.npz` and `<dataset>-val.npz`, of D4RL `<dataset>.hdf5`.

    Raises:
        UserError: no dataset has that name.
        DownloadError: another process downloads it, no address gave it, the disk is full, it is
            not the file that was expected, or `offline` and it is not there.
    """
    task = resolve_dataset(dataset)
    table: dict[str, Any] = yaml.safe_load((configs_root() / "datasets.yaml").read_text())
    source = table[task.suite]
    if task.suite == "d4rl":
        names = {f"{task.dataset}.hdf5": source["files"][task.dataset]}
    else:
        names = {name: name for name in (f"{task.dataset}.npz", f"{task.dataset}-val.npz")}
    files = {
        folder / name: [address.format(file=remote) for address in addresses or source["addresses"]]
        for name, remote in names.items()
    }
    missing = [f"  {urls[0]}\n    to {file}" for file, urls in files.items() if not file.is_file()]
    if offline and missing:
        raise DownloadError(
            f"--offline, and {task.dataset} is not here whole. On a machine with a network, bring\n"
            + "\n".join(missing)
        )
    return [
        fetch(file, urls, sha256=table["sha256"].get(file.name), pause=pause, timeout=timeout)
        for file, urls in files.items()
    ]


def fetch(
    target: Path,
    urls: Sequence[str],
    *,
    sha256: str | None = None,
    pause: float = 2.0,
    timeout: float = _TIMEOUT,
) -> Path:
    """Download one file, from the first address that has it; or check it, where it is there.

    Args:
        target: its place here, `*.npz` or `*.hdf5`.
        urls: where to look, in order.
        sha256: its digest where it is known beforehand.
        pause: see `download`.
        timeout: likewise.

    Returns:
        `target`.
    """
    if target.is_file():
        check(target, sha256)
        _log.info("%s is there already, and is what it was", target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    failures = []
    with lock(part):
        if target.is_file():  # another process has finished it just now
            part.unlink(missing_ok=True)
            return target
        for url in urls:
            try:
                transfer(url, part, pause, timeout, lambda file: has_end(file, target.suffix))
                digest = _digest(part)
                _refuse_other(part, target.suffix, digest, sha256)
            except DownloadError as error:  # what came is useless: the next attempt begins anew
                forget(part)
                failures.append(f"  {url}: {error}")
                continue
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise DownloadError(f"{part}: no space is left on the disk: {error}") from error
                failures.append(f"  {url}: {error}")
                continue
            _record(target, digest)
            part.rename(target)
            state_file(part).unlink(missing_ok=True)
            return target
    raise DownloadError(
        "\n".join(
            [
                f"{target.name} could not be downloaded:",
                *failures,
                f"Run the same command again to go on, or place the file at {target} by hand.",
            ]
        )
    )


def check(file: Path, sha256: str | None = None) -> None:
    """Refuse a file that is not what it was when it arrived.

    A file that was placed by hand is read through, and its digest recorded, when it is first seen.

    Args:
        file: an `*.npz` or `*.hdf5` file that is there.
        sha256: its digest where it is known; by default the one recorded beside it.

    Raises:
        DownloadError: its digest is another one, or it is damaged or no such file at all.
    """
    record = _record_of(file)
    known = sha256 or (_recorded(record) if record.is_file() else None)
    digest = _digest(file)
    try:
        _refuse_other(file, file.suffix, digest, known)
    except DownloadError as error:
        raise DownloadError(
            f"{file}: {error}. It has changed since it arrived, or is another one: delete it and "
            f"{record.name}, and download it again."
        ) from None
    if not record.is_file():
        _log.info("%s: no digest is known; recording the one that it has now", file)
        _record(file, digest)


def check_recorded(source: Path) -> None:
    """`check` a file and the `-val` file beside it, each if its digest was ever recorded.

    Raises:
        DownloadError: see `check`; or a file is missing that was there once.
    """
    for file in (source, source.with_name(f"{source.stem}-val{source.suffix}")):
        record = _record_of(file)
        if not record.is_file():
            continue
        if not file.is_file():
            raise DownloadError(
                f"{file} is missing, and its digest is here: bring it back, or delete {record.name}"
                " to do without it."
            )
        check(file)


def set_aside_damaged(files: Sequence[Path]) -> list[Path]:
    """Rename files that are damaged, so that a download brings them anew.

    A digest that was recorded when a file arrived, and matches, does not tell that it was sound.

    Args:
        files: files that are there.

    Returns:
        The new names, `<file>.damaged`, of those that were.
    """
    moved = []
    for file in files:
        try:
            refuse_damaged(file, file.suffix)
        except DownloadError as error:
            aside = file.with_name(f"{file.name}.damaged")
            _log.warning("%s: %s; it is now %s", file, error, aside)
            file.rename(aside)
            _record_of(file).unlink(missing_ok=True)
            moved.append(aside)
    return moved


def _refuse_other(file: Path, suffix: str, digest: str, sha256: str | None) -> None:
    """Refuse bytes other than those wanted: by their digest, or by reading where none is known."""
    if sha256 is None:
        refuse_damaged(file, suffix)
    elif digest != sha256:
        raise DownloadError(f"the SHA-256 is {digest}, not {sha256}")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _recorded(record: Path) -> str:
    with record.open("rb") as stream:
        found = re.match(rb"([0-9a-f]{64})\s", stream.read(65))
    if found is None:
        raise DownloadError(f"{record} holds no SHA-256: delete it, and the file is read through.")
    return found[1].decode()


def _record_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _record(file: Path, digest: str) -> None:
    """Note a digest in the form that `sha256sum --check` reads."""
    _record_of(file).write_text(f"{digest}  {file.name}\n")
