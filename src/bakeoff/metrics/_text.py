"""Text and JSON helpers shared by metrics."""

from __future__ import annotations

import json
import unicodedata
from typing import Any


def normalize(text: str, ignore_case: bool) -> str:
    """Return a text in NFC without white space at its ends, case-folded if ``ignore_case``."""
    composed = unicodedata.normalize("NFC", text).strip()
    return composed.casefold() if ignore_case else composed


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, strictly by RFC 8259.

    Raises:
        ValueError: it is not JSON (``NaN`` and ``Infinity`` are not), or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_reject_constant, parse_int=_parse_integer)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def canonical_json(value: Any) -> str:
    """Return a unique text for a JSON value: Python treats True and 1 as equal, JSON does not.

    Raises:
        ValueError: it is nested too deeply.
    """
    try:
        return json.dumps(value, sort_keys=True)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # Python parses no integer of more than 4300 digits
        return float(digits)
