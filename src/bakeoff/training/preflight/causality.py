"""Check that a base for next-token prediction does not see later tokens.

A bidirectional encoder that is loaded as a causal LM sees the tokens that it is to predict: its
loss goes to zero on any answers, and what it generates is wrong.

Tensor axes: T = tokens, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bakeoff.core.trial import Conditions
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row
from bakeoff.engine.device import autocast
from bakeoff.tasks._base import IGNORE, Example, Task, pad_id_of

FLOOR = {"fp32": 1e-5, "bf16": 1e-3}
"""Smallest leak that is more than rounding, as a share of the change at the changed tokens. Causal
models have 0 to 1e-7 in fp32, random encoders 1e-3, trained ones more."""
LOSS_FLOOR = {"fp32": 1e-4, "bf16": 1e-2}
"""The same for the summed loss as training computes it, as a share of the loss."""
NOISE_FACTOR = 10.0
"""A leak is so many times larger than what another row in the batch changes, as in mixtures of
experts, where the grouping of tokens changes the rounding."""
MOST_TOKENS, FEWEST_TOKENS, MOST_ROWS = 64, 4, 32


def check(
    model: Any, task: Task, tokenizer: Any, rows: Sequence[Row], conditions: Conditions
) -> list[DataIssue]:
    """Return a fatal issue if tokens of a real row change predictions at earlier positions."""
    pair = _row_pair(task, tokenizer, rows)
    if pair is None:
        return []
    leak = measure_leak(model, task, pad_id_of(tokenizer), *pair, conditions)
    return [] if leak is None else [_issue(model, leak)]


def _row_pair(
    task: Task, tokenizer: Any, rows: Sequence[Row]
) -> tuple[list[int], list[int]] | None:
    """Return the tokens of some rows, and the same with other tokens in their second half.

    None without enough different tokens.
    """
    text = "\n".join(task.question(row) for row in rows[:MOST_ROWS])
    special = set(tokenizer.all_special_ids)
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    plain = [token for token in plain if token not in special]
    known = sorted(set(plain))
    row = plain[:MOST_TOKENS]
    if len(row) < FEWEST_TOKENS or len(known) < 2:
        return None
    following = dict(zip(known, [*known[1:], known[0]], strict=True))
    middle = len(row) // 2
    return row, [*row[:middle], *(following[token] for token in row[middle:])]


@torch.no_grad()
def measure_leak(
    model: nn.Module,
    task: Task,
    pad_id: int,
    row: Sequence[int],
    changed: Sequence[int],
    conditions: Conditions,
) -> float | None:
    """Return how much the second half of ``row`` changes the predictions in its first half.

    In the logits of a plain pass, as a share of the change in the second half; else in the loss as
    training computes it, as a share of the loss. None if both are no more than rounding.
    """
    c, middle = conditions, len(row) // 2
    with autocast(c.device, c.precision):
        first = _logits(model, [row], c.device)[0]
        beside, other = _logits(model, [row, changed], c.device)
        alone = _logits(model, [changed], c.device)[0]
        late = float((first[middle:] - alone[middle:]).abs().max())
        early = float((first[:middle] - alone[:middle]).abs().max())
        noise = float(max((first - beside).abs().max(), (alone - other).abs().max()))
        one, two = (_early_loss(model, task, pad_id, tokens, c) for tokens in (row, changed))
    share = early / late if late else 0.0
    if share > max(FLOOR[c.precision], NOISE_FACTOR * noise / late):
        return share
    in_loss = abs(one - two) / max(one, two)
    return in_loss if in_loss > LOSS_FLOOR[c.precision] else None


def _logits(model: nn.Module, rows: Sequence[Sequence[int]], device: str) -> torch.Tensor:
    """Return the logits ``[rows, T, V]`` in fp32."""
    ids = torch.tensor(rows, device=device)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits.float()


def _early_loss(
    model: nn.Module, task: Task, pad_id: int, row: Sequence[int], conditions: Conditions
) -> float:
    """Return the summed loss of a row's first half, as training computes it."""
    middle = len(row) // 2
    labels = [token if 0 < i < middle else IGNORE for i, token in enumerate(row)]
    # the targets are the same for both rows: they end before the first changed token
    batch = task.batch([Example(tuple(row), tuple(labels))], pad_id, conditions.device)
    return float(task.item_losses(model, batch).sums.sum())


def _issue(model: Any, leak: float) -> DataIssue:
    reason = ""
    if getattr(model.config, "is_decoder", None) is False:
        reason = f" (`is_decoder` is false: {type(model).__name__} attends to both sides)"
    return DataIssue(
        "base-not-causal",
        "The base is not a causal language model: later tokens change its predictions at earlier "
        f"positions, by {100 * leak:.2g} % of their own effect{reason}. It would see "
        "the answers that it has to predict",
        "use a base that was trained to predict the next token, such as a Llama, Qwen or GPT-2; "
        'an encoder fits `kind = "classify"` under [task].',
        fatal=True,
    )
