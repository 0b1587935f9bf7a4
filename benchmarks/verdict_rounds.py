"""Whole studies for ``verdict.py``: from the search to the last look, through ``run_looks``.

A row is a kind of study: a world (``verdict_world.py``), the number of contenders, their true
differences and a design. Every study has a generator of its own, seeded by the row and the study's
number, so the results do not depend on the number of processes.
"""

from __future__ import annotations

import gc
import math
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from verdict_world import (
    ACCURACY,
    DISCORDANCE,
    Array,
    Groups,
    World,
    both_right,
    group_items,
    item_noise,
    one_search,
    plain_seeds,
    replicates,
    score_items,
    true_values,
)

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Verdict, compare
from bakeoff.analysis.power import StudyDesign
from bakeoff.analysis.promise import promise
from bakeoff.analysis.rounds import Look, RoundsPlan, run_looks

ROUNDS, EARLIER, NAIVE, INDEPENDENT = "rounds", "one search", "naive looks", "groups ignored"
"""Designs. *one search*: one seed's search, three fresh seeds and ``compare``, as bakeoff did
before. *naive looks*: every look at 5 %. *groups ignored*: items of a group as independent."""
EARLIER_SEEDS, EARLIER_DRAWS = 3, 1000
DRAWS = 20_000
"""Draws of the boundary of several contenders; 200,000 in the product."""
MARGIN = 3.0
LARGE = 4.0
"""Points from which a difference counts as one that should be found."""
PROMISED = "promise"
"""Section of the rows whose differences all should be found, with 80 % power."""
PROMISE = "as promised"
"""In place of differences: what the plan promises to find in 80 % of studies, up and down."""
SPREAD = (5.0, -5.0, 0.0, 3.0, -3.0, 8.0, -8.0, 0.0)
WORLDS = (
    World("LLM, seed SD 0.4", 0.4),
    World("LLM, seed SD 0.74", 0.74),
    World("LLM, seed SD 0.4, 50 validation items", 0.4, validation=50),
    World("small, seed SD 2", 2.0, half_width=0.5),
    World("short, noisy rung, seed SD 2", 2.0, 480, 160, 0.5, early=5.0),
    World("short, wild above the best rate", 1.0, 480, 160, 0.5, early=5.0, wild=4.0),
)
COUNTS = (1, 3, 7, 12)
NULL = ("null", ROUNDS)
CHUNK = 25
"""Studies a task."""
# The differences at which ``promise`` is asked again for the noise at what it has promised.
PROMISE_STEPS = 3


@dataclass(frozen=True)
class Row:
    """A kind of study. ``differences`` are in points, repeated to fill the contenders.

    With ``own_rates`` each method's best rate lies elsewhere, which adds to the differences.
    """

    section: str
    world: World
    n_contenders: int
    differences: tuple[float, ...] | str = (0.0,)
    design: str = ROUNDS
    own_rates: bool = False
    most: int = 16
    groups: Groups | None = None

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of replicates at the looks, by the rule of ``planned_looks``."""
        first = 3 if self.n_contenders > 2 else 5
        return (*(n for n in (3, 5, 8, 12) if first <= n < self.most), self.most)


class Outcome(NamedTuple):
    """What a contender got; the interval in fractions."""

    verdict: Verdict
    low: float
    high: float
    replicates: int


class Counts(NamedTuple):
    """What one study gave: whether any contender is wrong, and shares of the contenders."""

    false: bool
    covered: bool
    false_equivalent: bool
    large: int
    found: int
    equivalent: float
    inconclusive: float
    replicates: float
    control_replicates: float
    half_width: float


class Rate(NamedTuple):
    """A share of studies with its Monte Carlo standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Summary:
    """What a row gave; ``differences`` in points, as used."""

    row: Row
    differences: tuple[float, ...]
    n_studies: int
    false: Rate
    covered: Rate
    false_equivalent: Rate
    found: Rate | None
    equivalent: float
    inconclusive: float
    replicates: float
    control_replicates: float
    half_width: float


