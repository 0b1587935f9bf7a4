"""Centre the grids of learning rates on the size of the base.

The catalog's priors are for bases of billions of parameters; a smaller base needs larger rates. For
full fine-tuning the rate falls with the square root of the number of parameters, as in the Tinker
cookbook: 2e-5 for 7 billion parameters is 1.4e-4 for 135 million and 3.5e-4 for 23 million, where
our searches found 1e-4 and 3e-4. For the other methods it falls with the fourth root: LoRA's prior
then differs by less than 10 % from the cookbook's rule for Llama, 5e-4 (2000 / width)^0.781, at 1,
3, 8 and 70 billion parameters.

The number of steps is not used: from 78 to 6,170 steps the best rate falls by 3.1 times (arXiv
2602.04998), less than the step of a grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bakeoff.core.format import format_learning_rate
from bakeoff.core.trial import MethodEntry
from bakeoff.study.config import StudySpec

EXPONENTS = {"full": 0.5}
"""Power of the base's size that a family's best rate falls with."""
USUAL_EXPONENT = 0.25
SIZES = (1e7, 1e11)
"""Sizes of bases beyond which the rule is not extrapolated."""
MOST_NAMED = 8
"""Methods that are named in a note."""


def centre_rate(entry: MethodEntry, parameters: int | None) -> MethodEntry:
    """Return the entry with its prior moved to a base of ``parameters``, to one digit.

    It is unchanged if the size of the base is unknown, or if the prior is for any base.
    """
    if parameters is None or entry.base_parameters is None:
        return entry
    size = min(max(float(parameters), SIZES[0]), SIZES[1])
    exponent = EXPONENTS.get(entry.family, USUAL_EXPONENT)
    rate = float(f"{entry.learning_rate * (entry.base_parameters / size) ** exponent:.0e}")
    origin = f"{entry.learning_rate:g} at {format_size(entry.base_parameters)} parameters"
    return dataclasses.replace(
        entry,
        learning_rate=rate,
        learning_rate_why=f"{origin}: {entry.learning_rate_why}",
        base_parameters=float(parameters),
    )


def centre_note(
    spec: StudySpec, entries: Sequence[MethodEntry], parameters: int | None
) -> str | None:
    """Return a note on the centres of the grids that depend on the base; None without such."""
    centred = [
        e
        for e in entries
        if e.base_parameters is not None
        and not any(table.learning_rates for table in spec.tables_of(e.name))
    ]
    if parameters is None or not centred:
        return None
    named = [f"{e.name} {format_learning_rate(e.learning_rate)}" for e in centred[:MOST_NAMED]]
    more = len(centred) - len(named)
    rates = ", ".join(named) + (f" and {more} more" if more else "")
    return f"centred for a base of {format_size(parameters)} parameters: {rates}"


def format_size(parameters: float) -> str:
    """Format a number of parameters: 22.7 M, 1.24 B."""
    in_billions = parameters >= 1e9
    return f"{parameters / (1e9 if in_billions else 1e6):.3g} {'B' if in_billions else 'M'}"
