"""What the official JAX code of DeFlow takes: timed here where it can be, else scaled.

It is timed in a process of its own, `scripts/time_reference.py`, by a Python that has jax.
"""

from __future__ import annotations

import json
import logging
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from deflow_vision.timing.figures import Sample
from deflow_vision.timing.machine import Machine
from deflow_vision.types import UserError

log = logging.getLogger(__name__)

SCRIPT = Path(__file__).parents[2] / "scripts/time_reference.py"
RECORDED = {"state": 69.0, "pixels": 653.0, "action, state": 0.51, "action, pixels": 2.4}
"""Milliseconds of it (jax 0.10.2, jitted, float32, an encoder a head) on two cores of an EPYC with
AVX-512: an update of 256 states (37 numbers, 4 x 512) and of 64 pictures (64 x 64 x 9), and one
action of each."""
RECORDED_RATE = {"torch in float32": 210.0, "oneDNN in float32": 460.0}
"""GFLOP/s of products there, as `machine.look` measures them."""


@dataclass
class Reference:
    """Its times on this machine.

    Attributes:
        live: milliseconds that were measured here, by kind; a value each time it ran.
        checkout: the folder of its code; None where it is not timed.
        python: the interpreter that has jax.
    """

    checkout: Path | None = None
    python: str = "python3"
    live: dict[str, list[float]] = field(default_factory=dict)

    def run(self) -> None:
        """Time it once more, where there is a checkout.

        Raises:
            UserError: it cannot be run.
        """
        if self.checkout is None:
            return
        if not (self.checkout / "agents/deflow.py").is_file():
            raise UserError(
                f"{self.checkout} holds no agents/deflow.py: --reference names a checkout of the "
                "official code, the repository muzhancun/DeFlow."
            )
        command = [self.python, str(SCRIPT), str(self.checkout)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{' '.join(command)} cannot be run: {error}") from error
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            raise UserError(
                f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}. It needs a "
                "Python with jax, flax, optax, distrax and ml_collections: --reference-python."
            )
        for kind, milliseconds in json.loads(lines[-1]).items():
            self.live.setdefault(kind, []).append(milliseconds)

    def time(self, kind: str, machine: Machine) -> tuple[Sample, str] | None:
        """Its time and what that rests on; None on a GPU, where nothing was recorded.

        Args:
            kind: a key of `RECORDED`.
            machine: this one.
        """
        if self.live:
            return Sample(tuple(self.live[kind]), "ms"), "the official code, timed beside it"
        if not machine.products.keys() >= RECORDED_RATE.keys():
            return None
        rate = max(RECORDED_RATE.values()) / machine.peak("no")
        scaled = Sample((RECORDED[kind] * rate,), "ms")
        return scaled, "the official code elsewhere, scaled by oneDNN's rates"
