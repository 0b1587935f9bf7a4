"""The functions that worker processes run, by name, and the flags that both processes share.

The parent process never imports the training half: it names a function as ``module:name``, and an
executor runs it in a worker, with JSON values in and out. This module holds all of these names.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

RUN_SEGMENT = "bakeoff.training.segment:run"
"""Train a group of trials and score them."""
SCORE_BASE = "bakeoff.training.evaluate:score_base"
"""Score the base model on the test items."""
SCORE_CONSTANT = "bakeoff.training.constant_answers:score_constant"
"""Score the best answer that is the same for every test item."""
PROBE_COST = "bakeoff.training.preflight.cost_probe:probe_cost"
"""Measure step time and peak memory of one method, and decide its accelerators."""
MEASURE_MACHINE = "bakeoff.training.preflight.machine:measure_machine"
"""Describe the machine and measure its matmul rates (``bakeoff doctor``)."""
DETECT_MACHINE = "bakeoff.training.preflight.machine:detect_machine"
"""Describe the machine: device, precision, threads."""
FIND_HEAD = "bakeoff.training.preflight.base_head:find_head"
"""Find which layers of a classifier on this base are new."""
CHECK_STUDY = "bakeoff.training.preflight.checks:check_study"
"""Check the tokenised data, the base and every method's arguments."""
TUNE_HEAD = "bakeoff.training.head_rate:tune_head"
"""Find the learning rate of the task's new output layer."""
MATCH_PARAMETERS = "bakeoff.training.preflight.parameter_count:match_parameters"
"""Find each method's size at equal trainable parameters."""
DESCRIBE_METRIC = "bakeoff.metrics.load:describe"
"""Describe the study's metric and check its options."""
TIME_STEPS = "bakeoff.training.preflight.timing:time_steps"
"""Time a few steps of a method, for a time budget."""
PREVIEW_ROWS = "bakeoff.training.preflight.row_preview:preview_rows"
"""Show tokenised rows (``bakeoff plan --show``)."""
TRAIN_ON_SHUFFLED = "bakeoff.training.preflight.shuffled_answers:train_on_shuffled"
"""Train a trial on shuffled answers, from which no model can learn (``bakeoff doctor --deep``)."""
RELOAD_WEIGHTS = "bakeoff.training.reload:run"
"""Load saved weights in plain PEFT and compute their validation loss."""
CONVERT_WEIGHTS = "bakeoff.training.convert:run"
"""Write a method's weights in another form (``bakeoff export``)."""
PROBE_METHOD = "bakeoff.training.preflight.capabilities:probe_method"
"""Measure what a method can do, on tiny base models."""
PROBE_ON_MODEL = "bakeoff.training.preflight.capabilities.on_model:count_on_model"
"""Count a method's parameters on the user's model."""
JOB_CACHES = "bakeoff.training.setup_cache:JobCaches"
"""What a process keeps from one job to the next."""
PRELOAD = ["bakeoff.training.worker_preload"]
"""The module that the fork server imports once for all workers."""
SERVE = "bakeoff.training.worker:serve"
"""The loop of a worker process."""

BEAT, STOP = 0, 1
"""Indices into the numbers that parent and worker share: time of last progress, stop flag."""


def import_function(function: str) -> Any:
    """Import ``module:name``."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def find_segment(payload: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the part of a payload that names a study folder, None if there is none."""
    inner = payload.get("segment", payload)
    return inner if isinstance(inner, dict) and "folder" in inner else None
