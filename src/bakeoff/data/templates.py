"""Templates of ``[data] columns``: which columns they use, and their text for a row.

``{name}`` stands for the column of that name, whatever characters the name has. If there is no such
column, its dots are a path into objects and lists: ``{translation.en}``, ``{answers.text.0}``.
``{{`` and ``}}`` are braces of the text. A template without columns is itself a column's name.
Standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from bakeoff.core.errors import PreflightError

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}\r\n]*)\}|[{}]")
_PLAIN_NAME = re.compile(r"[^\W\d_][^\"':,]*")
"""A name that is more likely to be a column than a piece of JSON."""


class _Part(NamedTuple):
    text: str
    is_column: bool


def columns_of(template: str) -> tuple[str, ...]:
    """Return the columns that a template uses: those in braces, else the template itself.

    Raises:
        PreflightError: ``template-braces``.
    """
    parts = _parse(template)
    names = tuple(part.text for part in parts if part.is_column)
    return names or ("".join(part.text for part in parts),)


def render_template(template: str, row: Mapping[str, Any]) -> str:
    """Return a template's text with the row's values; a template without columns is a column.

    No attribute is accessed, and no format code is read.

    Raises:
        KeyError: the row lacks a column.
        PreflightError: ``template-braces``.
    """
    parts = _parse(template)
    if not any(part.is_column for part in parts):
        return cell_text(row, "".join(part.text for part in parts))
    return "".join(cell_text(row, p.text) if p.is_column else p.text for p in parts)


def text_between(template: str) -> str:
    """Return a template without its columns; empty if it is a column's name itself."""
    parts = _parse(template)
    fixed = "".join(part.text for part in parts if not part.is_column)
    return fixed if any(part.is_column for part in parts) else ""


def cell_of(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, or of a path into objects and lists if there is no such column.

    Raises:
        KeyError: the row has neither.
    """
    if name in row:
        return row[name]
    try:
        return _follow(row, name)
    except KeyError:
        raise KeyError(name) from None


def cell_text(row: Mapping[str, Any], name: str) -> str:
    """Return the value of ``cell_of`` as text; a missing value (null, NaN) is no text.

    Raises:
        KeyError: the row has no such column.
    """
    value = cell_of(row, name)
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value)


def has_cell(row: Mapping[str, Any], name: str) -> bool:
    """Tell whether ``cell_of`` would find a value."""
    try:
        cell_of(row, name)
    except KeyError:
        return False
    return True


def escaped_names(template: str) -> tuple[str, ...]:
    """Return the texts between double braces, which are not columns: ``{{name}}``."""
    text = "".join("\0" if part.is_column else part.text for part in _parse(template))
    return tuple(re.findall(r"\{([^{}\0\r\n]+)\}", text))


def names_in(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row, and the paths of the texts in their objects."""
    names = [str(name) for name in row]
    for name, value in row.items():
        if isinstance(value, Mapping):
            names += [f"{name}.{inner}" for inner in names_in(value)]
    return names


def escape_text(template: str, wrong: str | None = None) -> str:
    """Return a template with double braces wherever a brace is unlikely to be a column's.

    ``wrong`` is a name in braces that is no column.
    """
    has_escapes = "{{" in template  # JSON has `}}` at its end, but never `{{`

    def escape(token: re.Match[str]) -> str:
        text, name = token.group(), token[1]
        is_column = name is not None and name != wrong and _PLAIN_NAME.fullmatch(name)
        if is_column or (text in ("{{", "}}") and has_escapes):
            return text
        return text.replace("{", "{{").replace("}", "}}")

    return _TOKEN.sub(escape, template).replace("\n", r"\n")


def _follow(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        if path in value:
            return value[path]
        for dot in (i for i, character in enumerate(path) if character == "."):
            if path[:dot] in value:
                try:
                    return _follow(value[path[:dot]], path[dot + 1 :])
                except KeyError:
                    continue  # a longer name with dots may be there
    elif isinstance(value, list):
        head, dot_found, rest = path.partition(".")
        if head.isdecimal() and int(head) < len(value):
            item = value[int(head)]
            return _follow(item, rest) if dot_found else item
    raise KeyError(path)


@lru_cache(maxsize=1024)
def _parse(template: str) -> tuple[_Part, ...]:
    """Split a template into fixed texts and columns.

    Raises:
        PreflightError: ``template-braces``.
    """
    parts: list[_Part] = []
    end = 0
    for token in _TOKEN.finditer(template):
        parts.append(_Part(template[end : token.start()], is_column=False))
        end = token.end()
        if token.group() in ("{{", "}}"):
            parts.append(_Part(token.group()[0], is_column=False))
        elif token[1] is not None and token[1].strip():
            parts.append(_Part(token[1], is_column=True))
        else:
            raise _braces_error(template, token)
    parts.append(_Part(template[end:], is_column=False))
    return tuple(part for part in parts if part.text)


def _braces_error(template: str, token: re.Match[str]) -> PreflightError:
    shown = template.replace("\n", r"\n")
    what = {"{": "a '{' that no '}' closes", "}": "a '}' without its '{'"}
    return PreflightError(
        "template-braces",
        f"The template `{shown}` has {what.get(token.group(), 'braces without a column')} at "
        f"character {token.start() + 1}.",
        f"braces that are text are doubled: `{escape_text(template)}`.",
    )
