"""What a study folder holds against what its database says: found, reported, mended.

Called by ``api`` (`bakeoff doctor STUDY`, and at the start of every run) and by ``phases`` before
trials are trained. The database decides which trials there are, the sealed folders prove what came
of them: a result whose row is missing is taken from its folder, once every file's hash is right.
Mending takes nothing away that was acknowledged.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core import files as core_files
from bakeoff.core import trial_dir
from bakeoff.core.clock import now_utc
from bakeoff.core.errors import BakeoffError, first_line
from bakeoff.core.files import sha256_of
from bakeoff.core.results import TrialResult
from bakeoff.core.trial import Trial
from bakeoff.core.trial_dir import TRIALS
from bakeoff.metrics.load import FOLDER as METRIC
from bakeoff.study.storage import lock, study_dir
from bakeoff.study.storage.database import Reader, TrialRow, Writer, rebuild

PARTIAL_FILE = re.compile(r"\.tmp\w{6}|.*\.tmp")
"""Files that somebody was writing: ours, and those of safetensors (``.tmp`` and six letters)."""
PARTIAL_FILE_FOLDERS = (TRIALS, "data", "tokens")
PARTIAL_FILE_NAMES = (
    study_dir.STUDY_FILE,
    study_dir.CHAT_TEMPLATE,
    "report.json",
    "report.html",
    "log.jsonl",
)
"""Where we write files beside their places: folders of ours, and these names at the top."""
REBUILT = (
    "The study's database was damaged and rebuilt at {at}: what was done to the study before, such "
    "as looks at its test set, is known only as far as it could be read."
)
OK, NOTE, BAD, REPAIRED = "ok", "note", "bad", "mended"


class Finding(NamedTuple):
    """One thing looked at: ``ok``, a ``note``, ``bad`` or ``mended``; ``code`` is for programs."""

    what: str
    state: str
    code: str
    detail: str


def diagnose(out: Path, mend: bool = False) -> list[Finding]:
    """Compare a study's database, trial folders and data with each other, hash by hash.

    With ``mend`` results without a row are taken from their folders, torn states and what an
    interruption left behind are removed, a damaged database is rebuilt; twice is once.

    Raises:
        UsageError: ``no-study``.
        LockedError: ``study-locked``: what a running study is writing cannot be mended.
    """
    study_dir.database_path(out)
    if mend:
        with lock.hold_lock(out):
            return _check_all(out, mend=True)
    holder = lock.current_holder(out)
    found = _check_all(out, mend=False, running=holder is not None)
    if holder is not None:
        text = f"it runs: {holder}; what it is writing was not looked at"
        found.insert(0, Finding("lock", NOTE, "running", text))
    return found


def clean_up_before_run(out: Path, store: Writer) -> list[Finding]:
    """Clear the way for a run, which holds the lock: sweep what was torn, forget lost states."""
    with Reader(out / study_dir.DATABASE) as reader, reader.snapshot():
        rows, standing = reader.trial_rows(), reader.last_rung()
    found = [*_find_partial_files(out, mend=True), *_check_log(out, mend=True)]
    return [*found, *_check_checkpoints(out, rows, standing, store)]


def adopt_finished_trials(out: Path, store: Writer, trials: Iterable[Trial]) -> list[Finding]:
    """Write the missing rows of planned trials whose folders are whole.

    A folder that is not whole loses its seal, so that the worker writes it anew.
    """
    found = []
    with Reader(out / study_dir.DATABASE) as reader:
        finished = reader.finished_ids()
    for trial in trials:
        place = out / TRIALS / trial.id
        if trial.id in finished or not _has_manifest(place):
            continue
        result = trial_dir.read_result(place)
        if result is None:
            trial_dir.remove_manifest(place)
        elif result.status not in trial_dir.RETRYABLE:
            store.save(result)
            found.append(_adoption(trial.id))
    return found


def _check_all(out: Path, mend: bool, running: bool = False) -> list[Finding]:
    path = out / study_dir.DATABASE
    found = _check_database(path, mend)
    if found[-1].state == BAD:
        return found
    with Reader(path) as reader, reader.snapshot():
        rows, standing, values = reader.trial_rows(), reader.last_rung(), reader.values()
        kept = {t.id: r for t, r in reader.trials() if r is not None}
    found += _check_frozen_files(out, values)
    writer = Writer(path) if mend else None
    try:
        found += _check_results(out, rows, kept, writer)
        if not running:
            found += _check_checkpoints(out, rows, standing, writer)
            found += [
                *_find_partial_files(out, mend),
                *_check_log(out, mend),
                *_find_unknown_folders(out, rows, mend),
            ]
    finally:
        if writer is not None:
            writer.close()
    return found


def _check_database(path: Path, mend: bool) -> list[Finding]:
    """Look at the database as a whole: can it be read, which version, is every page sound."""
    try:
        with Reader(path) as reader:
            version, problems = reader.version, reader.integrity_problems()
            reader.trials(), reader.costs(), reader.decisions()
        if not problems:
            if mend:
                Writer(path).close()  # brings an older one up to today's version
            return [Finding("database", OK, "database", f"sound, version {version}")]
        detail = "; ".join(problems[:3])
    except BakeoffError as error:
        if error.code != "database-damaged":
            raise
        detail = error.cause
    except (KeyError, TypeError) as error:  # a value that is JSON, but no longer what it was
        detail = f"a row cannot be understood ({first_line(error)})"
    if not mend:
        return [Finding("database", BAD, "database-damaged", detail)]
    aside = rebuild(path)
    now = now_utc()
    with Writer(path) as store:
        store.set("rebuilt", {"at": now, "damaged": aside.name})
    text = f"rebuilt; the damaged one is {aside.name} now ({detail})"
    return [Finding("database", REPAIRED, "database-damaged", text)]


def _check_frozen_files(out: Path, values: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the frozen data and the user's own metric with the sums that were frozen."""
    frozen = values.get("frozen", {})
    wanted = {f"data/{name}.jsonl": sha for name, sha in frozen.get("data", {}).items()}
    metric = frozen.get("metric", {})
    if metric.get("source"):
        wanted[f"{METRIC}/{metric['name'].rpartition(':')[0]}"] = metric["source"]
    if frozen.get("chat_template"):
        wanted[study_dir.CHAT_TEMPLATE] = frozen["chat_template"]
    for name, sha in wanted.items():
        there = sha256_of(out / name) if (out / name).is_file() else None
        if there == sha:
            yield Finding(name, OK, "frozen", "as it was frozen")
        else:
            word = "gone" if there is None else "not as it was frozen"
            text = f"{word}; `bakeoff run` with the study's first file and data writes it again"
            yield Finding(name, BAD, "frozen-differs", text)


