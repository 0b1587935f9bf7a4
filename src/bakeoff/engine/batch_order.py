"""Which examples make up which step: decided by the seed alone, so it is equal for all methods."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def step_indices(
    n_examples: int, batch_size: int, seed: int, start: int = 0
) -> Iterator[tuple[int, ...]]:
    """Yield the example indices of each step from step ``start`` on, for ever.

    Each pass over the data is a fresh permutation; a step may span two passes, so that every step
    has exactly ``batch_size`` examples and no example is seen twice before all were seen once.
    """
    rng = np.random.default_rng([seed, 0x0DE4])
    waiting: list[int] = []
    gone = start * batch_size
    while True:
        while gone:
            waiting.extend(rng.permutation(n_examples).tolist())
            passed = min(gone, len(waiting))
            del waiting[:passed]
            gone -= passed
        while len(waiting) < batch_size:
            waiting.extend(rng.permutation(n_examples).tolist())
        yield tuple(waiting[:batch_size])
        del waiting[:batch_size]
