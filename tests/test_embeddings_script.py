"""scripts/embeddings.py on a run of the committed sample."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import embeddings


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["embeddings.py", *map(str, words)])
        embeddings.main()

    return call


def test_the_script_prints_the_table_and_writes_numbers_and_figures(
    call: Callable[..., None],
    pixel_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call(pixel_run, "--frames", 300, "--maps", "pca", "--checkpoints", "all", "--out", tmp_path)
    said = capsys.readouterr().out
    assert (tmp_path / "embeddings.md").read_text() in said
    assert "| deflow, seed 0 | 4 | impala_debug | critic, flow, refinement | 512 |" in said
    rows = list(csv.DictReader(io.StringIO((tmp_path / "embeddings.csv").read_text())))
    assert [row["policy"] for row in rows] == [*["deflow, seed 0"] * 2, "random", "pixels"]
    assert {"r2 effector", "r2 gripper", "r2 cube 0", "r2 cube 1"} < set(rows[0])
    assert float(rows[-1]["r2 effector"]) > 0  # where the arm is shows in the pixels
    facts = json.loads((tmp_path / "embeddings.json").read_text())
    assert (facts["frames"], facts["seed"]) == (300, 0)
    drawn = [line for line in said.splitlines() if line.endswith(".png")]
    assert len(drawn) == 4 + 2 * 3 + 3
    assert all(Path(path).is_file() for path in drawn)


def test_the_script_prints_an_error_without_a_traceback(
    call: Callable[..., None], pixel_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(pixel_run, "--frames", 5)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: 5 frames")
    assert not (pixel_run / "embeddings").exists()
