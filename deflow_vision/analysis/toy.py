"""What methods make of a bandit whose value is known (`deflow_vision.analysis.bandit`).

The value of an action is the reward of a transition that ends there, so an agent's critic learns
it, where there is data.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from deflow_vision.agents import AGENTS
from deflow_vision.agents.base import Agent, standard_normal
from deflow_vision.agents.deflow import DeFlow
from deflow_vision.analysis.bandit import (
    SUPPORT,
    WIDTH,
    Outcome,
    draw_data,
    modes,
    nearest_mode,
    value,
)
from deflow_vision.analysis.plots import REFERENCE, STYLE, TRAIN, VALIDATION, save_figure
from deflow_vision.config import parse_assignments
from deflow_vision.config.layers import apply_layer
from deflow_vision.networks.encoders import EncoderConfig
from deflow_vision.seeding import derive_seed
from deflow_vision.tasks import nearest
from deflow_vision.types import Batch, Spec, UserError

DATA_SIZE, BATCH_SIZE, NUM_SAMPLES, NUM_SHOWN = 20_000, 128, 2000, 600

SETTINGS: dict[str, Any] = {
    "hidden_dims": [64, 64, 64],
    "lr": 2e-3,
    "actor_lr": 2e-3,
    "discount": 0.01,  # nothing follows; floq takes its range of values from it
    "target_divergence": 0.002,
    "initial_log_alpha": 3.0,  # near to where it settles: training is short
    "alpha": 10.0,  # the default of FQL; values here lie within 1, not within 100
}
"""What differs from a method's defaults, where it has the setting."""


@dataclass(frozen=True)
class Panel:
    """A picture of samples: their numbers, the samples (N, 2), and where each was moved from."""

    outcome: Outcome
    actions: Tensor
    moved_from: Tensor | None = None


