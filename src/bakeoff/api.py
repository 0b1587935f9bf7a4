"""The Python API, which the command line uses too: one function for each task.

A study runs as config -> data -> preflight -> cost probes -> search -> final -> report.
``docs/architecture.md`` shows which module does what.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bakeoff.report.write import report
from bakeoff.study.compare import compare
from bakeoff.study.config import StudySpec, parse_spec, read_spec
from bakeoff.study.diagnose import diagnose
from bakeoff.study.dry_run import overview
from bakeoff.study.monitoring.progress import Progress
from bakeoff.study.record import load_report as summarised
from bakeoff.study.record import read_record, read_trials, read_values
from bakeoff.study.run import ResumeOptions, machine, run_study
from bakeoff.study.shuffled_answers import check_shuffled_answers

__all__ = [
    "check_shuffled_answers",
    "compare",
    "diagnose",
    "machine",
    "overview",
    "parse_spec",
    "read_record",
    "read_spec",
    "read_trials",
    "read_values",
    "report",
    "run",
    "summarised",
]


def run(
    spec: StudySpec,
    source: Path,
    out: Path,
    progress: Progress | None = None,
    again: bool = False,
    retry: bool = False,
    fork: Path | None = None,
) -> dict[str, Any]:
    """Run a study, or resume it, and return its report.

    Args:
        spec: the study's configuration.
        source: the folder that relative paths in ``spec`` start from.
        out: the study folder.
        progress: receives progress events; None for none.
        again: allow changed seeds, contenders or margin after the test set was evaluated. The
            report counts this as one more test-set evaluation.
        retry: run failed trials again.
        fork: start a new study in this folder, which reuses unchanged trials of the one in ``out``.

    Raises:
        BakeoffError: bad input or environment, before any training; ``disk-full`` at any time:
            the same call resumes the study once there is space.
        Interrupted, Terminated: Ctrl-C or SIGTERM; the same call resumes the study.
    """
    return report(run_study(spec, source, out, progress, ResumeOptions(again, retry, fork)))
