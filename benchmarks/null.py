"""Does a verdict leave alike what is alike? Real studies of LoRA against itself, verdicts counted.

    python benchmarks/null.py --runs 20 --rates 1e-3 3e-3 1e-2 --out null.json

It resumes: study folders stay under ``--folder``, and a run that is there trains nothing again.

It runs studies through ``bakeoff.run`` and reads what they stored.

*Twins*: a run is a whole study (cost probes, search with race, final seeds, test) of the control
against the same PEFT config under another name. Whatever differs between the two is the harness's
doing: a name that leaks into a seed or a folder, a neighbour in a lane. Where nothing does, every
score is the same to the bit, and the verdict is trivial: ``identical`` counts those runs.

*Strangers*: run k's control against run k+1's, in a ring: other search, final and data-order seeds
and, it may be, another learning rate, on the same test items. Seeds are paired by position, and
share nothing. Here the verdict has real noise to see through. It is still not quite a test of the
null hypothesis: where the two chose different rates they are different settings, which the
intervals, made from final seeds alone, do not promise to call alike (``same_setting``).

What 20 of 20 prove: little. The exact 95 % limit of a share seen 0 times in 20 is 16.8 % (13.9 %
one-sided), far above the 5 % promised, and neighbours of the ring share a run, so that the pairs
are not 20 independent ones; all pairs of runs are counted, too, with no interval, as each run is in
all its pairs. That false verdicts stay below 5 % is for ``verdict.py`` to show, over thousands of
simulated studies; this shows that no part of the real way from data to verdict breaks the promise
grossly.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from real_study import DEMO, about, changed, checked, markdown, run_study, told, where
from scipy import stats

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Verdict, compare
from bakeoff.analysis.trial_runs import count_test_items, runs_by_method, usable_scores
from bakeoff.core.errors import BakeoffError
from bakeoff.core.record import StudyRecord
from bakeoff.core.trial import DESCRIPTIVE_FIELDS, MethodEntry
from bakeoff.data.rows import SPLITS
from bakeoff.study.config import StudySpec, dump_spec, read_spec
from bakeoff.study.planning import trials
from bakeoff.study.setup import splits
from bakeoff.study.setup.open_study import load_methods
from bakeoff.study.storage import study_dir as study_folder

TWIN = "twin"
APART = 100
"""Between the seeds of two runs: no final seed of one is a seed of the next."""
FALSE = (Verdict.BETTER, Verdict.WORSE)


class Run(NamedTuple):
    """A study that ran: its control's scores on test, and what is stored of it."""

    seed: int
    scores: Scores
    setting: dict[str, Any]
    row: dict[str, Any]


def freeze(spec: StudySpec, source: Path, folder: Path, limits: dict[str, int | None]) -> None:
    """Write the rows that all runs share: the study's own splits, cut to ``limits``."""
    values = dump_spec(spec)
    values["data"] = changed(values["data"], "limit", **limits)
    study_folder.create(folder)
    cut = checked(values, None, None)
    study_folder.freeze_data(folder, splits.read_splits(cut, source))


def twins(
    spec: StudySpec, source: Path, data: Path, rates: Sequence[float] | None = None
) -> StudySpec:
    """Return the study of its control against the same under another name, on the rows in ``data``.

    Both try ``rates``; None: the control's.

    Raises:
        BakeoffError: ``twin-differs``, ``twin-unknown``.
    """
    control = load_methods(spec, source)[0]
    if control.peft is None:
        raise BakeoffError(
            "twin-unknown", f"{control.title} has no PEFT config.", "another [methods] control."
        )
    values = dump_spec(spec)
    rates = rates or trials.rate_grid(control, spec)
    own = {"learning_rates": list(rates)}
    values["methods"] = {"control": control.name, "contenders": [TWIN]}
    values["method"] = {
        control.name: {**values.get("method", {}).get(control.name, {}), **own},
        TWIN: {"kind": "peft", "peft": control.peft, "config": control.config, **own},
    }
    values["data"] = {"columns": values["data"].get("columns", {})}
    values["data"] |= {split: str(data.resolve() / f"{split}.jsonl") for split in SPLITS}
    values = changed(values, "budget", settings=len(rates), tune="learning_rate")
    made = checked({**values, "name": "null"}, None, None)
    refuse_difference(made, source)
    return made


