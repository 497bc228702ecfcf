"""Mutations by the thousand: each in a process of bounded memory, and what came of it.

Mutation number n of a subject depends on (seed, subject, n) alone. The processes that open the
mutated copies are forked from one that has imported everything; one that dies or hangs is told by
the mutation that it was at, and the next one goes on behind it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import shutil
import traceback
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from deflow_vision.types import UserError
from tests.faults.mutations import OUTSIDE, mutate
from tests.faults.subjects import SUBJECTS, Subject
from tests.forks import forks

GROWTH = 192 << 20
"""Bytes of address space that opening a tiny folder may take at most."""
LIMIT = 1 << 30
"""Bytes beyond which the system refuses them."""
SECONDS = 180.0
"""After which a mutation counts as a hang, on a machine that has other work."""

GOOD = ("refused", "the same values", "other values, which are valid")
BAD = (
    *("silently other values where a digest guards", "bare traceback", "memory without bound"),
    *("message without a name", "written outside", "crash", "hang"),
)


@dataclass
class Outcome:
    """What came of the mutations of a subject.

    Attributes:
        counts: by kind of outcome.
        faults: of each bad one, the number of the mutation and what happened.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)


def fuzz(subject: Subject, folder: Path, numbers: range, seed: int = 0) -> Outcome:
    """Try some mutations of a subject.

    Args:
        subject: of `SUBJECTS`.
        folder: an empty folder to work in.
        numbers: of the mutations.
        seed: of all of them.
    """
    outcome, context = Outcome(), forks()
    at = numbers.start
    while at < numbers.stop:
        ours, theirs = context.Pipe(duplex=False)
        arguments = (SUBJECTS.index(subject), folder, range(at, numbers.stop), seed, theirs)
        process = context.Process(target=_work, args=arguments)
        process.start()
        theirs.close()
        while at < numbers.stop:
            wait = SECONDS if at > numbers.start else 2 * SECONDS  # the first one makes the subject
            try:
                kind, text = ours.recv() if ours.poll(wait) else ("hang", "no answer")
            except EOFError:
                process.join()
                kind, text = "crash", f"exit code {process.exitcode}"
            if kind == "broken":
                process.join()
                raise RuntimeError(text)
            outcome.counts[kind] += 1
            if kind in BAD:
                outcome.faults.append((at, f"{kind}: {text}"))
            at += 1
            if kind in ("hang", "crash"):
                break
        process.kill()
        process.join()
    return outcome


def _work(index: int, folder: Path, numbers: range, seed: int, results: Connection) -> None:
    """The life of a process: mutate, open, tell, again and again."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of progress bars
    subject = SUBJECTS[index]
    try:
        sound = folder / "made" / "sound"
        if not sound.exists():
            sound.mkdir(parents=True)
            subject.make(sound)
        _write_outside(folder)
        expected = _reading(subject, folder)
    except BaseException:
        results.send(("broken", traceback.format_exc()))
        return
    _limit_memory()
    for number in numbers:
        rng = np.random.default_rng([seed, zlib.crc32(subject.name.encode()), number])
        try:
            results.send(_try(subject, folder, rng, expected))
        except BaseException:  # of the harness itself
            results.send(("broken", traceback.format_exc()))
            return


def _reading(subject: Subject, folder: Path) -> Any:
    """What the sound folder holds."""
    _copy(folder)
    return subject.read(folder / "copy")


def _copy(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("made", OUTSIDE):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in (folder / "made").iterdir():
        target = folder / ("copy" if path.name == "sound" else path.name)
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)


def _try(
    subject: Subject, folder: Path, rng: np.random.Generator, expected: Any
) -> tuple[str, str]:
    _copy(folder)
    copy = folder / "copy"
    name, how = mutate(rng, copy)
    if subject.renew is not None:
        subject.renew(copy)
    outside, peak = _contents(folder / OUTSIDE), _peak()
    kind, text = _open(subject, copy, name, expected)
    if _contents(folder / OUTSIDE) != outside:
        _write_outside(folder)
        kind = "written outside"
    if kind in GOOD and _peak() - peak > GROWTH:
        kind, text = "memory without bound", f"{(_peak() - peak) >> 20} MiB; {text}"
    return kind, f"{name}, {how}: {text}"


def _open(subject: Subject, copy: Path, name: str, expected: Any) -> tuple[str, str]:
    try:
        found = subject.read(copy)
    except (UserError, OSError) as error:
        text = str(error)
        if _for_want_of_memory(error):
            return "memory without bound", text[:500]
        if isinstance(error, OSError) and error.filename is None:
            return "bare traceback", traceback.format_exc()[-1500:]
        named = any(part in text for part in (str(copy), "converted.zarr", *name.split("/"), "--"))
        return ("refused" if named and len(text) < 20_000 else "message without a name"), text[:500]
    except Exception as error:
        if _for_want_of_memory(error):
            return "memory without bound", traceback.format_exc()[-800:]
        return "bare traceback", traceback.format_exc()
    if _same(found, expected):
        return "the same values", ""
    if subject.guarded(name):
        return "silently other values where a digest guards", ""
    return "other values, which are valid", ""


def _same(found: Any, expected: Any) -> bool:
    return repr(found) == repr(expected)


def _for_want_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _write_outside(folder: Path) -> None:
    """Files that links lead to."""
    outside = folder / OUTSIDE
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    for name in ("file", "zarr.json", "state.json", "a.partial", "file.hdf5"):
        (outside / name).write_text("of somebody else")


def _contents(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*"))
    lines = [f"{p} {p.read_bytes().hex() if p.is_file() else ''}" for p in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _peak() -> int:
    """The greatest size that the address space ever had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmPeak"))


def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT, size + LIMIT))
