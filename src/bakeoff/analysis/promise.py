"""The plan's promise: what a study can show by its first and last look, before it runs.

The inputs are numbers of items, replicates and contenders and their noise; no scores are needed.
The looks of studies are simulated with the verdict's own boundaries and interval widths, so the
promise includes early stopping and the uncertainty of the variance of few replicates.

Units: differences, half widths and SDs are in the metric's unit (0.01 is a point of an accuracy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from bakeoff.analysis.error_distribution import FloatArray, VarianceComponents, half_width
from bakeoff.analysis.group_variance import IntArray
from bakeoff.analysis.power import (
    MAX_ITEMS,
    OWN_CASES,
    POWER,
    PUBLISHED_DISCORDANCE,
    SEED_SD,
    StudyDesign,
    likely_half_widths,
    share_beyond,
)
from bakeoff.analysis.rounds.boundaries import (
    ExactCrossing,
    boundary,
    difference_crossing,
    information_times,
)
from bakeoff.analysis.rounds.plan import ALPHA, CLOCK_SHARE, DRAW_SEED, FUTILITY

BoolArray = NDArray[np.bool_]

# Half of the discordance of two methods at one seed is the same at every seed (docs/verdicts.md).
STABLE_ITEM_SD = REST_ITEM_SD = math.sqrt(PUBLISHED_DISCORDANCE / 2)
# SD of a replicate's score over that of a seed at a fixed setting: the search of each replicate
# adds to it, and less so if two settings are trained to the end (simulated: docs/verdicts.md).
TWO_FINALISTS_SD, ONE_FINALIST_SD = 1.1, 1.4
BOUNDARY_DRAWS = 60_000
"""Draws of the boundary; the study itself takes more, to the same within 0.01."""
SIMULATED = 6000
"""Contenders simulated, in as many studies as that takes; the error of a share is 0.5 %."""


class LookPromise(NamedTuple):
    """Half width of an interval at one look, and the difference that its interval excludes.

    ``detectable`` is the smallest true difference found in 80 % of studies by then.
    """

    replicates: int
    half_width: float
    detectable: float


@dataclass(frozen=True)
class Promise:
    """What a study can show.

    ``floor`` is the half width that no number of replicates narrows. ``equivalence_power`` is the
    chance that a contender that truly equals the control is called equivalent by the last look, and
    ``equivalence_items`` the number of items at which that is 80 %, None if none is.
    ``equivalence_possible`` is whether any number of replicates could show it with these items.
    ``expected_null`` and ``expected_detectable`` are mean numbers of replicates of a contender, and
    ``control_null`` and ``control_detectable`` those of the control, if no contender differs, and
    if all differ by the detectable difference.
    """

    first: LookPromise
    last: LookPromise
    floor: float
    equivalence_power: float
    equivalence_possible: bool
    equivalence_items: int | None
    expected_null: float
    control_null: float
    expected_detectable: float
    control_detectable: float
    design_effect: float


class Boundaries(NamedTuple):
    """Critical values by look.

    ``two_sided`` is for a difference to 0; ``last_step`` and ``first_step`` are for equivalence, at
    Holm's last and first step.
    """

    two_sided: tuple[float, ...]
    last_step: tuple[float, ...]
    first_step: tuple[float, ...]


class Thresholds(NamedTuple):
    """Half widths at the boundaries by look, ``[cases]`` each: of equally likely seed variances."""

    two_sided: list[FloatArray]
    last_step: list[FloatArray]
    first_step: list[FloatArray]


class Outcome(NamedTuple):
    """Shares of the contenders, and mean numbers of replicates."""

    found: float
    equivalent: float
    replicates: float
    control: float


def replicate_sd(n_finalists: int) -> float:
    """Return the SD of a replicate's score if ``n_finalists`` settings are trained to the end."""
    return SEED_SD * (TWO_FINALISTS_SD if n_finalists > 1 else ONE_FINALIST_SD)


def planned_design(
    n_items: int, n_contenders: int, n_finalists: int, design_effect: float, item_df: float
) -> StudyDesign:
    """Return a design with the published noise of scores of 0 and 1."""
    return StudyDesign(
        n_items, 1, n_contenders, STABLE_ITEM_SD, replicate_sd(n_finalists), REST_ITEM_SD,
        design_effect, item_df,
    )  # fmt: skip


