"""Write report.html into run folders: `python scripts/report.py RUN...`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from deflow_vision.types import UserError


@dataclass(frozen=True)
class Arguments:
    """A page for each run, to open in a browser. Runs may be unfinished, or still going on.

    Tables have `python scripts/benchmark.py report TABLE`.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""


def main() -> None:
    runs = tyro.cli(Arguments).runs
    if not runs:
        raise SystemExit("error: name at least one run folder")
    from deflow_vision.analysis.report.run import write_run_report

    try:
        for run in runs:
            print(write_run_report(run))
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
