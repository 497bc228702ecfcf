"""The time of one update, without sampling and evaluation, and the memory it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from deflow_vision.agents import AGENTS
from deflow_vision.tasks import resolve_task
from deflow_vision.timing.agents import (
    Precision,
    Sharing,
    make_agent,
    make_updates,
    random_batch,
    random_noises,
)
from deflow_vision.timing.figures import Figure, Goal, Sample, faster, more
from deflow_vision.timing.flops import count_flops
from deflow_vision.timing.machine import Machine, device
from deflow_vision.timing.reference import Reference
from deflow_vision.timing.settings import Settings
from deflow_vision.timing.turns import alone, in_turns, peak_memory, resident_memory

STATE, PIXELS = "cube-double-play", "visual-cube-double-play"
BATCH = {STATE: 256, PIXELS: 64}


@dataclass(frozen=True)
class Case:
    """An update that is timed.

    Attributes:
        task: whose shapes and settings.
        batch: transitions of it.
        algo: the algorithm.
        precision: bf16 for autocast.
        sharing: of encoders, None for the task's.
        freeze: whether DeFlow's base flow learns no more.
        cuda_graphs: on a GPU, record an update once and replay it.
    """

    task: str
    batch: int
    algo: str = "deflow"
    precision: Precision = "no"
    sharing: Sharing | None = None
    freeze: bool = False
    cuda_graphs: bool = True

    @property
    def kind(self) -> str:
        """What its observations are."""
        return "pixels" if resolve_task(self.task).pixels else "state"

    @property
    def words(self) -> str:
        """What it is, in a row of the table."""
        algo = f"{self.algo}{', frozen flow' if self.freeze else ''}"
        kind = self.kind if self.sharing is None else f"{self.kind}, {self.sharing}"
        precision = "float32" if self.precision == "no" else "bf16"
        return f"update of {algo}, {kind}, batch {self.batch}, {precision}"


PLAIN = Case(STATE, BATCH[STATE])
SHARED = Case(PIXELS, BATCH[PIXELS], sharing="shared")
SEPARATE = Case(PIXELS, BATCH[PIXELS], sharing="separate")
GOALS: dict[Case, Goal | None] = {
    PLAIN: Goal(1.2),
    replace(PLAIN, precision="bf16"): Goal(1.8),
    SHARED: None,
    replace(SHARED, precision="bf16"): Goal(10),
    SEPARATE: None,
    replace(SEPARATE, precision="bf16"): Goal(3),
}
"""Updates that the official code makes too, in float32 with an encoder a head."""
COSTS = (replace(PLAIN, freeze=True), replace(PLAIN, algo="fql"))
"""What DeFlow costs more than: a flow that is learned already, and FQL. Paper, table 4."""


def time_updates(machine: Machine, reference: Reference, settings: Settings) -> Iterator[Figure]:
    """Rows of the updates; the official code is timed before and after ours, where it can be.

    A machine that has no instructions for bfloat16 would emulate it, slower than float32: such
    updates are left out there.
    """
    cases = [case for case in GOALS if machine.bfloat16 or case.precision == "no"]
    reference.run()
    found = alone(_time, (*cases, *COSTS), settings)
    reference.run()
    for case in cases:
        against = reference.time(case.kind, machine)
        yield _row("update", case, found, machine, against, GOALS[case])
    for case in COSTS:
        against = found[PLAIN][0], "deflow, the first row"
        yield _row("update", case, found, machine, against)
    yield from _memory(settings)


def time_methods(machine: Machine, settings: Settings) -> Iterator[Figure]:
    """Rows of `settings.algos` on `settings.task`, held against DeFlow."""
    deflow = Case(
        settings.task,
        settings.batch_size,
        precision=settings.precision,
        cuda_graphs=settings.cuda_graphs,
    )
    names = [name for name in settings.algos or AGENTS if name != deflow.algo]
    cases = (deflow, *(replace(deflow, algo=name) for name in names))
    found = alone(_time, cases, settings)
    for case in cases:
        against = None if case == deflow else (found[deflow][0], "deflow")
        yield _row("methods", case, found, machine, against)


def _row(
    part: str,
    case: Case,
    found: dict[Case, tuple[Sample, int]],
    machine: Machine,
    against: tuple[Sample, str] | None,
    goal: Goal | None = None,
) -> Figure:
    sample, flops = found[case]
    share = flops / (1e6 * sample.median) / machine.peak(case.precision)
    note = f"{flops / 1e9:.1f} GFLOP, {share:.0%} of the fastest product's rate"
    if against is None:
        return Figure(part, case.words, sample, note=note)
    return Figure(part, case.words, sample, *against, faster(sample, against[0]), goal, note)


def _memory(settings: Settings) -> Iterator[Figure]:
    for case in (PLAIN, SHARED, SEPARATE):
        before, peak = alone(_peak, case, settings)
        what = f"memory of an {case.words}"
        held, bare = Sample((peak,), "GB"), Sample((before,), "GB")
        yield Figure("memory", what, held, bare, "the same process before", more(held, bare))


def _time(cases: tuple[Case, ...], settings: Settings) -> dict[Case, tuple[Sample, int]]:
    calls = {case: _call(case, settings) for case in cases}
    flops = {case: count_flops(call) for case, call in calls.items()}
    samples = in_turns(calls, rounds=settings.rounds, count=settings.updates, warm_up=6)
    return {case: (samples[case], flops[case]) for case in cases}


def _peak(case: Case, settings: Settings) -> tuple[float, float]:
    """GB that the process holds before, and at most after, three updates."""
    call = _call(case, settings)
    before = resident_memory()
    for _ in range(3):
        call()
    return before, peak_memory()


def _call(case: Case, settings: Settings) -> Callable[[], object]:
    agent = make_agent(
        case.task, case.algo, sharing=case.sharing, network=settings.network, freeze=case.freeze
    )
    update = make_updates(agent, case.precision, cuda_graphs=case.cuda_graphs)
    steps = iter(range(1 << 30))
    batch = random_batch(agent.spec, case.batch, device())
    noises = random_noises(agent, case.batch, device())
    return lambda: update(batch, noises, next(steps))
