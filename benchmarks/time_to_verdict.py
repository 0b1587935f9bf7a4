"""How long a study takes from command to report, and how long its trials take the usual way.

    python benchmarks/time_to_verdict.py --folder ttv --out time-to-verdict.json    # on a GPU
    python benchmarks/time_to_verdict.py --quick --json                             # two CPU cores

*Ours* is ``bakeoff run`` as a process of its own, so that imports and set-up count. *The usual way*
is sampled: one finalist of each method again as a new process (``usual_trial.py``), which imports
transformers and PEFT, loads the base, attaches the method, takes the same steps over the same rows
in padded batches, validates as often, answers the test rows (``generate`` in batches of 50) and
saves. Its total is extrapolated to the trials that our study ran, in favour of the usual way:

- a process imports and loads once, also where a trial goes on from a rung;
- a trial that was stopped at a rung costs its steps and validations up to there;
- a finalist that was not chosen is neither tested nor saved;
- tokenising, cost probes, the base's own answers, forgetting and reloading cost nothing.

With ``trl`` in ``--sides`` (needs the package ``trl``), the steps are timed with ``SFTTrainer`` and
packing too, and replace those of the plain loop in a second total.

``overhead_share`` is the share of our wall time, times the workers, that is neither training nor
evaluation of a trial: everything else counts, waiting workers included. ``--folder`` goes on
where it was stopped; ``--seconds`` stops in time, and the same command goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
import usual_side
from real_study import DEMO, about, markdown, told, where

from bakeoff import api
from bakeoff.core.errors import BakeoffError
from bakeoff.core.results import Status, TrialResult
from bakeoff.data.rows import SPLITS
from bakeoff.study.config import StudySpec, parse_spec
from bakeoff.study.monitoring.progress import LOG
from bakeoff.study.storage.database import Reader
from bakeoff.study.storage.study_dir import DATABASE

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples/sft-smollm2-gpu.toml"
QUICK: dict[str, Any] = {
    "study": DEMO, "seeds": 2, "methods": "lora,ia3", "steps": 9, "limit": "108/40/80",
}  # fmt: skip
ENDED = (0, 4)
"""Exit codes of a study that came to its end; 4: some of its trials failed."""
START, CHECKS, REPORT, LAST = "start and import", "checks", "report", "to the end"
SIDES = {"usual": "torch", "trl": "trl"}
"""The usual way's sides, and who takes their steps."""


class Run(NamedTuple):
    """One trial of our study: what it did, and its seconds in each stage.

    ``stages`` maps a stage to seconds of training, evaluation and set-up (``PARTS``).
    """

    method: str
    steps: int
    validations: int
    tested: bool
    stages: Mapping[str, tuple[float, float, float]]


PARTS = ("training", "evaluation", "set-up")


class Sample(NamedTuple):
    """Seconds of the usual way: to start a process, and for each thing that a trial does."""

    start: float
    step: float
    validation: float
    test: float

    def trial(self, run: Run) -> float:
        """Return the seconds of a trial."""
        seconds = self.start + run.steps * self.step + run.validations * self.validation
        return seconds + (self.test if run.tested else 0.0)


def usual_seconds(runs: Iterable[Run], samples: Mapping[str, Sample]) -> dict[str, float]:
    """Return what the trials of each method take the usual way, one after another."""
    found = dict.fromkeys(samples, 0.0)
    for run in runs:
        found[run.method] += samples[run.method].trial(run)
    return found


def overhead_share(runs: Iterable[Run], seconds: float, workers: int) -> float:
    """Return the share of the workers' time in which no trial was trained or evaluated."""
    useful = sum(sum(parts[:2]) for run in runs for parts in run.stages.values())
    return 1 - useful / (workers * seconds)


def stages_of(
    at_rungs: Sequence[TrialResult], end: TrialResult | None, steps: int
) -> dict[str, tuple[float, float, float]]:
    """Return a trial's seconds in each stage; results hold its seconds since its beginning.

    ``at_rungs`` are ordered by step. A result that is not later than its predecessor is the same,
    with a reason, unless it was scored on test.
    """
    found: dict[str, tuple[float, float, float]] = {}
    before = (0.0, 0.0, 0.0)
    for result in [*at_rungs, *([end] if end else [])]:
        now = tuple(
            part or 0.0
            for part in (result.train_seconds, result.evaluation_seconds, result.load_seconds)
        )
        spent = tuple(max(0.0, b - a) for a, b in zip(before, now, strict=True))
        step = result.step or 0
        name = LAST if step >= steps else f"to step {step}"
        if result is end and at_rungs and "test" in result.splits:
            name = "on test"
        earlier = found.get(name, (0.0, 0.0, 0.0))
        found[name] = tuple(a + b for a, b in zip(earlier, spent, strict=True))  # type: ignore[assignment]
        before = now  # type: ignore[assignment]
    return {name: parts for name, parts in found.items() if any(parts)}


