"""Warnings and provenance for imported runs: what differs between them, where they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bakeoff.integrations.peft_benchmark.benchmark import BAKEOFF_SECTION, Benchmark
from bakeoff.integrations.peft_benchmark.results import ResultFile

ADAMW_WEIGHT_DECAY = 0.01
"""The default of ``torch.optim.AdamW``, used when ``optimizer_kwargs`` does not set it."""


def differing_parameters(results: Sequence[ResultFile]) -> dict[str, dict[str, int]]:
    """Return the training parameters that differ, except the learning rate, with values."""
    flat = []
    for result in results:
        config = result.run.train_config.model_dump(mode="json")
        optimizer = config.pop("optimizer_kwargs")
        decay = optimizer["weight_decay"]
        config["weight_decay"] = f"{ADAMW_WEIGHT_DECAY} (none given)" if decay is None else decay
        flat.append({key: str(value)[:60] for key, value in config.items()})
    keys = sorted({key for config in flat for key in config})
    counts = {key: Counter(c.get(key, "(absent)") for c in flat) for key in keys}
    return {key: dict(values.most_common()) for key, values in counts.items() if len(values) > 1}


def import_warnings(
    results: Sequence[ResultFile], benchmark: Benchmark, unlike: dict[str, dict[str, int]]
) -> list[str]:
    """Return the caveats of an import."""
    notes = [
        f"Imported from {benchmark.name} with one run per experiment: the between-seed variance is "
        "unknown and not part of any interval. [imported-once]"
    ]
    if benchmark.no_interval:
        notes.append(
            f"There are no intervals and no verdicts: {benchmark.no_interval}. "
            "[imported-no-intervals]"
        )
    else:
        notes.append(
            f"The files do not say which of the {benchmark.n_test:,} test items were right: "
            "intervals use only their number, are unpaired, and are wider than paired ones. "
            "[imported-counts]"
        )
    if benchmark.name != BAKEOFF_SECTION:
        notes.append(
            "Each experiment has its own hyperparameters: methods did not get the same tuning "
            "budget, so a difference may come from the settings. [imported-settings]"
        )
        notes.append(
            "`train_time` is as reported and includes more than training (also generation on the "
            "test set). The step time covers the training steps only; memory is reserved, not "
            "allocated, memory. [imported-times]"
        )
    if unlike:
        shown = "; ".join(
            f"{key} ({', '.join(f'{value} in {n}' for value, n in values.items())})"
            for key, values in unlike.items()
        )
        notes.append(
            f"Besides the learning rate, experiments differ in: {shown}. [imported-differences]"
        )
    versions = Counter(_versions(result) for result in results)
    if len(versions) > 1:
        shown = ", ".join(f"{version} in {n}" for version, n in versions.most_common())
        notes.append(f"The runs used different software versions: {shown}. [imported-versions]")
    return notes


def _versions(result: ResultFile) -> str:
    packages = result.meta.get("package_info") or {}
    named = ("transformers", "peft", "torch")
    return " ".join(f"{name} {packages.get(f'{name}-version')}" for name in named)


def provenance(results: Sequence[ResultFile]) -> dict[str, Any]:
    """Return the source of every run, and the software and machine of the first one."""
    first = results[0]
    return {
        "runs": {r.name: {"file": r.path.name, "created_at": r.run.created_at} for r in results},
        "model_info": first.meta.get("model_info"),
        "dataset_info": first.meta.get("dataset_info"),
        "package_info": first.meta.get("package_info"),
        "system_info": first.meta.get("system_info"),
        "train_config": first.run.train_config.model_dump(mode="json"),
    }
