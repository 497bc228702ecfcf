"""What a dataset suggests for `target_divergence`: in a table, in words, and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from deflow_vision.analysis.plots import REFERENCE, STYLE, TRAIN, VALIDATION, save_figure
from deflow_vision.config import compose
from deflow_vision.datasets.divergence import (
    FACTORS,
    ActionVariance,
    Domain,
    Metric,
    action_variance,
    simulator_states,
)
from deflow_vision.datasets.schema import read_all
from deflow_vision.datasets.store import open_store
from deflow_vision.tasks import resolve_dataset
from deflow_vision.types import UserError

APART = (0, 1, 11)
"""The rule counts the state itself; the others tell how much of its answer is one trajectory's."""


@dataclass(frozen=True)
class Suggestion:
    """The intrinsic action variance of a dataset, and what follows from it.

    Attributes:
        dataset: its name.
        found: by the rule's definition, then without the state itself, then without near steps.
        domains: which of the rule's factors apply; both where nobody said.
        published: the published `target_divergence`, where the dataset has one.
    """

    dataset: str
    found: list[ActionVariance]
    domains: tuple[Domain, ...]
    published: float | None

    @classmethod
    def of(cls, path: Path | str, *, k: int, samples: int, seed: int, metric: Metric) -> Suggestion:
        """Search a store's training split.

        Args:
            path: the store's folder.
            k: neighbours of a state; this and the rest as `action_variance` takes them.
            samples: states to sample.
            seed: of the sample.
            metric: how near is measured.

        Raises:
            UserError: no such store, a damaged one, or one without an answer.
        """
        store = open_store(path)
        split, dataset = store.train, str(store.attributes["env_id"])
        try:
            task = resolve_dataset(dataset)
        except UserError:  # somebody's own
            task = None
        found = action_variance(
            simulator_states(split),
            read_all(split.actions),
            split.episode_ends,
            k=k,
            samples=samples,
            seed=seed,
            metric=metric,
            apart=APART,
        )
        domain = task.domain if task else None
        published = task is not None and task.offline
        return cls(
            dataset,
            found,
            (domain,) if domain else tuple(FACTORS),
            compose(dataset).agent.target_divergence if published else None,
        )

    @property
    def suggested(self) -> dict[Domain, float]:
        """`target_divergence` by the rule, for each domain that may apply."""
        return {domain: self.found[0].target_divergence(domain) for domain in self.domains}

    def table(self) -> Table:
        """The variance by each definition; the rule's is the first."""
        title = f"{self.dataset}, {self.found[0].metric} distance"
        table = Table("actions compared", "IAV", "median", "0.1 x IAV", title=title)
        for each in self.found:
            error = "?" if each.standard_error is None else f"{each.standard_error:.1g}"
            median = float(np.median(each.per_state))
            row = (f"{each.iav:.3g} ± {error}", f"{median:.3g}", f"{0.1 * each.iav:.2g}")
            table.add_row(each.neighbours, *row)
        return table

    def lines(self) -> list[str]:
        """What the figures are of, and what to set."""
        lines = [
            f"IAV: variance (ddof 0) of the actions, mean over dimensions and "
            f"{len(self.found[0].per_state):,} sampled states, ± standard error over episodes"
        ]
        for domain, delta in self.suggested.items():
            lines.append(
                f"--agent.target-divergence {delta:g}   {FACTORS[domain]:g} x IAV, {domain}"
            )
        if self.published is not None:
            lines.append(f"published: {self.published:g}")
        return lines

    def plot(self, path: Path) -> Path:
        """Draw the distribution over states, with the suggested and the published value.

        Args:
            path: a PNG file.

        Returns:
            The file written.
        """
        rule, _, apart = self.found
        marks = [*self.suggested.values(), self.published or rule.iav]
        low = max(1e-9, min(*marks, *np.quantile(rule.per_state, [0.001])) / 2)
        bins = np.geomspace(low, 1, 76)
        weights = np.full(len(rule.per_state), 100 / len(rule.per_state))
        with mpl.rc_context(STYLE):  # type: ignore[arg-type]
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            axis = figure.subplots()
            for each, filled in ((rule, True), (apart, False)):
                axis.hist(
                    each.per_state.clip(low, 1),
                    bins.tolist(),
                    weights=weights,
                    histtype="stepfilled",
                    fill=filled,
                    color=TRAIN,
                    alpha=0.35 if filled else 1,
                    label=each.neighbours,
                )
            axis.axvline(rule.iav, color=TRAIN, label=f"IAV {rule.iav:.3g}, the mean")
            for domain, delta in self.suggested.items():
                label = f"suggested {delta:g}: {FACTORS[domain]:g} x IAV, {domain}"
                axis.axvline(delta, color=VALIDATION, label=label)
            if self.published is not None:
                label = f"published {self.published:g}"
                axis.axvline(self.published, color=REFERENCE, linestyle="--", label=label)
            axis.set_xscale("log")
            axis.set_xlabel("variance of the actions around a state, mean over dimensions")
            axis.set_ylabel("sampled states [%]")
            axis.set_title(f"{self.dataset}: how much the actions around a state differ")
            figure.legend(loc="outside lower center", ncols=2)
            return save_figure(figure, path)
