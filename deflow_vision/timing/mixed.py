"""How well a stream's batches are mixed, against independent draws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deflow_vision.datasets.draws import Epochs, Uniform
from deflow_vision.datasets.mixing import measure_mixing
from deflow_vision.datasets.transitions import Transitions
from deflow_vision.timing.feeds import STACK
from deflow_vision.timing.figures import Figure, Sample, more
from deflow_vision.timing.streaming import BATCH

EPISODES, LENGTH = 1000, 1001
WINDOWS = ((256, 128), (512, 64), (1024, 32), (4096, 128))
"""Length of a block, and blocks that batches are drawn from at a time."""


def count_mixing() -> Iterator[Figure]:
    """Rows of indices alone, of a thousand episodes of a thousand steps."""
    index = Transitions(np.arange(1, EPISODES + 1) * LENGTH, STACK)
    uniform = measure_mixing(Uniform(index, BATCH, seed=0, streams=(0,)), 16)
    against = Sample((uniform.episodes,), "episodes")
    for block_length, window_blocks in WINDOWS:
        epochs = Epochs(
            index,
            BATCH,
            block_length=block_length,
            window_blocks=window_blocks,
            seed=0,
            num_streams=1,
            streams=(0,),
        )
        found = measure_mixing(epochs, 16)
        measured = Sample((found.episodes,), "episodes")
        yield Figure(
            "mixing",
            f"episodes in a batch, {window_blocks} blocks of {block_length}",
            measured,
            against,
            "independent draws",
            more(measured, against),
            None,
            f"of them in the batch before too {found.repeats:.0%} ({uniform.repeats:.0%}); pairs "
            f"within 10 steps {found.neighbours:.1f} ({uniform.neighbours:.1f})",
        )
