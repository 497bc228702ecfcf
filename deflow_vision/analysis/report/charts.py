"""Charts as places in a picture: what a template needs for an SVG in the style of the page.

The picture holds real text and takes its colours from the page, so that it can be searched, printed
and read in the dark. `data` of a drawing has the values for the page's script to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter

from deflow_vision.analysis.report.axes import axis, number

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 34
"""Margins around the axes."""
AT_MOST = 300
"""Points of a line: more are averaged in as many groups, with the range of each group as a band."""
ROW, NAMES = 26, 130
"""Of a chart of intervals: the height of a row, and the room for names."""

COLORS = 8
"""Of the page, `c0` to `c7`; lines beyond them are dashed."""

Places = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart; values that are not finite are left out.

    Attributes:
        name: in the legend.
        x: (N,).
        y: (N,).
        low: lower end of a band, (N,), or None.
        high: its upper end.
        dots: whether each value is marked.
        color: its number among the page's colours; by default its place in the chart.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dots: bool = False
    color: int | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over steps.

    Attributes:
        title: what is drawn.
        lines: at least one.
        unit: of the values.
        log: whether the values are on a logarithmic scale; ignored where one is not positive.
        bounds: values that their axis has at least.
        span: steps that their axis has at least.
        level: a value with its name, drawn across.
        turn: a step with its name, drawn upright.
        note: a sentence below.
    """

    title: str
    lines: Sequence[Line]
    unit: str = ""
    log: bool = False
    bounds: tuple[float, ...] = ()
    span: tuple[float, ...] = ()
    level: tuple[float, str] | None = None
    turn: tuple[float, str] | None = None
    note: str = ""


def turn_online(offline_steps: int, online_steps: int) -> tuple[float, str] | None:
    """The `turn` of a chart of a run that goes online after offline updates; of others None."""
    return (float(offline_steps), "online") if offline_steps and online_steps else None


@dataclass(frozen=True)
class Drawing:
    """A chart in pixels.

    Attributes:
        title: of the chart.
        unit: of its values.
        note: below it.
        x_ticks: place and label.
        y_ticks: place and label.
        paths: what a template draws: of each line its name, style, polyline, band (empty where it
            has none) and dots; of each interval its name, style, text and places.
        level: place and name of the line across.
        turn: place and name of the upright line.
        data: name of each line with a (x, y, step, value) for each point.
    """

    title: str
    unit: str
    note: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    paths: list[dict[str, Any]] = field(default_factory=list)
    level: tuple[float, str] | None = None
    turn: tuple[float, str] | None = None
    data: list[dict[str, Any]] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def draw(chart: Chart) -> Drawing | None:
    """Place a chart; None where no value is finite."""
    lines = [line for line in map(_thinned, map(_finite, chart.lines)) if line.x.size]
    if not lines:
        return None
    steps = np.concatenate([*(line.x for line in lines), chart.span])
    found = [v for line in lines for v in (line.y, line.low, line.high) if v is not None]
    values = np.concatenate(found)
    marks = [] if chart.level is None else [chart.level[0]]
    log = chart.log and bool(values.min() > 0) and all(mark > 0 for mark in marks)
    values = np.concatenate([values, marks, chart.bounds])
    to_x, x_ticks = axis(steps, LEFT, WIDTH - RIGHT, log=False)
    to_y, y_ticks = axis(values, HEIGHT - BOTTOM, TOP, log=log)
    drawing = Drawing(
        chart.title,
        chart.unit + (" (log scale)" if log else ""),
        chart.note,
        [(to_x(x), EngFormatter(sep="")(x)) for x in x_ticks],
        [(to_y(y), number(y)) for y in y_ticks],
        level=None if chart.level is None else (to_y(chart.level[0]), chart.level[1]),
        turn=None if chart.turn is None else (to_x(chart.turn[0]), chart.turn[1]),
    )
    for index, line in enumerate(lines):
        places = [(to_x(x), to_y(y)) for x, y in zip(line.x, line.y, strict=True)]
        band: Places = []
        if line.low is not None and line.high is not None:
            upper = [(to_x(x), to_y(y)) for x, y in zip(line.x, line.high, strict=True)]
            lower = [(to_x(x), to_y(y)) for x, y in zip(line.x, line.low, strict=True)]
            band = [*upper, *reversed(lower)]
        dots = places if line.dots or len(places) < 3 else []
        style = _style(index if line.color is None else line.color)
        path = {
            "name": line.name,
            "style": style,
            "line": _points(places),
            "band": _points(band),
            "dots": dots,
        }
        drawing.paths.append(path)
        points = _data(line, places)
        drawing.data.append({"name": line.name, "style": style, "points": points})
    return drawing


@dataclass(frozen=True)
class Interval:
    """A row of a chart of intervals.

    Attributes:
        name: of the row.
        value: the estimate.
        low: lower end of its interval, or None.
        high: its upper end.
        color: its number among the page's colours.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    color: int = 0


def draw_intervals(
    title: str, rows: Sequence[Interval], unit: str, level: float | None = None
) -> Drawing | None:
    """Place estimates with their intervals below each other; None without rows.

    Args:
        title: of the chart.
        rows: from the top.
        unit: of the values.
        level: a value to compare with, drawn upright.
    """
    if not rows:
        return None
    ends = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    values = np.array(ends if level is None else [*ends, level])
    height = ROW * len(rows) + TOP + BOTTOM
    to_x, ticks = axis(values, NAMES, WIDTH - RIGHT, log=False)
    paths = []
    for index, row in enumerate(rows):
        low = row.value if row.low is None else row.low
        high = row.value if row.high is None else row.high
        interval = f" [{number(low)}, {number(high)}]" if row.low is not None else ""
        paths.append(
            {
                "name": row.name,
                "style": _style(row.color),
                "text": f"{row.name}: {number(row.value)}{interval}",
                "y": TOP + ROW * (index + 0.5),
                "x": to_x(row.value),
                "low": to_x(low),
                "high": to_x(high),
            }
        )
    return Drawing(
        title,
        unit,
        "",
        [(to_x(x), number(x)) for x in ticks],
        [],
        paths,
        turn=None if level is None else (to_x(level), ""),
        height=height,
        left=NAMES,
        bottom=height - BOTTOM,
    )


def _finite(line: Line) -> Line:
    keep = np.isfinite(line.x) & np.isfinite(line.y)
    low, high = (
        None if end is None else np.where(np.isfinite(end), end, line.y)[keep]
        for end in (line.low, line.high)
    )
    return replace(line, x=line.x[keep], y=line.y[keep], low=low, high=high)


def _thinned(line: Line) -> Line:
    if line.x.size <= AT_MOST:
        return line
    groups = np.array_split(np.arange(line.x.size), AT_MOST)
    low, high = (line.y if end is None else end for end in (line.low, line.high))
    return replace(
        line,
        x=np.array([line.x[group].max() for group in groups]),
        y=np.array([line.y[group].mean() for group in groups]),
        low=np.array([low[group].min() for group in groups]),
        high=np.array([high[group].max() for group in groups]),
    )


def _style(color: int) -> str:
    return f"c{color % COLORS}{' dashed' if color >= COLORS else ''}"


def _points(places: Places) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _data(line: Line, places: Places) -> list[tuple[float, float, str, str]]:
    found = []
    for i, (x, y) in enumerate(places):
        text = number(float(line.y[i]))
        if line.low is not None and line.high is not None:
            text += f" [{number(float(line.low[i]))}, {number(float(line.high[i]))}]"
        found.append((x, y, f"{line.x[i]:,.0f}", text))
    return found
