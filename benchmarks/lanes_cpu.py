"""Compare this engine on a CPU, solo and in lanes, with Hugging Face ``Trainer`` + PEFT.

It trains a study's real model, data and task through ``training.setup`` and gives ``Trainer`` the
same examples in the same steps. Before anything is timed, both sides must give the same losses
(fp32, no dropout); where they do not, no ratio is printed. Sides take turns within each round, and
a ratio is taken in each round.

    python benchmarks/lanes_cpu.py [--json] [--out FILE]    both studies, bf16 and fp32
    python benchmarks/lanes_cpu.py --quick --json           three numbers in under a minute
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from cpu_sides import LEARNING_RATE, WARMUP, Ground, Ours, Theirs, optimizer_name, refusal
from torch import nn

from bakeoff.core.errors import BakeoffError
from bakeoff.core.trial import Trial
from bakeoff.engine.device import resolve_precision
from bakeoff.methods import registry as catalog
from bakeoff.study.config import read_spec
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.setup.open_study import open_study
from bakeoff.study.storage.study_dir import freeze_data
from bakeoff.training import setup

CHECKED = 3
"""Steps whose losses must agree before anything is timed."""
TOLERANCE = 1e-4
FEWEST_PAIRS = 3
QUICK_SECONDS = 35
"""With ``--quick`` no round starts later than this, so that a busy machine stays near a minute."""
SOLO, LANED = "solo", "lanes"
TRAINER, TRAINER_BF16 = "Trainer (fp32 weights)", "Trainer (bf16 base)"

DEMO = Path(str(files("bakeoff.study.config") / "templates/demo.toml"))
SFT = Path(__file__).resolve().parent.parent / "examples" / "sft-smollm2.toml"


class Case(NamedTuple):
    """One table of the benchmark: a study file's base, task and data, in one precision."""

    title: str
    study: Path
    precision: str


CASES = {
    "minilm-bf16": Case("MiniLM classification, bf16 autocast", DEMO, "bf16"),
    "minilm-fp32": Case("MiniLM classification, fp32", DEMO, "fp32"),
    "smollm2-bf16": Case("SmolLM2-135M SFT, bf16 autocast", SFT, "bf16"),
}


class Amount(NamedTuple):
    """How much is measured: lanes, paired rounds, timed steps of a run, threads (None: all).

    From the time ``until`` (``time.monotonic``) on, no further round starts after the third.
    """

    lanes: int
    pairs: int
    steps: int
    threads: int | None
    until: float = math.inf


class Spread(NamedTuple):
    """Median and range of paired rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values."""
        return cls(statistics.median(values), min(values), max(values))


def open_ground(case: Case, amount: Amount, folder: Path) -> Ground:
    """Open a study as ``bakeoff run`` does; LoRA trials at a constant rate, one seed a lane."""
    spec = read_spec(case.study)
    wishes = {
        "device": "cpu",
        "precision": case.precision,
        "threads": amount.threads,
        "workers": 1,
        "executor": "inline",
    }
    engine = spec.engine.model_copy(update=wishes)
    spec = spec.model_copy(update={"engine": engine})
    study = open_study(spec, case.study.parent, folder, Progress())
    freeze_data(folder, study.splits)
    # as Trainer's: a constant schedule, and one rate for all that is trained
    conditions = dataclasses.replace(
        study.conditions, warmup=0.0, decay=0.0, head_learning_rate=None
    )
    entry, setting = catalog.load("lora", Path()), {"learning_rate": LEARNING_RATE}
    trials = [Trial(entry, setting, s, "search", conditions) for s in range(amount.lanes)]
    return Ground(trials, study.base.path, folder / "data", study.machine)


def without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def check_losses(case: Case, amount: Amount, folder: Path) -> float:
    """Return the largest difference of the first losses between the sides, in fp32.

    Solo and laned against Trainer, the first and the last lane.

    Raises:
        BakeoffError: ``losses-differ``.
    """
    ground = open_ground(case._replace(precision="fp32"), amount, folder)
    setup.prepare_process(ground.trials[0].conditions)
    laned = Ours(ground.trials, ground)
    theirs = Theirs(ground.trials[0], laned, ground, torch.float32)
    without_dropout(laned.model)
    without_dropout(theirs.model)
    wanted = {}
    for lane in {0, amount.lanes - 1}:
        theirs.start_as(lane)
        wanted[lane] = torch.stack(theirs.run(lane, CHECKED, keep_losses=True).losses)
    got = torch.stack(laned.run(range(amount.lanes), CHECKED).losses)
    del laned, theirs
    worst = max(float((got[:, lane] - w).abs().max()) for lane, w in wanted.items())
    solo = Ours(ground.trials[:1], ground)
    without_dropout(solo.model)
    alone = torch.stack(solo.run([0], CHECKED).losses)[:, 0]
    worst = max(worst, float((alone - wanted[0]).abs().max()))
    if not worst <= TOLERANCE:
        raise refusal(
            "losses-differ",
            f"{case.title}: the first {CHECKED} losses differ by {worst:.1e} between this engine "
            f"and Trainer (at most {TOLERANCE:.0e}).",
        )
    return worst


