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


def _resample(scores: Scores, rng: np.random.Generator) -> Scores:
    runs, tasks = scores.shape
    return scores[rng.integers(runs, size=(runs, tasks)), np.arange(tasks)]


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; None for the deviation of one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
