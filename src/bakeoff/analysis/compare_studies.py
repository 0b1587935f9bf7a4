"""Comparison of two finished studies: what differs between them, and whether the verdicts agree.

Verdicts are taken from the two reports, never recomputed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bakeoff.analysis.compare import Verdict
from bakeoff.core.trial import DESCRIPTIVE_FIELDS

METHODS = "methods."
GROUPS = {
    "machine.versions.": "version",
    "machine.": "machine",
    "data.": "data",
    "base": "base",
    METHODS: "method",
    "spec.": "spec",
}
"""Topic of a frozen key by its prefix; the first match counts."""
IGNORED = ("spec.name",)
"""Keys that always differ and carry no information."""
CONCLUSIVE = (Verdict.BETTER, Verdict.EQUIVALENT, Verdict.WORSE)
ROW_KEYS = ("status", "verdict", "score", "difference", "setting", "n_seeds")


class Agreement(StrEnum):
    """Relation of the two verdicts on a method."""

    AGREE = "agree"
    DISAGREE = "disagree"
    OPEN = "open"
    """One of them is inconclusive, so they do not contradict each other."""
    NO_VERDICT = "no_verdict"
    OTHER_CONTROL = "other_control"
    """The studies have different controls, so their verdicts answer different questions."""
    CONTROL = "control"
    ONLY_IN_FIRST = "only_in_first"
    ONLY_IN_SECOND = "only_in_second"


@dataclass(frozen=True)
class ComparedStudy:
    """One of the two studies: its folder, its report, and its frozen values under dotted keys."""

    folder: str
    report: Mapping[str, Any]
    frozen: Mapping[str, Any]

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """The report's rows by method."""
        return {row["method"]: row for row in self.report["methods"]}


def compare_studies(first: ComparedStudy, second: ComparedStudy) -> dict[str, Any]:
    """Compare two studies: their differing values, and each method with both verdicts."""
    methods = [_method_row(name, first, second) for name in _ordered_keys(first.rows, second.rows)]
    counts = Counter(row["agreement"] for row in methods)
    return {
        "studies": [_study_row(side) for side in (first, second)],
        "differences": [
            *_frozen_differences(first, second),
            *_size_differences(first, second),
            *_setting_differences(methods),
        ],
        "methods": methods,
        "agreement": {str(kind): counts[kind] for kind in Agreement},
        "cautions": list(_cautions(first, second)),
    }


def verdict_agreement(
    first: Mapping[str, Any] | None, second: Mapping[str, Any] | None, same_control: bool
) -> Agreement:
    """Return how a method's two rows relate; a row is None where the study lacks the method."""
    if first is None or second is None:
        return Agreement.ONLY_IN_SECOND if first is None else Agreement.ONLY_IN_FIRST
    verdicts = {first["verdict"], second["verdict"]}
    if not same_control:
        return Agreement.OTHER_CONTROL
    if Verdict.CONTROL in verdicts:
        return Agreement.CONTROL
    if Verdict.NONE in verdicts:
        return Agreement.NO_VERDICT
    if len(verdicts) == 1:
        return Agreement.AGREE
    return Agreement.DISAGREE if verdicts <= set(CONCLUSIVE) else Agreement.OPEN


def _method_row(name: str, first: ComparedStudy, second: ComparedStudy) -> dict[str, Any]:
    one, two = first.rows.get(name), second.rows.get(name)
    known = one or two or {}
    return {
        "method": name,
        "title": known.get("title", name),
        "agreement": verdict_agreement(one, two, _control(first) == _control(second)),
        "first": _row_extract(one),
        "second": _row_extract(two),
    }


def _row_extract(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {key: row.get(key) for key in ROW_KEYS}


def _study_row(side: ComparedStudy) -> dict[str, Any]:
    study = side.report["study"]
    keys = ("name", "base", "task", "metric", "unit", "margin", "control", "n_test_items", "steps")
    known = {key: study.get(key) for key in keys}
    return {"folder": side.folder, **known, "complete": side.report["complete"]}


def _frozen_differences(first: ComparedStudy, second: ComparedStudy) -> Iterator[dict[str, Any]]:
    """Yield the frozen values that differ, except those of methods that only one study has."""
    both = first.rows.keys() & second.rows.keys()
    for key in _ordered_keys(first.frozen, second.frozen):
        one, two = first.frozen.get(key), second.frozen.get(key)
        if one != two and _is_informative(key, both):
            yield _difference_row(_group_of(key), key, one, two)


def _is_informative(key: str, both: set[str]) -> bool:
    if not key.startswith(METHODS):
        return key not in IGNORED
    # an argument's name never contains a dot; a method's may, since it is a file name
    names = [name for name in both if key.startswith(f"{METHODS}{name}.")]
    return any(
        key.removeprefix(f"{METHODS}{n}.").split(".")[0] not in DESCRIPTIVE_FIELDS for n in names
    )


def _group_of(key: str) -> str:
    return next((what for start, what in GROUPS.items() if key.startswith(start)), "other")


def _size_differences(first: ComparedStudy, second: ComparedStudy) -> Iterator[dict[str, Any]]:
    """Yield the sizes of the splits that differ, from the reports."""
    for key in ("n_train_items", "n_validation_items", "n_test_items"):
        one, two = first.report["study"].get(key), second.report["study"].get(key)
        if one != two:
            yield _difference_row("data", key, one, two)


def _setting_differences(methods: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield differences between the chosen settings of methods that both studies have."""
    for row in methods:
        if row["first"] is None or row["second"] is None:
            continue
        one, two = row["first"]["setting"] or {}, row["second"]["setting"] or {}
        for key in _ordered_keys(one, two):
            if one.get(key) != two.get(key):
                name = f"{row['method']}.{key}"
                yield _difference_row("setting", name, one.get(key), two.get(key))


def _difference_row(what: str, key: str, first: Any, second: Any) -> dict[str, Any]:
    return {"what": what, "key": key, "first": first, "second": second}


def _cautions(first: ComparedStudy, second: ComparedStudy) -> Iterator[str]:
    """Yield the caveats of comparing the two studies' verdicts."""
    one, two = first.report["study"], second.report["study"]
    if one["control"] != two["control"]:
        yield (
            f"The controls differ ({one['control']}, {two['control']}): "
            "the verdicts answer different questions."
        )
    for key, what in (("metric", "metrics"), ("margin", "margins"), ("task", "tasks")):
        if one[key] != two[key]:
            yield f"The {what} differ ({one[key]}, {two[key]})."
    if first.frozen.get("data.test") != second.frozen.get("data.test"):
        yield "The test sets differ, so the scores are over different items."
    older = [side.folder for side in (first, second) if not side.report.get("rounds")]
    if len(older) == 1:
        yield (
            f"{older[0]} did not repeat the search for each seed: its intervals are narrower than "
            "the true uncertainty."
        )
    for side in (first, second):
        if (side.report.get("learning") or {}).get("control_learnt") is False:
            yield f"{side.folder}: the control has learnt nothing: few verdicts, if any."
        if not side.report["complete"]:
            yield f"{side.folder} is not finished: its verdicts may still change."


def _control(side: ComparedStudy) -> str:
    return str(side.report["study"]["control"])


def _ordered_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the keys of both: those of the first, then those that only the second has."""
    return list(dict.fromkeys([*first, *second]))
