"""Single rows of a store's arrays."""

from __future__ import annotations

import numpy as np

from deflow_vision.datasets import pick
from deflow_vision.datasets.schema import read_all, read_rows
from deflow_vision.datasets.store import open_store

from .conftest import write_store


def test_rows_come_in_order_and_each_chunk_is_decoded_once(tmp_path, monkeypatch):
    array = open_store(write_store(tmp_path / "store.zarr", chunk=4)).train.observations
    reads = []

    def counted(array, start, stop):
        reads.append((start, stop))
        return read_rows(array, start, stop)

    monkeypatch.setattr(pick, "read_rows", counted)
    numbers = np.array([1, 1, 3, 4, 9, 16])
    np.testing.assert_array_equal(pick.pick_rows(array, numbers), read_all(array)[numbers])
    assert reads == [(1, 4), (4, 5), (9, 10), (16, 17)]
