"""Which accelerators a method ran with: what its probe decided, what its trials then did.

Stands between the stored record and ``rows``. A record of a study from before lanes has none of
this: then it is None, not a guess.
"""

from __future__ import annotations

from typing import Any

from bakeoff.analysis.trial_runs import MethodRuns
from bakeoff.core.record import StudyRecord
from bakeoff.core.results import Cost, Status

LANES = "lanes"
GENERATION = "generation"
NO_PROBE = "the cost probe failed, so nothing could be tried"


def engine_row(record: StudyRecord, runs: MethodRuns) -> dict[str, Any] | None:
    """Return ``lanes``, ``on`` and ``off`` of a method; None where no probe says anything.

    ``lanes`` is the most trials that shared a step, 1 where they ran one by one, None while none
    has run; ``off`` gives the probe's reason, or None where the study never asked for it.
    """
    cost = record.costs.get(runs.method)
    decided = _probe_decision(cost, record) if cost else None
    if decided is None:
        return None
    switches, reasons = decided["switches"], decided["reasons"]
    # a group whose lanes are off still counts its trials: they took turns on one base
    groups = [r.result.lanes for r in runs.all if r.result and r.result.lanes]
    most = max(groups, default=None)
    return {
        "lanes": most if switches.get(LANES) or most is None else 1,
        "on": [name for name, on in switches.items() if on],
        "off": {name: reasons.get(name) for name, on in switches.items() if not on},
    }


def _probe_decision(cost: Cost, record: StudyRecord) -> dict[str, Any] | None:
    """Return what the probe decided; a method whose probe failed trains on the plain path."""
    if cost.engine is not None or cost.status in (Status.DONE, Status.INCOMPATIBLE):
        return cost.engine
    others = [c.engine["switches"] for c in record.costs.values() if c.engine is not None]
    wished = {name for switches in others for name, on in switches.items() if on}
    names = dict.fromkeys(name for switches in others for name in switches)
    return (
        {
            "switches": dict.fromkeys(names, False),
            "reasons": dict.fromkeys(wished, NO_PROBE),
        }
        if names
        else None
    )


def has_extra_accelerators(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether a row's speed and memory were measured with an accelerator the other lacks.

    Lanes do not count, costs are measured with one trial alone; nor does how answers are generated.
    """
    own, theirs = ((r.get("engine") or {}).get("on") for r in (row, other))
    return (
        own is not None and theirs is not None and not set(own) - {LANES, GENERATION} <= set(theirs)
    )
