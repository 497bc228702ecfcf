"""The model card of a shared policy: README.md, with the front matter that the hub reads."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from deflow_vision.sharing.folder import CONFIG, GRAPHS, SPEC, WEIGHTS
from deflow_vision.sharing.record import Record

METRICS = {
    "success": "Success",
    "normalized_score": "Normalized score",
    "return": "Return",
    "length": "Length",
}
"""Means over episodes, and what the card calls them."""

_FILES = {
    WEIGHTS: "all networks of the agent, those that only training needs included",
    CONFIG: "the configuration of its run, without what names a place on the machine",
    SPEC: "observations, actions, evaluations with the seed of each episode, digests of the files",
    GRAPHS["torch-export"]: "actions from `observations` and `noises`, for `torch.export.load`",
    GRAPHS["onnx"]: "the same, for ONNX runtimes",
}


def model_card(record: Record, files: Sequence[str]) -> str:
    """The card as Markdown.

    Args:
        record: the policy.
        files: names of the files that are beside it.
    """
    front = yaml.safe_dump(_front_matter(record), sort_keys=False, allow_unicode=True)
    stacked = f", {record.frame_stack} frames along the last axis, the oldest first"
    pixels = record.observation_dtype == "uint8"
    facts = {
        "task": f"`{record.task}`",
        "environment": f"`{record.env_id}`",
        "algorithm": f"`{record.algo}`",
        "updates": f"{record.updates:,}",
        "observations": f"{'x'.join(map(str, record.observation_shape))} "
        f"{record.observation_dtype}{stacked if record.frame_stack > 1 else ''}",
        **({"frames": f"render profile {record.render_profile}"} if pixels else {}),
        "actions": f"{record.action_dim} numbers in [-1, 1]",
        "noise": f"{record.noise_dim} standard normal numbers an action"
        if record.noise_dim
        else "none: the policy is deterministic",
    }
    return "\n".join(
        [
            f"---\n{front}---\n",
            f"# {record.algo} on {record.task}\n",
            "A policy trained with deflow-vision.\n",
            _table(("", ""), list(facts.items())),
            "## Results\n",
            _results(record.evaluations),
            "## Use\n",
            _use(pixels),
            "## Data\n",
            _table(("", ""), list(record.data.items())),
            "## Files\n",
            _table(("file", "holds"), [(f"`{n}`", _FILES[n]) for n in _FILES if n in files]),
            "## Versions\n",
            _table(("package", "trained with"), list(record.versions.items())),
        ]
    )


def _front_matter(record: Record) -> dict[str, Any]:
    """See https://huggingface.co/docs/hub/model-cards; without a licence, which is the owner's."""
    matter: dict[str, Any] = {
        "library_name": "deflow-vision",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "offline-rl", record.algo, record.task],
    }
    metrics = [
        {"type": key, "name": f"{name}, {each['episodes']} episodes", "value": each[key]}
        for each in record.evaluations
        for key, name in METRICS.items()
        if key in each
    ]
    if metrics:
        result = {
            "task": {"type": "reinforcement-learning"},
            "dataset": {"type": record.task, "name": record.env_id},
            "metrics": metrics,
        }
        matter["model-index"] = [{"name": f"{record.algo} {record.task}", "results": [result]}]
    return matter


def _results(evaluations: Sequence[Mapping[str, Any]]) -> str:
    if not evaluations:
        return "This checkpoint was not evaluated.\n"
    metrics = [key for key in METRICS if any(key in each for each in evaluations)]
    rows = []
    for each in evaluations:
        notes = [f"{key}={value}" for key, value in each["acting"].items()]
        notes += ["episodes cut short of the task's limit"] if each["capped"] else []
        means = [f"{each[key]:.4g}" if key in each else "" for key in metrics]
        when, env = each["when"], f"`{each['env_id']}`"
        rows.append((when, env, each["seed"], each["episodes"], *means, ", ".join(notes)))
    names = [METRICS[key].lower() for key in metrics]
    table = _table(("evaluated", "environment", "seed", "episodes", *names, "notes"), rows)
    return f"{table}\nMeans over episodes; the seed of each episode is in `{SPEC}`.\n"


def _use(pixels: bool) -> str:
    if pixels:
        code = """
            import torch
            from deflow_vision.envs.pool import EnvPool
            from deflow_vision.sharing import Policy

            if __name__ == "__main__":  # the environment runs in a process of its own
                policy = Policy.from_pretrained("this folder, or owner/name on the hub")
                generator = torch.Generator().manual_seed(0)
                with EnvPool(num_envs=1, **policy.environment) as envs:
                    observation, done = envs.reset_many([0], [0])[0], False
                    while not done:
                        action = policy(observation, generator=generator)
                        (step,) = envs.step([0], action[None])
                        observation, done = step.observation, step.terminated or step.truncated
            """
    else:
        code = """
            import torch
            from deflow_vision.envs.make import make_env
            from deflow_vision.sharing import Policy

            policy = Policy.from_pretrained("this folder, or owner/name on the hub")
            env, generator = make_env(**policy.environment), torch.Generator().manual_seed(0)
            observation, done = env.reset(seed=0)[0], False
            while not done:
                action = policy(observation, generator=generator)
                observation, reward, terminated, truncated, info = env.step(action)
                done = terminated or truncated
            """
    return f"```python\n{textwrap.dedent(code).strip()}\n```\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
