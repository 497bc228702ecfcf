"""Datasets from elsewhere into stores: which source it is, and who reads it."""

from __future__ import annotations

from pathlib import Path

from deflow_vision.datasets.download import check_recorded
from deflow_vision.datasets.ogbench_npz import convert_npz


def convert(source: Path, path: Path, dataset: str | None = None) -> None:
    """Convert a dataset into a store, in bounded memory whatever its size.

    Args:
        source: an OGBench file, `<dataset>.npz`, with its `-val` file beside it.
        path: the store's folder, which must not exist.
        dataset: the dataset's name; by default the file's.

    Raises:
        UserError: no dataset has that name.
        DownloadError: the source has changed since it was downloaded.
        StoreError: `path` exists, or the source is missing, damaged or of another dataset.
    """
    check_recorded(source)
    convert_npz(source, path, dataset)
