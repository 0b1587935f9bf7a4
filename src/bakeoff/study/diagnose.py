"""Check a study folder: its files against its database, and its looks against its scores."""

from __future__ import annotations

from pathlib import Path

from bakeoff.analysis.study_looks import looks_until, stored_looks
from bakeoff.study.record import read_record
from bakeoff.study.storage import repair as storage_repair
from bakeoff.study.storage.repair import BAD, NOTE, OK, Finding


def diagnose(out: Path, repair: bool = False, *, mend: bool = False) -> list[Finding]:
    """Check a study's files and database (``storage.repair.diagnose``), then recompute its looks.

    Raises:
        UsageError: ``no-study``.
        LockedError: ``study-locked``: a running study cannot be repaired.
    """
    findings = storage_repair.diagnose(out, repair, mend=mend)
    if any(f.state == BAD for f in findings):
        return findings  # what the looks rest on is not intact
    return [*findings, *_check_looks(out)]


def _check_looks(out: Path) -> list[Finding]:
    """Compare every stored look with the one that the stored scores give, to the bit."""
    try:
        record = read_record(out, examples=False)
    except Exception:  # a study that has not started has no record
        return []
    if not record.looks:
        return []
    stored = stored_looks(record)
    computed = looks_until(record, len(stored))
    if computed == stored:
        return [Finding("looks", OK, "looks", f"{len(stored)} recomputed from the scores")]
    first = next(
        (n for n, (a, b) in enumerate(zip(stored, computed, strict=False), 1) if a != b),
        len(computed) + 1,
    )
    text = (
        f"look {first} is not what the stored scores give now: the verdicts that it gave stand. "
        "Scores of retried replicates, or other versions of numpy and scipy, change it"
    )
    return [Finding("looks", NOTE, "looks-differ", text)]
