"""The notebooks run, on the committed sample and on runs of a few updates, and hold no outputs."""

from __future__ import annotations

import ast
import base64
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio.v3 as iio
import nbformat
import pandas as pd
import pytest
import yaml
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from nbformat import NotebookNode

from deflow_vision.benchmark.table_file import load_table
from tests.benchmark.conftest import TABLE, write_run
from tests.conftest import SAMPLE_STORE

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_of(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all notebooks: a kernel of its own would import everything for each."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(FOLDER))
    yield manager
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture
def execute(kernel: KernelManager, tmp_path: Path) -> Callable[..., list[NotebookNode]]:
    """Run a notebook with other parameters, as papermill does; gives its outputs."""

    def execute(name: str, **parameters: object) -> list[NotebookNode]:
        notebook = read(FOLDER / f"{name}.ipynb")
        (place,) = [
            i
            for i, cell in enumerate(notebook.cells)
            if "parameters" in cell.metadata.get("tags", ())
        ]
        defaults = {
            target.id
            for statement in ast.parse(notebook.cells[place].source).body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        if "out" in defaults:
            parameters["out"] = str(tmp_path / "figures")
        assert set(parameters) <= defaults
        lines = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
        client = NotebookClient(notebook, km=kernel, timeout=300)
        try:
            client.execute()
        finally:
            client.kc.stop_channels()
        return [output for cell in code_of(notebook) for output in cell.outputs]

    return execute


def pictures(outputs: list[NotebookNode]) -> int:
    """How many pictures are shown; all of them show something."""
    data = [output.get("data", {}) for output in outputs]
    shown = [each["image/png"] for each in data if "image/png" in each]
    for picture in shown:
        assert iio.imread(base64.b64decode(picture)).std() > 5
    return len(shown)


def text(outputs: list[NotebookNode]) -> str:
    said = [output.get("text", "") for output in outputs]
    for output in outputs:
        data = output.get("data", {})
        said += [data[kind] for kind in data if kind.startswith("text/")]
    return "\n".join(said)


def test_there_are_four() -> None:
    names = ["benchmark", "dataset_tour", "embeddings", "flow_and_refinement"]
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs_and_no_logic_of_its_own(path: Path) -> None:
    for cell in code_of(read(path)):
        assert not cell.outputs
        assert cell.execution_count is None
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source)))


def test_the_hook_before_a_commit_leaves_the_notebooks_as_they_are() -> None:
    command = [sys.executable, "-m", "nbstripout", "--verify", *map(str, NOTEBOOKS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_tour_of_a_dataset_runs(execute: Callable[..., list[NotebookNode]]) -> None:
    outputs = execute("dataset_tour", store=str(SAMPLE_STORE), frames=300, delta_samples=200)
    assert pictures(outputs) == 4
    said = text(outputs)
    assert "visual-cube-double-play-v0" in said
    assert "240 states of 4 training episodes, 60 of 1 held-out episodes" in said
    assert "--agent.target-divergence" in said


@pytest.mark.slow
def test_embeddings_are_looked_into(
    execute: Callable[..., list[NotebookNode]], pixel_run: Path
) -> None:
    outputs = execute(
        "embeddings", runs=[str(pixel_run)], store=str(SAMPLE_STORE), frames=200, maps=["pca"]
    )
    assert pictures(outputs) == 3 + 3 + 3 + 1
    assert "| deflow, seed 0 | 4 | impala_debug | critic, flow, refinement | 512 |" in text(outputs)


@pytest.mark.slow
def test_a_flow_and_its_refinement_are_shown(
    execute: Callable[..., list[NotebookNode]], pixel_run: Path
) -> None:
    sizes = {"states": 8, "samples": 8, "flow_samples": 100, "toy_updates": 5}
    outputs = execute("flow_and_refinement", run=str(pixel_run), store=str(SAMPLE_STORE), **sizes)
    assert pictures(outputs) == 1 + 2 + 1
    assert "target_divergence" in text(outputs)


@pytest.mark.slow
def test_a_benchmark_is_read(execute: Callable[..., list[NotebookNode]], tmp_path: Path) -> None:
    table = tmp_path / "tiny.yaml"
    table.write_text(yaml.safe_dump(TABLE | {"tasks": ["cube-single-play-task1"]}))
    for number, cell in enumerate(load_table(str(table)).cells(tmp_path)):
        write_run(cell, [10, 20, 30 + number, 40])
        rows = pd.read_csv(cell.run_dir / "train.csv")
        rows["train/critic/loss"] = range(len(rows))
        rows.to_csv(cell.run_dir / "train.csv", index=False)
    outputs = execute("benchmark", table=str(table), root=str(tmp_path))
    assert pictures(outputs) == 2
    assert "| cube-single-play-task1 |" in text(outputs)
