"""The values that a study freezes, and its provenance: versions, hashes, git state."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bakeoff.core.redact import redact
from bakeoff.metrics import load
from bakeoff.study.setup import compatibility
from bakeoff.study.setup.study import Study
from bakeoff.study.storage import study_dir as study_folder
from bakeoff.tasks import task_class
from bakeoff.tasks._base import HEAD


def frozen_values(study: Study) -> dict[str, Any]:
    """Return the values that must not change between the first run of a study and a later one."""
    template = (study.conditions.task_options.get("chat") or {}).get("template")
    return {
        "spec": compatibility.comparable_spec(study.spec),
        "data": study.conditions.data,
        "base": study.base.fingerprint,
        "machine": study.machine,
        "methods": {e.name: dataclasses.asdict(e) for e in study.entries},
        "metric": {
            "name": study.conditions.metric,
            "options": study.conditions.metric_options,
            "source": study.conditions.metric_source,
        },
        "chat_template": None if template is None else load.code_digest(template.encode()),
        "groups": None if study.groups is None else study.groups.frozen_value(),
        # only where it is not the usual one: older studies have no such value
        **{key: value for key, value in study.conditions.task_options.items() if key == HEAD},
    }


def describe_study(study: Study, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the report needs of a study in addition to its trials.

    ``before`` is what an earlier run of the study returned, or empty: the notes on values that it
    chose are kept, since a later run chooses none.
    """
    task = task_class(study.conditions.task)
    chosen = {**before.get("provenance", {}).get("chosen", {}), **study.chosen}
    references = []
    if task.secondary:
        references = task(study.conditions.task_options).references(study.splits.rows["test"])
    return {
        "secondary": list(task.secondary),
        "references": references,
        "groups": None if study.groups is None else study.groups.to_json(),
        "base_note": study.base.note,
        "metric": dataclasses.asdict(study.metric.info),
        "titles": {e.name: e.title for e in study.entries},
        "methods": [e.name for e in study.entries],
        "n_items": study.splits.counts,
        "warnings": list(study.warnings),
        "sizes": None if study.sizes is None else list(study.sizes),
        "provenance": {
            "versions": study.machine["versions"],
            "device": study.machine["device"],
            "hardware": study.machine["hardware"],
            "precision": study.machine["precision"],
            "threads": study.machine["threads"],
            "base": {
                "model": study.spec.base.model,
                "published_as": study.base.published_as,
                "fingerprint": study.base.fingerprint,
                "quantize": study.conditions.quantize,
                "quantizer": study.conditions.quantizer,
            },
            "data": study.conditions.data,
            "data_from": study.splits.origins,
            "git": git_state(study.source),
            "command": redact(" ".join(["bakeoff", *sys.argv[1:]])),
            "study_file": study_folder.STUDY_FILE,
            **({"chosen": chosen} if chosen else {}),
            **({"columns_not_used": list(study.unused_columns)} if study.unused_columns else {}),
        },
    }


def git_state(source: Path) -> dict[str, Any] | None:
    """Return ``commit`` and ``dirty`` of the repository around the study file; None without one.

    ``dirty`` is None if the repository's configuration names programs that `git status` would run:
    an untrusted repository may have come with the study.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-c", "core.fsmonitor=false", "-C", str(source), *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, errors="replace"
        )
        return result.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        names = git("config", "--local", "--includes", "--name-only", "--list").lower().split()
        runs_programs = any(n.startswith("filter.") or n == "core.fsmonitor" for n in names)
        return {
            "commit": commit,
            "dirty": None if runs_programs else bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
