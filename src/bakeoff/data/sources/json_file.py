"""Rows of JSON files: a list of objects, an object with such a list, or an object on each line.

Standard library only.
"""

from __future__ import annotations

from typing import Any

from bakeoff.core.errors import PreflightError
from bakeoff.data.issues import Place
from bakeoff.data.rows import LocatedRow, Row, check_not_broken, parse_json, parse_jsonl

_HINT = "a list of objects (.json), or one object a line (.jsonl)."
_MESSAGE_KEYS = {"role", "content", "from", "value"}
"""Keys by which a list of objects is a conversation, which may be nested further."""

Parsed = tuple[list[Row], tuple[str, ...]]
"""The rows of a file, and what was assumed about it."""


def parse_json_lines(name: str, text: str) -> Parsed:
    """Return the rows of a .jsonl file; one that is a single JSON list is read as such.

    Raises:
        PreflightError: ``data-broken``, naming the lines.
    """
    if text.lstrip().startswith("["):
        try:
            values = parse_json(text)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, list) and values and all(isinstance(v, dict) for v in values):
            return _to_rows(name, values), (f"{name} is one JSON list, read as such.",)
    return parse_jsonl(name, text), ()


def parse_json_file(name: str, text: str) -> Parsed:
    """Return the rows of a .json file; one that holds an object on each line is read as such.

    Raises:
        PreflightError: ``data-broken``, ``data-nested``, naming the rows.
    """
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data" and text.lstrip().startswith("{"):
            return parse_jsonl(name, text), (f"{name} holds a JSON object on each line.",)
        line = getattr(error, "lineno", 1)
        why = f"line {line}: {getattr(error, 'msg', error)}"
        raise _broken_error(name, why) from error
    if isinstance(value, list):
        return _to_rows(name, value), ()
    if not isinstance(value, dict):
        raise _broken_error(name, "the file is not a list of objects")
    return _rows_in_object(name, value)


def _rows_in_object(name: str, value: dict[str, Any]) -> Parsed:
    """Return the rows of the one list of objects in an object.

    Raises:
        PreflightError: ``data-broken``, ``data-nested``.
    """
    lists = {key: inner for key, inner in value.items() if _is_list_of_objects(inner)}
    if len(lists) > 1:
        raise _broken_error(
            name,
            f"the file is not a list of objects, but holds several: {', '.join(lists)}",
            "one file for each of them.",
        )
    if not lists:
        if len(value) > 1 and all(isinstance(inner, dict | list) for inner in value.values()):
            raise _broken_error(
                name,
                "the file is not a list of objects, but an object of columns",
                "`df.to_json('rows.jsonl', orient='records', lines=True)`, if pandas wrote it.",
            )
        raise _broken_error(name, "the file is not a list of objects")
    ((key, rows),) = lists.items()
    others = [str(other) for other in value if other != key]
    left_out = f"; left out: {', '.join(others)}" if others else ""
    _check_flat(name, key, rows)
    return _to_rows(name, rows), (f"{name} has its rows under '{key}'{left_out}.",)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _check_flat(name: str, key: str, rows: list[dict[str, Any]]) -> None:
    """Refuse objects whose lists hold the rows, as in SQuAD's files.

    Raises:
        PreflightError: ``data-nested``.
    """
    for column, value in rows[0].items():
        if not _is_list_of_objects(value) or _MESSAGE_KEYS & value[0].keys():
            continue
        for inner, nested in value[0].items():
            if _is_list_of_objects(nested):
                raise PreflightError(
                    "data-nested",
                    f"{name} nests its rows: {key} -> {column} -> {inner}.",
                    f"write an object on each line of a .jsonl file, one for each entry of "
                    f"'{inner}'.",
                )


def _to_rows(name: str, values: list[Any]) -> list[Row]:
    numbered = list(enumerate(values, 1))
    wrong = {n: " is not an object" for n, value in numbered if not isinstance(value, dict)}
    check_not_broken(name, "row", wrong, _HINT)
    return [LocatedRow(value, Place(name, "row", n)) for n, value in numbered]


def _broken_error(name: str, why: str, hint: str = _HINT) -> PreflightError:
    return PreflightError("data-broken", f"{name}: {why}.", hint)
