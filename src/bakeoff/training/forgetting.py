"""Measure what trained lanes forgot: their loss on general text and divergence from the base.

The base model is loaded a second time for the comparison. Disabling an adapter does not restore it
if a method changes the base's weights, as PiSSA, OLoRA, LoRA-GA and KaSA do at initialisation.

A pass holds all lanes and several documents of equal length, so that nothing is padded.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bakeoff.core.errors import describe_error
from bakeoff.core.results import Forgetting
from bakeoff.data.rows import read_rows
from bakeoff.engine.device import autocast, device_type, retry_with_half
from bakeoff.engine.heartbeat import beat
from bakeoff.engine.loss import states_and_output_layer, supervised_positions
from bakeoff.training.setup import TrainingSetup, load_base

GENERAL = "general"
"""The split of general text, in studies that have one."""
PASS_LOGITS = {"cuda": 1 << 30, "cpu": 1 << 27}
"""Maximum number of logits of a pass. They all exist only if the output layer is trained."""
CHUNK_LOGITS = {"cuda": 1 << 25, "cpu": 1 << 23}
"""Maximum number of logits that are compared at once, in a few fp32 tables of this size."""
ENOUGH_SECONDS = 1.0
"""The estimate of the seconds times more documents until they take this long."""

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


def measure(setup: TrainingSetup, base_path: str) -> list[Forgetting]:
    """Return what each lane forgot."""
    return _compare(setup, _load_base(setup, base_path), documents(setup))


def estimate_seconds(setup: TrainingSetup, base_path: str) -> float:
    """Estimate the seconds of the measurement for one lane, with loading the base."""
    texts, count = documents(setup), 2
    started = time.perf_counter()
    base = _load_base(setup, base_path)
    loaded = time.perf_counter() - started
    while True:
        some = texts[:count]
        started = time.perf_counter()
        _compare(setup, base, some)
        seconds = time.perf_counter() - started
        if seconds > ENOUGH_SECONDS or len(some) == len(texts):
            return loaded + seconds * len(texts) / len(some)
        # a pass of many documents may take no longer than one of few
        count *= 8


def documents(setup: TrainingSetup) -> list[list[int]]:
    """Return the token ids of each document, cut to ``general_length``.

    Documents with fewer than two tokens are left out: nothing is predicted in them.
    """
    c = setup.conditions
    rows = read_rows(setup.data / f"{GENERAL}.jsonl")
    cut = [setup.tokenizer(row["text"])["input_ids"][: c.general_length] for row in rows]
    return [tokens for tokens in cut if len(tokens) > 1]


def _load_base(setup: TrainingSetup, path: str) -> Any:
    return load_base(setup.conditions, setup.task, path, setup.trials[0].seed).eval()


@torch.no_grad()
def _compare(setup: TrainingSetup, base: Any, texts: Sequence[list[int]]) -> list[Forgetting]:
    """Compare each lane with the base on ``texts``. When memory runs out, passes are halved."""
    setup.model.eval()
    longest = max(map(len, texts), default=1)
    logits = longest * base.config.get_text_config().vocab_size
    most = PASS_LOGITS[device_type(setup.conditions.device)] // logits
    rows = max(1, min(setup.conditions.evaluation_batch_size, most))
    table = retry_with_half(partial(_sum_documents, setup, base, texts), rows, "documents")
    counts = tuple(len(t) - 1 for t in texts)
    return [Forgetting(counts, *map(tuple, zip(*lane, strict=True))) for lane in table]


def _sum_documents(
    setup: TrainingSetup, base: nn.Module, texts: Sequence[list[int]], rows: int
) -> list[list[list[float]]]:
    """Return each lane's sums over each document, ``[lanes][documents][3]``.

    ``rows`` is the number of rows of a pass, over all of its lanes.
    """
    c, lanes, width = setup.conditions, setup.lanes, min(setup.batch_builder.width, rows)
    shape = (len(lanes), len(texts), 3)
    table = torch.zeros(shape, dtype=torch.float64, device=c.device)
    for picked in _batches_of_equal_length(texts, rows // width):
        ids = torch.tensor([texts[i] for i in picked], device=c.device)
        before = _outputs(base, ids, c)
        for first in range(0, len(lanes), width):
            beat()
            count = min(width, len(lanes) - first)
            lanes.run_lanes(first, count, len(picked))
            # the documents once for each lane, lane after lane
            after = _outputs(setup.model, ids.repeat(count, 1), c)
            with autocast(c.device, c.precision):
                sums = _divergence_sums(before, after.split(count), ids[:, 1:])
            table[first : first + count, picked] = sums
    found: list[list[list[float]]] = table.tolist()
    return found


def _batches_of_equal_length(texts: Sequence[list[int]], most: int) -> Iterator[list[int]]:
    """Yield positions of texts with the same number of tokens, at most ``most`` at once."""
    by_length = defaultdict(list)
    for i, tokens in enumerate(texts):
        by_length[len(tokens)].append(i)
    for group in by_length.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


class _Outputs(NamedTuple):
    """A model's output at P positions: its output layer and the layer's input ``[P, D]``.

    Without a layer ``states`` are the logits ``[P, V]``.
    """

    states: Tensor
    layer: nn.Linear | None

    def split(self, parts: int) -> list[_Outputs]:
        """Return equal parts of the positions."""
        return [_Outputs(states, self.layer) for states in self.states.chunk(parts)]

    def log_probabilities(self, positions: slice) -> Tensor:
        """Return the log-probabilities of the next token in fp32, ``[positions, V]``."""
        logits = self.states[positions]
        if self.layer is not None:
            weight = self.layer.weight
            logits = functional.linear(logits.to(weight.dtype), weight, self.layer.bias)
        return logits.float().log_softmax(-1)


def _outputs(model: nn.Module, ids: Tensor, c: Any) -> _Outputs:
    """Return a model's output at all positions of ``ids`` ``[B, T]`` that have a next token."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with autocast(c.device, c.precision):
        return _Outputs(*states_and_output_layer(model, inputs, supervised_positions(ids)))


def _divergence_sums(before: _Outputs, after: Sequence[_Outputs], targets: Tensor) -> Tensor:
    """Return sums over each document in nats: base loss, lane loss, KL(base || lane).

    ``after`` has the output of each lane, ``targets`` ``[B, T]`` the next tokens of each document.
    The sums are ``[lanes, B, 3]``.
    """
    to = targets.reshape(-1, 1)
    values = torch.empty(len(after), len(to), 3, device=to.device)
    vocabulary = len(before.states[0] if before.layer is None else before.layer.weight)
    rows = max(1, CHUNK_LOGITS[to.device.type] // vocabulary)
    for start in range(0, len(to), rows):
        part = slice(start, start + rows)
        one = before.log_probabilities(part)
        probabilities = one.exp()
        values[:, part, 0] = -one.gather(1, to[part])[:, 0]
        for lane, outputs in enumerate(after):
            two = outputs.log_probabilities(part)
            values[lane, part, 1] = -two.gather(1, to[part])[:, 0]
            # only where the base's probability is not zero: 0 log 0 is 0, but NaN in floating point
            divergences = torch.where(probabilities > 0, probabilities * (one - two), 0.0)
            values[lane, part, 2] = divergences.sum(-1)
    return values.double().view(len(after), *targets.shape, 3).sum(2)
