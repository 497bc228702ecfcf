"""Reads the golden arrays into our modules: the reference's names and layouts beside ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deflow_vision.agents.deflow import DeFlow, DeFlowConfig, DeFlowNoises
from deflow_vision.networks.encoders import EncoderConfig
from deflow_vision.types import Batch, Spec

GOLDEN = Path(__file__).parents[1] / "golden"
ENCODERS = {
    "modules_critic/encoder": "encoder.encoders.critic",
    "modules_actor_bc_flow_encoder": "encoder.encoders.flow",
    "modules_refine_onestep_flow/encoder": "encoder.encoders.refinement",
    "modules_target_critic/encoder": "encoder.targets.critic",
}
TRUNKS = {
    "modules_actor_bc_flow/mlp": "bc_flow.mlp",
    "modules_refine_onestep_flow/mlp": "refinement.mlp",
}
CRITICS = {
    "modules_critic/value_net": "critic.mlp",
    "modules_target_critic/value_net": "target_critic.mlp",
}


def names(pixels: bool) -> dict[str, str]:
    """Our parameter's name for each of the reference's."""
    table = {"modules_log_alpha/value": "log_alpha"}
    for theirs, ours in TRUNKS.items():
        for i in range(5):
            layer = f"{ours}.hidden.{i}" if i < 4 else f"{ours}.out"
            table[f"{theirs}/Dense_{i}/kernel"] = f"{layer}.weight"
            table[f"{theirs}/Dense_{i}/bias"] = f"{layer}.bias"
    for theirs, ours in CRITICS.items():
        for i in range(5):
            table[f"{theirs}/Dense_{i}/kernel"] = f"{ours}.weights.{i}"
            table[f"{theirs}/Dense_{i}/bias"] = f"{ours}.biases.{i}"
        for i in range(4):
            table[f"{theirs}/LayerNorm_{i}/scale"] = f"{ours}.norm_scales.{i}"
            table[f"{theirs}/LayerNorm_{i}/bias"] = f"{ours}.norm_shifts.{i}"
    for theirs, ours in ENCODERS.items() if pixels else ():
        table[f"{theirs}/MLP_0/Dense_0/kernel"] = f"{ours}.dense.weight"
        table[f"{theirs}/MLP_0/Dense_0/bias"] = f"{ours}.dense.bias"
        for s in range(3):
            convs = ["conv", "blocks.0.first", "blocks.0.second"]
            for c, conv in enumerate(convs):
                for part, leaf in (("kernel", "weight"), ("bias", "bias")):
                    table[f"{theirs}/stack_blocks_{s}/Conv_{c}/{part}"] = (
                        f"{ours}.stacks.{s}.{conv}.{leaf}"
                    )
    return table


def to_theirs(name: str, ours: Tensor) -> np.ndarray:
    """Our array in the reference's layout."""
    array = ours.detach().numpy()
    if name == "modules_log_alpha/value":
        return array.reshape(1)
    if name.endswith("kernel") and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    if name.endswith("kernel") and array.ndim == 2:
        return array.T
    if array.ndim == 3 and not name.endswith("kernel"):
        return array[:, 0]  # (E, 1, width)
    return array


def from_theirs(name: str, theirs: np.ndarray, like: Tensor) -> Tensor:
    """The reference's array in our layout."""
    if name.endswith("kernel") and theirs.ndim == 4:
        theirs = theirs.transpose(3, 2, 0, 1)
    elif name.endswith("kernel") and theirs.ndim == 2:
        theirs = theirs.T
    return torch.tensor(np.ascontiguousarray(theirs)).reshape(like.shape)


class Golden:
    """One file of golden arrays and the agent that it describes."""

    def __init__(self, kind: str) -> None:
        with np.load(GOLDEN / f"golden_deflow_{kind}.npz") as file:
            self.arrays = {name: file[name] for name in file.files}
        self.pixels = kind == "pixels"
        self.names = names(self.pixels)

    def batch(self) -> Batch:
        return Batch(
            **{field: torch.tensor(self.arrays[f"batch/{field}"]) for field in Batch._fields[:5]}
        )

    def noises(self, update: int) -> DeFlowNoises:
        def get(name: str) -> Tensor:
            return torch.tensor(self.arrays[f"noise{update}/{name}"])

        return DeFlowNoises(
            get("next_action_noise"),
            get("flow_x0"),
            get("flow_t").squeeze(1),
            get("base_action_noise"),
        )

    def agent(self) -> DeFlow:
        shape = self.arrays["batch/observations"].shape[1:]
        spec = Spec(shape, "uint8" if self.pixels else "float32", 3, (-1.0, 0.0))
        agent = DeFlow(
            spec,
            DeFlowConfig(hidden_dims=(16, 16, 16, 16)),
            EncoderConfig(name="impala_small" if self.pixels else "identity", sharing="separate"),
        )
        parameters = dict(agent.named_parameters())
        assert set(self.names.values()) == set(parameters), "every parameter has a golden array"
        with torch.no_grad():
            for theirs, ours in self.names.items():
                parameters[ours].copy_(
                    from_theirs(theirs, self.arrays[f"params0/{theirs}"], parameters[ours])
                )
        return agent

    def optimizer(self, agent: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(agent.parameter_groups(), eps=1e-8)

    def entries(self, array: np.ndarray) -> np.ndarray:
        """The 256 entries that the file keeps of a large array."""
        return array.reshape(-1)[np.random.default_rng(0).integers(0, array.size, 256)]
