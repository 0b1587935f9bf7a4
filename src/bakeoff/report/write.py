"""Write report.json and report.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bakeoff import report as report_page
from bakeoff.core import files
from bakeoff.study.record import load_report
from bakeoff.study.storage import study_dir as study_folder


def report(out: Path, examples: bool = True) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html``; return the content of ``report.json``.

    With ``examples``, test items with their predictions are included.
    """
    study_folder.check_no_symlinks(out)
    _, summary = load_report(out, examples)
    text = json.dumps(summary, indent=1, allow_nan=False)
    with files.translate_disk_full(out):
        files.atomic_write_text(out / "report.json", text + "\n")
        files.atomic_write_text(out / "report.html", report_page.render(summary))
    return summary