def stage_name(title: str) -> str:
    """Return the stage that a phase of the study's log belongs to."""
    step = re.search(r"to step \d+", title)
    if step:
        return step[0]
    if title.endswith("on test"):
        return "on test"
    if title.startswith(("Replicates", "Round", "One more")):
        return LAST
    return title.lower()


def phase_seconds(
    started: float, ended: float, events: Sequence[tuple[float, str | None]], finished: bool = True
) -> dict[str, float]:
    """Return one run's wall time by phase, from its log: times and titles of phases, else None.

    A process starts and imports until the first event, then checks until the first phase; what
    comes after the last event of a ``finished`` run is the report.
    """
    first, last = (events[0][0], events[-1][0]) if events else (ended, ended)
    marks = [(started, START), (first, CHECKS)]
    marks += [(at, stage_name(title)) for at, title in events if title is not None]
    marks += [(last, REPORT)] if finished else []
    marks.append((ended, ""))
    found: dict[str, float] = {}
    for (since, name), (until, _) in zip(marks, marks[1:], strict=False):
        found[name] = found.get(name, 0.0) + until - since
    return found


class Folder(NamedTuple):
    """Where a comparison keeps what it measured."""

    path: Path

    @property
    def study(self) -> Path:
        """The folder of our study."""
        return self.path / "study"

    @property
    def asked(self) -> Path:
        """The study file."""
        return self.path / "asked.toml"

    def ask(self, text: str) -> None:
        """Write the study file.

        Raises:
            BakeoffError: ``other-study``.
        """
        if self.asked.exists() and self.asked.read_text(encoding="utf-8") != text:
            raise BakeoffError(
                "other-study", f"{self.path} has measured another study.", "another --folder."
            )
        self.asked.write_text(text, encoding="utf-8")

    def marks(self) -> list[dict[str, Any]]:
        """Return the start of each run of our study, and its end if it had one."""
        file = self.path / "runs.jsonl"
        return list(map(json.loads, file.read_text().splitlines())) if file.exists() else []

    def mark(self, **values: Any) -> None:
        """Note the start or the end of a run."""
        with (self.path / "runs.jsonl").open("a") as file:
            file.write(json.dumps({**values, "at": time.time()}) + "\n")

    def ended(self) -> bool:
        """Return whether our study has come to its end."""
        return any(mark.get("code") in ENDED for mark in self.marks())

    def runs(self) -> list[tuple[float, float, list[tuple[float, str | None]], bool]]:
        """Return each run of our study: start, end, events, and whether it ended the study.

        A killed run ended at its last event.
        """
        lines = (self.study / LOG).read_text(encoding="utf-8").splitlines()
        log = [(_seconds(e["time"]), e.get("title")) for e in map(json.loads, lines)]
        marks, found = self.marks(), []
        for i, mark in enumerate(marks):
            if "code" in mark:
                continue
            after = next((m for m in marks[i + 1 :]), None)
            until = after["at"] if after else float("inf")
            events = [(at, title) for at, title in log if mark["at"] <= at < until]
            code = after and after.get("code")
            end = max((at for at, _ in events), default=mark["at"])
            end = after["at"] if after and code is not None else end
            found.append((mark["at"], end, events, code in ENDED))
        return found


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def study_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return the study file's values with what the options change; paths become absolute."""
    values = tomllib.loads(args.study.read_text(encoding="utf-8"))
    budget = values.setdefault("budget", {})
    if args.seeds is not None:
        budget.pop("most", None)
        budget["seeds"] = args.seeds
    if args.steps is not None:
        budget["steps"] = args.steps
    if args.limit is not None:
        values["data"]["limit"] = dict(zip(SPLITS, map(int, args.limit.split("/")), strict=True))
    if args.methods is not None:
        control, *contenders = args.methods.split(",")
        values["methods"] = {"control": control, "contenders": contenders}
        tables = values.get("method", {})
        values["method"] = {n: tables[n] for n in (control, *contenders) if n in tables}
    if args.model is not None:
        values["base"]["model"] = str(args.model.resolve())
    for table, key in (("base", "model"), *(("data", split) for split in SPLITS)):
        given = values[table].get(key)
        if given is not None and (args.study.parent / given).exists():
            values[table][key] = str((args.study.parent / given).resolve())
    return values


