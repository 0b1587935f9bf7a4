"""Read-only queries of study folders: an outline at once, a snapshot in seconds, predictions.

Only this module of the view opens a database. An error of a study becomes a ``StudyProblem``, which
is shown in its place, so that one damaged study does not hide the others.
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

from bakeoff.analysis.trial_runs import diverged_seeds, runs_by_method, stand_in_scores
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, first_line
from bakeoff.core.names import is_within, quote_path
from bakeoff.core.redact import redact, redact_value
from bakeoff.core.trial import FINAL, REPLICATE
from bakeoff.report import render_sections
from bakeoff.report.sanitize import clean
from bakeoff.study import compare as study_compare
from bakeoff.study.config import parse_spec
from bakeoff.study.monitoring.status import StoredStudy, read_stored
from bakeoff.study.record import load_report, read_record
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.study.storage.database import ItemResults, Reader

T = TypeVar("T")
Revision = tuple[tuple[int, int], ...]
"""Modification time (ns) and size (bytes) of the database and of its write-ahead log."""


class StudyProblem(NamedTuple):
    """The error for which a study cannot be shown."""

    code: str
    cause: str
    try_: str

    def to_json(self) -> dict[str, str]:
        """Return plain JSON values without secrets and control characters."""
        texts = {"code": self.code, "cause": self.cause, "try": self.try_}
        return {key: str(clean(redact(value))) for key, value in texts.items()}


class ItemQuery(NamedTuple):
    """Everything needed to read a study's test items and predictions."""

    control: str
    titles: dict[str, str]
    trials: dict[str, dict[int, str]]
    """Method -> seed -> id of the final trial with test scores."""
    texts: tuple[tuple[str, str], ...]
    """Prompt and reference of each item; empty if unknown."""
    metric: dict[str, Any]
    stand_ins: dict[str, tuple[int, ...]] = {}
    """Method -> seeds of the replicates of which every setting diverged."""
    stand_in_scores: tuple[float, ...] = ()
    """The scores that stand for such a replicate, as in the report."""

    def scored_contenders(self) -> list[str]:
        """Return the contenders with test scores, in the study's order."""
        return [m for m in self.titles if m in self.trials and m != self.control]


class Snapshot(NamedTuple):
    """A study at one revision."""

    name: str
    verdict: str | None
    best: str | None
    complete: bool
    sections: tuple[dict[str, Any], ...]
    """The result of ``render_sections``, each with a ``digest`` of its content."""
    item_query: ItemQuery


def catch_problems(query: Callable[[], T], folder: Path) -> T | StudyProblem:
    """Call ``query``; return its result, or the problem that it raised."""
    try:
        return query()
    except BakeoffError as error:
        return StudyProblem(error.code, error.cause, error.try_)
    except Exception as error:
        print(redact(traceback.format_exc()), file=sys.stderr)
        return StudyProblem(
            "study-unreadable",
            f"The study in {folder} cannot be shown ({first_line(error)}).",
            f"`bakeoff doctor {quote_path(folder)}`.",
        )


def revision(folder: Path) -> Revision:
    """Return a value that changes with the study's database, without opening it."""
    return tuple(_stamp(folder / f"{study_folder.DATABASE}{end}") for end in ("", "-wal"))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    # an empty log was only just created by a reader
    return (status.st_mtime_ns, status.st_size) if status.st_size else (0, 0)


def _database(folder: Path) -> Path:
    path = folder / study_folder.DATABASE
    if not is_within(path, folder):
        raise EnvironmentProblem(
            "folder-link",
            f"{path} is a link that leads out of its folder.",
            "the linked folder itself.",
        )
    return path


def stored_study(folder: Path) -> StoredStudy:
    """Return the contents of a study's database without items, for the time left.

    Raises:
        BakeoffError: errors of the database.
    """
    _database(folder)
    return read_stored(folder)


def outline(folder: Path) -> dict[str, Any]:
    """Return the entry of a study in a list, without reading results or scores.

    Raises:
        BakeoffError: errors of the database.
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
    entry = {
        "name": name,
        "base": base,
        "task": task,
        "control": titles[names[0]],
        "contenders": [titles[n] for n in names[1:]],
        "done": sum(c.ended for c in counts),
        "planned": sum(c.planned for c in counts),
    }
    return dict(clean(redact_value(entry)))


def snapshot(folder: Path) -> Snapshot:
    """Compute the report of a study, finished or not, from its database; takes seconds.

    Raises:
        BakeoffError: errors of the study.
    """
    _database(folder)
    record, summary = load_report(folder)
    sections = tuple({**s, "digest": _digest(s)} for s in render_sections(summary))
    titles = {m["method"]: m["title"] for m in summary["methods"]}
    recommendation = summary["recommendation"]
    scored = {t.id: t for t, r in record.trials if r is not None and "test" in r.splits}
    trials: dict[str, dict[int, str]] = {}
    for trial in scored.values():
        if trial.phase in (FINAL, REPLICATE):
            trials.setdefault(trial.method.name, {})[trial.seed] = trial.id
    stand_in, by_method = stand_in_scores(record), runs_by_method(record)
    item_query = ItemQuery(
        control=record.control,
        titles=titles,
        trials=trials,
        texts=tuple((item.prompt, item.reference) for item in record.asked),
        metric=asdict(record.metric),
        stand_ins={m: diverged_seeds(runs) for m, runs in by_method.items()} if stand_in else {},
        stand_in_scores=tuple(stand_in[1]) if stand_in else (),
    )
    return Snapshot(
        name=str(clean(record.name)),
        verdict=clean(recommendation["sentence"]),
        best=clean(titles.get(recommendation["method"])),
        complete=bool(summary["complete"]),
        sections=sections,
        item_query=item_query,
    )


def _digest(section: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()[:16]


def test_predictions(folder: Path, trial_ids: Collection[str]) -> dict[str, ItemResults]:
    """Return the test predictions of trials by trial id.

    Raises:
        BakeoffError: errors of the database.
    """
    with Reader(_database(folder)) as reader:
        return reader.item_results(trial_ids, "test")


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Return the differences between two studies and whether their verdicts agree, without paths.

    Raises:
        BakeoffError: errors of one of the studies, or ``same-study``.
    """
    result = study_compare.compare(first, second)
    for side, folder in zip(result["studies"], (first, second), strict=True):
        side["folder"] = folder.name
        result["cautions"] = [c.replace(str(folder), folder.name) for c in result["cautions"]]
    return dict(clean(redact_value(result)))
