"""The training loop: one function for every algorithm, which it never names.

Each step: save if due, evaluate if due, in the online phase step the environments if due, take
batch k, `agent(batch, noises, stage)`, one backward of the summed losses, `update_targets`, one
optimizer step, log if due. The loop comes round once more than there are updates, so that the last
agent is saved and evaluated. Online, a checkpoint that is due waits for the end of all episodes.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from deflow_vision.agents import AGENTS
from deflow_vision.agents.base import Agent
from deflow_vision.config import TrainConfig
from deflow_vision.networks.timm_encoder import TimmEncoder
from deflow_vision.seeding import derive_seed
from deflow_vision.training import checkpoint
from deflow_vision.training.batches import make_feed
from deflow_vision.training.begin import begin_from
from deflow_vision.training.devices import is_of_another_process, make_accelerator
from deflow_vision.training.feed import Feed
from deflow_vision.training.logger import is_evaluated
from deflow_vision.training.online import Collector, open_buffers, open_training_pool
from deflow_vision.training.setup import Setup, prepare
from deflow_vision.training.stopping import Stop, Stopped
from deflow_vision.training.update import make_update
from deflow_vision.training.watch import Runaway, Watch
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
        Stopped: it was told to, and has saved a checkpoint.
    """
    accelerator = make_accelerator(config)
    with Stop(accelerator) as stop, prepare(config, accelerator) as setup:
        try:
            return _train(setup, stop)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise UserError(_out_of_memory(setup, error)) from error
        except RuntimeError as error:
            if accelerator.num_processes > 1 and is_of_another_process(error):
                raise UserError(_process_lost(setup, error)) from error
            raise


def _last_checkpoint(setup: Setup) -> str:
    last = checkpoint.latest(setup.run_dir)
    return "it has no checkpoint yet" if last is None else f"its last checkpoint is {last.path}"


def _process_lost(setup: Setup, error: BaseException) -> str:
    return (
        f"another of the {setup.accelerator.num_processes} processes has ended, and says why if it "
        f"could; this one learned of it by: {str(error).splitlines()[0]} Go on with --resume "
        f"{setup.run_dir}: {_last_checkpoint(setup)}."
    )


def _out_of_memory(setup: Setup, error: BaseException) -> str:
    return (
        f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more is to be had'}. "
        "Evaluation takes less with smaller --eval.num-envs and --eval.videos, training with "
        "--data.residency stream, or in a new run with a smaller --batch-size. Go on with "
        f"--resume {setup.run_dir}: {_last_checkpoint(setup)}."
    )