def time_sides(ground: Ground, amount: Amount) -> dict[str, list[float]]:
    """Return each side's tokens/s in each round; every other round runs in reverse.

    Trainer and solo take the order of one lane a round, another in the next.
    """
    setup.prepare_process(ground.trials[0].conditions)
    solo, laned = Ours(ground.trials[:1], ground), Ours(ground.trials, ground)
    variants = {TRAINER: torch.float32}
    if ground.trials[0].conditions.precision == "bf16":
        variants[TRAINER_BF16] = torch.bfloat16
    theirs = {n: Theirs(ground.trials[0], solo, ground, w) for n, w in variants.items()}
    for side in theirs.values():
        side.start_as(0)
    steps = WARMUP + amount.steps
    found: dict[str, list[float]] = {name: [] for name in (*theirs, SOLO, LANED)}
    for pair in range(amount.pairs):
        if pair >= FEWEST_PAIRS and time.monotonic() > amount.until:
            break
        seed = pair % amount.lanes
        for name in list(found) if pair % 2 == 0 else reversed(list(found)):
            if name == LANED:
                run = laned.run(range(amount.lanes), steps)
            else:
                run = solo.run([seed], steps) if name == SOLO else theirs[name].run(seed, steps)
            found[name].append(run.rate)
    return found


def ratios(rates: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str, Spread]]:
    """Yield (our side, Trainer variant, spread of the paired ratios)."""
    for ours in (SOLO, LANED):
        for name in (TRAINER, TRAINER_BF16):
            if name in rates:
                pairs = zip(rates[ours], rates[name], strict=True)
                yield ours, name, Spread.of([a / b for a, b in pairs])


def measure(case: Case, amount: Amount) -> dict[str, Any]:
    """Check and time one case; return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        worst = check_losses(case, amount, Path(folder) / "check")
        ground = open_ground(case, amount, Path(folder) / "timing")
        rates = time_sides(ground, amount)
    c = ground.trials[0].conditions
    faster = max((n for n in rates if n not in (SOLO, LANED)), key=lambda n: Spread.of(rates[n]))
    figures: dict[str, Any] = {SOLO: {}, LANED: {}}
    for ours, name, spread in ratios(rates):
        figures[ours][name] = spread._asdict()
    return {
        "title": case.title,
        "base": c.base,
        "task": c.task,
        "dtype": c.precision,
        "batch_size": c.batch_size,
        "method": {"name": "lora", **ground.trials[0].method.config},
        "pairs": len(rates[SOLO]),
        "trainer_optimizer": optimizer_name(),
        "largest_loss_difference": worst,
        "tokens_per_second": {name: Spread.of(values)._asdict() for name, values in rates.items()},
        "ratios": figures,
        "faster_trainer": faster,
        "ratio_solo": figures[SOLO][faster]["median"],
        "ratio_lanes": figures[LANED][faster]["median"],
        "machine": {k: ground.machine[k] for k in ("hardware", "threads")},
        "versions": ground.machine["versions"],
    }


def report(cases: Sequence[Case], amount: Amount) -> dict[str, Any]:
    """Measure the cases and return everything: how, on what, when."""
    measured = [measure(case, amount) for case in cases]
    machine, versions = ([m.pop(k) for m in measured][0] for k in ("machine", "versions"))
    return {
        "benchmark": "lanes_cpu",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine,
        "versions": versions,
        "lanes": amount.lanes,
        "timed_steps": amount.steps,
        "warmup_steps": WARMUP,
        "cases": measured,
    }


def table(found: Mapping[str, Any]) -> str:
    """Return the figures as text."""
    machine, versions = found["machine"], found["versions"]
    lines = [
        f"{machine['hardware']}, {machine['threads']} threads; torch {versions['torch']}, "
        f"transformers {versions['transformers']}, peft {versions['peft']}; {found['date']}",
        f"median (min to max) of paired rounds of {found['timed_steps']} steps",
    ]
    for case in found["cases"]:
        head = f"{case['title']}: LoRA r={case['method']['r']}, batch {case['batch_size']}, "
        head += f"{case['pairs']} rounds"
        lines += ["", f"{head:<70}{'tokens/s':>12}{'ratio to the faster Trainer':>30}"]
        for name, rate in case["tokens_per_second"].items():
            side = f"bakeoff, {found['lanes']} lanes" if name == LANED else name
            ratio = case["ratios"].get(name, {}).get(case["faster_trainer"])
            lines.append(
                f"  {'bakeoff, solo' if name == SOLO else side:<48}{_text(rate, ',.0f'):>28}"
                + (f"{_text(ratio, '.2f'):>30}" if ratio else "")
            )
    return "\n".join(lines)


def _text(spread: Mapping[str, float], form: str) -> str:
    median, low, high = (format(spread[k], form) for k in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, measure, print; 1 where the sides disagree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="MiniLM in one precision, few steps")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the whole JSON here too")
    parser.add_argument("--only", choices=CASES, action="append", help="this case (repeatable)")
    parser.add_argument("--study", type=Path, metavar="FILE", help="this study file instead")
    parser.add_argument("--lanes", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, help="timed steps of a run (20; 5 with --quick)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    given = parser.parse_args(argv)
    steps = given.steps or (5 if given.quick else 20)
    until = time.monotonic() + QUICK_SECONDS if given.quick else math.inf
    amount = Amount(given.lanes, given.pairs, steps, given.threads, until)
    auto = resolve_precision("auto", "cpu")
    cases = [CASES[name] for name in given.only or CASES]
    if given.quick:
        cases = [CASES[f"minilm-{auto}"]]
    if given.study:
        cases = [Case(given.study.stem, given.study, auto)]
    try:
        found = report(cases, amount)
    except BakeoffError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    quick = {k: found["cases"][0][k] for k in ("ratio_solo", "ratio_lanes", "dtype")}
    print(json.dumps(quick if given.quick else found) if given.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
