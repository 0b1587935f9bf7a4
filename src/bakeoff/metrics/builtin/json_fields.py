"""The share of the reference's JSON fields that the prediction has with the same value.

A field is a key whose value is not an object; the keys of nested objects are fields of their own
(``order.date``), and a list is a single value. Extra fields of the prediction are not penalised;
``json_match`` does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._json import canonical_json, parse_json

INFO = MetricInfo("json_fields", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)

Path = tuple[str, ...]


def _flatten_fields(value: dict[str, Any], inside: Path = ()) -> Iterator[tuple[Path, str]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flatten_fields(item, (*inside, key))
        else:
            yield (*inside, key), canonical_json(item)


def _value_at(value: Any, path: Path) -> str | None:
    """Return the canonical text of the value under ``path``, None if there is none."""
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    try:
        return canonical_json(value)
    except ValueError:
        return None


def score(prediction: str, reference: str) -> float:
    """Return the share, 0.0 if the prediction is not a JSON object.

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
        predicted = parse_json(prediction)
    except ValueError:
        return 0.0
    expected = dict(_flatten_fields(value))
    return sum(_value_at(predicted, path) == text for path, text in expected.items()) / len(
        expected
    )
