"""Evaluate a run's checkpoints: `python scripts/evaluate.py --run RUN --episodes 50 [--follow]`."""

import logging
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Arguments:
    """Episodes of a trained policy in its real environment."""

    run: Path
    """The run folder."""
    episodes: int = 50
    """How many episodes."""
    videos: int = 0
    """How many of them are filmed."""
    num_envs: int = 8
    """Environments that run side by side, in a process a core."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    follow: bool = False
    """Every checkpoint that was not evaluated so yet, and while the run goes on each that comes."""
    seed: int = 0
    """Seed of the episodes; none of them repeats one of the run's own evaluations."""
    device: str = "cpu"
    """Where the policy acts, such as cuda."""
    env: str | None = None
    """Another environment than the run's, as module:factory; by default the run's own."""
    render_profile: str | None = None
    """How frames are drawn: official, fast or draft; by default as in training."""
    acting: tuple[str, ...] = ()
    """Settings of how the agent acts, as key=value: inference=max_q num_proposals=32."""


def main() -> None:
    import tyro

    args = tyro.cli(Arguments, description=__doc__)
    from deflow_vision.analysis.report.run import write_run_report
    from deflow_vision.config import parse_assignments
    from deflow_vision.training.follow import follow
    from deflow_vision.training.restore import evaluate_run
    from deflow_vision.types import UserError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("deflow_vision").setLevel(logging.INFO)

    def evaluate(step: int | None) -> None:
        out_dir = args.run / "evaluations" / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
        metrics = evaluate_run(
            args.run,
            out_dir,
            videos=args.videos,
            num_envs=args.num_envs,
            step=step,
            device=args.device,
            **protocol,
        )
        report = write_run_report(args.run)
        if step is not None:
            print(f"after {step:,} updates")
        for name, value in metrics.items():
            print(f"{name:14} {value:.4g}")
        print(f"evaluation.json, episodes and videos: {out_dir}")
        print(f"report: {report}", flush=True)

    try:
        protocol: dict[str, Any] = {
            "episodes": args.episodes,
            "seed": args.seed,
            "env": args.env,
            "render_profile": args.render_profile,
            "acting": parse_assignments(args.acting),
        }
        if not args.follow:
            evaluate(args.step)
            return
        if args.step is not None:
            raise UserError("--follow evaluates every checkpoint, and --step names one: pass one.")
        print(f"{follow(args.run, evaluate, **protocol)} checkpoints evaluated")
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
