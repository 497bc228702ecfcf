"""Evaluation beside training: each checkpoint of a run, as it is written, in another process.

Training does not wait for it, and need not be on the same machine: all that the two share is the
run folder. What was evaluated is known by the records in `evaluations/`, so that one that was ended
goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deflow_vision.config import from_yaml
from deflow_vision.files import read_json
from deflow_vision.tasks import env_of
from deflow_vision.training.checkpoint import checkpoints
from deflow_vision.training.run_folder import is_held, read_render_profile
from deflow_vision.types import UserError

log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds between two looks for a new checkpoint."""


def follow(
    run_dir: Path,
    evaluate: Callable[[int], object],
    *,
    episodes: int,
    seed: int,
    env: str | None = None,
    render_profile: str | None = None,
    acting: Mapping[str, Any] | None = None,
) -> int:
    """Evaluate the checkpoints of a run that were not yet, oldest first, until the run has ended.

    Args:
        run_dir: the run folder. A run counts as ended where no process holds its folder; on a disk
            that cannot lock it, at once.
        evaluate: evaluates the checkpoint of a step as `evaluate_run` does, with the arguments
            that follow: a checkpoint with a record of the same ones is not evaluated again.
        episodes: see `evaluate_run`, as the others.
        seed: of the episodes.
        env: an environment, by default the run's own.
        render_profile: by default that of the run's frames.
        acting: hyper-parameters of how the agent acts.

    Returns:
        How many it evaluated.

    Raises:
        UserError: there is no run, or an evaluation failed.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"no run in {run_dir}: start training first.")
    config = from_yaml(run_dir / "config.yaml")
    asked = {
        "episodes": episodes,
        "seed": seed,
        "env": env or env_of(config.task, config.env),
        "render_profile": render_profile or read_render_profile(run_dir),
        "acting": dict(acting or {}),
    }
    count, done = 0, set(_evaluated(run_dir, asked))
    while True:
        training = is_held(run_dir)  # asked first: what it writes before it ends is seen below
        waiting = [found.step for found in checkpoints(run_dir) if found.step not in done]
        if waiting:
            step = waiting[0]
            try:
                evaluate(step)
                count += 1
            except (UserError, OSError):
                if step in {found.step for found in checkpoints(run_dir)}:
                    raise
                log.warning(
                    "the checkpoint after %s updates was removed before its turn: train with a "
                    "greater --checkpoint.keep, or evaluate fewer episodes",
                    f"{step:,}",
                )
            done.add(step)
        elif training:
            time.sleep(LOOK_EVERY)
        else:
            return count


def _evaluated(run_dir: Path, asked: Mapping[str, Any]) -> Iterator[int]:
    """Steps of which there is a record with these arguments."""
    for path in (run_dir / "evaluations").glob("*/evaluation.json"):
        try:
            arguments = read_json(path)["arguments"]
            if all(arguments.get(name) == value for name, value in asked.items()):
                yield int(arguments["step"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s is no record of an evaluation (%s); it does not count", path, error)
