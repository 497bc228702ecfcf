"""Published figures: `configs/benchmarks/published/*.csv`, each the source in its first lines.

A row is a task or a category, a column a method; a figure is "97±2" (mean and deviation over
seeds), "97" where no deviation was published, "13±5 -> 65±12" before and after the online phase,
"-" where there is none.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass

from deflow_vision.tasks import configs_root, nearest
from deflow_vision.types import UserError

FIGURE = re.compile(r"(-?\d+(?:\.\d+)?)(?:±(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard deviation; None where there is none.

    Attributes:
        mean: in the table's unit.
        std: likewise.
    """

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Published:
    """One published table.

    Attributes:
        name: the file's, without its ending.
        source: paper and table, and how it was read.
        figures: an estimate for each phase, by row and algorithm.
    """

    name: str
    source: str
    figures: Mapping[tuple[str, str], tuple[Estimate, ...]]


def read_published(name: str) -> Published:
    """Read one file.

    Args:
        name: the file's, without its ending.

    Raises:
        UserError: there is no such file, it names no source, or a figure cannot be read.
    """
    folder = configs_root() / "benchmarks" / "published"
    known = [path.stem for path in folder.glob("*.csv")]
    if name not in known:
        raise UserError(f"unknown published table '{name}'. {nearest(name, known)}")
    path = folder / f"{name}.csv"
    lines = path.read_text().splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    if not comments:
        raise UserError(f"{path}: the first lines must name the source, after a '#'")
    header, *rows = csv.reader(line for line in lines if not line.startswith("#"))
    figures = {}
    for row, *cells in rows:
        for method, cell in zip(header[1:], cells, strict=True):
            if cell != "-":
                try:
                    figures[row, method] = tuple(map(_estimate, cell.split(" -> ")))
                except ValueError as error:
                    raise UserError(f"{path}: {row}, {method}: {error}") from error
    return Published(name, " ".join(comments), figures)


def _estimate(text: str) -> Estimate:
    found = FIGURE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no figure such as 97±2")
    mean, std = found.groups()
    return Estimate(float(mean), None if std is None else float(std))
