"""Aggregates against known answers, among them those of rliable.

rliable needs older versions of pandas and arch than these, so it is not installed beside them: its
answers (rliable 1.2.0, NumPy 2.4.6, in an environment of its own) stand here.
"""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.benchmark.statistics import (
    bootstrap_interval,
    interquartile_mean,
    mean_and_std,
    mean_curve,
    probability_of_improvement,
)

X = np.array(
    [
        [55.0, 48.2, 47.6, 56.6, 34.8],
        [59.5, 40.1, 45.7, 41.0, 48.1],
        [50.9, 55.9, 62.3, 54.6, 26.5],
        [41.6, 75.1, 60.4, 65.4, 35.7],
    ]
).T
Y = np.array(
    [
        [55.0, 48.1, 44.0, 25.4, 44.3, 47.2],
        [40.3, 41.3, 47.3, 28.8, 62.7, 46.3],
        [19.7, -5.3, 14.4, 55.9, 33.3, 20.5],
        [50.4, 34.2, 35.4, 28.8, 42.8, 46.5],
    ]
).T


@pytest.mark.parametrize(
    ("scores", "rliables"), [(X, 50.42), (Y, 40.36666666666667), (X[:3, :3], 51.52)]
)
def test_the_interquartile_mean_is_rliables(scores, rliables):
    assert interquartile_mean(scores) == pytest.approx(rliables, rel=1e-12)


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    scores = np.array([[1000.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, -1000.0]])
    assert interquartile_mean(scores) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_the_probability_of_improvement_is_rliables():
    assert probability_of_improvement(X, Y) == pytest.approx(0.725, rel=1e-12)


def test_a_tie_is_half_an_improvement():
    scores, others = np.array([[1.0], [2.0]]), np.array([[1.0], [0.0]])
    assert probability_of_improvement(scores, others) == (0.5 + 1 + 1 + 1) / 4
    assert probability_of_improvement(others, scores) == 0.5 / 4


@pytest.mark.parametrize(
    ("statistic", "groups", "rliables", "tolerance"),
    [
        (interquartile_mean, (X,), (44.76, 55.45), 0.4),  # of 100,000 samples
        (interquartile_mean, (Y,), (34.91, 45.15), 0.4),
        (probability_of_improvement, (X, Y), (0.56667, 0.86667), 0.018),  # of 20,000
    ],
)
def test_the_interval_is_rliables_within_the_error_of_the_draws(
    statistic, groups, rliables, tolerance
):
    low, high = bootstrap_interval(statistic, *groups, seed=1)
    assert (low, high) == pytest.approx(rliables, abs=tolerance)


def test_the_interval_is_a_function_of_the_seed():
    draws = [bootstrap_interval(interquartile_mean, X, seed=s, repetitions=50) for s in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_runs_are_drawn_anew_within_each_task():
    constant_by_task = np.array([[1.0, 50.0, 90.0]] * 4)
    interval = bootstrap_interval(interquartile_mean, constant_by_task, repetitions=20)
    assert interval == (interquartile_mean(constant_by_task),) * 2


def test_the_deviation_is_of_a_sample_and_one_seed_has_none():
    assert mean_and_std([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_std([5.0]) == (5.0, None)


def test_a_mean_curve_has_the_interval_of_its_runs_drawn_anew():
    curves = np.array([[0.0, 10.0], [10.0, 10.0], [20.0, 10.0], [30.0, 10.0]])
    mean, low, high = mean_curve(curves)
    assert mean.tolist() == [15, 10]
    assert (low[1], high[1]) == (10, 10)
    # The same draws as of single scores, a run at a time.
    expected = bootstrap_interval(lambda scores: float(scores.mean()), curves[:, :1])
    assert (low[0], high[0]) == pytest.approx(expected, abs=0.6)


def test_a_run_that_has_no_value_at_a_step_is_left_out_there():
    mean, low, high = mean_curve(np.array([[1.0, 5.0], [3.0, np.nan]]))
    assert mean.tolist() == [2, 5]
    assert (low.tolist(), high.tolist()) == ([1, 5], [3, 5])
