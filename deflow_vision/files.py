"""Files: read within bounds, sealed, whole or not there. Imports neither torch nor NumPy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deflow_vision.types import UserError

MAX_BYTES = 1 << 26
SEAL = "digest"
"""Key of the digest over what a JSON file says."""


def read_text(path: Path) -> str:
    """The text of a small file.

    Raises:
        OSError: there is none, or it is greater than 64 MiB.
        ValueError: it is not UTF-8; the message does not repeat what it is.
    """
    if path.exists() and not path.is_file():  # a device has no end
        raise OSError(errno.EINVAL, "it is no file", str(path))
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_BYTES:,} bytes", str(path))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start:,} is not UTF-8 ({error.reason})") from None


def read_json(path: Path) -> Any:
    """The value in a small JSON file.

    Raises:
        OSError: see `read_text`.
        ValueError: it is no JSON, or nested without measure.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def seal(values: Mapping[str, Any], key: str = SEAL) -> dict[str, Any]:
    """Values with a digest over them as `key`: the SHA-256 of their JSON with sorted keys."""
    facts = json.loads(json.dumps({k: values[k] for k in values if k != key}))
    text = json.dumps(facts, sort_keys=True)
    return {**facts, key: hashlib.sha256(text.encode()).hexdigest()}


def is_sound(values: Mapping[str, Any]) -> bool:
    """Whether values have a seal, and are those that were sealed."""
    return values == seal(values)


def sealed_text(values: Mapping[str, Any]) -> str:
    """The text of a JSON file, with a digest over it."""
    return json.dumps(seal(values), indent=2) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old one or the new one, never a part."""
    part = path.with_name(f".{path.name}.partial")
    part.unlink(missing_ok=True)  # a link there would lead the text elsewhere
    part.write_text(text)
    os.replace(part, path)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file under another name beside its own, and move it there when it is complete.

    Where writing fails, what was at `path` stays as it was and nothing is left beside it. Two
    processes may do so at once: the later one's file stays.

    Args:
        path: the file; its folder is made where it is missing.
        write: writes the file that it is given, which has the suffix of `path`.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def refuse_links(folder: Path) -> None:
    """Refuse a folder that is to be written in, and has symbolic links in it.

    Raises:
        UserError: naming the link.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(path := os.path.join(place, name)):
                raise UserError(
                    f"{path} is a symbolic link to {os.readlink(path)}: what is written here would "
                    "be written there. Remove it, or move the whole folder and link that."
                )
