"""Check data, base model, metric and method arguments of a study before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from bakeoff.core import files
from bakeoff.core.errors import BakeoffError, PreflightError
from bakeoff.core.trial import Segment
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import SPLITS, read_rows
from bakeoff.methods.arguments import check_config, check_targets
from bakeoff.tasks._base import CausalTask, load_tokenizer
from bakeoff.training.preflight import causality, reference_checks, tied_weights, token_checks
from bakeoff.training.preflight.base_errors import load_error
from bakeoff.training.preflight.parameter_count import Architecture
from bakeoff.training.setup import (
    load_base,
    make_task,
    prepare_process,
)


def check_study(value: dict[str, Any]) -> dict[str, Any]:
    """Check every method's arguments against PEFT and the base's modules; tokenise the data.

    A worker's entry point. Returns ``{"error": {code, cause, try, exit} | None, "faults": [...],
    "task_options": {...}}``: an error to raise, the issues of base and tokens, fatal or not, and
    the task's options, completed with what only the tokenizer tells. Methods that PEFT cannot
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
        splits = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
        issues: list[DataIssue] = []
        if isinstance(task, CausalTask):
            issues += causality.check(base, task, tokenizer, splits["train"], conditions)
        options, resolved = task.resolve(tokenizer, splits)
        conditions = dataclasses.replace(conditions, task_options=options)
        task = make_task(conditions)
        issues += [*resolved, *token_checks.check(data, task, tokenizer, limits)]
        shape = Architecture(base.config, task.task_type, task.heads)
        if not any(issue.fatal for issue in issues):
            issues += reference_checks.check(conditions, data.parent, task, tokenizer)
        issues += tied_weights.check(segment.trials, base, shape)
    except BakeoffError as error:
        return {"error": error.to_json()}
    except Exception as error:  # loaders raise many kinds for broken files
        if files.disk_full_message(error):
            raise
        return {"error": load_error(segment.base_path, error).to_json()}
    faults = [issue.to_json() for issue in issues]
    return {"error": None, "faults": faults, "task_options": task.options}


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