def run_ours(folder: Folder, left: float) -> None:
    """Run our study, or go on with it, for so many seconds at most."""
    if folder.ended():
        return
    folder.mark(start=True)
    command = [sys.executable, "-m", "bakeoff", "run", str(folder.asked), "--json"]
    with subprocess.Popen(
        [*command, "--out", str(folder.study)], stdout=subprocess.DEVNULL
    ) as process:
        try:
            code = process.wait(left)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            code = process.wait()
    folder.mark(code=code)
    if code not in ENDED and left == float("inf"):
        raise BakeoffError("study-failed", f"The study ended with code {code}.", "see above.")


def read_runs(study: Path) -> list[Run]:
    """Return the trials of our study as far as they have results."""
    trials = api.read_trials(study)
    with Reader(study / DATABASE) as reader:
        at_rungs = reader.rung_results([trial.id for trial, _ in trials])
    found = []
    for trial, end in trials:
        rungs = [result for trial_id, result in at_rungs if trial_id == trial.id]
        last = end or (rungs[-1] if rungs else None)
        if last is None or last.step is None:
            continue
        stages = stages_of(rungs, end, trial.conditions.steps)
        tested = last.status is Status.DONE and "test" in last.splits
        found.append(Run(trial.method.name, last.step, len(last.curve), tested, stages))
    return found


def unit_costs(found: Mapping[str, Any], steps_of: Mapping[str, Any] | None = None) -> Sample:
    """Return a sample's seconds by what they are for; start and steps may be another sample's."""
    seconds, other = found["seconds"], steps_of or found
    start = sum(other["seconds"][part] for part in ("import", "load", "attach"))
    return Sample(
        start,
        other["seconds"]["train"] / other["steps"],
        seconds["validation"] / found["validations"],
        seconds["answer"] + seconds["score"] + seconds["save"],
    )


def our_phases(folder: Folder, runs: Sequence[Run], workers: int) -> list[dict[str, Any]]:
    """Return our study's wall time by phase, and how much of it each part of a trial took.

    The seconds of trials are divided by the workers, as they run side by side.
    """
    wall: dict[str, float] = {}
    for run in folder.runs():
        for name, seconds in phase_seconds(*run).items():
            wall[name] = wall.get(name, 0.0) + seconds
    found = []
    for name, seconds in wall.items():
        parts = [run.stages[name] for run in runs if name in run.stages]
        spent = [sum(p) / workers for p in zip(*parts, strict=True)] or [0.0] * len(PARTS)
        row = {"phase": name, "seconds": seconds, **dict(zip(PARTS, spent, strict=True))}
        found.append({**row, "other": seconds - sum(spent)})
    return found


def comparison(
    ours: float, runs: Sequence[Run], samples: Mapping[str, Sample]
) -> dict[str, Any] | None:
    """Return the usual way's total and the ratio; None where a method has no sample."""
    if not {run.method for run in runs} <= samples.keys():
        return None
    by_method = usual_seconds(runs, samples)
    total = sum(by_method.values())
    return {"seconds": total, "ratio": total / ours, "by_method": by_method}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing of the chosen sides; return what is known then."""
    load, deadline = os.getloadavg()[0], time.monotonic() + (args.seconds or float("inf"))
    with tempfile.TemporaryDirectory(prefix="time-to-verdict-") as temporary:
        folder = Folder(args.folder or Path(temporary))
        folder.path.mkdir(parents=True, exist_ok=True)
        values = study_values(args)
        spec = parse_spec(values)
        folder.ask(tomli_w.dumps(values))
        sides = args.sides.split(",")
        if "ours" in sides:
            run_ours(folder, deadline - time.monotonic())
        if not folder.ended():
            raise BakeoffError(
                "study-unfinished",
                "Our study has not come to its end; its trials are those that are sampled.",
                "the same command again, with `ours` among the sides.",
            )
        found = our_side(folder, spec, load)
        why = usual_side.why_no_trl(found["task"]) if "trl" in sides else None
        found["notes"] = [why] if why else []
        pairs = usual_side.trials_to_sample(folder.study)
        for side, trainer in SIDES.items():
            for pair in pairs.values():
                if side in sides and time.monotonic() < deadline and not (side == "trl" and why):
                    usual_side.sample(folder.path, folder.study, spec, pair, trainer)
            found[side] = usual_side.kept_samples(folder.path, pairs, trainer)
        runs = read_runs(folder.study)
    return {**found, **totals(found, runs)}


def our_side(folder: Folder, spec: StudySpec, load: float) -> dict[str, Any]:
    """Return what our study took, and where."""
    record, runs = api.read_record(folder.study), read_runs(folder.study)
    workers = spec.engine.workers
    seconds = sum(run[1] - run[0] for run in folder.runs())
    counts: dict[str, dict[str, int]] = {}
    for run in runs:
        one = counts.setdefault(run.method, {"trials": 0, "steps": 0, "tested": 0})
        one["trials"] += 1
        one["steps"] += run.steps
        one["tested"] += run.tested
    return {
        **about("time_to_verdict", spec, record, load),
        "task": record.task,
        "seeds": len({trial.seed for trial, _ in record.trials}),
        "seconds": seconds,
        "runs": len(folder.runs()),
        "overhead_share": overhead_share(runs, seconds, workers),
        "trials": counts,
        "phases": our_phases(folder, runs, workers),
    }


def totals(found: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Return both comparisons, as far as there are samples."""
    usual, trl = found.get("usual", {}), found.get("trl", {})
    plain = {name: unit_costs(one) for name, one in usual.items()}
    packed = {name: unit_costs(usual[name], one) for name, one in trl.items() if name in usual}
    compared = comparison(found["seconds"], runs, plain)
    return {
        "usual_way": compared,
        "with_trl": comparison(found["seconds"], runs, packed) if packed else None,
        "ratio": compared and compared["ratio"],
    }


