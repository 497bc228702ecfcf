"""Shapes and types are checked in tests, and only there: jaxtyping's import hook with beartype."""

from jaxtyping import install_import_hook

install_import_hook(
    [
        "deflow_vision.flow",
        "deflow_vision.losses",
        "deflow_vision.networks",
        "deflow_vision.datasets.transitions",
    ],
    "beartype.beartype",
)
