"""How fast answers are generated for evaluation: slots against plain ``generate``, token for token.

    python benchmarks/generation.py --model FOLDER --json    SmolLM2-135M-Instruct, say
    python benchmarks/generation.py --shape 135m             random weights of a shape
    python benchmarks/generation.py --lanes 12               twelve adapters, as trials in lanes

The plain side is what PEFT's ``method_comparison/MetaMathQA`` does: ``model.generate``, padded
batches of 50 in the order given, each until its last row has ended. Ours is what ``bakeoff run``
uses. Both answer the same prompts greedily with the same model, a LoRA of random values on q and v;
each side's time is the median of its rounds, and sides take turns. Everything is in the times:
ours captures its CUDA graphs anew in every round. On a CPU the process's own CPU time stands beside
the clock's: on a busy machine it is the one to trust.

With ``--lanes K`` every side answers the prompts with each of K adapters of different weights:
plain ``generate`` and ours with one adapter after another, and ours with all of them in a step.

Where a row's tokens differ, the gap between the logits of the two tokens must be within rounding
(``engine.generation.token_ties``), else no ratio is printed and the exit code is 1. In fp32 hardly
any row differs, in bf16 some do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from gpu_sides import SHAPES
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import bakeoff
from bakeoff.engine import peft_patches
from bakeoff.engine.device import autocast, disable_input_casting, resolve_precision, set_dtypes
from bakeoff.engine.generation.decoding import LaneSpan
from bakeoff.engine.generation.generate import (
    DecodeSettings,
    GenerationRequest,
    choose_rows,
    generate_in_lanes,
    generate_plain,
)
from bakeoff.engine.generation.token_ties import ROUNDING, TokenDifference, first_differences
from bakeoff.engine.lanes.lanes import InitialTensors, Lanes

BATCH = 50
"""PEFT's benchmark evaluates in batches of 50."""
MEAN_ANSWER = 24
"""With random weights every 24th token ends an answer: lengths are geometric around it."""
PLAIN = "plain generate"

Answers = list[list[int]]
"""The answers of the first adapter, of the second, ..."""


class Ground(NamedTuple):
    """What both sides answer: the model with its adapters, the prompts, where and how."""

    lanes: Lanes
    asked: GenerationRequest
    device: str
    precision: str


def questions(count: int) -> Iterator[str]:
    """Yield sums with a story around them, of very different lengths."""
    rng = random.Random(0)
    names, things = ("Ann", "Ben", "Carla", "Dev"), ("apples", "books", "red marbles", "old coins")
    for _ in range(count):
        who, what, n = rng.choice(names), rng.choice(things), rng.randint(2, 90)
        story = [f"{who} has {n} {what}."]
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 6))):
            other, m = rng.choice(names), rng.randint(2, 30)
            story.append(f"Then {other} comes by and brings {m} more {what}, all of them new.")
        yield " ".join([*story, f"How many {what} are there? Answer with the number."])


def real(args: argparse.Namespace) -> tuple[Any, GenerationRequest]:
    """Return the folder's model, and chats (ChatML) with one question each."""
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [tokenizer(chat.format(q))["input_ids"] for q in questions(args.prompts)]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    end, pad = int(tokenizer.eos_token_id), tokenizer.pad_token_id
    return model, GenerationRequest(prompts, (end,), args.most, end if pad is None else pad)


