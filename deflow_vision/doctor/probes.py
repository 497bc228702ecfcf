"""Running probes, each in a process of its own that may hang or die."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deflow_vision.doctor.rows import Row
from deflow_vision.envs.worker import Worker, WorkerError


@dataclass(frozen=True)
class Probe:
    """Something to look at.

    Attributes:
        name: of its row, where it does not come to an end.
        look: a function of an importable module, which runs in the process and returns facts.
        judge: from the facts to rows, in this process.
        args: arguments of `look`.
        seconds: how long it may take.
    """

    name: str
    look: Callable[..., Any]
    judge: Callable[[Any], list[Row]]
    args: tuple[Any, ...] = ()
    seconds: float = 60.0


def run_probe(probe: Probe) -> list[Row]:
    """Look and judge; a probe that raises, dies or takes too long is a row that fails."""
    try:
        facts = _look(probe)
    except WorkerError as error:
        last_line = str(error).strip().splitlines()[-1]
        return [
            Row(
                probe.name,
                "fail",
                f"the probe broke down: {last_line}",
                "mend what it names, or what it printed above; a library that crashes or hangs "
                "here would do so in a run. Rows that fail elsewhere may be the cause",
            )
        ]
    return probe.judge(facts)


def _look(probe: Probe) -> Any:
    with Worker(_Looker) as worker:
        worker.start(probe.seconds)
        worker.send("look", probe.look, probe.args)
        return worker.receive(probe.seconds)


class _Looker:
    def look(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return function(*args)
