"""The share of the reference's JSON fields that the answer has with the same value.

A field is a key whose value is no object; the keys of objects inside objects are fields of their
own (``order.date``), a list is one value. Fields that only the answer has cost nothing: where they
should, ``json_match`` is the metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._text import canonical_json, parse_json

INFO = MetricInfo("json_fields", better="higher", unit="fraction", low=0.0, high=1.0)

Path = tuple[str, ...]


def _flatten_fields(value: dict[str, Any], inside: Path = ()) -> Iterator[tuple[Path, str]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flatten_fields(item, (*inside, key))
        else:
            yield (*inside, key), canonical_json(item)


def _value_at(value: Any, path: Path) -> str | None:
    """Return the canonical text of the value under ``path``, None where there is none."""
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    try:
        return canonical_json(value)
    except ValueError:
        return None


def score(prediction: str, reference: str) -> float:
    """Return the share, 0.0 where the answer is no JSON object.

    Raises:
        ValueError: the reference is not a JSON object with a field.
    """
    try:
        value = parse_json(reference)
    except ValueError as error:
        raise ValueError(f"the reference is not JSON: {error}") from error
    if not isinstance(value, dict) or not value:
        raise ValueError("the reference is not a JSON object with a field")
    try:
        found = parse_json(prediction)
    except ValueError:
        return 0.0
    wanted = dict(_flatten_fields(value))
    return sum(_value_at(found, path) == text for path, text in wanted.items()) / len(wanted)