def _check_results(
    out: Path, rows: Mapping[str, TrialRow], kept: Mapping[str, TrialResult], store: Writer | None
) -> Iterator[Finding]:
    """Compare each planned trial's row with its folder; take missing rows from whole folders."""
    whole = 0
    for trial_id, row in rows.items():
        place = out / TRIALS / trial_id
        if row.status is None:
            if (result := trial_dir.read_finished(place)) is not None:
                if store is None:
                    text = "finished, but the database has no result; --mend takes it from here"
                    yield Finding(_trial_path(trial_id), BAD, "row-missing", text)
                else:
                    store.save(result)
                    yield _adoption(trial_id)
            continue
        if row.status in trial_dir.RETRYABLE or (row.sealed is None and not _has_manifest(place)):
            continue  # nothing rests on it; or it never had one: stopped by the race, or imported
        wrong = _folder_mismatch(place, row.sealed, kept[trial_id])
        if wrong is None:
            whole += 1
        elif wrong.code == "row-differs" and store is not None:
            store.save(_read_result(place))
            yield wrong._replace(state=REPAIRED, detail="its row was taken from its folder again")
        else:
            yield wrong
    yield Finding(TRIALS, OK, "whole", f"{whole} finished trials whole, every file's hash right")


def _folder_mismatch(place: Path, seal: str | None, row: TrialResult) -> Finding | None:
    """Say how a finished trial's folder is not what its row says; None where it is."""
    name = _trial_path(place.name)
    damage = trial_dir.find_damage(place)
    if damage is not None:
        text = f"{damage}; its scores are safe in the database, these files are not to be used"
        return Finding(name, BAD, "folder-damaged", text)
    if seal is not None and seal != trial_dir.manifest_hash(place):
        text = (
            "its files are whole, but of another run than its row: not to be used with its scores"
        )
        return Finding(name, BAD, "folder-differs", text)
    result = trial_dir.read_result(place)
    if result is None:
        return Finding(name, BAD, "folder-damaged", f"{trial_dir.RESULT} is not this trial's")
    if result.status in trial_dir.RETRYABLE:
        return None  # of a later try, with its group, for a neighbour's sake: its row stands
    if (result.status, result.splits) != (row.status, row.splits):
        text = "its row is not what its folder says; --mend takes it from there"
        return Finding(name, BAD, "row-differs", text)
    return None


