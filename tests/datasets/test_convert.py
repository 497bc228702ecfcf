"""Which source a name means, and where its store goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from deflow_vision.datasets import convert as converting
from deflow_vision.datasets.convert import convert, default_path
from deflow_vision.datasets.schema import StoreError
from deflow_vision.types import UserError


@pytest.mark.parametrize(
    ("source", "dataset", "name"),
    [
        ("elsewhere/cube-double-play-v0.npz", None, "cube-double-play-v0"),
        ("mine.npz", "cube-double-play", "cube-double-play-v0"),
        ("pen-human-v1.hdf5", None, "pen-human-v1"),
        ("Ant_maze.hdf5", "antmaze-umaze", "antmaze-umaze-v2"),
        ("minari:D4RL/pen/human-v2", None, "minari-D4RL-pen-human-v2"),
    ],
)
def test_a_store_is_named_by_its_dataset(source, dataset, name, monkeypatch):
    monkeypatch.setenv("DEFLOW_DATA", "stores")
    assert default_path(source, dataset) == Path("stores", f"{name}.zarr")


@pytest.mark.parametrize(
    ("source", "reader", "arguments"),
    [
        ("a.npz", "convert_npz", (Path("a.npz"), Path("b"), "pen-human")),
        ("a.hdf5", "convert_hdf5", (Path("a.hdf5"), Path("b"), "pen-human")),
        ("minari:D4RL/pen/human-v2", "convert_minari", ("D4RL/pen/human-v2", Path("b"))),
    ],
)
def test_a_source_goes_to_its_reader(source, reader, arguments, monkeypatch):
    calls = []
    monkeypatch.setattr(converting, reader, lambda *given: calls.append(given))
    dataset = None if source.startswith("minari") else "pen-human"
    assert convert(source, Path("b"), dataset) == Path("b")
    assert calls == [arguments]


def test_a_source_of_another_kind_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(StoreError, match=r"data\.pkl is none of .*npz.*hdf5.*minari"):
        convert("data.pkl", tmp_path / "a.zarr", "pen-human")
    with pytest.raises(UserError, match="leave --dataset pen out"):
        convert("minari:D4RL/pen/human-v2", tmp_path / "a.zarr", "pen")
