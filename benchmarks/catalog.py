"""How fast every method of the catalog trains on one GPU: the HF-style loop, then K lanes.

    python benchmarks/catalog.py --model 135m --lanes 8 --workers 5 --out catalog.jsonl
    python benchmarks/catalog.py --table catalog.jsonl      # as a table, with the median ratio

The sides of ``lanes.py``, for all methods: those that adapt all linear layers adapt q and v here,
LoRA's kin at rank 32, as PEFT's benchmark has them; else their catalog's arguments. Setting a
method up (compiling a layer, capturing graphs) takes most of the time and one CPU core, so several
are set up side by side, each in a process of its own, as a run of a sweep is; the clock runs for
one of them at a time, while all other processes are stopped. The HF-style loop is timed twice over
the same batches: when the process meets their padded lengths for the first time, and later. One
JSON line a method and side, as soon as it is there; run again, it does what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import lanes
import peft
import torch
import transformers
from gpu_sides import BATCH, Clocking, Ground, examples

import bakeoff
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.methods import registry

MEMORY = 0.9
"""Share of the memory that the workers divide; contexts need the rest."""
EXAMPLES = 160
"""Of them, cycled through: a padded length costs an HF-style loop extra once a process."""
STARTING = 2
"""Steps before the first that are timed: what a process pays once, whatever the lengths."""
GRACE = 70
"""Seconds for what is under way when ``--seconds`` are over."""
DRAINED = 0.3
"""Seconds after which nothing of a stopped process runs on the GPU any more."""
FEWER = {"full": 4, "osf": 4, "hra": 4}
"""Methods that keep tensors as large as the base for each trial: the lanes that fit."""


class Quiet:
    """Lets one process run its clock while all others are stopped."""

    def __init__(self, clock: Any, groups: Any) -> None:
        self.clock, self.groups = clock, groups

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Stop the others, let the GPU run dry, wake them at the end."""
        with self.clock:
            others = [g for g in self.groups if g and g != os.getpid()]
            self._send(others, signal.SIGSTOP)
            time.sleep(DRAINED)
            try:
                yield
            finally:
                self._send(others, signal.SIGCONT)

    def _send(self, groups: list[int], what: signal.Signals) -> None:
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, what)


class Job(NamedTuple):
    """One side of one method: "hf" or "lanes"."""

    side: str
    method: str


class Worker(NamedTuple):
    """A process that measures one job at a time, and since when it does."""

    process: Any
    pipe: Any
    slot: int
    job: Job
    since: float


def work(args: argparse.Namespace, job: Job, pipe: Any, quiet: Quiet) -> None:
    """Measure one job and send its row."""
    os.setsid()  # what compiling starts is stopped with us
    started = time.monotonic()
    warnings.simplefilter("ignore")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "2"
    if job.side == "lanes":  # graphs of growing rows would each take memory of their own
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    torch.set_num_threads(1)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if device != "cpu":  # a method that wants more must not take it from its neighbours
        torch.cuda.set_per_process_memory_fraction(MEMORY / args.workers)
    ground = Ground(args.model, None, [], device)
    longest = 96 if args.model == "tiny" else 768
    data = examples(ground.config().vocab_size, longest, EXAMPLES)
    # CPT starts from the first example, and takes no long one
    shortest = min(range(EXAMPLES), key=lambda i: len(data[i].tokens))
    data.insert(0, data.pop(shortest))
    ground = ground._replace(data=data)
    if job.side == "hf":
        # once through all lengths, and on to the batches that were timed at first
        later = EXAMPLES // BATCH - args.hf_steps if args.model != "tiny" else 2
        clocking = Clocking(later, args.hf_steps, quiet, STARTING)
        found = lanes.theirs(args, ground, job.method, clocking)
    else:
        found = fitted(args, ground, job.method, Clocking(5, args.steps, quiet))
    pipe.send({**job._asdict(), **found, "seconds": time.monotonic() - started})


def fitted(
    args: argparse.Namespace, ground: Ground, method: str, clocking: Clocking
) -> dict[str, Any]:
    """Measure as many lanes as fit this worker's share of the memory."""
    best = Switches.best(ground.device, ground.precision)
    found: dict[str, Any] = {}
    k = min(args.lanes, FEWER.get(method, args.lanes))
    while k:
        found = lanes.engine(args, ground, method, (k, best), clocking)
        if "OutOfMemory" not in found.get("error", ""):
            break
        k //= 2
    return found


def line(row: dict[str, Any]) -> str:
    """Return a row as a person reads it."""
    rate = row.get("tokens_per_second")
    text = f"{row['method']:24s} {row['side']:5s} {rate or 0:9.0f} tok/s"
    text += f" {row.get('peak_gib') or 0:5.1f} GiB ({row.get('reserved_gib') or 0:5.1f} reserved)"
    text += f" {row['seconds']:4.0f} s lanes {row.get('lanes', '-')} {row.get('error', '')}"
    return f"{text} {(row.get('fell_back') or [''])[-1]}"


