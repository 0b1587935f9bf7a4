"""How fast every method of the catalog trains on one GPU: the HF-style loop, then K lanes.

    python benchmarks/catalog.py --model 135m --lanes 16 --workers 5 --out catalog.jsonl
    python benchmarks/catalog.py --table catalog.jsonl      # as a table, with the median ratio

The sides of ``lanes.py``, for all methods: those that adapt all linear layers adapt q and v here,
LoRA's kin at rank 32, as PEFT's benchmark has them; else their catalog's arguments. Setting a
method up (compiling a layer, capturing graphs) takes most of the time and one CPU core, so several
are set up side by side; the clock runs for one of them at a time, while all other processes are
stopped. One JSON line a method, written as soon as it is there; run again, it does what is missing.
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
from gpu_sides import Clocking, Ground, examples

import bakeoff
from bakeoff.engine import meter
from bakeoff.engine.switches import Switches
from bakeoff.methods import registry

MEMORY = 0.94
"""Share of the memory that the workers divide; contexts need the rest."""
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


class Worker(NamedTuple):
    """A process that measures one method at a time, and since when it does."""

    process: Any
    pipe: Any
    slot: int
    method: str
    since: float


def work(args: argparse.Namespace, pipe: Any, quiet: Quiet) -> None:
    """Measure the methods that come through the pipe."""
    os.setsid()  # what compiling starts is stopped with us
    warnings.simplefilter("ignore")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    torch.set_num_threads(1)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if device != "cpu":  # a method that wants more must not take it from its neighbours
        torch.cuda.set_per_process_memory_fraction(MEMORY / args.workers)
    ground = Ground(args.model, None, [], device)
    longest = 96 if args.model == "tiny" else 768
    ground = ground._replace(data=examples(ground.config().vocab_size, longest))
    warm_up = lanes.FIRST_PASS if args.model != "tiny" else 2
    while True:
        method = pipe.recv()
        started = time.monotonic()
        row: dict[str, Any] = {"method": method}
        row["hf"] = lanes.theirs(args, ground, method, Clocking(warm_up, args.steps, quiet))
        row["lanes"] = fitted(args, ground, method, Clocking(5, args.steps, quiet))
        row["seconds"] = time.monotonic() - started
        pipe.send(row)
        warm_up = args.hf_warm_up


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
    hf, ours = row["hf"], row["lanes"]
    rates = [side.get("tokens_per_second") for side in (hf, ours)]
    ratio = f"{rates[1] / rates[0]:6.1f}x" if None not in rates else "      -"
    found = " ".join(f"{r:9.0f}" if r else "        -" for r in rates)
    why = [side["error"] for side in (hf, ours) if "error" in side]
    off = ours.get("fell_back", [])
    peak = f"{ours.get('peak_gib') or 0:5.1f} GiB"
    return f"{row['method']:24s} {found} {ratio} {peak} {row['seconds']:4.0f} s {why} {off}"


def table(path: Path) -> str:
    """Return the rows of a file as Markdown: the slowest ratio last, what has none at the end."""
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    about = json.loads(path.with_suffix(".about.json").read_text())
    shown, ratios = [], []
    for row in rows:
        hf, ours = row["hf"].get("tokens_per_second"), row["lanes"].get("tokens_per_second")
        ratio = ours / hf if hf and ours else None
        switches = row["lanes"].get("switches") or {}
        off = [name for name, on in switches.items() if not on]
        why = (row["lanes"].get("fell_back") or [row["lanes"].get("error", "")])[-1]
        cells = [
            row["method"].removesuffix("_qv"),
            str(row["lanes"].get("lanes", "-")),
            f"{ours:,.0f}" if ours else "-",
            f"{row['lanes'].get('peak_gib') or 0:.1f}" if ours else "-",
            f"{hf:,.0f}" if hf else "-",
            f"{ratio:.1f}" if ratio else "-",
            f"without {', '.join(off)}: {why}" if off else why,
        ]
        shown.append((ratio or 0.0, "| " + " | ".join(cells) + " |"))
        ratios += [ratio] if ratio else []
    head = "| method | lanes | tokens/s | GiB | HF-style, tokens/s | ratio | why not more |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    lines += [text for _, text in sorted(shown, reverse=True)]
    middle = f"{statistics.median(ratios):.1f}" if ratios else "-"
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    return "\n".join(
        [*lines, "", f"Median of {len(ratios)}: {middle}. {about['device']}, {versions}; matmul "
         f"ceiling {about['matmul_tflops']:.0f} TFLOP/s."]
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the file lacks, or print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="135m")
    parser.add_argument("--methods", help="comma-separated; default: all")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--patience", type=int, default=240, help="seconds for one method")
    parser.add_argument("--seconds", type=int, help="stop after so many; run again to go on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--hf-warm-up", type=int, default=lanes.LATER)
    parser.add_argument("--pass-tokens", type=int)
    parser.add_argument("--out", type=Path, help="one JSON line a method; what is there is kept")
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
        done = {json.loads(text)["method"] for text in args.out.read_text().splitlines()}
    about(args.out)
    for row in measured([m for m in methods if m not in done], args):
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), file=sys.stderr, flush=True)


def measured(methods: list[str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield each method's row as it is there; one that takes too long is a row that says so."""
    context = multiprocessing.get_context("spawn")
    clock, groups = context.Lock(), context.Array("i", args.workers, lock=False)
    until = time.monotonic() + args.seconds if args.seconds else float("inf")
    waiting = methods[::-1]
    running: list[Worker] = []

    def give(process: Any, pipe: Any, slot: int) -> None:
        if waiting and time.monotonic() < until:
            method = waiting.pop()
            pipe.send(method)
            running.append(Worker(process, pipe, slot, method, time.monotonic()))
        else:
            end(process, slot)

    def end(process: Any, slot: int) -> None:
        with clock:  # not while it keeps the others stopped
            groups[slot] = 0
            process.kill()

    def start(slot: int) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(args, theirs, Quiet(clock, groups)))
        process.start()
        theirs.close()
        groups[slot] = process.pid
        give(process, ours, slot)

    for slot in range(min(args.workers, len(methods))):
        start(slot)
    while running:
        ready = wait([w.pipe for w in running], timeout=1)
        for worker in list(running):
            late = time.monotonic() - worker.since
            row: dict[str, Any] | None = None
            if worker.pipe in ready:
                with contextlib.suppress(EOFError):
                    row = worker.pipe.recv()
            elif late < args.patience and time.monotonic() < until:
                continue
            running.remove(worker)
            if row is not None:
                give(worker.process, worker.pipe, worker.slot)
                yield row
                continue
            end(worker.process, worker.slot)
            if time.monotonic() >= until and late < args.patience:
                continue  # no time left: run again, and it is measured
            why = "the process died" if worker.pipe in ready else f"not set up after {late:.0f} s"
            failed = {"error": why}
            yield {"method": worker.method, "hf": failed, "lanes": failed, "seconds": late}
            if waiting:
                start(worker.slot)


def about(out: Path) -> None:
    """Write beside the rows where they come from."""
    on_gpu = torch.cuda.is_available()
    dtype, device = (torch.bfloat16, "cuda:0") if on_gpu else (torch.float32, "cpu")
    found = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor(),
        "matmul_tflops": meter.matmul_gflops(dtype, device) / 1000,
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__,
            "peft": peft.__version__, "bakeoff": bakeoff.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip
    out.with_suffix(".about.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
