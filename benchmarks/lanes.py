"""How fast trials train on one GPU: one after another as most people do it, and in lanes.

    python benchmarks/lanes.py --model 135m --methods lora_qv,dora --lanes 32 --json
    python benchmarks/lanes.py --model 3b --methods lora_qv --lanes 8 --ablation

Both sides run in one process on the same examples. The HF-style side is the training step of PEFT's
``method_comparison/MetaMathQA/run.py``: padded batches of 4 sorted by length within buckets,
``model(**batch)`` with labels, fp32 copies of the adapters, gradient clipping, a cosine schedule,
``loss.item()`` in each step. Ours is the engine that ``bakeoff run`` uses, with K trials of the
same method in lanes. Weights are random in the named model's shape (speed and memory do not depend
on their values), or a local folder's. Tokens are real ones: padding counts for neither side.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import itertools
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import bakeoff
from bakeoff.engine import meter, shims
from bakeoff.engine.device import lean_inputs, set_dtypes
from bakeoff.engine.feed import Feed
from bakeoff.engine.lanes import Lanes, Start
from bakeoff.engine.loop import Recipe, Stepper
from bakeoff.engine.switches import Switches
from bakeoff.methods import registry
from bakeoff.methods.hooks import make, trainable
from bakeoff.tasks import Example
from bakeoff.tasks.sft import SupervisedFineTuning
from bakeoff.trial import MethodEntry

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512},
    # SmolLM2-135M and Llama-3.2-3B
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64,
             "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "head_dim": 128,
           "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
QV = ["q_proj", "v_proj"]
"""PEFT's benchmark adapts these two; methods whose catalog entry says "all-linear" follow it."""
BATCH = 4
BUCKET = 20
"""method_comparison's BUCKET_FACTOR: examples are sorted by length within 20 batches."""
PASS_EXAMPLES = 640


def entry(name: str) -> MethodEntry:
    """Return a catalog method, ``<name>_qv`` on q and v as in PEFT's benchmark (r = 32)."""
    found = registry.load(name.removesuffix("_qv"), Path())
    if not name.endswith("_qv"):
        return found
    config = {**found.config, "target_modules": QV}
    if "r" in config and config["r"] == 8:
        config["r"] = 32
    if "lora_alpha" in config:
        config["lora_alpha"] = 64
    return dataclasses.replace(found, config=config)


def base_config(model: str) -> LlamaConfig:
    return LlamaConfig(
        **SHAPES[model], tie_word_embeddings=True, max_position_embeddings=8192, use_cache=False
    )


def load(args: argparse.Namespace, device: str, attention: str = "sdpa") -> Any:
    """Return the base in bf16, random weights of the named shape or a local folder's."""
    if args.model_path:
        model = AutoModelForCausalLM.from_pretrained(
            args.model_path, dtype=torch.bfloat16, attn_implementation=attention
        )
        return model.to(device)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            config = copy.deepcopy(base_config(args.model))
            return LlamaForCausalLM._from_config(config, attn_implementation=attention)
    finally:
        torch.set_default_dtype(torch.float32)


def examples(vocabulary: int, longest: int) -> list[Example]:
    """Return examples as long as MetaMathQA's: log-normal around 190 tokens, all supervised."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(size=PASS_EXAMPLES) * 0.45 + np.log(190)).clip(40, longest)
    made = []
    for n in lengths.astype(int):
        tokens = tuple(int(t) for t in rng.integers(0, vocabulary, n))
        made.append(Example(tokens, tokens))
    return made


def clean(device: str) -> None:
    gc.collect()
    torch._dynamo.reset()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def drain(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def timed(step: Callable[[], int], device: str, warm_up: int, steps: int) -> dict[str, float]:
    """Return tokens per second over ``steps`` and their wall time; the device is drained around."""
    started = time.perf_counter()
    for _ in range(warm_up):
        step()
    drain(device)
    set_up = time.perf_counter() - started
    started = time.perf_counter()
    tokens = sum(step() for _ in range(steps))
    drain(device)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else None
    return {
        "tokens_per_second": tokens / seconds,
        "step_milliseconds": 1000 * seconds / steps,
        "peak_gib": peak,
        "set_up_seconds": set_up,
        "steps": steps,
    }


def hf_batches(data: list[Example]) -> Iterator[list[Example]]:
    """Yield batches as method_comparison's BucketIterator does."""
    while True:
        for start in range(0, len(data), BATCH * BUCKET):
            bucket = sorted(data[start : start + BATCH * BUCKET], key=lambda e: -len(e.tokens))
            yield from (bucket[i : i + BATCH] for i in range(0, len(bucket), BATCH))


