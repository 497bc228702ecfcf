"""`make soak`: mutations by the thousand, kills by the dozen, half an hour of streaming."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np

from tests.faults.fuzz import BAD, GOOD, fuzz
from tests.faults.kills import JOBS, Killer
from tests.faults.long import Holding, growth, watch
from tests.faults.subjects import SUBJECTS

KILLS = {
    **{"offline, state": 12, "offline, streamed pixels": 8, "offline to online": 10},
    **{"conversion": 10, "download": 6, "export": 6, "collection": 3, "rendering": 3},
    **{"benchmark": 2},
}
MEMORY = Path("/dev/shm")


def mutations(folder: Path, number: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Mutate every subject so many times, a line each."""
    totals: Counter[str] = Counter()
    faults: list[str] = []
    for index, subject in enumerate(SUBJECTS):
        start = time.monotonic()
        outcome = fuzz(subject, folder / f"subject-{index}", range(number), seed)
        totals += outcome.counts
        faults += [f"{subject.name} {number}: {text}" for number, text in outcome.faults]
        counts = ", ".join(f"{count} {kind}" for kind, count in outcome.counts.most_common())
        print(f"{subject.name:28} {time.monotonic() - start:4.0f} s  {counts}", flush=True)
    return totals, faults


def kills(folder: Path, share: float, seed: int) -> tuple[int, int, list[str]]:
    """Kill every job, every second time at an operation on a file, else after a random time.

    Returns:
        Kills, jobs that were killed and came to their end as if they had not been, and faults.
    """
    number, survived, faults = 0, 0, []
    for index, job in enumerate(JOBS if share else ()):
        killer = Killer(job, folder / f"job-{index}")
        start, whole = time.monotonic(), killer.whole()
        rng, good = np.random.default_rng([seed, index]), 0
        count = max(1, round(share * KILLS[job.name]))
        for kill in range(count):
            moment: int | float = int(rng.integers(1, whole.operations + 1))
            if kill % 2:
                moment = float(rng.uniform(0, whole.seconds))
            problem = killer.kill(whole, [moment])
            good += not problem
            faults += [f"{job.name}: {problem}"] if problem else []
        number, survived = number + count, survived + good
        print(
            f"{job.name:28} {time.monotonic() - start:4.0f} s  {count} kills in "
            f"{whole.operations} operations on files or {whole.seconds:.1f} s, {good} survived",
            flush=True,
        )
    return number, survived, faults


def long_run(folder: Path, minutes: float) -> list[str]:
    """Train for so long, and say what grew."""
    if not minutes:
        return []
    seen = watch(folder / "run", 60 * minutes)
    quarter = len(seen) // 4
    for name, part in (("second", seen[quarter : 2 * quarter]), ("last", seen[-quarter:])):
        held = {key: median(getattr(x, key) for x in part) for key in Holding._fields}
        print(
            f"streaming, {name} quarter: {held['memory'] / 1e6:.1f} MB, {held['handles']:.0f} "
            f"handles, {held['threads']:.0f} threads, {held['processes']:.0f} processes, "
            f"{held['rows']:,.0f} rows",
            flush=True,
        )
    print(f"streaming for {minutes:g} minutes: {len(seen)} looks, tables readable in all of them")
    return growth(seen)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--mutations", type=int, default=300, help="of each subject, or 0")
    parser.add_argument("--kills", type=float, default=1.0, help="share of the 60, or 0")
    parser.add_argument("--minutes", type=float, default=30.0, help="of streaming, or 0")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.monotonic()
    place = MEMORY if MEMORY.is_dir() else None  # thousands of small files
    with tempfile.TemporaryDirectory(dir=place) as folder:
        totals, faults = mutations(Path(folder), args.mutations, args.seed)
        number, survived, lost = kills(Path(folder), args.kills, args.seed)
        grown = long_run(Path(folder), args.minutes)
    print(f"\nmutations tried: {totals.total()}")
    for kind in (*GOOD, *BAD):
        print(f"  {kind}: {totals[kind]}")
    print(f"kills: {number}, survived: {survived}, lost data: {len(lost)}")
    print(f"faults injected: {totals.total() + number}, {time.monotonic() - start:.0f} s")
    for fault in (*faults, *lost, *grown):
        print(f"\nFAULT {fault}")
    if faults or lost or grown:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
