"""What a page of HTML says, for tests that need no browser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

Attributes = dict[str, str | None]


class Page(HTMLParser):
    """The text and the elements of a page.

    Attributes:
        elements: name and attributes of each, in order.
        text: of all of it, but not of its style and its script.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.text += data

    def charts(self) -> dict[str, dict[str, list[Any]]]:
        """Of each chart, by title: the points of its lines, by name."""
        return {
            str(attributes["aria-label"]): {
                line["name"]: line["points"] for line in json.loads(attributes["data-lines"] or "")
            }
            for tag, attributes in self.elements
            if tag == "svg" and "data-lines" in attributes
        }

    def addresses(self) -> list[str]:
        """Everything that the page could load or lead to."""
        names = ("src", "href", "poster", "srcset", "data", "action", "xlink:href")
        return [a[name] or "" for _, a in self.elements for name in names if name in a]