def hf_style(args: argparse.Namespace, method: str, data: list[Example], device: str) -> Any:
    """Measure the step of method_comparison's run.py."""
    clean(device)
    base = load(args, device)
    base.requires_grad_(method == "full")
    model: Any = base
    if method != "full":
        hook = make(entry(method), entry(method).config)
        model = hook.attach(base, "CAUSAL_LM", ())  # casts adapters to fp32, as run.py's default
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 1, 10_000)
    source = hf_batches(data)
    losses = []

    def step() -> int:
        picked = next(source)
        ids = pad_sequence([torch.tensor(e.tokens) for e in picked], batch_first=True).to(device)
        lengths = [len(e.tokens) for e in picked]
        mask = pad_sequence([torch.ones(n, dtype=torch.long) for n in lengths], batch_first=True)
        labels = ids.clone()
        for i, n in enumerate(lengths):
            labels[i, n + 1 :] = -100
        mask = mask.to(device)
        optimizer.zero_grad()
        loss = model(
            input_ids=ids, attention_mask=mask, labels=labels,
            num_items_in_batch=mask.sum().item(),
        ).loss  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        return sum(lengths)

    # its first steps in a process load kernels for shape after shape: not what a run of thousands
    # of steps is made of
    return timed(step, device, args.hf_warm_up, args.steps)


def ours(
    args: argparse.Namespace,
    method: str,
    data: list[Example],
    device: str,
    lanes: int,
    switches: Switches,
) -> Any:
    """Measure the engine with ``lanes`` trials of a method."""
    clean(device)
    base = load(args, device)
    base.requires_grad_(False)
    hook = make(entry(method), entry(method).config)
    model = hook.attach(base, "CAUSAL_LM", ())
    shims.install(model)
    model.to(device)
    set_dtypes(model, "bf16" if device != "cpu" else "fp32")
    start = Start.of(model, checksums=False)
    names = list(trainable(model))
    together = Lanes(model, [start] * lanes, [names], [0] * lanes, switches.compile)
    task = SupervisedFineTuning({"columns": {}, "max_length": 768})
    feed = Feed(together, task, BATCH, 0, device, switches)
    if switches.lean_inputs:
        lean_inputs(model)
    feed.pass_tokens = args.pass_tokens
    precision = "bf16" if device != "cpu" else "fp32"
    recipe = Recipe(10_000, 0.0, 0.0, 0.1, 1.0, device, precision, switches.graphs)
    rates = [(1e-4 * 1.1**k,) for k in range(lanes)]
    stepper = Stepper(together, rates, recipe, task.item_losses)
    model.train()
    source = feed.training(data, [0] * lanes)
    counter = itertools.count()
    losses: list[torch.Tensor] = []

    def step() -> int:
        batch = next(source)
        losses.append(stepper.step(next(counter), batch).clone())
        return sum(batch.n_tokens)

    # every shape must have been captured before the clock starts
    result = timed(
        step, device, args.warm_up if not switches.graphs else args.warm_up + 40, args.steps
    )
    if args.profile:
        profile(step, device)
    if not torch.isfinite(torch.stack(losses)).all():
        raise AssertionError("a loss was not finite")
    first = [x[0].item() for x in losses[:12:4]]
    return {
        **result,
        "lanes": lanes,
        "switches": dataclasses.asdict(switches),
        "losses_of_lane_0": first,
    }


