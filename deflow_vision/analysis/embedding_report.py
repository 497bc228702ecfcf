"""What the features of several encoders come to: one table, and how like each other they are."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import numpy as np

from deflow_vision.analysis.embeddings import (
    effective_rank,
    linear_cka,
    linear_probe,
    nearest_neighbours,
    neighbours_action,
    r2,
    r2_error,
    varies,
)
from deflow_vision.analysis.encoders import Features
from deflow_vision.analysis.frames import Sample

NEIGHBOURS = 5


@dataclass(frozen=True)
class Row:
    """The numbers of one encoder.

    Attributes:
        policy: whose it is.
        encoder: what it is.
        heads: the heads that read it; none of a baseline.
        updates: those that it was trained with; None of a baseline.
        dim: D.
        effective_rank: see `embeddings.effective_rank`, of all states.
        consistency: R^2 of `embeddings.neighbours_action`, of held-out states among training
            states.
        consistency_error: its standard error over the held-out episodes, see `r2_error`.
        r2: of the linear probe on held-out states, by target.
        r2_errors: their standard errors.
    """

    policy: str
    encoder: str
    heads: tuple[str, ...]
    updates: int | None
    dim: int
    effective_rank: float
    consistency: float
    consistency_error: float
    r2: dict[str, float]
    r2_errors: dict[str, float]


@dataclass(frozen=True)
class Report:
    """The numbers of several encoders on one sample.

    Attributes:
        sample: the sample in words.
        neighbours: k.
        rows: an encoder each.
        names: short names of the encoders, in the rows' order.
        cka: (F, F), in the rows' order.
        why_no_targets: why there is no probe; empty where there is one.
    """

    sample: str
    neighbours: int
    rows: tuple[Row, ...]
    names: tuple[str, ...]
    cka: np.ndarray
    why_no_targets: str

    def markdown(self) -> str:
        """The table, the CKA matrix and what they are of."""
        parts = [
            f"{self.sample}. R²: linear probe in held-out states. kNN: R² of the action, "
            f"{self.neighbours} nearest training states. ±: standard error over the held-out "
            "episodes.",
            _markdown(self._header(), self._lines()),
        ]
        if self.why_no_targets:
            parts.append(f"No probes: {self.why_no_targets}.")
        numbers = [str(i) for i in range(1, len(self.names) + 1)]
        matrix = [
            [f"{i} {name}", *(_figure(value) for value in line)]
            for i, name, line in zip(numbers, self.names, self.cka, strict=True)
        ]
        parts += ["Linear CKA:", _markdown(["", *numbers], matrix)]
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """A line an encoder, unrounded."""
        file = StringIO()
        keys = ("policy", "encoder", "heads", "updates", "dim", "effective_rank")
        measures = ("knn action", *self.targets)
        writer = csv.writer(file, lineterminator="\n")
        heads = (f"{kind} {name}" for name in measures for kind in ("r2", "error"))
        writer.writerow([*keys, *heads])
        for row in self.rows:
            words = (row.policy, row.encoder, " ".join(row.heads), row.updates)
            numbers = [row.dim, row.effective_rank, row.consistency, row.consistency_error]
            for name in self.targets:
                numbers += [row.r2[name], row.r2_errors[name]]
            writer.writerow([*words, *numbers])
        return file.getvalue()

    def json(self, **more: Any) -> str:
        """All of it, what is not a number as null, and further facts."""
        facts = asdict(self) | {"cka": self.cka.tolist()} | more
        return json.dumps(_plain(facts), indent=2) + "\n"

    @property
    def targets(self) -> list[str]:
        """What was probed."""
        return list(self.rows[0].r2)

    def _header(self) -> list[str]:
        probes = (f"R² {target}" for target in self.targets)
        about = ("policy", "updates", "encoder", "read by", "D", "effective rank")
        return [*about, *probes, "kNN action R²"]

    def _lines(self) -> list[list[str]]:
        return [
            [
                row.policy,
                "-" if row.updates is None else f"{row.updates:,}",
                *(row.encoder, ", ".join(row.heads) or "-", str(row.dim)),
                f"{row.effective_rank:.1f}",
                *(_figure(row.r2[name], row.r2_errors[name]) for name in self.targets),
                _figure(row.consistency, row.consistency_error),
            ]
            for row in self.rows
        ]


def compare(features: Sequence[Features], sample: Sample, k: int = NEIGHBOURS) -> Report:
    """Measure the features of several encoders on the same sample.

    Args:
        features: at least one.
        sample: what they are of.
        k: neighbours of the action's consistency.

    Raises:
        UserError: the sample cannot be probed.
    """
    return Report(
        sample.describe(),
        k,
        tuple(_row(each, sample, k) for each in features),
        tuple(each.name for each in features),
        linear_cka([each.values for each in features]),
        sample.why_no_targets,
    )


def _row(features: Features, sample: Sample, k: int) -> Row:
    queries, pool = np.flatnonzero(sample.held_out), np.flatnonzero(~sample.held_out)
    values, episodes = features.values, sample.episodes
    about = (features.policy, features.encoder, features.heads, features.updates, values.shape[1])
    if not varies(values):  # a collapsed encoder is a finding, not an error
        unknown = dict.fromkeys(sample.targets, math.nan)
        return Row(*about, 0.0, math.nan, math.nan, unknown, unknown)
    neighbours, _ = nearest_neighbours(values, episodes, queries, pool, k)
    action = sample.actions[queries], neighbours_action(sample.actions, neighbours)
    predictions = linear_probe(values, sample.targets, episodes, sample.held_out)
    probes = {name: (sample.targets[name][queries], found) for name, found in predictions.items()}
    return Row(
        *about,
        effective_rank=effective_rank(values),
        consistency=r2(*action),
        consistency_error=r2_error(*action, episodes[queries]),
        r2={name: r2(*probe) for name, probe in probes.items()},
        r2_errors={name: r2_error(*probe, episodes[queries]) for name, probe in probes.items()},
    )


def _figure(value: float, error: float = math.nan) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if math.isnan(error) else f"{value:.2f} ± {error:.2f}"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---" for _ in header], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
