"""Memory of frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deflow_vision.datasets.planes import Spare, empty_rows, planes_of

UINT8 = np.dtype(np.uint8)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_images_keep_their_shape_and_lie_by_planes():
    rows = empty_rows((2, 7, 5, 4, 3), UINT8)
    assert rows.shape == (2, 7, 5, 4, 3)
    assert planes_of(rows).shape == (2, 7, 3, 5, 4)
    assert np.shares_memory(rows, planes_of(rows))


def test_planes_of_other_images_are_a_copy():
    rows = np.arange(120, dtype=np.uint8).reshape(2, 5, 4, 3)
    np.testing.assert_array_equal(planes_of(rows)[1, 2], rows[1, :, :, 2])


def test_vectors_lie_as_usual():
    rows = empty_rows((2, 7, 5), np.dtype(np.float32))
    assert rows.flags.c_contiguous
    assert rows.dtype == np.float32


@pytest.mark.parametrize(
    "use",
    [
        lambda rows: rows[0, 1:],
        lambda rows: planes_of(rows).reshape(-1),
        torch.from_numpy,
        lambda rows: torch.from_numpy(rows).permute(0, 3, 1, 2)[1:],
    ],
)
def test_spare_memory_is_given_out_again_when_nothing_refers_to_it(use):
    spare = Spare()
    rows = empty_rows((2, 5, 4, 3), UINT8, spare)
    place, used = address(rows), use(rows)
    del rows
    assert address(empty_rows((2, 5, 4, 3), UINT8, spare)) != place
    del used
    rows = [empty_rows((2, 5, 4, 3), UINT8, spare) for _ in range(2)]
    assert place in [address(row) for row in rows]


def test_spare_memory_of_another_size_is_left_alone():
    spare = Spare()
    spare.take(10)
    assert len(spare.take(11)) == 11


def test_spare_memory_in_use_is_let_go_when_there_is_much_of_it():
    spare = Spare()
    taken = [spare.take(10) for _ in range(20)]
    assert len({address(memory) for memory in taken}) == 20
    assert len(spare._held) < 10
