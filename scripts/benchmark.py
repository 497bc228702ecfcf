"""Tables of runs: `python scripts/benchmark.py COMMAND [TABLE] [--help]`.

COMMAND is list, print, run, table or report; a TABLE is a file of configs/benchmarks/.
"""

import logging
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deflow_vision.types import UserError

Name = Annotated[str, tyro.conf.Positional]

TRAIN = Path("scripts/train.py")
OUT = Path("runs/benchmarks")


def list_tables() -> None:
    """Show the tables that there are, and how many runs each is."""
    from deflow_vision.benchmark.table_file import load_table, table_names

    for name in table_names():
        table = load_table(name)
        count = sum(1 for _ in table.cells(OUT))
        print(f"{name:20} {count:5} runs   {table.title}")


def print_commands(table: Name, out: Path = OUT) -> None:
    """Print the command line of every run of a table, one a line.

    Args:
        table: its name, or the path of a YAML file like those in configs/benchmarks/.
        out: the folder of all tables' runs.
    """
    from deflow_vision.benchmark.table_file import load_table

    for cell in load_table(table).cells(out):
        print(shlex.join(["python", str(TRAIN), *cell.arguments()]))


def run(
    table: Name,
    workers: int = 1,
    gpus: tuple[int, ...] | None = None,
    cluster: Literal["local", "slurm"] = "local",
    slurm: tuple[str, ...] = (),
    out: Path = OUT,
) -> None:
    """Run what is missing of a table: finished runs are skipped, broken ones are resumed.

    Args:
        table: its name, or the path of a YAML file like those in configs/benchmarks/.
        workers: runs at a time.
        gpus: numbers of this machine's GPUs, which the runs share, one each; by default all.
        cluster: where they run.
        slurm: settings of each SLURM job as submitit calls them: slurm_partition=gpu
            timeout_min=600 cpus_per_task=8.
        out: the folder of all tables' runs.
    """
    from deflow_vision.benchmark.launch import Executor, found_gpus, run_cells
    from deflow_vision.benchmark.table_file import load_table
    from deflow_vision.config import parse_assignments

    described = load_table(table)
    executor = Executor(
        out / described.name / "logs",
        cluster,
        workers,
        gpus=found_gpus() if gpus is None else gpus,
        slurm=parse_assignments(slurm),
    )
    train = Path(__file__).resolve().parent / TRAIN.name
    # A request to end counts as Ctrl-C: no run goes on without this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    outcomes = run_cells(list(described.cells(out)), described, executor, train)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for outcome in failed:
        sys.stderr.write(f"\nfailed: {outcome.cell.name}: {outcome.reason}\n")
    skipped = sum(outcome.state == "skipped" for outcome in outcomes)
    finished = len(outcomes) - skipped - len(failed)
    print(f"{finished} finished, {skipped} finished before, {len(failed)} failed")
    if failed:
        raise SystemExit(1)


def table(
    table: Name, format: Literal["markdown", "latex", "csv"] = "markdown", out: Path = OUT
) -> None:
    """Print a table from its run folders, with the published figures beside ours.

    Args:
        table: its name, or the path of a YAML file like those in configs/benchmarks/.
        format: how.
        out: the folder of all tables' runs.
    """
    from deflow_vision.benchmark.render import RENDERERS
    from deflow_vision.benchmark.results import collect
    from deflow_vision.benchmark.table_file import load_table

    sys.stdout.write(RENDERERS[format](collect(load_table(table), out)))


def report(table: Name, out: Path = OUT) -> None:
    """Write report.html into a table's folder: figures to sort, aggregates, curves, every run.

    Args:
        table: its name, or the path of a YAML file like those in configs/benchmarks/.
        out: the folder of all tables' runs.
    """
    from deflow_vision.benchmark.report import write_table_report
    from deflow_vision.benchmark.table_file import load_table

    print(write_table_report(load_table(table), out))


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("deflow_vision").setLevel(logging.INFO)
    commands = {
        "list": list_tables,
        "print": print_commands,
        "run": run,
        "table": table,
        "report": report,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
