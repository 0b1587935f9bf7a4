"""Answers that make a score say less: one that most of test has, labels that look the same.

One of the checks on text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bakeoff.data.checks.context import PromptAnswer
from bakeoff.data.issues import DataIssue

DOMINANT_SHARE = 0.8
"""Share of test from which on one answer dominates it."""
MAX_LABELS_PER_ROW = 0.2
"""Answers are labels where there are no more different ones in train than so many a row."""


def check(splits: Mapping[str, Sequence[PromptAnswer]]) -> list[DataIssue]:
    """Return what is odd about the answers."""
    return [*_dominant_answer(splits["test"]), *_similar_labels(splits)]


def _dominant_answer(test: Sequence[PromptAnswer]) -> Iterator[DataIssue]:
    ((answer, count),) = Counter(pair.answer for pair in test).most_common(1)
    if len(test) > 1 and count >= DOMINANT_SHARE * len(test):
        yield DataIssue(
            "dominant-answer",
            f"{count:,} of {len(test):,} rows of test have the answer '{_shorten(answer)}': always "
            f"giving it scores {100 * count / len(test):.0f} %",
            "read scores against that, or give test more of the other answers.",
        )


def _similar_labels(splits: Mapping[str, Sequence[PromptAnswer]]) -> Iterator[DataIssue]:
    counts = Counter(pair.answer for pair in splits["train"])
    if len(counts) > max(2.0, MAX_LABELS_PER_ROW * len(splits["train"])):
        return
    looks: dict[str, list[str]] = {}
    for answer, _ in counts.most_common():
        looks.setdefault(_normalize(answer), []).append(answer)
    for usual, *odd in looks.values():
        rows = [i for i, pair in enumerate(splits["train"]) if pair.answer in odd]
        if rows:
            seen = ", ".join(repr(_shorten(a)) for a in odd)
            yield DataIssue.at(
                "labels-alike",
                f"{seen} stands beside {_shorten(usual)!r}, which counts as another answer,",
                "write them alike if they mean the same.",
                "train", rows, len(splits["train"]),
            )  # fmt: skip


def _normalize(answer: str) -> str:
    """Return what an answer looks like to a reader: case, spacing and 1 or 1.0 aside."""
    plain = " ".join(answer.casefold().split())
    try:
        return repr(float(plain)) if plain not in ("nan", "inf", "infinity") else plain
    except ValueError:
        return plain


def _shorten(answer: str) -> str:
    return answer if len(answer) <= 40 else answer[:39] + "…"
