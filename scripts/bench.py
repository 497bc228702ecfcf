"""What updates, actions, evaluation and data cost on this machine: `python scripts/bench.py`."""

import datetime
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from deflow_vision.timing.settings import BY_DEFAULT, Part, Settings


@dataclass(frozen=True)
class Arguments:
    """Time the library beside what it is held against, and print one table."""

    parts: tuple[Part, ...] = BY_DEFAULT
    """What is timed, in this order."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    """How much of it."""
    reference: Path | None = None
    """A checkout of the official code, which is timed too; without one its times are scaled."""
    reference_python: str = "python3"
    """A Python that has jax, flax, optax, distrax and ml_collections."""
    to: Path | None = None
    """A page of Markdown that takes the table between its two marks, such as docs/benchmarks.md."""
    json: Path | None = None
    """A file for all values."""


def main() -> None:
    """Parse, time, print."""
    args = tyro.cli(Arguments, description=__doc__)
    from rich.console import Console

    from deflow_vision.timing.bench import bench
    from deflow_vision.timing.reference import Reference
    from deflow_vision.timing.table import replace_in, to_markdown, to_terminal, write_json
    from deflow_vision.types import UserError

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    reference = Reference(args.reference, args.reference_python)
    try:
        machine, figures = bench(args.parts, args.settings, reference, say)
        Console(width=180).print(to_terminal(figures, machine))
        if args.json is not None:
            write_json(args.json, figures, machine)
        if args.to is not None:
            command = shlex.join(["python", "scripts/bench.py", *_shown(sys.argv[1:])])
            day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
            replace_in(args.to, to_markdown(figures, machine, day, command))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _shown(words: list[str]) -> list[str]:
    """Flags as they stand in a page: without the page, and without folders of this machine."""
    shown: list[str] = []
    names = {"--reference": "CHECKOUT", "--reference-python": "PYTHON", "--folder": "FOLDER"}
    skipped = ("--to", "--json")
    for before, word in zip(["", *words], words, strict=False):
        if word not in skipped and before not in skipped:
            shown.append(names.get(before, word))
    return shown


if __name__ == "__main__":
    main()
