"""JSON values of texts, compared as values: spelling, key order and number formats do not matter.

Numbers are equal if they are the same decimal number, of any size (``1``, ``1.0`` and ``1e0``;
``-0`` and ``0``), strings and keys if their composed forms (NFC) are. ``true`` is not ``1``.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any, NamedTuple


class JsonNumber(NamedTuple):
    """A number as ``digits`` times ten to the ``exponent``, without zeros at the end."""

    digits: str
    exponent: int


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, strictly by RFC 8259; numbers are ``JsonNumber``.

    An object with the same key twice has no single value (RFC 7493, 2.3) and is refused.

    Raises:
        ValueError: it is not JSON (``NaN`` and ``Infinity`` are not), or nested too deeply.
    """
    try:
        return json.loads(
            text,
            parse_constant=_reject_constant,
            parse_int=_parse_number,
            parse_float=_parse_number,
            object_pairs_hook=_build_object,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def canonical_json(value: Any) -> str:
    """Return a text that is the same for equal JSON values, and only for these.

    Raises:
        ValueError: it is nested too deeply.
    """
    try:
        return _spell(value)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _spell(value: Any) -> str:
    if isinstance(value, JsonNumber):
        return f"{value.digits}e{value.exponent}"
    if isinstance(value, dict):
        fields = (f"{json.dumps(key)}:{_spell(value[key])}" for key in sorted(value))
        return f"{{{','.join(fields)}}}"
    if isinstance(value, list):
        return f"[{','.join(_spell(item) for item in value)}]"
    if isinstance(value, str):
        return json.dumps(unicodedata.normalize("NFC", value))
    return json.dumps(value)


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {unicodedata.normalize("NFC", key): value for key, value in pairs}
    if len(found) < len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_number(text: str) -> JsonNumber:
    """Return a number exactly, without the limits of Python's integers and floats."""
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (whole + fraction).strip("0")
    if not digits:
        return JsonNumber("0", 0)
    trailing = len(whole + fraction) - len((whole + fraction).rstrip("0"))
    shift = int(exponent or 0) - len(fraction) + trailing
    return JsonNumber("-" * text.startswith("-") + digits, shift)
