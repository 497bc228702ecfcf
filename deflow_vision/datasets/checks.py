"""What can be wrong with an array of a store, found by reading all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deflow_vision.datasets.remote import remote_digest
from deflow_vision.datasets.schema import StoreError, array_digest, read_rows


def check_array(array: Any, path: Path | str, digest: str) -> list[str]:
    """Read an array whole and check its values and its digest.

    Args:
        array: a `zarr.Array` of a store.
        path: the store's folder or address.
        digest: what the store says that the array's is.

    Returns:
        What is wrong, a sentence each; empty if all is well.
    """
    problems = []
    step = array.chunks[0]
    for start in range(0, array.shape[0], step):
        try:
            rows = read_rows(array, start, min(start + step, array.shape[0]))
        except StoreError as error:
            problems.append(str(error))
            continue
        if array.path.endswith("/masks") and not np.isin(rows, (0, 1)).all():
            problems.append(f"{array.path}: values other than 0 and 1 from row {start} on")
        if not np.isfinite(rows).all():
            problems.append(f"{array.path}: values that are not finite from row {start} on")
    if problems:
        return problems
    now = remote_digest(array) if isinstance(path, str) else array_digest(path / array.path)
    if now != digest:
        problems.append(f"{array.path}: its files are not those that were written (digest differs)")
    return problems
