"""Consistency check and repair of a study folder against its database.

The database decides which trials exist; the verified trial folders prove their results. A result
without a row is restored from its folder if every file's hash is right. A repair never removes
acknowledged results.
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
"""Names of files being written: ours, and those of safetensors (``.tmp`` + 6 letters)."""
PARTIAL_FILE_FOLDERS = (TRIALS, "data", "tokens")
PARTIAL_FILE_NAMES = (
    study_dir.STUDY_FILE,
    study_dir.CHAT_TEMPLATE,
    "report.json",
    "report.html",
    "log.jsonl",
    "now.json",
)
"""Where partial files may be: anywhere in these folders, and next to these files."""
REBUILT = (
    "The study's database was damaged and rebuilt at {at}. Its earlier history, such as test-set "
    "evaluations, is only known as far as it could be read. [db-rebuilt]"
)
OK, NOTE, BAD, REPAIRED = "ok", "note", "bad", "repaired"


class Finding(NamedTuple):
    """One result of the check: ``state`` is ok, note, bad or repaired, ``code`` is for programs."""

    what: str
    state: str
    code: str
    detail: str


def diagnose(out: Path, repair: bool = False, *, mend: bool = False) -> list[Finding]:
    """Check a study's database, trial folders and data against each other, hash by hash.

    With ``repair`` (``mend`` is its old name) missing rows are restored from trial folders, damaged
    checkpoints and leftovers of an interruption deleted, and a damaged database is rebuilt. A
    second repair changes nothing.

    Raises:
        UsageError: ``no-study``.
        LockedError: ``study-locked``: a running study cannot be repaired.
    """
    study_dir.database_path(out)
    if repair or mend:
        with lock.hold_lock(out):
            return _check_all(out, repair=True)
    holder = lock.current_holder(out)
    findings = _check_all(out, repair=False, running=holder is not None)
    if holder is not None:
        text = f"the study is running: {holder}; files that it is writing were not checked"
        findings.insert(0, Finding("lock", NOTE, "running", text))
    return findings


def clean_up_before_run(out: Path, store: Writer) -> list[Finding]:
    """Delete partial files and damaged checkpoints before a run, which must hold the lock."""
    with Reader(out / study_dir.DATABASE) as reader, reader.snapshot():
        rows, last_rungs = reader.trial_rows(), reader.last_rung()
    findings = [*_find_partial_files(out, repair=True), *_check_log(out, repair=True)]
    return [*findings, *_check_checkpoints(out, rows, last_rungs, store)]


def adopt_finished_trials(out: Path, store: Writer, trials: Iterable[Trial]) -> list[Finding]:
    """Write the missing rows of planned trials whose folders are intact.

    A damaged folder loses its manifest, so that the worker writes it again.
    """
    findings = []
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
            findings.append(_adoption(trial.id))
    return findings


def _check_all(out: Path, repair: bool, running: bool = False) -> list[Finding]:
    path = out / study_dir.DATABASE
    findings = _check_database(path, repair)
    if findings[-1].state == BAD:
        return findings
    with Reader(path) as reader, reader.snapshot():
        rows, last_rungs, values = reader.trial_rows(), reader.last_rung(), reader.values()
        results = {t.id: r for t, r in reader.trials() if r is not None}
    findings += _check_frozen_files(out, values)
    writer = Writer(path) if repair else None
    try:
        findings += _check_results(out, rows, results, writer)
        if not running:
            findings += _check_checkpoints(out, rows, last_rungs, writer)
            findings += [
                *_find_partial_files(out, repair),
                *_check_log(out, repair),
                *_find_unknown_folders(out, rows, repair),
            ]
    finally:
        if writer is not None:
            writer.close()
    return findings


def _check_database(path: Path, repair: bool) -> list[Finding]:
    """Check that the database is readable and intact; rebuild it if asked."""
    try:
        with Reader(path) as reader:
            version, problems = reader.version, reader.integrity_problems()
            reader.trials(), reader.costs(), reader.decisions()
        if not problems:
            if repair:
                Writer(path).close()  # migrates an older version
            return [Finding("database", OK, "database", f"intact, version {version}")]
        detail = "; ".join(problems[:3])
    except BakeoffError as error:
        if error.code != "database-damaged":
            raise
        detail = error.cause
    except (KeyError, TypeError) as error:  # valid JSON of the wrong shape
        detail = f"a row is invalid ({first_line(error)})"
    if not repair:
        return [Finding("database", BAD, "database-damaged", detail)]
    aside = rebuild(path)
    now = now_utc()
    with Writer(path) as store:
        store.set("rebuilt", {"at": now, "damaged": aside.name})
    text = f"rebuilt; the damaged one was moved to {aside.name} ({detail})"
    return [Finding("database", REPAIRED, "database-damaged", text)]


def _check_frozen_files(out: Path, values: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the frozen data, metric and chat template with their recorded hashes."""
    frozen = values.get("frozen", {})
    expected = {f"data/{name}.jsonl": sha for name, sha in frozen.get("data", {}).items()}
    metric = frozen.get("metric", {})
    if metric.get("source"):
        expected[f"{METRIC}/{metric['name'].rpartition(':')[0]}"] = metric["source"]
    if frozen.get("chat_template"):
        expected[study_dir.CHAT_TEMPLATE] = frozen["chat_template"]
    for name, sha in expected.items():
        sha_now = sha256_of(out / name) if (out / name).is_file() else None
        if sha_now == sha:
            yield Finding(name, OK, "frozen", "unchanged since it was frozen")
        else:
            problem = "missing" if sha_now is None else "changed since it was frozen"
            text = f"{problem}; `bakeoff run` with the original study file and data restores it"
            yield Finding(name, BAD, "frozen-differs", text)