def refuse_difference(spec: StudySpec, source: Path) -> None:
    """Refuse a twin that is not the control in all but its name.

    Raises:
        BakeoffError: ``twin-differs``.
    """
    control, twin = load_methods(spec, source)
    what = [_doing(e) | {"rates": trials.rate_grid(e, spec)} for e in (control, twin)]
    differing = [k for k in what[0] if what[0][k] != what[1][k]]
    if differing:
        raise BakeoffError(
            "twin-differs",
            f"{twin.name} differs from {control.name} in {', '.join(differing)}.",
            "a control that [method.twin] can repeat: a PEFT config without code of its own.",
        )


def _doing(entry: MethodEntry) -> dict[str, Any]:
    """Return all that determines what a method does: its entry without name and prose."""
    whole = dataclasses.asdict(entry)
    return {k: v for k, v in whole.items() if k not in (*DESCRIPTIVE_FIELDS, "name")}


def read_run(seed: int, record: StudyRecord, report: dict[str, Any]) -> Run:
    """Return what a study gave.

    Raises:
        BakeoffError: ``null-unscored``.
    """
    by_method = runs_by_method(record)
    found = [usable_scores(by_method[m], count_test_items(record)) for m in record.methods]
    rows = {row["method"]: row for row in report["methods"]}
    control, twin = (rows[m] for m in record.methods)
    if found[0] is None or found[1] is None:
        failed = json.dumps(report["failures"])
        raise BakeoffError("null-unscored", f"Seed {seed}: {failed}", "see its log.jsonl.")
    row = {
        "seed": seed,
        "score": control["score"],
        "test_scores": [s["test_score"] for s in control["seeds"]],
        "setting": control["setting"],
        "twin_setting": twin["setting"],
        "settings_tried": control["n_settings"],
        "difference": twin["difference"],
        "verdict": twin["verdict"],
        "identical": bool(np.array_equal(found[0].values, found[1].values)),
        "wall_seconds": record.wall_seconds,
    }
    return Run(seed, found[0], control["setting"], row)


def judge(first: Run, second: Run, spec: StudySpec, better: str) -> dict[str, Any]:
    """Compare the controls of two runs, their seeds paired by position."""
    pair = [Scores(tuple(range(len(r.seeds))), r.values) for r in (first.scores, second.scores)]
    rng = np.random.default_rng([first.seed, second.seed])
    found = compare({"second": pair[1]}, pair[0], margin=spec.task.margin, better=better, rng=rng)
    told = found["second"]
    return {
        "first": first.seed,
        "second": second.seed,
        "same_setting": first.setting == second.setting,
        **dataclasses.asdict(told.difference),
        "p_adjusted": told.p_adjusted,
        "p_equivalence": told.p_equivalence,
        "verdict": told.verdict.value,
    }


def ring(count: int) -> list[tuple[int, int]]:
    """Return each position with the next, the last with the first; no pair twice."""
    return sorted({(min(i, j), max(i, j)) for i in range(count) if (j := (i + 1) % count) != i})


def total(rows: Sequence[dict[str, Any]], independent: bool = True) -> dict[str, Any]:
    """Count verdicts; the interval of the false ones' share is Clopper and Pearson's, at 95 %."""
    verdicts = Counter(str(row["verdict"]) for row in rows)
    false = sum(verdicts[v] for v in FALSE)
    counted = {"of": len(rows), "false": false, "verdicts": dict(verdicts)}
    if not independent or not rows:
        return counted
    exact = stats.binomtest(false, len(rows)).proportion_ci(0.95, method="exact")
    return {**counted, "low": float(exact.low), "high": float(exact.high)}


