"""A study for a notebook: its report as an object that shows itself.

Stands above ``api``, which makes the report. ``bakeoff.open(folder)`` gives one; in Jupyter it is
drawn as the page's verdict, forest plot and table, without a script and without a style for
anything around it; elsewhere it prints as text. It writes nothing: ``bakeoff.report`` does that.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from bakeoff.core.redact import sanitize
from bakeoff.report import inline, markdown
from bakeoff.study.record import load_report

COLUMNS = ("method", "score", "difference", "low", "high", "verdict", "status")


class StudyResult:
    """What a study found, as it stood when it was opened.

    ``folder`` is the study's, ``report`` the dict of docs/report-json.md.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def report(self) -> dict[str, Any]:
        """The whole report, as ``report.json`` would have it."""
        return load_report(self.folder)[1]

    @property
    def verdicts(self) -> dict[str, str]:
        """Each method's verdict: ``control``, ``better``, ``equivalent``, ``worse``, ..."""
        return {m["method"]: m["verdict"] for m in self.report["methods"]}

    @property
    def sentence(self) -> str | None:
        """The recommendation, None where there is none yet."""
        found: str | None = self.report["recommendation"]["sentence"]
        return found

    def table(self) -> list[dict[str, Any]]:
        """Return a row a method, numbers raw and in the metric's unit: ``pandas.DataFrame`` of it.

        ``score`` is the mean on test, ``difference`` that to the control with its 95 % interval
        ``low`` to ``high``; None where it was not measured.
        """
        rows = []
        for method in self.report["methods"]:
            difference = method["difference"] or {}
            values = (
                method["title"],
                (method["score"] or {}).get("estimate"),
                *(difference.get(k) for k in ("estimate", "low", "high")),
                method["verdict"],
                method["status"],
            )
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        return rows

    def __repr__(self) -> str:
        """Show the verdict and a line a method."""
        study = self.report["study"]
        lines = [f"Comparison({str(self.folder)!r})", self.sentence or "No recommendation yet."]
        for row in self.table():
            number = "-" if row["score"] is None else f"{row['score']:.4g}"
            lines.append(f"  {row['method']}: {row['verdict']}, {study['metric']} {number}")
        return sanitize("\n".join(lines))

    def _repr_html_(self) -> str:
        """Draw the verdict, the forest plot and the table for a notebook."""
        return inline(self.report)

    def _repr_markdown_(self) -> str:
        """Write the verdict and the table as Markdown; whatever strangers wrote is text."""
        return markdown(self.report)


def open_result(folder: Path | str) -> StudyResult:
    """Open a study's comparison, finished or not.

    Raises:
        UsageError: ``no-study``.
    """
    found = StudyResult(Path(folder))
    assert found.report  # whatever is wrong with the folder is said here, not when it is drawn
    return found