def table(path: Path) -> str:
    """Return the rows of a file as Markdown: the slowest ratio last, what has none at the end."""
    sides: dict[str, dict[str, Any]] = {}
    for text in path.read_text().splitlines():
        row = json.loads(text)
        sides.setdefault(row["method"], {})[row["side"]] = row
    about = json.loads(path.with_suffix(".about.json").read_text())
    shown, ratios, first_ratios = [], [], []
    for method, found in sides.items():
        engine, loop = found.get("lanes", {}), found.get("hf", {})
        ours = engine.get("tokens_per_second")
        rates = [loop.get("tokens_per_second"), loop.get("first_tokens_per_second")]
        ratio, first = (ours / hf if hf and ours else None for hf in rates)
        off = [name for name, on in (engine.get("switches") or {}).items() if not on]
        why = (engine.get("fell_back") or [engine.get("error") or loop.get("error", "")])[-1]
        cells = [
            method.removesuffix("_qv"),
            str(engine.get("lanes", "-")),
            f"{ours:,.0f}" if ours else "-",
            f"{engine.get('peak_gib') or 0:.1f}" if ours else "-",
            *(f"{hf:,.0f}" if hf else "-" for hf in rates),
            *(f"{times:.1f}" if times else "-" for times in (ratio, first)),
            f"without {', '.join(off)}: {why}" if off else why,
        ]
        shown.append((ratio or 0.0, "| " + " | ".join(cells) + " |"))
        ratios += [ratio] if ratio else []
        first_ratios += [first] if first else []
    head = (
        "| method | lanes | tokens/s | GiB | HF-style, tokens/s | lengths new | ratio | lengths new"
        " | why not more |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    lines += [text for _, text in sorted(shown, reverse=True)]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    return "\n".join(
        [*lines, "", f"Median of {len(ratios)}: {middle(ratios)}; where lengths are new "
         f"({len(first_ratios)}): {middle(first_ratios)}. {about['device']}, {versions}; matmul "
         f"ceiling {about['matmul_tflops']:.0f} TFLOP/s."]
    )  # fmt: skip


def middle(ratios: list[float]) -> str:
    """Return the median as text."""
    return f"{statistics.median(ratios):.1f}" if ratios else "-"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the file lacks, or print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="135m")
    parser.add_argument("--methods", help="comma-separated; default: all")
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--patience", type=int, default=300, help="seconds for one job")
    parser.add_argument("--seconds", type=int, help="stop after so many; run again to go on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--hf-steps", type=int, default=10)
    parser.add_argument("--pass-tokens", type=int)
    parser.add_argument("--out", type=Path, help="one JSON line a job; what is there is kept")
    parser.add_argument("--table", type=Path, help="print such a file as Markdown and stop")
    args = parser.parse_args(argv)
    if args.table:
        print(table(args.table))
        return
    if args.out is None:
        parser.error("--out or --table")
    args.trace = args.profile = False
    entries = [registry.load(n, Path()) for n in registry.names()]
    every = [
        f"{e.name}_qv" if e.config.get("target_modules") == "all-linear" else e.name
        for e in entries
        if e.needs is None and e.name not in ("head", "bitfit")
    ]
    methods = args.methods.split(",") if args.methods else every
    done = set()
    if args.out.exists():
        rows = map(json.loads, args.out.read_text().splitlines())
        done = {Job(row["side"], row["method"]) for row in rows}
    about(args.out)
    jobs = [Job(side, method) for method in methods for side in ("hf", "lanes")]
    for row in measured([job for job in jobs if job not in done], args):
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), file=sys.stderr, flush=True)


def measured(jobs: list[Job], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield each job's row as it is there; one that takes too long is a row that says so."""
    context = multiprocessing.get_context("spawn")
    clock, groups = context.Lock(), context.Array("i", args.workers, lock=False)
    until = time.monotonic() + (args.seconds or float("inf"))
    waiting = jobs[::-1]
    running: list[Worker] = []

    def give(slot: int) -> None:
        if not waiting or time.monotonic() >= until:
            return
        job = waiting.pop()
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(args, job, theirs, Quiet(clock, groups)))
        process.start()
        theirs.close()
        groups[slot] = process.pid
        running.append(Worker(process, ours, slot, job, time.monotonic()))

    def end(worker: Worker) -> None:
        with clock:  # not while it keeps the others stopped
            groups[worker.slot] = 0
            worker.process.kill()
            worker.process.join()

    for slot in range(min(args.workers, len(jobs))):
        give(slot)
    while running:
        ready = wait([w.pipe for w in running], timeout=1)
        for worker in list(running):
            late = time.monotonic() - worker.since
            row: dict[str, Any] | None = None
            if worker.pipe in ready:
                with contextlib.suppress(EOFError):
                    row = worker.pipe.recv()
            elif late < args.patience and time.monotonic() < until + GRACE:
                continue
            running.remove(worker)
            end(worker)
            give(worker.slot)
            if row is not None:
                yield row
            elif worker.pipe in ready or late >= args.patience:
                # else no time is left: run again, and it is measured
                why = "the process died" if worker.pipe in ready else f"not set up in {late:.0f} s"
                yield {**worker.job._asdict(), "error": why, "seconds": late}


def about(out: Path) -> None:
    """Write beside the rows where they come from."""
    on_gpu = torch.cuda.is_available()
    dtype, device = (torch.bfloat16, "cuda:0") if on_gpu else (torch.float32, "cpu")
    found = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor(),
        "matmul_tflops": profiling.matmul_gflops(dtype, device) / 1000,
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__,
            "peft": peft.__version__, "bakeoff": bakeoff.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip
    out.with_suffix(".about.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