def profile(step: Callable[[], int], device: str) -> None:
    """Print where the time of five steps goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(5):
            step()
        drain(device)
    table = found.key_averages()
    print(
        table.table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90),
        file=sys.stderr,
    )


def measure(
    args: argparse.Namespace, method: str, data: list[Example], device: str
) -> dict[str, Any]:
    """Run all sides of one method."""
    best = Switches.best(device, "bf16" if device != "cpu" else "fp32")
    if args.no_compile:
        best = dataclasses.replace(best, compile=False)
    plans: dict[str, tuple[int, Switches] | None] = {"hf": None}
    if not args.only_lanes:
        plans["solo"] = (1, best)
    for k in args.lanes:
        plans[f"lanes_{k}"] = (k, best)
    if args.ablation:
        plans |= ablation(args.lanes[0], best)
    sides: dict[str, Any] = {}
    for name, plan in plans.items():
        sides[name] = one_side(args, method, data, device, plan)
        if "error" not in sides[name]:
            show(name, method, sides[name], sides["hf"], args)
    return sides


def ablation(k: int, best: Switches) -> dict[str, tuple[int, Switches] | None]:
    """Return the ladder from a plain loop to all accelerators, and each one left out."""
    off = dataclasses.replace
    plain = off(Switches.plain(), lanes=True)
    return {
        "1 lane, padded, plain": (1, plain),
        "1 lane + packing": (1, off(plain, packing=True)),
        "1 lane + chunked loss": (1, off(plain, packing=True, loss=True)),
        "1 lane + CUDA graph": (1, off(best, compile=False)),
        f"{k} lanes - compiled layer": (k, off(best, compile=False)),
        f"{k} lanes - CUDA graph": (k, off(best, graphs=False)),
        f"{k} lanes - chunked loss": (k, off(best, loss=False)),
        f"{k} lanes - packing": (k, off(best, packing=False, compile=False)),
    }


def one_side(
    args: argparse.Namespace,
    method: str,
    data: list[Example],
    device: str,
    plan: tuple[int, Switches] | None,
) -> dict[str, Any]:
    """Measure one side; what cannot run is a row with its reason, and the others go on.

    Where a method cannot be compiled or packed, it runs without, as in a study.
    """
    if plan is None:
        try:
            side: dict[str, Any] = hf_style(args, method, data, device)
            return side
        except Exception as error:
            return failure(args, method, error)
    lanes, switches = plan
    reasons = []
    for weaker in ({}, {"compile": False}, {"compile": False, "packing": False}):
        try:
            found = ours(args, method, data, device, lanes, dataclasses.replace(switches, **weaker))
            return {**found, "fell_back": reasons} if reasons else found
        except Exception as error:
            reasons.append(failure(args, method, error)["error"])
    return {"error": "; ".join(reasons)}


def failure(args: argparse.Namespace, method: str, error: Exception) -> dict[str, Any]:
    text = f"{type(error).__name__}: {str(error).split(chr(10))[0][:200]}"
    print(f"{method:14s} {text}", file=sys.stderr, flush=True)
    if args.trace:
        raise error
    return {"error": text}


def show(name: str, method: str, side: dict[str, Any], hf: Any, args: argparse.Namespace) -> None:
    rate = side["tokens_per_second"]
    ratio = rate / hf["tokens_per_second"] if hf and "tokens_per_second" in hf else float("nan")
    side["ratio"] = ratio
    side["ceiling_fraction"] = rate * args.flops_per_token / args.ceiling
    peak = side["peak_gib"] or 0
    share = 100 * side["ceiling_fraction"]
    print(
        f"{method:14s} {name:30s} {rate:10.0f} tok/s {ratio:7.1f}x"
        f" {side['step_milliseconds']:8.1f} ms {peak:6.2f} GiB {share:5.1f} % of matmul"
        f"  set-up {side['set_up_seconds']:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
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
    parser.add_argument("--hf-warm-up", type=int, default=80, help="steps of the HF-style loop")
    parser.add_argument("--ablation", action="store_true", help="what each accelerator adds")
    parser.add_argument("--only-lanes", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--trace", action="store_true", help="stop at the first error")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--out", type=Path, help="write the JSON to a file")
    args = parser.parse_args()
    args.lanes = [int(k) for k in args.lanes.split(",")]
    warnings.simplefilter("ignore")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    config = base_config(args.model)
    if args.model_path:
        config = transformers.AutoConfig.from_pretrained(args.model_path)
    with torch.device("meta"):
        shaped = AutoModelForCausalLM.from_config(config)
    # forward 2, gradient to the activations 2; frozen weights need no gradient of their own
    args.flops_per_token = 4 * sum(p.numel() for p in shaped.parameters())
    ceiling = meter.matmul_gflops(torch.bfloat16 if device != "cpu" else torch.float32, device)
    args.ceiling = 1e9 * ceiling
    data = examples(config.vocab_size, 768 if args.model != "tiny" else 96)
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
        "matmul_tflops": ceiling / 1000,
        "examples": "log-normal around 190 tokens, 40 to 768; batches of 4 on both sides",
        "methods": {},
    }  # fmt: skip
    for method in args.methods.split(","):
        report["methods"][method] = measure(args, method, data, device)
        ratios = [best_ratio(sides) for sides in report["methods"].values()]
        report["median_best_ratio"] = statistics.median(ratios)
        if args.out:  # after each method: a lent machine may be gone before the last
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(report, indent=1))


def best_ratio(sides: dict[str, Any]) -> float:
    return max((s.get("ratio", 0.0) for name, s in sides.items() if name != "hf"), default=0.0)


if __name__ == "__main__":
    main()
