"""Measure what trained lanes forgot: their loss on general text and divergence from the base.

The base model is loaded a second time for the comparison. Disabling an adapter does not restore it
if a method changes the base's weights, as PiSSA, OLoRA, LoRA-GA and KaSA do at initialisation.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bakeoff.core.errors import describe_error
from bakeoff.core.results import Forgetting
from bakeoff.data.rows import read_rows
from bakeoff.engine.device import autocast
from bakeoff.engine.heartbeat import beat
from bakeoff.training.setup import TrainingSetup, load_base

GENERAL = "general"
"""The split of general text, in studies that have one."""
ROWS = 128
"""Number of positions whose logits are compared at once, in two fp32 tables."""

log = logging.getLogger(__name__)


def try_measure(setup: TrainingSetup, base_path: str) -> list[Forgetting | None]:
    """Return what each lane forgot; None for all if the study has no general text.

    An error here does not fail the trial: it becomes a warning, and nothing is measured.
    """
    nothing: list[Forgetting | None] = [None] * len(setup.lanes)
    if GENERAL not in setup.conditions.data:
        return nothing
    try:
        measured = measure(setup, base_path)
    except Exception as error:  # for example out of memory with two base models
        warnings.warn(f"forgetting was not measured: {describe_error(error)}", stacklevel=2)
        return nothing
    log.info("forgetting measured")
    # a diverged lane has no finite numbers
    return [f if all(map(math.isfinite, (*f.losses, *f.divergences))) else None for f in measured]


def measure(setup: TrainingSetup, base_path: str, most: int | None = None) -> list[Forgetting]:
    """Return what each lane forgot on the first ``most`` documents, or on all if None."""
    c = setup.conditions
    base = load_base(c, setup.task, base_path, setup.trials[0].seed).eval()
    by_document, texts = [], documents(setup)[:most]
    for tokens in texts:
        beat()
        before = _logits(base, tokens, c)
        sums = [_divergence_sums(before, after, tokens) for after in _lane_logits(setup, tokens)]
        by_document.append(torch.stack(sums))
    table = torch.stack(by_document, 1).tolist()  # [lanes, documents, 3]
    counts = tuple(len(t) - 1 for t in texts)
    return [Forgetting(counts, *map(tuple, zip(*lane, strict=True))) for lane in table]


def estimate_seconds(setup: TrainingSetup, base_path: str) -> float:
    """Estimate the seconds of the measurement for one lane, with loading the base."""
    whole, few = len(documents(setup)), 2
    started = time.perf_counter()
    base = load_base(setup.conditions, setup.task, base_path, setup.trials[0].seed)
    loaded = time.perf_counter() - started
    del base
    measure(setup, base_path, few)
    timed = time.perf_counter() - started - 2 * loaded
    return loaded + max(timed, 0.0) * whole / min(few, whole)


def documents(setup: TrainingSetup) -> list[list[int]]:
    """Return the token ids of each document, cut to ``general_length``.

    Documents with fewer than two tokens are left out: nothing is predicted in them.
    """
    c = setup.conditions
    rows = read_rows(setup.data / f"{GENERAL}.jsonl")
    cut = [setup.tokenizer(row["text"])["input_ids"][: c.general_length] for row in rows]
    return [tokens for tokens in cut if len(tokens) > 1]


@torch.no_grad()
def _logits(model: nn.Module, tokens: Sequence[int], c: Any) -> Tensor:
    """Return the logits of each position for the next token, ``[tokens - 1, vocabulary]``."""
    ids = torch.tensor([tokens], device=c.device)
    with autocast(c.device, c.precision):
        out: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return out[0, -len(tokens) : -1]  # virtual tokens come first


def _lane_logits(setup: TrainingSetup, tokens: Sequence[int]) -> Iterator[Tensor]:
    """Yield each lane's logits of a document, from the model of its trial alone."""
    setup.model.eval()
    for lane in range(len(setup.lanes)):
        setup.lanes.run_single(lane)
        yield _logits(setup.model, tokens, setup.conditions)


def _divergence_sums(before: Tensor, after: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return sums over a document in nats, ``[3]``: base loss, lane loss, KL(base || lane)."""
    targets = torch.tensor(tokens[1:], device=before.device)
    sums = torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(targets), ROWS):
        rows = slice(start, start + ROWS)
        one, two = (x[rows].float().log_softmax(-1) for x in (before, after))
        losses = [functional.nll_loss(x, targets[rows], reduction="sum") for x in (one, two)]
        # only where the base's probability is not zero: 0 log 0 is 0, but NaN in floating point
        divergence = torch.where(one.exp() > 0, one.exp() * (one - two), 0.0).sum()
        sums += torch.stack([*losses, divergence]).double().cpu()
    return sums
