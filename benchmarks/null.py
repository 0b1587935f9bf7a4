"""Does a verdict leave alike what is alike? Real studies of LoRA against itself, verdicts counted.

    python benchmarks/null.py --workers 16 --out null.json

Every study tunes and trains anew in each of 8 replicates, on the demo's rows. It runs through
``bakeoff.run``; this script reads what was stored.

*Twins*: a study compares the control with the same PEFT config under another name. Whatever differs
between the two is the harness's doing: a name that leaks into a seed or a folder, a neighbour in a
lane. Where nothing does, every score is the same to the bit: ``identical`` counts those studies.

*Strangers*: one study's control against another study's: other seeds of data order and
initialisation, and learning rates that were chosen anew, on the same test items. Replicates are
paired by position, and share nothing. Both follow the same procedure, so ``better`` and ``worse``
are false. Studies 0 and 1, 2 and 3, ... are independent pairs; all pairs of studies are counted,
too, without an interval, as each study is in many of them.

*F* is the variance of the studies' mean scores over what the spread of their own replicates
explains. It is 1 where replicates contain all the luck of a study, and was 3.3 when one search
chose the learning rate for all seeds of a study (results/2026-11-26-null.json).

A finished study is a file of scores in ``--folder``: a run that is repeated, elsewhere with copies
of these files, too, trains only what is missing. ``--minutes`` starts no further study after that
time. A machine without the model gets it in half the bytes (bf16, in which the base is frozen on a
CPU with bf16 anyway):

    python benchmarks/null.py --pack runs/minilm-bf16       # where the model is
    python benchmarks/null.py --model runs/minilm-bf16 ...  # where the studies run
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from real_study import DEMO, about, changed, checked, markdown, run_study, told, where
from scipy import stats

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.rounds import RoundsPlan, run_looks
from bakeoff.analysis.trial_runs import method_scores, runs_by_method
from bakeoff.core.errors import BakeoffError
from bakeoff.core.record import StudyRecord
from bakeoff.core.trial import DESCRIPTIVE_FIELDS, MethodEntry
from bakeoff.data import assets
from bakeoff.data.rows import SPLITS
from bakeoff.study.config import StudySpec, dump_spec, read_spec
from bakeoff.study.config.budget import BudgetSpec
from bakeoff.study.planning import trials
from bakeoff.study.planning.rounds import planned_looks
from bakeoff.study.setup import splits
from bakeoff.study.setup.open_study import load_methods
from bakeoff.study.storage import study_dir as study_folder

TWIN = "twin"
APART = 100
"""Between the seeds of two studies: no replicate of one has a seed of the next."""
FALSE = (Verdict.BETTER.value, Verdict.WORSE.value)
MAX_FALSE_PAIRS, MAX_CROSS_SHARE, MAX_F = 3, 0.09, 1.65
"""What 40 studies pass with where 5 % hold (docs/verdicts.md): false verdicts among 20 independent
pairs (98 % of the time), the share of false ones among all 780, the 99 % quantile of F."""


class Run(NamedTuple):
    """A finished study: its control's scores on test, and what is reported of it."""

    scores: Scores
    row: dict[str, Any]


class Job(NamedTuple):
    """A study to run, unless it is past the ``deadline`` (``time.time()``)."""

    spec: StudySpec
    source: Path
    folder: Path
    deadline: float | None


def pack(target: Path) -> None:
    """Write the demo's model with its floating-point weights in bf16, half of the bytes."""
    import torch
    from safetensors.torch import load_file, save_file

    source = assets.prepare("all-minilm-l6-v2", lambda text: print(text, file=sys.stderr))
    shutil.copytree(source, target, dirs_exist_ok=True)
    weights = load_file(source / "model.safetensors")
    halved = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in weights.items()}
    save_file(halved, target / "model.safetensors", metadata={"format": "pt"})


def freeze(spec: StudySpec, source: Path, folder: Path, limits: dict[str, int | None]) -> None:
    """Write the rows that all studies share: the study's own splits, cut to ``limits``."""
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
    kept = ("columns", "group", "item_groups")
    values["data"] = {k: v for k, v in values["data"].items() if k in kept}
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


