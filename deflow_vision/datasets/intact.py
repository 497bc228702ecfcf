"""Whether a file that was downloaded is whole, and as it was written."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from deflow_vision.datasets.d4rl_hdf5 import read_through
from deflow_vision.datasets.transfer import DownloadError


def has_end(file: Path, suffix: str) -> bool:
    """Whether a file is of its kind and not cut short; quick, whatever its size.

    Args:
        file: it may have another name while it arrives.
        suffix: its kind, ".npz" or ".hdf5".
    """
    if suffix == ".npz":
        return zipfile.is_zipfile(file)  # the list of contents comes last
    try:
        read_through(file, contents=False)
    except OSError:
        return False
    return True


def refuse_damaged(file: Path, suffix: str) -> None:
    """Read a file through, in bounded memory, and refuse one that was altered or cut short.

    What it can tell is what the format keeps: a CRC of each array of an .npz file; of an HDF5 file,
    whether each array can be decoded.

    Args:
        file: see `has_end`.
        suffix: likewise.

    Raises:
        DownloadError: it is of another kind, or damaged.
    """
    if not has_end(file, suffix):
        kind = {".npz": "an .npz", ".hdf5": "an HDF5"}[suffix]
        raise DownloadError(f"this is not {kind} file, or not the whole of it")
    try:
        if suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                name = archive.testzip()
            if name is not None:
                raise DownloadError(f"{name} in it is damaged: its CRC is another one")
        else:
            read_through(file)
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"it is damaged: {error}") from error
