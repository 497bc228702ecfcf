"""The training loop: one function for every algorithm, which it never names.

Each step: save if due, evaluate if due, take batch k, `agent(batch, noises, stage)`, one backward
of the summed losses, `update_targets`, one optimizer step, log if due. The loop comes round once
more than there are updates, so that the last agent is saved and evaluated.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from deflow_vision.agents import AGENTS
from deflow_vision.agents.base import Agent, detached
from deflow_vision.config import TrainConfig
from deflow_vision.networks.timm_encoder import TimmEncoder
from deflow_vision.seeding import derive_seed
from deflow_vision.training import checkpoint
from deflow_vision.training.begin import begin_from
from deflow_vision.training.feed import Feed
from deflow_vision.training.logger import is_evaluated
from deflow_vision.training.setup import Setup, prepare
from deflow_vision.types import UserError


def train(config: TrainConfig) -> Path:
    """Train an agent, or go on with a run that was interrupted.

    Args:
        config: the resolved configuration; its `resume` names the run to continue.

    Returns:
        The run folder.

    Raises:
        UserError: the data, the machine or the configuration does not allow it; the message says
            what to do.
    """
    if config.online_steps:
        raise UserError(
            f"online_steps is {config.online_steps}; online training is not part of this version. "
            "Pass --online-steps 0."
        )
    with prepare(config) as setup:
        return _train(setup)


def _train(setup: Setup) -> Path:
    config, accelerator = setup.config, setup.accelerator
    agent = make_agent(setup)
    optimizer = make_optimizer(agent)
    start, last = setup.first_step, config.offline_steps
    if setup.resume_from is not None:
        checkpoint.load(setup.resume_from, agent, optimizer, setup.identity)
    # A checkpoint is written before its step's evaluation, which may be missing, then.
    evaluated = setup.resume_from is not None and is_evaluated(setup.run_dir, start)
    pool = setup.pool()
    setup.open_run_folder()  # nothing is written before all of the above has succeeded
    wrapped, wrapped_optimizer = accelerator.prepare(agent, optimizer)
    feed = setup.feed(agent, "train")
    val_feed = setup.feed(agent, "val") if setup.validates else None
    logger = setup.logger()
    evaluator = setup.evaluator(pool, logger)

    with setup.progress() as progress:
        meter = _Meter()
        recent: dict[str, Tensor] = {}  # latest values: some stages leave out some of them
        for step in range(start, last + 1):
            loaded = step == start and setup.resume_from is not None
            if not loaded and _due(step, config.checkpoint.every, last, at_start=False):
                if accelerator.is_main_process:
                    keep = config.checkpoint.keep
                    checkpoint.save(setup.run_dir, step, agent, optimizer, setup.identity, keep)
                accelerator.wait_for_everyone()
                recent.clear()  # a run that goes on from here logs the same rows
            known = loaded and evaluated
            if not known and _due(step, config.eval.every, last, at_start=config.eval.at_start):
                metrics = validate(wrapped, val_feed, setup, agent.stage(step))
                if evaluator is not None:
                    metrics |= evaluator(agent, step)
                if logger is not None and metrics:
                    logger.log(step, metrics)
                progress.show(step, metrics)
                accelerator.wait_for_everyone()
                meter.restart(feed)
            if step == last:
                break

            batch, noises = feed(step)
            losses, metrics = wrapped(batch, noises, agent.stage(step))
            wrapped_optimizer.zero_grad(set_to_none=True)
            accelerator.backward(torch.stack(list(losses.values())).sum())
            for group in optimizer.param_groups:
                if "clip" in group:
                    accelerator.clip_grad_norm_(group["params"], group["clip"])
                if "schedule" in group:
                    group["lr"] = group["initial_lr"] * group["schedule"](step)
            agent.update_targets(step)
            wrapped_optimizer.step()

            recent |= detached({**losses, **metrics})
            meter.count += 1
            if (step + 1) % config.log.every == 0 or step + 1 == last:
                values = gather_means(recent, accelerator)
                recent.clear()
                row = {f"train/{name}": value for name, value in values.items()}
                row |= meter.read(feed)
                if logger is not None:
                    logger.log(step + 1, row)
                progress.show(step + 1, row)
            progress.update(step + 1)
    return setup.run_dir


def make_agent(setup: Setup) -> Agent:
    """Build the agent on the device, its initial weights a function of the seed alone."""
    config = setup.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "initialisation"))
        agent = AGENTS[config.algo](setup.spec, config.agent, config.encoder)
    if setup.resume_from is None:
        begin_from(agent, config)
    for module in agent.modules():
        if isinstance(module, TimmEncoder):
            module.check_trainable()
    return agent.to(setup.accelerator.device)


def make_optimizer(agent: Agent) -> torch.optim.AdamW:
    """The one Adam over all that learns, with the reference's betas and epsilon.

    AdamW without weight decay is Adam; the groups that want decay have it.
    """
    groups = [{**group, "initial_lr": group["lr"]} for group in agent.parameter_groups()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)


@torch.no_grad()
def validate(
    agent: torch.nn.Module, feed: Feed | None, setup: Setup, stage: Any
) -> dict[str, float]:
    """Losses and metrics on the validation split, averaged over `eval.val_batches` batches.

    Nothing is chosen by them: they are logged, as the reference does.
    """
    if feed is None:
        return {}
    rows = []
    for index in range(setup.config.eval.val_batches):
        batch, noises = feed(index)
        losses, metrics = agent(batch, noises, stage)
        rows.append(gather_means({**losses, **metrics}, setup.accelerator))
    return {f"val/{name}": sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def gather_means(values: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Scalars by name, averaged over processes; the only place where the device is waited for."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    means: Any = accelerator.reduce(stacked, reduction="mean")
    return dict(zip(values, means.tolist(), strict=True))


def _due(step: int, every: int, last: int, *, at_start: bool) -> bool:
    if step == 0:
        return at_start
    return step == last or (every > 0 and step % every == 0)


class _Meter:
    """Rates since the last reading, evaluations left out."""

    def __init__(self) -> None:
        self.count = 0
        self._start = perf_counter()
        self._waited = 0.0

    def restart(self, feed: Feed) -> None:
        self.count, self._start, self._waited = 0, perf_counter(), feed.seconds_waited

    def read(self, feed: Feed) -> dict[str, float]:
        elapsed, waited = perf_counter() - self._start, feed.seconds_waited - self._waited
        row = {
            "time/steps_per_second": self.count / elapsed,
            "time/step_seconds": elapsed / self.count,
            "time/data_wait": waited / elapsed,
        }
        self.restart(feed)
        return row
