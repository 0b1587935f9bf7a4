"""Whether the output layer's default learning rate favours a method, on data like Reuters R8.

The rows are generated: eight unbalanced topics (half of the rows are of one, a hundredth of
another), long texts of common words with a few words of the topic, fewer of two others, and
numbers. Studies with nothing but a base, the rows and the methods are run:

    default   the output layer's rate is tuned on that layer alone
    method    it has each method's own rate, as before
    RATE      it has this rate: with the methods' grids of rates, the hand-made grid

A method is treated well if its score in `default` is within a point of its best one in the
hand-made grid. The table also has the verdicts at a third and at three times of the default rate.

    python benchmarks/head_rate.py --quick --out head-rate.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from real_study import about, markdown, run_study, told

from bakeoff.study.config import parse_spec

TOPICS: Mapping[str, tuple[float, str]] = {
    "earnings": (0.50, "profit earnings net income quarter revenue dividend shares loss margin"),
    "acquisitions": (0.28, "acquire merger takeover stake bid shareholders tender offer buyout"),
    "crude": (0.06, "crude oil barrel petroleum refinery drilling output pipeline gas tanker"),
    "trade": (0.05, "trade tariff exports imports deficit surplus quota sanctions goods customs"),
    "money": (0.045, "currency dollar yen exchange intervention bank liquidity reserves dealers"),
    "interest": (0.035, "interest rate prime lending discount bank cut raise treasury deposit"),
    "shipping": (0.02, "ship vessel port cargo strike dock seamen freight tanker canal crew"),
    "grain": (0.01, "wheat corn grain harvest tonnes crop farmers subsidy bushels acreage rice"),
}
"""Topic -> its share of the rows, and its words."""
COMMON = (
    "the company said on monday that a spokesman for group told reporters in london and it would "
    "not comment further while analysts expect year previous after new federal government about "
    "more than million first last week may also other which report statement major industry"
)
DISTRACTING, NUMBERS = 0.07, 0.03
"""Share of a text's words that are of two other topics, and that are numbers."""
GRID = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Learning rates of the output layer in the hand-made grid."""
ALLOWED = 0.01
"""Largest loss of a method against its best in the hand-made grid: a point of accuracy."""


def make_text(draw: random.Random, topic: str, length: int) -> str:
    """Return a text of ``length`` words about a topic."""
    own, share = TOPICS[topic][1].split(), draw.uniform(0.03, 0.16)
    others = " ".join(TOPICS[t][1] for t in draw.sample([t for t in TOPICS if t != topic], 2))
    kinds = (own, others.split(), COMMON.split())
    weights = (share, DISTRACTING, 1 - share - DISTRACTING - NUMBERS)
    words = []
    for _ in range(length):
        number = draw.random() < NUMBERS
        (kind,) = draw.choices(kinds, weights)
        words.append(str(draw.randint(1, 9999)) if number else draw.choice(kind))
    return " ".join(words)


def write_rows(folder: Path, counts: Mapping[str, int], lengths: tuple[int, int]) -> None:
    """Write the splits; every topic is at least twice in train."""
    folder.mkdir(parents=True, exist_ok=True)
    shares = [share for share, _ in TOPICS.values()]
    for split, count in counts.items():
        draw = random.Random(f"head-rate:{split}")
        always = [*TOPICS, *TOPICS] if split == "train" else []
        topics = [*always, *draw.choices(list(TOPICS), shares, k=count - len(always))]
        rows = [{"text": make_text(draw, t, draw.randint(*lengths)), "label": t} for t in topics]
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def study_values(given: argparse.Namespace, data: Path, rate: float | str | None) -> dict[str, Any]:
    """Return a study's values; without a ``rate`` nothing but base, rows and methods is stated."""
    control, *contenders = given.methods.split(",")
    splits = ("train", "validation", "test")
    values: dict[str, Any] = {
        "name": "head-rate",
        "base": {"model": given.model},
        "data": {split: str(data / f"{split}.jsonl") for split in splits},
        "task": {"kind": "classify"},
        "methods": {"control": control, "contenders": contenders},
        "budget": {"seeds": given.seeds} if rate or given.quick else {},
        "engine": {"workers": given.workers, "threads": 1},
    }
    if rate is not None:
        values["task"]["head_learning_rate"] = rate
        values["verdict"] = {"check_head": False}
    if given.quick:
        values["budget"] |= {"steps": 60, "batch_size": 8, "settings": 3}
    return values


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the studies, and go on with those that an earlier run has started."""
    load = os.getloadavg()[0]
    data = given.folder / "data"
    if given.quick:
        write_rows(data, {"train": 480, "validation": 120, "test": 300}, (30, 60))
    else:
        write_rows(data, {"train": 800, "validation": 200, "test": 500}, (80, 160))
    spec = parse_spec(study_values(given, data, None))
    record, report = run_study(spec, Path(), given.folder / "default")
    rate = report["head"]["learning_rate"]
    near = [float(f"{rate * factor:.1g}") for factor in (1 / 3, 3)]
    grid = sorted({*near, rate, *(() if given.quick else GRID)})
    rates = ("method", *grid)
    if given.side_by_side == 1:
        found = [run_at_rate(given, data, value) for value in rates]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(given.side_by_side, context, max_tasks_per_child=1) as pool:
            found = list(pool.map(run_at_rate, [given] * len(rates), [data] * len(rates), rates))
    return {
        **about("head_rate", spec, record, load),
        "head": report["head"],
        "near": [str(value) for value in near],
        "grid": [str(value) for value in grid],
        "studies": {"default": outcome(report), **dict(zip(map(str, rates), found, strict=True))},
    }


def run_at_rate(given: argparse.Namespace, data: Path, rate: float | str) -> dict[str, Any]:
    """Return the outcome of the study with this learning rate of the output layer."""
    spec = parse_spec(study_values(given, data, rate))
    return outcome(run_study(spec, Path(), given.folder / f"head-{rate}")[1])


def outcome(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return each method's score, difference and verdict."""
    return {
        row["method"]: {
            "score": None if row["score"] is None else row["score"]["estimate"],
            "setting": row["setting"],
            "difference": row["difference"],
            "verdict": row["verdict"],
        }
        for row in report["methods"]
    }


