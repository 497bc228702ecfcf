"""Write a run's policy into a folder to share: `python scripts/export.py RUN --to FOLDER`."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Arguments:
    """A policy as a folder: weights, configuration, spec.json and a model card."""

    run: Positional[Path]
    """The run folder."""
    to: Path
    """The folder to write: a new one, or one with a policy of the same run, which is replaced."""
    checkpoint: int | None = None
    """Which one, by its updates; by default the newest."""
    format: tuple[Literal["safetensors", "torch-export", "onnx"], ...] = ("safetensors",)
    """safetensors: the weights, which are always there. torch-export, onnx: also the policy as a
    graph, which acts without this library."""
    overwrite: bool = False
    """Replace the policy of another run."""


def main() -> None:
    import tyro

    args = tyro.cli(Arguments, description=__doc__)
    from deflow_vision.sharing import Policy
    from deflow_vision.types import UserError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        policy = Policy.from_run(args.run, args.checkpoint)
        graphs = [name for name in args.format if name != "safetensors"]
        policy.save_pretrained(args.to, formats=graphs, overwrite=args.overwrite)
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    record = policy.record
    print(f"{record.algo} on {record.task} after {record.updates:,} updates: {args.to}")


if __name__ == "__main__":
    main()
