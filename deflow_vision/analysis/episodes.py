"""What evaluations found, from the rows of `episodes.csv`: figures with 95% intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd


def wilson(wins: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval of a rate.

    Args:
        wins: successes, (N,).
        counts: trials, (N,), at least one each.

    Returns:
        Its ends, between 0 and 1, (N,) each.
    """
    z = 1.96
    rate, weight = wins / counts, z**2 / counts
    middle = (rate + weight / 2) / (1 + weight)
    half = z * np.sqrt(rate * (1 - rate) / counts + weight / (4 * counts)) / (1 + weight)
    return middle - half, middle + half


def success_by_step(episodes: pd.DataFrame) -> pd.DataFrame:
    """How many episodes of each evaluation were won.

    Args:
        episodes: rows of `episodes.csv`; those that know of no success are left out.

    Returns:
        A row for each evaluation, by step: `wins`, `episodes`, and in percent `rate` with the ends
        `low` and `high` of Wilson's interval. No row where `episodes` has no success.
    """
    if "success" not in episodes:
        episodes = pd.DataFrame({"step": [], "success": []})
    groups = episodes.dropna(subset=["success"]).groupby("step")["success"]
    wins, counts = groups.sum().astype(float), groups.count()
    low, high = wilson(wins.to_numpy(), counts.to_numpy())
    found = {"wins": wins, "episodes": counts, "rate": 100 * wins / counts}
    return pd.DataFrame(found).assign(low=100 * low, high=100 * high)


def return_by_step(episodes: pd.DataFrame) -> pd.DataFrame:
    """The mean return of each evaluation.

    Args:
        episodes: rows of `episodes.csv`.

    Returns:
        A row for each evaluation, by step: `mean` with the ends `low` and `high` of its normal
        interval, and `episodes`.
    """
    groups = episodes.groupby("step")["return"]
    mean, half = groups.mean(), 1.96 * groups.sem().fillna(0)
    found = {"mean": mean, "low": mean - half, "high": mean + half, "episodes": groups.count()}
    return pd.DataFrame(found)
