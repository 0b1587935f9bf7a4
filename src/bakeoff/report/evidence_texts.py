"""Sentences about how sure a verdict is; the page, the Markdown and the terminal share them.

They are drawn from the keys of report.json that only studies of replicates have: without ``rounds``
each function returns None or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bakeoff.core.format import (
    DASH,
    format_learning_rate,
    format_percent,
    format_setting,
    plural,
    score_unit,
)
from bakeoff.report.texts import method_title

Report = dict[str, Any]
Method = dict[str, Any]

STOP_CAVEAT = (
    "A study that stops at a verdict overstates the difference it found, in simulations by up to "
    "0.2 points of accuracy."
)
EXPLORATORY_CAVEAT = (
    "Exploratory verdicts are those that a further evaluation of the test set would give at the "
    "study's usual error level. The 5 % error rate does not cover them."
)


def is_replicated(report: Report) -> bool:
    """Tell whether each seed of the study repeated the whole procedure, the search included."""
    return bool(report.get("rounds"))


def seed_noun(report: Report) -> str:
    """Return what a seed of the study repeats: a replicate, or only the final trial."""
    return "replicate" if is_replicated(report) else "seed"


def control_title(report: Report) -> str:
    """Return the control's name for people."""
    name = report["study"].get("control")
    titles = (method_title(m) for m in report.get("methods") or [] if m.get("method") == name)
    return next(titles, str(name or DASH))


def most_replicates(report: Report) -> int | None:
    """Return the largest number of replicates that the study may use."""
    planned = (report.get("rounds") or {}).get("planned") or []
    return max(planned, default=None)


def contenders(report: Report) -> list[Method]:
    """Return the contenders that have a difference to the control."""
    return [m for m in report.get("methods") or [] if m.get("difference")]


def certainty_text(report: Report) -> str | None:
    """Say how often such a study errs; None where nothing was compared."""
    rounds = report.get("rounds")
    if not rounds or not contenders(report):
        return None
    error = (rounds.get("alpha") or 0.0) + (rounds.get("reserve") or 0.0)
    return (
        f"How sure is that? If no method differed, at most {100 * error:.2g} in 100 such studies "
        "would call any of them better or worse. This covers the search, every look at the "
        "results, and all contenders at once."
        + (
            f" {control_title(report)} was {tuning}."
            if (tuning := control_tuning_text(report))
            else ""
        )
    )


def replicates_text(report: Report, method: Method) -> str:
    """Say how many replicates a method has, of how many at most: ``5 of at most 8``."""
    known = (method.get("difference") or {}).get("replicates") or method.get("n_seeds")
    most = most_replicates(report)
    if not known or most is None:
        return str(known) if known else DASH
    fixed = (report.get("rounds") or {}).get("mode") == "fixed"
    return f"{known} of {most}" if fixed else f"{known} of at most {most}"


def meaning_text(report: Report, method: Method) -> str:
    """Say in plain words what a contender's verdict means, or why there is none."""
    study, verdict = report["study"], method.get("verdict")
    unit, margin = score_unit(study), study.get("margin")
    control = control_title(report)
    within = "" if margin is None else f"{unit.plain(margin)} {unit.word}".strip()
    if verdict in ("better", "worse"):
        difference = method.get("difference") or {}
        ends = [abs(v) for end in ("low", "high") if (v := difference.get(end)) is not None]
        text = f"surely {verdict} than {control}"
        maybe = margin is not None and bool(ends) and min(ends) < margin
        return text + (f", but maybe by less than {within}" if maybe else "")
    if verdict == "equivalent":
        return f"surely less than {within} from {control}"
    if verdict == "inconclusive":
        return limit_text(report, method) or "not settled"
    if (report.get("learning") or {}).get("control_learnt") is False and method.get("difference"):
        return f"{control} has learnt nothing, so there is nothing to compare with"
    return str(method.get("reason") or "not compared")


