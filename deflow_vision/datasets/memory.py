"""How much memory this process can still take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take, within the limits of its control groups.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    meminfo = root / "proc/meminfo"
    if meminfo.is_file():  # counts the page cache as available, which sysconf does not
        available = _fields(meminfo)["MemAvailable:"] * 1024
    else:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([available, *_rooms(root)]))


def _rooms(root: Path) -> Iterator[int]:
    """What each control group, from this process's up to the root, still allows."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            top = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = root / "sys/fs/cgroup/memory"
        else:
            continue
        # In a container the path may be that of the machine outside: what is missing is skipped.
        below = Path(path.lstrip("/"))
        for group in (top / below, *(top / parent for parent in below.parents)):
            room = _room(group, *names)
            if room is not None:
                yield room


def _room(group: Path, limit: str, used: str, cache: str) -> int | None:
    """The limit less what is used, but for files' pages that the kernel gives up; None for none."""
    try:
        most = (group / limit).read_text().strip()
        if not most.isdigit():  # "max"
            return None
        reclaimable = _fields(group / "memory.stat").get(cache, 0)
        return int(most) - int((group / used).read_text()) + reclaimable
    except OSError:
        return None


def _fields(file: Path) -> dict[str, int]:
    """The first number of each line by its name."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
