"""Trained agents looked into on one sample: all numbers, and all figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deflow_vision.agents.deflow import DeFlow
from deflow_vision.analysis.embedding_pictures import plot_neighbours, plot_saliency
from deflow_vision.analysis.embedding_plots import plot_cka, plot_maps, plot_numbers, plot_progress
from deflow_vision.analysis.embedding_report import NEIGHBOURS, Report, compare
from deflow_vision.analysis.embeddings import linear_cka, varies
from deflow_vision.analysis.encoders import (
    Features,
    Subject,
    encoders_of,
    features_of,
    layer_features,
    pixel_features,
    random_features,
)
from deflow_vision.analysis.frames import Sample, action_names
from deflow_vision.analysis.projections import Projection
from deflow_vision.analysis.refinement import Moves, flow_of, moves
from deflow_vision.analysis.refinement_plots import plot_flow, plot_moves
from deflow_vision.analysis.saliency import gradient_saliency, occlusion_saliency, value_of
from deflow_vision.types import UserError

PICTURES = 6
MOVED_STATES, MOVED_SAMPLES = 64, 64


@dataclass(frozen=True)
class Study:
    """What was found.

    Attributes:
        subjects: the agents, checkpoints of a run from the first to the last.
        sample: what they looked at.
        features: of their encoders, then of the baselines.
        report: the numbers of those.
        layer_names: a layer of the newest checkpoint of an agent each.
        layer_cka: their likeness, (L, L).
        refinement: what each agent that refines makes of base actions, by its name.
    """

    subjects: tuple[Subject, ...]
    sample: Sample
    features: tuple[Features, ...]
    report: Report
    layer_names: tuple[str, ...]
    layer_cka: np.ndarray
    refinement: dict[str, Moves]

    def json(self, **more: Any) -> str:
        """The numbers, and further facts."""
        layers = {"names": self.layer_names, "cka": self.layer_cka.tolist()}
        refinement = {name: found.summary() for name, found in self.refinement.items()}
        return self.report.json(layers=layers, refinement=refinement, **more)


def study(
    subjects: Sequence[Subject], sample: Sample, *, k: int = NEIGHBOURS, seed: int = 0
) -> Study:
    """Measure agents, an untrained encoder of each architecture, and the raw pixels.

    Args:
        subjects: at least one agent; checkpoints of a run from the first to the last.
        sample: what they look at.
        k: neighbours of the action's consistency.
        seed: of the baselines.

    Raises:
        UserError: the sample's observations are not of an agent's kind.
    """
    features = [each for subject in subjects for each in features_of(subject, sample)]
    if sample.pixels:
        architectures = {subject.encoder: subject for subject in subjects}
        features += [random_features(each, sample, seed) for each in architectures.values()]
        features.append(pixel_features(sample, seed))
    layers: dict[str, np.ndarray] = {}
    for subject in newest(subjects):
        (head, *_), *others = encoders_of(subject.agent)
        whose = f"{subject.policy}: {head} " if others else f"{subject.policy}: "
        found = layer_features(subject.agent, sample, head)
        layers |= {f"{whose}{layer}": values for layer, values in found.items()}
    return Study(
        tuple(subjects),
        sample,
        tuple(features),
        compare(features, sample, k),
        tuple(layers),
        linear_cka(list(layers.values())),
        {
            subject.policy: moves(
                subject.agent,
                _states(sample, subject, MOVED_STATES),
                MOVED_SAMPLES,
                torch.Generator().manual_seed(seed),
            )
            for subject in newest(subjects)
            if isinstance(subject.agent, DeFlow)
        },
    )


def newest(subjects: Sequence[Subject]) -> list[Subject]:
    """The last checkpoint of each policy."""
    return list({subject.policy: subject for subject in subjects}.values())


def draw(found: Study, out: Path, methods: Sequence[Projection], seed: int = 0) -> Iterator[Path]:
    """Draw everything: what compares encoders, then what shows the newest of each policy.

    Args:
        found: the study.
        out: the folder.
        methods: of the maps.
        seed: of what is drawn at random: states, maps, noises.

    Yields:
        The files written, one by one.
    """
    yield from draw_numbers(found, out)
    yield from draw_maps(found, out, methods, seed)
    yield from draw_neighbours(found, out, seed)
    yield from draw_saliency(found, out)
    yield from draw_flows(found, out, seed)


def draw_numbers(found: Study, out: Path) -> Iterator[Path]:
    """Draw the numbers, the likeness of encoders and of layers, and the progress over updates."""
    report = found.report
    yield plot_numbers(report, found.features, out / "numbers.png")
    yield plot_cka(report.names, report.cka, out / "cka.png", "How alike encoders are")
    title = "How alike the layers of encoders are"
    yield plot_cka(found.layer_names, found.layer_cka, out / "cka_layers.png", title)
    if len(newest(found.subjects)) < len(found.subjects):
        yield plot_progress(report, out / "progress.png")


def draw_maps(
    found: Study, out: Path, methods: Sequence[Projection], seed: int = 0
) -> Iterator[Path]:
    """Draw the features of each newest encoder and of the baselines in two dimensions."""
    for features in _newest_features(found) if methods else ():
        path = out / f"map_{_file_name(features.name)}.png"
        yield plot_maps(features, found.sample, path, methods, seed)


def draw_neighbours(found: Study, out: Path, seed: int = 0) -> Iterator[Path]:
    """Draw frames beside their neighbours, for the same encoders; nothing of states."""
    for features in _newest_features(found) if found.sample.pixels else ():
        path = out / f"near_{_file_name(features.name)}.png"
        yield plot_neighbours(features, found.sample, path, seed=seed)


def draw_saliency(found: Study, out: Path) -> Iterator[Path]:
    """Draw where Q looks, of each newest agent that has a Q(s, a) of pixels."""
    sample = found.sample
    for subject in newest(found.subjects):
        action = torch.zeros(1, subject.agent.spec.action_dim)
        if sample.pixels and _has(value_of, subject.agent, action):
            chosen = spread(sample, PICTURES)
            maps = saliency_maps(subject, sample, chosen)
            path = out / f"saliency_{_file_name(subject.policy)}.png"
            title = f"{subject.policy}: where Q of the data's action looks"
            yield plot_saliency(sample.pictures[chosen], maps, path, title)


def draw_flows(found: Study, out: Path, seed: int = 0) -> Iterator[Path]:
    """Draw the flow and the refinement of each newest agent, as far as it has them."""
    sample = found.sample
    for subject in newest(found.subjects):
        agent, name = subject.agent, _file_name(subject.policy)
        names = action_names(sample)
        if _has(flow_of, agent):
            observation = _states(sample, subject, 1)[0]
            yield plot_flow(agent, observation, out / f"flow_{name}.png", seed=seed, names=names)
        if moved := found.refinement.get(subject.policy):
            yield plot_moves(moved, out / f"refinement_{name}.png", names)


def saliency_maps(subject: Subject, sample: Sample, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Where Q of the data's actions looks in some states of a sample, (B, H, W) by label.

    Raises:
        UserError: the agent has no Q(s, a).
    """
    device = next(subject.agent.parameters()).device
    observations = torch.from_numpy(sample.observations[chosen]).to(device)
    value = value_of(subject.agent, torch.from_numpy(sample.actions[chosen]).to(device))
    rows = slice(None, None, max(1, len(sample) // 500))
    mean = torch.from_numpy(sample.observations[rows].mean(0).round().astype(np.uint8)).to(device)
    return {
        "gradient [|dQ/dx|, x from 0 to 1]": gradient_saliency(value, observations).cpu().numpy(),
        "occlusion [change of Q]": occlusion_saliency(value, observations, mean).cpu().numpy(),
    }


def spread(sample: Sample, count: int) -> np.ndarray:
    """Numbers of at most `count` held-out states, evenly spread over the sample."""
    held = np.flatnonzero(sample.held_out)
    chosen = np.unique(np.linspace(0, len(held) - 1, count).round().astype(int))
    return np.asarray(held[chosen])


def _newest_features(found: Study) -> list[Features]:
    """Those that there is something to draw of: no older checkpoint, no collapsed encoder."""
    last = {(subject.policy, subject.updates) for subject in newest(found.subjects)}
    return [
        features
        for features in found.features
        if (features.updates is None or (features.policy, features.updates) in last)
        and varies(features.values)
    ]


def _states(sample: Sample, subject: Subject, count: int) -> Tensor:
    device = next(subject.agent.parameters()).device
    return torch.from_numpy(sample.observations[spread(sample, count)]).to(device)


def _has(get: Any, *arguments: Any) -> bool:
    try:
        get(*arguments)
    except UserError:
        return False
    return True


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_")
