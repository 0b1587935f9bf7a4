"""How long does a report of a large study take to write, to open and to paint, and how big is it?

    python benchmarks/large_study.py --out large.json         # needs Chromium and playwright
    python benchmarks/large_study.py --keep DIR               # leaves the made study in DIR

The study is made up, and written as a real one writes: 60 methods with
5 settings and 3 seeds each, 1,319 test items (the size of GSM8K's test set) with an answer of some
hundred characters for every item of every seed. Timed are `bakeoff report`, opening `report.html`,
and opening the study's page in `bakeoff view`, which computes it from the database the first time.
Both in headless Chromium, the median of several openings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scale_out import result

from bakeoff import api
from bakeoff.core.results import Cost, Forgetting, SplitScores, Status
from bakeoff.core.trial import Conditions, MethodEntry, Trial
from bakeoff.methods import registry
from bakeoff.study.config import dump_spec, parse_spec
from bakeoff.study.storage.database import Writer
from bakeoff.study.storage.study_dir import DATABASE

METHODS, SETTINGS, SEEDS, ITEMS = 60, 5, 3, 1319
TEXT = (
    "so the total is we add twelve and three which gives fifteen apples then Maria pays two "
    "dollars for each of them and has left half of what she had before dividing by four"
)
WORDS = TEXT.split()


def entries(count: int) -> list[MethodEntry]:
    """Return as many methods: the catalog's, then LoRA under other names."""
    names = ["lora", *(n for n in registry.names() if n != "lora")]
    known = [registry.load(n, Path()) for n in names[:count]]
    more = [replace(known[0], name=f"lora-{i}", title=f"LoRA {i}") for i in range(count)]
    return [*known, *more][:count]


def make(out: Path, methods: int = METHODS, items: int = ITEMS, seed: int = 0) -> None:
    """Write a finished study of ``methods`` into ``out``."""
    rng, found = np.random.default_rng(seed), entries(methods)
    (out / "data").mkdir(parents=True)
    rows = [{"question": prose(rng, 40), "answer": prose(rng, 60)} for _ in range(items)]
    for split in ("train", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / "data" / f"{split}.jsonl").write_text(text)
    spec = parse_spec(
        {
            "name": "large",
            "base": {"model": "base"},
            "data": {
                **{s: f"data/{s}.jsonl" for s in ("train", "validation", "test")},
                "columns": {"prompt": "question", "completion": "answer"},
            },
            "task": {"kind": "sft", "metric": "exact_match", "margin": 0.02},
            "methods": {"control": "lora", "contenders": [e.name for e in found[1:]]},
            "budget": {"steps": 1000, "settings": SETTINGS, "seeds": SEEDS, "race": "off"},
        }
    )
    conditions = Conditions(
        base="base", revision=None, task="sft", task_options={}, metric="exact_match", data={},
        steps=1000, batch_size=8, evaluation_batch_size=8, warmup=0.1, decay=0.3, weight_decay=0.0,
        clip=1.0, head_learning_rate=None, validations=20, device="cuda:0", precision="bf16",
        threads=8,
    )  # fmt: skip
    with Writer(out / DATABASE) as store:
        store.set_all({"spec": dump_spec(spec), "about": about(found, items), "frozen": {}})
        for entry in found:
            _write(store, entry, conditions, items, rng)
    api.report(out)


def _write(
    store: Writer, entry: MethodEntry, conditions: Conditions, items: int, rng: np.random.Generator
) -> None:
    level = float(rng.uniform(0.4, 0.6))
    rates = [entry.learning_rate * 10 ** (i / 2) for i in range(-2, SETTINGS - 2)]
    setting = [{"learning_rate": r} for r in rates]
    search = [Trial(entry, s, 0, "search", conditions) for s in setting]
    final = [Trial(entry, setting[2], s + 1, "final", conditions) for s in range(SEEDS)]
    store.add_trials([*search, *final])
    store.save_group([result(t.id, 0, rng, level) for t in search])
    for trial in final:
        right = (rng.random(items) < level).astype(float)
        answers = tuple(prose(rng, int(rng.integers(10, 60))) for _ in range(items))
        own = result(trial.id, 0, rng, level)
        splits = {**own.splits, "test": SplitScores(tuple(right.tolist()), answers, None)}
        worse = rng.normal(3.0, 1.0, 64)
        forgotten = Forgetting(
            (200,) * 64, (500.0,) * 64, tuple((500 + worse).tolist()), tuple(abs(worse).tolist())
        )
        store.save(replace(own, splits=splits, forgetting=forgotten))
    store.save_cost(
        Cost(
            entry.name, Status.DONE, trainable_parameters=int(rng.integers(10**4, 10**7)),
            train_tokens_per_second=float(rng.uniform(1e4, 1e5)),
            step_milliseconds=float(rng.uniform(20, 90)),
            train_peak_bytes=int(rng.integers(2**30, 2**33)), base_bytes=2**31,
            memory_kind="device", steps=20, tokens_per_step=2000.0,
        )
    )  # fmt: skip