def _check_results(
    out: Path,
    rows: Mapping[str, TrialRow],
    results: Mapping[str, TrialResult],
    store: Writer | None,
) -> Iterator[Finding]:
    """Compare each planned trial's row with its folder; restore missing rows."""
    intact = 0
    for trial_id, row in rows.items():
        place = out / TRIALS / trial_id
        if row.status is None:
            if (result := trial_dir.read_finished(place)) is not None:
                if store is None:
                    text = "finished, but without a result in the database; --repair restores it"
                    yield Finding(_trial_path(trial_id), BAD, "row-missing", text)
                else:
                    store.save(result)
                    yield _adoption(trial_id)
            continue
        if row.status in trial_dir.RETRYABLE or (
            row.manifest_hash is None and not _has_manifest(place)
        ):
            # will be retried, or never had a folder: stopped by the race, or imported
            continue
        mismatch = _folder_mismatch(place, row.manifest_hash, results[trial_id])
        if mismatch is None:
            intact += 1
        elif mismatch.code == "row-differs" and store is not None:
            store.save(_read_result(place))
            yield mismatch._replace(state=REPAIRED, detail="its row was restored from its folder")
        else:
            yield mismatch
    yield Finding(
        TRIALS, OK, "whole", f"{intact} finished trials are intact: every file has the right hash"
    )


def _folder_mismatch(place: Path, stored_hash: str | None, row: TrialResult) -> Finding | None:
    """Return how a finished trial's folder contradicts its row; None if it does not."""
    name = _trial_path(place.name)
    damage = trial_dir.find_damage(place)
    if damage is not None:
        text = f"{damage}; its scores are safe in the database, but do not use these files"
        return Finding(name, BAD, "folder-damaged", text)
    if stored_hash is not None and stored_hash != trial_dir.manifest_hash(place):
        text = "its files are intact but belong to another run: do not use them with its scores"
        return Finding(name, BAD, "folder-differs", text)
    result = trial_dir.read_result(place)
    if result is None:
        return Finding(name, BAD, "folder-damaged", f"{trial_dir.RESULT} belongs to another trial")
    if result.status in trial_dir.RETRYABLE:
        # from a later run for the sake of another trial of its group: its row counts
        return None
    if (result.status, result.splits) != (row.status, row.splits):
        text = "its row differs from its folder; --repair restores the row from there"
        return Finding(name, BAD, "row-differs", text)
    return None


def _read_result(place: Path) -> TrialResult:
    result = trial_dir.read_result(place)
    assert result is not None
    return result