def table(found: dict[str, Any]) -> str:
    """Return the result for a reader."""
    n = sum(one["trials"] for one in found["trials"].values())
    lines = [["our study, command to report", f"{found['seconds']:.1f}", ""]]
    for key, text in (("usual_way", "the usual way"), ("with_trl", "the same, steps by TRL")):
        one = found[key]
        if one is not None:
            lines.append([f"{text}, {n} trials (extrapolated)"])
            lines[-1] += [f"{one['seconds']:,.0f}", f"{one['ratio']:.1f} times"]
    parts = [*PARTS, "other"]
    phases = [
        [p["phase"], f"{p['seconds']:.1f}", *(f"{p[key]:.1f}" for key in parts)]
        for p in found["phases"]
    ]
    samples = [sample_row(name, one, found["trials"]) for name, one in found["usual"].items()]
    head = ["method", "import and load, s", "a step, ms", "a validation, s", "test and save, s"]
    head += ["a trial, s", "its score", "ours", "our trials", "their steps", "on test"]
    return "\n\n".join(
        [
            where(found),
            markdown(["", "seconds", "ratio"], lines),
            f"Overhead: {found['overhead_share']:.1%} of {found['machine']['workers']} workers' "
            f"time is neither training nor evaluation. Seeds: {found['seeds']}; rows: "
            f"{found['study']['n_items']}; runs of our command: {found['runs']}.",
            markdown(["phase", "seconds", *parts], phases),
            *([markdown(head, samples)] if samples else []),
            *found["notes"],
        ]
    )


def sample_row(name: str, one: Mapping[str, Any], trials: Mapping[str, Any]) -> list[str]:
    """Return the table's row of a method that was sampled."""
    unit, counts = unit_costs(one), trials[name]
    scores = (one["score"], one["our_score"])
    seconds = (unit.validation, unit.test, sum(one["seconds"].values()))
    return [
        name,
        f"{unit.start:.1f}",
        f"{1000 * unit.step:.0f}",
        *(f"{value:.2f}" for value in seconds),
        *("-" if value is None else f"{value:.3f}" for value in scores),
        *(str(counts[key]) for key in ("trials", "steps", "tested")),
    ]


def figures(found: dict[str, Any]) -> str:
    """Return the three figures as JSON."""
    return json.dumps({key: found[key] for key in ("ratio", "seconds", "overhead_share")})


def exit_code(found: dict[str, Any]) -> int:
    """Return 0 if everything that was asked for is there, or was never to be."""
    return 0 if "usual" not in found["sides"] or found["ratio"] is not None else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the demo's model, small")
    parser.add_argument("--study", type=Path, help=f"default: {EXAMPLE.name}")
    parser.add_argument("--seeds", type=int, help="default: 12")
    parser.add_argument("--methods", help="comma-separated, the control first; default: all")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--limit", help="rows of train/validation/test, such as 288/80/440")
    parser.add_argument("--model", type=Path, help="a folder, instead of the study's base")
    parser.add_argument("--sides", default="ours,usual", help="of ours, usual and trl")
    parser.add_argument("--folder", type=Path, help="keeps what was measured, to go on there")
    parser.add_argument("--seconds", type=float, help="stop after so many; run again to go on")
    parser.add_argument("--out", type=Path, help="write the JSON to a file")
    parser.add_argument("--json", action="store_true", help="print three figures as JSON")
    args = parser.parse_args(argv)
    for key, value in (QUICK if args.quick else {"study": EXAMPLE, "seeds": 12}).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    return told(
        args,
        lambda given: {**measure(given), "sides": given.sides.split(",")},
        figures if args.json else table,
        exit_code,
    )


if __name__ == "__main__":
    sys.exit(main())
