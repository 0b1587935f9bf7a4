"""Answers that make a score say less: one that most of test has, labels that look the same.

One of the checks on text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from bakeoff.data.checks.context import Pair
from bakeoff.data.issues import Fault

DOMINANT = 0.8
"""Share of test from which on one answer dominates it."""
LABELS = 0.2
"""Answers are labels where there are no more different ones in train than so many a row."""


def check(splits: Mapping[str, Sequence[Pair]]) -> list[Fault]:
    """Return what is odd about the answers."""
    return [*_dominant(splits["test"]), *_alike(splits)]


def _dominant(test: Sequence[Pair]) -> Iterator[Fault]:
    ((answer, count),) = Counter(pair.answer for pair in test).most_common(1)
    if len(test) > 1 and count >= DOMINANT * len(test):
        yield Fault(
            "dominant-answer",
            f"{count:,} of {len(test):,} rows of test have the answer '{_short(answer)}': always "
            f"giving it scores {100 * count / len(test):.0f} %",
            "read scores against that, or give test more of the other answers.",
        )


def _alike(splits: Mapping[str, Sequence[Pair]]) -> Iterator[Fault]:
    counts = Counter(pair.answer for pair in splits["train"])
    if len(counts) > max(2.0, LABELS * len(splits["train"])):
        return
    looks: dict[str, list[str]] = {}
    for answer, _ in counts.most_common():
        looks.setdefault(_look(answer), []).append(answer)
    for usual, *odd in looks.values():
        rows = [i for i, pair in enumerate(splits["train"]) if pair.answer in odd]
        if rows:
            seen = ", ".join(repr(_short(a)) for a in odd)
            yield Fault.at(
                "labels-alike",
                f"{seen} stands beside {_short(usual)!r}, which counts as another answer,",
                "write them alike if they mean the same.",
                "train", rows, len(splits["train"]),
            )  # fmt: skip


def _look(answer: str) -> str:
    """Return what an answer looks like to a reader: case, spacing and 1 or 1.0 aside."""
    plain = " ".join(answer.casefold().split())
    try:
        return repr(float(plain)) if plain not in ("nan", "inf", "infinity") else plain
    except ValueError:
        return plain


def _short(answer: str) -> str:
    return answer if len(answer) <= 40 else answer[:39] + "…"
