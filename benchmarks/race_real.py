"""What the race saves and loses on a real study: the demo, run raced and in full, side by side.

    python benchmarks/race_real.py --out race-real.json     # resumes; folders stay under --folder

It runs the same study twice through ``bakeoff.run``, once with
``budget.race = "off"``, same seeds, and holds the two reports against each other. One study on one
data set: it shows what a user of this study would have saved and missed; ``race.py`` says what is
to be expected of many.

Steps are those that were trained, from the stored trials, wider grids included. A method whose
setting is the same in both has the very same final trials, so its score is the same to the bit, and
only the settings chosen, the methods stopped and (by the contenders that are left) the intervals
can differ. Costs are probed anew in each; the front is the full run's, over its scores and costs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from real_study import DEMO, about, changed, checked, markdown, run_study, told, where

from bakeoff.core.record import StudyRecord
from bakeoff.core.results import TrialResult
from bakeoff.core.trial import Trial
from bakeoff.study.config import StudySpec, dump_spec, read_spec

PHASES = ("search", "final")


def steps_of(trial: Trial, result: TrialResult) -> int:
    """Return the steps that a trial was trained: to a rung, to where it diverged, or all."""
    if result.step is not None:
        return result.step
    return result.diverged_at_step or trial.conditions.steps


def steps_by_phase(record: StudyRecord) -> dict[str, int]:
    """Return the training steps of a study's search and final phase, and of both."""
    phases = {
        phase: sum(steps_of(t, r) for t, r in record.trials if r is not None and t.phase == phase)
        for phase in PHASES
    }
    return {**phases, "total": sum(phases.values())}


def outcome(record: StudyRecord, report: dict[str, Any]) -> dict[str, Any]:
    """Return what one of the two runs gave."""
    rows = {row["method"]: _row(row) for row in report["methods"]}
    scored = {m: row["score"]["estimate"] for m, row in rows.items() if row["score"]}
    sign = 1 if record.metric.better == "higher" else -1
    return {
        "steps": steps_by_phase(record),
        "wall_seconds": record.wall_seconds,
        "train_seconds": report["timing"]["train_seconds"],
        "evaluation_seconds": report["timing"]["evaluation_seconds"],
        "best": max(scored, key=lambda m: sign * scored[m]) if scored else None,
        "recommended": report["recommendation"]["method"],
        "front": report["front"]["front"],
        "front_axes": report["front"]["axes"],
        "methods_stopped": report["race"]["methods_stopped"] if report["race"] else [],
        "methods": rows,
        "failures": report["failures"],
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("setting", "score", "difference", "verdict", "front_probability", "status", "reason")
    costs = ("train_peak_bytes", "step_milliseconds", "adapter_bytes", "trainable_parameters")
    return {
        **{key: row[key] for key in kept},
        "settings_tried": row["n_settings"],
        "test_scores": [s["test_score"] for s in row["seeds"]],
        "cost": {key: row["cost"][key] for key in costs},
    }


def contrast(raced: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """Return what the race saved and what it changed."""
    steps = {p: full["steps"][p] / max(1, raced["steps"][p]) for p in (*PHASES, "total")}
    rows = {m: (raced["methods"][m], full["methods"][m]) for m in full["methods"]}
    stopped = raced["methods_stopped"]
    gone = [m for m in full["front"] if m in stopped]
    both = [m for m, (one, other) in rows.items() if one["score"] and other["score"]]
    return {
        "times_fewer_steps": steps,
        "times_less_wall": full["wall_seconds"] / raced["wall_seconds"],
        "methods_stopped": stopped,
        "same_setting": {m: rows[m][0]["setting"] == rows[m][1]["setting"] for m in both},
        "score_raced_less_full": {
            m: rows[m][0]["score"]["estimate"] - rows[m][1]["score"]["estimate"] for m in both
        },
        "same_verdict": {m: rows[m][0]["verdict"] == rows[m][1]["verdict"] for m in both},
        "same_best": raced["best"] == full["best"],
        "best_stopped": full["best"] in stopped,
        "same_recommendation": raced["recommended"] == full["recommended"],
        "front": full["front"],
        "front_methods_stopped": gone,
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as text."""
    raced, full, held = found["raced"], found["full"], found["contrast"]
    counts = [
        [p, full["steps"][p], raced["steps"][p], f"{held['times_fewer_steps'][p]:.2f}"]
        for p in (*PHASES, "total")
    ]
    walls = [f"{side['wall_seconds']:.0f}" for side in (full, raced)]
    counts.append(["wall seconds", *walls, f"{held['times_less_wall']:.2f}"])
    rows = [
        [
            method,
            *_cells(full["methods"][method]),
            *_cells(raced["methods"][method]),
            "front" if method in full["front"] else "",
            "stopped" if method in raced["methods_stopped"] else "",
        ]
        for method in full["methods"]
    ]
    head = ["method", "full: rate", "test score", "verdict", "raced: rate", "test score", "verdict"]
    said = [
        f"best: {full['best']} in full, {raced['best']} raced; recommended: "
        f"{full['recommended']} in full, {raced['recommended']} raced",
        f"front in full ({', '.join(full['front_axes'])}): {', '.join(full['front'])}; "
        f"of these the race stopped: {', '.join(held['front_methods_stopped']) or 'none'}",
    ]
    tables = [
        markdown(["steps", "full", "raced", "ratio"], counts),
        markdown([*head, "true front", "race"], rows),
    ]
    return "\n\n".join([where(found), *tables, *said])


def _cells(row: Mapping[str, Any]) -> list[str]:
    rate = row["setting"].get("learning_rate")
    score = row["score"]
    return [
        f"{rate:g}" if rate is not None else "-",
        f"{score['estimate']:.4f}" if score else "-",
        row["verdict"],
    ]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the study twice, or go on with both, and return everything."""
    load, source = os.getloadavg()[0], given.study.parent
    spec = checked(dump_spec(read_spec(given.study)), given.steps, given.workers)
    sides = {}
    for name, race in (("raced", "on"), ("full", "off")):
        one: StudySpec = checked(changed(dump_spec(spec), "budget", race=race), None, None)
        before = os.getloadavg()[0]
        record, report = run_study(one, source, given.folder / name)
        sides[name] = {"load_before": before, **outcome(record, report)}
    known = about("race_real", spec, record, load)
    return {**known, "contrast": contrast(sides["raced"], sides["full"]), **sides}


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--study", type=Path, default=DEMO, help="this study file; the demo")
    parser.add_argument("--steps", type=int, help="of each trial, in place of the study's")
    parser.add_argument("--workers", type=int, help="groups of trials side by side")
    parser.add_argument("--folder", type=Path, default=Path("runs/race-real"), help="of both runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    given = parser.parse_args(argv)
    return told(given, measure, table, lambda _: 0)


if __name__ == "__main__":
    sys.exit(main())
