"""Forks: a study that starts from another one with changed settings (`bakeoff run --fork NEW`).

A fork reuses finished trials that it has in common with its parent, if the machine is the same. The
parent is only read. If both have the same test rows, the parent's test-set evaluations count for
the fork: forking does not make a used test set fresh.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import files, trial_dir
from bakeoff.core.clock import is_wall_key, now_utc
from bakeoff.core.errors import BakeoffError, UsageError
from bakeoff.core.names import is_within, quote_path
from bakeoff.core.results import TrialResult
from bakeoff.core.trial import Trial
from bakeoff.core.trial_dir import TRIALS
from bakeoff.study.monitoring.progress import LOG, Progress
from bakeoff.study.setup import head_rate, test_reads
from bakeoff.study.setup.compatibility import differences
from bakeoff.study.storage import lock
from bakeoff.study.storage.database import Reader, Writer
from bakeoff.study.storage.study_dir import DATABASE

KEY = "forked_from"
"""Database value: the study that this one was forked from; see ``record_parent``."""
TAKEN = "taken"
"""Database value: the ids of the trials whose results come from the parent."""
FIRST_RUNG = "first_rung"
"""Database value: the step of the first rung (``replicates.RUNG``)."""
LEFTOVER_FILES = (lock.LOCK, lock.NOTE, LOG)
"""Files in the folder of a fork that was refused, or killed before its database existed."""


RACE_KEYS = ("settings", "race", "rungs", "keep", "extend", "tune", "select_on")
"""Keys of `[budget]` that decide which setting of a replicate is scored on test."""


class TrialSource(NamedTuple):
    """A study whose finished replicates may be reused.

    ``seals`` are the manifest hashes by trial, ``race`` the values of ``RACE_KEYS``, and
    ``first_rung`` the step at which settings were compared first.
    """

    folder: Path
    name: str
    seals: Mapping[str, str | None]
    race: Mapping[str, Any]
    first_rung: Mapping[str, Any] | None


class ParentStudy(NamedTuple):
    """The database values of a fork's parent, and whether its test set was evaluated."""

    values: dict[str, Any]
    test_read: bool

    @property
    def test_reads(self) -> int:
        """The number of test-set evaluations, as the parent's report counts them."""
        further = len(self.values.get("looks", ()))
        return 1 + further if self.test_read or further else 0


def check_can_fork(parent: Path, out: Path, again: bool) -> None:
    """Check that ``parent`` can be forked into the folder ``out``; write nothing.

    Raises:
        UsageError: ``no-study``, ``fork-imported``, ``fork-itself``, ``fork-taken``,
            ``fork-again``.
    """
    if again:
        raise UsageError(
            "fork-again",
            "--again allows one more test-set evaluation in the same study. --fork starts another "
            "study, whose test-set evaluation is counted anyway.",
            "one of the two options.",
        )
    if is_within(out, parent):
        raise UsageError(
            "fork-itself",
            f"The fork {out} would be inside the folder of its parent study, {parent}, which must "
            "not change.",
            f"a folder next to it: `--fork {quote_path(parent.with_name(parent.name + '-2'))}`.",
        )
    if "imported" in _read_parent(parent).values:
        raise UsageError(
            "fork-imported",
            f"The study in {parent} was imported: it has no trials that could be run.",
            "`bakeoff run STUDY.toml` starts a study.",
        )
    if not _is_free(parent, out):
        raise UsageError(
            "fork-taken",
            f"{out} is not empty, and does not hold an interrupted fork of {parent}.",
            "a new or an empty folder.",
        )


def mark_as_fork(parent: Path, out: Path, store: Writer) -> None:
    """Record in a new study's database, before anything else, that it is a fork of ``parent``."""
    with Reader(out / DATABASE) as reader:
        if reader.values(KEY):
            return
    path = str(parent.resolve())
    with contextlib.suppress(ValueError):  # another drive on Windows has no relative path
        path = os.path.relpath(path, out.resolve())  # both folders may be moved together
    store.set(KEY, {"folder": parent.resolve().name, "path": path, "at": now_utc()})
    with Reader(parent / DATABASE) as reader:
        head = reader.values(head_rate.KEY).get(head_rate.KEY)
    if head is not None:
        store.set(head_rate.KEY, head)


