"""General text on which forgetting is measured: the shipped documents or the user's own.

``default.txt`` was written for bakeoff: 20 short documents of prose, news, letters, law, medicine,
code and arithmetic (Apache-2.0, like bakeoff). No model was trained on it before its publication.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from bakeoff.core.errors import PreflightError
from bakeoff.core.safe_read import GENERAL_BYTES, UnreadableFile, read_text
from bakeoff.data.rows import Row
from bakeoff.data.sources.files import read_data_file

DEFAULT = "default"
OFF = "off"
_SEPARATOR = re.compile(r"^%$", re.MULTILINE)
"""A line with only a percent sign separates two documents, as in fortune files."""


def load_documents(choice: str, source: Path) -> list[Row]:
    """Return the documents for ``[forgetting] text`` as rows with a ``text``; none for ``off``.

    ``choice`` is ``default``, ``off`` or a path relative to ``source``: a text file (documents
    separated by lines with a single ``%``) or rows with a ``text`` column.

    Raises:
        PreflightError: ``general-text-missing``, ``general-text-empty``, and what
            ``read_data_file`` refuses.
    """
    if choice == OFF:
        return []
    if choice == DEFAULT:
        return _split_documents(
            (files("bakeoff.data.general_text") / "default.txt").read_text(encoding="utf-8")
        )
    path = source / choice
    if path.suffix == ".txt":
        documents = _split_documents(_read(path))
    else:
        rows = read_data_file(path).rows
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("text"), str):
                raise PreflightError(
                    "general-text-missing",
                    f"Row {number} of {path} has no text in its column 'text'.",
                    'a JSONL file with {"text": "..."} in each line, or a .txt file.',
                )
        documents = [{"text": row["text"].strip()} for row in rows if row["text"].strip()]
    if not documents:
        raise PreflightError(
            "general-text-empty",
            f"{path} contains no text.",
            '`text = "default"` under [forgetting], or "off".',
        )
    return documents


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
