"""What the race saves and what it loses, on studies simulated from 63 published runs.

    python benchmarks/race.py --out race.json     # both tables: about 5 minutes on one core
    python benchmarks/race.py --quick --json      # four figures of the first world in seconds

``race_world.py`` says how studies are made up, from which published numbers.

Each of three replicates of a method tries five settings. In full all of them are trained to the
end. In the race two go on from 10 % of the steps to the end (or, with two rungs, two to 30 % and
one to the end). Either way the finalist is the setting of lowest validation loss. Rungs are at step
250 or later here, where every loss has fallen far enough: the rule of the ripe rung changes
nothing. Wider grids (``budget.extend``) are in neither.

Whole methods stop only with two rungs. A method is on the true front if no other that is truly
better costs no more on any axis; costs closer than ``pareto.COST_TIE`` count as equal, as in the
race, and ``exact`` tells of the front without ties. What the race lost is told by share of front
methods, and of studies with any.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from race_world import (
    GRID,
    SHIFT,
    STEPS,
    Array,
    Published,
    Study,
    World,
    draw,
    mean_losses,
    published,
    standings,
)
from scipy import stats

from bakeoff.analysis import pareto as analysis_pareto
from bakeoff.study.planning import racing


class Outcome(NamedTuple):
    """What one simulated study gave: counts of methods, runs in full trainings, regret in points.

    ``runs_*`` are of one replicate of one method; ``chosen`` and ``other_setting`` count replicates
    of methods.
    """

    runs_full: float
    runs_raced: float
    best_kept: bool
    front: int
    front_dropped: int
    exact_front: int
    exact_dropped: int
    dropped: int
    chosen: int
    other_setting: int
    regret_full: float
    regret_raced: float


def simulate(
    world: World, runs: Published, rules: racing.Rules, rng: np.random.Generator
) -> Outcome:
    """Draw a study, race it, and hold the outcome against the full search of the same trials."""
    study = draw(world, runs, rng)
    at = standings(study, world, rng)
    full = choose(study, world, at[-1])
    cost, alive = run_race(study, at, rules)
    raced = choose(study, world, {i: at[-1][i] for i in alive})
    gone = (raced < 0).all(axis=0)
    quality = study.points - study.drops.min(axis=1)
    front, exact = (pareto(study, quality, tie) for tie in (analysis_pareto.COST_TIE, 0.0))
    both = (full >= 0) & (raced >= 0)
    lowest = study.drops.min(axis=1)
    regrets = [(at_setting(study, chosen) - lowest)[both].mean() for chosen in (full, raced)]
    return Outcome(
        float(len(GRID)),
        cost / full.size,
        bool(not gone[int(quality.argmax())]),
        int(front.sum()),
        int((front & gone).sum()),
        int(exact.sum()),
        int((exact & gone).sum()),
        int(gone.sum()),
        int(both.sum()),
        int((full != raced)[both].sum()),
        float(regrets[0]),
        float(regrets[1]),
    )


def run_race(
    study: Study, at: Sequence[dict[str, racing.RungStanding]], rules: racing.Rules
) -> tuple[float, list[str]]:
    """Race the trials over all rungs to the end; return the runs trained, and who is left."""
    alive = list(at[0])
    spent, done = 0.0, 0
    for rung, step in enumerate(rules.rungs):
        spent += len(alive) * (step - done) / rules.steps
        done = step
        found = racing.decide_rung(
            [at[rung][i] for i in alive], study.names[0], study.costs, rung, rules
        )
        alive = [d.trial_id for d in found if d.goes_on]
    return spent + len(alive) * (1 - done / rules.steps), alive


def choose(study: Study, world: World, trials: dict[str, racing.RungStanding]) -> NDArray[np.int64]:
    """Return the finalist's setting, ``[replicates, methods]``; -1 where there is none."""
    groups: dict[tuple[int, int], list[racing.RungStanding]] = {}
    for trial_id, standing in trials.items():
        seed, method, _ = map(int, trial_id.split("/"))
        groups.setdefault((seed, method), []).append(standing)
    chosen = np.full((world.replicates, len(study.names)), -1)
    for place, settings in groups.items():
        finalist = racing.choose_finalist(settings)
        if finalist is not None:
            chosen[place] = int(finalist.split("/")[2])
    return chosen


