"""What `spec.json` of a shared policy says: all that one must know to act with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deflow_vision.files import is_sound, read_json, sealed_text
from deflow_vision.training.run_folder import parse_spec
from deflow_vision.types import Spec, UserError

SCHEMA = 1
"""What this version writes, and the greatest that it reads."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a policy is, what it was trained on, and what it reached; plain values alone.

    Attributes:
        task: canonical name of the task.
        algo: name of the algorithm.
        env_id: the environment, as `make_env` takes it.
        observation_shape: (D * frame_stack,) or (H, W, C * frame_stack).
        observation_dtype: "float32" for state, "uint8" for pixels.
        frame_stack: frames in an observation, oldest first, along the last axis.
        render_profile: how the frames were drawn.
        action_dim: A; actions lie in [-1, 1].
        noise_dim: standard normal numbers that an action takes; 0 where it is deterministic.
        reward_range: the least and the greatest reward of the dataset.
        updates: those that it was trained with.
        run: the same for all checkpoints of one run, and for those alone.
        data: the dataset, fact by fact.
        versions: of the packages that it was trained with.
        evaluations: see `results.evaluations`.
    """

    task: str
    algo: str
    env_id: str
    observation_shape: tuple[int, ...]
    observation_dtype: str
    frame_stack: int
    render_profile: str
    action_dim: int
    noise_dim: int
    reward_range: tuple[float, float]
    updates: int
    run: str
    data: Mapping[str, str]
    versions: Mapping[str, str]
    evaluations: tuple[Mapping[str, Any], ...]

    @property
    def spec(self) -> Spec:
        """What the agent was built for."""
        return Spec(
            observation_shape=self.observation_shape,
            observation_dtype="uint8" if self.observation_dtype == "uint8" else "float32",
            action_dim=self.action_dim,
            reward_range=self.reward_range,
        )

    def write(self, path: Path, digests: Mapping[str, str]) -> None:
        """Write `spec.json`, with the digests of the files beside it."""
        path.write_text(sealed_text({"schema": SCHEMA, **asdict(self), "files": dict(digests)}))


def read_record(path: Path) -> tuple[Record, dict[str, str]]:
    """A record, and the digests of the files beside it.

    Args:
        path: `spec.json`.

    Raises:
        UserError: it cannot be read, or is of a newer version of this library.
    """
    try:
        values = read_json(path)
        schema, digests = int(values["schema"]), dict(values["files"])
    except (OSError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise UserError(f"{path} does not describe a policy ({error!r}); export it anew.") from None
    if not is_sound(values):
        raise UserError(
            f"{path} does not match its own digest: it is damaged or was changed. Fetch or export "
            "the policy again."
        )
    if schema > SCHEMA:
        raise UserError(
            f"{path} has schema {schema}, this version of deflow-vision knows those up to "
            f"{SCHEMA}: update it."
        )
    names = [field.name for field in fields(Record)]
    if missing := [name for name in names if name not in values]:
        raise UserError(f"{path} says nothing of {', '.join(missing)}; export the policy anew.")
    parse_spec(values, path)
    for name, (fits, what) in _FACTS.items():
        if not fits(values[name]):
            raise UserError(f"{path}: {name} is {values[name]!r}, must be {what}.")
    tuples = ("observation_shape", "reward_range", "evaluations")
    found = {name: values[name] for name in names}
    return Record(**found | {name: tuple(found[name]) for name in tuples}), digests


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 62


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


_TEXT = (lambda value: isinstance(value, str), "text")
_FACTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("task", "algo", "env_id", "render_profile", "run"), _TEXT),
    "frame_stack": (lambda value: _whole(value, 1), "a whole number of at least 1"),
    **dict.fromkeys(("noise_dim", "updates"), (lambda value: _whole(value, 0), "a whole number")),
    **dict.fromkeys(("data", "versions"), (_texts, "a mapping of text")),
    "evaluations": (
        lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value),
        "a list of mappings",
    ),
}
"""What each fact of a record must be."""
