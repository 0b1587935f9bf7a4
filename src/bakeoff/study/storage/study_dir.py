"""The study directory: its creation, frozen data, resolved study file and checkpoints."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import tomli_w

from bakeoff.core import files, trial_dir
from bakeoff.core.errors import EnvironmentProblem, PreflightError, UsageError
from bakeoff.core.names import is_within, quote_path, undisplayable_reason
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
"""Name of the split file with general text, for forgetting."""


def create(folder: Path) -> None:
    """Create the folder, and check that it is writable, local and free of symbolic links.

    Raises:
        EnvironmentProblem: ``folder-not-writable``, ``network-folder``.
        PreflightError: ``folder-link``.
        UsageError: ``path-malformed``.
    """
    check_name(folder)
    filesystem.check_local_filesystem(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_no_symlinks(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        raise EnvironmentProblem(
            "folder-not-writable",
            f"The study folder {folder} is not writable: "
            f"{getattr(error, 'strerror', None) or error}.",
            "another folder: `--out DIR`.",
        ) from error


def check_name(folder: Path) -> None:
    """Check that a folder's path can be shown and stored as text, before anything is written.

    Raises:
        UsageError: ``path-malformed``.
    """
    if (why := undisplayable_reason(str(folder.absolute()))) is not None:
        cause = f"The folder {str(folder.absolute())!r} cannot be used: {why}."
        raise UsageError("path-malformed", cause, "another folder: `--out DIR`.")


def database_path(folder: Path) -> Path:
    """Return the path of a study's database, which must exist.

    Raises:
        UsageError: ``no-study``.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise UsageError(
            "no-study", f"There is no study in {folder}.", "`bakeoff run STUDY.toml` creates one."
        )
    return path


def check_no_symlinks(folder: Path) -> None:
    """Check that a study folder contains no symbolic links, which would redirect writes.

    The folder itself may be a link, because the user names it.

    Raises:
        PreflightError: ``folder-link``.
    """
    for here, folder_names, file_names in os.walk(folder):
        for name in (*folder_names, *file_names):
            path = Path(here, name)
            if path.is_symlink():
                raise PreflightError(
                    "folder-link",
                    f"{path} is a symbolic link. bakeoff writes and deletes files in a study "
                    "folder and does not follow links out of it.",
                    f"`rm {quote_path(path)}`, or another folder: `--out DIR` (which may be a link "
                    "itself).",
                )


def delete_checkpoints(folder: Path, trial_id: str, before: int | None) -> None:
    """Delete the checkpoints of a trial before the step ``before``; None: all.

    Later ones are kept: a resumed study repeats its decisions at earlier rungs.
    """
    states = folder / TRIALS / trial_id / trial_dir.CHECKPOINTS
    if not is_within(states, folder):  # a link created after the study was opened
        return
    for file in states.glob("*"):
        is_kept = before is not None and file.stem.isdecimal() and int(file.stem) >= before
        if not is_kept:
            file.unlink()
    for emptied in (states, states.parent):
        if emptied.is_dir() and not any(emptied.iterdir()):
            emptied.rmdir()


def freeze_data(folder: Path, splits: Splits) -> None:
    """Write the splits and their origins under ``data/``."""
    for name, rows in _frozen_rows(splits).items():
        data_rows.write_split(folder / "data" / f"{name}.jsonl", rows)
    files.atomic_write_text(folder / ORIGINS_FILE, json.dumps(splits.origins, indent=1) + "\n")


def freeze_metric(folder: Path, name: str, code: bytes | None) -> None:
    """Copy a user-defined metric into the study folder, for workers and later runs."""
    if code is not None:
        path = folder / METRIC / name.rpartition(":")[0]
        path.parent.mkdir(exist_ok=True)
        files.atomic_write_bytes(path, code)


def digests(splits: Splits) -> dict[str, str]:
    """Return the sha256 sums of the files that ``freeze_data`` would write."""
    return {name: data_rows.canonical_digest(rows) for name, rows in _frozen_rows(splits).items()}


def _frozen_rows(splits: Splits) -> dict[str, list[data_rows.Row]]:
    return {**splits.rows, **({GENERAL: list(splits.general)} if splits.general else {})}


def write_study_file(
    folder: Path, spec: StudySpec, own_metric: str | None, chat_template: str | None = None
) -> None:
    """Write the resolved study file: with all defaults, and paths inside the folder.

    ``own_metric`` names a user-defined metric in its copy there, None for a built-in one;
    ``chat_template`` is the text of a user-defined template.
    """
    value = dump_spec(spec)
    if chat_template is not None:
        files.atomic_write_text(folder / CHAT_TEMPLATE, chat_template)
        value["task"]["chat_template"] = CHAT_TEMPLATE
    if own_metric is not None:
        value["task"]["metric"] = f"{METRIC}/{own_metric}"
    value["data"] |= FROZEN_FILES
    for name in ("limit", "config", "revision", "encoding"):
        value["data"].pop(name, None)
    if (folder / "data" / f"{GENERAL}.jsonl").is_file():
        value["forgetting"]["text"] = f"data/{GENERAL}.jsonl"
    value["data"].pop("rename", None)  # the frozen rows have the new names
    header = "# Written by bakeoff: the resolved study. `bakeoff run` on it resumes the study.\n"
    files.atomic_write_text(folder / STUDY_FILE, header + tomli_w.dumps(value))
