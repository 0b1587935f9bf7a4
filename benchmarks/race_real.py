"""Whether the race chooses what a full search chooses, on a real study: the demo.

    python benchmarks/race_real.py --out race-real.json     # resumes; the folder stays

It trains all settings of every replicate to the end (8 methods, 2 seeds, 5 settings, 60 steps) and
reads the losses at each step at which a rung may be. What a race would have chosen follows from
these readings, because a trial that goes on is trained as in the full search, to the bit. The
rules of the race are those of ``bakeoff.study.planning.racing``.

*Another setting*: replicates of methods whose finalist is not that of the full search. *Above full*
and *other seeds*: validation loss at the end of the race's choice less that of the full search's,
at its own seed and at the other seeds, in nats with the standard error over replicates. Exit code 1
if the default rule chooses another setting in more than one replicate in eight.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from real_study import DEMO, about, changed, checked, markdown, run_study, told, where

from bakeoff.core.results import TrialResult
from bakeoff.core.trial import Trial
from bakeoff.study.config import StudySpec, dump_spec, read_spec
from bakeoff.study.planning import racing
from bakeoff.study.storage.database import Reader
from bakeoff.study.storage.study_dir import DATABASE

Replicate = tuple[str, int]
"""A method and a seed."""
ALLOWED = 1 / 8
"""Largest share of replicates that may choose another setting than in full."""
SECOND = 0.3
"""Share of the steps of the second rung, where there is one."""


class Rule(NamedTuple):
    """Settings that go on after each rung, and whether the first rung waits until it is ripe."""

    name: str
    keep: tuple[int, ...]
    ripe: bool = True


DEFAULT = Rule("ripe rung, two to the end", (2,))
RULES = (
    DEFAULT,
    Rule("ripe rung, then one from 30 %", (2, 1)),
    Rule("two from 10 %", (2,), ripe=False),
    Rule("three from 10 %", (3,), ripe=False),
    Rule("one from 10 %", (1,), ripe=False),
)


class Readings(NamedTuple):
    """Losses of all trials: ``at`` by step and trial id, and the control's at step 0 by seed."""

    at: Mapping[int, Mapping[str, racing.RungStanding]]
    start: Mapping[int, racing.Losses]
    control: str
    steps: int


class Raced(NamedTuple):
    """What a race chose: finalists' trial ids, its rungs, and runs trained by each replicate."""

    finalists: dict[Replicate, str | None]
    rungs: tuple[int, ...]
    ripe: tuple[racing.RipeDecision, ...]
    runs: float


def first_rung(steps: int) -> int:
    """Return the step of the default rung."""
    return max(1, round(0.1 * steps))


def reading_steps(steps: int) -> tuple[int, ...]:
    """Return the steps at which any of the rules may have a rung."""
    second = round(SECOND * steps)
    return tuple(sorted({*racing.rung_candidates(first_rung(steps), steps), second}))


def race(readings: Readings, rule: Rule) -> Raced:
    """Return what a race by ``rule`` chooses in each replicate."""
    first, steps = first_rung(readings.steps), readings.steps
    second = round(SECOND * steps) if len(rule.keep) > 1 else None
    candidates = racing.rung_candidates(first, steps, second) if rule.ripe else (first,)
    found = []
    for step in candidates:
        rung = step
        found.append(_decide_ripeness(readings, step))
        if found[-1].ripe:
            break
    rungs = (rung,) if second is None else (rung, second)
    keep = racing.keep_at_rungs(rule.keep, found[-1].ripe or not rule.ripe)
    rules = racing.Rules(rungs, steps, contenders=1, keep=keep)
    alive, spent, done = list(readings.at[steps]), 0.0, 0
    for number, step in enumerate(rungs):
        spent, done = spent + len(alive) * (step - done), step
        standings = [readings.at[step][i] for i in alive]
        decisions = racing.decide_rung(standings, readings.control, {}, number, rules)
        alive = [d.trial_id for d in decisions if d.goes_on]
    spent += len(alive) * (steps - done)
    finalists = {key: _finalist(readings, key, alive) for key in replicates(readings)}
    return Raced(finalists, rungs, tuple(found), spent / steps / len(finalists))


