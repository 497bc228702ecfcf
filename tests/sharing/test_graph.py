"""Exported graphs act as the agents do: same observations, same noise, same actions."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from deflow_vision.agents import AGENTS
from deflow_vision.sharing import Policy, graph
from deflow_vision.sharing.graph import program_of, write_onnx, write_torch_export
from deflow_vision.types import UserError
from tests.agents.conftest import make_agent, make_batch

SIZES = (1, 5)
CHOOSING = [("deflow", {"inference": "max_q"}), ("deflow", {"inference": "iterate"})]


pytestmark = pytest.mark.usefixtures("unchecked")


def inputs(agent, kind: str, size: int) -> dict[str, torch.Tensor]:
    found = {"observations": make_batch(kind, seed=5, size=size).observations}
    if dim := agent.noise_dim(explore=False):
        found["noises"] = torch.randn(size, dim, generator=torch.Generator().manual_seed(9))
    return found


def acted(agent, given: dict[str, torch.Tensor]) -> np.ndarray:
    return agent.act(given["observations"], generator=torch.Generator().manual_seed(9)).numpy()


@pytest.mark.parametrize(("algo", "changes"), [*((algo, {}) for algo in AGENTS), *CHOOSING])
def test_the_graph_of_every_agent_acts_as_the_agent(algo, changes):
    agent = make_agent("state", algo=algo, **changes).eval()
    module = program_of(agent).module()
    for size in SIZES:
        given = inputs(agent, "state", size)
        with torch.no_grad():
            actions = module(**given).numpy()
        np.testing.assert_allclose(actions, acted(agent, given), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["state", "pixels"])
@pytest.mark.parametrize("algo", ["deflow", "fql", "bc", "iql"])
def test_files_of_graphs_act_as_the_agent_and_name_no_place(algo, kind, tmp_path):
    agent = make_agent(kind, algo=algo).eval()
    write_torch_export(agent, tmp_path / "policy.pt2")
    write_onnx(agent, tmp_path / "policy.onnx")
    loaded = torch.export.load(tmp_path / "policy.pt2").module()
    session = onnxruntime.InferenceSession(
        tmp_path / "policy.onnx", providers=["CPUExecutionProvider"]
    )
    for size in SIZES:
        given = inputs(agent, kind, size)
        expected = acted(agent, given)
        with torch.no_grad():
            actions = loaded(**given).numpy()
        np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
        (actions,) = session.run(["actions"], {name: x.numpy() for name, x in given.items()})
        np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    place = str(Path(graph.__file__).parents[2]).encode()
    assert place not in (tmp_path / "policy.onnx").read_bytes()
    with zipfile.ZipFile(tmp_path / "policy.pt2") as archive:
        assert not [name for name in archive.namelist() if place in archive.read(name)]


def test_a_folder_can_hold_a_graph_beside_the_weights(policy, tmp_path):
    policy.save_pretrained(tmp_path / "out", formats=["torch-export"])
    loaded = torch.export.load(tmp_path / "out" / "policy.pt2").module()
    rows = torch.randn(4, 6)
    noises = torch.randn(4, 2, generator=torch.Generator().manual_seed(9))
    expected = Policy.from_pretrained(tmp_path / "out")(
        rows.numpy(), generator=torch.Generator().manual_seed(9)
    )
    with torch.no_grad():
        actions = loaded(observations=rows, noises=noises).numpy()
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    assert "`policy.pt2`" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "out" / "policy.pt2").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"policy\.pt2 does not match its digest"):
        Policy.from_pretrained(tmp_path / "out")


def test_without_the_packages_of_onnx_it_is_said_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(graph, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx and onnxscript: pip install 'deflow-vision\[exp"):
        write_onnx(make_agent("state"), tmp_path / "policy.onnx")
