"""Draw the curves of several runs in one picture: `python scripts/compare.py RUN RUN ...`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from deflow_vision.types import UserError


def main(
    runs: Annotated[list[Path], tyro.conf.Positional],
    to: Path = Path("comparison.png"),
    columns: list[str] | None = None,
    smooth: int = 1,
) -> None:
    """Draw the curves of several runs in one picture.

    Args:
        runs: run folders, at most seven.
        to: the PNG file to write.
        columns: columns of train.csv, such as train/flow/loss; by default the usual ones.
        smooth: rows of train.csv that a point is the mean of.
    """
    from deflow_vision.analysis.comparison import compare_runs

    print(compare_runs(runs, to, columns, smooth))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