def summary(runs: Sequence[Run], spec: StudySpec, better: str) -> dict[str, Any]:
    """Return the figures of all runs: twins, neighbours of the ring, all pairs."""
    judged = {
        (i, j): judge(runs[i], runs[j], spec, better)
        for i, j in itertools.combinations(range(len(runs)), 2)
    }
    around = [judged[pair] for pair in ring(len(runs))]
    rows = [run.row for run in runs]
    alike = [row for row in judged.values() if row["same_setting"]]
    return {
        "runs": rows,
        "pairs": around,
        "totals": {
            "twins": {**total(rows), "identical": sum(row["identical"] for row in rows)},
            "strangers": total(around),
            "strangers_same_setting": total([row for row in around if row["same_setting"]]),
            "all_pairs": total(list(judged.values()), independent=False),
            "all_pairs_same_setting": total(alike, independent=False),
        },
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as text."""
    runs = [
        [
            row["seed"],
            f"{row['setting']['learning_rate']:g}",
            f"{row['score']['estimate']:.4f}",
            _difference(row["difference"]),
            "to the bit" if row["identical"] else "no",
            row["verdict"],
            f"{row['wall_seconds']:.0f}",
        ]
        for row in found["runs"]
    ]
    pairs = [
        [
            f"{row['first']}, {row['second']}",
            "same" if row["same_setting"] else "other",
            _difference(row),
            f"{row['p_equivalence']:.3f}",
            row["verdict"],
        ]
        for row in found["pairs"]
    ]
    head = ["seed", "rate", "score", "twin - control", "identical", "verdict", "s"]
    parts = [where(found), markdown(head, runs)]
    parts.append(markdown(["seeds", "rate", "difference", "p equivalence", "verdict"], pairs))
    for name, part in found["totals"].items():
        line = f"{name}: {part['false']} of {part['of']} better or worse"
        if "high" in part:
            line += f" (95 % exact: {part['low']:.1%} to {part['high']:.1%})"
        parts.append(f"{line}; {part['verdicts']}")
    return "\n\n".join(parts)


def _difference(row: dict[str, Any]) -> str:
    return (
        f"{row['estimate']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}), "
        f"p {row['p_adjusted']:.3f}"
    )


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the studies, or go on with them, and return everything."""
    load, source = os.getloadavg()[0], given.study.parent
    limits = {"train": given.train, "validation": given.validation, "test": given.items}
    wished = changed(
        dump_spec(read_spec(given.study)),
        "budget",
        validations=given.validations,
        race=given.race,
    )
    own = checked(wished, given.steps, given.workers)
    freeze(own, source, given.folder, limits)
    spec = twins(own, source, given.folder / "data", given.rates)
    runs, record = [], None
    for seed in range(given.seed, given.seed + APART * given.runs, APART):
        seeded = spec.model_copy(update={"seed": seed})
        record, report = run_study(seeded, source, given.folder / f"seed-{seed}")
        runs.append(read_run(seed, record, report))
    assert record is not None
    found = summary(runs, spec, record.metric.better)
    return {**about("null", spec, record, load), **found}


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, run, print; 1 where any verdict is false."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next is +100")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates; the study's")
    parser.add_argument("--steps", type=int, default=30, help="of each trial")
    parser.add_argument("--race", choices=("on", "off"), help="in the search; the study's")
    parser.add_argument("--validations", type=int, default=1, help="in each trial")
    parser.add_argument("--train", type=int, help="only so many rows, the same for every run")
    parser.add_argument("--validation", type=int, default=100, help="as --train")
    parser.add_argument("--items", type=int, help="test items, as --train")
    parser.add_argument("--workers", type=int, help="groups of trials side by side")
    parser.add_argument("--study", type=Path, default=DEMO, help="base, data, task and control")
    parser.add_argument("--folder", type=Path, default=Path("runs/null"), help="of the studies")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    given = parser.parse_args(argv)
    return told(given, measure, table, any_false)


def any_false(found: dict[str, Any]) -> int:
    """Return 1 where any verdict is false."""
    return 1 if any(found["totals"][k]["false"] for k in ("twins", "strangers")) else 0


if __name__ == "__main__":
    sys.exit(main())
