"""Numbers that say what features hold: pure functions of arrays.

Letters: N states, D features, T numbers of a target, A action dimensions. docs/embeddings.md says
how to read each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deflow_vision.types import UserError

PENALTIES = tuple(10.0**power for power in range(-1, 6))
"""Of the ridge probe, on standardised features; chosen on training episodes."""
FOLDS = 3
QUERIES_AT_ONCE = 512
"""Rows of distances that are in memory."""
DEAD = 1e-6
"""A feature whose standard deviation is below this share of the greatest is constant."""
RESAMPLES = 1000
LEAST_EPISODES = 5
"""Of `r2_error`: how many draws of episodes, and how few episodes are too few to draw from."""


def singular_values(features: np.ndarray) -> np.ndarray:
    """Singular values of features (N, D), each centred, falling, (min(N, D),).

    By the eigenvalues of the smaller Gram matrix, in float64.
    """
    centred = features - features.mean(0, dtype=np.float64)
    wide = centred.shape[0] < centred.shape[1]
    gram = centred @ centred.T if wide else centred.T @ centred
    return np.asarray(np.sqrt(np.linalg.eigvalsh(gram)[::-1].clip(min=0)))


def effective_rank(features: np.ndarray) -> float:
    """Exp of the entropy of the singular values' shares, between 1 and min(N - 1, D).

    exp(-sum_i p_i log p_i) with p_i = s_i / sum_j s_j of the centred features (Roy and Vetterli,
    "The effective rank", EUSIPCO 2007, definition 1). k equal singular values give k.

    Args:
        features: (N, D); such as do not vary at all have rank 0.
    """
    values = singular_values(features)
    # The Gram matrix squares: below the root of float64's precision a value is rounding.
    values = np.where(values > 1e-7 * values[0], values, 0.0)
    shares = values[values > 0] / (values.sum() or 1.0)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def standardise(train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Features with mean 0 and deviation 1 over `train`; those constant there are dropped.

    Args:
        train: (N, D).
        others: (M, D) each, scaled by the same numbers.

    Returns:
        The scaled features, float64.

    Raises:
        UserError: every feature is constant.
    """
    mean, std = train.mean(0, dtype=np.float64), varying(train).std(0, dtype=np.float64)
    alive = std > DEAD * std.max()
    mean, std = mean[alive], std[alive]
    return tuple((rows[:, alive] - mean) / std for rows in (train, *others))


def varies(features: np.ndarray) -> bool:
    """Whether any of the features (N, D) does."""
    return bool(np.ptp(features, axis=0).any())


def varying(features: np.ndarray) -> np.ndarray:
    """The features (N, D) as they are.

    Raises:
        UserError: every one is constant.
    """
    if not varies(features):
        raise UserError("the features are constant: they tell nothing of the states.")
    return features


