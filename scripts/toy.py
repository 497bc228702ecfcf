"""What policies make of six modes of actions: `python scripts/toy.py [--help]`."""

import sys
from pathlib import Path


def main(
    methods: tuple[str, ...] = (),
    seed: int = 0,
    updates: int = 5000,
    out: Path = Path("runs/toy"),
) -> None:
    """Train methods on a bandit of two-dimensional actions with a known value, and draw them.

    Args:
        methods: names as `--algo` takes them, with settings of their own after colons:
            `deflow deflow:refine_base_action=false fql:alpha=1:flow_steps=5`. By default those
            of the picture in docs/algorithms.md.
        seed: of data, initial weights and noises.
        updates: how many each method has.
        out: the folder of toy.png and toy.csv.
    """
    import torch

    from deflow_vision.analysis.toy import compare
    from deflow_vision.types import UserError

    torch.set_num_threads(1)
    try:
        outcomes = compare(methods or METHODS, seed=seed, updates=updates, out=out)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    for outcome in outcomes:
        print(f"{outcome.method}: {outcome.caption().replace(chr(10), ', ')}")
    print(f"{out / 'toy.png'} and toy.csv")


METHODS = (
    "deflow",
    "deflow:refine_base_action=false",
    "fql",
    "fql:alpha=1",
    "bc",
    "fbrac",
    "ifql",
    "idql",
    "rebrac",
    "cac",
)

if __name__ == "__main__":
    import tyro

    tyro.cli(main, description=__doc__)