def limit_text(report: Report, method: Method) -> str | None:
    """Say why a contender is not settled and what would settle it; None for a settled one."""
    difference = method.get("difference") or {}
    if method.get("verdict") != "inconclusive" or not is_replicated(report):
        return None
    reason, items = difference.get("reason"), difference.get("items_needed")
    if reason == "items":
        needed = f": {items:,} test items would settle it" if items else ""
        return f"not settled; items, not seeds, limit this{needed}"
    if reason == "seeds":
        seeds = difference.get("seeds_needed")
        needed = f": {seeds:,} replicates would settle it" if seeds else ""
        return f"not settled; seeds limit this{needed}"
    if reason == "time":
        return "not settled; the time budget ended first"
    most = most_replicates(report)
    used = difference.get("replicates") or 0
    if most is not None and used < most:
        return f"open; the next look follows at {_next_look(report, used)} replicates"
    return "not settled by all replicates"


def _next_look(report: Report, used: int) -> int | str:
    planned = (report.get("rounds") or {}).get("planned") or []
    return min((n for n in planned if n > used), default="more")


def unsettled_lines(report: Report) -> list[str]:
    """Group the contenders that are not settled by the reason: ``OFT, VeRA: not settled; ...``."""
    by_reason: dict[str, list[str]] = {}
    for method in contenders(report):
        if (text := limit_text(report, method)) is not None:
            by_reason.setdefault(text, []).append(method_title(method))
    return [f"{', '.join(titles)}: {text}." for text, titles in by_reason.items()]


def evidence_facts(report: Report) -> list[tuple[str, str]]:
    """Return the evidence behind the verdicts as pairs of a name and a text, known ones only."""
    facts = (
        ("Replicates", _replicates_used(report)),
        ("Looks", looks_text(report)),
        ("Items and seeds", variance_text(report)),
        ("Groups of items", groups_text(report)),
        ("Learning rate", _recommended_setting(report)),
        ("Output layer", head_text(report)),
        ("May be the best", best_set_text(report)),
    )
    return [(name, text) for name, text in facts if text]


def _replicates_used(report: Report) -> str | None:
    """Say how many replicates the study used; each repeats the search."""
    methods, most = report.get("methods") or [], most_replicates(report)
    name = report["study"].get("control")
    used = {m.get("method"): m.get("n_seeds") or 0 for m in methods if m.get("n_seeds")}
    if not is_replicated(report) or most is None or name not in used:
        return None
    others = sorted(n for method, n in used.items() if method != name)
    span = _span([str(others[0]), str(others[-1])]) if others else ""
    fixed = report["rounds"].get("mode") == "fixed"
    text = f"{used[name]} of {'' if fixed else 'at most '}{most}"
    text += f" for the control, {span} for contenders" if others else ""
    return f"{text}; each one tunes every method again"


def looks_text(report: Report) -> str | None:
    """Say how many looks the study had, and how much of the error they have spent."""
    rounds = report.get("rounds")
    if not rounds or not rounds.get("looks"):
        return None
    planned, looks = rounds.get("planned") or [], rounds["looks"]
    text = f"{len(looks)} of {len(planned)}"
    spent, alpha = looks[-1].get("spent"), rounds.get("alpha")
    if spent is None or alpha is None:
        return text
    return f"{text}; {100 * spent:.1f} of the {100 * alpha:.1f} % error spent"


def variance_text(report: Report) -> str | None:
    """Say which share of the variance is due to the items, and the width that no seed changes."""
    known = [
        d
        for m in contenders(report)
        if (d := m["difference"]).get("items_share") is not None and d.get("floor") is not None
    ]
    if not known:
        return None
    unit = score_unit(report["study"])
    shares = sorted(d["items_share"] for d in known)
    floors = sorted(d["floor"] for d in known)
    share = _span([f"{100 * s:.0f}" for s in (shares[0], shares[-1])])
    floor = _span([f"±{unit.plain(f)}" for f in (floors[0], floors[-1])])
    return (
        f"items make {share} % of the variance; more seeds would not narrow an interval below "
        f"{floor} {unit.word}".rstrip()
    )


