"""One look at a study's results, as it is stored: its numbers survive JSON to the bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bakeoff.analysis.compare import Verdict

INFINITE = "inf"
"""JSON has no infinity: the score of a difference without any variance."""


class VarianceParts:
    """The parts of the variance of a mean difference over ``n_seeds`` replicates.

    ``item_variance`` has ``noise`` in it; ``pooled_variance`` is the part between replicates.
    """

    item_variance: float
    noise: float
    pooled_variance: float
    n_seeds: int

    @property
    def stable_variance(self) -> float:
        """The items' part of the variance that no further replicate reduces."""
        return max(0.0, self.item_variance - self.noise)

    @property
    def replicate_variance(self) -> float:
        """The variance that a single replicate has beside the stable part."""
        return (self.pooled_variance + self.noise) * self.n_seeds


@dataclass(frozen=True)
class ContenderLook(VarianceParts):
    """A contender's difference to the control at a look, method - control.

    ``low`` and ``high`` bound the interval, None where the look spends no alpha. ``z`` is the
    normal score of the difference, ``z_equivalence`` that of its distance from the margin.
    ``item_variance``, with ``noise`` in it, and ``seed_variance`` are the parts of the variance of
    the mean over ``n_seeds`` replicates; ``seed_variance`` is the contender's own, before pooling,
    and ``pooled_variance`` the one that its interval uses, with ``seed_df`` degrees of freedom.
    ``rank`` is the number of contenders by which Holm's test of equivalence divided alpha.

    ``verdict`` is None while the contender is open. Without one, ``reason`` is what limits it:
    ``items`` or ``seeds``; ``items_needed`` and ``seeds_needed`` are how many would settle it.
    """

    estimate: float
    low: float | None
    high: float | None
    z: float
    z_equivalence: float
    item_variance: float
    noise: float
    seed_variance: float
    pooled_variance: float
    seed_df: float
    item_df: float
    n_seeds: int
    rank: int
    verdict: Verdict | None = None
    reason: str | None = None
    items_needed: int | None = None
    seeds_needed: int | None = None


@dataclass(frozen=True)
class Look:
    """One look: the information, the boundary and every open contender's numbers.

    ``open`` are the contenders open before the look, ``clock`` the items' part lambda in units of
    one replicate's variance, ``information`` the share of the final precision, ``spent`` the alpha
    spent so far. ``critical`` is the two-sided critical value and ``equivalence_critical`` the
    one-sided ones at alpha / j for j contenders (1, 2, ...); None where the look spends nothing.
    A contender with fewer than two replicates in common with the control is in ``missing`` and
    has no numbers. ``rule``, ``draws`` and ``draw_seed`` say how the look is computed again.
    """

    number: int
    replicates: int
    open: tuple[str, ...]
    clock: float
    information: float
    spent: float
    critical: float | None
    equivalence_critical: Mapping[int, float | None]
    contenders: Mapping[str, ContenderLook]
    missing: tuple[str, ...]
    rule: str
    draws: int
    draw_seed: int

    @property
    def still_open(self) -> tuple[str, ...]:
        """The contenders without a verdict after the look."""
        return tuple(m for m in self.open if m in self.contenders and self._is_open(m))

    def _is_open(self, method: str) -> bool:
        return self.contenders[method].verdict is None

    def to_json(self) -> dict[str, Any]:
        """Return the look as JSON values."""
        values = asdict(self)
        contenders: dict[str, dict[str, Any]] = values.pop("contenders")
        return {
            **values,
            "open": list(self.open),
            "missing": list(self.missing),
            "equivalence_critical": {str(j): c for j, c in self.equivalence_critical.items()},
            "contenders": {
                method: {key: _to_json(value) for key, value in numbers.items()}
                for method, numbers in contenders.items()
            },
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Look:
        """Return the look that ``to_json`` has written."""
        return cls(
            **{
                **values,
                "open": tuple(values["open"]),
                "missing": tuple(values["missing"]),
                "equivalence_critical": {
                    int(j): c for j, c in values["equivalence_critical"].items()
                },
                "contenders": {
                    method: _contender_from_json(numbers)
                    for method, numbers in values["contenders"].items()
                },
            }
        )


def _contender_from_json(numbers: Mapping[str, Any]) -> ContenderLook:
    values = {key: _from_json(value) for key, value in numbers.items()}
    verdict = numbers["verdict"]
    return ContenderLook(**{**values, "verdict": None if verdict is None else Verdict(verdict)})


def _to_json(value: Any) -> Any:
    if isinstance(value, Verdict):
        return value.value
    if isinstance(value, float) and math.isinf(value):
        return INFINITE if value > 0 else f"-{INFINITE}"
    return value


def _from_json(value: Any) -> Any:
    return float(value) if value in (INFINITE, f"-{INFINITE}") else value
