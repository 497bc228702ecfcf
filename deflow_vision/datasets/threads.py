"""Threads for NumPy's copies of large arrays, which leave Python's lock to others meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

_T = TypeVar("_T")


def in_threads(function: Callable[[_T], object], items: Iterable[_T]) -> None:
    """Call `function` on each item, some at a time; not from within such a call.

    Args:
        function: works on a part of an array that no other item touches.
        items: its arguments.
    """
    list(_pool().map(function, items))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="copy")