@lru_cache(maxsize=8)
def promise(
    design: StudyDesign, looks: tuple[int, ...], margin: float, alpha: float = ALPHA
) -> Promise:
    """Return what a study with these looks (numbers of replicates, ascending) can show.

    The design's number of seeds is not used.
    """
    bounds = _boundaries(design, looks, alpha)
    study = _Simulator(design, looks, margin, bounds)
    last = study.detectable()
    null, different = study.outcome(0.0), study.outcome(last)
    items = np.array([[design.item_variance], [_item_df(design)], [0.0], [1.0]])
    limit = VarianceComponents(*items)  # of infinitely many replicates
    return Promise(
        first=study.look_promise(0),
        last=study.look_promise(-1)._replace(detectable=last),
        floor=float(half_width(bounds.two_sided[-1], limit)[0]),
        equivalence_power=null.equivalent,
        equivalence_possible=margin > float(half_width(bounds.first_step[-1], limit)[0]),
        equivalence_items=_equivalence_items(design, looks, margin, alpha, null.equivalent),
        expected_null=null.replicates,
        control_null=null.control,
        expected_detectable=different.replicates,
        control_detectable=different.control,
        design_effect=design.design_effect,
    )


def _item_df(design: StudyDesign) -> float:
    return max(design.n_items - 1.0, 1.0) if design.item_df is None else design.item_df


def _boundaries(design: StudyDesign, looks: Sequence[int], alpha: float) -> Boundaries:
    """Return the boundaries at the information clock that the design's noise implies."""
    one = replace(design, n_seeds=1)
    per_seed = one.between_seed_variance + one.rest_variance
    clock = CLOCK_SHARE * design.item_variance / per_seed if per_seed > 0 else math.inf
    times = information_times(clock, looks)
    k = design.n_contenders
    of_difference = difference_crossing(clock, looks, k, BOUNDARY_DRAWS, DRAW_SEED)
    of_margin = ExactCrossing(clock, looks, two_sided=False)
    levels = ((of_difference, alpha), (of_margin, alpha), (of_margin, alpha / k))
    return Boundaries(*(boundary([c] * len(looks), times, level) for c, level in levels))


