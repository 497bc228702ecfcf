"""Seeds as a pure function of what they are for: the draws of step k depend on (seed, k) alone."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *key: str | int) -> int:
    """A 63-bit seed for the purpose `key` of the run `seed`.

    Different keys give independent streams, so that (say) the number of evaluations never changes
    the training batches. Stable across processes, machines and Python versions.

    Args:
        seed: the run's seed.
        key: the purpose and its indices, such as `("noise", step, stream)`.

    Returns:
        An integer in [0, 2**63), fit for `numpy.random.default_rng` and `torch.Generator`.
    """
    text = repr((int(seed), *key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
