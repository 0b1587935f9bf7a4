"""General text: what a base knew before it was fine-tuned, to tell afterwards what it forgot.

Called by ``folder`` when a study is opened: the shipped documents or the user's in, rows with a
``text`` out, which are frozen beside the splits. ``default.txt`` was written for bakeoff (20 short
documents of prose, news, letters, law, medicine, code, sums; Apache-2.0, as bakeoff is), so no
model has been trained on it before it was published here.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from bakeoff.core.errors import PreflightError
from bakeoff.core.safe_read import GENERAL_BYTES, UnreadableFile, read_text
from bakeoff.data.rows import Row, read_rows

DEFAULT = "default"
OFF = "off"
_SEPARATOR = re.compile(r"^%$", re.MULTILINE)
"""A line with nothing but a percent sign lies between two documents, as in fortune files."""


def load_documents(wish: str, source: Path) -> list[Row]:
    """Return the documents of ``[forgetting] text``: none for ``off``.

    A path, relative to ``source``, is a text file (documents divided by lines with a single ``%``)
    or rows with a ``text`` column.

    Raises:
        PreflightError: ``general-text-missing``, ``general-text-empty``, and what ``read_rows``
            refuses.
    """
    if wish == OFF:
        return []
    if wish == DEFAULT:
        return _split_documents(
            (files("bakeoff.data.general_text") / "default.txt").read_text(encoding="utf-8")
        )
    path = source / wish
    if path.suffix == ".txt":
        found = _split_documents(_read(path))
    else:
        rows = read_rows(path)
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("text"), str):
                raise PreflightError(
                    "general-text-missing",
                    f"Row {number} of {path} has no text in its column 'text'.",
                    'a JSONL file with {"text": "..."} in each line, or a .txt file.',
                )
        found = [{"text": row["text"].strip()} for row in rows if row["text"].strip()]
    if not found:
        raise PreflightError(
            "general-text-empty",
            f"{path} holds no text.",
            '`text = "default"` under [forgetting], or "off".',
        )
    return found


def _read(path: Path) -> str:
    try:
        return read_text(path, GENERAL_BYTES)
    except UnreadableFile as error:
        raise PreflightError(
            "general-text-missing",
            f"The general text {path} cannot be read: {error}.",
            'a UTF-8 file relative to the study file, `text = "default"`, or "off".',
        ) from error


def _split_documents(text: str) -> list[Row]:
    return [{"text": part.strip()} for part in _SEPARATOR.split(text) if part.strip()]
