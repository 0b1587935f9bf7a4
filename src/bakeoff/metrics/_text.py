"""Metrics: one small file each; how well one answer fits its reference.

A metric module gives

- ``INFO``: name, direction, unit and range (``results.MetricInfo``);
- ``score(prediction, reference, **options) -> float``: one item at a time. Averaging is analysis'
  work, never the metric's, so that every difference can be paired by item. Its keyword arguments
  are the metric's options, under ``[task.metric_options]`` of a study file; one without a default
  must be given. It raises ``ValueError`` for a reference that nothing could be held against;
- ``check(**options)``, if its options can be wrong: ``ValueError`` says how;
- ``NEEDS``, if it imports a package that bakeoff does not bring: ``(package, extra)``.

A metric of losses gives ``score_loss(total, units) -> float`` instead of ``score``: the item's
summed loss in nats and how many supervised units it has; no answer is predicted for it.
``scoring`` calls all of this. The functions below are what more than one metric uses.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any


def normalize(text: str, ignore_case: bool) -> str:
    """Return a text as it is compared: NFC, white space at the ends off, cases folded if wished."""
    composed = unicodedata.normalize("NFC", text).strip()
    return composed.casefold() if ignore_case else composed


def parse_json(text: str) -> Any:
    """Return the value that a text is as JSON, by the letter of RFC 8259.

    Raises:
        ValueError: it is not JSON (``NaN`` and ``Infinity`` are not), or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_reject_constant, parse_int=_parse_integer)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def canonical_json(value: Any) -> str:
    """Return the one text of a JSON value: Python holds True equal to 1, and JSON does not.

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
    except ValueError:  # Python reads no whole number of more than 4300 digits
        return float(digits)
