"""Forks: a study begun anew under other conditions, which knows the study that it comes from.

Called by ``api`` (`bakeoff run --fork NEW`, and whenever a fork goes on) and by ``rounds``, which
takes over the parent's finished trials where they are the same trials made on an equal machine. The
parent is only read. If its test set is the fork's, too, its looks at it count in the fork: nobody
gets a fresh test set by beginning anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import files, trial_dir
from bakeoff.core.clock import now_utc
from bakeoff.core.errors import BakeoffError, UsageError
from bakeoff.core.names import is_within
from bakeoff.core.trial import Trial
from bakeoff.core.trial_dir import TRIALS
from bakeoff.core.wall_time import is_wall_key
from bakeoff.study.monitoring.progress import LOG, Progress
from bakeoff.study.setup import test_reads
from bakeoff.study.setup.compatibility import differences
from bakeoff.study.storage import lock
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.study.storage.study_dir import DATABASE

KEY = "forked_from"
"""The study's value that says what it was forked from; see ``noted``."""
TAKEN = "taken"
"""The study's value that lists the trials whose results are the parent's."""
LEFTOVER_FILES = (lock.LOCK, lock.NOTE, LOG)
"""What a fork that was refused, or killed before its database was made, leaves in its folder."""


class TrialSource(NamedTuple):
    """A study whose trials may be taken over, with the seals that its database knows, by trial."""

    folder: Path
    name: str
    seals: Mapping[str, str | None]


class ParentStudy(NamedTuple):
    """What a fork must know of its parent: its values, and whether its test set has been read."""

    values: dict[str, Any]
    test_read: bool

    @property
    def test_reads(self) -> int:
        """How often its test set has been read, as its report counts."""
        further = len(self.values.get("looks", ()))
        return 1 + further if self.test_read or further else 0


def check_can_fork(parent: Path, out: Path, again: bool) -> None:
    """Refuse to fork what is no study, into what is not free; nothing is written.

    Raises:
        UsageError: ``no-study``, ``fork-imported``, ``fork-itself``, ``fork-taken``,
            ``fork-again``.
    """
    if again:
        raise UsageError(
            "fork-again",
            "--again is a further look of the study itself, --fork begins another one, whose look "
            "is counted anyway.",
            "one of them.",
        )
    if is_within(out, parent):
        raise UsageError(
            "fork-itself",
            f"The fork {out} would lie in the study that it comes from, {parent}, which stays as "
            "it is.",
            f"a folder beside it: `--fork {parent.with_name(parent.name + '-2')}`.",
        )
    if "imported" in _read_parent(parent).values:
        raise UsageError(
            "fork-imported",
            f"The study in {parent} was imported: there is nothing in it that could be run.",
            "`bakeoff run STUDY.toml` begins a study.",
        )
    if not _is_free(parent, out):
        raise UsageError(
            "fork-taken",
            f"{out} holds something else than a fork of {parent} that was interrupted.",
            "a folder that is not there yet, or an empty one.",
        )


def mark_as_fork(parent: Path, out: Path, store: Writer) -> None:
    """Write into a new study's database, before anything else, that it is a fork of ``parent``."""
    with Reader(out / DATABASE) as reader:
        if reader.values(KEY):
            return
    now = now_utc()
    path = str(parent.resolve())
    with contextlib.suppress(ValueError):  # another drive of Windows
        path = os.path.relpath(path, out.resolve())  # both may be moved together
    store.set(KEY, {"folder": parent.resolve().name, "path": path, "at": now})


def record_parent(
    out: Path, values: Mapping[str, Any], now: Mapping[str, Any], test_read: bool
) -> dict[str, Any]:
    """Return what a fork's database is to hold of its parent; nothing for what is no fork.

    Under ``forked_from``: folder and time, the ``differences`` (before -> now), the parent's
    ``test_reads`` and ``looks``, its ``test`` rows' hash and whether they are the ``same_test``,
    and what the parent itself was forked from (``before``). Under ``looks``: the looks that others
    have had at the fork's test rows, with one more for the fork.

    Until the fork's test set is read (``test_read``) the parent's looks are counted anew, if it can
    still be read: what was seen meanwhile was seen before.

    Raises:
        UsageError: ``no-study`` where the parent has gone before anything was noted of it.
    """
    known = values.get(KEY)
    if known is None or test_read:
        return {}
    begun = "differences" in known
    try:
        found = _read_parent(_parent_folder(out, known))
    except BakeoffError:
        if begun:
            return {}  # moved, damaged or gone: it was counted when it was there
        raise
    if begun and found.test_reads <= known["test_reads"]:
        return {}
    before = found.values["frozen"]
    full = {
        **known,
        "differences": known["differences"] if begun else test_reads.describe_changes(before, now),
        "test": before["data"].get("test"),
        "same_test": before["data"].get("test") == now["data"]["test"],
        "test_reads": found.test_reads,
        "looks": list(found.values.get("looks", ())),
        "before": found.values.get(KEY),
    }
    seen = _inherited_test_reads(full, now["data"]["test"])
    return {KEY: full, "looks": seen} if seen else {KEY: full}


