"""Checks for duplicates, exact and near, within a split and across splits.

A duplicate within test counts one item twice. A row in train and test measures memorisation. A
prompt with two different answers is contradictory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bakeoff.data.checks import near_duplicates
from bakeoff.data.checks.context import PromptAnswer
from bakeoff.data.issues import MAX_SHOWN, DataIssue

Pairs = Sequence[PromptAnswer]
ACROSS = (
    ("test", "train", "the verdict would count memorised answers"),
    ("validation", "train", "settings would be chosen by memorised answers"),
    ("test", "validation", "settings were chosen on them"),
)


def check(splits: Mapping[str, Pairs]) -> list[DataIssue]:
    """Return duplicates within and across splits, and contradictions."""
    issues = [*_within_splits(splits), *_contradictions(splits["train"])]
    for split, other, why in ACROSS:
        issues += _across_splits(split, splits[split], other, splits[other], why)
    return [*issues, *_near_duplicates(splits["train"], splits["test"])]


def _within_splits(splits: Mapping[str, Pairs]) -> Iterator[DataIssue]:
    for split, pairs in splits.items():
        first: dict[PromptAnswer, int] = {}
        again = {i: first[p] for i, p in enumerate(pairs) if first.setdefault(p, i) != i}
        if again:
            yield _issue(
                "duplicate-rows",
                "An earlier row, word for word,",
                "remove duplicates: in test they count one item twice, in train they weigh more.",
                split, again, len(pairs), split,
            )  # fmt: skip


def _contradictions(train: Pairs) -> Iterator[DataIssue]:
    first: dict[str, int] = {}
    found = {}
    for i, pair in enumerate(train):
        earlier = first.setdefault(pair.prompt, i)
        if train[earlier].answer != pair.answer:
            found[i] = earlier
    if found:
        yield _issue(
            "contradictory-answers",
            "The same text as an earlier row with another answer",
            "decide which is right; no model can learn both.",
            "train", found, len(train), "train",
        )  # fmt: skip


def _across_splits(
    split: str, pairs: Pairs, other: str, others: Pairs, why: str
) -> Iterator[DataIssue]:
    first: dict[str, int] = {}
    for j, pair in enumerate(others):
        first.setdefault(pair.prompt, j)
    found = {i: first[p.prompt] for i, p in enumerate(pairs) if p.prompt in first}
    if found:
        yield _issue(
            f"{split}-in-{other}",
            f"A text that {other} has too, word for word,",
            f"remove these rows: {why}.",
            split, found, len(pairs), other,
        )  # fmt: skip


def _near_duplicates(train: Pairs, test: Pairs) -> Iterator[DataIssue]:
    found = near_duplicates.find_near_duplicates(
        [p.prompt for p in train], [p.prompt for p in test]
    )
    if found.pairs:
        yield _issue(
            "near-duplicates",
            f"A text that shares at least {100 * near_duplicates.THRESHOLD:.0f} % of its "
            "five-character pieces with one of train",
            "inspect the pairs; rows of one source belong into one split (`data.group`).",
            "test", dict(found.pairs), len(test), "train",
        )  # fmt: skip
    if found.n_train == near_duplicates.MAX_TEXTS or found.n_test == near_duplicates.MAX_TEXTS:
        yield DataIssue(
            "near-duplicates-sampled",
            f"Near-duplicates were searched in {found.n_test:,} texts of test and "
            f"{found.n_train:,} of train, drawn at random",
            "exact duplicates were searched in all of them.",
        )
    if not found.complete:
        yield DataIssue(
            "near-duplicates-cut-short",
            f"The search for near-duplicates stopped at {near_duplicates.MAX_COMPARISONS:,} pairs: "
            "most texts share long parts",
            "move the text that all rows share from the column to the template.",
        )


def _issue(
    code: str, what: str, try_: str, split: str, found: Mapping[int, int], of: int, other: str
) -> DataIssue:
    partners = tuple(found.values())[:MAX_SHOWN]
    return DataIssue.at(code, what, try_, split, list(found), of, against=other, partners=partners)
