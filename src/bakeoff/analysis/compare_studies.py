"""Two finished studies side by side: what differs between them, and whether their verdicts agree.

Stands beside ``summary`` in analysis: two report dicts and what was frozen of each study in, a
plain dict out. A verdict is repeated, never computed anew.
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
"""What a frozen key is about, by how it begins; the first that fits."""
IGNORED = ("spec.name",)
"""What always differs and says nothing."""
CONCLUSIVE = (Verdict.BETTER, Verdict.EQUIVALENT, Verdict.WORSE)
ROW_KEYS = ("status", "verdict", "score", "difference", "setting", "n_seeds")


class Agreement(StrEnum):
    """How the two verdicts on a method stand to each other."""

    AGREE = "agree"
    DISAGREE = "disagree"
    OPEN = "open"
    """One of them is inconclusive, so they contradict each other in nothing."""
    NO_VERDICT = "no_verdict"
    OTHER_CONTROL = "other_control"
    """The studies have other controls, so their verdicts answer other questions."""
    CONTROL = "control"
    ONLY_IN_FIRST = "only_in_first"
    ONLY_IN_SECOND = "only_in_second"


@dataclass(frozen=True)
class ComparedStudy:
    """One of the two studies: its folder, its report, its frozen values under dotted keys."""

    folder: str
    report: Mapping[str, Any]
    frozen: Mapping[str, Any]

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """The report's rows by method."""
        return {row["method"]: row for row in self.report["methods"]}


def compare_studies(first: ComparedStudy, second: ComparedStudy) -> dict[str, Any]:
    """Compare two studies; each differing value and each method comes with both of its sides."""
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
    """Say how a method's two rows stand to each other; None where a study has not the method."""
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
    kept = ("name", "base", "task", "metric", "unit", "margin", "control", "n_test_items", "steps")
    known = {key: study.get(key) for key in kept}
    return {"folder": side.folder, **known, "complete": side.report["complete"]}


def _frozen_differences(first: ComparedStudy, second: ComparedStudy) -> Iterator[dict[str, Any]]:
    """Yield the frozen values that differ; methods that only one study has are rows elsewhere."""
    both = first.rows.keys() & second.rows.keys()
    for key in _ordered_keys(first.frozen, second.frozen):
        one, two = first.frozen.get(key), second.frozen.get(key)
        if one != two and _is_informative(key, both):
            yield _difference_row(_group_of(key), key, one, two)


def _is_informative(key: str, both: set[str]) -> bool:
    if not key.startswith(METHODS):
        return key not in IGNORED
    # an argument's name never holds a dot, a method's may: it is the name of a file
    names = [name for name in both if key.startswith(f"{METHODS}{name}.")]
    return any(
        key.removeprefix(f"{METHODS}{n}.").split(".")[0] not in DESCRIPTIVE_FIELDS for n in names
    )


def _group_of(key: str) -> str:
    return next((what for start, what in GROUPS.items() if key.startswith(start)), "other")


def _size_differences(first: ComparedStudy, second: ComparedStudy) -> Iterator[dict[str, Any]]:
    """Yield what the studies' own rows of the report tell beside the frozen values: sizes."""
    for key in ("n_train_items", "n_validation_items", "n_test_items"):
        one, two = first.report["study"].get(key), second.report["study"].get(key)
        if one != two:
            yield _difference_row("data", key, one, two)


def _setting_differences(methods: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the settings that were chosen otherwise, of the methods that both studies have."""
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
    """Yield what a careful reader must know before reading one verdict against the other."""
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
        yield "The test sets differ: the differences are over other items."
    for side in (first, second):
        if not side.report["complete"]:
            yield f"{side.folder} is not finished: its verdicts may still change."


def _control(side: ComparedStudy) -> str:
    return str(side.report["study"]["control"])


def _ordered_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the keys of both, those of the first before what only the second has."""
    return list(dict.fromkeys([*first, *second]))
