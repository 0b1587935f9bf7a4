"""What a study of 10,000 trials asks of the parent: segments carried, rows written, a report read.

    python benchmarks/scale_out.py --out scale.json     # about 10 minutes on two cores
    python benchmarks/scale_out.py --quick --json       # the same with little of everything

Segments are fake: they answer at once, with a result as large as a final trial's. So what is timed
is the parent and the way, never training. `driver CPU ms` is what the parent itself computes for
each outcome, all its threads together: it bounds what one parent can carry, however many machines
there are. Executors whose package is missing are left out and named. What only the parent needs is
imported where it is used: a process of the executor `process` imports this file, too.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import bakeoff
from bakeoff.core import plugins
from bakeoff.core.record import MetricInfo, StudyRecord
from bakeoff.core.results import Cost, CurvePoint, SplitScores, Status, TrialResult
from bakeoff.core.trial import Conditions, MethodEntry, Segment, Trial

PACKAGES = ("ray", "sqlalchemy", "numpy", "scipy")
STEPS, RUNG = 1000, 100
VALIDATION = 400
"""Validation items, whose losses are kept at a rung."""
CONDITIONS = Conditions(
    base="fake", revision=None, task="classify", task_options={}, metric="accuracy", data={},
    steps=STEPS, batch_size=8, evaluation_batch_size=8, warmup=0.1, decay=0.3, weight_decay=0.0,
    clip=1.0, head_learning_rate=None, validations=20, device="cpu", precision="fp32", threads=1,
)  # fmt: skip


class Size(NamedTuple):
    """How much is measured."""

    segments: dict[str, int]
    """By executor; others: few."""
    workers: tuple[int, ...]
    trials: int
    methods: int
    seeds: int
    items: int
    keeps: tuple[int, ...]


WHOLE = Size(
    {"process": 400, "ray": 4000}, (2, 8, 32), 10_000, 50, 10, 1000, (0, 100, 1000, 10_000)
)
QUICK = Size({}, (2,), 60, 3, 4, 20, (0, 20))


def answer(value: dict[str, Any]) -> dict[str, Any]:
    """Answer like a segment of one final trial, at once: what executors call."""
    return _answer(value["items"])


@functools.cache
def _answer(items: int) -> dict[str, Any]:
    return {"results": [result("0" * 12, items, np.random.default_rng(0)).to_json()]}


def result(trial_id: str, items: int, rng: np.random.Generator, level: float = 0.8) -> TrialResult:
    """Return a finished trial with a curve of 20 points and ``items`` test scores."""
    points = np.linspace(STEPS // 20, STEPS, 20)
    losses = 1.0 + np.exp(-points / 200) + rng.normal(0, 0.01, 20) - level
    curve = tuple(
        CurvePoint(int(p), float(x), float(x)) for p, x in zip(points, losses, strict=True)
    )
    splits = {"validation": SplitScores((), (), float(losses[-1]))}
    if items:
        right = (rng.random(items) < level).astype(float)
        splits["test"] = SplitScores(tuple(right.tolist()), ("a label",) * items, None)
    return TrialResult(
        trial_id, Status.DONE, curve=curve, splits=splits, trainable_parameters=1000,
        adapter_bytes=4096, train_seconds=60.0, evaluation_seconds=5.0, load_seconds=5.0,
        step=STEPS,
    )  # fmt: skip


def entry(number: int) -> MethodEntry:
    """Return a made-up method; the first is the control."""
    name = f"method{number}"
    return MethodEntry(name, name, "f", "m", None, "LoraConfig", None, {}, 1e-3, "")


def trials_of(size: Size) -> list[Trial]:
    """Return the study's trials: settings of each method, then final seeds."""
    settings = size.trials // size.methods - size.seeds
    rates = np.geomspace(1e-5, 1e-1, settings).tolist()
    entries = [entry(n) for n in range(size.methods)]
    search = [
        Trial(e, {"learning_rate": r}, 0, "search", CONDITIONS) for e in entries for r in rates
    ]
    best = rates[len(rates) // 2]
    seeds = range(1, size.seeds + 1)
    final = [
        Trial(e, {"learning_rate": best}, s, "final", CONDITIONS) for s in seeds for e in entries
    ]
    return search + final


def carried(name: str, workers: int, size: Size) -> dict[str, Any]:
    """Time an executor over fake segments, after a first map that starts what must be started."""
    through = plugins.load_plugin("study.executors", name, "executor").EXECUTOR(workers)
    trial = trials_of(QUICK)[0]
    segment = Segment((trial,), 0, STEPS, str(Path.cwd()), "fake").to_json()
    payload = {**segment, "items": size.items}
    count = size.segments.get(name, 8)
    begun = time.perf_counter()
    for outcome in through.map("scale_out:answer", [payload] * workers):
        assert outcome.error is None, outcome.error
    started = time.perf_counter() - begun
    wall, cpu, ended = time.perf_counter(), time.process_time(), []
    for outcome in through.map("scale_out:answer", [payload] * count):
        assert outcome.error is None, outcome.error
        ended.append(time.perf_counter())
    cpu = time.process_time() - cpu
    steady = ended[count // 2 :]
    return {
        "executor": name,
        "workers": workers,
        "segments": count,
        "items": size.items,
        "answer_bytes": len(json.dumps(answer(payload))),
        "start_seconds": started,
        "segments_per_second": count / (ended[-1] - wall),
        "segments_per_second_second_half": (len(steady) - 1) / (steady[-1] - steady[0]),
        "driver_cpu_milliseconds": 1000 * cpu / count,
    }


def timed(call: Callable[[], Any], most: int = 200, seconds: float = 5.0) -> list[float]:
    """Return the seconds of each call, of as many as fit."""
    taken: list[float] = []
    while len(taken) < most and sum(taken) < seconds:
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return taken


def kept(folder: Path, size: Size) -> Iterator[dict[str, Any]]:
    """Time ``Writer.save`` by the items of a trial: one durable transaction each."""
    from bakeoff.study.storage.database import Writer

    probe = (folder / "probe").open("wb")

    def synced() -> None:
        probe.write(b"0" * 4096)
        probe.flush()
        os.fsync(probe.fileno())

    with probe:
        yield {"items": None, "what": "fsync of 4 KiB", **_rates(timed(synced), 1)}
    rng, trials = np.random.default_rng(0), trials_of(size._replace(trials=size.methods * 100))
    for items in size.keeps:
        with Writer(folder / f"keep-{items}.db") as store:
            store.add_trials(trials)
            results = iter([result(t.id, items, rng) for t in trials[:200]] * 2)
            taken = timed(lambda: store.save(next(results)))  # noqa: B023
        yield {"items": items, "what": "Writer.save", **_rates(taken, items + 1)}


def _rates(taken: Sequence[float], rows: int) -> dict[str, float]:
    ordered = sorted(taken)
    return {
        "calls": len(taken),
        "milliseconds_median": 1000 * statistics.median(taken),
        "milliseconds_p99": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
        "calls_per_second": len(taken) / sum(taken),
        "rows_per_second": rows * len(taken) / sum(taken),
    }


def reported(folder: Path, size: Size) -> dict[str, Any]:
    """Write a whole study of fake results, then read it and make its report."""
    from bakeoff.analysis.summary import summarise
    from bakeoff.report import render
    from bakeoff.study.storage.database import Reader, Writer

    rng, trials = np.random.default_rng(0), trials_of(size)
    seconds, cpu = {}, {}

    def step(name: str, call: Callable[[], Any]) -> Any:
        begun, worked = time.perf_counter(), time.process_time()
        made = call()
        seconds[name] = time.perf_counter() - begun
        cpu[name] = time.process_time() - worked
        return made

    path = folder / "study.db"
    with Writer(path) as store:
        step("plan", lambda: store.add_trials(trials))
        stood = [t for t in trials if t.phase == "search"]
        step("keep_rung", lambda: [store.save_group([_at_rung(t, rng)]) for t in stood])
        step("keep", lambda: [store.save(_of(t, size, rng)) for t in trials])
    with Reader(path) as reader:
        step("finished", reader.finished_ids)
        step("rungs", lambda: reader.results_at_rung(RUNG))
        pairs = step("read", reader.trials)
    summary = step("summarise", lambda: summarise(_record(pairs, size), np.random.default_rng(0)))
    text = step("json", lambda: json.dumps(summary, allow_nan=False))
    page = step("page", lambda: render(json.loads(text)))
    return {
        **{k: v for k, v in size._asdict().items() if k not in ("segments", "workers", "keeps")},
        "seconds": seconds,
        "cpu_seconds": cpu,
        "database_bytes": path.stat().st_size,
        "json_bytes": len(text.encode()),
        "page_bytes": len(page.encode()),
    }


def _of(trial: Trial, size: Size, rng: np.random.Generator) -> TrialResult:
    number = int(trial.method.name.removeprefix("method"))
    level = 0.8 + 0.001 * (number % 7) - 0.05 * abs(np.log10(trial.learning_rate) + 3)
    return result(trial.id, size.items if trial.phase == "final" else 0, rng, float(level))


def _at_rung(trial: Trial, rng: np.random.Generator) -> TrialResult:
    losses = tuple(rng.exponential(1.0, VALIDATION).tolist())
    whole = result(trial.id, 0, rng)
    return replace(whole, status=Status.STOPPED, step=RUNG, item_losses=losses)


def _record(pairs: Any, size: Size) -> StudyRecord:
    methods = tuple(f"method{n}" for n in range(size.methods))
    costs = {
        m: Cost(
            m, Status.DONE, trainable_parameters=1000 + n, train_tokens_per_second=1e5,
            step_milliseconds=10.0 + n, train_peak_bytes=10**9 + n, memory_kind="device", steps=20,
            tokens_per_step=1000.0,
        )
        for n, m in enumerate(methods)
    }  # fmt: skip
    return StudyRecord(
        name="scale", base="fake", base_note=None, task="classify",
        metric=MetricInfo("accuracy", better="higher", unit="fraction", low=0.0, high=1.0),
        margin=0.01, control=methods[0], methods=methods, titles={m: m for m in methods},
        n_items={"train": 10_000, "validation": VALIDATION, "test": size.items}, steps=STEPS,
        trials=pairs, costs=costs, incompatible={}, wall_seconds=1.0, warnings=(),
        provenance={"versions": {"bakeoff": bakeoff.__version__}},
    )  # fmt: skip


def about() -> dict[str, Any]:
    """Say which machine and versions these figures are of."""
    info = Path("/proc/cpuinfo")
    models = [
        x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if "model name" in x
    ]
    versions = {p: importlib.metadata.version(p) for p in PACKAGES if find_spec(p)}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count()},
        "load_before": os.getloadavg()[0],
        "versions": versions
        | {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        | {"bakeoff": bakeoff.__version__},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; print JSON or lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--executors", default="process,ray")
    parser.add_argument("--only", choices=("executors", "store", "report"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    size, found = QUICK if given.quick else WHOLE, about()
    wanted = given.executors.split(",")
    wanted = wanted if given.only in (None, "executors") else []
    found["left_out"] = [n for n in wanted if n == "ray" and find_spec("ray") is None]
    if wanted:
        names = [n for n in wanted if n not in found["left_out"]]
        found["executors"] = [carried(n, w, size) for n in names for w in size.workers]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        if given.only in (None, "store"):
            found["store"] = list(kept(Path(name), size))
        if given.only in (None, "report"):
            found["report"] = reported(Path(name), size)
    text = json.dumps(found, indent=1)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    print(text if given.json else lines(found))
    return 0


def lines(found: dict[str, Any]) -> str:
    """Return the figures as lines of text."""
    said = [f"left out: {name}, which is not installed" for name in found["left_out"]]
    for row in found.get("executors", ()):
        said.append(
            f"{row['executor']:8} {row['workers']:3} workers  "
            f"{row['segments_per_second_second_half']:8.1f} segments/s in the second half  "
            f"{row['driver_cpu_milliseconds']:6.2f} driver CPU ms  "
            f"first map {row['start_seconds']:.1f} s"
        )
    for row in found.get("store", ()):
        items = "" if row["items"] is None else f", {row['items']} items"
        said.append(
            f"{row['what']}{items}: {row['milliseconds_median']:.2f} ms, "
            f"{row['calls_per_second']:.0f}/s, {row['rows_per_second']:.0f} rows/s"
        )
    if "report" in found:
        cpu = found["report"]["cpu_seconds"]
        for name, seconds in found["report"]["seconds"].items():
            said.append(f"{name:10} {seconds:7.2f} s, {cpu[name]:.2f} s of it on a CPU")
    return "\n".join(said)


if __name__ == "__main__":
    raise SystemExit(main())
