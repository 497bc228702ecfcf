"""Features in two dimensions, to look at."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np

from deflow_vision.analysis.embeddings import varying
from deflow_vision.types import UserError

Projection = Literal["pca", "tsne", "umap"]
PROJECTIONS: dict[Projection, str] = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


def project(features: np.ndarray, method: Projection, seed: int = 0) -> np.ndarray:
    """Features in two dimensions, to look at.

    Args:
        features: (N, D); t-SNE and UMAP see their first 50 principal components.
        method: "pca", "tsne" (van der Maaten and Hinton, 2008) or "umap" (McInnes et al., arXiv
            1802.03426).
        seed: of the start.

    Returns:
        (N, 2).

    Raises:
        UserError: umap-learn is not installed, fewer than 10 states, or constant features.
    """
    from sklearn.decomposition import PCA

    if len(features) < 10:
        raise UserError(f"a map of {len(features)} states: at least 10 are needed.")
    pca = PCA(
        min(2 if method == "pca" else 50, *features.shape),
        svd_solver="randomized",
        random_state=seed,
    )
    points: np.ndarray = pca.fit_transform(varying(features))
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    if method == "pca":
        return points
    near = min(30, (len(points) - 1) // 3)
    if method == "tsne":
        from sklearn.manifold import TSNE

        return np.asarray(TSNE(perplexity=near, random_state=seed).fit_transform(points))
    return _umap(points, near, seed)


def _umap(points: np.ndarray, near: int, seed: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TensorFlow, which it would use if it were there
            from umap import UMAP
    except ImportError:
        raise UserError(
            "UMAP needs the package umap-learn: pip install umap-learn, or leave umap out."
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a seed forbids threads, which it says each time
        return np.asarray(UMAP(n_neighbors=near, random_state=seed).fit_transform(points))