class _Simulator:
    """Simulated studies of one design, always with the same random numbers."""

    def __init__(
        self, design: StudyDesign, looks: Sequence[int], margin: float, bounds: Boundaries
    ) -> None:
        self.designs = [replace(design, n_seeds=n) for n in looks]
        self.looks, self.margin, self.bounds = tuple(looks), margin, bounds
        self.widths = Thresholds(
            *(
                [likely_half_widths(d, c) for d, c in zip(self.designs, values, strict=True)]
                for values in bounds
            )
        )
        self._draw(np.random.default_rng(0))

    def _draw(self, rng: np.random.Generator) -> None:
        """Draw the errors of the estimates at each look, and a case of each look's half widths."""
        design, n_contenders = self.designs[0], self.designs[0].n_contenders
        n_studies = max(SIMULATED // n_contenders, 500)
        size = (n_studies, n_contenders)

        def differences() -> FloatArray:
            values = rng.standard_normal((n_studies, n_contenders + 1))
            return np.asarray((values[:, 1:] - values[:, :1]) / math.sqrt(2))

        one = replace(design, n_seeds=1)
        seed_sd = math.sqrt(one.between_seed_variance + one.rest_variance)
        items = math.sqrt(design.item_variance) * differences()
        total, self.errors, before = np.zeros(size), [], 0
        for n in self.looks:
            total = total + math.sqrt(n - before) * seed_sd * differences()
            self.errors.append(items + total / n)
            before = n
        shared, own = rng.random((n_studies, 1)), rng.random(size)
        self.cases = [_pick_cases(w.size, n_contenders, shared, own) for w in self.widths.two_sided]

    def outcome(self, true_difference: float) -> Outcome:
        """Return how the studies end if all contenders differ by ``true_difference``."""
        size = self.errors[0].shape
        open_, found, equivalent = (np.full(size, v) for v in (True, False, False))
        used = np.full(size, self.looks[0])
        for k, n in enumerate(self.looks):
            used = np.where(open_, n, used)
            estimate = true_difference + self.errors[k]
            equivalent |= open_ & self._shows_equivalence(k, estimate, equivalent)
            differs = open_ & ~equivalent & (np.abs(estimate) > self._width(k, "two_sided"))
            found |= differs & (estimate > 0)
            open_ &= ~equivalent & ~differs
            if k < len(self.looks) - 1:
                open_ &= self._chance(k, estimate) >= FUTILITY
        return Outcome(
            float(found.mean()), float(equivalent.mean()),
            float(used.mean()), float(used.max(axis=1).mean()),
        )  # fmt: skip

    def detectable(self) -> float:
        """Return the smallest true difference that is found by the last look, with 80 % power."""
        most = 10 * max(float(w.max()) for w in self.widths.two_sided)
        if most == 0:
            return 0.0
        return _bisect(lambda d: self.outcome(d).found >= POWER, most)

    def look_promise(self, k: int) -> LookPromise:
        """Return the promise of one look, if it were the only chance to find a difference."""
        widths, scale = self.widths.two_sided[k], self.designs[k].standard_error
        most = float(widths.max()) + 10 * scale
        found = _bisect(lambda d: share_beyond(d, widths, scale) >= POWER, most)
        return LookPromise(self.looks[k], float(np.median(widths)), found)

    def _width(self, k: int, boundary: str) -> FloatArray:
        return np.asarray(getattr(self.widths, boundary)[k][self.cases[k]])

    def _shows_equivalence(self, k: int, estimate: FloatArray, before: BoolArray) -> BoolArray:
        """Return which contenders are equivalent by Holm's steps; earlier ones count as steps."""
        last, first = self._width(k, "last_step"), self._width(k, "first_step")
        n, shown = estimate.shape[1], before.copy()
        room = self.margin - np.abs(estimate)
        while True:
            left = np.maximum(n - shown.sum(axis=1, keepdims=True), 1)
            # the width grows almost linearly in the logarithm of the contenders that are left
            share = np.log(left) / math.log(n) if n > 1 else np.zeros_like(left)
            new = ~shown & (room > last + share * (first - last))
            if not new.any():
                return shown
            shown |= new

    def _chance(self, k: int, estimate: FloatArray) -> FloatArray:
        """Return the chance of a verdict at the last look, as seen from look ``k``."""
        now, end = self.designs[k].standard_error, self.designs[-1].standard_error
        rest = math.sqrt(max(now**2 - end**2, 1e-18))
        far = self.bounds.two_sided[-1] * end
        near = self.margin - self.bounds.first_step[-1] * end
        different = special.ndtr((np.abs(estimate) - far) / rest)
        if near <= 0:
            return np.asarray(different)
        equal = special.ndtr((near - estimate) / rest) - special.ndtr((-near - estimate) / rest)
        return np.asarray(different + equal)


def _pick_cases(n_cases: int, n_contenders: int, shared: FloatArray, own: FloatArray) -> IntArray:
    """Return indices of cases, ``[studies, contenders]``, from uniform deviates."""
    n_own = OWN_CASES if n_contenders > 1 and n_cases > 1 else 1
    index = np.floor(shared * (n_cases // n_own)) * n_own + np.floor(own * n_own)
    return np.asarray(index.astype(np.int64))


def _bisect(holds: Callable[[float], bool], most: float) -> float:
    """Return the smallest value up to ``most`` from which on ``holds``, to 0.1 % of ``most``."""
    low, high = 0.0, most
    while high - low > 1e-4 * most:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _equivalence_items(
    design: StudyDesign, looks: Sequence[int], margin: float, alpha: float, now: float
) -> int | None:
    """Return how many items show equivalence at a true difference of 0 with 80 % power."""
    if now >= POWER:
        return design.n_items

    def settled_at(low: float, high: float, bounds: Boundaries, tolerance: float) -> float | None:
        """Return the number between ``low`` and ``high``, to a relative tolerance."""

        def excess(log_n: float) -> float:
            n_items = round(math.exp(log_n))
            df = _item_df(design) * n_items / design.n_items
            larger = replace(design, n_items=n_items, item_df=df)
            return _Simulator(larger, looks, margin, bounds).outcome(0.0).equivalent - POWER

        first, last = math.log(low), math.log(high)
        if excess(last) < 0:
            return None
        if excess(first) >= 0:
            return low
        return math.exp(optimize.brentq(excess, first, last, xtol=tolerance))

    bounds = _boundaries(design, looks, alpha)
    rough = settled_at(design.n_items, MAX_ITEMS, bounds, 0.1)
    if rough is None:
        return None
    bounds = _boundaries(replace(design, n_items=round(rough)), looks, alpha)
    low, high = max(design.n_items, 0.7 * rough), 1.4 * rough
    return math.ceil(settled_at(low, high, bounds, 0.02) or high)