def _train(setup: Setup, stop: Stop) -> Path:
    config, accelerator = setup.config, setup.accelerator
    agent = make_agent(setup)
    start, last, turn = setup.first_step, setup.last_step, config.offline_steps
    if start > turn:
        begin_online(agent, config)
    optimizer = make_optimizer(agent)
    if setup.resume_from is not None:
        checkpoint.load(setup.resume_from, agent, optimizer, setup.identity(start))
    # A checkpoint is written before its step's evaluation, which may be missing, then.
    evaluated = setup.resume_from is not None and is_evaluated(setup.run_dir, start)
    pool = setup.pool()
    training_pool = open_training_pool(setup)
    setup.open_run_folder()  # nothing is written before all of the above has succeeded
    wrapped = accelerator.prepare(agent)
    graphs = config.cuda_graphs
    watch = Watch(agent, optimizer, setup.run_dir, accelerator.process_index)
    update = make_update(agent, wrapped, optimizer, accelerator, watch, cuda_graphs=graphs)
    collector = None
    if training_pool is not None:
        collector = Collector(training_pool, open_buffers(setup, agent), setup)
    feed = make_feed(setup, agent, "train", None if collector is None else collector.replay)
    val_feed = make_feed(setup, agent, "val") if setup.validates else None
    logger = setup.logger()
    evaluator = setup.evaluator(pool, logger)

    with setup.progress() as progress:
        meter = _Meter(feed, collector)
        recent: dict[str, Tensor] = {}  # latest values: some stages leave out some of them
        runaway = Runaway(setup.spec, agent.config)
        played: dict[str, float] = {}  # the last episode of the training environment
        to_save = False
        for step in range(start, last + 1):
            resumed_here = step == start and setup.resume_from is not None
            loaded = resumed_here  # whether there is a checkpoint of this step
            ends = (turn, last)
            to_save |= not loaded and _due(step, config.checkpoint.every, ends, at_start=False)
            leaving = stop.asked(step)
            to_save |= leaving and not loaded
            if to_save and (collector is None or collector.at_rest or step == last):
                watch.settle()
                if accelerator.is_main_process:
                    save(setup, step, agent, optimizer, collector)
                accelerator.wait_for_everyone()
                recent.clear()  # a run that goes on from here logs the same rows
                to_save, loaded = False, True
            if leaving and not to_save:
                stop.leave()
            known = resumed_here and evaluated
            if not known and _due(step, config.eval.every, ends, at_start=config.eval.at_start):
                metrics = validate(wrapped, val_feed, setup, agent.stage(step))
                try:
                    with stop.at_once():
                        if evaluator is not None:
                            metrics |= evaluator(agent, step)
                except Stopped:
                    resting = collector is None or collector.at_rest
                    if accelerator.is_main_process and resting and not loaded:
                        watch.settle()
                        save(setup, step, agent, optimizer, collector)
                    raise
                if logger is not None and metrics:
                    logger.log(step, metrics)
                progress.show(step, metrics)
                accelerator.wait_for_everyone()
                meter.restart()
            if step == last:
                break

            episodes: list[dict[str, float]] = []
            if collector is not None and step >= turn:
                if step == turn:
                    begin_online(agent, config)
                    drop_what_learns_no_more(agent, optimizer)
                    update.forget()
                episodes = collector(agent, step, hold=to_save)
                for episode in episodes:
                    played |= episode
            batch, noises = feed(step)
            recent |= update(batch, noises, step)
            meter.count += 1
            if (step + 1) % config.log.every == 0 or step + 1 == last:
                watch.settle()
                values = gather_means(recent, accelerator)
                runaway(step + 1, values)
                recent.clear()
                row = {f"train/{name}": value for name, value in values.items()}
                row |= meter.read()
                if logger is not None:
                    logger.log(step + 1, row)
                progress.show(step + 1, row | played)
            if logger is not None:
                for episode in episodes:
                    logger.log(step + 1, episode)
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


def begin_online(agent: Agent, config: TrainConfig) -> None:
    """Freeze what is not to learn online."""
    agent.begin_online()
    if config.online.freeze_encoder:
        agent.encoder.freeze()


def drop_what_learns_no_more(agent: Agent, optimizer: torch.optim.Optimizer) -> None:
    """Take what is frozen or replaced online out of the optimizer, with its moments."""
    learning = {id(p) for p in agent.parameters() if p.requires_grad}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in learning:
                optimizer.state.pop(parameter, None)
                parameter.grad = None
        group["params"] = [p for p in group["params"] if id(p) in learning]


def save(
    setup: Setup,
    step: int,
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    collector: Collector | None,
) -> None:
    """Write a checkpoint; in the online phase it counts on the buffer as it is now."""
    online = collector is not None and step > setup.config.offline_steps
    checkpoint.save(
        setup.run_dir,
        step,
        agent,
        optimizer,
        setup.identity(step),
        setup.config.checkpoint.keep,
        replay=collector.replay.state() if online and collector is not None else None,
    )


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


def _due(step: int, every: int, ends: tuple[int, ...], *, at_start: bool) -> bool:
    """Whether something is due after `step` updates; always at the ends of the phases."""
    if step == 0:
        return at_start
    return step in ends or (every > 0 and step % every == 0)


class _Meter:
    """Rates since the last reading, evaluations left out."""

    def __init__(self, feed: Feed, collector: Collector | None) -> None:
        self._feed, self._collector = feed, collector
        self.restart()

    def restart(self) -> None:
        self.count, self._start, self._before = 0, perf_counter(), self._spent()

    def read(self) -> dict[str, float]:
        elapsed = perf_counter() - self._start
        row = {
            "time/steps_per_second": self.count / elapsed,
            "time/step_seconds": elapsed / self.count,
        }
        for name, seconds in self._spent().items():
            row[f"time/{name}"] = (seconds - self._before[name]) / elapsed
        self.restart()
        return row

    def _spent(self) -> dict[str, float]:
        spent = {"data_wait": self._feed.seconds_waited}
        return spent if self._collector is None else spent | {"collect": self._collector.seconds}
