"""Aggregates over tasks and seeds that a few runs can bear: interquartile means, and intervals.

After Agarwal et al., "Deep RL at the Edge of the Statistical Precipice", arXiv 2108.13264. Scores
are (R, T): runs x tasks. Tests hold these functions equal to `rliable`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Scores = np.ndarray

REPETITIONS = 5000
"""Bootstrap samples of an interval."""


def interquartile_mean(scores: Scores) -> float:
    """The mean of the middle half of all scores; of n, floor(n / 4) are left out at either end."""
    ordered = np.sort(scores, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def probability_of_improvement(scores: Scores, others: Scores) -> float:
    """How often a run of one method beats one of another on a task, averaged over tasks.

    Args:
        scores: of the one, (R, T).
        others: of the other, (R', T) on the same tasks.

    Returns:
        Mean over tasks of P(X > Y) + P(X = Y) / 2, the Mann-Whitney U statistic over R R'.
    """
    x, y = scores[:, None], others[None, :]
    return float(np.mean((x > y) + 0.5 * (x == y)))


def bootstrap_interval(
    statistic: Callable[..., float],
    *groups: Scores,
    seed: int = 0,
    repetitions: int = REPETITIONS,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """A percentile interval by the stratified bootstrap: runs are drawn anew for each task.

    Args:
        statistic: of as many arrays of scores as there are `groups`.
        groups: scores (R, T), a method each.
        seed: of the draws.
        repetitions: bootstrap samples.
        confidence: that the interval has.

    Returns:
        Its ends.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(*(_resample(scores, rng) for scores in groups)) for _ in range(repetitions)]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def mean_curve(
    curves: np.ndarray, seed: int = 0, repetitions: int = 2000, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of learning curves over runs, with a percentile interval by the bootstrap.

    Whole runs are drawn anew, since the points of one run go together.

    Args:
        curves: (R, S), NaN where a run has no value at a step; each step has at least one.
        seed: of the draws.
        repetitions: bootstrap samples.
        confidence: that the interval has.

    Returns:
        Mean and the interval's ends, (S,) each.
    """
    runs = len(curves)
    drawn = np.random.default_rng(seed).integers(runs, size=(repetitions, runs))
    weights = np.stack([(drawn == run).sum(axis=1) for run in range(runs)], axis=1)  # (B, R)
    sums, counts = weights @ np.nan_to_num(curves), weights @ np.isfinite(curves)
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(means, [tail, 100 - tail], axis=0)
    return np.nanmean(curves, axis=0), low, high


def _resample(scores: Scores, rng: np.random.Generator) -> Scores:
    runs, tasks = scores.shape
    return scores[rng.integers(runs, size=(runs, tasks)), np.arange(tasks)]


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; None for the deviation of one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
