"""Test-set evaluations: the changes that a study allows after the first one, and their count.

More seeds, other contenders or another margin leave every finished trial valid. But the user has
seen the verdict by then, so each such change needs ``--again`` and counts as one more evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from bakeoff.core.clock import now_utc
from bakeoff.core.errors import PreflightError
from bakeoff.core.trial import DESCRIPTIVE_FIELDS
from bakeoff.study.setup.compatibility import check_unchanged, differences

NO_CHANGE_MESSAGE = (
    "--again: nothing has changed since the last test-set evaluation, so none is added."
)


def check_test_read(
    values: Mapping[str, Any], now: Mapping[str, Any], test_read: bool, again: bool
) -> dict[str, Any]:
    """Compare a study with its frozen values; return the database values of one more evaluation.

    ``values`` come from the database and ``now`` is what would be frozen, as plain JSON. The result
    is empty if no evaluation is added. The first evaluation has no entry of its own.

    Raises:
        PreflightError: ``study-differs``; ``test-already-read`` for changes that need ``again``.
    """
    before = values.get("frozen")
    if before is None:
        return {}
    if not test_read:
        check_unchanged(before, now)
    removed = values.get("removed", {})
    check_unchanged(*_strip_allowed_changes(before, now, removed))
    changes = differences(_study_file_values(before), _study_file_values(now))
    if not changes:
        return {}
    if not again:
        lines = "\n".join(f"  {line}" for line in changes)
        raise PreflightError(
            "test-already-read",
            "The test set was already evaluated, and the study has changed since (old -> new):\n"
            f"{lines}",
            "`--again` to evaluate on the test set once more (the report counts it), or a new "
            "folder with a fresh test set.",
        )
    evaluation = {
        "at": now_utc(),
        "changes": changes,
        "seeds": before["spec"]["budget"]["seeds"],
    }
    return {
        "looks": [*values.get("looks", []), evaluation],
        "removed": _removed_methods(before, now, removed),
    }


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference between two frozen studies, the study file's keys first.

    Descriptive fields of methods are ignored. So are methods that only one study has: the study
    file's keys list them already.
    """
    common = before["methods"].keys() & now["methods"].keys()
    sides = []
    for frozen in (before, now):
        rest = {key: value for key, value in frozen.items() if key != "spec"}
        rest["methods"] = {
            name: {k: v for k, v in entry.items() if k not in DESCRIPTIVE_FIELDS}
            for name, entry in frozen["methods"].items()
            if name in common
        }
        sides.append(rest)
    return [*differences(_study_file_values(before), _study_file_values(now)), *differences(*sides)]


def _strip_allowed_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], removed: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both sides without the changes that are allowed after a test-set evaluation.

    If the results are equal, all finished trials are valid. A removed method that returns is
    compared with what it was before, since its trials and its cost are still in the database.
    """
    old, new = copy.deepcopy(dict(before)), copy.deepcopy(dict(now))
    for name, method in removed.items():
        old["methods"].setdefault(name, method["entry"])
        if method["table"]:
            old["spec"]["method"].setdefault(name, method["table"])
    compared = old["methods"].keys() & new["methods"].keys()
    common = before["methods"].keys() & now["methods"].keys()
    for side, original in ((old, before), (new, now)):
        spec = side["spec"]
        side["methods"] = {n: e for n, e in side["methods"].items() if n in compared}
        spec["method"] = {n: t for n, t in spec["method"].items() if n in compared}
        # the order of the remaining contenders still has to agree, without the control
        spec["methods"]["contenders"] = [n for n in original["methods"] if n in common][1:]
        del spec["task"]["margin"]
    budgets = [side["spec"]["budget"] for side in (old, new)]
    key = "most" if budgets[0]["seeds"] == "rounds" == budgets[1]["seeds"] else "seeds"
    replicates_before, replicates = (budget.get(key) for budget in budgets)
    stated = isinstance(replicates, int) and replicates_before != "rounds"
    if stated and replicates > (replicates_before or 0):
        for budget in budgets:
            budget.pop(key, None)
    return old, new


def _study_file_values(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the frozen values that the study file states, under its own keys."""
    spec: dict[str, Any] = frozen["spec"]
    return spec


def _removed_methods(
    before: Mapping[str, Any], now: Mapping[str, Any], removed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all methods that are no longer in the study, as they were."""
    tables = before["spec"]["method"]
    earlier = {n: {"entry": e, "table": tables.get(n)} for n, e in before["methods"].items()}
    return {n: m for n, m in {**removed, **earlier}.items() if n not in now["methods"]}
