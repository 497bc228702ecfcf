"""Threads for NumPy's copies of large arrays, which leave Python's lock to others meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

_T = TypeVar("_T")
_THREADS = min(4, os.cpu_count() or 1)


def in_threads(function: Callable[[_T], object], items: Iterable[_T]) -> None:
    """Call `function` on each item, some at a time; not from within such a call.

    The calling thread works too: to be woken once an item would take as long as many of them.

    Args:
        function: works on a part of an array that no other item touches.
        items: its arguments.
    """
    left = iter(list(items))

    def work() -> None:
        for item in left:
            function(item)

    others = [_pool().submit(work) for _ in range(_THREADS - 1)]
    try:
        work()
    finally:
        for other in others:
            other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, _THREADS - 1), thread_name_prefix="copy")