def about(found: list[MethodEntry], items: int) -> dict[str, Any]:
    """Return what a study notes of itself."""
    return {
        "secondary": [], "references": [], "base_note": None,
        "metric": {
            "name": "exact_match", "unit": "fraction", "better": "higher", "low": 0.0, "high": 1.0,
        },
        "titles": {e.name: e.title for e in found},
        "methods": [e.name for e in found],
        "n_items": dict.fromkeys(("train", "validation", "test"), items),
        "warnings": [], "sizes": None,
        "provenance": {
            "versions": {}, "device": "cuda:0", "hardware": "made up", "precision": "bf16",
            "threads": 8, "base": {"model": "base"}, "data": {}, "data_from": {}, "git": None,
            "command": "bakeoff run study.toml", "study_file": "study.toml",
        },
    }  # fmt: skip


def prose(rng: np.random.Generator, words: int) -> str:
    """Return that many words."""
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), words))


def opened(url: str, times: int, ready: str) -> dict[str, float]:
    """Open a page ``times`` times in fresh tabs; return median seconds of what a user waits for.

    ``first_paint``: something is there; ``open``: the first chart is drawn, all text is there;
    ``whole``: the last chart is drawn, below.
    """
    from playwright.sync_api import sync_playwright

    paints, opens, wholes = [], [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for _ in range(times):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            begun = time.perf_counter()
            page.goto(url, wait_until="commit")
            page.wait_for_selector("[data-chart] svg", timeout=120_000)
            opens.append(time.perf_counter() - begun)
            while not page.evaluate(ready):  # waiting inside the page is what its policy forbids
                time.sleep(0.02)
            wholes.append(time.perf_counter() - begun)
            paints.append(
                page.evaluate(
                    "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
                )
            )
            page.close()
        browser.close()
    return {
        "first_paint_seconds": statistics.median(paints),
        "open_seconds": statistics.median(opens),
        "whole_seconds": statistics.median(wholes),
        "openings": times,
    }


DRAWN = (
    "document.querySelectorAll('[data-chart]').length > 0 &&"
    " [...document.querySelectorAll('[data-chart]')].every((e) => e.querySelector('svg'))"
)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Run `bakeoff view` on a folder; give the address that it prints."""
    code = "import sys; from bakeoff.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "view", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(rb"http://[\w.:\[\]]+/\S*token=\S+", line):
                    yield found[0].decode()
                    break
        finally:
            process.kill()


def main() -> int:
    """Make the study, time it, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--methods", type=int, default=METHODS)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (options.keep or Path(name)) / "large"
        begun = time.perf_counter()
        make(folder, options.methods, options.items)
        made = time.perf_counter() - begun
        begun = time.perf_counter()
        api.report(folder)
        found = {
            "methods": options.methods, "settings": SETTINGS, "seeds": SEEDS,
            "items": options.items,
            "making_seconds": made,
            "report_seconds": time.perf_counter() - begun,
            "report_html_mb": (folder / "report.html").stat().st_size / 1e6,
            "report_json_mb": (folder / "report.json").stat().st_size / 1e6,
            "database_mb": (folder / DATABASE).stat().st_size / 1e6,
            "report_html": opened((folder / "report.html").as_uri(), options.times, DRAWN),
        }  # fmt: skip
        print(json.dumps(found, indent=1), file=sys.stderr)
        with served(folder) as url:
            found["view"] = opened(url, options.times, DRAWN)
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
