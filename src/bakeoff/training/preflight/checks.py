"""Check data, base model, metric and method arguments of a study before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bakeoff.core import files
from bakeoff.core.errors import BakeoffError, PreflightError
from bakeoff.core.trial import Segment
from bakeoff.data.rows import read_rows
from bakeoff.methods.arguments import check_config, check_targets
from bakeoff.metrics import load
from bakeoff.tasks._base import Task, load_tokenizer
from bakeoff.training.preflight import tied_weights, token_checks
from bakeoff.training.preflight.parameter_count import Architecture
from bakeoff.training.setup import (
    load_base,
    make_task,
    prepare_process,
)


def check_study(value: dict[str, Any]) -> dict[str, Any]:
    """Check every method's arguments against PEFT and the base's modules; tokenise the data.

    A worker's entry point. Returns ``{"error": {code, cause, try, exit} | None, "faults": [...]}``:
    an error to raise, and the issues of base and tokens, fatal or not. Methods that PEFT cannot
    attach to this base are not refused here: the cost probe fails for them, and the report says so.
    """
    segment = Segment.from_json(value)
    conditions = segment.trials[0].conditions
    try:
        prepare_process(conditions)
        for trial in segment.trials:
            check_config(trial.method, trial.config)
        task = make_task(conditions)
        base: Any = load_base(conditions, task, segment.base_path, 0)
        _check_finite_weights(base)
        for trial in segment.trials:
            targets = trial.config.get("target_modules")
            if isinstance(targets, list):
                check_targets(trial.method.name, base, targets)
        tokenizer = load_tokenizer(segment.base_path, conditions.revision, conditions.trusted)
        data, limits = Path(segment.folder) / "data", token_checks.BaseLimits.of(base)
        issues = token_checks.check(data, task, tokenizer, limits)
        shape = Architecture(base.config, task.task_type, task.heads)
        if not any(issue.fatal for issue in issues):
            _check_metric(segment, task)
        issues += tied_weights.check(segment.trials, base, shape)
    except BakeoffError as error:
        return {"error": error.to_json()}
    except Exception as error:  # loaders raise many kinds for broken files
        if files.disk_full_message(error):
            raise
        return {"error": _load_error(segment.base_path, error).to_json()}
    return {"error": None, "faults": [issue.to_json() for issue in issues]}


def _load_error(path: str, error: Exception) -> PreflightError:
    """Return the error for a base that cannot be loaded."""
    hint = "load it with plain transformers first; `bakeoff doctor` shows versions."
    if not Path(path).is_dir():
        hint = (
            "check its id and `revision` under [base]; `hf auth login`, if it is private or gated; "
            f"without a network, `hf download {path}` beforehand."
        )
    cause = f"The base cannot be loaded: {type(error).__name__}: {error}"
    return PreflightError("base-not-loadable", cause, hint)


def _check_finite_weights(base: torch.nn.Module) -> None:
    """Check that all weights of the base are finite: on others, every trial would diverge.

    Raises:
        PreflightError: ``base-not-finite``.
    """
    for name, weights in base.named_parameters():
        if weights.is_floating_point() and not bool(torch.isfinite(weights).all()):
            raise PreflightError(
                "base-not-finite",
                f"The base's weights '{name}' hold NaN or infinite numbers.",
                "download the base again; fp16 weights may have overflowed where they were saved.",
            )


def _check_metric(segment: Segment, task: Task) -> None:
    """Score the references of validation and test against themselves and an empty prediction.

    Raises:
        MetricError: the metric cannot score an item, whatever is predicted.
    """
    metric = load.load_metric(segment.trials[0].conditions, Path(segment.folder))
    if metric.of_losses:
        return
    for split in ("validation", "test"):
        rows = read_rows(Path(segment.folder) / "data" / f"{split}.jsonl")
        references = task.references(rows)
        metric.score(references, references, split)
        metric.score([""], references[:1], split)
