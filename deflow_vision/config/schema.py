"""What a run can be told: frozen dataclasses, a docstring line a field, checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Fixed, Suppress

from deflow_vision.agents import AGENTS
from deflow_vision.datasets.augment import AugmentConfig
from deflow_vision.datasets.mixture import Sampling
from deflow_vision.networks.encoders import ENCODERS, EncoderConfig
from deflow_vision.tasks import check_own, nearest, resolve_task
from deflow_vision.types import UserError

Precision = Literal["no", "bf16"]


@dataclass(frozen=True)
class DataConfig:
    """Which transitions are trained on, and how they reach the device."""

    path: str | None = None
    """The store's folder or address (s3://bucket/{dataset}.zarr; gs, az, http and https likewise),
    where {dataset} stands for the task's dataset. By default {dataset}.zarr in the folder that
    DEFLOW_DATA names, else in data/."""
    cache: Path | None = None
    """Folder that keeps blocks of stores at addresses for later epochs and runs, and for all
    processes of a machine. By default deflow-vision in $XDG_CACHE_HOME, or in ~/.cache."""
    cache_gib: float = 20.0
    """The most that this folder holds, in GiB; 0 keeps nothing."""
    retry_minutes: float = 5.0
    """How long an address that does not answer is asked again before the run ends; its last
    checkpoint stays."""
    residency: Literal["auto", "device", "ram", "stream"] = "auto"
    """ram: all in memory, drawn uniformly. device: the same, with the observations on the GPU.
    stream: bounded memory, each transition once an epoch, for what does not fit. auto: device where
    the observations are within half of the GPU's free memory, else ram where all fits."""
    frame_stack: int | None = None
    """Frames in an observation, oldest first. By default 3 for pixels, 1 for state."""
    block_length: int | None = None
    """stream: frames read in one piece. By default four chunks of the store."""
    window_blocks: int | None = None
    """stream: blocks that are held in memory and permuted as a whole; fewer mix less. By default
    those of 384 MiB, and at most 524,288 frames. The validation split takes at most 8."""
    num_streams: int | None = None
    """Independent parts of each batch; a run resumes on any number of processes that divides this
    one. By default as many as there are processes at the start."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of pixels; state is never augmented."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _at_least(1, "data.frame_stack", self.frame_stack)
        _at_least(1, "data.block_length", self.block_length)
        _at_least(1, "data.window_blocks", self.window_blocks)
        _at_least(1, "data.num_streams", self.num_streams)
        _at_least(0, "data.cache_gib", self.cache_gib)
        _at_least(0, "data.retry_minutes", self.retry_minutes)


@dataclass(frozen=True)
class OnlineConfig:
    """How transitions are collected, drawn and learned from in the online phase."""

    num_envs: int = 1
    """N: environments that step together, a process each; N `utd_ratio` updates follow a round."""
    utd_ratio: int = 1
    """Updates for each step of one environment, that is, for each transition."""
    sampling: Sampling = "union"
    """union: batches uniform over the dataset and the online buffer together, as the reference
    draws them. balanced: half of each batch from either. ratio: `ratio` of it online."""
    ratio: float = 0.5
    """Share of online transitions in a batch, with sampling `ratio`."""
    capacity: int = 1_000_000
    """Online transitions that are drawn from; beyond, the oldest whole episodes leave. Each
    environment has an equal share of it."""
    overwrite_offline: bool = False
    """Let online transitions replace the oldest of the dataset once both are more than 2,000,000,
    as in the reference's ring buffer; with sampling `union`."""
    freeze_encoder: bool = False
    """Keep the image encoder, or those of all heads, as the offline phase leaves it."""
    timeout_seconds: float = 300.0
    """How long the environment may take for an answer before it counts as hung."""
    max_restarts: int = 3
    """How often in a row an environment that dies, hangs or returns NaN is made anew before an
    episode ends as it should; then the run ends."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning, and pairs that contradict each other."""
        _at_least(1, "online.num_envs", self.num_envs)
        _at_least(1, "online.utd_ratio", self.utd_ratio)
        _at_least(self.num_envs, "online.capacity", self.capacity)
        _at_least(1e-3, "online.timeout_seconds", self.timeout_seconds)
        _at_least(0, "online.max_restarts", self.max_restarts)
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"online.ratio is {self.ratio}, must lie in [0, 1]")
        if self.overwrite_offline and (self.sampling != "union" or self.num_envs > 1):
            raise ValueError(
                f"online.overwrite_offline is about one buffer for all data; with online.sampling "
                f"{self.sampling} and {self.num_envs} environments there are more. Pass "
                "--online.sampling union --online.num-envs 1"
            )


