"""Results of PEFT's methods that Hugging Face published, for information on a method's page.

bakeoff did not measure them; ``published.csv`` names their source. Standard library only.
"""

from __future__ import annotations

import csv
import functools
from importlib.resources import files
from typing import NamedTuple

SOURCE = "https://github.com/huggingface/peft/tree/main/method_comparison"
TASKS = ("metamathqa", "imagegen")
CAVEATS = (
    "one run each, one seed; the learning rates were not tuned method by method",
    "metamathqa: 1319 test items, so the standard error is 1.37 points; answers were probably "
    "sampled, not greedy, since transformers 5",
    "metamathqa: no configuration is better than LoRA r = 32 beyond chance (Holm-corrected)",
    "imagegen: similarity over four test images",
    "the training time includes evaluation",
)


class PublishedResult(NamedTuple):
    """One published run; ``memory_gb`` is the peak in 10^9 bytes, ``seconds`` the training time."""

    task: str
    experiment: str
    method: str
    learning_rate: float
    parameters: int
    metric: str
    value: float
    memory_gb: float
    seconds: float


def find_results(method: str) -> list[PublishedResult]:
    """Return the published runs of a method, best first, language tasks before images."""
    rows = [row for row in _read_all() if row.method == method]
    return sorted(rows, key=lambda row: (TASKS.index(row.task), -row.value))


@functools.cache
def _read_all() -> tuple[PublishedResult, ...]:
    text = files("bakeoff.methods").joinpath("published.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return tuple(
        PublishedResult(
            row["task"],
            row["experiment"],
            row["method"],
            float(row["learning_rate"]),
            int(row["parameters"]),
            row["metric"],
            float(row["value"]),
            float(row["memory_gb"]),
            float(row["seconds"]),
        )
        for row in csv.DictReader(lines)
    )
