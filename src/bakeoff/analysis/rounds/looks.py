"""The looks of a study: which contenders are closed, with which verdict, after which replicates.

Each look is a pure function of the scores, the plan and the looks before it. Its intervals hold
for all contenders and all looks at once, and the boundaries of the earlier looks stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from scipy import special

from bakeoff.analysis.bootstrap import Effect, Scores, difference_effect
from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.rounds.differences import (
    Difference,
    Noise,
    effect_noise,
    information_clock,
    pool_noise,
    pooled_difference,
)
from bakeoff.analysis.rounds.look import ContenderLook, Look
from bakeoff.analysis.rounds.look_boundaries import LookBoundaries
from bakeoff.analysis.rounds.plan import FUTILITY, RoundsPlan, rule_hash
from bakeoff.analysis.rounds.sample_sizes import SampleSizes, sample_sizes_needed

ITEMS, SEEDS = "items", "seeds"
"""What limits a contender without a verdict."""


def run_looks(
    contenders: Mapping[str, Scores],
    control: Scores,
    plan: RoundsPlan,
    *,
    ended: Collection[int] = (),
    made: Sequence[Look] = (),
    needs: bool = True,
) -> tuple[Look, ...]:
    """Return all looks that the scores allow, in order.

    A look is taken once the control and every open contender have the scores of its planned
    seeds. A seed whose trials failed never gets them: ``ended`` are the seeds of which none is to
    come, and a look then compares the replicates that a contender and the control have in common.
    With fewer than two of them (one, if a single one is planned) the contender is closed without a
    verdict. ``made`` are earlier looks that stand as they are. ``needs`` False skips the sample
    sizes that would settle a verdict.
    """
    looks = list(made)
    while (look := _next_look(contenders, control, plan, ended, looks, needs)) is not None:
        looks.append(look)
    return tuple(looks)


class _Tested(NamedTuple):
    """A contender's difference, its two normal scores and Holm's divisor of its equivalence."""

    difference: Difference
    z: float
    z_equivalence: float
    rank: int
    equivalent: bool


def _next_look(
    contenders: Mapping[str, Scores],
    control: Scores,
    plan: RoundsPlan,
    ended: Collection[int],
    made: Sequence[Look],
    needs: bool,
) -> Look | None:
    """Return the look after those that are made; None if it is not due."""
    still_open = made[-1].still_open if made else tuple(sorted(contenders))
    if not still_open or len(made) == len(plan.looks):
        return None
    seeds = plan.seeds[: plan.looks[len(made)]]
    awaited = set(seeds) - set(ended)
    present = {m: contenders[m] for m in still_open if m in contenders}
    if awaited and len(present) < len(still_open):
        return None
    if any(not awaited <= set(scores.seeds) for scores in (control, *present.values())):
        return None
    effects = _effects(present, control, seeds)
    # a closed contender keeps the noise that it had at its last look
    noises: dict[str, Noise] = {m: n for look in made for m, n in look.contenders.items()}
    noises |= {method: effect_noise(effect) for method, effect in effects.items()}
    pool = pool_noise(noises.values())
    clock = information_clock(noises.values(), pool)
    n_contenders = plan.n_contenders or len(made[0].open if made else contenders)
    bounds = LookBoundaries(plan, clock, n_contenders, made)
    differences = {m: pooled_difference(e, pool, plan.margin) for m, e in effects.items()}
    left = n_contenders - _count_equivalent(made)
    tested = _test_contenders(differences, plan.margin, left, bounds)
    is_last = len(made) + 1 == len(plan.looks)
    return Look(
        number=len(made) + 1,
        replicates=len(seeds),
        open=still_open,
        clock=clock,
        information=bounds.time,
        spent=bounds.spent,
        critical=_finite(bounds.critical),
        equivalence_critical={j: _finite(c) for j, c in bounds.equivalence.items()},
        contenders={m: _decide(t, bounds, plan, is_last, needs) for m, t in tested.items()},
        missing=tuple(m for m in still_open if m not in tested),
        rule=rule_hash(),
        draws=plan.draws,
        draw_seed=plan.draw_seed,
    )


def _effects(
    contenders: Mapping[str, Scores], control: Scores, seeds: Sequence[int]
) -> dict[str, Effect]:
    """Return the paired effects of the contenders that share enough replicates with the control."""
    effects = {}
    for method, scores in contenders.items():
        common = [s for s in seeds if s in scores.seeds and s in control.seeds]
        if len(common) >= min(2, len(seeds)):
            effects[method] = difference_effect(_select(scores, common), _select(control, common))
    return effects


def _select(scores: Scores, seeds: Sequence[int]) -> Scores:
    rows = [scores.seeds.index(s) for s in seeds]
    return Scores(tuple(seeds), scores.values[rows], scores.groups)


def _count_equivalent(made: Sequence[Look]) -> int:
    closed = [c for look in made for c in look.contenders.values()]
    return sum(c.verdict is Verdict.EQUIVALENT for c in closed)


def _test_contenders(
    differences: Mapping[str, Difference], margin: float, left: int, bounds: LookBoundaries
) -> dict[str, _Tested]:
    """Test all contenders; ``left`` of the study's are not yet equivalent.

    Holm's procedure: each contender that turns out equivalent leaves its share of alpha to the
    others (with spending: Maurer and Bretz 2013, https://doi.org/10.1080/19466315.2013.807748).
    """
    scores = {m: (d.z(), d.z_equivalence(margin)) for m, d in differences.items()}
    ranks: dict[str, int] = {}
    while True:
        rank = max(1, left - len(ranks))
        critical = bounds.equivalence[rank]
        found = [m for m in scores if m not in ranks and scores[m][1] > critical]
        if not found:
            break
        ranks |= dict.fromkeys(found, rank)
    return {
        m: _Tested(differences[m], *scores[m], ranks.get(m, rank), m in ranks) for m in differences
    }


def _decide(
    tested: _Tested, bounds: LookBoundaries, plan: RoundsPlan, is_last: bool, needs: bool
) -> ContenderLook:
    """Return a contender's numbers and verdict; equivalence wins over better and worse."""
    difference, critical = tested.difference, bounds.critical
    half = difference.half_width(critical) if critical < math.inf else None
    verdict, reason, needed = None, None, SampleSizes()
    if tested.equivalent:
        verdict = Verdict.EQUIVALENT
    elif tested.z > critical:
        above = difference.estimate > 0
        verdict = Verdict.BETTER if above == (plan.better == "higher") else Verdict.WORSE
    elif is_last or _is_futile(tested, bounds, plan):
        verdict = Verdict.INCONCLUSIVE
        reason = _limit(difference, plan.most)
        if needs:
            boundary = bounds.expected_critical, bounds.expected_equivalence(tested.rank)
            needed = sample_sizes_needed(difference, plan, *boundary)
    return ContenderLook(
        estimate=difference.estimate,
        low=None if half is None else difference.estimate - half,
        high=None if half is None else difference.estimate + half,
        z=tested.z,
        z_equivalence=tested.z_equivalence,
        item_variance=difference.item_variance,
        noise=difference.noise,
        seed_variance=difference.seed_variance,
        pooled_variance=difference.pooled_variance,
        seed_df=difference.seed_df,
        item_df=difference.item_df,
        n_seeds=difference.n_seeds,
        rank=tested.rank,
        verdict=verdict,
        reason=reason,
        items_needed=needed.items,
        seeds_needed=needed.seeds,
    )


def _is_futile(tested: _Tested, bounds: LookBoundaries, plan: RoundsPlan) -> bool:
    """Return whether a verdict at the last look is improbable, at the estimate and noise as seen.

    A look that spends nothing closes no contender, so that each has an interval when it closes.
    """
    if bounds.critical == math.inf:
        return False
    difference = tested.difference
    last = difference.variance_at(plan.most)
    now = difference.item_variance + difference.pooled_variance
    moves = math.sqrt(max(now - last, 1e-12 * now))
    if moves == 0:
        return True  # without any variance the last look would show the same
    distance, error = abs(difference.estimate), math.sqrt(last)
    found = bounds.expected_critical * error
    chance = special.ndtr((distance - found) / moves) + special.ndtr((-distance - found) / moves)
    room = plan.margin - bounds.expected_equivalence(tested.rank) * error
    if room > 0:
        within = special.ndtr((room - distance) / moves) - special.ndtr((-room - distance) / moves)
        chance += within
    return bool(chance < FUTILITY)


def _limit(difference: Difference, most: int) -> str | None:
    """Return what gives the larger part of the variance at the last look, items or seeds."""
    if not difference.seed_noise_known:
        return None
    noise = difference.noise * difference.n_seeds / most
    between = difference.pooled_variance * difference.n_seeds / most
    return ITEMS if difference.stable_variance + noise > between + noise else SEEDS


def _finite(critical: float) -> float | None:
    return critical if critical < math.inf else None
