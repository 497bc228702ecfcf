"""Whether a policy sees in its evaluation what it saw in its dataset."""

from __future__ import annotations

import logging

from deflow_vision.datasets.likeness import compare
from deflow_vision.datasets.store import Store, StoreError
from deflow_vision.envs.own import is_own
from deflow_vision.envs.pool import EnvPool

log = logging.getLogger(__name__)

NUM_FRAMES = 6
_NOT_CHECKED = "not checked whether frames are drawn here as in the dataset"


def check_drawing(pool: EnvPool, store: Store | None) -> None:
    """Draw a few states of the dataset in the environment, and warn if its frames are other ones.

    Takes `NUM_FRAMES` frames, and leaves the pool as before its first episode. Nothing is checked
    where observations are states, or where the dataset has no simulator states of OGBench's.

    Args:
        pool: the environments of an evaluation, before their first episode.
        store: the dataset of the policy; None where it cannot be found.
    """
    if pool.observation_dtype != "uint8":
        return
    if store is None:
        log.info("%s: the dataset is not here", _NOT_CHECKED)
        return
    if is_own(pool.env_id) or "qpos" not in store.train.side:
        log.info("%s: %s has no simulator states to draw", _NOT_CHECKED, store.path)
        return
    try:
        likeness = compare(store, pool.state_shapes(), pool.draw, NUM_FRAMES)
    except StoreError as error:
        log.warning("%s: %s", _NOT_CHECKED, error)
        return
    if likeness.alike:
        log.info("%s", likeness)
        return
    log.warning(
        "%s.\nThe simulator or the OpenGL here draws %s otherwise than it was drawn: in "
        "evaluations the policy sees frames unlike those of its dataset, and may do worse for that "
        "reason alone. To see the difference:\n"
        "  python scripts/data.py verify %s --render --picture worst.png",
        likeness,
        store.path,
        store.path,
    )
