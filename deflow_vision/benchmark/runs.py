"""What the folder of a cell's run says: whether it is finished, and what it scored."""

from __future__ import annotations

from typing import Literal

from deflow_vision.analysis.tables import read_table
from deflow_vision.benchmark.protocols import Protocol
from deflow_vision.benchmark.tables import Cell
from deflow_vision.config import SETTLED_BY_RUN, TrainConfig, flatten, from_yaml, to_dict
from deflow_vision.types import UserError

State = Literal["missing", "interrupted", "finished"]

FREE = (
    *("run_dir", "num_threads", "cuda_graphs", "checkpoint.", "log."),
    *("data.path", "data.cache", "data.retry_minutes"),
    *("eval.num_envs", "eval.videos", "eval.val_batches"),
)
"""Settings in which a run may differ from its table: no score depends on them by design."""


def state_of(cell: Cell, protocol: Protocol) -> State:
    """How far a cell's run is.

    Args:
        cell: the cell.
        protocol: its table's.

    Raises:
        UserError: the folder is damaged, or holds a run with other settings than the table's.
    """
    config = read_config(cell)
    if config is None:
        return "missing"
    path = cell.run_dir / "train.csv"
    if not path.exists():
        return "interrupted"
    rows, column = read_table(path), protocol.column(cell.task)
    if not {"step", column} <= set(rows):
        return "interrupted"
    last = rows["step"] == config.offline_steps + config.online_steps
    return "finished" if rows.loc[last, column].notna().any() else "interrupted"


def figures_of(cell: Cell, protocol: Protocol) -> tuple[float, ...]:
    """What the protocol measures of a finished run, a figure for each of its phases.

    Raises:
        UserError: the run's files do not hold it.
    """
    config = read_config(cell)
    assert config is not None, f"{cell.run_dir} holds no run"
    try:
        return protocol.measure(read_table(cell.run_dir / "train.csv"), cell.task, config)
    except UserError as error:
        raise UserError(f"{cell.run_dir}: {error}") from error


def read_config(cell: Cell) -> TrainConfig | None:
    """The configuration of a cell's run, None where there is no run.

    Raises:
        UserError: it cannot be read, or is not the table's.
    """
    path = cell.run_dir / "config.yaml"
    if not path.exists():
        return None
    config = from_yaml(path)
    saved = flatten(to_dict(config))
    for key, wanted in flatten(to_dict(cell.config())).items():
        free = key.startswith(FREE) or wanted in SETTLED_BY_RUN
        if not free and saved[key] != wanted:
            raise UserError(
                f"{cell.run_dir} was run with {key} {saved[key]!r}, the table asks for {wanted!r}: "
                "move that folder away, or change the table back."
            )
    return config
