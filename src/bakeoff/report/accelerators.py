"""Mark speed, step time and memory of methods that lacked an accelerator that others had.

Such figures are valid for the method itself but not directly comparable with those of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bakeoff.analysis.per_method.accelerators import LANES, NOT_IN_COSTS
from bakeoff.report.texts import method_title

MARK = "\N{DAGGER}"

Method = dict[str, Any]


def engine(method: Method) -> dict[str, Any]:
    """Return a method's ``engine``; empty for a study that predates it."""
    return method.get("engine") or {}


def missing_accelerators(method: Method, methods: Sequence[Method]) -> list[str]:
    """Return the accelerators that the method lacked and another method had."""
    available = {name for m in methods for name in engine(m).get("on") or ()}
    return [name for name in engine(method).get("off") or {} if name in available]


def missing_for_costs(method: Method, methods: Sequence[Method]) -> list[str]:
    """Return the missing accelerators that affect measured costs: all but lanes and generation.

    Costs are measured on the training steps of a single trial.
    """
    return [name for name in missing_accelerators(method, methods) if name not in NOT_IN_COSTS]


def footnote(
    methods: Sequence[Method], absent: Callable[[Method, Sequence[Method]], list[str]]
) -> str | None:
    """Return the explanation of the mark with the marked methods; None if there are none.

    ``absent`` is ``missing_accelerators`` or ``missing_for_costs``, as the figures require.
    """
    marked = {method_title(m): names for m in methods if (names := absent(m, methods))}
    if not marked:
        return None
    listed = ", ".join(f"{title} (no {', '.join(names)})" for title, names in marked.items())
    has_lanes = any(LANES in names for names in marked.values())
    return (
        f"{MARK} Measured without an accelerator that other methods had, so not directly "
        f"comparable: {listed}. "
        + ("Lanes affect only the time of a run. " if has_lanes else "")
        + "See \u201cWas it fair?\u201d for the reasons."
    )
