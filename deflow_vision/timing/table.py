"""The table: for a terminal, as Markdown, and into a page between two marks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from deflow_vision.files import write_atomically
from deflow_vision.timing.figures import Figure, digits
from deflow_vision.timing.machine import Machine
from deflow_vision.types import UserError

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLUMNS = ("what", "measured", "held against", "ratio", "goal", "")


def cells(figure: Figure) -> tuple[str, ...]:
    """A row's words; a goal is followed by whether it is reached."""
    against = "" if figure.against is None else f"{figure.against}, {figure.basis}"
    ratio = "" if figure.ratio is None else digits(figure.ratio)
    goal = ""
    if figure.goal is not None:
        goal = f"{figure.goal} {'reached' if figure.reached else 'not reached'}"
    return figure.what, str(figure.measured), against, ratio, goal, figure.note


def to_terminal(figures: Sequence[Figure], machine: Machine) -> Table:
    """The table as `rich` draws it."""
    table = Table(*COLUMNS, title=machine.describe(), title_justify="left")
    for index, figure in enumerate(figures):
        after = figures[index + 1 : index + 2]
        table.add_row(*cells(figure), end_section=bool(after) and after[0].part != figure.part)
    return table


def to_markdown(figures: Sequence[Figure], machine: Machine, day: str, command: str) -> str:
    """The table with the command, the day and the machine it is of."""
    lines = [f"`{command}`, {day}: {machine.describe()}", ""]
    lines += [_line(COLUMNS), _line(("---", "---:", "---", "---:", "---", "---"))]
    for figure in figures:
        what, measured, against, ratio, goal, note = cells(figure)
        marked = f"**{ratio}**" if figure.reached else ratio
        lines.append(_line((what, measured, against, marked, goal, note)))
    return "\n".join(lines)


def write_json(path: Path, figures: Sequence[Figure], machine: Machine) -> None:
    """Write all values, for another program."""
    content = {
        "machine": machine.describe(),
        "products": machine.products,
        "figures": [figure.as_dict() for figure in figures],
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def replace_in(page: Path, markdown: str) -> None:
    """Put the table between the marks of a page.

    Raises:
        UserError: the page is missing or has no such marks.
    """
    if not page.is_file():
        raise UserError(f"{page} does not exist; --to takes a page with {BEGIN} and {END}.")
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{page} must hold {BEGIN} and, later, {END}, once each.")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    write_atomically(page, f"{before}{BEGIN}\n\n{markdown}\n\n{after}")


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"
