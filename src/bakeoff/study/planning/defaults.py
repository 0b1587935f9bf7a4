"""Choose the values that a study file leaves open and that depend on the rows: length and steps.

Pure functions; ``study.setup.defaults`` measures the rows. The choices use the rows, the base's
positions and the kind of device only, so another machine of that kind chooses the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from bakeoff.study.config.budget import USUAL_STEPS

COVERED = 0.95
"""Share of the training rows that the chosen length truncates nothing of."""
STRETCH = 2
"""All rows are covered if the longest has at most this many times the tokens of most others."""
LENGTH_STEP = 32
"""Chosen lengths are multiples of it, unless the base's positions end before."""
LENGTH_CAP = 4096
"""The longest length that is chosen. A row is never split, and its memory grows with its length."""
PROMPT_ROOM = 32
"""Tokens of its prompt that the row with the longest completion keeps at least."""
MAX_PASSES = 20
"""Most passes over the training rows; more of them fit a small model to single rows."""
FEWEST_STEPS = 200
"""Fewest steps, however few the rows: the first default rung, 0.1, is then at step 20."""
MOST_STEPS = {"cpu": 2_000, "cuda": 10_000}
"""Most steps by kind of device: every trial takes them, and a study has dozens of trials."""


class RowLengths(NamedTuple):
    """Token counts of the rows as the task encodes them, without a length limit.

    ``rows`` maps a length to the number of training rows that have it. ``answer`` is the longest
    part of any row, in all splits, that must not be truncated; 0 without such parts. ``positions``
    is the number of tokens that the base and the methods leave for a row; None: no limit.
    """

    rows: Mapping[int, int]
    answer: int
    positions: int | None


class ChosenLength(NamedTuple):
    """A maximum length, and a note that begins with it and explains it."""

    max_length: int
    note: str


class ChosenSteps(NamedTuple):
    """A number of steps, and a note that begins with it and explains it."""

    steps: int
    note: str


def choose_max_length(lengths: RowLengths) -> ChosenLength:
    """Return the length that covers most training rows and every completion, within the limits."""
    longest, total = max(lengths.rows), sum(lengths.rows.values())
    most = _quantile(lengths.rows, COVERED)
    wanted = longest if longest <= STRETCH * most else most
    if lengths.answer:
        wanted = max(wanted, lengths.answer + PROMPT_ROOM)
    rounded = max(LENGTH_STEP, math.ceil(wanted / LENGTH_STEP) * LENGTH_STEP)
    # a completion must fit even if it is longer than the cap: a truncated one is refused
    cap = max(LENGTH_CAP, lengths.answer + PROMPT_ROOM if lengths.answer else 0)
    limits = [rounded, cap, *([] if lengths.positions is None else [lengths.positions])]
    chosen = min(limits)
    cut = sum(count for length, count in lengths.rows.items() if length > chosen)
    if not cut:
        rows = "the only row" if total == 1 else f"all {total:,} rows"
        note = f"covers {rows} (longest {longest:,} tokens)"
    else:
        share = math.floor(100 * (total - cut) / total)
        rows = "1 row is cut" if cut == 1 else f"{cut:,} rows are cut"
        note = f"covers {share} % of {total:,} rows (longest {longest:,} tokens; {rows})"
    if chosen < wanted:
        note += f"; {_limit_reason(chosen, lengths.positions)}"
    elif chosen > LENGTH_CAP:
        note += f"; the longest completion has {lengths.answer:,} tokens"
    return ChosenLength(chosen, f"{chosen:,}: {note}")


def _limit_reason(chosen: int, positions: int | None) -> str:
    if chosen == positions:
        return "the base has no more positions"
    return "more tokens need more memory and time: set task.max_length"


def _quantile(counts: Mapping[int, int], share: float) -> int:
    """Return the smallest length that at least this share of the rows does not exceed."""
    needed, seen = share * sum(counts.values()), 0
    for length in sorted(counts):
        seen += counts[length]
        if seen >= needed:
            return length
    return max(counts)


def choose_steps(rows: int, batch_size: int, device: str) -> ChosenSteps:
    """Return the steps of a trial: the usual number, in at least one and at most 20 passes."""
    one_pass = math.ceil(rows / batch_size)
    passes = max(FEWEST_STEPS, math.floor(MAX_PASSES * rows / batch_size))
    wanted = max(one_pass, min(USUAL_STEPS, passes))
    most = MOST_STEPS["cpu" if device == "cpu" else "cuda"]
    steps = min(wanted, most)
    note = f"{steps:,}: {describe_passes(steps, rows, batch_size)}"
    if steps < wanted:
        note += (
            f"; one pass would take {one_pass:,} steps in every trial: set budget.steps, or "
            "budget.hours"
        )
    return ChosenSteps(steps, note)


def describe_passes(steps: int, rows: int, batch_size: int) -> str:
    """Describe steps as passes over the training rows."""
    passes = steps * batch_size / rows
    text = f"{passes:.1f}" if passes >= 1 else f"{passes:.2g}"
    count = "row" if rows == 1 else "rows"
    return f"{text} passes over {rows:,} {count} in batches of {batch_size:,}"


def short_pass_note(steps: int, rows: int, batch_size: int) -> str | None:
    """Return a note on stated steps that do not reach every training row; None if they do."""
    missed = rows - steps * batch_size
    if missed <= 0:
        return None
    return (
        f"steps {steps:,}: {describe_passes(steps, rows, batch_size)}; a trial never sees "
        f"{missed:,} of them"
    )
