"""Numbers that explode: a run stops where the first of them appears, and says which and why.

Looking at a number makes a GPU wait, so nobody looks. Each update leaves a few truth values on the
device (is each loss finite, and the gradient of each network), which travel to the host behind the
work; they are read when they are there, an update or a few later. Until then the optimizer takes
them as its `found_inf`, by which its kernel leaves all weights as they are: they stay those of the
update that went wrong. On a CPU, where reading costs nothing, the run stops before that step.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from deflow_vision.agents.base import Agent
from deflow_vision.training import checkpoint
from deflow_vision.training.weights import load_weights, write_arrays, write_weights
from deflow_vision.types import Batch, Spec, UserError

log = logging.getLogger(__name__)

BEHIND = 4
"""Updates whose truth values may be on their way; their batches are kept that long."""
Q_SLACK = 10.0
"""How many times the greatest possible return Q may reach before it is warned of."""
ALPHA_LIMIT = 1e6
"""The multiplier beyond which the penalty is all that the refinement learns."""


class DivergedError(UserError):
    """A loss or a gradient is not finite."""


@dataclass(frozen=True)
class Seen:
    """An update that is looked at.

    Attributes:
        step: updates done before it.
        names: what each truth value is of.
        finite: (len(names),) bool, on the device.
        batch: what it learned from.
        noises: the agent's draws.
    """

    step: int
    names: Sequence[str]
    finite: Tensor
    batch: Batch
    noises: Any


class Watch:
    """Looks at every update; use one for a run.

    Args:
        agent: the module, unwrapped.
        optimizer: its optimizer, unwrapped; on a GPU it is told of what is not finite there.
        run_dir: takes `diverged/step_K`: the batch, the noises and the weights of that update.
        rank: the number of this process: each keeps its own part of the batch.
    """

    def __init__(
        self, agent: Agent, optimizer: torch.optim.Optimizer, run_dir: Path, rank: int = 0
    ) -> None:
        self._agent, self._run_dir, self._rank = agent, run_dir, rank
        device = next(agent.parameters()).device
        self._cuda = device.type == "cuda"
        self._waiting: deque[tuple[Seen, Tensor, Any]] = deque()
        self._found = torch.zeros((), device=device)
        if self._cuda:
            optimizer.found_inf = self._found  # type: ignore[attr-defined]

    def __call__(self, seen: Seen) -> None:
        """Look at an update between its gradients and its step.

        Raises:
            DivergedError: something in it, or in one of the last updates, is not finite.
        """
        host, event = seen.finite, None
        if self._cuda:
            torch.maximum(self._found, (~seen.finite.all()).float(), out=self._found)
            host = torch.empty(seen.finite.shape, dtype=torch.bool, pin_memory=True)
            host.copy_(seen.finite, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._waiting.append((seen, host, event))
        while self._waiting and (event is None or self._waiting[0][2].query()):
            self._judge()
        if len(self._waiting) > BEHIND:
            self._judge()

    def settle(self) -> None:
        """Wait for what was not judged yet: before a checkpoint, and where metrics are read.

        Raises:
            DivergedError: see `__call__`.
        """
        while self._waiting:
            self._judge()

    def _judge(self) -> None:
        seen, host, event = self._waiting.popleft()
        if event is not None:
            event.synchronize()
        if bool(host.all()):
            return
        terms = [name for name, fine in zip(seen.names, host.tolist(), strict=True) if not fine]
        folder = self._keep(seen, terms)
        last = checkpoint.latest(self._run_dir)
        raise DivergedError(
            f"update {seen.step}: {', '.join(terms)} is not finite, so that nothing was learned "
            f"from it. Its batch, noises and weights are in {folder}. The last checkpoint, "
            f"{'none so far' if last is None else last.path}, is sound, but a run that goes on "
            "from there comes to the same update: begin another one with other settings, such as "
            "a smaller --agent.lr, or --mixed-precision no."
        )

    def _keep(self, seen: Seen, terms: Sequence[str]) -> Path:
        folder = self._run_dir / "diverged" / f"step_{seen.step}"
        folder.mkdir(parents=True, exist_ok=True)
        values = {**seen.batch._asdict(), **_prefixed(seen.noises._asdict())}
        arrays = {name: x for name, x in values.items() if x is not None}
        write_arrays(folder / f"batch-{self._rank}.safetensors", arrays)
        if self._rank == 0:
            write_weights(folder / "agent.safetensors", self._agent)
            facts = {"step": seen.step, "not_finite": list(terms)}
            (folder / "report.json").write_text(json.dumps(facts, indent=2) + "\n")
        return folder


def _prefixed(noises: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"noises/{name}": values for name, values in noises.items()}


def read_kept(folder: Path, agent: Agent, rank: int = 0) -> tuple[Batch, Any]:
    """The batch and the noises of an update that went wrong; its weights go into the agent.

    Args:
        folder: `diverged/step_K` of a run.
        agent: of that run, such as `load_policy` makes it.
        rank: of which process.

    Returns:
        What `agent(batch, noises, agent.stage(K))` takes.
    """
    load_weights(folder / "agent.safetensors", agent)
    arrays = load_file(folder / f"batch-{rank}.safetensors")
    kind: Any = type(agent.sample_noises(1, torch.Generator()))
    noises = kind(*(arrays.pop(f"noises/{name}") for name in kind._fields))
    return Batch(**arrays), noises


class Runaway:
    """Warns of a multiplier and of Q beyond any sense, once for each power of ten.

    No return exceeds the greatest reward over 1 - discount, and Q estimates a return.

    Args:
        spec: has the range of the rewards.
        config: the agent's hyper-parameters.
    """

    def __init__(self, spec: Spec, config: Any) -> None:
        self._limits = {"alpha/value": ALPHA_LIMIT}
        scale, shift = getattr(config, "reward_scale", 1.0), getattr(config, "reward_shift", 0.0)
        reward = max(abs(scale * value + shift) for value in spec.reward_range)
        discount = getattr(config, "discount", None)
        if discount is not None and reward > 0:
            bound = Q_SLACK * reward / (1 - discount)
            self._limits |= dict.fromkeys(("critic/q_mean", "critic/q_min", "critic/q_max"), bound)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Look at the metrics of a step, when they are read anyway."""
        for name, limit in self._limits.items():
            if abs(value := values.get(name, 0.0)) > limit:
                log.warning(
                    "%s is %.3g after %s updates, beyond %.3g: training runs away. See its "
                    "curve in train.csv; a smaller learning rate or another target may hold it.",
                    *(name, value, f"{step:,}", limit),
                )
                self._limits[name] = 10 * abs(value)