def at_setting(study: Study, chosen: NDArray[np.int64]) -> Array:
    """Return the points lost at the chosen settings, ``[replicates, methods]``."""
    return np.asarray(study.drops[np.arange(len(study.names)), np.maximum(chosen, 0)])


def pareto(study: Study, quality: Array, tie: float) -> NDArray[np.bool_]:
    """Return who is on the front over true quality and costs; costs within ``tie`` are equal."""
    costs = np.array([list(study.costs[n].values()) for n in study.names])
    cheap = (costs[None] <= costs[:, None] * (1 + tie)).all(axis=2)
    return np.asarray(~(cheap & (quality[None] > quality[:, None])).any(axis=1))


FEW = ("memory", "time")
TWO = (500, 1500)
WORLDS = (
    World("two to the end"),
    World("the same, seed SD 0.74 points", seed_sd=0.74),
    World("the same, 100 items", items=100),
    World("the same, best rate early lower", shift=-SHIFT),
    World("the same, shift of the best rate times 4", shift=4 * SHIFT),
    World("rung at 5 %", rungs=(250,)),
    World("three to the end", keep=(3,)),
    World("one to the end", keep=(1,)),
    World("keep 2, 1", rungs=TWO, keep=(2, 1)),
    World("keep 2, 1: shift of the best rate times 4", rungs=TWO, keep=(2, 1), shift=4 * SHIFT),
    World("keep 2, 1: 24 methods", rungs=TWO, keep=(2, 1), methods=24),
    World("keep 2, 1: two costs", rungs=TWO, keep=(2, 1), axes=FEW),
    World("keep 2, 1: top 25", rungs=TWO, keep=(2, 1), top=25),
    World("keep 2, 1: slow starters everywhere", rungs=TWO, keep=(2, 1), late=True),
    World("keep 2, 2", rungs=TWO, keep=(2, 2)),
)


def rules_of(world: World, **more: Any) -> racing.Rules:
    return replace(racing.Rules(world.rungs, STEPS, world.methods - 1, keep=world.keep), **more)


def measure(world: World, n: int, seed: int, rules: racing.Rules | None = None) -> dict[str, Any]:
    """Simulate ``n`` studies; shares come as ``[value, Monte Carlo SD]``."""
    runs, rng = published(), np.random.default_rng(seed)
    found = [simulate(world, runs, rules or rules_of(world), rng) for _ in range(n)]
    table = {k: np.array([getattr(o, k) for o in found], float) for k in Outcome._fields}
    return {
        "world": world.name,
        "studies": n,
        "runs": mean(table["runs_raced"]),
        "steps_saved": ratio(table["runs_full"], table["runs_raced"]),
        "other_setting": ratio(table["other_setting"], table["chosen"]),
        "regret_full": mean(table["regret_full"]),
        "regret_raced": mean(table["regret_raced"]),
        "best_kept": mean(table["best_kept"]),
        "front_dropped": ratio(table["front_dropped"], table["front"]),
        "races_with_any": mean(table["front_dropped"] > 0),
        "exact_front_dropped": ratio(table["exact_dropped"], table["exact_front"]),
        "methods_dropped": mean(table["dropped"] / world.methods),
    }


def mean(values: Array) -> list[float]:
    return [float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))]


def ratio(over: Array, under: Array) -> list[float]:
    """Return the ratio of two sums over studies and its Monte Carlo SD (delta method)."""
    value = float(over.sum() / under.sum())
    rest = over - value * under
    return [value, float(rest.std(ddof=1) / math.sqrt(len(rest)) / under.mean())]


