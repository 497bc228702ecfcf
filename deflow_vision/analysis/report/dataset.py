"""The dataset card in a page: what `scripts/data.py info` shows, as tables of the page's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from deflow_vision.datasets.card import card, digest_of
from deflow_vision.datasets.store import StoreError, open_store

CARD_STATES = 20_000_000
"""Of the largest dataset whose card is in a page: it takes reading all rewards and masks."""


@dataclass(frozen=True)
class CardPart:
    """A paragraph or a table.

    Attributes:
        text: the paragraph.
        heads: of the table's columns, empty where it has none.
        rows: of the table.
        right: of each column, whether it is set to the right.
    """

    text: str = ""
    heads: Sequence[str] = field(default_factory=list)
    rows: Sequence[tuple[str, ...]] = field(default_factory=list)
    right: Sequence[bool] = field(default_factory=list)


def dataset_card(recorded: Mapping[str, Any] | None) -> list[CardPart]:
    """The card of a run's dataset where it still is, else what the run wrote down of it.

    Args:
        recorded: `dataset` of the run's `environment.json`; None where there is none.
    """
    if not recorded:
        return [CardPart("environment.json tells of no dataset.")]
    path = str(recorded.get("path", ""))
    reason = _why_not(path, recorded.get("digests"))
    if not reason:
        return [part for each in card(path).renderables if (part := _part(each)) is not None]
    rows = [("path", path)]
    rows += [(f"version of {k}", str(v)) for k, v in (recorded.get("versions") or {}).items()]
    rows += [("render profile", str(recorded.get("render_profile") or "none: states"))]
    if digests := recorded.get("digests"):
        rows += [("checksum", digest_of(digests))]
    return [CardPart(f"{reason} The run wrote down:"), CardPart(rows=rows, right=[False, False])]


def _why_not(path: str, digests: object) -> str:
    """Why the card cannot be had, empty where it can."""
    if "://" in path:
        return "The dataset is at an address, and a report opens none."
    try:
        store = open_store(Path(path))
    except StoreError:
        return "The dataset is no longer where the run had it."
    if store.attributes["digests"] != digests:
        return "What is now in the dataset's place is another one."
    if store.train.num_states > CARD_STATES:
        return f"`python scripts/data.py info {path}` shows the card of so large a dataset."
    return ""


def _part(each: object) -> CardPart | None:
    if isinstance(each, Text):
        return CardPart(text=each.plain) if each.plain else None
    assert isinstance(each, Table), f"a card of {type(each).__name__}"
    columns = [[str(cell) for cell in column.cells] for column in each.columns]
    heads = [str(column.header) for column in each.columns] if each.show_header else []
    right = [column.justify == "right" for column in each.columns]
    return CardPart(heads=heads, rows=list(zip(*columns, strict=True)), right=right)
