"""Where metrics are shown besides the CSV files: TensorBoard and wandb, imported when asked for."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Somewhere else where metrics are shown. May raise anything at any time."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step."""

    def log_video(self, step: int, path: Path) -> None:
        """Show an mp4."""

    def close(self) -> None:
        """Hand over what is left."""


class TensorBoardSink:
    """Scalars as TensorBoard event files in `run_dir/tensorboard`."""

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_step is None else resume_step + 1
        self._writer: Any = SummaryWriter(run_dir / "tensorboard", purge_step=purge_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def log_video(self, step: int, path: Path) -> None:
        """Name the file: TensorBoard itself can show no mp4."""
        self._writer.add_text("eval/video", str(path), step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandbSink:
    """A run in wandb, with its files in `run_dir/wandb`.

    The key of an account is left to wandb (`wandb login`): nothing of it is written here.
    """

    def __init__(
        self,
        run_dir: Path,
        mode: Literal["offline", "online"],
        project: str,
        config: dict[str, Any],
    ) -> None:
        import wandb

        self._wandb = wandb
        # A resumed run goes on under its id, which outlives the process in the folder.
        id_file = run_dir / "wandb" / "run_id"
        run_id = id_file.read_text() if id_file.exists() else uuid.uuid4().hex[:8]
        id_file.parent.mkdir(exist_ok=True)
        id_file.write_text(run_id)
        # No capture of the console (it fights the progress bar), and no wait without an end.
        limits: dict[str, Any] = {"login_timeout": 30, "init_timeout": 60, "finish_timeout": 600}
        known = wandb.Settings.model_fields  # older releases do not have all of them
        limits = {name: seconds for name, seconds in limits.items() if name in known}
        self._run = wandb.init(
            dir=run_dir,
            id=run_id,
            name=run_dir.name,
            project=project,
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=config,
            settings=wandb.Settings(console="off", silent=True, **limits),
        )
        # wandb's own step may not go back, ours does where a run resumes.
        self._run.define_metric("*", step_metric="step")
        if mode == "online":
            log.info("wandb run: %s", self._run.url)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step."""
        self._run.log({"step": step, **metrics})

    def log_video(self, step: int, path: Path) -> None:
        """Upload an mp4."""
        self._run.log({"step": step, "eval/video": self._wandb.Video(str(path), format="mp4")})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
