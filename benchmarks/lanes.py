"""How fast trials train on one GPU: one after another as most people do it, and in lanes.

    python benchmarks/lanes.py --model 135m --methods lora_qv,dora --lanes 32 --json
    python benchmarks/lanes.py --model 3b --methods lora_qv --lanes 8 --ablation

Both sides run in one process on the same examples. The HF-style side is the training step of PEFT's
``method_comparison/MetaMathQA/run.py``: padded batches of 4 sorted by length within buckets,
``model(**batch)`` with labels, fp32 copies of the adapters, gradient clipping, a cosine schedule,
``loss.item()`` in each step, the allocator's cache emptied every 10 steps; the same without that
last habit stands beside it (``method_comparison.py`` runs the real file). Ours is the engine that
``bakeoff run`` uses, with K trials of the same method in lanes. Weights are random in the named
model's shape (speed and memory do not depend on their values), or a local folder's. Tokens are real
ones: padding counts for neither side.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from gpu_sides import BATCH, PASS_EXAMPLES, SHAPES, Clocking, Ground, examples, hf_style, ours
from transformers import AutoModelForCausalLM

import bakeoff
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.methods.hook import Incompatible

FIRST_PASS = PASS_EXAMPLES // BATCH
"""A batch of a length that a process has not seen yet takes two to three times as long."""
LATER = 40
"""Warm-up of the HF-style loop once a method has been through all lengths in this process."""
LADDER = (
    (), ("compile",), ("graphs",), ("compile", "packing"), ("compile", "graphs"),
    ("compile", "graphs", "packing"), ("compile", "graphs", "packing", "lanes"),
)  # fmt: skip
"""What is switched off, in this order, for a method that cannot run with everything on."""
Plan = tuple[int, Switches]
"""Lanes and switches of one side of ours."""


def measure(args: argparse.Namespace, ground: Ground, method: str) -> dict[str, Any]:
    """Run all sides of one method."""
    best = Switches.best(ground.device, ground.precision)
    if args.no_compile:
        best = dataclasses.replace(best, compile=False)
    plans: dict[str, Plan] = {}
    if not args.only_lanes:
        plans["solo"] = (1, best)
    for k in args.lanes:
        plans[f"lanes_{k}"] = (k, best)
    if args.ablation:
        plans |= ablation(args.lanes[0], best)
    # frozen weights need no gradient of their own
    flops = (6 if method == "full" else 4) * args.parameters
    sides = {"hf": theirs(args, ground, method, Clocking(args.hf_warm_up, args.steps))}
    show("hf", method, sides["hf"], sides["hf"], flops / args.ceiling)
    for name, plan in plans.items():
        sides[name] = engine(args, ground, method, plan, Clocking(args.warm_up, args.steps))
        show(name, method, sides[name], sides["hf"], flops / args.ceiling)
    return sides


def ablation(k: int, best: Switches) -> dict[str, Plan]:
    """Return the ladder from a plain loop to all accelerators, and each one left out."""
    off = dataclasses.replace
    plain = off(Switches.all_off(), lanes=True, lean_inputs=best.lean_inputs)
    return {
        "1 lane, plain": (1, off(plain, lean_inputs=False)),
        "1 lane + lean inputs": (1, plain),
        "1 lane + packing": (1, off(plain, packing=True)),
        "1 lane + chunked loss": (1, off(plain, packing=True, loss=True)),
        "1 lane + CUDA graph": (1, off(best, compile=False)),
        f"{k} lanes - compiled layer": (k, off(best, compile=False)),
        f"{k} lanes - CUDA graph": (k, off(best, graphs=False)),
        f"{k} lanes - chunked loss": (k, off(best, loss=False)),
        f"{k} lanes - packing": (k, off(best, packing=False, compile=False)),
        f"{k} lanes - lean inputs": (k, off(best, lean_inputs=False)),
    }


def theirs(
    args: argparse.Namespace, ground: Ground, method: str, clocking: Clocking
) -> dict[str, Any]:
    """Measure the HF-style side; what cannot run is a row with its reason."""
    try:
        return hf_style(ground, method, clocking)
    except Exception as error:
        return failure(args, method, error)


def engine(
    args: argparse.Namespace, ground: Ground, method: str, plan: Plan, clocking: Clocking
) -> dict[str, Any]:
    """Measure one side of ours; where a method cannot be compiled or packed, it runs without."""
    lanes, switches = plan
    reasons: list[str] = []
    for off in LADDER:
        on = dataclasses.replace(switches, **dict.fromkeys(off, False))
        try:
            found = ours(ground, method, lanes, on, clocking, args.pass_tokens, args.profile)
            return {**found, "fell_back": reasons} if reasons else found
        except Exception as error:
            reasons.append(failure(args, method, error)["error"])
            if isinstance(error, (torch.OutOfMemoryError, Incompatible)):
                break
    return {"error": "; ".join(reasons)}


def failure(args: argparse.Namespace, method: str, error: Exception) -> dict[str, Any]:
    """Return an error as a row."""
    text = f"{type(error).__name__}: {str(error).split(chr(10))[0][:200]}"
    print(f"{method:14s} {text}", file=sys.stderr, flush=True)
    if args.trace:
        raise error
    return {"error": text}


def show(
    name: str, method: str, side: dict[str, Any], hf: dict[str, Any], seconds_per_token: float
) -> None:
    """Add a side's ratios and print it; ``seconds_per_token`` is the ceiling's."""
    if "error" in side:
        return
    rate = side["tokens_per_second"]
    for key, opponent in (
        ("ratio", hf.get("tokens_per_second")),
        ("ratio_cache_kept", hf.get("cache_kept_tokens_per_second")),
    ):
        side[key] = rate / opponent if opponent else None
    side["ceiling_fraction"] = rate * seconds_per_token
    ratios = "  ".join(f"{side[k] or float('nan'):6.1f}x" for k in ("ratio", "ratio_cache_kept"))
    print(
        f"{method:12s} {name:28s} {rate:9.0f} tok/s {ratios} {side['step_milliseconds']:8.1f} ms"
        f" {side['peak_gib'] or 0:6.2f} GiB {100 * side['ceiling_fraction']:5.1f} % of matmul"
        f"  set-up {side['set_up_seconds']:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="135m")
    parser.add_argument("--model-path", help="a local model folder instead of random weights")
    parser.add_argument(
        "--methods", default="lora_qv", help="catalog names; NAME_qv adapts q and v"
    )
    parser.add_argument("--lanes", default="8", help="lane counts, e.g. 8,32")
    parser.add_argument("--pass-tokens", type=int, help="most packed tokens of a pass")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument(
        "--hf-warm-up", type=int, default=FIRST_PASS, help="untimed steps of the HF-style loop"
    )
    parser.add_argument("--ablation", action="store_true", help="what each accelerator adds")
    parser.add_argument("--only-lanes", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--trace", action="store_true", help="stop at the first error")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--out", type=Path, help="write the JSON to a file")
    args = parser.parse_args()
    args.lanes = [int(k) for k in args.lanes.split(",")]
    return args


def main() -> None:
    """Measure every method asked for."""
    args = parse()
    warnings.simplefilter("ignore")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    ground = Ground(args.model, args.model_path, [], device)
    with torch.device("meta"):
        shaped = AutoModelForCausalLM.from_config(ground.config())
    args.parameters = sum(p.numel() for p in shaped.parameters())
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    gflops = profiling.matmul_gflops(dtype, device)
    args.ceiling = 1e9 * gflops
    longest = 96 if args.model == "tiny" else 768
    ground = ground._replace(data=examples(ground.config().vocab_size, longest))
    report = {
        "benchmark": "lanes",
        "model": args.model_path or args.model,
        "device": torch.cuda.get_device_name() if device != "cpu" else platform.processor(),
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__,
            "peft": peft.__version__, "bakeoff": bakeoff.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.now(UTC).date().isoformat(),
        "matmul_tflops": gflops / 1000,
        "examples": "log-normal around 190 tokens, 40 to 768; batches of 4 on both sides",
        "methods": {},
    }  # fmt: skip
    for method in args.methods.split(","):
        report["methods"][method] = measure(args, ground, method)
        args.hf_warm_up = min(args.hf_warm_up, LATER)
        for key in ("ratio", "ratio_cache_kept"):
            best = [r for sides in report["methods"].values() if (r := best_ratio(sides, key))]
            report[f"median_best_{key}"] = statistics.median(best) if best else None
        if args.out:  # after each method: a lent machine may be gone before the last
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(report, indent=1))


def best_ratio(sides: dict[str, Any], key: str) -> float | None:
    """Return the best ratio of a method's sides, None where there is none."""
    found = [s[key] for name, s in sides.items() if name != "hf" and s.get(key)]
    return max(found, default=None)


if __name__ == "__main__":
    main()