def linear_probe(
    features: np.ndarray,
    targets: Mapping[str, np.ndarray],
    episodes: np.ndarray,
    held_out: np.ndarray,
) -> dict[str, np.ndarray]:
    """Targets as ridge regressions on standardised features predict them in held-out states.

    w = argmin_w |Y - X w|^2 + a |w|^2 on the training states, with an intercept. For each target a
    is the one of `PENALTIES` with the least squared error in cross-validation over the training
    episodes: neighbouring frames never lie on both sides. A single training episode is cut into
    stretches of time.

    Args:
        features: (N, D).
        targets: (N, T) each, by name.
        episodes: the number of each state's episode, (N,).
        held_out: which states are tested, (N,) bool.

    Returns:
        Predictions in the held-out states, (M, T) each, by name.

    Raises:
        UserError: there is nothing to fit or nothing to test.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold

    if (~held_out).sum() < FOLDS or not held_out.any():
        raise UserError("a probe needs training states and held-out ones.")
    if not targets:
        return {}
    train, test = standardise(features[~held_out], features[held_out])
    wanted = np.concatenate([rows[~held_out] for rows in targets.values()], 1, dtype=np.float64)
    widths = [rows.shape[1] for rows in targets.values()]
    groups = episodes[~held_out]
    if len(np.unique(groups)) < 2:
        groups = np.arange(len(train)) * FOLDS // len(train)
    folds = GroupKFold(min(FOLDS, len(np.unique(groups))))
    errors = np.zeros((len(PENALTIES), wanted.shape[1]))
    for fit, rest in folds.split(train, groups=groups):
        for row, penalty in zip(errors, PENALTIES, strict=True):
            model = Ridge(np.full(wanted.shape[1], penalty)).fit(train[fit], wanted[fit])
            predicted = model.predict(train[rest]).reshape(len(rest), -1)
            row += np.square(predicted - wanted[rest]).sum(0)
    starts = np.cumsum([0, *widths[:-1]])
    best = np.add.reduceat(errors, starts, axis=1).argmin(0)  # of each target
    penalties = np.repeat(np.array(PENALTIES)[best], widths)
    predictions = Ridge(penalties).fit(train, wanted).predict(test).reshape(len(test), -1)
    return dict(zip(targets, np.split(predictions, starts[1:], axis=1), strict=True))


def r2(targets: np.ndarray, predictions: np.ndarray) -> float:
    """1 - sum |y - y'|^2 / sum |y - mean y|^2, over states and dimensions together.

    1 is exact, 0 no better than the mean of the states tested, below 0 worse. Dimensions weigh by
    their variance, so that one that hardly moves does not drown the others.

    Args:
        targets: (M, T).
        predictions: (M, T).

    Returns:
        NaN where the targets do not vary.
    """
    wanted = targets.astype(np.float64)
    total = np.square(wanted - wanted.mean(0)).sum()
    # Rounding to float32 is no variation.
    if total <= np.square(np.finfo(np.float32).eps * np.abs(wanted).max(initial=0)) * wanted.size:
        return float("nan")
    return float(1 - np.square(wanted - predictions).sum() / total)


def r2_error(targets: np.ndarray, predictions: np.ndarray, episodes: np.ndarray) -> float:
    """Standard error of `r2` over the draw of the episodes tested.

    States of an episode are alike, so that whole episodes are drawn, with replacement: half the
    width of the middle 68% of a bootstrap. Of what else is drawn, such as the seed of the training,
    it knows nothing.

    Args:
        targets: (M, T).
        predictions: (M, T).
        episodes: the number of each state's episode, (M,).

    Returns:
        NaN with fewer than `LEAST_EPISODES` episodes, or where the targets do not vary.
    """
    names, groups = np.unique(episodes, return_inverse=True)
    if len(names) < LEAST_EPISODES or np.isnan(r2(targets, predictions)):
        return float("nan")
    wanted = targets - targets.mean(0, dtype=np.float64)
    columns = (np.ones(len(wanted)), np.square(wanted).sum(1))
    errors = np.square(targets - predictions.astype(np.float64)).sum(1)
    sums = np.eye(len(names))[groups].T @ np.column_stack([*columns, errors, wanted])
    drawn = np.random.default_rng(0).multinomial(
        len(names), np.full(len(names), 1 / len(names)), RESAMPLES
    )
    counts, squares, wrong, *firsts = (drawn @ sums).T
    total = squares - np.square(firsts).sum(0) / counts
    low, high = np.quantile(1 - wrong / total, [0.16, 0.84])
    return float(high - low) / 2


def nearest_neighbours(
    features: np.ndarray, episodes: np.ndarray, queries: np.ndarray, pool: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each query its k nearest states of other episodes.

    Args:
        features: (N, D), compared by Euclidean distance as they are: a rotation changes nothing,
            and what varies little weighs little.
        episodes: the number of each state's episode, (N,).
        queries: numbers of states, (M,).
        pool: numbers of the states that are searched, (P,).
        k: how many.

    Returns:
        Numbers of the neighbours, (M, k), nearest first, and their distances, (M, k).

    Raises:
        UserError: a query has fewer than k states of other episodes in the pool, or the features
            are constant.
    """
    from sklearn.metrics import pairwise_distances

    middle = features[pool].mean(0, dtype=np.float64)  # large means would cost precision
    rows, points = varying(features[pool]) - middle, features[queries] - middle
    found, distances = [], []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        apart = pairwise_distances(points[part], rows)
        apart[episodes[queries[part], None] == episodes[pool][None]] = np.inf
        order = np.argsort(apart, axis=1)[:, :k]
        found.append(pool[order])
        distances.append(np.take_along_axis(apart, order, axis=1))
    distance = np.concatenate(distances)
    if distance.shape[1] < k or not np.isfinite(distance).all():
        raise UserError(f"some states have fewer than {k} of other episodes to be compared with.")
    return np.concatenate(found), distance


def neighbours_action(actions: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """The mean action of each query's neighbours, (M, A).

    Its `r2` against the query's own action is that of k-NN regression: 1 where neighbours always
    act alike, about -1/k where they are drawn at random.

    Args:
        actions: (N, A).
        neighbours: numbers of each query's k neighbours, (M, k).
    """
    return np.asarray(actions[neighbours].mean(1, dtype=np.float64))


def linear_cka(features: Sequence[np.ndarray]) -> np.ndarray:
    """Likeness of every two sets of features of the same states: linear CKA, debiased.

    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X', L = Y Y' (Kornblith et al., 2019,
    arXiv 1905.00414, eq. 4), and for HSIC the unbiased estimator (Song et al., 2012; Nguyen et
    al., 2021, arXiv 2010.15327, eq. 3): with few states and many features the biased one calls
    independent features alike. The Gram matrices (N, N) are never formed.

    Args:
        features: F of them, (N, D_i) each.

    Returns:
        (F, F): 1 for features equal up to rotation, scale and shift; about 0, also slightly below,
        for independent ones; NaN where either is constant.

    Raises:
        ValueError: different numbers of states, or fewer than 4.
    """
    counts = {len(rows) for rows in features}
    if len(counts) != 1 or min(counts) < 4:
        raise ValueError(f"CKA of {sorted(counts)} states: equal numbers are needed, 4 or more.")
    centred = [rows - rows.mean(0, dtype=np.float64) for rows in features]
    products = np.array(
        [
            [_hsic(x, y) if i <= j else 0.0 for j, y in enumerate(centred)]
            for i, x in enumerate(centred)
        ]
    )
    products += np.triu(products, 1).T
    own = np.diag(products)
    scale = np.sqrt(np.where(own > 0, own, np.nan))
    return products / scale[:, None] / scale


def _hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased HSIC, up to a constant factor, of centred features with linear kernels.

    With the diagonals of K and L set to 0, and a, b what they were:
    tr(K L) = |X'Y|^2 - a.b, 1'K1 = -sum a, K1 = -a.
    """
    n = len(x)
    a, b = np.square(x).sum(1), np.square(y).sum(1)
    trace = np.square(x.T @ y).sum() - a @ b
    return float(trace + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b))
