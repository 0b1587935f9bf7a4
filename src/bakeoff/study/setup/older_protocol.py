"""Studies of the protocol before replicates: one search, then final trials at fresh seeds.

They are read, reported and exported under their own rules, and never trained further: their trials
and those of today would not be comparable.
"""

from __future__ import annotations

from pathlib import Path

from bakeoff.core.errors import PreflightError
from bakeoff.core.names import quote_path
from bakeoff.study.storage.database import Reader
from bakeoff.study.storage.study_dir import DATABASE

KEY, NUMBER = "protocol", 2
"""Database value: the number of the study's protocol; absent for the first one."""
ONLY_REPORT = (
    "this study was run under an older protocol (one search, then final trials): nothing is "
    "trained, only its report is written again"
)


def is_finished(out: Path) -> bool:
    """Return whether the folder holds a finished study of the older protocol.

    Raises:
        PreflightError: ``older-protocol`` for an unfinished one.
    """
    if not (out / DATABASE).is_file() or (out / DATABASE).stat().st_size == 0:
        return False
    with Reader(out / DATABASE) as reader:
        values, rows = reader.values(), reader.trial_rows()
    if "frozen" not in values or values.get(KEY) == NUMBER or not rows:
        return False
    with Reader(out / DATABASE) as reader:
        tested = reader.has_test_scores()
    if tested and all(row.status is not None for row in rows.values()):
        return True
    raise PreflightError(
        "older-protocol",
        f"The study in {out} was started by an earlier version, which chose a setting once and "
        "trained it again at other seeds. Today each replicate chooses its own, so the two cannot "
        "be mixed, and the study is not finished.",
        f"`bakeoff run STUDY.toml --out {quote_path(out.with_name(out.name + '-2'))}` starts it "
        "anew; `bakeoff report` shows what it has.",
    )
