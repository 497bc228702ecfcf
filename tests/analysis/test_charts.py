"""Where charts put what they show."""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.analysis.report import charts
from deflow_vision.analysis.report.axes import number
from deflow_vision.analysis.report.charts import Chart, Interval, Line, draw, draw_intervals


def places(points: str) -> np.ndarray:
    return np.array([pair.split(",") for pair in points.split()], float)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((-0.0, "0"), (0.5, "0.5"), (-90, "\N{MINUS SIGN}90"), (999.96, "1000")),
        *((7500, "7,500"), (10_000, "10,000"), (123_456.7, "123,457"), (2e6, "2e+06")),
        (0.00012345, "0.000123"),
    ],
)
def test_a_number_is_written_to_be_read(value, words):
    assert number(value) == words


def test_values_are_placed_in_proportion():
    drawing = draw(Chart("t", [Line("a", np.array([0, 50, 100]), np.array([1.0, 2.0, 5.0]))]))
    x, y = places(drawing.paths[0]["line"]).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert (y[0] - y[1]) * 3 == pytest.approx(y[1] - y[2], abs=0.5)
    assert drawing.left <= x.min() < x.max() <= drawing.right
    assert drawing.top <= y.min() < y.max() <= drawing.bottom


def test_a_logarithmic_scale_is_one_and_is_given_up_for_values_that_are_not_positive():
    steps = np.arange(3)
    drawing = draw(Chart("t", [Line("a", steps, np.array([1.0, 10.0, 100.0]))], log=True))
    y = places(drawing.paths[0]["line"])[:, 1]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)
    assert "log scale" in drawing.unit
    linear = draw(Chart("t", [Line("a", steps, np.array([0.0, 10.0, 100.0]))], log=True))
    assert "log scale" not in linear.unit


@pytest.mark.parametrize("values", [(2.2, 2.9), (1, 30), (1e-7, 1e5), (3, 3), (0.9, 1.1)])
def test_a_logarithmic_axis_has_some_ticks_and_not_too_many(values):
    drawing = draw(Chart("t", [Line("a", np.arange(2), np.array(values, float))], log=True))
    assert 2 <= len(drawing.y_ticks) <= 8


def test_a_tick_stands_where_its_value_would():
    values = np.array([0.0, 25.0, 100.0])
    drawing = draw(Chart("t", [Line("a", values, values)]))
    x, y = places(drawing.paths[0]["line"])[2]
    assert {label: place for place, label in drawing.y_ticks}["100"] == y
    assert {label: place for place, label in drawing.x_ticks}["100"] == x


def test_a_band_goes_round_the_values():
    x = np.arange(3.0)
    drawing = draw(Chart("t", [Line("a", x, x, x - 1, x + 2)]))
    band, line = places(drawing.paths[0]["band"]), places(drawing.paths[0]["line"])
    assert len(band) == 6
    assert (band[:3, 1] < line[:, 1]).all()
    assert (band[3:, 1] > line[::-1, 1]).all()
    assert drawing.data[0]["points"][1][2:] == ("1", "1 [0, 3]")


def test_values_that_are_not_finite_are_left_out():
    line = Line("a", np.arange(4), np.array([1.0, np.nan, np.inf, 2.0]))
    assert [p[2] for p in draw(Chart("t", [line])).data[0]["points"]] == ["0", "3"]
    nothing = Line("b", np.arange(2), np.array([np.nan, np.nan]))
    assert draw(Chart("t", [nothing])) is None


def test_a_long_line_is_averaged_and_keeps_its_range(monkeypatch):
    monkeypatch.setattr(charts, "AT_MOST", 10)
    values = np.arange(100.0)
    values[55] = 1000
    (line,) = draw(Chart("t", [Line("a", np.arange(100), values)])).data
    assert len(line["points"]) == 10
    assert line["points"][5][2:] == ("59", "149 [50, 1,000]")


def test_a_line_keeps_its_colour_whatever_is_drawn_beside_it():
    x = np.arange(3.0)
    lines = [Line("a", x, x), Line("b", x, x, color=3), Line("c", x, x, color=9)]
    drawing = draw(Chart("t", lines))
    assert [path["style"] for path in drawing.paths] == ["c0", "c3", "c1 dashed"]
    assert [line["style"] for line in drawing.data] == ["c0", "c3", "c1 dashed"]


def test_one_value_is_a_dot():
    (path,) = draw(Chart("t", [Line("a", np.array([5]), np.array([0.0]))])).paths
    assert len(path["dots"]) == 1


def test_the_level_and_the_turn_are_on_the_axes():
    line = Line("a", np.array([0, 100]), np.array([1.0, 2.0]))
    drawing = draw(Chart("t", [line], level=(1.5, "half"), turn=(50, "online")))
    x, y = places(drawing.paths[0]["line"]).T
    assert drawing.level == (pytest.approx(y.mean(), abs=0.2), "half")
    assert drawing.turn == (pytest.approx(x.mean(), abs=0.2), "online")


def test_intervals_are_below_each_other():
    rows = [Interval("a", 50, 40, 60), Interval("b", 70, None, None, color=9)]
    drawing = draw_intervals("t", rows, "%", level=50)
    first, second = drawing.paths
    assert first["low"] < first["x"] < first["high"]
    assert second["low"] == second["x"] == second["high"]
    assert first["y"] < second["y"] < drawing.bottom
    assert drawing.turn[0] == first["x"]
    assert (first["style"], second["style"]) == ("c0", "c1 dashed")
    assert first["text"] == "a: 50 [40, 60]"
    assert draw_intervals("t", [], "%") is None
