"""One row of the methods table, shared by the table and the page of one method."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from bakeoff.core.trial import MethodEntry
    from bakeoff.methods.capability_records import CapabilityRecord

STATE_BYTES = 16
"""Bytes of a trained fp32 parameter: its value, its gradient and AdamW's two moments."""
SERVERS = ("vllm",)


class MethodRow(NamedTuple):
    """A method's entry, its capability record, and its parameter counts on the user's model."""

    entry: MethodEntry
    record: CapabilityRecord
    on_model: dict[str, Any] | None


def run_in_processes(
    function: str, payloads: Sequence[dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
    """Run a worker function on each payload in its own process; yield (index, value, error)."""
    from bakeoff.core import plugins

    workers = os.cpu_count() or 1
    executor = plugins.load_plugin("study.executors", "process", "executor").EXECUTOR(workers)
    for outcome in executor.map(function, payloads):
        yield outcome.index, outcome.value, outcome.error


def format_yes(value: bool) -> str:
    """Return ``yes`` or a dash for a table."""
    return "yes" if value else "-"
