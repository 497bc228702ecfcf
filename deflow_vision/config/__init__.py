"""The configuration of a run: its schema, its YAML, and the command line that composes it."""

from deflow_vision.config.command_line import compose, load
from deflow_vision.config.layers import (
    SETTLED_BY_RUN,
    ConfigError,
    apply_layer,
    flatten,
    from_yaml,
    parse_assignments,
    to_dict,
    to_yaml,
)
from deflow_vision.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    TrainConfig,
    default_run_dir,
    resolve_mixed_precision,
)

__all__ = [
    "SETTLED_BY_RUN",
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "LogConfig",
    "TrainConfig",
    "apply_layer",
    "compose",
    "default_run_dir",
    "flatten",
    "from_yaml",
    "load",
    "parse_assignments",
    "resolve_mixed_precision",
    "to_dict",
    "to_yaml",
]
