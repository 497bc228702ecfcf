"""Shapes and types are checked in tests, and only there: jaxtyping's import hook with beartype."""

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)  # tensors here are tiny: more threads only wait for each other

install_import_hook(
    [
        "deflow_vision.flow",
        "deflow_vision.losses",
        "deflow_vision.networks",
        "deflow_vision.datasets.transitions",
    ],
    "beartype.beartype",
)