def compare(methods: Sequence[str], *, seed: int, updates: int, out: Path) -> list[Outcome]:
    """Train each method on the same data; write `toy.png` and `toy.csv`.

    Args:
        methods: names of `AGENTS`, each with settings of its own where wanted, as
            `fql:alpha=1:flow_steps=5`.
        seed: of the data, the initial weights and the noises.
        updates: how many each method has.
        out: the folder.

    Returns:
        The numbers: of the data, of the first base flow, of each method.

    Raises:
        UserError: an unknown method or setting.
    """
    made = [make_agent(method, seed) for method in methods]  # all, before any is trained
    data = draw_data(DATA_SIZE, torch.Generator().manual_seed(derive_seed(seed, "toy", "data")))
    shown = data[:NUM_SAMPLES]
    panels = [Panel(Outcome.of("data", shown, data), shown)]
    for method, agent in zip(methods, made, strict=True):
        start = perf_counter()
        train(agent, data, updates, seed)
        seconds = perf_counter() - start
        new = _sample(agent, method, data, seed, seconds)
        known = any(panel.outcome.method == "base flow" for panel in panels)
        panels += new[known:] if len(new) > 1 else new
    out.mkdir(parents=True, exist_ok=True)
    outcomes = [panel.outcome for panel in panels]
    with (out / "toy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Outcome)])
        writer.writeheader()
        writer.writerows(asdict(outcome) for outcome in outcomes)
    draw(panels, out / "toy.png", f"{updates:,} updates, seed {seed}")
    return outcomes


def make_agent(method: str, seed: int) -> Agent:
    """An untrained agent for the bandit, of `name` or `name:key=value:key=value`.

    Raises:
        UserError: an unknown method or setting.
    """
    name, _, words = method.partition(":")
    if name not in AGENTS:
        raise UserError(f"unknown method {name!r}. {nearest(name, AGENTS)}")
    config = AGENTS[name].Config()
    has = {field.name for field in fields(config)}
    common: Mapping[str, Any] = {key: SETTINGS[key] for key in SETTINGS if key in has}
    config = apply_layer(config, common, "the toy's settings")
    config = apply_layer(config, parse_assignments(words.split(":") if words else ()), method)
    values = value(modes())
    spec = Spec((1,), "float32", 2, (values.min().item(), values.max().item()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "toy", "initialisation"))
        return AGENTS[name](spec, config, EncoderConfig())


def train(agent: Agent, data: Tensor, updates: int, seed: int) -> None:
    """Learn from the data's actions (N, 2), each one's value the reward of an end.

    The training loop in short: no processes, no logs, no checkpoints.
    """
    groups = [{**group, "initial_lr": group["lr"]} for group in agent.parameter_groups()]
    optimizer = torch.optim.AdamW(
        groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
    )
    generator = torch.Generator().manual_seed(derive_seed(seed, "toy", "training"))
    states = _states(BATCH_SIZE)
    for step in range(updates):
        actions = data[torch.randint(len(data), (BATCH_SIZE,), generator=generator)]
        rewards = value(actions)
        batch = Batch(
            observations=states,
            actions=actions,
            rewards=rewards,
            masks=torch.zeros(BATCH_SIZE),
            next_observations=states,
            next_actions=actions,
            mc_returns=rewards,
        )
        noises = agent.sample_noises(BATCH_SIZE, generator)
        losses, _ = agent(batch, noises, agent.stage(step))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        for group in optimizer.param_groups:
            if "clip" in group:
                torch.nn.utils.clip_grad_norm_(group["params"], group["clip"])
            if "schedule" in group:
                group["lr"] = group["initial_lr"] * group["schedule"](step)
        agent.update_targets(step)
        optimizer.step()


def _states(size: int) -> Tensor:
    """The one state, (size, 1): not 0, of which networks without biases yet would make a Q of 0."""
    return torch.ones(size, 1)


def _sample(agent: Agent, method: str, data: Tensor, seed: int, seconds: float) -> list[Panel]:
    """The panel of a trained agent; before it, that of its base flow, where it refines one."""

    def draws() -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(seed, "toy", "samples"))

    states = _states(NUM_SAMPLES)
    actions = agent.act(states, generator=draws())
    if not isinstance(agent, DeFlow):
        return [Panel(Outcome.of(method, actions, data, seconds=seconds), actions)]
    with torch.no_grad():
        features = agent.encoder(states)
        base = agent.base_actions(features["flow"], standard_normal(NUM_SAMPLES, 2, draws()))
        _, moves = agent.refine(features["refinement"], base)
    outcome = Outcome.of(
        method,
        actions,
        data,
        refinement=moves.square().mean().item(),
        target_divergence=agent.target_divergence,
        seconds=seconds,
    )
    return [Panel(Outcome.of("base flow", base, data), base), Panel(outcome, actions, base)]


def draw(panels: Sequence[Panel], path: Path, title: str) -> Path:
    """Draw the panels side by side, the value as contours behind them; gives the path back."""
    columns = len(panels) if len(panels) <= 5 else 4
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(2.3 * columns, 3.1 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, panel in zip(axes, panels, strict=False):
            _draw_panel(axis, panel)
        for axis in axes[len(panels) :]:
            axis.remove()
        words = "circles: the data's support; grey: the value; lines: how a base action was moved"
        figure.suptitle(f"{words}. {title}", fontsize=9)
        return save_figure(figure, path)


def _draw_panel(axis: Axes, panel: Panel) -> None:
    grid = torch.linspace(-1, 1, 121)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
    axis.contourf(grid, grid, value(points), levels=10, cmap="Greys", vmax=2.0)
    for x, y in modes().tolist():
        circle = mpl.patches.Circle((x, y), SUPPORT * WIDTH, fill=False, color=REFERENCE, lw=0.8)
        axis.add_patch(circle)
    actions = panel.actions[:NUM_SHOWN]
    inside = nearest_mode(actions)[1]
    if panel.moved_from is not None:
        moves = torch.stack([panel.moved_from[: len(actions)], actions], dim=1)[::3]
        axis.add_collection(LineCollection(list(moves.numpy()), colors=REFERENCE, linewidths=0.4))
    for mask, color in ((inside, TRAIN), (~inside, VALIDATION)):
        axis.scatter(actions[mask, 0], actions[mask, 1], s=4, color=color, linewidths=0)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[["top", "right"]].set_visible(True)
    axis.set_title(panel.outcome.method)
    axis.set_xlabel(panel.outcome.caption())
