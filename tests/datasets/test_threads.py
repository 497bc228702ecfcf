"""Copies in several threads."""

from __future__ import annotations

import pytest

from deflow_vision.datasets.threads import in_threads


def test_each_item_is_done_once():
    done = []
    in_threads(done.append, range(100))
    assert sorted(done) == list(range(100))


def test_an_error_in_any_thread_is_raised():
    def fail(item):
        if item == 7:
            raise KeyError(item)

    with pytest.raises(KeyError, match="7"):
        in_threads(fail, range(100))
