"""Test items with the predictions of the control and a contender, in pages.

The table of two methods is read once per revision of the study; filtering, searching and paging are
pure functions of it. The largest differences come first.
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
"""Items per page."""
MAX_TEXT = 20_000
"""Maximum number of characters shown of a prompt or a prediction."""


class ItemOutcome(StrEnum):
    """The better method on an item, by the mean score over seeds."""

    WINS = "wins"
    LOSSES = "losses"
    BOTH_RIGHT = "both_right"
    """Equal means, in the better half of the metric's range."""
    BOTH_WRONG = "both_wrong"
    """Equal means, in the worse half of the range."""
    SAME = "same"
    """Equal means of a metric without a range."""


class MethodPredictions(NamedTuple):
    """A method's predictions on the test items, one entry per seed."""

    method: str
    title: str
    seeds: tuple[int, ...]
    answers: tuple[ItemResults, ...]

    @property
    def scores(self) -> Scores:
        """The scores, one row per seed."""
        values = np.array([a.scores for a in self.answers], dtype=np.float64)
        return Scores(self.seeds, values)


class ItemFilter(NamedTuple):
    """The items of a table to show."""

    outcome: ItemOutcome | None = None
    search: str = ""
    page: int = 1


class ItemTable(NamedTuple):
    """The items of the test split with the predictions of control and contender."""

    control: MethodPredictions
    contender: MethodPredictions
    texts: tuple[tuple[str, str], ...]
    """Prompt and reference of each item; empty if the frozen data are missing."""
    gains: Numbers
    """Contender minus control, with the sign such that positive is better."""
    outcomes: tuple[ItemOutcome, ...]
    order: tuple[int, ...]
    """Item indices by absolute difference, largest first; ties in file order."""

    @classmethod
    def read(cls, folder: Path, query: ItemQuery, contender: str) -> ItemTable:
        """Read the predictions of two methods from the database.

        Raises:
            UsageError: ``no-answers``, ``unknown-contender``.
            BakeoffError: errors of the database.
        """
        others = [m for m in query.trials if m != query.control]
        if contender not in others:
            if not others or query.control not in query.trials:
                raise _no_items_error()
            raise unknown_name("unknown-contender", "contender with predictions", contender, others)
        if query.control not in query.trials:
            raise _no_items_error()
        ids = [i for m in (query.control, contender) for i in query.trials[m].values()]
        results = queries.test_predictions(folder, ids)
        sides = [
            _method_predictions(query, method, results) for method in (query.control, contender)
        ]
        return _table(sides[0], sides[1], query.texts, query.metric)

    def page(self, item_filter: ItemFilter) -> dict[str, Any]:
        """Return one page of the items that match, as plain JSON values."""
        matching = [i for i in self.order if self._matches(i, item_filter)]
        pages = max(1, -(-len(matching) // PAGE_SIZE))
        page = min(max(1, item_filter.page), pages)
        shown = matching[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        counts = Counter(self.outcomes)
        result = {
            "control": self.control.title,
            "contender": self.contender.title,
            "page": page,
            "pages": pages,
            "total": len(matching),
            "items": len(self.outcomes),
            "counts": {str(o): counts[o] for o in ItemOutcome},
            "rows": [self._row(i) for i in shown],
        }
        return dict(clean(redact_value(result)))

    def _matches(self, item: int, item_filter: ItemFilter) -> bool:
        if item_filter.outcome is not None and self.outcomes[item] is not item_filter.outcome:
            return False
        if not item_filter.search:
            return True
        text_filter = item_filter.search.casefold()
        return any(text_filter in text.casefold() for text in self._searchable_texts(item))

    def _searchable_texts(self, item: int) -> Iterable[str]:
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
        "There are no test items to show: the control and a contender have no test scores yet.",
        "`bakeoff run FOLDER` with the study's folder continues it.",
    )


def _method_predictions(
    query: ItemQuery, method: str, results: Mapping[str, ItemResults]
) -> MethodPredictions:
    ids = sorted(query.trials[method].items())
    stored = {seed: results[i] for seed, i in ids if i in results}
    known = {seed: a for seed, a in stored.items() if all(map(math.isfinite, a.scores))}
    sizes = Counter(len(a.scores) for a in known.values())
    if not sizes:
        raise _no_items_error()
    size = sizes.most_common(1)[0][0]
    complete = {seed: a for seed, a in known.items() if len(a.scores) == size}
    if len(query.stand_in_scores) == size:
        stand_in = ItemResults(list(query.stand_in_scores), [None] * size)
        complete |= dict.fromkeys(query.stand_ins.get(method, ()), stand_in)
    complete = dict(sorted(complete.items()))
    return MethodPredictions(
        method, query.titles.get(method, method), tuple(complete), tuple(complete.values())
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
            "no-answers",
            "The two methods were scored on different items.",
            "`bakeoff doctor STUDY`.",
        )
    pair = PairedScores.from_scores(
        contender.method, both[1], both[0], metric["better"]
    )  # as the report pairs
    gains, means = pair.gain, pair.control.mean(axis=0)
    outcomes = tuple(_outcome(g, m, metric) for g, m in zip(gains, means, strict=True))
    order = tuple(int(i) for i in np.argsort(-np.abs(gains), kind="stable"))
    known_texts = tuple(texts) if len(texts) == len(outcomes) else ()
    return ItemTable(control, contender, known_texts, gains, outcomes, order)


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
    return f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"
