"""Test items side by side: what the control and a contender answered, in pages.

A table of two methods is read once a revision of the study; choosing an outcome, searching and
turning pages are pure functions of it. The largest differences come first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import TIE
from bakeoff.analysis.per_method.items import PairedScores
from bakeoff.core.errors import UsageError, unknown_name
from bakeoff.core.redact import redact_value
from bakeoff.report.live import queries
from bakeoff.report.live.queries import ItemQuery
from bakeoff.report.sanitize import clean
from bakeoff.study.storage.database import ItemResults

Numbers = NDArray[np.float64]
PAGE_SIZE = 50
"""Items a page."""
MAX_TEXT = 20_000
"""Characters shown of a prompt or an answer."""


class ItemOutcome(StrEnum):
    """Who did better on an item, by the mean of its scores over seeds."""

    WINS = "wins"
    LOSSES = "losses"
    BOTH_RIGHT = "both_right"
    """The same mean, in the upper half of the metric's range."""
    BOTH_WRONG = "both_wrong"
    """The same mean, in its lower half."""
    SAME = "same"
    """The same mean of a metric without a range."""


class MethodPredictions(NamedTuple):
    """A method's answers: the seeds that both methods or it alone has, one row of scores each."""

    method: str
    title: str
    seeds: tuple[int, ...]
    answers: tuple[ItemResults, ...]

    @property
    def scores(self) -> Scores:
        """Its scores, a row a seed."""
        values = np.array([a.scores for a in self.answers], dtype=np.float64)
        return Scores(self.seeds, values)


class ItemFilter(NamedTuple):
    """What of a table is to be shown."""

    outcome: ItemOutcome | None = None
    search: str = ""
    page: int = 1


class ItemTable(NamedTuple):
    """The items of the test split with the answers of control and contender."""

    control: MethodPredictions
    contender: MethodPredictions
    texts: tuple[tuple[str, str], ...]
    """What each item asks and its true answer; empty where the frozen data are not there."""
    gains: Numbers
    """Contender minus control, positive where the contender is better."""
    outcomes: tuple[ItemOutcome, ...]
    order: tuple[int, ...]
    """Items by the size of the difference, the largest first, then as in the file."""

    @classmethod
    def read(cls, folder: Path, asked: ItemQuery, contender: str) -> ItemTable:
        """Read the answers of two methods from the database.

        Raises:
            UsageError: ``no-answers``, ``unknown-contender``.
            BakeoffError: whatever is wrong with the database.
        """
        others = [m for m in asked.trials if m != asked.control]
        if contender not in others:
            if not others or asked.control not in asked.trials:
                raise _no_items_error()
            raise unknown_name("unknown-contender", "contender with answers", contender, others)
        if asked.control not in asked.trials:
            raise _no_items_error()
        ids = [i for m in (asked.control, contender) for i in asked.trials[m].values()]
        found = queries.test_predictions(folder, ids)
        sides = [_method_predictions(asked, method, found) for method in (asked.control, contender)]
        return _table(sides[0], sides[1], asked.texts, asked.metric)

    def page(self, wish: ItemFilter) -> dict[str, Any]:
        """Return one page of the items that are wished for, as plain JSON values."""
        wanted = [i for i in self.order if self._fits(i, wish)]
        pages = max(1, -(-len(wanted) // PAGE_SIZE))
        page = min(max(1, wish.page), pages)
        shown = wanted[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        counts = Counter(self.outcomes)
        found = {
            "control": self.control.title,
            "contender": self.contender.title,
            "page": page,
            "pages": pages,
            "total": len(wanted),
            "items": len(self.outcomes),
            "counts": {str(o): counts[o] for o in ItemOutcome},
            "rows": [self._row(i) for i in shown],
        }
        return dict(clean(redact_value(found)))

    def _fits(self, item: int, wish: ItemFilter) -> bool:
        if wish.outcome is not None and self.outcomes[item] is not wish.outcome:
            return False
        if not wish.search:
            return True
        wanted = wish.search.casefold()
        return any(wanted in text.casefold() for text in self._said(item))

    def _said(self, item: int) -> Iterable[str]:
        yield from self.texts[item] if self.texts else ()
        for side in (self.control, self.contender):
            yield from (a.predictions[item] or "" for a in side.answers)

    def _row(self, item: int) -> dict[str, Any]:
        prompt, reference = self.texts[item] if self.texts else (None, None)
        return {
            "item": item + 1,
            "prompt": _truncate(prompt),
            "reference": _truncate(reference),
            "outcome": str(self.outcomes[item]),
            "gain": float(self.gains[item]),
            "control": _prediction_row(self.control, item),
            "contender": _prediction_row(self.contender, item),
        }


def _no_items_error() -> UsageError:
    return UsageError(
        "no-answers",
        "There are no test items to show: the control and a contender have no scores on test yet.",
        "`bakeoff run` goes on with the study.",
    )


def _method_predictions(
    asked: ItemQuery, method: str, found: Mapping[str, ItemResults]
) -> MethodPredictions:
    ids = sorted(asked.trials[method].items())
    there = {seed: found[i] for seed, i in ids if i in found}
    known = {seed: a for seed, a in there.items() if all(map(math.isfinite, a.scores))}
    sizes = Counter(len(a.scores) for a in known.values())
    if not sizes:
        raise _no_items_error()
    size = sizes.most_common(1)[0][0]
    kept = {seed: a for seed, a in known.items() if len(a.scores) == size}
    return MethodPredictions(
        method, asked.titles.get(method, method), tuple(kept), tuple(kept.values())
    )


def _table(
    control: MethodPredictions,
    contender: MethodPredictions,
    texts: Sequence[tuple[str, str]],
    metric: Mapping[str, Any],
) -> ItemTable:
    both = control.scores, contender.scores
    if both[0].values.shape[1] != both[1].values.shape[1]:
        raise UsageError(
            "no-answers", "The two methods were scored on other items.", "`bakeoff doctor STUDY`."
        )
    pair = PairedScores.of(
        contender.method, both[1], both[0], metric["better"]
    )  # as the report pairs
    gains, means = pair.gain, pair.control.mean(axis=0)
    outcomes = tuple(_outcome(g, m, metric) for g, m in zip(gains, means, strict=True))
    order = tuple(int(i) for i in np.argsort(-np.abs(gains), kind="stable"))
    whole = tuple(texts) if len(texts) == len(outcomes) else ()
    return ItemTable(control, contender, whole, gains, outcomes, order)


def _outcome(gain: float, mean: float, metric: Mapping[str, Any]) -> ItemOutcome:
    if abs(gain) > TIE:
        return ItemOutcome.WINS if gain > 0 else ItemOutcome.LOSSES
    low, high = metric["low"], metric["high"]
    if low is None or high is None:
        return ItemOutcome.SAME
    upper = mean >= (low + high) / 2
    return (
        ItemOutcome.BOTH_RIGHT
        if upper == (metric["better"] == "higher")
        else ItemOutcome.BOTH_WRONG
    )


def _prediction_row(side: MethodPredictions, item: int) -> dict[str, Any]:
    return {
        "mean": float(np.mean([a.scores[item] for a in side.answers])),
        "answers": [
            {"seed": seed, "score": a.scores[item], "answer": _truncate(a.predictions[item])}
            for seed, a in zip(side.seeds, side.answers, strict=True)
        ],
    }


def _truncate(text: str | None) -> str | None:
    if text is None or len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} characters more)"