@dataclass(frozen=True)
class EvalConfig:
    """Episodes in the real environment, and losses on the validation split."""

    every: int = 100_000
    """Updates between evaluations; 0 leaves those at the start and at the end."""
    at_start: bool = True
    """Evaluate before the first update."""
    episodes: int = 50
    """Episodes of an evaluation."""
    num_envs: int = 8
    """Environments that run side by side, in a process a core; the results do not depend on it."""
    max_episode_steps: int | None = None
    """Cap on the length of an episode, marked in the results. By default the task's own limit."""
    videos: int = 1
    """Episodes of an evaluation that are recorded."""
    val_batches: int = 10
    """Validation batches whose losses are averaged at an evaluation."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _at_least(0, "eval.every", self.every)
        _at_least(0, "eval.episodes", self.episodes)
        _at_least(1, "eval.num_envs", self.num_envs)
        _at_least(1, "eval.max_episode_steps", self.max_episode_steps)
        _at_least(0, "eval.videos", self.videos)
        _at_least(0, "eval.val_batches", self.val_batches)


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept to resume from."""

    every: int = 100_000
    """Updates between checkpoints; 0 leaves the one at the end."""
    keep: int = 2
    """Newest checkpoints that stay on disk."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _at_least(0, "checkpoint.every", self.every)
        _at_least(1, "checkpoint.keep", self.keep)


@dataclass(frozen=True)
class LogConfig:
    """Where metrics go besides the CSV files of the run folder."""

    every: int = 1000
    """Updates between rows of train.csv."""
    tensorboard: bool = False
    """Also write TensorBoard's event files into the run folder."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also log to Weights & Biases: offline into the run folder, online to its server."""
    wandb_project: str = "deflow-vision"
    """The project there."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _at_least(1, "log.every", self.every)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run."""

    task: Suppress[Fixed[str]]
    """Canonical name of the task; with `env`, a name of one's own."""
    env: Suppress[Fixed[str | None]] = None
    """One's own environment as module:factory; None for a published task's."""
    algo: Suppress[Fixed[str]] = "deflow"
    """Name of the algorithm."""
    seed: int = 0
    """Seed of the initial weights, the batches, the noises and the evaluations."""
    offline_steps: int = 1_000_000
    """Updates on the dataset alone."""
    online_steps: int = 0
    """Updates afterwards, with one step of the environment for every `online.utd_ratio` of them."""
    batch_size: int = 256
    """Transitions of an update, over all processes."""
    mixed_precision: Literal["auto", "no", "bf16", "fast"] = "auto"
    """bf16: autocast of encoders and trunks. auto: what `accelerate launch` says, else no. fast:
    bf16 where the device has instructions for it, else no."""
    cuda_graphs: bool = True
    """On one GPU: record the kernels of an update once and replay them."""
    num_threads: int | None = None
    """CPU threads of each process. By default all cores, divided among this machine's processes."""
    run_dir: Path | None = None
    """The run's folder. By default runs/<task>/<algo>/seed<seed>-<date>-<time>."""
    resume: Suppress[Fixed[Path | None]] = None
    """The run folder that is continued."""
    agent: Any
    """Hyper-parameters of the algorithm."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """How observations become features."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which transitions are trained on, and how they reach the device."""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    """How transitions are collected, drawn and learned from in the online phase."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Episodes in the real environment, and losses on the validation split."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What is kept to resume from."""
    log: LogConfig = field(default_factory=LogConfig)
    """Where metrics go besides the CSV files of the run folder."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning, and pairs that contradict each other."""
        if self.env is not None:
            check_own(self.env, self.task)
        elif resolve_task(self.task).name != self.task:
            raise ValueError(f"task is {self.task!r}; write {resolve_task(self.task).name!r}")
        check_algo(self.algo)
        if not isinstance(self.agent, AGENTS[self.algo].Config):
            raise ValueError(
                f"agent is a {type(self.agent).__name__}; {self.algo} takes a "
                f"{AGENTS[self.algo].Config.__name__}"
            )
        _at_least(0, "seed", self.seed)
        _at_least(0, "offline_steps", self.offline_steps)
        _at_least(0, "online_steps", self.online_steps)
        _at_least(1, "batch_size", self.batch_size)
        env_steps = -(-self.online_steps // self.online.utd_ratio)
        if self.online.overwrite_offline and self.online.capacity < env_steps:
            raise ValueError(
                f"online.capacity is {self.online.capacity}: with online.overwrite_offline it must "
                f"hold the run's {env_steps} steps of the environment"
            )
        _at_least(1, "num_threads", self.num_threads)
        if self.batch_size % (self.data.num_streams or 1):
            raise ValueError(
                f"batch_size is {self.batch_size}, must be a multiple of data.num_streams "
                f"({self.data.num_streams})"
            )
        encoder = self.encoder.name
        if encoder not in (known := ["auto", *ENCODERS]) and not encoder.startswith("timm:"):
            raise ValueError(
                f"unknown encoder.name '{encoder}'. {nearest(encoder, known)} Or timm:<model>."
            )


def check_algo(name: str) -> None:
    """Refuse an algorithm that does not exist.

    Raises:
        UserError: naming the nearest ones.
    """
    if name not in AGENTS:
        raise UserError(f"unknown algorithm '{name}'. {nearest(name, AGENTS)}")


def default_run_dir(config: TrainConfig, now: datetime) -> Path:
    """The folder of a run that names none, relative to the working directory.

    Args:
        config: the run.
        now: its start, read once on the main process so that all ranks share one folder.
    """
    name = f"seed{config.seed}-{now:%Y%m%d-%H%M%S}"
    return Path("runs") / config.task / config.algo / name


def resolve_mixed_precision(requested: str, launched: str | None, has_bf16: bool) -> Precision:
    """The precision that a run takes, from what the script and the launcher ask for.

    Args:
        requested: `mixed_precision` of the configuration.
        launched: the variable ACCELERATE_MIXED_PRECISION, or None. "no" is what the launcher sets
            unless told otherwise, so it contradicts nothing.
        has_bf16: whether the device computes in bfloat16 itself; elsewhere it is emulated, at a
            small fraction of float32's speed.

    Raises:
        UserError: the two contradict each other, or the launcher asks for fp16 or fp8.
    """
    if launched not in (None, "no", "bf16"):
        raise UserError(
            f"accelerate launch asks for mixed precision {launched}; critics here train in no or "
            "bf16. Launch with --mixed_precision no"
        )
    if launched == "bf16" and requested == "no":
        raise UserError(
            "accelerate launch asks for mixed precision bf16, the configuration for no. Launch "
            "with --mixed_precision no, or pass --mixed-precision bf16 to the script"
        )
    asked = "bf16" in (requested, launched) or (requested == "fast" and has_bf16)
    return "bf16" if asked else "no"


def _at_least(least: float, name: str, value: float | None) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} is {value}, must be at least {least}")
