"""Maps of features in two dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from deflow_vision.analysis.projections import project
from deflow_vision.types import UserError

N, D = 600, 12
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(N, D)).astype(np.float32)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_keeps_two_groups_apart(method):
    group = np.arange(60) % 2
    features = RNG.normal(size=(60, D)) + 20 * group[:, None]
    points = project(features, method)
    assert points.shape == (60, 2)
    middles = [points[group == g].mean(0) for g in (0, 1)]
    nearest = np.linalg.norm(points[:, None] - middles, axis=-1).argmin(1)
    assert (nearest == group).all()
    np.testing.assert_array_equal(points, project(features, method))


def test_a_map_of_one_feature_has_two_dimensions():
    assert project(FEATURES[:20, :1], "pca").shape == (20, 2)


def test_a_map_of_components_leads_with_the_first():
    features = FEATURES * np.geomspace(1, 1e-3, D)
    assert abs(np.corrcoef(project(features, "pca")[:, 0], features[:, 0])[0, 1]) > 0.999


def test_a_map_of_a_handful_of_states_or_of_constants_is_refused():
    with pytest.raises(UserError, match="at least 10"):
        project(FEATURES[:9], "tsne")
    with pytest.raises(UserError, match="constant"):
        project(np.ones((20, 3)), "pca")


def test_umap_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(UserError, match="pip install umap-learn"):
        project(FEATURES[:50], "umap")


@pytest.mark.slow
def test_umap_keeps_two_groups_apart(monkeypatch):
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)  # compiling takes longer than it saves
    group = np.arange(30) % 2
    points = project(RNG.normal(size=(30, D)) + 20 * group[:, None], "umap")
    one, other = (points[group == g] for g in (0, 1))
    apart = np.linalg.norm(one.mean(0) - other.mean(0))
    assert apart > 2 * max(one.std(), other.std())
