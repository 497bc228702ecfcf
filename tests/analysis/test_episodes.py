"""Figures of evaluations and their intervals."""

import numpy as np
import pandas as pd
import pytest

from deflow_vision.analysis.episodes import return_by_step, success_by_step, wilson


def test_the_interval_of_a_rate_is_wilsons():
    low, high = wilson(np.array([0, 15, 50]), np.array([50, 50, 50]))
    # Of 0 wins it is [0, z^2 / (n + z^2)], of n wins its mirror image.
    np.testing.assert_allclose(low, [0.0, 0.1910, 0.9287], atol=1e-4)
    np.testing.assert_allclose(high, [0.0713, 0.4375, 1.0], atol=1e-4)


def test_success_is_counted_by_step_over_the_episodes_that_know_of_it():
    won = [True, False, None, True, None, None]
    found = success_by_step(pd.DataFrame({"step": [10, 10, 10, 20, 30, 30], "success": won}))
    assert found.index.tolist() == [10, 20]
    assert found[["wins", "episodes", "rate"]].to_numpy().tolist() == [[1, 2, 50], [1, 1, 100]]
    low, high = wilson(np.array([1]), np.array([2]))
    assert found.loc[10, ["low", "high"]].tolist() == pytest.approx([100 * low[0], 100 * high[0]])


@pytest.mark.parametrize("rows", [{}, {"step": [1], "return": [2.0]}, {"step": [], "success": []}])
def test_episodes_that_know_of_no_success_have_no_row(rows):
    found = success_by_step(pd.DataFrame(rows))
    assert found.empty
    assert {"rate", "low", "high"} <= set(found)


def test_the_interval_of_a_mean_return_shrinks_with_the_episodes_and_one_has_none():
    rows = pd.DataFrame({"step": [1, 1, 1, 1, 2], "return": [0.0, 0.0, 2.0, 2.0, 7.0]})
    found = return_by_step(rows)
    half = 1.96 * np.std([0, 0, 2, 2], ddof=1) / 2
    assert found.loc[1].tolist() == pytest.approx([1, 1 - half, 1 + half, 4])
    assert found.loc[2].tolist() == [7, 7, 7, 1]
