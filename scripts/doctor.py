"""Say what this machine can do for a run, and what to mend: `python scripts/doctor.py`.

It changes nothing. The exit status is 1 where a row fails, else 0.
"""

import json
from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Arguments:
    """A row a finding: ok, warn (slower or less than it could be) or fail, with its remedy."""

    task: str | None = None
    """Also plan the memory of this task, as training would."""
    data: tuple[str, ...] = ()
    """Also read these stores whole, and check every digest: folders or addresses. As slow as
    reading them."""
    json: bool = False
    """Print the rows as JSON."""


def main() -> None:
    args = tyro.cli(Arguments, description=__doc__)
    from deflow_vision.doctor.examine import examine
    from deflow_vision.doctor.rows import as_json, as_table, worst

    try:
        rows = examine(args.task, args.data)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if args.json:
        print(json.dumps(as_json(rows), indent=2))
    else:
        from rich.console import Console

        Console().print(as_table(rows))
    raise SystemExit(worst(rows) == "fail")


if __name__ == "__main__":
    main()