def record_parent(
    out: Path, values: Mapping[str, Any], now: Mapping[str, Any], test_read: bool
) -> dict[str, Any]:
    """Return the database values by which a fork describes its parent; empty if it is no fork.

    Under ``forked_from``: folder and time, the ``differences`` (old -> new), the parent's
    ``test_reads`` and ``looks``, the hash of its ``test`` rows, whether both have the
    ``same_test``, and the parent's own ``forked_from`` as ``before``. Under ``looks``: the
    earlier evaluations on the fork's test rows, and one more for the fork.

    ``values`` are the fork's database values and ``now`` what would be frozen. While the fork's own
    test set was not evaluated (not ``test_read``), the parent's evaluations are counted at every
    start, if the parent can still be read: evaluations since the last start were seen before the
    fork's, too.

    Raises:
        UsageError: ``no-study``: the parent disappeared before it was recorded.
    """
    known = values.get(KEY)
    if known is None or test_read:
        return {}
    recorded = "differences" in known
    try:
        parent = _read_parent(_parent_folder(out, known))
    except BakeoffError:
        if recorded:
            return {}  # moved, damaged or deleted since: what was recorded then still counts
        raise
    if recorded and parent.test_reads <= known["test_reads"]:
        return {}  # no further evaluation since the last start
    before = parent.values["frozen"]
    # The differences are those at the fork's first start, when its user decided on them.
    changes = known["differences"] if recorded else test_reads.describe_changes(before, now)
    full = {
        **known,
        "differences": changes,
        "test": before["data"].get("test"),
        "same_test": before["data"].get("test") == now["data"]["test"],
        "test_reads": parent.test_reads,
        "looks": list(parent.values.get("looks", ())),
        "before": parent.values.get(KEY),
    }
    inherited = _inherited_test_reads(full, now["data"]["test"])
    return {KEY: full, "looks": inherited} if inherited else {KEY: full}


def find_trial_source(out: Path, progress: Progress) -> TrialSource | None:
    """Return the study whose trials a fork may reuse, or None; report why a fork has none.

    Trials of another machine, or of other package versions, are not reused: their results might
    differ here. Neither are those that raced by other rules.
    """
    with Reader(out / DATABASE) as reader:
        values = reader.values(KEY, "frozen", FIRST_RUNG)
    known = values.get(KEY)
    if known is None:
        return None
    folder, refusal = _parent_folder(out, known), f"no trial is reused from {known['folder']}"
    if not (folder / DATABASE).is_file():
        progress.say(f"{refusal}: it no longer exists")
        return None
    try:
        parent = _read_parent(folder).values
        machine = parent["frozen"]["machine"]
        with Reader(folder / DATABASE) as reader:
            rows = reader.trial_rows()
    except BakeoffError as error:
        progress.say(f"{refusal}: {error.cause}")
        return None
    if lines := differences(machine, values["frozen"]["machine"]):
        progress.say(f"{refusal}: its trials ran on another machine ({'; '.join(lines)})")
        return None
    first_rung, mine = parent.get(FIRST_RUNG), values.get(FIRST_RUNG)
    races = [side["frozen"]["spec"]["budget"] for side in (parent, values)]
    race, own_race = ({key: budget.get(key) for key in RACE_KEYS} for budget in races)
    if race != own_race or (mine is not None and mine != first_rung):
        progress.say(f"{refusal}: its settings raced by other rules")
        return None
    seals = {name: row.manifest_hash for name, row in rows.items() if row.status is not None}
    return TrialSource(folder, known["folder"], seals, race, first_rung)


