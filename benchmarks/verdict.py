"""Does a verdict keep its promises? Studies with known truth, simulated, verdicts counted.

    python benchmarks/verdict.py --workers 16 --out verdict.md   # both tables, 2,000 studies a row
    python benchmarks/verdict.py --quick --json                  # six figures in seconds

*Whole studies* (``verdict_rounds.py``): the search in every replicate, rounds, looks, and the
earlier design in the same code. *One look* at 5 % of a fixed number of seeds, without a search:
whether a method has an item right depends on the item (shared by all methods), on the method's
taste in items (the same at every seed), on the luck of the seed (moves the method's true accuracy
by the seed SD) and on noise (new at every seed), all normal and cut so that accuracy, discordance
and seed SD are what the scenario says. Published figures: 10 to 25 % of the items are discordant
between two methods at one seed, seed SDs are 0.40 to 0.74 points; 15 % here, half of it taste, and
the whole seed SD is luck (the published ones hold some of the items' noise, too). Every method
draws its own luck, so pairing by seed helps none.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
import verdict_rounds as rounds
from numpy.typing import NDArray
from scipy import stats
from verdict_rounds import Rate, item_spread, rate
from verdict_world import ACCURACY, Noise, item_noise

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.power import POWER, StudyDesign, detectable_difference
from bakeoff.analysis.rounds import RoundsPlan, run_looks

Array = NDArray[np.float64]
ALPHA = 0.05
"""Level of the single look."""
MOST = 0.3
"""Farther from the control no method can be, either way."""
PROMISE = "promise"
"""In place of differences: those that the plan promises to find with 80 % power, up and down."""
FALSE = (Verdict.BETTER, Verdict.WORSE)


@dataclass(frozen=True)
class Scenario:
    """Studies to simulate; differences, SDs and margins are fractions.

    ``differences`` are the true ones of the contenders, repeated to fill them. ``wild`` is the seed
    SD of the last contender, or of the control where ``wild_control``.
    """

    name: str
    n_items: int
    seed_sd: float
    differences: tuple[float, ...] | str = (0.0,)
    n_contenders: int = 10
    n_seeds: int = 3
    margin: float = 0.01
    discordance: float = 0.15
    wild: float | None = None
    wild_control: bool = False
    continuous: bool = False


class Counts(NamedTuple):
    """What one study gave: counts of contenders, and whether all intervals cover the truth."""

    same: int
    same_told_apart: int
    beyond_margin: int
    called_equivalent: int
    different: int
    found: int
    covered: bool


@dataclass(frozen=True)
class Row:
    """What a scenario gave; None where it cannot tell."""

    scenario: Scenario
    n_studies: int
    family_wise_error: Rate | None
    coverage: Rate
    equivalence_error: Rate | None
    power: Rate | None
    detectable: float


def promised_by_plan(scenario: Scenario) -> float:
    """Return the difference that the plan promises to find, told the noise there is at it."""
    found = 0.0
    for _ in range(5):
        item_sd, rest_sd = item_spread(found, scenario.discordance)
        design = StudyDesign(
            scenario.n_items,
            scenario.n_seeds,
            scenario.n_contenders,
            item_sd,
            scenario.seed_sd,
            rest_sd,
        )
        found = min(detectable_difference(design), MOST)
    return found


def draw(scenario: Scenario, noise: Noise, gains: Array, rng: np.random.Generator) -> Array:
    """Draw scores ``[methods, seeds, items]``, the control first; ``gains`` are the true ones."""
    n_methods, n_items = gains.size, scenario.n_items
    seed_sds = np.full(n_methods, scenario.seed_sd)
    if scenario.wild is not None:
        seed_sds[0 if scenario.wild_control else -1] = scenario.wild
    luck = rng.standard_normal((n_methods, scenario.n_seeds, 1))
    if scenario.continuous:
        return _losses(gains, seed_sds[:, None, None] * luck, n_items, rng)
    density = stats.norm.pdf(stats.norm.ppf(ACCURACY))
    spread = seed_sds / density
    cuts = stats.norm.ppf(ACCURACY + gains) * np.sqrt(1 + spread**2)
    made = math.sqrt(noise.item) * rng.standard_normal(n_items) + cuts[:, None]
    made = made + math.sqrt(noise.taste) * rng.standard_normal((n_methods, n_items))
    made = made[:, None] + spread[:, None, None] * luck
    made += math.sqrt(noise.noise) * rng.standard_normal(made.shape)
    return (made > 0).astype(np.float64)


def _losses(gains: Array, luck: Array, n_items: int, rng: np.random.Generator) -> Array:
    """Draw scores without bounds and with long tails: one item in a hundred is far off."""
    size = (gains.size, luck.shape[1], n_items)
    taste = rng.standard_exponential((gains.size, 1, n_items)) - 1
    rest = rng.standard_exponential(size) - 1
    item = 3 * rng.standard_exponential(n_items)
    item_sd, rest_sd = item_spread(0.0)
    own = (item_sd * taste + rest_sd * rest) / math.sqrt(2)
    return np.asarray(gains[:, None, None] + item + own + luck)


def simulate(scenario: Scenario, n_studies: int, seed: int) -> Row:
    """Simulate studies and count their verdicts."""
    noise, rng = item_noise(scenario.discordance), np.random.default_rng(seed)
    promised = promised_by_plan(scenario)
    wanted = scenario.differences
    pattern = (promised, -promised) if isinstance(wanted, str) else wanted
    gains = np.resize(np.array(pattern), scenario.n_contenders)
    counts = [_study(scenario, noise, gains, rng) for _ in range(n_studies)]
    return _row(scenario, counts, promised)


def _study(scenario: Scenario, noise: Noise, gains: Array, rng: np.random.Generator) -> Counts:
    drawn = draw(scenario, noise, np.concatenate([[0.0], gains]), rng)
    scores = [Scores(tuple(range(scenario.n_seeds)), values) for values in drawn]
    named = {f"m{i}": s for i, s in enumerate(scores[1:])}
    looks = (scenario.n_seeds,)
    plan = RoundsPlan(scores[0].seeds, looks, scenario.margin, "higher", alpha=ALPHA)
    contenders = run_looks(named, scores[0], plan, needs=False)[0].contenders
    found = [contenders[method] for method in named]
    pairs = list(zip(found, gains.tolist(), strict=True))
    same = [c for c, gain in pairs if gain == 0]
    far = [c for c, gain in pairs if abs(gain) >= scenario.margin]
    right = [c for c, gain in pairs if gain and c.verdict is _truth(gain)]
    return Counts(
        same=len(same),
        same_told_apart=sum(c.verdict in FALSE for c in same),
        beyond_margin=len(far),
        called_equivalent=sum(c.verdict is Verdict.EQUIVALENT for c in far),
        different=len(pairs) - len(same),
        found=len(right),
        covered=all(c.low <= gain <= c.high for c, gain in pairs),
    )


def _truth(gain: float) -> Verdict:
    return Verdict.BETTER if gain > 0 else Verdict.WORSE


def _row(scenario: Scenario, counts: Sequence[Counts], promised: float) -> Row:
    first = counts[0]
    # a family errs when any of its contenders does; power is that of a single contender
    told, equal = ([getattr(c, k) > 0 for c in counts] for k in Counts._fields[1:4:2])
    power = [c.found / max(1, c.different) for c in counts]
    asked = isinstance(scenario.differences, str)
    return Row(
        scenario,
        len(counts),
        family_wise_error=rate(told) if first.same else None,
        coverage=rate([c.covered for c in counts]),
        equivalence_error=rate(equal) if first.beyond_margin and not asked else None,
        power=rate(power) if asked else None,
        detectable=promised,
    )


SPREAD = tuple(np.linspace(-0.04, 0.04, 10).tolist())
SCENARIOS = (
    *(
        Scenario("no differences", n, sd)
        for n in (300, 1319)
        for sd in (0.004, 0.0074)
    ),
    Scenario("differences of -4 to 4 points", 300, 0.0074, SPREAD),
    Scenario("differences of -4 to 4 points", 1319, 0.004, SPREAD),
    Scenario("all at a margin of 5 points", 300, 0.0074, (0.05, -0.05), margin=0.05),
    Scenario("all at a margin of 3 points", 1319, 0.004, (0.03, -0.03), margin=0.03),
    Scenario("one, at a margin of 3 points", 1319, 0.004, (0.03,), 1, margin=0.03),
    Scenario(
        "one, at a margin of 1 point, 2 % discordant",
        300, 0.001, (0.01,), 1, margin=0.01, discordance=0.02,
    ),
    *(Scenario("as promised", n, sd, PROMISE) for n in (300, 1319) for sd in (0.004, 0.0074)),
    Scenario("as promised, one contender", 1319, 0.004, PROMISE, 1),
    Scenario("no differences, unbounded metric, long tails", 300, 0.0074, continuous=True),
    Scenario("one contender, seeds dominate", 1319, 0.02, n_contenders=1),
    Scenario("one contender, seeds dominate", 1319, 0.02, n_contenders=1, n_seeds=2),
    Scenario("one contender, seeds dominate", 1319, 0.02, n_contenders=1, n_seeds=5),
    Scenario("one wild contender of 10 (5 points)", 1319, 0.004, wild=0.05),
    Scenario("one wild contender of 3 (5 points)", 1319, 0.004, n_contenders=3, wild=0.05),
    Scenario("wild control (2 points)", 1319, 0.004, wild=0.02, wild_control=True),
    Scenario("no differences, one seed", 1319, 0.0074, n_seeds=1),
    Scenario("no differences, one seed", 1319, 0.0, n_seeds=1),
    Scenario("no differences, 30 items", 30, 0.0074),
)  # fmt: skip
QUICK = {
    "family_wise_error": Scenario("no differences", 300, 0.0074),
    "coverage": Scenario("differences of -4 to 4 points", 300, 0.0074, SPREAD),
    "equivalence_error": Scenario("at a margin", 300, 0.0074, (0.05, -0.05), margin=0.05),
    "power_gap": Scenario("as promised", 300, 0.0074, PROMISE),
}


END_TO_END = {
    "end_to_end_false": rounds.Row("null", rounds.WORLDS[1], 7),
    "end_to_end_false_one_search": rounds.Row("null", rounds.WORLDS[1], 7, design=rounds.EARLIER),
}
END_TO_END_STUDIES = 200


def quick(n_studies: int, seed: int, workers: int) -> dict[str, float]:
    """Return six figures, as fractions; ``power_gap`` is how far off the promise power is.

    The last two are the false verdicts of whole studies, by rounds and by the earlier design.
    """
    rows = {key: simulate(scenario, n_studies, seed) for key, scenario in QUICK.items()}
    power = rows.pop("power_gap").power
    figures = {key: getattr(row, key).value for key, row in rows.items()}
    assert power is not None
    figures["power_gap"] = abs(power.value - POWER)
    whole = rounds.simulate(
        list(END_TO_END.values()), min(n_studies, END_TO_END_STUDIES), seed, workers
    )
    return figures | {
        key: summary.false.value for key, summary in zip(END_TO_END, whole, strict=True)
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, in percent and points."""
    head = (
        "truth | contenders | seeds | items | seed SD | studies | false better/worse | coverage | "
        "false equivalent | power | detectable"
    )
    lines = [head, " | ".join(["---"] * (head.count("|") + 1)), *(_line(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _line(row: Row) -> str:
    case = row.scenario
    rates = [row.family_wise_error, row.coverage, row.equivalence_error, row.power]
    numbers = [case.n_contenders, case.n_seeds, case.n_items, f"{case.seed_sd * 100:g}"]
    cells = [
        case.name,
        *numbers,
        row.n_studies,
        *map(_percent, rates),
        f"{row.detectable * 100:.1f}",
    ]
    return " | ".join(str(c) for c in cells)


def _percent(rate: Rate | None) -> str:
    return f"{rate.value * 100:.1f} ± {rate.error * 100:.1f}" if rate else ""


def rounds_table(summaries: Sequence[rounds.Summary]) -> str:
    """Return whole studies as a Markdown table, in percent and points."""
    head = (
        "kind | design | world | items | contenders | truth | studies | false better/worse | "
        "coverage | false equivalent | found | equivalent | inconclusive | replicates | "
        "of the control | half width"
    )
    lines = [head, " | ".join(["---"] * (head.count("|") + 1)), *map(_rounds_line, summaries)]
    return "\n".join(f"| {line} |" for line in lines)


def _rounds_line(summary: rounds.Summary) -> str:
    row, groups = summary.row, summary.row.groups
    truth = ", ".join(
        f"{d:.1f}".removesuffix(".0") for d in summary.differences[: row.n_contenders]
    )
    kind = row.section
    if groups is not None:
        sizes = "equal" if groups.equal else "lognormal"
        kind += f": {groups.count} {sizes}, ICC {groups.icc:g}"
    rates = [summary.false, summary.covered, summary.false_equivalent, summary.found]
    cells = [
        kind,
        row.design,
        row.world.name,
        row.world.n_items,
        row.n_contenders,
        truth,
        summary.n_studies,
        *map(_percent, rates),
        f"{summary.equivalent:.0%}",
        f"{summary.inconclusive:.0%}",
        *(f"{x:.1f}" for x in (summary.replicates, summary.control_replicates)),
        f"{summary.half_width:.1f}",
    ]
    return " | ".join(str(c) for c in cells)


def document(rows: Sequence[Row], summaries: Sequence[rounds.Summary], run: str) -> str:
    """Return the whole results file; ``run`` describes how it was made."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions |= {"scipy": scipy.__version__, "bakeoff": version("bakeoff")}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"""# Does a verdict keep its promises?

`benchmarks/verdict.py`, {run}; {_hardware()}; {named}; {time.strftime("%Y-%m-%d")}.

Percent of studies ± Monte Carlo standard error. *False better/worse*: any of the contenders that
truly equal the control is told apart, or any is told apart on the wrong side. *Coverage*: all
simultaneous intervals hold the truth. *False equivalent*: any contender that is the margin away or
more is called equivalent.

## Whole studies

From the search in each replicate to the last look, through `run_looks` ({rounds.DRAWS:,} draws of
the boundary), margin {rounds.MARGIN:g} points. *One search* is the design before rounds: one seed's
search, {rounds.EARLIER_SEEDS} fresh seeds, `compare` ({rounds.EARLIER_DRAWS:,} bootstrap draws).
*Found*: share of the contenders at least {rounds.LARGE:g} points away that get the right verdict,
of all where the plan's promise is tested; *equivalent* and *inconclusive* are shares of the
contenders, *half width* is the median, in points.
The truth is in points; where each method has its own best rate, those differences are added.

{rounds_table(summaries)}

Acceptance criteria missed: {"; ".join(rounds.misses(summaries)) or "none"}.

## One look

A fixed number of seeds without a search, one look at 5 %. *Power*: share of the contenders that are
found where all are as far from the control as `power.py`, told the noise, promises to find in 80 %.
*Detectable*: that difference, in points, for each row.

{table(rows)}
"""


def _hardware() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--studies", type=int, help="a row; 2000, with --quick 500")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", help="rows of whole studies of this kind only")
    parser.add_argument("--quick", action="store_true", help="few scenarios")
    parser.add_argument("--json", action="store_true", help="with --quick: one JSON object")
    parser.add_argument("--out", type=Path, help="write the whole table as Markdown")
    given = parser.parse_args(argv)
    # statsmodels collects garbage in every call: this leaves it next to nothing to look through
    gc.freeze()
    try:
        return _report(given)
    finally:
        gc.unfreeze()


def _report(given: argparse.Namespace) -> int:
    if given.quick:
        figures = quick(given.studies or 500, given.seed, given.workers)
        print(json.dumps(figures) if given.json else figures)
        return 0
    start, n_studies = time.monotonic(), given.studies or 2000
    chosen = [row for row in rounds.all_rows() if given.only in (None, row.section)]
    summaries = []
    for summary in rounds.simulate(chosen, n_studies, given.seed, given.workers):
        print(_rounds_line(summary), flush=True)
        summaries.append(summary)
    rows: list[Row] = []
    if given.only is None:
        with ProcessPoolExecutor(given.workers, initializer=gc.freeze) as pool:
            tasks = [(scenario, n_studies, given.seed) for scenario in SCENARIOS]
            rows = list(pool.map(simulate, *zip(*tasks, strict=True)))
    seconds = time.monotonic() - start
    run = f"seed {given.seed}, {given.workers} processes, {seconds:.0f} s"
    text = document(rows, summaries, run)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