def groups_text(report: Report) -> str | None:
    """Say what groups the test items have, and how many independent items they are worth."""
    groups = report.get("groups")
    if not groups:
        return None
    source, effect = groups.get("source"), groups.get("design_effect")
    text = plural(groups["n"], "group") + (f" by {source}" if source else "")
    items = report["study"].get("n_test_items")
    if effect is None:
        return text
    if items is None:
        return f"{text}; design effect {effect:.2g}"
    worth = max(1, round(items / max(effect, 1.0)))
    return (
        f"{text}; {items:,} items tell as much as {worth:,} independent ones "
        f"(design effect {effect:.2g})"
    )


def control_tuning_text(report: Report) -> str | None:
    """Say whether the control was tuned well: its best rate inside the grid, replicates agree."""
    tuning = report.get("control_tuning")
    if not tuning:
        return None
    well, inside = tuning.get("well_tuned"), tuning.get("inside_grid")
    where = "inside its grid" if inside else "at the edge of its grid"
    text = f"its best setting ({format_setting(tuning.get('setting'))}) is {where}"
    chosen, replicates = tuning.get("chosen"), tuning.get("replicates")
    if chosen is not None and replicates:
        text += f", and {chosen} of {plural(replicates, 'replicate')} chose it"
        near = tuning.get("near") or 0
        text += f" ({near} it or a neighbour)" if near > chosen else ""
    return f"{'tuned well' if well else 'maybe not tuned well'}: {text}"


def _recommended_setting(report: Report) -> str | None:
    """Name the setting to use of the recommended method, and how often replicates chose it."""
    best = (report.get("recommendation") or {}).get("method")
    row = next((m for m in report.get("methods") or [] if m.get("method") == best), None)
    text = None if row is None else agreement_text(row)
    if row is None or text is None:
        return None
    return f"{format_setting(row.get('setting'))} for {method_title(row)}, {text}"


def agreement_text(method: Method) -> str | None:
    """Say how many replicates chose the recommended setting: ``chosen in 6 of 8 replicates``."""
    agreement = method.get("agreement")
    if not agreement or not agreement.get("replicates"):
        return None
    return f"chosen in {agreement['chosen']} of {plural(agreement['replicates'], 'replicate')}"


def head_text(report: Report) -> str | None:
    """Say which learning rate the output layer has, and whether a verdict depends on it."""
    head = report.get("head")
    if not head:
        return None
    rate = head.get("learning_rate")
    where = {
        "method": "the learning rate of each method, so verdicts may hang on it",
        "joint": "a learning rate of its own, searched together with each method's",
    }.get(str(head.get("source")))
    if where is None:
        if rate is None:
            return None
        where = f"learning rate {format_learning_rate(rate)} for every method"
    titles = {m.get("method"): method_title(m) for m in report.get("methods") or []}
    sensitive = [titles.get(name, name) for name in head.get("sensitive") or ()]
    depends = f"; the verdict of {', '.join(sensitive)} depends on it" if sensitive else ""
    return where + depends


def best_set_text(report: Report) -> str | None:
    """Name the methods that may be the best (the model confidence set)."""
    best, learning = report.get("best_set"), report.get("learning") or {}
    if not best or not best.get("methods") or learning.get("control_learnt") is False:
        return None
    titles = {m.get("method"): method_title(m) for m in report.get("methods") or []}
    names = ", ".join(str(titles.get(name, name)) for name in best["methods"])
    return f"{names} ({format_percent(best.get('level'))} confidence set)"


def stop_caveat(report: Report) -> str | None:
    """Return the caveat on estimates if a contender was settled before the last planned look."""
    rounds = report.get("rounds") or {}
    if rounds.get("mode") != "rounds":
        return None
    settled = [m for m in contenders(report) if m.get("verdict") in ("better", "worse")]
    return STOP_CAVEAT if settled else None


def exploratory_caveat(report: Report) -> str | None:
    """Return the caveat on exploratory verdicts if the study has any."""
    found = [m for m in contenders(report) if m["difference"].get("exploratory")]
    return EXPLORATORY_CAVEAT if found else None


def _span(ends: Sequence[str]) -> str:
    """Join two ends, or return one if they are the same: ``24 to 61``."""
    return " to ".join(dict.fromkeys(ends))
