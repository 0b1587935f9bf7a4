"""Compare a study with its frozen values, which must not change when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.core.errors import PreflightError
from bakeoff.data import rows as data_rows
from bakeoff.study.config import StudySpec, dump_spec, flatten
from bakeoff.study.config.inputs import METHOD

EXECUTION_KEYS = (
    "executor", "workers", "threads", "gpus_per_segment", "segment_retries", "ray_address",
    "ray_files", "ray_unauthenticated", "patience",
)  # fmt: skip
"""Keys of `[engine]` that may change when a study is resumed: they only select where it runs."""


def comparable_spec(spec: StudySpec) -> dict[str, Any]:
    """Return the values of a spec that must not change.

    Left out are paths, since hashes of the files are compared, settings of speed, and values that
    are compared in resolved form elsewhere in the frozen values.
    """
    value = dump_spec(spec)
    reading = (
        "validation_fraction", "test_fraction", "group", "item_groups", "limit", "config",
        "revision", "encoding",
    )  # fmt: skip
    for name in (*data_rows.SPLITS, *reading):
        value["data"].pop(name, None)
    for name in EXECUTION_KEYS:
        value["engine"].pop(name, None)
    for name in ("metric", "metric_options", "chat_template"):  # compared in resolved form
        value["task"].pop(name, None)
    value["forgetting"].pop("text", None)
    value["data"].pop("rename", None)
    value["base"].pop("revision", None)  # the resolved commit is compared
    if not value["base"]["trust_remote_code"]:
        del value["base"]["trust_remote_code"]  # older studies lack this key
    if value["task"].get("supervise") is None:
        value["task"].pop("supervise", None)  # older studies lack this key
    for name in ("head_learning_rate", "saved_learning_rate"):
        if value["task"].get(name) == METHOD:
            del value["task"][name]  # older studies lack this key, and mean that
    value.pop("verdict", None)  # it only reads the results
    return value


def check_unchanged(frozen: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a study still has its frozen values.

    Raises:
        PreflightError: ``study-differs``, with each differing key and both values.
    """
    lines = [f"  {line}" for line in differences(frozen, now)]
    if lines:
        raise PreflightError(
            "study-differs",
            "This folder holds a study with different settings (old -> new):\n" + "\n".join(lines),
            "`--fork NEW` to start a new study in the folder NEW with the current settings, which "
            "reuses unchanged trials; or the old settings to resume this one.",
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each dotted key whose values differ: ``key: old -> new``."""
    old, new = flatten(before), flatten(now)
    return [
        f"{key}: {_format_value(old.get(key))} -> {_format_value(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _format_value(value: Any) -> str:
    if value is None:
        return "(absent)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
