"""`target_divergence auto`: the number that the dataset suggests, found before a run begins."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from deflow_vision.config import TrainConfig
from deflow_vision.datasets.divergence import FACTORS, action_variance, simulator_states
from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import Store
from deflow_vision.tasks import Task
from deflow_vision.types import UserError

log = logging.getLogger(__name__)


def settle_divergence(
    config: TrainConfig, task: Task, store: Store, accelerator: Accelerator
) -> tuple[TrainConfig, dict[str, Any]]:
    """Put the dataset's number where the configuration says `target_divergence auto`.

    Args:
        config: a resolved configuration.
        task: what is trained.
        store: its dataset.
        accelerator: its main process searches, the others take its answer.

    Returns:
        The configuration with a number, and how that came about; empty where it was a number.

    Raises:
        UserError: the task has no rule, or the dataset no answer.
    """
    if getattr(config.agent, "target_divergence", None) != "auto":
        return config, {}
    if task.domain is None:
        raise UserError(
            "target_divergence is auto, but DeFlow's rule is one for manipulation and another for "
            f"navigation, and {task.name} is known as neither: `python scripts/data.py "
            f"suggest-delta {store.path}` shows both."
        )
    record = _derive(task, store) if accelerator.is_main_process else {}
    record = broadcast_object_list([record])[0]
    agent = replace(config.agent, target_divergence=record["target_divergence"])
    return replace(config, agent=agent), record


def _derive(task: Task, store: Store) -> dict[str, Any]:
    assert task.domain is not None
    train = store.train
    log.info("target_divergence auto: searching %s for neighbours", store.path)
    (found,) = action_variance(simulator_states(train), read_all(train.actions), train.episode_ends)
    delta = found.target_divergence(task.domain)
    if not delta > 0:
        raise UserError(
            f"{store.path}: the actions around a state do not differ, which leaves no divergence "
            "to suggest. Give --agent.target-divergence a number."
        )
    factor = FACTORS[task.domain]
    log.info("target_divergence %g = %g x %.3g (%s)", delta, factor, found.iav, task.domain)
    return {
        "target_divergence": delta,
        "factor": factor,
        "domain": task.domain,
        "action_variance": found.iav,
        "standard_error": found.standard_error,
        "sampled_states": len(found.per_state),
        "neighbours": found.neighbours,
        "metric": found.metric,
    }