def run_all(spec: StudySpec, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the studies that are missing, and return the files of all that are finished.

    Raises:
        BakeoffError: what a study raises, and ``null-differs`` for files of other studies.
    """
    deadline = None if given.minutes is None else time.time() + 60 * given.minutes
    seeds = range(given.seed, given.seed + APART * given.runs, APART)
    jobs = [
        Job(spec.model_copy(update={"seed": seed}), given.study.parent, given.folder, deadline)
        for seed in seeds
    ]
    if given.workers == 1:
        found = [finish(job) for job in jobs]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(given.workers, context, max_tasks_per_child=1) as pool:
            found = list(pool.map(finish, jobs))
    finished = [values for values in found if values is not None]
    if any(values["study"] != fingerprint(spec) for values in finished):
        raise BakeoffError(
            "null-differs",
            f"{given.folder} has scores of studies with other rates, steps or methods.",
            "another --folder.",
        )
    return finished


def finish(job: Job) -> dict[str, Any] | None:
    """Return the file of a finished study, run it first where there is none.

    None past the deadline. The file is JSON: what ``load`` reads, and how it was measured.
    """
    seed, load_before = job.spec.seed, os.getloadavg()[0]
    path = job.folder / f"seed-{seed}.json"
    if not path.exists():
        if job.deadline is not None and time.time() > job.deadline:
            return None
        record, report = run_study(job.spec, job.source, job.folder / f"seed-{seed}")
        values = read_study(seed, record, report)
        values |= {"study": fingerprint(job.spec), "better": record.metric.better}
        values |= {"about": about("null", job.spec, record, load_before)}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(values), encoding="utf-8")
        partial.replace(path)
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def fingerprint(spec: StudySpec) -> str:
    """Return a hash of what the studies have in common: all but seed, paths and processes."""
    values = dump_spec(spec)
    common = {part: values[part] for part in ("budget", "method", "methods", "task")}
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:16]


def read_study(seed: int, record: StudyRecord, report: dict[str, Any]) -> dict[str, Any]:
    """Return the control's scores and what is reported of a study, as JSON values.

    Raises:
        BakeoffError: ``null-unscored``.
    """
    scores = method_scores(record, runs_by_method(record))
    rows = {row["method"]: row for row in report["methods"]}
    control, twin = record.methods
    if control not in scores or twin not in scores:
        failed = json.dumps(report["failures"])
        raise BakeoffError("null-unscored", f"Seed {seed}: {failed}", "see its log.jsonl.")
    of_control = scores[control]
    row = {
        "seed": seed,
        "score": rows[control]["score"],
        "test_scores": of_control.values.mean(axis=1).tolist(),
        "rates": _rates(rows[control]),
        "twin_rates": _rates(rows[twin]),
        "difference": rows[twin]["difference"],
        "verdict": rows[twin]["verdict"],
        "identical": bool(np.array_equal(of_control.values, scores[twin].values)),
        "wall_seconds": record.wall_seconds,
    }
    groups = None if of_control.groups is None else of_control.groups.tolist()
    return {"row": row, "values": of_control.values.tolist(), "groups": groups}


def _rates(row: dict[str, Any]) -> list[float | None]:
    """Return the learning rate that each replicate chose; None where all settings diverged."""
    return [(seed.get("setting") or {}).get("learning_rate") for seed in row["seeds"]]


def load(values: dict[str, Any]) -> Run:
    """Return a study from its file."""
    scores = np.array(values["values"], dtype=np.float64)
    groups = None if values["groups"] is None else np.array(values["groups"])
    return Run(_by_position(scores, groups), values["row"])


def _by_position(values: np.ndarray[Any, Any], groups: np.ndarray[Any, Any] | None) -> Scores:
    return Scores(tuple(range(1, len(values) + 1)), values, groups)


def plan_rounds(replicates: int, margin: float, better: str) -> RoundsPlan:
    """Return the looks of a study of one contender in rounds, up to so many replicates."""
    looks = planned_looks(BudgetSpec(most=replicates), 1, lanes_free=False)
    return RoundsPlan(tuple(range(1, replicates + 1)), looks, margin, better)


def judge(first: Run, second: Run, plan: RoundsPlan) -> dict[str, Any]:
    """Look at two studies' controls in rounds, as at a contender and its control."""
    looks = run_looks({"second": second.scores}, first.scores, plan, needs=False)
    closed = looks[-1].contenders["second"]
    assert closed.verdict is not None
    return {
        "first": first.row["seed"],
        "second": second.row["seed"],
        "estimate": closed.estimate,
        "low": closed.low,
        "high": closed.high,
        "replicates": looks[-1].replicates,
        "verdict": closed.verdict.value,
    }


def variance_ratio(runs: Sequence[Run]) -> dict[str, float]:
    """Return F of the variance between the studies' means over that within them.

    ``p`` is its tail under normal replicates; the test items are the same in all studies, and are
    in neither variance.
    """
    means = np.array([run.scores.values.mean(axis=1) for run in runs])  # [studies, replicates]
    studies, replicates = means.shape
    within = float(means.var(axis=1, ddof=1).mean())
    between = replicates * float(means.mean(axis=1).var(ddof=1))
    ratio = between / within if within > 0 else float("inf" if between > 0 else 1)
    freedom = studies - 1, studies * (replicates - 1)
    return {
        "F": ratio,
        "p": float(stats.f.sf(ratio, *freedom)),
        "between_sd": float(np.sqrt(between / replicates)),
        "within_sd": float(np.sqrt(within)),
    }


def total(rows: Sequence[dict[str, Any]], independent: bool = True) -> dict[str, Any]:
    """Count verdicts; the interval of the false ones' share is Clopper and Pearson's, at 95 %."""
    verdicts = Counter(str(row["verdict"]) for row in rows)
    false = sum(verdicts[v] for v in FALSE)
    counted = {"of": len(rows), "false": false, "verdicts": dict(verdicts)}
    if not independent or not rows:
        return counted
    exact = stats.binomtest(false, len(rows)).proportion_ci(0.95, method="exact")
    return {**counted, "low": float(exact.low), "high": float(exact.high)}


def summary(runs: Sequence[Run], plan: RoundsPlan) -> dict[str, Any]:
    """Return the figures of all studies: twins, independent pairs, all pairs, F."""
    judged = {
        (i, j): judge(runs[i], runs[j], plan)
        for i, j in itertools.combinations(range(len(runs)), 2)
    }
    pairs = [judged[i, i + 1] for i in range(0, len(runs) - 1, 2)]
    rows = [run.row for run in runs]
    found = {
        "runs": rows,
        "pairs": pairs,
        "looks": list(plan.looks),
        "totals": {
            "twins": {**total(rows), "identical": sum(row["identical"] for row in rows)},
            "strangers": total(pairs),
            "all_pairs": total(list(judged.values()), independent=False),
        },
        "variance": variance_ratio(runs) if len(runs) > 1 else None,
    }
    return {**found, "passed": checks(found)}


def checks(found: dict[str, Any]) -> dict[str, bool]:
    """Return whether each of the acceptance criteria holds."""
    twins, strangers, pairs = (found["totals"][k] for k in ("twins", "strangers", "all_pairs"))
    variance = found["variance"]
    return {
        "twins identical to the bit": twins["identical"] == twins["of"] and not twins["false"],
        f"at most {MAX_FALSE_PAIRS} false pairs of 20": (
            strangers["false"] <= MAX_FALSE_PAIRS * max(1.0, strangers["of"] / 20)
        ),
        f"at most {MAX_CROSS_SHARE:.0%} of all pairs false": (
            pairs["false"] <= MAX_CROSS_SHARE * pairs["of"]
        ),
        f"F at most {MAX_F}": variance is None or variance["F"] <= MAX_F,
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as text."""
    runs = [
        [
            row["seed"],
            ", ".join(f"{r:g} x {n}" for r, n in Counter(row["rates"]).most_common() if r),
            f"{row['score']['estimate']:.4f}",
            "to the bit" if row["identical"] else "no",
            row["verdict"],
            f"{row['wall_seconds']:.0f}",
        ]
        for row in found["runs"]
    ]
    pairs = [
        [f"{row['first']}, {row['second']}", _difference(row), row["replicates"], row["verdict"]]
        for row in found["pairs"]
    ]
    parts = [where(found), f"{len(runs)} of {found['planned']} studies"]
    parts.append(markdown(["seed", "rates", "score", "twin identical", "verdict", "s"], runs))
    parts.append(markdown(["seeds", "difference", "replicates", "verdict"], pairs))
    for name, part in found["totals"].items():
        line = f"{name}: {part['false']} of {part['of']} better or worse"
        if "high" in part:
            line += f" (95 % exact: {part['low']:.1%} to {part['high']:.1%})"
        parts.append(f"{line}; {part['verdicts']}")
    if found["variance"] is not None:
        parts.append(
            "F = {F:.2f} (p {p:.3f}): SD of studies {between_sd:.4f}, of replicates "
            "{within_sd:.4f}".format(**found["variance"])
        )
    parts += [f"{'yes' if holds else 'NO '}: {name}" for name, holds in found["passed"].items()]
    return "\n\n".join(parts)


def _difference(row: dict[str, Any]) -> str:
    return f"{row['estimate']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the studies, or go on with them, and return everything.

    Raises:
        BakeoffError: ``null-nothing`` if no study is finished; what a study raises.
    """
    source = given.study.parent
    limits = {"train": given.train, "validation": given.validation, "test": given.items}
    values = dump_spec(read_spec(given.study))
    if given.model is not None:
        values = changed(values, "base", model=str(given.model.resolve()))
    values = changed(
        values, "budget", validations=given.validations, race=given.race, seeds=given.replicates
    )
    values = changed(values, "engine", device="cpu", executor="inline", workers=1, threads=1)
    values = changed(values, "verdict", check_head=False)
    values["budget"].pop("most", None)
    own = checked(values, given.steps, None)
    freeze(own, source, given.folder, limits)
    spec = twins(own, source, given.folder / "data", given.rates)
    finished = run_all(spec, given)
    if not finished:
        raise BakeoffError("null-nothing", "No study is finished.", "more --minutes.")
    plan = plan_rounds(given.replicates, spec.task.margin, finished[0]["better"])
    found = summary([load(values) for values in finished], plan)
    return {**finished[0]["about"], "planned": given.runs, **found}


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, run, print; 1 where a criterion fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=40, help="studies")
    parser.add_argument("--replicates", type=int, default=8, help="of each study")
    parser.add_argument("--seed", type=int, default=0, help="of the first study; the next is +100")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates; the study's")
    parser.add_argument("--steps", type=int, default=30, help="of each trial")
    parser.add_argument("--race", choices=("on", "off"), help="in the search; the study's")
    parser.add_argument("--validations", type=int, default=1, help="in each trial")
    parser.add_argument("--train", type=int, help="only so many rows, the same for every study")
    parser.add_argument("--validation", type=int, default=100, help="as --train")
    parser.add_argument("--items", type=int, default=640, help="test items, as --train")
    parser.add_argument("--workers", type=int, default=1, help="studies at a time")
    parser.add_argument("--minutes", type=float, help="start no further study after that time")
    parser.add_argument("--study", type=Path, default=DEMO, help="base, data, task and control")
    parser.add_argument("--model", type=Path, help="folder of the base; the study's")
    parser.add_argument("--folder", type=Path, default=Path("runs/null"), help="of the studies")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="write the model in bf16, end")
    given = parser.parse_args(argv)
    if given.pack is not None:
        pack(given.pack)
        return 0
    return told(given, measure, table, lambda found: 0 if all(found["passed"].values()) else 1)


if __name__ == "__main__":
    sys.exit(main())
