"""Which of the engine's accelerators a method went without, for every section that shows a speed.

Reads ``methods[].engine``. Speed, step time and memory of a method that lacked what others had are
its own all the same, but they do not compare one to one: sections mark them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bakeoff.report.texts import method_title

LANES = "lanes"
GENERATION = "generation"
MARK = "\N{DAGGER}"

Method = dict[str, Any]


def engine(method: Method) -> dict[str, Any]:
    """Return a method's ``engine``; empty for a study from before there was one."""
    return method.get("engine") or {}


def missing_accelerators(method: Method, methods: Sequence[Method]) -> list[str]:
    """Return the accelerators that the method ran without and another method ran with."""
    had = {name for m in methods for name in engine(m).get("on") or ()}
    return [name for name in engine(method).get("off") or {} if name in had]


def missing_for_costs(method: Method, methods: Sequence[Method]) -> list[str]:
    """Return what the method's measured costs lacked: ``lacking``, lanes and answers aside.

    Costs are measured with one trial alone, where there are no lanes to ride in, while it trains.
    """
    return [
        name for name in missing_accelerators(method, methods) if name not in (LANES, GENERATION)
    ]


def footnote(
    methods: Sequence[Method], absent: Callable[[Method, Sequence[Method]], list[str]]
) -> str | None:
    """Say what the mark means and whom it marks; None where it marks nobody.

    ``absent`` is ``lacking`` or ``unlike``: whichever the marked figures depend on.
    """
    marked = {method_title(m): names for m in methods if (names := absent(m, methods))}
    if not marked:
        return None
    named = ", ".join(f"{title} (no {', '.join(names)})" for title, names in marked.items())
    aside = any(LANES in names for names in marked.values())
    return (
        f"{MARK} Measured without an accelerator that other methods had, so not comparable one to "
        f"one: {named}. "
        + ("Lanes matter to the time of a run only. " if aside else "")
        + "The reasons stand under \u201cWas it fair?\u201d."
    )
