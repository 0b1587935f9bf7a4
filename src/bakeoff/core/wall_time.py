"""Wall time of a study: every run stores its own seconds, under a key of its own, in the database.

A run that is killed leaves what it stored last; the study's wall time is the sum over its runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

_PREFIX = "wall:"


def new_wall_key() -> str:
    """Return a new key for the seconds of one run."""
    return f"{_PREFIX}{uuid.uuid4().hex}"


def is_wall_key(key: str) -> bool:
    """Tell whether a key of the study's values holds the seconds of a run."""
    return key.startswith(_PREFIX)


def wall_times(values: Mapping[str, Any]) -> list[float]:
    """Return the wall time of each run so far, in seconds, from the study's values."""
    return [float(v) for k, v in values.items() if is_wall_key(k)]