def simulate(rows: Sequence[Row], n_studies: int, seed: int, workers: int) -> Iterator[Summary]:
    """Simulate the rows' studies and summarise each row, in order."""
    told = [replace(row, differences=_differences(row)) for row in rows]
    tasks = [
        (row, seed, start, min(CHUNK, n_studies - start))
        for row in told
        for start in range(0, n_studies, CHUNK)
    ]
    chunks = -(-n_studies // CHUNK)
    if workers <= 1:
        counts = (_simulate_chunk(*task) for task in tasks)
        yield from (_summary(*pair, counts, chunks) for pair in zip(rows, told, strict=True))
        return
    with ProcessPoolExecutor(workers, initializer=gc.freeze) as pool:
        counts = pool.map(_simulate_chunk, *zip(*tasks, strict=True))
        yield from (_summary(*pair, counts, chunks) for pair in zip(rows, told, strict=True))


def all_rows() -> list[Row]:
    """Return the rows of the whole table."""
    llm, llm74, _, small, *_ = WORLDS
    rows = [Row("null", w, k, design=d) for d in (ROUNDS, EARLIER) for w in WORLDS for k in COUNTS]
    rows += [Row("-8 to 8", w, k, SPREAD, own_rates=True) for w in WORLDS for k in COUNTS]
    rows += [
        Row("at the margin", replace(w, n_items=n), k, (MARGIN, -MARGIN))
        for w in (llm, llm74, small)
        for n in (1319, 5000)
        for k in (1, 3, 7)
    ]
    rows += [
        Row(PROMISED, seeds_only(n, sd), k, PROMISE)
        for k in (1, 3, 7)
        for n, sd in ((480, 0.74), (480, 2.0), (1319, 0.4), (1319, 0.74), (1319, 2.0), (1319, 5.0))
    ]
    rows += [
        Row("groups", seeds_only(480, 0.74), k, groups=Groups(count, equal, icc))
        for count in (10, 30, 100)
        for equal in (True, False)
        for icc in (0.1, 0.3)
        for k in (1, 3, 7)
    ]
    demo = replace(seeds_only(480, 3.5), wild_control=5.0)
    rows += [Row("demo", demo, 7, (10.8,), design, most=8) for design in (ROUNDS, EARLIER)]
    thirty = Groups(30, True, 0.1)
    return [
        *rows,
        Row("teeth", seeds_only(480, 0.74), 3, design=INDEPENDENT, groups=thirty),
        Row("teeth", seeds_only(1319, 5.0), 1, design=NAIVE),
    ]


def seeds_only(n_items: int, seed_sd: float) -> World:
    """Return a world without a search: replicates differ by their seeds."""
    return World(f"seeds only, SD {seed_sd:g}", seed_sd, n_items, search=False)


def _simulate_chunk(row: Row, seed: int, start: int, count: int) -> list[Counts]:
    # a hash of the row that is the same in every process
    key = zlib.crc32(repr(replace(row, design=ROUNDS)).encode())
    return [_study(row, np.random.default_rng([seed, key, start + i])) for i in range(count)]


def _study(row: Row, rng: np.random.Generator) -> Counts:
    world, earlier = row.world, row.design == EARLIER
    n_methods, n_seeds = row.n_contenders + 1, EARLIER_SEEDS if earlier else row.looks[-1]
    gains = np.concatenate([[0.0], np.resize(np.array(row.differences), row.n_contenders)])
    truth = gains[1:]
    if world.search:
        best = rng.normal(0.0, world.offset, n_methods if row.own_rates else 1)
        best = np.resize(best, n_methods)
        points = (one_search if earlier else replicates)(world, best, n_seeds, rng)
        if row.own_rates:
            at_best = true_values(world, best, searched_once=earlier)
            truth = truth + at_best[1:] - at_best[0]
    else:
        points = plain_seeds(world, n_methods, n_seeds, rng)
    groups = None if row.groups is None else group_items(row.groups, world.n_items, rng)
    values = score_items(points + gains[:, None], world.n_items, rng, groups)
    index = None if groups is None or row.design == INDEPENDENT else groups[0]
    scores = [Scores(tuple(range(1, n_seeds + 1)), v, index) for v in values]
    named = {f"m{i}": s for i, s in enumerate(scores[1:])}
    outcomes = _analyse(row, named, scores[0], rng)
    return _count(outcomes, truth, least=0.0 if row.section == PROMISED else LARGE)


def _analyse(
    row: Row, contenders: dict[str, Scores], control: Scores, rng: np.random.Generator
) -> list[Outcome]:
    margin = MARGIN / 100
    if row.design == EARLIER:
        compared = compare(
            contenders,
            control,
            margin=margin,
            better="higher",
            rng=rng,
            draws=EARLIER_DRAWS,
            needs=False,
        )
        return [
            _outcome(c.verdict, c.difference.low, c.difference.high, EARLIER_SEEDS)
            for c in compared.values()
        ]
    plan = RoundsPlan(control.seeds, row.looks, margin, "higher", draws=DRAWS)
    if row.design == NAIVE:
        return _naive_looks(contenders, control, plan)
    return _last_outcomes(run_looks(contenders, control, plan, needs=False))


def _naive_looks(contenders: dict[str, Scores], control: Scores, plan: RoundsPlan) -> list[Outcome]:
    """Return the outcomes of looks that each take 5 % as if it were the only one."""
    outcomes: dict[str, Outcome] = {}
    for most in plan.looks:
        single = replace(plan, looks=(most,), alpha=0.05)
        looks = run_looks(contenders, control, single, ended=control.seeds, needs=False)
        for method, outcome in zip(contenders, _last_outcomes(looks), strict=True):
            before = outcomes.get(method)
            if before is None or before.verdict is Verdict.INCONCLUSIVE:
                outcomes[method] = outcome
    return list(outcomes.values())


def _last_outcomes(looks: Sequence[Look]) -> list[Outcome]:
    """Return each contender's outcome at the look that closed it."""
    last = {m: (look, c) for look in looks for m, c in look.contenders.items()}
    outcomes = []
    for method in sorted(last, key=lambda m: int(m[1:])):
        look, own = last[method]
        verdict = Verdict.INCONCLUSIVE if own.verdict is None else own.verdict
        outcomes.append(_outcome(verdict, own.low, own.high, look.replicates))
    return outcomes


def _outcome(verdict: Verdict, low: float | None, high: float | None, n: int) -> Outcome:
    return Outcome(verdict, -1.0 if low is None else low, 1.0 if high is None else high, n)


def _count(outcomes: Sequence[Outcome], truth: Array, least: float = LARGE) -> Counts:
    """Count a study's outcomes; differences from ``least`` points on should be found."""
    told = {Verdict.BETTER: 1, Verdict.WORSE: -1}
    signs = np.array([told.get(o.verdict, 0) for o in outcomes])
    equivalent = np.array([o.verdict is Verdict.EQUIVALENT for o in outcomes])
    low, high = (100 * np.array([getattr(o, side) for o in outcomes]) for side in ("low", "high"))
    used = [o.replicates for o in outcomes]
    large = np.abs(truth) >= least - 1e-9
    return Counts(
        false=bool(np.any((signs != 0) & (signs != np.sign(truth)))),
        covered=bool(np.all((low <= truth + 1e-9) & (truth - 1e-9 <= high))),
        false_equivalent=bool(np.any(equivalent & (np.abs(truth) >= MARGIN - 1e-9))),
        large=int(large.sum()),
        found=int(np.sum(large & (signs == np.sign(truth)))),
        equivalent=float(equivalent.mean()),
        inconclusive=float(np.mean(~equivalent & (signs == 0))),
        replicates=float(np.mean(used)),
        control_replicates=float(max(used)),
        half_width=float(np.median((high - low) / 2)),
    )


def _summary(row: Row, told: Row, counts: Iterator[list[Counts]], chunks: int) -> Summary:
    every = [c for _ in range(chunks) for c in next(counts)]
    columns = {name: np.array([getattr(c, name) for c in every]) for name in Counts._fields}
    assert not isinstance(told.differences, str)
    shares = [c.found / c.large for c in every if c.large]
    return Summary(
        row,
        told.differences,
        len(every),
        false=rate(columns["false"]),
        covered=rate(columns["covered"]),
        false_equivalent=rate(columns["false_equivalent"]),
        found=rate(np.array(shares)) if shares else None,
        half_width=float(np.median(columns["half_width"])),
        **{
            name: float(columns[name].mean())
            for name in ("equivalent", "inconclusive", "replicates", "control_replicates")
        },
    )


def misses(summaries: Sequence[Summary]) -> list[str]:
    """Return the acceptance criteria that rows of whole studies miss, one line each."""
    lines = [line for s in summaries for line in _row_misses(s)]
    null = [100 * s.false.value for s in summaries if (s.row.section, s.row.design) == NULL]
    if null and np.mean(null) > 5.0:
        lines.append(f"null: mean {np.mean(null):.1f} % false, at most 5.0")
    return lines


def _row_misses(summary: Summary) -> list[str]:
    row, groups = summary.row, summary.row.groups
    false, covered, equivalent = (
        100 * r.value for r in (summary.false, summary.covered, summary.false_equivalent)
    )
    found = 100 * summary.found.value if summary.found is not None else math.nan
    checks: list[tuple[bool, str]] = []
    if (row.section, row.design) == NULL:
        most = 8.0 if row.world.validation < 100 else 6.5
        checks = [(false <= most, f"false {false:.1f} %, at most {most}")]
        checks += [(covered >= 94, f"coverage {covered:.1f} %, at least 94")]
    elif row.section == "at the margin":
        checks = [(equivalent <= 6, f"false equivalent {equivalent:.1f} %, at most 6")]
    elif row.section == PROMISED:
        checks = [(75 <= found <= 86, f"found {found:.1f} %, 75 to 86")]
    elif (row.section, row.design) == ("demo", ROUNDS):
        checks = [(found >= 80, f"found {found:.1f} %, at least 80")]
    elif row.section == "groups" and groups is not None:
        most = 6.5 if groups.count >= 30 else 8.0
        checks = [(false <= most, f"false {false:.1f} %, at most {most}")]
    elif row.section == "teeth" or (row.design == EARLIER and row.world == WORLDS[1]):
        least = 13.0 if row.design == INDEPENDENT else 9.0
        shows = row.section == "teeth" or row.n_contenders == 7
        checks = [(not shows or false >= least, f"false {false:.1f} %, at least {least}")]
    name = f"{row.section}, {row.design}, {row.world.name}, {row.n_contenders} contenders"
    return [f"{name}: {text}" for passes, text in checks if not passes]


def rate(values: Array) -> Rate:
    """Return the mean of a share of studies with its standard error."""
    # an SD of 0 out of few studies is no certainty: at least what one case more would give
    spread = max(float(np.std(values)), 1 / math.sqrt(len(values)) / 2)
    return Rate(float(np.mean(values)), spread / math.sqrt(len(values)))


def _differences(row: Row) -> tuple[float, ...]:
    """Return the row's true differences in points; those that a plan promises are computed."""
    if not isinstance(row.differences, str):
        return row.differences
    found = 0.0
    for _ in range(PROMISE_STEPS):
        item_sd, rest_sd = item_spread(found / 100)
        design = StudyDesign(
            row.world.n_items, 1, row.n_contenders, item_sd, row.world.seed_sd / 100, rest_sd
        )
        found = 100 * promise(design, row.looks, MARGIN / 100).last.detectable
    return (found, -found)


def item_spread(gain: float, discordance: float = DISCORDANCE) -> tuple[float, float]:
    """Return the SDs over items of a difference: what stays at every seed, and what is new.

    They grow with the gain; these are the means of up and down.
    """
    noise = item_noise(discordance)
    within = noise.item + noise.taste
    items, rest = [], []
    for g in (gain, -gain):
        own, control = both_right(within, g, g), both_right(within)
        items.append(own + control - 2 * both_right(noise.item, g) - g**2)
        rest.append(2 * ACCURACY + g - own - control)
    return math.sqrt(np.mean(items)), math.sqrt(np.mean(rest))
