"""Accelerators that a method ran with: its probe's decision and what its trials did.

Records from before bakeoff had lanes hold none of this; the row is then None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.analysis.trial_runs import MethodRuns
from bakeoff.core.errors import FAULT
from bakeoff.core.record import StudyRecord
from bakeoff.core.results import Cost, Status

LANES = "lanes"
NOT_IN_COSTS = {LANES, "generation", "lane_generation"}
"""Accelerators that training steps of a single trial do not use."""
NO_PROBE = "the cost probe failed, so it could not be tested"


def engine_row(record: StudyRecord, runs: MethodRuns) -> dict[str, Any] | None:
    """Return ``lanes``, ``on`` and ``off`` of a method; None without a probe's decision.

    ``lanes`` is the largest number of trials batched in a step: 1 if they ran one by one, None if
    none has run. ``off`` maps accelerators to the probe's reason, None if not requested. ``faults``
    are those that an unexpected error turned off, in the probe or in a trial; missing without any.
    """
    cost = record.costs.get(runs.method)
    decided = _probe_decision(cost, record) if cost else None
    if decided is None:
        return None
    switches, reasons = decided["switches"], decided["reasons"]
    # a result counts the trials of its group even with lanes off, when they ran in turn on one base
    groups = [r.result.lanes for r in runs.all if r.result and r.result.lanes]
    most = max(groups, default=None)
    faults = _faults(reasons, runs)
    return {
        "lanes": most if switches.get(LANES) or most is None else 1,
        "on": [name for name, on in switches.items() if on],
        "off": {name: reasons.get(name) for name, on in switches.items() if not on},
    } | ({"faults": faults} if faults else {})


def _faults(reasons: Mapping[str, str | None], runs: MethodRuns) -> list[str]:
    """Return the accelerators that an unexpected error turned off."""
    faults = [name for name, why in reasons.items() if (why or "").startswith(FAULT)]
    warnings = (text for r in runs.all if r.result for text in r.result.warnings)
    if LANES not in faults and any(LANES in text and FAULT in text for text in warnings):
        faults.append(LANES)
    return faults


def _probe_decision(cost: Cost, record: StudyRecord) -> dict[str, Any] | None:
    """Return the probe's decision; after a failed probe every accelerator counts as off."""
    if cost.engine is not None or cost.status in (Status.DONE, Status.INCOMPATIBLE):
        return cost.engine
    others = [c.engine["switches"] for c in record.costs.values() if c.engine is not None]
    requested = {name for switches in others for name, on in switches.items() if on}
    names = dict.fromkeys(name for switches in others for name in switches)
    return (
        {
            "switches": dict.fromkeys(names, False),
            "reasons": dict.fromkeys(requested, NO_PROBE),
        }
        if names
        else None
    )


def has_extra_accelerators(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether a row's costs were measured with an accelerator that the other lacks.

    Lanes do not count, because costs are measured on a single trial; nor does generation.
    """
    mine, theirs = ((r.get("engine") or {}).get("on") for r in (row, other))
    return mine is not None and theirs is not None and not set(mine) - NOT_IN_COSTS <= set(theirs)
