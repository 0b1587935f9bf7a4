"""Checks of the answers: one dominant answer, labels that look the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bakeoff.data.checks.context import PromptAnswer
from bakeoff.data.issues import DataIssue

DOMINANT_SHARE = 0.8
"""Share of test from which one answer counts as dominant."""
MAX_LABELS_PER_ROW = 0.2
"""Answers are treated as labels if train has at most this many distinct ones per row."""


def check(splits: Mapping[str, Sequence[PromptAnswer]]) -> list[DataIssue]:
    """Return issues of the answers."""
    return [*_dominant_answer(splits["test"]), *_similar_labels(splits)]


def _dominant_answer(test: Sequence[PromptAnswer]) -> Iterator[DataIssue]:
    ((answer, count),) = Counter(pair.answer for pair in test).most_common(1)
    if len(test) > 1 and count >= DOMINANT_SHARE * len(test):
        yield DataIssue(
            "dominant-answer",
            f"{count:,} of {len(test):,} rows of test have the answer '{_shorten(answer)}': always "
            f"predicting it scores {100 * count / len(test):.0f} %",
            "read scores against that, or give test more of the other answers.",
        )


def _similar_labels(splits: Mapping[str, Sequence[PromptAnswer]]) -> Iterator[DataIssue]:
    counts = Counter(pair.answer for pair in splits["train"])
    if len(counts) > max(2.0, MAX_LABELS_PER_ROW * len(splits["train"])):
        return
    spellings: dict[str, list[str]] = {}
    for answer, _ in counts.most_common():
        spellings.setdefault(_normalize(answer), []).append(answer)
    for usual, *others in spellings.values():
        rows = [i for i, pair in enumerate(splits["train"]) if pair.answer in others]
        if rows:
            seen = ", ".join(repr(_shorten(a)) for a in others)
            yield DataIssue.at(
                "labels-alike",
                f"{seen} occurs as well as {_shorten(usual)!r}, which counts as another answer,",
                "write them alike if they mean the same.",
                "train", rows, len(splits["train"]),
            )  # fmt: skip


def _normalize(answer: str) -> str:
    """Return an answer without differences in case, spacing and number format (1 and 1.0)."""
    plain = " ".join(answer.casefold().split())
    try:
        return repr(float(plain)) if plain not in ("nan", "inf", "infinity") else plain
    except ValueError:
        return plain


def _shorten(answer: str) -> str:
    return answer if len(answer) <= 40 else answer[:39] + "…"
