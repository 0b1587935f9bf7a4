"""What a reader must know of imported runs: what differs between them, and where they come from.

Read by ``importing``: result files in, warnings and provenance of the study out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bakeoff.integrations.peft_benchmark.benchmark import BAKEOFF_SECTION, Benchmark
from bakeoff.integrations.peft_benchmark.results import ResultFile

ADAMW_WEIGHT_DECAY = 0.01
"""``torch.optim.AdamW``'s own, which a run gets whose ``optimizer_kwargs`` name none."""


def differing_parameters(results: Sequence[ResultFile]) -> dict[str, dict[str, int]]:
    """Return each training parameter but the learning rate that differs, with its values."""
    flat = []
    for result in results:
        config = result.run.train_config.model_dump(mode="json")
        optimizer = config.pop("optimizer_kwargs")
        decay = optimizer["weight_decay"]
        config["weight_decay"] = f"{ADAMW_WEIGHT_DECAY} (none given)" if decay is None else decay
        flat.append({key: str(value)[:60] for key, value in config.items()})
    keys = sorted({key for config in flat for key in config})
    found = {key: Counter(c.get(key, "(absent)") for c in flat) for key in keys}
    return {key: dict(values.most_common()) for key, values in found.items() if len(values) > 1}


def import_warnings(
    results: Sequence[ResultFile], benchmark: Benchmark, unlike: dict[str, dict[str, int]]
) -> list[str]:
    """Say what must be known before believing a figure of this import."""
    found = [
        f"Imported from {benchmark.name}: one run of each experiment, so the noise of its seed is "
        "unknown and in no interval."
    ]
    if benchmark.no_interval:
        found.append(f"There are no intervals and no verdicts: {benchmark.no_interval}.")
    else:
        found.append(
            f"Which of the {benchmark.n_test:,} test items were right is not in the files: "
            "intervals are of their number alone, unpaired, and wider than paired ones."
        )
    if benchmark.name != BAKEOFF_SECTION:
        found.append(
            "Settings were the experiments' own: methods did not get the same tuning budget, so a "
            "difference may be one of settings."
        )
        found.append(
            "`train_time` is as reported: it holds more than training (the test set's generation, "
            "too). The time of a step is of the training steps alone; memory is reserved, not "
            "allocated."
        )
    if unlike:
        shown = "; ".join(
            f"{key} ({', '.join(f'{value} in {n}' for value, n in values.items())})"
            for key, values in unlike.items()
        )
        found.append(f"Beside the learning rate, experiments differ in: {shown}.")
    versions = Counter(_versions(result) for result in results)
    if len(versions) > 1:
        shown = ", ".join(f"{version} in {n}" for version, n in versions.most_common())
        found.append(f"The runs are of different software: {shown}.")
    return found


def _versions(result: ResultFile) -> str:
    packages = result.meta.get("package_info") or {}
    named = ("transformers", "peft", "torch")
    return " ".join(f"{name} {packages.get(f'{name}-version')}" for name in named)


def provenance(results: Sequence[ResultFile]) -> dict[str, Any]:
    """Return where every run comes from, and what the first one says of its machine."""
    first = results[0]
    return {
        "runs": {r.name: {"file": r.path.name, "created_at": r.run.created_at} for r in results},
        "model_info": first.meta.get("model_info"),
        "dataset_info": first.meta.get("dataset_info"),
        "package_info": first.meta.get("package_info"),
        "system_info": first.meta.get("system_info"),
        "train_config": first.run.train_config.model_dump(mode="json"),
    }