def search_in_full(readings: Readings) -> dict[Replicate, str | None]:
    """Return the finalist of each replicate among all of its settings."""
    trials = list(readings.at[readings.steps])
    return {key: _finalist(readings, key, trials) for key in replicates(readings)}


def replicates(readings: Readings) -> list[Replicate]:
    """Return the methods and seeds of the study, in its order."""
    return list(dict.fromkeys((s.method, s.seed) for s in readings.at[readings.steps].values()))


def _finalist(readings: Readings, replicate: Replicate, trials: Sequence[str]) -> str | None:
    standings = [readings.at[readings.steps][i] for i in trials]
    return racing.choose_finalist([s for s in standings if (s.method, s.seed) == replicate])


def _decide_ripeness(readings: Readings, step: int) -> racing.RipeDecision:
    leading = racing.leading_losses(readings.at[step].values(), readings.control)
    seeds = [seed for seed in leading if seed in readings.start]
    return racing.is_ripe(
        np.array([leading[s] for s in seeds]), np.array([readings.start[s] for s in seeds]), step
    )


def compare(readings: Readings, rule: Rule) -> dict[str, Any]:
    """Hold a rule's choices against those of the full search."""
    raced, full = race(readings, rule), search_in_full(readings)
    at_end = readings.at[readings.steps]
    both = {
        key: (at_end[one], at_end[other])
        for key, other in full.items()
        if other is not None and (one := raced.finalists[key]) is not None
    }
    return {
        "rule": rule.name,
        "rungs": raced.rungs,
        "ripe": [asdict(decision) for decision in raced.ripe],
        "runs": raced.runs,
        "replicates": len(full),
        "other_setting": sum(raced.finalists[key] != full[key] for key in full),
        "above_full": spread([one.mean - other.mean for one, other in both.values()]),
        "other_seeds": spread(
            [d for key, pair in both.items() for d in _at_other_seeds(at_end, key, *pair)]
        ),
        "chosen": [
            {
                "method": method,
                "seed": seed,
                "full": full_one.learning_rate,
                "raced": raced_one.learning_rate,
                "loss_full": full_one.mean,
                "loss_raced": raced_one.mean,
            }
            for (method, seed), (raced_one, full_one) in both.items()
        ],
    }


def _at_other_seeds(
    at_end: Mapping[str, racing.RungStanding],
    replicate: Replicate,
    raced: racing.RungStanding,
    full: racing.RungStanding,
) -> list[float]:
    """Return the difference of the two rates' losses at each seed that did not choose them."""
    means = {(s.seed, s.learning_rate): s.mean for s in at_end.values() if s.method == replicate[0]}
    found = [
        means[seed, raced.learning_rate] - means[seed, full.learning_rate]
        for seed in dict.fromkeys(seed for seed, _ in means)
        if seed != replicate[1]
    ]
    return [value for value in found if math.isfinite(value)]


def spread(values: Sequence[float]) -> list[float | None]:
    """Return the mean and its standard error."""
    if not values:
        return [None, None]
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return [fmean(values), error]


def read(out: Path, control: str, steps: int) -> Readings:
    """Read the losses of all trials at each step with a reading, and at the end."""
    with Reader(out / DATABASE) as reader:
        trials = reader.trials()
        rungs = {step: reader.results_at_rung(step) for step in (*reading_steps(steps), steps)}
    last = {trial.id: result for trial, result in trials}
    at = {
        step: {t.id: _standing(t, results.get(t.id) or last[t.id]) for t, _ in trials}
        for step, results in rungs.items()
    }
    start = {
        trial.seed: np.array(result.initial_losses)
        for trial, _ in trials
        for results in rungs.values()
        if trial.method.name == control
        and (result := results.get(trial.id)) is not None
        and result.initial_losses
    }
    return Readings(at, start, control, steps)


