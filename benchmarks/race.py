"""What the race saves and what it loses, on studies simulated from 63 published runs.

    python benchmarks/race.py --out race.json     # both tables: about 5 minutes on one core
    python benchmarks/race.py --quick --json      # three figures of the first world in seconds

``race_world.py`` says how studies are made up, from which published numbers.

The full search trains five settings and three final seeds of each method. The race stops at 10 %
and 30 %, trains nothing further in the search (nothing is left to choose) and three final seeds of
each method that goes on. Wider grids (``budget.extend``) are in neither.

A method is on the true front if no other that is truly better costs no more on any axis; costs
closer than ``race.COST_TIE`` count as equal, as in the race, and ``exact`` tells of the front
without ties. An oracle that knew that front at the last rung, and raced settings alike, would save
what ``an oracle would save`` says: no rule that keeps the front can do better. What the race lost
is told by share of front methods, and of studies with any.
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

FINAL_SEEDS = 3


class Outcome(NamedTuple):
    """What one simulated study gave; counts of methods, steps in full runs, regrets in points."""

    steps_full: float
    steps_raced: float
    steps_oracle: float
    best_kept: bool
    front: int
    front_dropped: int
    exact_front: int
    exact_dropped: int
    dropped: int
    regret_full: float
    regret_raced: float
    lost: float


def simulate(
    world: World, runs: Published, rules: racing.Rules, rng: np.random.Generator
) -> Outcome:
    """Draw a study, race it, and hold the outcome against the full search of the same trials."""
    study = draw(world, runs, rng)
    at = standings(study, world, rng)
    chosen_full = choose(study, at[-1])
    cost, alive = run_race(study, at, rules)
    chosen = choose(study, {i: at[1][i] for i in alive})
    final = study.points + rng.normal(0.0, world.seed_sd / math.sqrt(FINAL_SEEDS), len(study.names))
    full = final - at_setting(study, chosen_full)
    raced = np.where(chosen >= 0, final - at_setting(study, chosen), -math.inf)
    quality = study.points - study.drops.min(axis=1)
    front, exact = (pareto(study, quality, tie) for tie in (analysis_pareto.COST_TIE, 0.0))
    gone = chosen < 0
    kept = ~gone
    able = chosen_full >= 0
    regret = at_setting(study, chosen_full) - study.drops.min(axis=1)
    regret_raced = at_setting(study, chosen) - study.drops.min(axis=1)
    return Outcome(
        float(len(study.names) * len(GRID) + FINAL_SEEDS * able.sum()),
        cost + FINAL_SEEDS * float(kept.sum()),
        # who knew at the last rung which methods are on the front would train no others further
        cost + FINAL_SEEDS * float((front & able).sum()),
        bool(kept[int(full.argmax())]),
        int(front.sum()),
        int((front & gone).sum()),
        int(exact.sum()),
        int((exact & gone).sum()),
        int(gone.sum()),
        float(regret[kept].mean()),
        float(regret_raced[kept].mean()),
        float(full.max() - raced.max()),
    )


def run_race(
    study: Study, at: Sequence[dict[str, racing.RungStanding]], rules: racing.Rules
) -> tuple[float, list[str]]:
    """Race the trials over both rungs; return the steps in full runs, and who is left."""
    alive = list(at[0])
    spent, done = 0.0, 0
    for rung, step in enumerate(rules.rungs):
        spent += len(alive) * (step - done) / rules.steps
        done = step
        found = racing.decide_rung(
            [at[rung][i] for i in alive], study.names[0], study.costs, rung, rules
        )
        alive = [d.trial_id for d in found if d.goes_on]
    return spent, alive


def choose(study: Study, trials: dict[str, racing.RungStanding]) -> NDArray[np.int64]:
    """Return each method's setting of lowest mean loss, -1 where it has none."""
    chosen = np.full(len(study.names), -1)
    lowest = np.full(len(study.names), math.inf)
    for trial_id, standing in trials.items():
        m, s = map(int, trial_id.split("/"))
        if standing.mean < lowest[m]:
            lowest[m], chosen[m] = standing.mean, s
    return chosen


def at_setting(study: Study, chosen: NDArray[np.int64]) -> Array:
    """Return the points that each method loses at its chosen setting."""
    return np.asarray(study.drops[np.arange(len(chosen)), np.maximum(chosen, 0)])


def pareto(study: Study, quality: Array, tie: float) -> NDArray[np.bool_]:
    """Return who is on the front over true quality and costs; costs within ``tie`` are equal."""
    costs = np.array([list(study.costs[n].values()) for n in study.names])
    cheap = (costs[None] <= costs[:, None] * (1 + tie)).all(axis=2)
    return np.asarray(~(cheap & (quality[None] > quality[:, None])).any(axis=1))


FEW = ("memory", "time")
WORLDS = (
    World("as published"),
    World("24 methods", methods=24),
    World("two costs", axes=FEW),
    World("two costs, 24 methods", axes=FEW, methods=24),
    World("file size for parameters", axes=(*FEW, "file")),
    World("top 25", top=25),
    World("tuned: top 25, gaps a quarter", top=25, gaps=0.25),
    World("slow starters everywhere", late=True),
    World("seed SD 0.74 points", seed_sd=0.74),
    World("100 items", items=100),
    World("best rate early lower", shift=-SHIFT),
    World("rungs at 5 % and 15 %", rungs=(250, 750)),
    World("keep 1 at once", keep=(1,)),
    World("keep 3, then 1", keep=(3, 1)),
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
        "steps_saved": ratio(table["steps_full"], table["steps_raced"]),
        "oracle_saves": ratio(table["steps_full"], table["steps_oracle"]),
        "best_kept": mean(table["best_kept"]),
        "front_dropped": ratio(table["front_dropped"], table["front"]),
        "races_with_any": mean(table["front_dropped"] > 0),
        "exact_front_dropped": ratio(table["exact_dropped"], table["exact_front"]),
        "methods_dropped": mean(table["dropped"] / world.methods),
        "regret_full": mean(table["regret_full"]),
        "regret_raced": mean(table["regret_raced"]),
        "best_score_lost": mean(table["lost"]),
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
"""What the constants of ``race`` are varied to, one at a time."""
SCANNED = ("as published", "two costs", "slow starters everywhere")
COLUMNS = {
    "steps_saved": ("steps saved", 1, 2),
    "oracle_saves": ("an oracle would save", 1, 2),
    "best_kept": ("best kept %", 100, 1),
    "front_dropped": ("front dropped %", 100, 2),
    "races_with_any": ("studies with any %", 100, 1),
    "exact_front_dropped": ("exact front dropped %", 100, 1),
    "methods_dropped": ("methods stopped %", 100, 1),
    "regret_full": ("regret, full search", 1, 2),
    "regret_raced": ("regret, raced", 1, 2),
    "best_score_lost": ("best score lost", 1, 2),
}


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
    parser.add_argument("--quick", action="store_true", help="the first world, 400 studies")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    given = parser.parse_args(argv)
    if given.quick:
        row = measure(WORLDS[0], min(given.studies, 400), given.seed)
        few = {key: row[key][0] for key in ("steps_saved", "best_kept", "front_dropped")}
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
