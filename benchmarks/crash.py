"""Does a study survive kill -9, whenever it comes? Hundreds of them, at moments drawn at random.

    python benchmarks/crash.py --kills 300 --seed 0 --out crash.json
    python benchmarks/crash.py --kills 300 --minutes 9 --workers 16     # whichever comes first

A study that nothing interrupts comes first; then studies are killed,
gone on with, killed again, until enough kills have struck: four fifths at a moment inside the
running code (before or after a step, an fsync, a commit, ...; ``helpers.kills``), the rest
by the clock, the command line with worker processes of its own, as a user runs it. After every kill
the rows that were there before it must be there unchanged; after every study's end its numbers must
be those of the uninterrupted one, to the bit, with nothing left behind and nothing for `bakeoff
doctor` to mend. One deviation ends the benchmark with exit code 1 and its seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tomli_w
import torch
from helpers import kills

from bakeoff import api

BY_THE_CLOCK = 0.2
"""The share of studies that are killed from outside."""
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@dataclasses.dataclass
class Whole:
    """The study that nothing interrupts, and how long it takes by each way of running it."""

    values: dict[str, Any]
    source: Path
    report: Any
    rows: dict[str, Any]
    moments: list[kills.Moment]
    seconds: float
    """Of the command line with worker processes."""


class Deviation(Exception):
    """A study that was killed is not what it would have been."""


def whole(source: Path) -> Whole:
    """Run the study once by each way; both must give the same numbers."""
    source.mkdir()
    values = kills.small(source)
    found = kills.moments(values, source, source / "inline")
    rows = kills.trial_rows(source / "inline")
    started = time.monotonic()
    _finish(values, source, source / "workers")
    seconds = time.monotonic() - started
    if kills.trial_rows(source / "workers") != rows:
        raise Deviation("worker processes give other numbers than running inline")
    report = kills.stable_numbers(json.loads((source / "inline" / "report.json").read_text()))
    return Whole(values, source, report, rows, found, seconds)


def study(own: Whole, out: Path, rng: random.Random, most: int) -> list[str]:
    """Kill one study up to ``most`` times on its way to its end; return what struck it where."""
    struck: list[str] = []
    by_the_clock = rng.random() < BY_THE_CLOCK
    before: dict[str, Any] = {}
    while len(struck) < most:
        if by_the_clock:
            at, ended = _struck_by_the_clock(own, out, rng)
        else:
            moment = rng.choice(own.moments)
            at, ended = moment[0], kills.run(own.values, own.source, out, moment) == 0
        after = kills.trial_rows(out)
        if not before.items() <= after.items() or not after.items() <= own.rows.items():
            raise Deviation(f"rows were lost or changed by a kill {at}")
        before = after
        if ended:
            break
        struck.append(at)
    if kills.run(own.values, own.source, out) != 0:
        raise Deviation("the study does not end")
    _held_against(own, out)
    return struck


def _held_against(own: Whole, out: Path) -> None:
    if kills.trial_rows(out) != own.rows:
        raise Deviation("rows differ at the end")
    if kills.stable_numbers(json.loads((out / "report.json").read_text())) != own.report:
        raise Deviation("the report differs at the end")
    if left := kills.leftovers(out):
        raise Deviation(f"left behind: {', '.join(map(str, left))}")
    if bad := [f for f in api.diagnose(out) if f.state == "bad"]:
        raise Deviation(f"for doctor to mend: {bad}")


def _struck_by_the_clock(own: Whole, out: Path, rng: random.Random) -> tuple[str, bool]:
    """Kill the command line after a random time; say what was hit and whether it had ended."""
    process = subprocess.Popen(_command(own.source, out), **QUIET)
    try:
        code = process.wait(rng.uniform(0.1, 1.0) * own.seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return "by the clock", False
    if code != 0:
        raise Deviation(f"the command line ended with exit code {code}")
    return "", True


def _finish(values: dict[str, Any], source: Path, out: Path) -> None:
    value = {**values, "engine": {**values["engine"], "executor": "process", "workers": 2}}
    (source / "study.toml").write_text(tomli_w.dumps(value))
    subprocess.run(_command(source, out), check=True, **QUIET)


def _command(source: Path, out: Path) -> list[str]:
    entry = "import sys; from bakeoff.cli import main; sys.exit(main())"
    study = str(source / "study.toml")
    return [sys.executable, "-c", entry, "run", study, "--out", str(out), "--json"]


def killed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill studies in ``folder`` until enough kills have struck; return what struck where."""
    rng = random.Random(options.seed)
    struck, studies, worst = Counter[str](), 0, 0
    own = whole(folder / "whole")
    while struck.total() < options.kills and time.monotonic() < options.end:
        out = folder / f"study-{studies}"
        times = study(own, out, rng, min(options.most, options.kills - struck.total()))
        struck.update(times)
        studies, worst = studies + 1, max(worst, len(times))
        shutil.rmtree(out)
        print(f"seed {options.seed}: {struck.total():4d} kills, {studies} studies", file=sys.stderr)
    return {
        "kills": struck.total(),
        "studies": studies,
        "most_kills_of_one_study": worst,
        "moments_of_a_study": len(own.moments),
        "rows_compared_a_study": len(own.rows),
        "struck": dict(struck.most_common()),
    }


def side_by_side(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Share the kills out to processes, each with a seed of its own; return their sum."""
    share = -(-options.kills // options.workers)
    running = []
    for number in range(options.workers):
        out = folder / f"{number}.json"
        arguments = ["--kills", share, "--most", options.most, "--seed", options.seed + number]
        if options.minutes is not None:
            arguments += ["--minutes", options.minutes]
        command = [sys.executable, __file__, *map(str, arguments), "--out", str(out)]
        running.append((out, subprocess.Popen(command, stdout=subprocess.DEVNULL)))
    codes = [process.wait() for _, process in running]
    if any(codes):
        raise Deviation("in one of the processes, see above")
    parts = [json.loads(out.read_text()) for out, _ in running]
    struck = sum((Counter(part["struck"]) for part in parts), Counter[str]())
    total = {key: sum(part[key] for part in parts) for key in ("kills", "studies")}
    most = max(part["most_kills_of_one_study"] for part in parts)
    return {**parts[0], **total, "most_kills_of_one_study": most, "struck": dict(struck)}


def main() -> int:
    """Kill until enough kills have struck; print and write what struck where."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--most", type=int, default=6, help="kills of one study")
    parser.add_argument("--minutes", type=float, help="no study is begun after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes, each with its own seed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    options.end = math.inf if options.minutes is None else started + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = (side_by_side if options.workers > 1 else killed)(options, Path(folder))
        except Deviation as deviation:
            print(f"seed {options.seed}: {deviation}", file=sys.stderr)
            return 1
    found |= {
        "deviations": 0,
        "seeds": list(range(options.seed, options.seed + options.workers)),
        "seconds": round(time.monotonic() - started, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
