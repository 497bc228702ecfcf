"""A table's results as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

from deflow_vision.benchmark.published import Estimate
from deflow_vision.benchmark.results import Aggregate, Entry, Results, Row, near_best

CSV_COLUMNS = (
    *("kind", "row", "phase", "method", "source", "value", "std", "low", "high"),
    *("done", "wanted"),
)


@dataclass(frozen=True)
class Style:
    """How a format writes what a table has.

    Attributes:
        bold: what is near the best.
        published: what is not ours.
        text: a name.
        plus_minus: between a mean and its deviation.
        arrow: between two phases.
        dash: in place of a figure.
        table: a header and lines of cells.
        heading: a title above it.
        note: a paragraph.
    """

    bold: Callable[[str], str]
    published: Callable[[str], str]
    text: Callable[[str], str]
    plus_minus: str
    arrow: str
    dash: str
    table: Callable[[Sequence[str], Sequence[Sequence[str]]], str]
    heading: Callable[[str], str]
    note: Callable[[str], str]


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _latex_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [" & ".join(row) + r" \\" for row in (header, *lines)]
    columns = "l" + "r" * (len(header) - 1)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            *(r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"),
            r"\end{tabular}",
        ]
    )


def _latex_text(text: str) -> str:
    for mark in "&%$#_{}":
        text = text.replace(mark, rf"\{mark}")
    return text.replace("±", r"$\pm$")


MARKDOWN = Style(
    bold=lambda text: f"**{text}**",
    published=lambda text: f"*{text}*",
    text=lambda text: text,
    plus_minus=" ± ",
    arrow=" → ",
    dash="-",
    table=_markdown_table,
    heading=lambda text: f"## {text}",
    note=lambda text: text,
)

LATEX = Style(
    bold=lambda text: rf"\textbf{{{text}}}",
    published=lambda text: rf"\textit{{{text}}}",
    text=_latex_text,
    plus_minus=r" $\pm$ ",
    arrow=r" $\rightarrow$ ",
    dash="--",
    table=_latex_table,
    heading=lambda text: f"% {text}",
    note=lambda text: f"% {text}",
)


def render_text(results: Results, style: Style) -> str:
    """The tables of tasks, of categories and of aggregates, and what their marks mean.

    Args:
        results: what was measured.
        style: of the format.
    """
    table = results.table
    parts = [style.heading(style.text(table.title)), style.note(style.text(legend_of(results)))]
    for title, rows in (("task", results.rows), ("mean over a category", results.categories)):
        if rows:
            parts.append(_figures(title, rows, results, style))
    parts += [
        style.table(
            [style.text(summary.title), "IQM [95%]", style.text(improvement_title(results))],
            [
                [
                    style.text(name),
                    _aggregate(summary.iqm[name], 1, 1, style),
                    _aggregate(summary.improvement[name], 100, 0, style, "%")
                    if name in summary.improvement
                    else "",
                ]
                for name in summary.iqm
            ],
        )
        for summary in results.summaries
    ]
    parts += [style.note(style.text(f"Published, {p.name}: {p.source}")) for p in table.published]
    return "\n\n".join(parts) + "\n"


def legend_of(results: Results) -> str:
    """What the figures of a table and its marks mean."""
    protocol = results.table.protocol
    phases = f", {' and '.join(protocol.phases)}" if len(protocol.phases) > 1 else ""
    return (
        f"{protocol.unit}{phases}; mean ± standard deviation over seeds. Bold: within 95% of the "
        "best of our complete ones. (2/8): of 8 runs, 2 are finished. Italics: published."
    )


def improvement_title(results: Results) -> str:
    """What the column of probabilities of improvement is called."""
    return f"{results.table.methods[0].name} is better [95%]"


def _figures(title: str, rows: Sequence[Row], results: Results, style: Style) -> str:
    columns = list(columns_of(rows, results))
    header = [style.text(f"{name}, published" if theirs else name) for name, theirs in columns]
    lines = []
    for row in rows:
        best = near_best(
            {name: e.estimates[-1].mean for name, e in row.ours.items() if e.complete},
            results.table.protocol.lower_is_better,
        )
        line = [style.text(row.name)]
        for name, theirs in columns:
            if theirs:
                found = row.published.get(name)
                line.append(
                    style.published(estimates_text(found, 0, style)) if found else style.dash
                )
            else:
                entry = row.ours.get(name)
                text = style.dash if entry is None else entry_text(entry, results, style)
                line.append(style.bold(text) if name in best else text)
        lines.append(line)
    return style.table([title, *header], lines)


def columns_of(rows: Sequence[Row], results: Results) -> Iterator[tuple[str, bool]]:
    """Ours of each method, and beside it the published one where any row has it."""
    for method in results.table.methods:
        yield method.name, False
        if any(method.name in row.published for row in rows):
            yield method.name, True


def entry_text(entry: Entry, results: Results, style: Style) -> str:
    """What a method came to in a row, and how many of its runs are finished."""
    digits = 1 if results.table.protocol.lower_is_better else 0
    text = estimates_text(entry.estimates, digits, style) if len(entry.figures) else style.dash
    return text if entry.complete else f"{text} ({entry.done}/{entry.wanted})"


def estimates_text(estimates: Sequence[Estimate], digits: int, style: Style) -> str:
    """The estimates of a figure, one a phase."""
    texts = []
    for estimate in estimates:
        text = _number(estimate.mean, digits)
        if estimate.std is not None:
            text += style.plus_minus + _number(estimate.std, digits)
        texts.append(text)
    return style.arrow.join(texts)


def _aggregate(
    found: Aggregate | None, scale: float, digits: int, style: Style, unit: str = ""
) -> str:
    if found is None:
        return style.dash
    text = _number(scale * found.value, digits) + style.text(unit)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{_number(scale * found.low, digits)}, {_number(scale * found.high, digits)}]"


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 makes -0.0 a 0.0


def render_csv(results: Results) -> str:
    """Everything, unrounded, a line a figure: `CSV_COLUMNS`."""
    text = StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_lines(results))
    return text.getvalue()


def _csv_lines(results: Results) -> Iterator[dict[str, object]]:
    phases = results.table.protocol.phases
    for kind, rows in (("task", results.rows), ("category", results.categories)):
        for row in rows:
            at = {"kind": kind, "row": row.name}
            for name, entry in row.ours.items():
                counts = {"done": entry.done, "wanted": entry.wanted}
                ours = at | {"method": name, "source": "ours"} | counts
                estimates = entry.estimates if len(entry.figures) else [None] * len(phases)
                yield from _csv_estimates(ours, phases, estimates)
            for name, figures in row.published.items():
                theirs = at | {"method": name, "source": "published"}
                yield from _csv_estimates(theirs, phases, figures)
    for summary in results.summaries:
        aggregates = {"iqm": summary.iqm, "improvement": summary.improvement}
        for kind, found in aggregates.items():
            for name, aggregate in found.items():
                line = {"kind": kind, "row": summary.title, "method": name, "source": "ours"}
                yield line | _csv_aggregate(aggregate)


def _csv_estimates(
    line: Mapping[str, object], phases: Sequence[str], estimates: Sequence[Estimate | None]
) -> Iterator[dict[str, object]]:
    for phase, estimate in zip(phases, estimates, strict=True):
        if estimate is None:
            yield {**line, "phase": phase}
        else:
            yield {**line, "phase": phase, "value": estimate.mean, "std": _blank(estimate.std)}


def _csv_aggregate(found: Aggregate | None) -> dict[str, object]:
    if found is None:
        return {}
    return {"value": found.value, "low": _blank(found.low), "high": _blank(found.high)}


def _blank(value: float | None) -> object:
    return "" if value is None else value


RENDERERS: dict[str, Callable[[Results], str]] = {
    "markdown": lambda results: render_text(results, MARKDOWN),
    "latex": lambda results: render_text(results, LATEX),
    "csv": render_csv,
}
"""By the names of `--format`."""