def reuse_replicates(parent: TrialSource, out: Path, store: Writer, trials: Iterable[Trial]) -> int:
    """Copy the replicates of ``trials`` that the parent has finished; return their number.

    A replicate is copied as a whole, with the settings that its race added, its results at rungs
    and its decisions. Folders are copied durably before the rows are written, so an interruption
    loses nothing. They must pass their own manifests, and have the manifest hash that the parent's
    database has recorded.
    """
    with Reader(out / DATABASE) as reader:
        finished, known = reader.finished_ids(), reader.values(TAKEN).get(TAKEN, [])
    missing: dict[tuple[str, int], set[str]] = {}
    for trial in trials:
        if trial.id not in finished:
            missing.setdefault((trial.method.name, trial.seed), set()).add(trial.id)
    if not missing:
        return 0
    with Reader(parent.folder / DATABASE) as reader, reader.snapshot():
        theirs = [(t, r) for t, r in reader.trials() if (t.method.name, t.seed) in missing]
        ids = [t.id for t, _ in theirs]
        rungs, decisions = reader.rung_results(ids), reader.decisions()
    copied: list[tuple[Trial, TrialResult]] = []
    count = 0
    for key, wanted in missing.items():
        group = [(t, r) for t, r in theirs if (t.method.name, t.seed) == key and r is not None]
        tested = [t for t, r in group if "test" in r.splits]
        failed = any(r.status in trial_dir.RETRYABLE for _, r in group)
        if failed or not tested or not wanted <= {t.id for t, _ in group}:
            continue
        if all(_copy_folder(parent, out, trial) for trial in tested):
            copied += group
            count += 1
    if copied:
        ids = [t.id for t, _ in copied]
        values: dict[str, Any] = {TAKEN: [*known, *ids]}
        if parent.first_rung is not None:
            values[FIRST_RUNG] = dict(parent.first_rung)
        store.add_trials([t for t, _ in copied])
        store.save_group([r for i, r in rungs if i in ids])
        store.save_decisions([d for d in decisions if d["trial_id"] in ids])
        store.save_group([r for _, r in copied], values)
    return count


def _copy_folder(parent: TrialSource, out: Path, trial: Trial) -> bool:
    """Copy a trial's folder from the parent; return whether the fork has an intact copy."""
    source, target = parent.folder / TRIALS / trial.id, out / TRIALS / trial.id
    seal = trial_dir.manifest_hash(source)
    if seal is None or not is_within(source, parent.folder):
        return False
    if parent.seals.get(trial.id) not in (None, seal):
        return False
    if not target.exists():
        return trial_dir.copy_trial(source, target) is not None
    # copied before an interruption, or trained by the fork itself
    return trial_dir.manifest_hash(target) == seal and trial_dir.read_finished(target) is not None


def fork_provenance(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's parent for the report's provenance; empty without one."""
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
        "`bakeoff run STUDY.toml` starts one; `--out DIR` names the folder of the study to fork.",
    )
    if not (folder / DATABASE).is_file():
        raise missing
    with Reader(folder / DATABASE) as reader, reader.snapshot():
        parent = ParentStudy(reader.values(), reader.has_test_scores())
    if "frozen" not in parent.values:
        raise missing
    return parent


def _is_free(parent: Path, out: Path) -> bool:
    """Return whether a fork of ``parent`` may start, or resume, in the folder ``out``."""
    if not out.exists():
        return True
    if not out.is_dir():
        return False
    if not (out / DATABASE).is_file():
        names = {path.name.removesuffix(files.PARTIAL_SUFFIX) for path in out.iterdir()}
        return names <= {*LEFTOVER_FILES}
    values: dict[str, Any] = {}
    with contextlib.suppress(UsageError), Reader(out / DATABASE) as reader:  # no-study: empty
        values = reader.values()
    if KEY in values:
        return _parent_folder(out, values[KEY]) == parent.resolve()
    return not {k for k in values if not is_wall_key(k)} - {"schema_version"}


def _parent_folder(out: Path, known: Mapping[str, Any]) -> Path:
    return Path(out, known["path"]).resolve()


def _inherited_test_reads(known: Mapping[str, Any], test: str) -> list[dict[str, Any]]:
    """Return the earlier evaluations on the test rows ``test``, and one for the fork; else none.

    All ancestors are searched: a fork in between that used other test rows does not undo the
    evaluations of its own parent. ``known`` is the fork's ``forked_from``.
    """
    changes: list[str] = []
    at, ancestor = known["at"], known
    while ancestor is not None and "differences" in ancestor:
        # from the oldest fork to the newest: all changes since that ancestor's last evaluation
        changes = [f"forked from {ancestor['folder']}", *ancestor["differences"], *changes]
        if ancestor["test"] == test and ancestor["test_reads"]:
            return [*ancestor["looks"], {"at": at, "changes": changes}]
        ancestor = ancestor["before"]
    return []