def shaped(args: argparse.Namespace) -> tuple[Any, GenerationRequest]:
    """Return random weights of a shape, and random prompts of 20 to 300 tokens."""
    torch.manual_seed(0)
    # an output layer of its own: tied to random embeddings it would repeat the last token for ever
    config = LlamaConfig(
        **SHAPES[args.shape],
        tie_word_embeddings=False,
        max_position_embeddings=8192,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    rng, vocabulary = random.Random(0), config.vocab_size
    lengths = [min(300, max(20, round(rng.lognormvariate(4.4, 0.5)))) for _ in range(args.prompts)]
    prompts = [[rng.randrange(1, vocabulary) for _ in range(n)] for n in lengths]
    ends = tuple(range(0, vocabulary, MEAN_ANSWER))
    return model, GenerationRequest(prompts, ends, args.most, 0)


def prepare(args: argparse.Namespace) -> Ground:
    """Load the model with its adapters, as a study holds them."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    precision = args.precision or ("bf16" if device != "cpu" else "fp32")
    precision = resolve_precision(precision, device)
    base, asked = real(args) if args.model else shaped(args)
    base.requires_grad_(False)
    config = peft.LoraConfig(r=32, lora_alpha=64, target_modules=["q_proj", "v_proj"])
    model: Any = peft.get_peft_model(base, config)
    peft_patches.install_patches(model)
    model = model.to(device).eval()
    set_dtypes(model, precision)
    start, starts = InitialTensors.from_model(model, checksums=False), []
    for lane in range(args.lanes):
        torch.manual_seed(1 + lane)
        trained = {
            name: torch.randn_like(tensor) * 0.002 if "lora_B" in name else tensor
            for name, tensor in start.trained.items()
        }
        starts.append(start._replace(trained=trained))
    lanes = Lanes(model, starts, [list(start.trained)], list(range(args.lanes)))
    disable_input_casting(model)
    return Ground(lanes, asked, device, precision)


def in_batches(ground: Ground, batch: int) -> Answers:
    """Answer by plain ``generate``, in the order given, one adapter after another."""
    prompts, answers = ground.asked.prompts, []
    for lane in range(len(ground.lanes)):
        ground.lanes.run_single(lane)
        for i in range(0, len(prompts), batch):
            part = ground.asked._replace(prompts=prompts[i : i + batch])
            answers += generate_plain(ground.lanes.model, part)
    return answers


def in_slots(
    ground: Ground, width: int, rows: int, graphs: bool, settings: DecodeSettings | None = None
) -> Answers:
    """Answer by ours with ``width`` adapters in a step, which have ``rows`` rows together.

    Without ``settings`` rows are added as in a study.
    """
    pace = settings or DecodeSettings.for_device(ground.device.split(":", maxsplit=1)[0])
    if settings is None:
        rows = choose_rows(ground.lanes, width, ground.asked, rows, pace)
    answers = []
    for first in range(0, len(ground.lanes), width):
        span = LaneSpan(first, width)
        found = generate_in_lanes(
            ground.lanes, span, ground.asked, max(1, rows // width), graphs, pace
        )
        answers += [answer for of_lane in found for answer in of_lane]
    return answers


def sides(args: argparse.Namespace, ground: Ground) -> dict[str, Callable[[], Answers]]:
    """Return what is timed: plain, ours with one adapter in a step, ours with all of them."""
    batch, graphs, count = args.batch, ground.device != "cpu", len(ground.lanes)

    def ours(width: int, rows: int, *rest: Any) -> Callable[[], Answers]:
        return lambda: in_slots(ground, width, rows, graphs, *rest)

    found = {PLAIN: lambda: in_batches(ground, batch)}
    if not graphs:
        found[f"ours, {batch} rows"] = ours(1, batch)
        if count > 1:
            found[f"{count} lanes, {batch} rows together"] = ours(count, batch)
            found[f"{count} lanes, {batch} rows each"] = ours(count, batch * count)
        return found
    if count > 1:
        return {**found, "ours": ours(1, batch), f"{count} lanes": ours(count, batch)}
    same_rows = DecodeSettings.for_device("cuda")
    return {
        **found,
        f"ours, {batch} rows, no graphs": lambda: in_slots(ground, 1, batch, False, same_rows),
        f"ours, {batch} rows": ours(1, batch, same_rows),
        "ours": ours(1, batch),
    }


class Took(NamedTuple):
    """Seconds of one round, by the clock and of the CPU."""

    clock: float
    cpu: float


def timed(ground: Ground, side: Callable[[], Answers]) -> tuple[Took, Answers]:
    """Return what one round took, and its answers."""
    if ground.device != "cpu":
        torch.cuda.synchronize()
    started, cpu = time.perf_counter(), time.process_time()
    with autocast(ground.device, ground.precision):
        answers = side()
    if ground.device != "cpu":
        torch.cuda.synchronize()
    return Took(time.perf_counter() - started, time.process_time() - cpu), answers


def compare(ground: Ground, ours: Answers, theirs: Answers) -> list[TokenDifference]:
    """Return the first differences of the rows that differ."""
    count, found = len(ground.asked.prompts), []
    for lane in range(len(ground.lanes)):
        ground.lanes.run_single(lane)
        part = slice(lane * count, (lane + 1) * count)
        with autocast(ground.device, ground.precision):
            model, asked = ground.lanes.model, ground.asked
            found += first_differences(model, asked, ours[part], theirs[part])
    return found


def warm_up(args: argparse.Namespace, ground: Ground) -> None:
    """Run every side on a few prompts."""
    few = ground.asked._replace(prompts=ground.asked.prompts[: args.batch], max_new_tokens=8)
    for side in sides(args, ground._replace(asked=few)).values():
        timed(ground, side)


def measure(args: argparse.Namespace, ground: Ground) -> dict[str, Any]:
    """Time all sides, in turns; compare their answers."""
    warm_up(args, ground)
    run = sides(args, ground)
    seconds: dict[str, list[Took]] = {name: [] for name in run}
    answers: dict[str, Answers] = {}
    for turn in range(args.rounds):
        for name in list(run) if turn % 2 == 0 else reversed(list(run)):
            took, answers[name] = timed(ground, run[name])
            seconds[name].append(took)
            print(f"{name:28s} {took.clock:8.2f} s", file=sys.stderr, flush=True)
    rows = {name: row(ground, answers, seconds, name) for name in run}
    lengths = [len(a) for a in answers[PLAIN]]
    return {
        "answers": {
            "count": len(lengths), "mean_tokens": statistics.mean(lengths),
            "longest": max(lengths), "most": ground.asked.max_new_tokens,
        },
        "prompt_tokens": statistics.mean(map(len, ground.asked.prompts)),
        "sides": rows,
    }  # fmt: skip


def row(
    ground: Ground, answers: dict[str, Answers], seconds: dict[str, list[Took]], name: str
) -> dict[str, Any]:
    """Return one side's figures."""
    took, plainly = (statistics.median(t.clock for t in seconds[n]) for n in (name, PLAIN))
    cpu, plainly_cpu = (statistics.median(t.cpu for t in seconds[n]) for n in (name, PLAIN))
    found: dict[str, Any] = {
        "seconds": took,
        "rounds": [t.clock for t in seconds[name]],
        "cpu_seconds": cpu,
        "rows_per_second": len(answers[name]) / took,
        "tokens_per_second": sum(map(len, answers[name])) / took,
    }
    if name == PLAIN:
        return found
    single = next(n for n in seconds if n.startswith("ours"))
    if len(ground.lanes) > 1 and name != single:
        alone = [
            statistics.median(getattr(t, kind) for t in seconds[single]) for kind in Took._fields
        ]
        found["ratio_one_lane"] = alone[0] / took
        found["ratio_one_lane_cpu_time"] = alone[1] / cpu if ground.device == "cpu" else None
    off = compare(ground, answers[name], answers[PLAIN])
    wrong = [d for d in off if d.gap > ROUNDING[ground.precision]]
    return {
        **found,
        "ratio": plainly / took,
        "ratio_cpu_time": plainly_cpu / cpu if ground.device == "cpu" else None,
        "rows_that_differ": len(off),
        "beyond_rounding": len(wrong),
        "largest_gap": max((d.gap for d in off), default=0.0),
    }


def told(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that a reader sees."""
    found = report["measured"]
    yield (
        f"{report['model']}, {report['precision']}, {report['device']}: "
        f"{report['prompts']} prompts of {found['prompt_tokens']:.0f} tokens, "
        f"adapters: {report['lanes']}, answers of {found['answers']['mean_tokens']:.0f} (at most "
        f"{found['answers']['most']}), plain in batches of {report['batch']}"
    )
    for name, side in found["sides"].items():
        line = f"{name:28s} {side['seconds']:8.2f} s {side['rows_per_second']:7.1f} rows/s"
        line += f" {side['tokens_per_second']:9.0f} tok/s"
        if "ratio" in side:
            line += f" {side['ratio']:6.2f}x"
            if side["ratio_cpu_time"]:
                line += f" ({side['ratio_cpu_time']:.2f}x in CPU time)"
            if "ratio_one_lane" in side:
                line += f", {side['ratio_one_lane']:.2f}x of one lane at a time"
            line += f"   {side['rows_that_differ']} rows differ"
            line += f", {side['beyond_rounding']} of them beyond rounding"
        yield line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="a folder with weights and tokenizer")
    which.add_argument("--shape", choices=SHAPES, default="135m", help="random weights")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--lanes", type=int, default=1, help="adapters of different weights")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows of a plain batch")
    parser.add_argument("--most", type=int, default=128, help="tokens of an answer, at most")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: as the device")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--out", type=Path, help="write the JSON to a file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 1 where tokens differ beyond rounding."""
    args = parse(arguments)
    warnings.simplefilter("ignore", FutureWarning)
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    ground = prepare(args)
    on_cpu = ground.device == "cpu"
    report = {
        "benchmark": "generation",
        "model": Path(args.model).name if args.model else f"random weights, shape {args.shape}",
        "parameters": sum(p.numel() for p in ground.lanes.model.parameters()),
        "precision": ground.precision,
        "device": platform.processor() or "cpu" if on_cpu else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "prompts": args.prompts,
        "lanes": args.lanes,
        "batch": args.batch,
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__,
            "peft": peft.__version__, "bakeoff": bakeoff.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.now(UTC).date().isoformat(),
        "measured": measure(args, ground),
    }  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    wrong = sum(s.get("beyond_rounding", 0) for s in report["measured"]["sides"].values())
    if wrong:
        print(f"{wrong} rows differ beyond rounding: no ratio", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=1) if args.json else "\n".join(told(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
