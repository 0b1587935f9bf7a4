"""Measure what trained lanes forgot: loss on general text, and how far they left the base.

Used by ``segment`` when final trials end. The pristine base is loaded a second time and kept
beside the lanes: switching an adapter off does not bring it back where a method begins inside the
base's weights (PiSSA, OLoRA, LoRA-GA, KaSA ...) or changes them for good.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bakeoff.core.results import Forgetting
from bakeoff.data.rows import read_rows
from bakeoff.engine.device import autocast
from bakeoff.engine.heartbeat import beat
from bakeoff.training.setup import TrainingSetup, load_base

GENERAL = "general"
"""The split that holds general text, where a study has one."""
ROWS = 128
"""Positions whose logits are compared at once: two fp32 tables of so many rows."""


def try_measure(setup: TrainingSetup, base_path: str) -> list[Forgetting | None]:
    """Return what each lane forgot; None for all where the study has no general text.

    What fails here costs no trial its result: it is warned of, and not measured.
    """
    nothing: list[Forgetting | None] = [None] * len(setup.lanes)
    if GENERAL not in setup.conditions.data:
        return nothing
    try:
        found = measure(setup, base_path)
    except Exception as error:  # out of memory with two bases, say
        warnings.warn(f"forgetting was not measured: {type(error).__name__}: {error}", stacklevel=2)
        return nothing
    # a lane that diverged gives no numbers
    return [f if all(map(math.isfinite, (*f.losses, *f.divergences))) else None for f in found]


def measure(setup: TrainingSetup, base_path: str, most: int | None = None) -> list[Forgetting]:
    """Return what each lane forgot on the first ``most`` documents, None: on all."""
    c = setup.conditions
    base = load_base(c, setup.task, base_path, setup.trials[0].seed).eval()
    found, texts = [], documents(setup)[:most]
    for tokens in texts:
        beat()
        before = _logits(base, tokens, c)
        sums = [_divergence_sums(before, after, tokens) for after in _lane_logits(setup, tokens)]
        found.append(torch.stack(sums))
    table = torch.stack(found, 1).tolist()  # [lanes, documents, 3]
    counts = tuple(len(t) - 1 for t in texts)
    return [Forgetting(counts, *map(tuple, zip(*own, strict=True))) for own in table]


def estimate_seconds(setup: TrainingSetup, base_path: str) -> float:
    """Return about how long the measurement takes for one lane, base included."""
    whole, few = len(documents(setup)), 2
    started = time.perf_counter()
    base = load_base(setup.conditions, setup.task, base_path, setup.trials[0].seed)
    loaded = time.perf_counter() - started
    del base
    measure(setup, base_path, few)
    timed = time.perf_counter() - started - 2 * loaded
    return loaded + max(timed, 0.0) * whole / min(few, whole)


def documents(setup: TrainingSetup) -> list[list[int]]:
    """Return the token ids of each document, cut to ``general_length``; too short ones are out."""
    c = setup.conditions
    rows = read_rows(setup.data / f"{GENERAL}.jsonl")
    cut = [setup.tokenizer(row["text"])["input_ids"][: c.general_length] for row in rows]
    return [tokens for tokens in cut if len(tokens) > 1]


@torch.no_grad()
def _logits(model: nn.Module, tokens: Sequence[int], c: Any) -> Tensor:
    """Return ``[tokens - 1, vocabulary]``: what each position says of the next token."""
    ids = torch.tensor([tokens], device=c.device)
    with autocast(c.device, c.precision):
        out: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return out[0, -len(tokens) : -1]  # virtual tokens come before the document's


def _lane_logits(setup: TrainingSetup, tokens: Sequence[int]) -> Iterator[Tensor]:
    """Yield each lane's logits of a document, as the plain model of its trial."""
    setup.model.eval()
    for lane in range(len(setup.lanes)):
        setup.lanes.run_single(lane)
        yield _logits(setup.model, tokens, setup.conditions)


def _divergence_sums(before: Tensor, after: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return ``[3]`` sums over a document in nats: base's loss, lane's loss, KL(base || lane)."""
    targets = torch.tensor(tokens[1:], device=before.device)
    sums = torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(targets), ROWS):
        own = slice(start, start + ROWS)
        one, two = (x[own].float().log_softmax(-1) for x in (before, after))
        losses = [functional.nll_loss(x, targets[own], reduction="sum") for x in (one, two)]
        # summed where the base gives any probability: 0 log 0 is 0
        divergence = torch.where(one.exp() > 0, one.exp() * (one - two), 0.0).sum()
        sums += torch.stack([*losses, divergence]).double().cpu()
    return sums