def _standing(trial: Trial, result: TrialResult | None) -> racing.RungStanding:
    losses = np.array(result.item_losses) if result is not None and result.item_losses else None
    if losses is not None and not np.isfinite(losses).all():
        losses = None
    return racing.RungStanding(trial.id, trial.method.name, trial.seed, trial.learning_rate, losses)


def study_in_full(given: argparse.Namespace) -> StudySpec:
    """Return the study with readings at every rung, where all settings go on.

    No method stops: with forgetting as the only cost, which is unknown during the race, every
    method may be on the front.
    """
    spec = checked(dump_spec(read_spec(given.study)), given.steps, given.workers)
    budget, steps = spec.budget, spec.budget.planned_steps
    values = changed(
        dump_spec(spec),
        "budget",
        seeds=given.seeds,
        race="on",
        rungs=[step / steps for step in reading_steps(steps)],
        keep=[budget.settings],
        extend=0,
        steps=steps,
    )
    values["budget"].pop("most", None)
    values = changed(values, "verdict", pareto=["quality", "forgetting"])
    return checked(changed(values, "engine", executor=given.executor), None, None)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the study, or go on with it, and return everything."""
    load, spec = os.getloadavg()[0], study_in_full(given)
    record, _ = run_study(spec, given.study.parent, given.folder)
    readings = read(given.folder, spec.method_names[0], spec.budget.planned_steps)
    return {
        **about("race_real", spec, record, load),
        "wall_seconds": record.wall_seconds,
        "rules": [compare(readings, rule) for rule in RULES],
        "settings": [
            {"trial": s.trial_id, "method": s.method, "seed": s.seed, "rate": s.learning_rate}
            | {"losses": {step: _finite(at[s.trial_id].mean) for step, at in readings.at.items()}}
            for s in readings.at[readings.steps].values()
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def table(found: dict[str, Any]) -> str:
    """Return the figures as text."""
    rows = [
        [
            row["rule"],
            " and ".join(map(str, row["rungs"])),
            f"{row['runs']:.2f}",
            f"{row['other_setting']} of {row['replicates']}",
            _with_error(row["above_full"]),
            _with_error(row["other_seeds"]),
        ]
        for row in found["rules"]
    ]
    head = ["rule", "rungs", "runs", "another setting", "above full, nats", "other seeds, nats"]
    default = found["rules"][0]
    ripe = "; ".join(
        f"fall {_number(r['fall'])}, z {_number(r['z'])}{', ripe' if r['ripe'] else ''}"
        for r in default["ripe"]
    )
    chosen = [
        [c["method"], c["seed"], f"{c['full']:g}", f"{c['raced']:g}"]
        + [f"{c['loss_full']:.3f}", f"{c['loss_raced']:.3f}"]
        for c in default["chosen"]
    ]
    rates = ["method", "seed", "full: rate", "raced: rate", "full: loss", "raced: loss"]
    return "\n\n".join(
        [where(found), markdown(head, rows), f"The control: {ripe}", markdown(rates, chosen)]
    )


def _with_error(value: Sequence[float | None]) -> str:
    mean, error = value
    return _number(mean) + ("" if error is None else f" ± {error:.3f}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def exit_code(found: dict[str, Any]) -> int:
    """Return 1 if the default rule chooses otherwise too often."""
    default = found["rules"][0]
    return int(default["other_setting"] > ALLOWED * default["replicates"])


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--study", type=Path, default=DEMO, help="this study file; the demo")
    parser.add_argument("--seeds", type=int, default=2, help="replicates of each method")
    parser.add_argument("--steps", type=int, help="of each trial, in place of the study's")
    parser.add_argument("--workers", type=int, help="groups of trials side by side")
    parser.add_argument("--executor", help="in place of the study's, such as inline")
    parser.add_argument("--folder", type=Path, default=Path("runs/race-real"), help="of the study")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    return told(parser.parse_args(argv), measure, table, exit_code)


if __name__ == "__main__":
    sys.exit(main())
