"""Python and the libraries, against the ranges of the package and the exact versions of the lock.

Ranges come from the metadata of the installed package, the lock from the checkout: neither is
written down again here.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from deflow_vision.doctor.rows import Row
from deflow_vision.tasks import configs_root

DISTRIBUTION = "deflow-vision"


@dataclass(frozen=True)
class Packages:
    """What is installed, and what should be.

    Attributes:
        python: version of Python.
        python_range: what the package asks for; None where it is not installed.
        ranges: version ranges of the libraries by name.
        installed: versions by name, of those that are there.
        locked: exact versions by name; empty where there is no lock, as beside a wheel.
    """

    python: str
    python_range: str | None
    ranges: Mapping[str, str] = field(default_factory=dict)
    installed: Mapping[str, str] = field(default_factory=dict)
    locked: Mapping[str, str] = field(default_factory=dict)


def look() -> Packages:
    """Read the metadata of installed packages; imports none of them."""
    try:
        wanted = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
        python_range = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except metadata.PackageNotFoundError:
        return Packages(platform.python_version(), None)
    needed = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    installed = {}
    for requirement in needed:
        try:
            installed[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
    return Packages(
        python=platform.python_version(),
        python_range=python_range,
        ranges={r.name: str(r.specifier) for r in needed},
        installed=installed,
        locked=read_lock(configs_root().parent / "requirements.lock"),
    )


def read_lock(path: Path) -> dict[str, str]:
    """Exact versions by canonical name; empty where there is no such file."""
    if not path.is_file():
        return {}
    lines = (line.partition("#")[0].partition(";")[0] for line in path.read_text().splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name.strip()): version.strip() for name, version in pairs}


def judge(facts: Packages) -> list[Row]:
    """A row for Python, one for each library that does not fit, one for all that do."""
    if facts.python_range is None:
        return [
            Row(
                "libraries",
                "fail",
                f"{DISTRIBUTION} is not installed in this Python ({facts.python})",
                "source .venv/bin/activate after `make .venv`, or: pip install -e .",
            )
        ]
    rows = [_python(facts.python, facts.python_range)]
    rows += [row for name in facts.ranges if (row := _library(name, facts)) is not None]
    count = len(facts.ranges)
    if len(rows) == 1:
        rows.append(Row("libraries", "ok", f"all {count} are within their ranges"))
    rows.append(_lock(facts))
    return rows


def _python(version: str, wanted: str) -> Row:
    if version in SpecifierSet(wanted):
        return Row("Python", "ok", f"{version}, {wanted} is needed")
    remedy = "make the environment with another one: make .venv PYTHON=python3.11"
    return Row("Python", "fail", f"{version}, {wanted} is needed", remedy)


def _library(name: str, facts: Packages) -> Row | None:
    wanted = facts.ranges[name]
    have = facts.installed.get(name)
    if have is not None and SpecifierSet(wanted).contains(have, prereleases=True):
        return None
    found = f"{have or 'not installed'}, {wanted} is needed"
    locked = facts.locked.get(canonicalize_name(name))
    exact = f"{name}=={locked}" if locked else f"{name}{wanted}"
    return Row(name, "fail", found, f"pip install '{exact}'")


def _lock(facts: Packages) -> Row:
    if not facts.locked:
        return Row("tested versions", "ok", "no requirements.lock beside this package")
    others = [
        f"{name} {have} (tested: {tested})"
        for name, have in facts.installed.items()
        if (tested := facts.locked.get(canonicalize_name(name))) not in (None, have)
        and _library(name, facts) is None  # else it has a row of its own
    ]
    if not others:
        return Row("tested versions", "ok", "as in requirements.lock")
    return Row(
        "tested versions",
        "warn",
        f"other than in requirements.lock: {', '.join(others)}",
        "pip install -r requirements.lock; what draws frames (mujoco, ogbench) matters most",
    )
