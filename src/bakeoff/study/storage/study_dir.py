"""The study folder: frozen data, the resolved study file, and what must not change on resume.

Called by ``api`` before any work: it cuts and freezes the splits, has the task check them, and
holds a study that is run again against the one that was frozen.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import tomli_w

from bakeoff.core import files, trial_dir
from bakeoff.core.errors import EnvironmentProblem, PreflightError, UsageError
from bakeoff.core.names import is_within
from bakeoff.core.trial_dir import TRIALS
from bakeoff.data import rows as data_rows
from bakeoff.data.splits import FROZEN_FILES, ORIGINS_FILE, Splits
from bakeoff.metrics.load import FOLDER as METRIC
from bakeoff.study.config import StudySpec, dump_spec
from bakeoff.study.storage import filesystem

DATABASE = "study.db"
STUDY_FILE = "study.toml"
CHAT_TEMPLATE = "chat_template.jinja"
GENERAL = "general"
"""The file beside the splits that holds general text."""


def create(folder: Path) -> None:
    """Create the folder and prove that it can be written, and that a database lives there.

    Nothing in it may lead elsewhere.

    Raises:
        EnvironmentProblem: ``folder-not-writable``, ``network-folder``.
        PreflightError: ``folder-link``.
    """
    filesystem.check_local_filesystem(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_no_symlinks(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        raise EnvironmentProblem(
            "folder-not-writable",
            f"The study folder {folder} cannot be written: "
            f"{getattr(error, 'strerror', None) or error}.",
            "another folder: `--out DIR`.",
        ) from error


def database_path(folder: Path) -> Path:
    """Return where a study's database lies.

    Raises:
        UsageError: ``no-study``.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise UsageError(
            "no-study", f"There is no study in {folder}.", "`bakeoff run STUDY.toml` makes one."
        )
    return path


def check_no_symlinks(folder: Path) -> None:
    """Refuse symbolic links inside a study folder: what is written there would land elsewhere.

    The folder itself may be one: whoever runs the study names it.

    Raises:
        PreflightError: ``folder-link``.
    """
    for here, folder_names, file_names in os.walk(folder):
        for name in (*folder_names, *file_names):
            path = Path(here, name)
            if path.is_symlink():
                raise PreflightError(
                    "folder-link",
                    f"{path} is a symbolic link: bakeoff writes and removes files in a study "
                    "folder, and follows no link out of it.",
                    f"`rm {path}`, or another folder: `--out DIR` (which may be a link itself).",
                )


def delete_checkpoints(folder: Path, trial_id: str, but: int | None) -> None:
    """Remove the states of a trial that it goes on from at rungs, except that at step ``but``."""
    states = folder / TRIALS / trial_id / trial_dir.CHECKPOINTS
    if not is_within(states, folder):  # a link that came after the study was opened
        return
    for file in states.glob("*"):
        if but is None or file.stem != str(but):
            file.unlink()
    for emptied in (states, states.parent):
        if emptied.is_dir() and not any(emptied.iterdir()):
            emptied.rmdir()


def freeze_data(folder: Path, splits: Splits) -> None:
    """Write the splits under ``data/``, with where they came from."""
    for name, rows in _frozen_rows(splits).items():
        data_rows.write_split(folder / "data" / f"{name}.jsonl", rows)
    files.atomic_write_text(folder / ORIGINS_FILE, json.dumps(splits.origins, indent=1) + "\n")


def freeze_metric(folder: Path, name: str, code: bytes | None) -> None:
    """Copy the user's own metric into the study folder: workers and later runs use that copy."""
    if code is not None:
        path = folder / METRIC / name.rpartition(":")[0]
        path.parent.mkdir(exist_ok=True)
        files.atomic_write_bytes(path, code)


def digests(splits: Splits) -> dict[str, str]:
    """Return the sha256 sums that ``freeze_data`` would give, writing nothing."""
    return {name: data_rows.canonical_digest(rows) for name, rows in _frozen_rows(splits).items()}


def _frozen_rows(splits: Splits) -> dict[str, list[data_rows.Row]]:
    return {**splits.rows, **({GENERAL: list(splits.general)} if splits.general else {})}


def write_study_file(
    folder: Path, spec: StudySpec, own_metric: str | None, chat_template: str | None = None
) -> None:
    """Write the resolved study file: every default spelt out, paths inside the folder.

    ``own_metric`` names the user's own metric in its copy there, None where bakeoff's is used;
    ``chat_template`` is the text of the study's own.
    """
    value = dump_spec(spec)
    if chat_template is not None:
        files.atomic_write_text(folder / CHAT_TEMPLATE, chat_template)
        value["task"]["chat_template"] = CHAT_TEMPLATE
    if own_metric is not None:
        value["task"]["metric"] = f"{METRIC}/{own_metric}"
    value["data"] |= FROZEN_FILES
    for name in ("limit", "config", "revision"):
        value["data"].pop(name, None)
    if (folder / "data" / f"{GENERAL}.jsonl").is_file():
        value["forgetting"]["text"] = f"data/{GENERAL}.jsonl"
    value["data"].pop("rename", None)  # the frozen rows bear the new names
    header = "# Written by bakeoff: the resolved study. `bakeoff run` on it resumes the study.\n"
    files.atomic_write_text(folder / STUDY_FILE, header + tomli_w.dumps(value))
