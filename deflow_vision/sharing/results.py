"""What a checkpoint reached in evaluations, from the files of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from deflow_vision.analysis.tables import read_table
from deflow_vision.files import read_json
from deflow_vision.training.evaluation import normalized_score
from deflow_vision.types import UserError


def evaluations(run_dir: Path, step: int, seed: int, env_id: str) -> tuple[dict[str, Any], ...]:
    """Every evaluation of a checkpoint: the one in training, and those by scripts/evaluate.py.

    Args:
        run_dir: the run folder.
        step: updates of the checkpoint.
        seed: the run's.
        env_id: the run's environment.

    Returns:
        Of each: `when`, `env_id`, `seed`, the number of `episodes`, the means `success` (where it
        was reported), `return`, `length` and `normalized_score` (of D4RL's tasks), `capped`
        (whether episodes were cut short of the task's limit), `acting` (settings changed for it),
        and `episode_seeds`, of each episode's reset and noise.
    """
    found = [_evaluation(run_dir, step, when="in training", env_id=env_id, seed=seed, acting={})]
    for path in sorted((run_dir / "evaluations").glob("*/evaluation.json")):
        try:
            asked = read_json(path)["arguments"]
            settings: dict[str, Any] = {
                "env_id": str(asked["env"]),
                "seed": int(asked["seed"]),
                "acting": dict(asked["acting"]),
            }
        except (OSError, ValueError, TypeError, KeyError, ArithmeticError) as error:
            raise UserError(
                f"{path} is damaged ({error!r}): remove {path.parent} to do without it."
            ) from None
        found.append(_evaluation(path.parent, step, when="afterwards", **settings))
    return tuple(each for each in found if each)


def _evaluation(
    folder: Path, step: int, *, when: str, env_id: str, seed: int, acting: dict[str, Any]
) -> dict[str, Any]:
    path = folder / "episodes.csv"
    columns = ("step", "return", "length", "seed", "capped")
    rows = read_table(path, columns) if path.is_file() else pd.DataFrame(columns=["step"])
    rows = rows[rows["step"] == step]
    if rows.empty:
        return {}
    names = [
        key for key in ("success", "return", "length") if key in rows and rows[key].notna().all()
    ]
    means = {key: float(rows[key].mean()) for key in names}
    score = normalized_score(env_id, means["return"]).get("eval/normalized_score")
    return {
        "when": when,
        "env_id": env_id,
        "seed": seed,
        "episodes": len(rows),
        **means,
        **({} if score is None else {"normalized_score": score}),
        "capped": bool(rows["capped"].any()),
        "acting": acting,
        "episode_seeds": [int(each) for each in rows["seed"]],
    }
