"""How fast every method of the catalog trains on one GPU: the HF-style loop, then K lanes.

    python benchmarks/catalog.py --model 135m --lanes 16 --workers 3 --out catalog.jsonl
    python benchmarks/catalog.py --table catalog.jsonl      # as a table, with the median ratio

The sides of ``lanes.py``, for all methods: those that adapt all linear layers adapt q and v here,
LoRA's kin at rank 32, as PEFT's benchmark has them; else their catalog's arguments. Setting a
method up (compiling a layer, capturing graphs) takes most of the time and one CPU core, so several
are set up side by side; the clock runs for one of them at a time, while all others stand still at
a barrier. One JSON line a method, written as soon as it is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
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

MEMORY = 0.97
"""Share of the memory that the workers divide; contexts need the rest."""
PATIENCE = 240
"""Seconds that a method may take to be set up before all give up."""
FEWER = {"full": 4, "osf": 4, "hra": 4}
"""Methods that keep tensors as large as the base for each trial: the lanes that fit."""


class Quiet:
    """Lets one worker at a time run its clock, in order, while all others wait."""

    def __init__(self, barrier: Any, rank: int, workers: int) -> None:
        self.barrier, self.rank, self.workers = barrier, rank, workers
        self.kept = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Wait for everybody, then for those before; let the next ones run after."""
        for _ in range(self.rank + 1):
            self.barrier.wait(PATIENCE)
        self.kept += 1
        try:
            yield
        finally:
            for _ in range(self.workers - self.rank):
                self.barrier.wait(PATIENCE)

    def catch_up(self, due: int) -> None:
        """Keep the others' turns after a side that never came to its clock."""
        while self.kept < due:
            with self():
                pass


class Share(NamedTuple):
    """One worker's share of the work."""

    rank: int
    methods: Sequence[str | None]
    args: argparse.Namespace


def work(share: Share, barrier: Any, lock: Any) -> None:
    """Measure a share of the methods; a None keeps the others' turns."""
    warnings.simplefilter("ignore")
    args = share.args
    torch.set_num_threads(1)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if device != "cpu":  # a method that wants more must not take it from its neighbours
        torch.cuda.set_per_process_memory_fraction(MEMORY / args.workers)
    ground = Ground(args.model, None, [], device)
    longest = 96 if args.model == "tiny" else 768
    ground = ground._replace(data=examples(ground.config().vocab_size, longest))
    quiet = Quiet(barrier, share.rank, args.workers)
    warm_up = lanes.FIRST_PASS if args.model != "tiny" else 2
    for position, method in enumerate(share.methods):
        row: dict[str, Any] = {"method": method}
        started = time.monotonic()
        if method is not None:
            row["hf"] = lanes.theirs(args, ground, method, Clocking(warm_up, args.steps, quiet))
        quiet.catch_up(2 * position + 1)
        if method is not None:
            clocking = Clocking(5, args.steps, quiet)
            row["lanes"] = fitted(args, ground, method, clocking)
            row["seconds"] = time.monotonic() - started
        quiet.catch_up(2 * position + 2)
        warm_up = args.hf_warm_up
        if method is not None:
            with lock, args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(line(row), file=sys.stderr, flush=True)


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


def main() -> None:
    """Share the methods out, a round at a time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="135m")
    parser.add_argument("--methods", help="comma-separated; default: all")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--hf-warm-up", type=int, default=15)
    parser.add_argument("--pass-tokens", type=int)
    parser.add_argument("--out", type=Path, help="one JSON line a method; what is there is kept")
    parser.add_argument("--table", type=Path, help="print such a file as Markdown and stop")
    args = parser.parse_args()
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
    methods: list[str | None] = list(args.methods.split(",")) if args.methods else list(every)
    done = set()
    if args.out.exists():
        done = {json.loads(text)["method"] for text in args.out.read_text().splitlines()}
    methods = [m for m in methods if m not in done]
    methods += [None] * (-len(methods) % args.workers)
    about(args.out)
    context = torch.multiprocessing.get_context("spawn")
    barrier, lock = context.Barrier(args.workers), context.Lock()
    shares = [Share(r, methods[r :: args.workers], args) for r in range(args.workers)]
    processes = [context.Process(target=work, args=(share, barrier, lock)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


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