def find_trial_source(out: Path, progress: Progress) -> TrialSource | None:
    """Return the study whose trials a fork may take over, and say why where there is none.

    None, too, for what is no fork. Trials of another machine, other versions of a package among
    them, are not taken: nobody knows whether they would come out the same here.
    """
    with Reader(out / DATABASE) as reader:
        values = reader.values(KEY, "frozen")
    known = values.get(KEY)
    if known is None:
        return None
    place, none = _parent_folder(out, known), f"no trial is taken over from {known['folder']}"
    if not (place / DATABASE).is_file():
        progress.say(f"{none}: it is not there any more")
        return None
    try:
        theirs = _read_parent(place).values["frozen"]["machine"]
        with Reader(place / DATABASE) as reader:
            rows = reader.trial_rows()
    except BakeoffError as error:
        progress.say(f"{none}: {error.cause}")
        return None
    if lines := differences(theirs, values["frozen"]["machine"]):
        progress.say(f"{none}: they were made on another machine ({'; '.join(lines)})")
        return None
    seals = {name: row.sealed for name, row in rows.items() if row.status is not None}
    return TrialSource(place, known["folder"], seals)


def reuse_trials(parent: TrialSource, out: Path, store: Writer, trials: Iterable[Trial]) -> int:
    """Take over those of ``trials`` that the parent has finished; return how many.

    Folder first, durably, then the row; in between a kill costs nothing. A folder counts if every
    file's hash is right, and if it is the one that its row in the parent's database was read from.
    """
    with Reader(out / DATABASE) as reader:
        finished, known = reader.finished_ids(), reader.values(TAKEN).get(TAKEN, [])
    results = []
    for trial in trials:
        if trial.id in finished:
            continue
        source, target = parent.folder / TRIALS / trial.id, out / TRIALS / trial.id
        seal = trial_dir.manifest_hash(source)
        if seal is None or not is_within(source, parent.folder):
            continue
        if parent.seals.get(trial.id) not in (None, seal):
            continue
        if not target.exists():
            result = trial_dir.copy_trial(source, target)
        else:  # copied before, or the fork's own
            result = (
                trial_dir.read_finished(target) if trial_dir.manifest_hash(target) == seal else None
            )
        if result is not None:
            results.append(result)
    if results:
        store.save_group(results, {TAKEN: [*known, *(r.trial_id for r in results)]})
    return len(results)


def fork_provenance(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the report's provenance says of a study's parent; nothing without one."""
    known = values.get(KEY)
    if known is None:
        return {}
    keys = ("folder", "at", "differences", "test_reads", "same_test")
    return {KEY: {**{k: known.get(k) for k in keys}, "trials_taken": len(values.get(TAKEN, ()))}}


def _read_parent(folder: Path) -> ParentStudy:
    """Read a study that may be running.

    Raises:
        UsageError: ``no-study``.
    """
    missing = UsageError(
        "no-study",
        f"There is no study in {folder} that could be forked.",
        "`bakeoff run STUDY.toml` begins one; `--out DIR` says where the one to fork lies.",
    )
    if not (folder / DATABASE).is_file():
        raise missing
    with Reader(folder / DATABASE) as reader, reader.snapshot():
        found = ParentStudy(reader.values(), reader.has_test_scores())
    if "frozen" not in found.values:
        raise missing
    return found


def _is_free(parent: Path, out: Path) -> bool:
    """Tell whether a fork may be begun in a folder, or gone on with."""
    if not out.exists():
        return True
    if not out.is_dir():
        return False
    if not (out / DATABASE).is_file():
        return {path.name.removesuffix(files.PARTIAL_SUFFIX) for path in out.iterdir()} <= {
            *LEFTOVER_FILES
        }
    values: dict[str, Any] = {}
    with contextlib.suppress(UsageError), Reader(out / DATABASE) as reader:  # no-study: empty
        values = reader.values()
    if KEY in values:
        return _parent_folder(out, values[KEY]) == parent.resolve()
    return not {k for k in values if not is_wall_key(k)} - {"schema_version"}


def _parent_folder(out: Path, known: Mapping[str, Any]) -> Path:
    return Path(out, known["path"]).resolve()


def _inherited_test_reads(known: Mapping[str, Any], test: str) -> list[dict[str, Any]]:
    """Return the looks that were had at these test rows before, and the fork's own; none if none.

    Not the parent's alone: a fork with other test rows in between makes nothing unseen.
    """
    changes: list[str] = []
    at, older = known["at"], known
    while older is not None and "differences" in older:
        changes = [f"forked from {older['folder']}", *older["differences"], *changes]
        if older["test"] == test and older["test_reads"]:
            return [*older["looks"], {"at": at, "changes": changes}]
        older = older["before"]
    return []
