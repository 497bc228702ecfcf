"""What stands before the first step: devices, data, run folder, sinks; and what is closed after."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from deflow_vision.agents import AGENTS
from deflow_vision.config import TrainConfig, default_run_dir, to_dict
from deflow_vision.datasets.memory import available_memory
from deflow_vision.datasets.residency import plan_residency
from deflow_vision.datasets.store import Store
from deflow_vision.envs.pool import EnvPool
from deflow_vision.tasks import Task, resolve_task
from deflow_vision.training import checkpoint
from deflow_vision.training.checkpoint import Checkpoint
from deflow_vision.training.dataset import make_spec, open_task_store
from deflow_vision.training.devices import free_device_memory
from deflow_vision.training.divergence import settle_divergence
from deflow_vision.training.drawing import check_drawing
from deflow_vision.training.evaluation import Evaluator
from deflow_vision.training.identity import identity
from deflow_vision.training.logger import RunLogger
from deflow_vision.training.own import open_own_task
from deflow_vision.training.progress import TrainingProgress
from deflow_vision.training.run_folder import create_run_folder, held, reopen_run_folder
from deflow_vision.types import Spec, UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """All that the loop works with, apart from the agent.

    Attributes:
        config: the resolved configuration, with `run_dir` and `data.num_streams` filled in.
        accelerator: device, precision, processes.
        task: what is trained.
        store: the dataset.
        spec: what the agent must know of it.
        run_dir: the run folder.
        resumed: whether the run existed before.
        resume_from: the checkpoint to continue from, None to begin at the first update.
        divergence: how the data's `target_divergence` was found; empty where it was given.
        closing: what is closed at the end.
    """

    config: TrainConfig
    accelerator: Accelerator
    task: Task
    store: Store
    spec: Spec
    run_dir: Path
    resumed: bool
    resume_from: Checkpoint | None
    divergence: dict[str, Any]
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def first_step(self) -> int:
        """Updates done before this process began."""
        return 0 if self.resume_from is None else self.resume_from.step

    @property
    def last_step(self) -> int:
        """Updates of the whole run."""
        return self.config.offline_steps + self.config.online_steps

    def identity(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` updates must have in common with this run."""
        return identity(self.config, self.store, step)

    def open_run_folder(self) -> None:
        """Make the folder of a new run; write down what a resumed run changes."""
        if self.accelerator.is_main_process:
            self.closing.enter_context(held(self.run_dir))
            if self.resumed:
                reopen_run_folder(self.run_dir, self.config)
                # A run that was killed after its last checkpoint saves no other that would do this.
                checkpoint.remove_old(self.run_dir, self.config.checkpoint.keep)
            else:
                create_run_folder(self.run_dir, self.config, self.store, self.spec, self.divergence)
        self.accelerator.wait_for_everyone()

    @property
    def validates(self) -> bool:
        """Whether there is a validation split, and it is asked for."""
        return self.store.val is not None and self.config.eval.val_batches > 0

    def logger(self) -> RunLogger | None:
        """The run's log, on the main process."""
        if not self.accelerator.is_main_process:
            return None
        config = self.config.log
        logger = RunLogger(
            self.run_dir,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            wandb_project=config.wandb_project,
            config=to_dict(self.config),
            resume_step=self._resume_step(),
        )
        return self.closing.enter_context(logger)

    def _resume_step(self) -> int | None:
        """The last step whose rows stay; -1 where a run begins anew in its own folder."""
        if not self.resumed:
            return None
        return -1 if self.resume_from is None else self.resume_from.step

    @property
    def _cap(self) -> int | None:
        """The length at which evaluation episodes are cut, where it is below the task's limit."""
        limit, cap = self.task.max_episode_steps, self.config.eval.max_episode_steps
        return cap if cap is not None and cap < limit else None

    def pool(self) -> EnvPool | None:
        """The environments of evaluations, on the main process."""
        config = self.config.eval
        if config.episodes == 0 or not self.accelerator.is_main_process:
            return None
        return self.open_pool(
            num_envs=min(config.num_envs, config.episodes),
            frame_stack=self.config.data.frame_stack or 1,
            max_episode_steps=self._cap,
        )

    def open_pool(self, **settings: Any) -> EnvPool:
        """Environments of the task that draw as its dataset was drawn; closed at the end."""
        pool = EnvPool(
            self.task.env_id,
            render_profile=self.store.attributes["render_profile"] or "official",
            resolution=self.spec.resolution,
            **settings,
        )
        self.closing.callback(pool.close)
        check_drawing(pool, self.store)
        return pool

    def evaluator(self, pool: EnvPool | None, logger: RunLogger | None) -> Evaluator | None:
        """Evaluation in the environments, on the main process."""
        if pool is None or logger is None:
            return None
        config = self.config.eval
        return Evaluator(
            pool,
            self.run_dir,
            logger,
            seed=self.config.seed,
            episodes=config.episodes,
            videos=config.videos,
            cap=self._cap,
            device=self.accelerator.device,
        )

    def progress(self) -> TrainingProgress:
        """A progress bar on the main process, silent elsewhere."""
        return TrainingProgress(
            self.last_step,
            self.first_step,
            enabled=self.accelerator.is_main_process,
        )


