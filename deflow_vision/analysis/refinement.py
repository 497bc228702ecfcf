"""The flow of an agent over actions in one state, and how its refinement moves them.

For agents with a base flow (`bc_flow`); moves are those of DeFlow's refinement.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deflow_vision.agents.base import Agent, standard_normal
from deflow_vision.agents.deflow import DeFlow
from deflow_vision.networks.actors import VelocityField
from deflow_vision.types import UserError

MAX_COMPONENTS, VALLEY, LEAST_SHARE = 8, 0.8, 0.03
"""Of `modes`."""


@dataclass(frozen=True)
class Moves:
    """How base actions of some states are refined, K samples a state.

    Attributes:
        base: base actions mu(s, z), (B, K, A).
        refined: the policy's actions, (B, K, A), clipped to [-1, 1].
        displacements: f before clipping, (B, K, A).
        gains: Q(s, refined) - Q(s, base), the mean over the ensemble, (B, K).
        target_divergence: delta, which the mean of f^2 is held at.
    """

    base: np.ndarray
    refined: np.ndarray
    displacements: np.ndarray
    gains: np.ndarray
    target_divergence: float

    @property
    def sizes(self) -> np.ndarray:
        """The mean over action dimensions of f^2, (B, K): what delta bounds, a sample each."""
        return np.asarray(np.square(self.displacements).mean(-1))

    def summary(self) -> dict[str, float]:
        """The numbers of the figure."""
        return {
            "divergence": float(self.sizes.mean()),
            "target_divergence": self.target_divergence,
            "largest_tenth_divergence": float(np.quantile(self.sizes, 0.9)),
            "q_gain": float(self.gains.mean()),
            "share_uphill": float((self.gains > 0).mean()),
        }


def flow_of(agent: Agent) -> VelocityField:
    """The base flow of an agent.

    Raises:
        UserError: it has none.
    """
    flow = getattr(agent, "bc_flow", None)
    if not isinstance(flow, VelocityField):
        raise UserError(f"{type(agent).__name__} has no base flow: DeFlow, FQL and BC-flow have.")
    return flow


@torch.no_grad()
def paths(agent: Agent, observation: Tensor, noises: Tensor) -> Tensor:
    """Where noises are after each Euler step of the base flow in one state, unclipped.

    Args:
        agent: with a base flow.
        observation: (...,), one.
        noises: z, (K, A).

    Returns:
        (M + 1, K, A), from the noise to the end.
    """
    flow, steps = flow_of(agent), int(agent.config.flow_steps)
    features = agent.features(observation[None], "flow").expand(len(noises), -1)
    points = [noises]
    for step in range(steps):
        times = noises.new_full((len(noises),), step / steps)
        points.append(points[-1] + flow(features, points[-1], times) / steps)
    return torch.stack(points)


@torch.no_grad()
def vector_field(
    agent: Agent, observation: Tensor, dims: tuple[int, int], time: float, at: Tensor, grid: Tensor
) -> Tensor:
    """The base flow's velocity over a plane of two action dimensions.

    Args:
        agent: with a base flow.
        observation: (...,), one.
        dims: which two.
        time: t in [0, 1].
        at: what the other dimensions are, (A,); its own values at `dims` are not used.
        grid: the values of either dimension, (G,).

    Returns:
        (G, G, 2): at [i, j] the first dimension is grid[j] and the second grid[i].
    """
    flow = flow_of(agent)
    first, second = torch.meshgrid(grid, grid, indexing="xy")
    points = at.repeat(first.numel(), 1)
    points[:, dims[0]], points[:, dims[1]] = first.flatten(), second.flatten()
    features = agent.features(observation[None], "flow").expand(len(points), -1)
    velocities = flow(features, points, points.new_full((len(points),), time))
    shown: Tensor = velocities[:, list(dims)]
    return shown.view(*first.shape, 2)


def modes(actions: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The modes of samples, the largest first.

    A mixture of at most `MAX_COMPONENTS` Gaussians is fitted, their number chosen by the Bayesian
    information criterion. Two components are of one mode where the mixture's density on the line
    between their middles has no valley: it stays above `VALLEY` of the lower end (Hennig, 2010,
    "Methods for merging Gaussian mixture components", calls such a test that of ridgelines).

    Args:
        actions: samples, (K, A), at least 10.
        seed: of the fit's start.

    Returns:
        Their middles, (m, A), and the share of the samples that belong to each, (m,), those of at
        least `LEAST_SHARE`.
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        # A mixture that has not quite settled loses by the criterion, or is good enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fits = [
            GaussianMixture(count, reg_covar=1e-4, random_state=seed).fit(actions)
            for count in range(1, min(MAX_COMPONENTS, len(actions) // 10) + 1)
        ]
    best = min(fits, key=lambda fit: float(fit.bic(actions)))
    along = np.linspace(0, 1, 21)[:, None]

    def joined(one: np.ndarray, other: np.ndarray) -> bool:
        log_density = best.score_samples((1 - along) * one + along * other)
        return bool(log_density.min() > np.log(VALLEY) + min(log_density[0], log_density[-1]))

    links = [[joined(one, other) for other in best.means_] for one in best.means_]
    count, groups = connected_components(np.array(links), directed=False)
    members = np.eye(count)[groups]  # (components, modes)
    weights = members * best.weights_[:, None]
    middles = weights.T @ best.means_ / weights.sum(0)[:, None]
    shares = np.bincount(groups[best.predict(actions)], minlength=count) / len(actions)
    order = np.argsort(-shares)
    order = order[shares[order] >= LEAST_SHARE]
    return middles[order], shares[order]


def mode_counts(agent: Agent, observations: Tensor, noises: Tensor) -> pd.DataFrame:
    """How many modes the base flow has in some states, and the share of the greatest of each.

    Args:
        agent: with a base flow.
        observations: (B, ...).
        noises: z, (K, A), the same in each state.

    Returns:
        A row a state, with the columns `modes` and `greatest share`.
    """
    rows = []
    for observation in observations:
        _, shares = modes(paths(agent, observation, noises)[-1].clamp(-1, 1).cpu().numpy())
        rows.append((len(shares), float(shares.max(initial=0))))
    return pd.DataFrame(rows, columns=["modes", "greatest share"])


def busiest_dims(actions: np.ndarray) -> tuple[int, int]:
    """The two action dimensions in which samples (K, A) differ most, in rising order."""
    first, second = np.sort(np.argsort(-actions.std(0))[:2])
    return int(first), int(second)


@torch.no_grad()
def moves(agent: Agent, observations: Tensor, samples: int, generator: torch.Generator) -> Moves:
    """Refine base actions of some states.

    Args:
        agent: DeFlow, or DeFlow on floq's value.
        observations: (B, ...), on the agent's device.
        samples: K, base actions a state.
        generator: of the noises, on the CPU.

    Raises:
        UserError: the agent has no refinement.
    """
    if not isinstance(agent, DeFlow):
        raise UserError(f"{type(agent).__name__} refines nothing: DeFlow does.")
    columns = list(zip(*_moves(agent, observations, samples, generator), strict=True))
    base, refined, displacements, gains = (torch.stack(column).cpu().numpy() for column in columns)
    return Moves(base, refined, displacements, gains, agent.target_divergence)


def _moves(
    agent: DeFlow, observations: Tensor, samples: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Base actions, refined ones and displacements (K, A), gains (K,), one state at a time."""
    for observation in observations:
        features = {
            head: values.expand(samples, -1)
            for head, values in agent.encoder(observation[None]).items()
        }
        noises = standard_normal(samples, agent.spec.action_dim, generator)
        base = agent.base_actions(features["flow"], noises.to(observations.device))
        refined, displacements = agent.refine(features["refinement"], base)
        q = partial(agent.critic, features["critic"])
        yield base, refined, displacements, q(refined).mean(0) - q(base).mean(0)
