"""What the view asks a study folder: an outline at once, a snapshot in seconds, answers on demand.

The one place of the view that opens a database, read-only. Whatever is wrong with a study becomes a
``Trouble`` that is shown in its place; one damaged study never hides the others.
"""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bakeoff.core.errors import BakeoffError, EnvironmentProblem, first_line
from bakeoff.core.names import is_within
from bakeoff.core.redact import redact, redact_value
from bakeoff.report import render_sections
from bakeoff.report.sanitize import clean
from bakeoff.study import compare as study_compare
from bakeoff.study.config import parse_spec
from bakeoff.study.record import load_report, read_record
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import ItemResults, Reader

T = TypeVar("T")
Revision = tuple[tuple[int, int], ...]
"""Time of the last change (ns) and size (bytes) of the database and of its log."""


class StudyProblem(NamedTuple):
    """Why a study cannot be shown, as a user reads it."""

    code: str
    cause: str
    try_: str

    def to_json(self) -> dict[str, str]:
        """Return plain JSON values, without secrets and characters that act."""
        said = {"code": self.code, "cause": self.cause, "try": self.try_}
        return {key: str(clean(redact(value))) for key, value in said.items()}


class ItemQuery(NamedTuple):
    """What is needed to show a study's test items."""

    control: str
    titles: dict[str, str]
    trials: dict[str, dict[int, str]]
    """Method -> seed -> id of the final trial that gave scores on test."""
    texts: tuple[tuple[str, str], ...]
    """What each item asks and its true answer; empty where that is not known."""
    metric: dict[str, Any]


class Snapshot(NamedTuple):
    """A study as it was at one revision."""

    name: str
    verdict: str | None
    best: str | None
    complete: bool
    sections: tuple[dict[str, Any], ...]
    """As ``render_sections`` gives them, each with the ``digest`` of what it shows."""
    asked: ItemQuery


def catch_problems(what: Callable[[], T], folder: Path) -> T | StudyProblem:
    """Call ``what``; return what it gives, or the trouble that a user reads."""
    try:
        return what()
    except BakeoffError as error:
        return StudyProblem(error.code, error.cause, error.try_)
    except Exception as error:
        print(redact(traceback.format_exc()), file=sys.stderr)
        return StudyProblem(
            "study-unreadable",
            f"The study in {folder} cannot be shown ({first_line(error)}).",
            f"`bakeoff doctor {folder}`.",
        )


def revision(folder: Path) -> Revision:
    """Return what changes whenever the study's database does; opens nothing."""
    return tuple(_stamp(folder / f"{study_folder.DATABASE}{end}") for end in ("", "-wal"))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    # a log that a reader has just made is empty
    return (found.st_mtime_ns, found.st_size) if found.st_size else (0, 0)


def _database(folder: Path) -> Path:
    path = folder / study_folder.DATABASE
    if not is_within(path, folder):
        raise EnvironmentProblem(
            "folder-link", f"{path} leads out of its folder.", "the folder that it leads to."
        )
    return path


def outline(folder: Path) -> dict[str, Any]:
    """Return what a list shows of a study without reading a result or a score.

    Raises:
        BakeoffError: whatever is wrong with the database.
    """
    with Reader(_database(folder)) as reader:
        values, tally = reader.values("spec", "about", "imported"), reader.count_trials()
    if "about" in values and "imported" not in values:
        known, spec = values["about"], parse_spec(values["spec"])
        names, titles = known["methods"], known["titles"]
        name, base, task = spec.name, spec.base.model, spec.task.kind
    else:
        record = read_record(folder)
        names, titles = list(record.methods), record.titles
        name, base, task = record.name, record.base, record.task
    counts = [tally[n] for n in names if n in tally]
    found = {
        "name": name,
        "base": base,
        "task": task,
        "control": titles[names[0]],
        "contenders": [titles[n] for n in names[1:]],
        "done": sum(c.ended for c in counts),
        "planned": sum(c.planned for c in counts),
    }
    return dict(clean(redact_value(found)))


def snapshot(folder: Path) -> Snapshot:
    """Compute a study's report from its database, finished or not; takes seconds.

    Raises:
        BakeoffError: whatever is wrong with the study.
    """
    _database(folder)
    record, summary = load_report(folder)
    sections = tuple({**s, "digest": _digest(s)} for s in render_sections(summary))
    titles = {m["method"]: m["title"] for m in summary["methods"]}
    advice = summary["recommendation"]
    scored = {t.id: t for t, r in record.trials if r is not None and "test" in r.splits}
    trials: dict[str, dict[int, str]] = {}
    for trial in scored.values():
        if trial.phase == "final":
            trials.setdefault(trial.method.name, {})[trial.seed] = trial.id
    asked = ItemQuery(
        control=record.control,
        titles=titles,
        trials=trials,
        texts=tuple((item.prompt, item.reference) for item in record.asked),
        metric=asdict(record.metric),
    )
    return Snapshot(
        name=str(clean(record.name)),
        verdict=clean(advice["sentence"]),
        best=clean(titles.get(advice["method"])),
        complete=bool(summary["complete"]),
        sections=sections,
        asked=asked,
    )


def _digest(section: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()[:16]


def test_predictions(folder: Path, trial_ids: Collection[str]) -> dict[str, ItemResults]:
    """Return what trials made of the test items, by trial id.

    Raises:
        BakeoffError: whatever is wrong with the database.
    """
    with Reader(_database(folder)) as reader:
        return reader.item_results(trial_ids, "test")


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Say what differs between two studies, and whether their verdicts agree; paths left out.

    Raises:
        BakeoffError: whatever is wrong with one of them, or ``same-study``.
    """
    found = study_compare.compare(first, second)
    for side, folder in zip(found["studies"], (first, second), strict=True):
        side["folder"] = folder.name
        found["cautions"] = [c.replace(str(folder), folder.name) for c in found["cautions"]]
    return dict(clean(redact_value(found)))
