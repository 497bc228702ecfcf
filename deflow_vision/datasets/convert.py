"""Datasets from elsewhere into stores: which source it is, and who reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deflow_vision.datasets.d4rl_hdf5 import convert_hdf5
from deflow_vision.datasets.download import check_recorded, download, set_aside_damaged
from deflow_vision.datasets.minari_dataset import convert_minari
from deflow_vision.datasets.ogbench_npz import convert_npz
from deflow_vision.datasets.schema import StoreError
from deflow_vision.datasets.store import refuse_existing
from deflow_vision.tasks import data_root, resolve_dataset
from deflow_vision.types import UserError

MINARI = "minari:"


def convert(source: str | Path, path: Path | None = None, dataset: str | None = None) -> Path:
    """Convert a dataset into a store, in bounded memory whatever its size.

    Args:
        source: an OGBench file, `<dataset>.npz`, with its `-val` file beside it; a D4RL file,
            `<dataset>.hdf5`; or `minari:<id>`, a dataset in Minari's local folder.
        path: the store's folder, which must not exist; by default `default_path`.
        dataset: the dataset's name; by default the file's.

    Returns:
        The store's folder.

    Raises:
        UserError: no dataset has that name.
        DownloadError: the source has changed since it was downloaded.
        StoreError: `path` exists, or the source is missing, damaged or of another dataset.
    """
    path = path or default_path(source, dataset)
    refuse_existing(path)  # at once, before a file is read and checked
    minari_id = _minari_id(source)
    if minari_id is not None:
        if dataset is not None:
            raise UserError(f"{source} names its dataset itself: leave --dataset {dataset} out.")
        convert_minari(minari_id, path)
        return path
    file = Path(source)
    readers = {".npz": convert_npz, ".hdf5": convert_hdf5}
    if file.suffix not in readers:
        raise StoreError(
            f"{file} is none of OGBench's <dataset>.npz, D4RL's <dataset>.hdf5 and minari:<id>."
        )
    check_recorded(file)
    readers[file.suffix](file, path, dataset)
    return path


def download_store(
    dataset: str,
    path: Path,
    *,
    addresses: Sequence[str] | None = None,
    offline: bool = False,
) -> Path:
    """Download a dataset's files, to `downloads/` beside the store, and convert them.

    Files that turn out damaged are set aside and downloaded again, once.

    Args:
        dataset: the dataset's name.
        path: the store's folder, which must not exist.
        addresses: see `download`.
        offline: likewise; then a damaged file stays, and is refused.

    Returns:
        The folder of the files.

    Raises:
        UserError: see `download` and `convert`.
    """
    refuse_existing(path)
    folder = path.parent / "downloads"
    files = download(dataset, folder, addresses=addresses, offline=offline)
    try:
        convert(files[0], path, dataset)
    except StoreError:
        if offline or not set_aside_damaged(files):
            raise
        files = download(dataset, folder, addresses=addresses)
        convert(files[0], path, dataset)
    return folder


def default_path(source: str | Path, dataset: str | None = None) -> Path:
    """Where the store of a source goes unless told: `<data root>/<dataset>.zarr`.

    Args:
        source: see `convert`.
        dataset: likewise.

    Raises:
        UserError: no dataset has that name.
    """
    minari_id = _minari_id(source)
    if minari_id is not None:
        name = f"minari-{minari_id.replace('/', '-')}"
    else:
        name = resolve_dataset(dataset or Path(source).stem).dataset
    return data_root() / f"{name}.zarr"


def _minari_id(source: str | Path) -> str | None:
    name = str(source)
    return name.removeprefix(MINARI) if name.startswith(MINARI) else None