SCAN = (
    {"drift": 0.02}, {"drift": 0.03}, {"drift": 0.05}, {"drift": 0.07},
    {"margin": 0.0}, {"margin": 0.05}, {"alpha": 0.01}, {"alpha": 0.2}, {"first_stop": 0},
)  # fmt: skip
"""What the constants of ``racing`` are varied to, one at a time."""
SCANNED = (
    "keep 2, 1",
    "keep 2, 1: two costs",
    "keep 2, 1: slow starters everywhere",
)
COLUMNS = {
    "runs": ("runs a replicate", 1, 2),
    "steps_saved": ("steps saved", 1, 2),
    "other_setting": ("another setting %", 100, 1),
    "regret_full": ("regret, full", 1, 2),
    "regret_raced": ("regret, raced", 1, 2),
    "best_kept": ("best kept %", 100, 1),
    "front_dropped": ("front dropped %", 100, 2),
    "races_with_any": ("studies with any %", 100, 1),
    "exact_front_dropped": ("exact front dropped %", 100, 1),
    "methods_dropped": ("methods stopped %", 100, 1),
}


QUICK = ("steps_saved", "other_setting", "best_kept", "front_dropped")


def scan(n: int, seed: int) -> list[dict[str, Any]]:
    """Measure what each constant of the rule does, the others as they are."""
    worlds = [world for world in WORLDS if world.name in SCANNED]
    return [
        {"rule": change, **measure(world, n, seed, rules_of(world, **change))}
        for change in ({}, *SCAN)
        for world in worlds
    ]


def rank_correlations(n: int, seed: int) -> dict[str, list[float]]:
    """Return Spearman's rho of the loss at 10 % with accuracy: published, and the model's mean."""
    runs, rng = published(), np.random.default_rng(seed)
    world = World("all", methods=len(runs.names))
    found: dict[str, list[float]] = {}
    for label, most in (("all 63", 63), ("accuracy > 30 %", 51), ("top 25", 25)):
        real = rho(runs.accuracy[:most], runs.losses[:most, 1])
        made = [_modelled(world, runs, most, rng) for _ in range(n)]
        found[label] = [real, float(np.mean(made))]
    return found


def _modelled(world: World, runs: Published, most: int, rng: np.random.Generator) -> float:
    rest = [i for i in range(len(runs.names)) if i != runs.control]
    members = [runs.control, *rest]
    accuracy = runs.accuracy[members]
    first = np.argsort(-accuracy)[:most]
    return rho(accuracy[first], mean_losses(world, runs, members, rng)[0, first])


def rho(a: Array, b: Array) -> float:
    return float(stats.spearmanr(a, b).statistic)


def table(rows: Sequence[dict[str, Any]], first: str) -> str:
    """Return the rows as a Markdown table; Monte Carlo SDs in brackets where they show."""
    head = [first, *(label for label, _, _ in COLUMNS.values())]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for row in rows:
        cells = [_cell(row[key], scale, digits) for key, (_, scale, digits) in COLUMNS.items()]
        name = row["world"]
        if first == "rule":
            change = ", ".join(f"{k} {v:g}" for k, v in row["rule"].items()) or "as it is"
            name = f"{change}: {name}"
        lines.append(" | ".join([name, *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Sequence[float], scale: float, digits: int) -> str:
    estimate, error = (v * scale for v in value)
    return f"{estimate:.{digits}f} ± {error:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies a world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="the first world, 200 studies")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    given = parser.parse_args(argv)
    if given.quick:
        row = measure(WORLDS[0], min(given.studies, 200), given.seed)
        few = {key: row[key][0] for key in QUICK}
        print(json.dumps(few) if given.json else table([row], "world"))
        return 0
    whole = {
        "studies": given.studies,
        "seed": given.seed,
        "rank_correlations": rank_correlations(200, given.seed),
        "worlds": [measure(world, given.studies, given.seed) for world in WORLDS],
        "scan": scan(given.studies, given.seed),
    }
    if given.out is not None:
        given.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if given.json:
        print(json.dumps(whole))
        return 0
    print(whole["rank_correlations"], table(whole["worlds"], "world"), sep="\n\n")
    print("", table(whole["scan"], "rule"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
