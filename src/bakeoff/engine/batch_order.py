"""Order of training examples, determined by the seed alone: the same for every method."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def step_indices(
    n_examples: int, batch_size: int, seed: int, start: int = 0
) -> Iterator[tuple[int, ...]]:
    """Yield the example indices of each step without end, from step ``start``.

    Each pass over the data is a new permutation. A step may span two passes: every step has exactly
    ``batch_size`` examples, and no example repeats before all others were seen as often.
    """
    rng = np.random.default_rng([seed, 0x0DE4])
    waiting: list[int] = []
    to_skip = start * batch_size
    while True:
        while to_skip:
            waiting.extend(rng.permutation(n_examples).tolist())
            skipped = min(to_skip, len(waiting))
            del waiting[:skipped]
            to_skip -= skipped
        while len(waiting) < batch_size:
            waiting.extend(rng.permutation(n_examples).tolist())
        yield tuple(waiting[:batch_size])
        del waiting[:batch_size]