def _read_result(place: Path) -> TrialResult:
    result = trial_dir.read_result(place)
    assert result is not None
    return result


def _check_checkpoints(
    out: Path, rows: Mapping[str, TrialRow], standing: Mapping[str, int], store: Writer | None
) -> Iterator[Finding]:
    """Find states at rungs that cannot be gone on from; have their trials start again."""
    for trial_id, row in rows.items():
        states = out / TRIALS / trial_id / trial_dir.CHECKPOINTS
        files = sorted(states.glob("*.safetensors"))
        torn = {f.name: why for f in files if (why := trial_dir.checkpoint_damage(f)) is not None}
        step = standing.get(trial_id)
        if step is not None and states / f"{step}.safetensors" not in files:
            torn[f"{step}.safetensors"] = "it is gone"
        if not torn:
            continue
        detail = "; ".join(f"{name}: {why}" for name, why in torn.items())
        if store is not None:
            if row.status is None:
                store.delete_rungs(trial_id)
            for name in torn:
                (states / name).unlink(missing_ok=True)
            detail += "; removed, the trial starts again"
        state = BAD if store is None else REPAIRED
        yield Finding(
            f"{_trial_path(trial_id)}/{trial_dir.CHECKPOINTS}", state, "state-torn", detail
        )


def _find_partial_files(out: Path, mend: bool) -> Iterator[Finding]:
    """Find the files that somebody was writing when they were interrupted."""
    left = [out / (name + core_files.PARTIAL_SUFFIX) for name in PARTIAL_FILE_NAMES]
    left += out.glob(f"{study_dir.DATABASE}.*{core_files.PARTIAL_SUFFIX}")
    for below in PARTIAL_FILE_FOLDERS:
        for place, _, files in os.walk(out / below):
            left += [Path(place) / name for name in sorted(files) if PARTIAL_FILE.fullmatch(name)]
    left += (out / TRIALS).glob(
        f"*{core_files.PARTIAL_SUFFIX}/"
    )  # a fork's copy of its parent's trial
    for path in left:
        if path.exists() or path.is_symlink():
            yield _remove_leftover(out, path, "half-written", mend)


def _find_unknown_folders(out: Path, rows: Mapping[str, TrialRow], mend: bool) -> Iterator[Finding]:
    """Find folders of trials that the database does not know; finished ones are not swept."""
    for place in sorted((out / TRIALS).glob("*")):
        if place.name in rows or place.name.startswith(".") or PARTIAL_FILE.fullmatch(place.name):
            continue
        if place.is_dir() and not place.is_symlink() and trial_dir.read_result(place) is not None:
            text = (
                "finished, but not planned; `bakeoff run` takes it if the study still asks for it"
            )
            yield Finding(_trial_path(place.name), NOTE, "trial-unknown", text)
        else:
            yield _remove_leftover(out, place, "of a trial that the database does not know", mend)


def _remove_leftover(out: Path, path: Path, why: str, mend: bool) -> Finding:
    name = path.relative_to(out).as_posix()
    if not mend:
        return Finding(name, BAD, "orphan", f"{why}; --mend removes it")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return Finding(name, REPAIRED, "orphan", f"{why}; removed")


def _check_log(out: Path, mend: bool) -> Iterator[Finding]:
    """Find a last line of the log that was cut off; it is removed, so that none is written on."""
    path = out / "log.jsonl"
    if not path.is_file() or path.stat().st_size == 0:
        return
    raw = path.read_bytes()
    if raw.endswith(b"\n"):
        return
    if mend:
        core_files.atomic_write_bytes(path, raw[: raw.rfind(b"\n") + 1])
    state = REPAIRED if mend else BAD
    yield Finding("log.jsonl", state, "log-torn", "its last line is cut off")


def _adoption(trial_id: str) -> Finding:
    text = "its row was missing; taken from its folder, whose hashes are all right"
    return Finding(_trial_path(trial_id), REPAIRED, "row-missing", text)


def _has_manifest(place: Path) -> bool:
    return (place / trial_dir.MANIFEST).exists()


def _trial_path(trial_id: str) -> str:
    return f"{TRIALS}/{trial_id}"