@contextmanager
def prepare(config: TrainConfig, accelerator: Accelerator) -> Iterator[Setup]:
    """Check the data and the machine, make or reopen the run folder, and close all at the end.

    Args:
        config: the resolved configuration.
        accelerator: from `make_accelerator`.

    Raises:
        UserError: something does not fit; the message says what to do.
    """
    if config.env is None:
        task = resolve_task(config.task)
        store = open_task_store(config, task)
    else:
        task, store = open_own_task(config)
    config, divergence = settle_divergence(config, task, store, accelerator)
    frame_stack = config.data.frame_stack or (3 if store.train.pixels else 1)
    resumed = config.resume is not None
    run_dir = config.resume or config.run_dir or default_run_dir(config, datetime.now())
    run_dir = Path(broadcast_object_list([str(run_dir)])[0])  # one folder, whatever the clocks say
    num_streams = config.data.num_streams or accelerator.num_processes
    if num_streams % accelerator.num_processes or config.batch_size % num_streams:
        raise UserError(
            f"data.num_streams is {num_streams}: it must be a multiple of the number of processes "
            f"({accelerator.num_processes}) and divide batch_size ({config.batch_size})."
        )
    if config.online_steps and accelerator.num_processes > 1:
        raise UserError(
            f"online training runs in one process, and there are {accelerator.num_processes}: "
            "launch with --num_processes 1, or pass --online-steps 0."
        )
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # All ranks take the least that one of them has, so that they decide alike.
    free = gather_object([(available_memory(), free_device_memory(accelerator.device))])
    host_bytes, device_bytes = map(min, zip(*free, strict=True))
    plan = plan_residency(
        store.train,
        host_bytes // 2 // local_processes,
        residency=config.data.residency,
        frame_stack=frame_stack,
        fields=AGENTS[config.algo].batch_fields,
        num_streams=num_streams,
        streams=range(num_streams // accelerator.num_processes),
        block_length=config.data.block_length,
        window_blocks=config.data.window_blocks,
        device_bytes=device_bytes,
    )
    config = replace(
        config,
        mixed_precision=accelerator.mixed_precision,
        run_dir=run_dir,
        resume=None,
        # "auto" looks at this machine's memory; the batches of a resumed run must not.
        data=replace(
            config.data, frame_stack=frame_stack, num_streams=num_streams, residency=plan.residency
        ),
    )
    resume_from = checkpoint.latest(run_dir) if resumed else None
    last = config.offline_steps + config.online_steps
    if not last:
        log.warning(
            "offline_steps and online_steps are both 0, so that nothing is trained: pass "
            "--offline-steps N or --online-steps N (RLPD has no offline phase)"
        )
    if config.offline_steps and not AGENTS[config.algo].offline:
        log.warning(
            "%s is made to learn from what it collects, and is to have %s updates on the dataset "
            "alone: pass --offline-steps 0 --online-steps N for its published form",
            config.algo,
            f"{config.offline_steps:,}",
        )
    if resume_from is not None and resume_from.step > last:
        phase = "online" if config.online_steps else "offline"
        raise UserError(
            f"{run_dir} has had {resume_from.step} updates already, the run is to have {last}: "
            f"pass a greater --{phase}-steps to go on."
        )
    setup = Setup(
        config=config,
        accelerator=accelerator,
        task=task,
        store=store,
        spec=make_spec(store, task, frame_stack),
        run_dir=run_dir,
        resumed=resumed,
        resume_from=resume_from,
        divergence=divergence,
    )
    with setup.closing:
        try:
            yield setup
        finally:
            store.close()  # first, so that no thread that is closed still waits for an address
    accelerator.end_training()
