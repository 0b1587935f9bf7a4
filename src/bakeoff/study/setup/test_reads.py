"""Looks at test: what a study may still change once its test set was read, and what that counts.

Called by ``api`` when a study is run again, and by ``forks``: what was frozen and what would be
frozen now in, what the store must note out. The first look is implicit: a final trial was scored on
test. More seeds, other contenders and another margin leave every trial valid, but whoever asks for
them has seen the verdicts, so each such change is a further look that is asked for (``again``) and
counted.
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
    "--again: nothing has changed since the test set was last read, so it is the same look."
)


def check_test_read(
    values: Mapping[str, Any], now: Mapping[str, Any], test_read: bool, again: bool
) -> dict[str, Any]:
    """Hold a study against what was frozen of it; return what to note of a further look at test.

    ``values`` are the store's, ``now`` what would be frozen, as plain JSON. Empty: no further look.

    Raises:
        PreflightError: ``study-differs``; ``test-already-read`` for what wants ``again``.
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
            f"The test set of this study has been read; since then (before -> now):\n{lines}",
            "`--again` to look at the test set once more (the report counts it), or a new folder "
            "with a fresh test set.",
        )
    at = now_utc()
    look = {"at": at, "changes": changes, "seeds": before["spec"]["budget"]["seeds"]}
    return {
        "looks": [*values.get("looks", []), look],
        "removed": _removed_methods(before, now, removed),
    }


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference between two frozen studies, the study file's keys first.

    What is said of a method beside what it does is no difference, nor what follows from a method's
    name.
    """
    both = before["methods"].keys() & now["methods"].keys()
    sides = []
    for frozen in (before, now):
        rest = {key: value for key, value in frozen.items() if key != "spec"}
        rest["methods"] = {
            name: {k: v for k, v in entry.items() if k not in DESCRIPTIVE_FIELDS}
            for name, entry in frozen["methods"].items()
            if name in both
        }
        sides.append(rest)
    return [*differences(_study_file_values(before), _study_file_values(now)), *differences(*sides)]


def _strip_allowed_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], removed: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both sides without what a further look may change; equal, they leave trials valid.

    A method that comes back is held against what it was: its trials and its cost are still there.
    """
    old, new = copy.deepcopy(dict(before)), copy.deepcopy(dict(now))
    for name, was in removed.items():
        old["methods"].setdefault(name, was["entry"])
        if was["table"]:
            old["spec"]["method"].setdefault(name, was["table"])
    stay = old["methods"].keys() & new["methods"].keys()
    both = before["methods"].keys() & now["methods"].keys()
    for side, own in ((old, before), (new, now)):
        spec = side["spec"]
        side["methods"] = {n: e for n, e in side["methods"].items() if n in stay}
        spec["method"] = {n: t for n, t in spec["method"].items() if n in stay}
        spec["methods"]["contenders"] = [n for n in own["methods"] if n in both][1:]
        del spec["task"]["margin"]
    if new["spec"]["budget"]["seeds"] > old["spec"]["budget"]["seeds"]:
        del new["spec"]["budget"]["seeds"], old["spec"]["budget"]["seeds"]
    return old, new


def _study_file_values(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the study file says, under its own keys; a method's entry follows from it."""
    spec: dict[str, Any] = frozen["spec"]
    return spec


def _removed_methods(
    before: Mapping[str, Any], now: Mapping[str, Any], removed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return every method that was in the study and is not any more, as it was."""
    tables = before["spec"]["method"]
    gone = {n: {"entry": e, "table": tables.get(n)} for n, e in before["methods"].items()}
    return {n: was for n, was in {**removed, **gone}.items() if n not in now["methods"]}
