"""The rows of the doctor's table, on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["ok", "warn", "fail"]
_ORDER: tuple[Status, ...] = ("ok", "warn", "fail")
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes:
        name: what was looked at.
        status: "ok"; "warn", it works but slower or less than it could; "fail", it does not work.
        found: what was found.
        remedy: what to do about it; only an "ok" row may have none.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """Refuse a complaint without a remedy."""
        if (self.status != "ok") != bool(self.remedy):
            raise ValueError(f"{self.name}: a row has a remedy where it is not ok, and only there")


def worst(rows: Sequence[Row]) -> Status:
    """The worst status of all rows; "ok" of none."""
    return max((row.status for row in rows), key=_ORDER.index, default="ok")


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as plain values: `status`, the worst of them, and `rows`."""
    return {"status": worst(rows), "rows": [asdict(row) for row in rows]}


def as_table(rows: Sequence[Row]) -> Table:
    """The rows as a table for a terminal; a remedy stands under what was found."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "found", box=None, pad_edge=False)
    for row in rows:
        found = Text(row.found)
        if row.remedy:
            found.append(f"\n-> {row.remedy}", style=_STYLES[row.status])
        table.add_row(Text(row.status, style=_STYLES[row.status]), Text(row.name), found)
    return table