def losses(found: Mapping[str, Any]) -> dict[str, float]:
    """Return how far each method's default score is below its best in the hand-made grid."""
    studies = found["studies"]
    return {
        method: max(studies[rate][method]["score"] or 0.0 for rate in found["grid"])
        - (own["score"] or 0.0)
        for method, own in studies["default"].items()
    }


def turned(found: Mapping[str, Any]) -> list[str]:
    """Return the methods that are better at one of the near rates and worse at another."""
    columns = [found["studies"][name] for name in ("default", *found["near"])]
    verdicts = {m: {column[m]["verdict"] for column in columns} for m in columns[0]}
    return [method for method, own in verdicts.items() if {"better", "worse"} <= own]


def table(found: dict[str, Any]) -> str:
    """Return the scores of each method by the output layer's rate, and what follows."""
    studies, below = found["studies"], losses(found)

    def cell(name: str, method: str) -> str:
        own = studies[name][method]
        score = "" if own["score"] is None else f"{100 * own['score']:.1f}"
        return score if own["verdict"] in (None, "control") else f"{score} {own['verdict']}"

    names = list(studies)
    rows = [
        [m, *(cell(name, m) for name in names), f"{100 * below[m]:.1f}"] for m in studies["default"]
    ]
    rate = found["head"]["learning_rate"]
    return (
        f"default: {rate:g}\n{markdown(['method', *names, 'points below best'], rows)}\n"
        f"verdicts turned: {', '.join(turned(found)) or 'none'}"
    )


def exit_code(found: dict[str, Any]) -> int:
    """Return 1 if the default costs a method more than a point, or a verdict turns."""
    return int(any(loss > ALLOWED for loss in losses(found).values()) or bool(turned(found)))


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="asset:all-minilm-l6-v2", help="the base")
    parser.add_argument("--methods", default="lora,vera,ia3,full", help="the control first")
    parser.add_argument("--seeds", type=int, default=3, help="replicates in the hand-made grid")
    parser.add_argument("--workers", type=int, default=2, help="groups of trials side by side")
    parser.add_argument(
        "--side-by-side",
        type=int,
        default=1,
        metavar="N",
        help="studies at a time",
    )
    parser.add_argument("--quick", action="store_true", help="shorter rows, fewer steps and rates")
    parser.add_argument("--folder", type=Path, default=Path("runs/head-rate"), help="of studies")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    return told(parser.parse_args(argv), measure, table, exit_code)


if __name__ == "__main__":
    sys.exit(main())
