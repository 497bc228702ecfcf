"""Blocks in memory that is used again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from deflow_vision.datasets.decoding import _content_size, decode

UINT8 = np.dtype(np.uint8)


def frame(values: np.ndarray) -> bytes:
    return bytes(Zstd(3, checksum=True).encode(values))


@given(size=st.one_of(st.integers(0, 600), st.integers(65_700, 65_900)), checksum=st.booleans())
def test_a_frame_tells_its_size(size, checksum):
    encoded = bytes(Zstd(3, checksum=checksum).encode(np.zeros(size, np.uint8)))
    assert _content_size(encoded) == size


def test_rows_in_memory_of_the_thread_give_way_to_the_next_block():
    first = decode(frame(np.arange(6, dtype=np.float32)), (2, 3), np.dtype("float32"), reuse=True)
    np.testing.assert_array_equal(first, [[0, 1, 2], [3, 4, 5]])
    second = decode(frame(np.ones(24, np.uint8)), (24,), UINT8, reuse=True)
    assert np.shares_memory(first, second)


def test_rows_that_are_to_last_have_memory_of_their_own():
    first, second = (
        decode(frame(np.full(4, n, np.uint8)), (4,), UINT8, reuse=False) for n in (1, 2)
    )
    assert first.tolist() == [1] * 4
    assert second.tolist() == [2] * 4


@pytest.mark.parametrize("size", [3, 5])
def test_a_block_of_another_size_does_not_pass_for_one(size):
    decode(frame(np.ones(4, np.uint8)), (4,), UINT8, reuse=True)
    with pytest.raises(ValueError, match="no block of 4 bytes"):
        decode(frame(np.ones(size, np.uint8)), (4,), UINT8, reuse=True)


@pytest.mark.parametrize("content", [b"", b"\x28\xb5\x2f\xfd", b"no frame at all"])
def test_what_is_no_frame_is_an_error(content):
    with pytest.raises((RuntimeError, ValueError)):
        decode(content, (4,), UINT8, reuse=True)


def test_a_frame_that_does_not_say_its_size_is_not_decoded_into_whatever_it_takes():
    bomb = bytes.fromhex("28b52ffd0058") + b"\x03\x00\x10\x00" + b"\x00" * 8  # no content size
    with pytest.raises(ValueError, match="it says 0"):
        decode(bomb, (4,), UINT8, reuse=False)
