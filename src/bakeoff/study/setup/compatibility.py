"""Compare a study with its frozen settings: what must not change on resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.core.errors import PreflightError
from bakeoff.data import rows as data_rows
from bakeoff.study.config import StudySpec, dump_spec, flatten

EXECUTION_KEYS = (
    "executor", "workers", "threads", "gpus_per_segment", "segment_retries", "ray_address",
    "ray_files", "ray_unauthenticated", "patience",
)  # fmt: skip
"""Keys of `[engine]` that may change when a study goes on."""


def comparable_spec(spec: StudySpec) -> dict[str, Any]:
    """Return what of a spec must stay: all but paths (hashes are compared) and mere speed."""
    value = dump_spec(spec)
    of_reading = ("validation_fraction", "test_fraction", "group", "limit", "config", "revision")
    for name in (*data_rows.SPLITS, *of_reading):
        value["data"].pop(name, None)
    for name in EXECUTION_KEYS:
        value["engine"].pop(name, None)
    for name in ("metric", "metric_options", "chat_template"):  # compared as they are resolved
        value["task"].pop(name, None)
    value["forgetting"].pop("text", None)
    value["data"].pop("rename", None)
    value["base"].pop("revision", None)  # the commit that it stands for is
    if not value["base"]["trust_remote_code"]:
        del value["base"]["trust_remote_code"]  # what studies from before it was there say
    value.pop("verdict", None)  # what is read out of the results changes none of them
    return value


def check_unchanged(frozen: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a study that is no longer the one that was frozen.

    Raises:
        PreflightError: ``study-differs``, with each differing key and both values.
    """
    lines = [f"  {line}" for line in differences(frozen, now)]
    if lines:
        raise PreflightError(
            "study-differs",
            "This study folder was begun under other conditions (before -> now):\n"
            + "\n".join(lines),
            "`--fork NEW` to begin the study as it is now in the folder NEW, which takes over the "
            "trials that stay the same; or the old conditions to go on.",
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each dotted key whose values differ: ``key: before -> now``."""
    one, two = flatten(before), flatten(now)
    return [
        f"{key}: {_format_value(one.get(key))} -> {_format_value(two.get(key))}"
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    ]


def _format_value(value: Any) -> str:
    if value is None:
        return "(absent)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
