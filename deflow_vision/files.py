"""Files that appear whole or not at all. Imports neither torch nor NumPy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


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
