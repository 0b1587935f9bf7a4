"""The result of a study as an object for notebooks.

``bakeoff.open(folder)`` returns it. Jupyter shows the verdict, the forest plot and the table as
HTML without scripts; elsewhere it prints as text. Nothing is written to the study folder.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from bakeoff.core.redact import sanitize
from bakeoff.report import markdown, render_inline
from bakeoff.study.record import load_report

COLUMNS = ("method", "score", "difference", "low", "high", "verdict", "status")


class StudyResult:
    """The result of a study, finished or not, at the time it was opened.

    ``folder`` is the study folder, ``report`` the dict of docs/report-json.md.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def report(self) -> dict[str, Any]:
        """The whole report, with the content of ``report.json``."""
        return load_report(self.folder)[1]

    @property
    def verdicts(self) -> dict[str, str]:
        """Each method's verdict: ``control``, ``better``, ``equivalent``, ``worse``, ..."""
        return {m["method"]: m["verdict"] for m in self.report["methods"]}

    @property
    def sentence(self) -> str | None:
        """The recommendation, None where there is none yet."""
        sentence: str | None = self.report["recommendation"]["sentence"]
        return sentence

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each method, ready for ``pandas.DataFrame``.

        ``score`` is the mean on the test set, ``difference`` the difference to the control with its
        95 % interval ``low`` to ``high``: raw numbers in the metric's unit, None if not measured.
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
        """Return the verdict and a line for each method."""
        study = self.report["study"]
        lines = [f"StudyResult({str(self.folder)!r})", self.sentence or "No recommendation yet."]
        for row in self.table():
            number = "-" if row["score"] is None else f"{row['score']:.4g}"
            lines.append(f"  {row['method']}: {row['verdict']}, {study['metric']} {number}")
        return sanitize("\n".join(lines))

    def _repr_html_(self) -> str:
        """Return the verdict, the forest plot and the table as HTML."""
        return render_inline(self.report)

    def _repr_markdown_(self) -> str:
        """Return the verdict and the table as Markdown; untrusted text is escaped."""
        return markdown(self.report)


def open_result(folder: Path | str) -> StudyResult:
    """Open the result of a study, finished or not.

    Raises:
        UsageError: ``no-study``.
    """
    result = StudyResult(Path(folder))
    assert result.report  # read now, so that errors of the folder are raised here
    return result


Comparison = StudyResult
"""The former name of ``StudyResult``."""
