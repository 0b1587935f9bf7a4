"""One row of the methods table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from bakeoff.core.trial import MethodEntry
    from bakeoff.methods.capability_records import CapabilityRecord

STATE_BYTES = 16
"""A trained number in fp32: its value, its gradient and AdamW's two moments."""
SERVERS = ("vllm",)


class MethodRow(NamedTuple):
    """One method: its entry, what is known of it, and what it takes on the user's model."""

    entry: MethodEntry
    found: CapabilityRecord
    on_model: dict[str, Any] | None


def run_in_processes(
    function: str, payloads: Sequence[dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
    """Run a function of the training half over payloads, a process each; yield as they end."""
    from bakeoff.core import plugins

    workers = os.cpu_count() or 1
    through = plugins.load_plugin("study.executors", "process", "executor").EXECUTOR(workers)
    for outcome in through.map(function, payloads):
        yield outcome.index, outcome.value, outcome.error


def format_yes(value: bool) -> str:
    """Return a word for a table."""
    return "yes" if value else "-"