def _check_checkpoints(
    out: Path, rows: Mapping[str, TrialRow], last_rungs: Mapping[str, int], store: Writer | None
) -> Iterator[Finding]:
    """Find checkpoints that cannot be resumed from; reset their trials to step 0."""
    for trial_id, row in rows.items():
        folder = out / TRIALS / trial_id / trial_dir.CHECKPOINTS
        files = sorted(folder.glob("*.safetensors"))
        damaged = {
            f.name: why for f in files if (why := trial_dir.checkpoint_damage(f)) is not None
        }
        step = last_rungs.get(trial_id)
        if step is not None and folder / f"{step}.safetensors" not in files:
            damaged[f"{step}.safetensors"] = "it is missing"
        if not damaged:
            continue
        detail = "; ".join(f"{name}: {why}" for name, why in damaged.items())
        if store is not None:
            if row.status is None:
                store.delete_rungs(trial_id)
            for name in damaged:
                (folder / name).unlink(missing_ok=True)
            detail += "; deleted, the trial starts over"
        state = BAD if store is None else REPAIRED
        yield Finding(
            f"{_trial_path(trial_id)}/{trial_dir.CHECKPOINTS}", state, "state-torn", detail
        )


def _find_partial_files(out: Path, repair: bool) -> Iterator[Finding]:
    """Find files that were being written when a process was interrupted."""
    leftovers = [out / (name + core_files.PARTIAL_SUFFIX) for name in PARTIAL_FILE_NAMES]
    leftovers += out.glob(f"{study_dir.DATABASE}.*{core_files.PARTIAL_SUFFIX}")
    for below in PARTIAL_FILE_FOLDERS:
        for place, _, files in os.walk(out / below):
            leftovers += [
                Path(place) / name for name in sorted(files) if PARTIAL_FILE.fullmatch(name)
            ]
    leftovers += (out / TRIALS).glob(
        f"*{core_files.PARTIAL_SUFFIX}/"
    )  # a fork's copy of its parent's trial
    for path in leftovers:
        if path.exists() or path.is_symlink():
            yield _remove_leftover(out, path, "partly written", repair)


def _find_unknown_folders(
    out: Path, rows: Mapping[str, TrialRow], repair: bool
) -> Iterator[Finding]:
    """Find folders of trials that are not in the database; finished ones are results."""
    for place in sorted((out / TRIALS).glob("*")):
        if place.name in rows or place.name.startswith(".") or PARTIAL_FILE.fullmatch(place.name):
            continue
        if place.is_dir() and not place.is_symlink() and trial_dir.read_result(place) is not None:
            text = "finished, but not planned; `bakeoff run` uses it if the study plans it again"
            yield Finding(_trial_path(place.name), NOTE, "trial-unknown", text)
        else:
            yield _remove_leftover(out, place, "of a trial that is not in the database", repair)


def _remove_leftover(out: Path, path: Path, why: str, repair: bool) -> Finding:
    name = path.relative_to(out).as_posix()
    if not repair:
        return Finding(name, BAD, "orphan", f"{why}; --repair deletes it")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return Finding(name, REPAIRED, "orphan", f"{why}; deleted")


def _check_log(out: Path, repair: bool) -> Iterator[Finding]:
    """Find an incomplete last line of the log; delete it, so that no line is appended to it."""
    path = out / "log.jsonl"
    if not path.is_file() or path.stat().st_size == 0:
        return
    raw = path.read_bytes()
    if raw.endswith(b"\n"):
        return
    if repair:
        core_files.atomic_write_bytes(path, raw[: raw.rfind(b"\n") + 1])
    state = REPAIRED if repair else BAD
    yield Finding("log.jsonl", state, "log-torn", "its last line is incomplete")


def _adoption(trial_id: str) -> Finding:
    text = "its row was missing; restored from its folder, whose hashes are all right"
    return Finding(_trial_path(trial_id), REPAIRED, "row-missing", text)


def _has_manifest(place: Path) -> bool:
    return (place / trial_dir.MANIFEST).exists()


def _trial_path(trial_id: str) -> str:
    return f"{TRIALS}/{trial_id}"
