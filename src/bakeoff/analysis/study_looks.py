"""A study's looks, from its record: computed, read as stored, and turned into comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import Comparison
from bakeoff.analysis.rounds.comparisons import compare_again, compare_rounds
from bakeoff.analysis.rounds.look import Look
from bakeoff.analysis.rounds.looks import run_looks
from bakeoff.analysis.rounds.plan import ALPHA, RESERVE, RoundsPlan, again_alpha
from bakeoff.analysis.trial_runs import method_scores, runs_by_method
from bakeoff.core.record import StudyRecord

OUT_OF_TIME = "time"
"""Why the rounds stopped early: the study's hours were used up (``StudyRecord.rounds``)."""


def rounds_plan(record: StudyRecord) -> RoundsPlan:
    """Return the plan of a study's looks, from the schedule that it has written."""
    assert record.rounds is not None
    schedule = record.rounds
    return RoundsPlan(
        tuple(schedule["seeds"]),
        tuple(schedule["looks"]),
        schedule["margin"],
        record.metric.better,
        n_contenders=max(1, len(schedule["contenders"])),
    )


def looks_until(record: StudyRecord, number: int) -> tuple[Look, ...]:
    """Return the first ``number`` looks of a study, computed from its test scores.

    Their rounds must have ended: a replicate without scores has failed. There are fewer looks if
    the control has no scores.
    """
    if record.rounds is None:
        return ()
    plan, scores = rounds_plan(record), method_scores(record, runs_by_method(record))
    control = scores.get(record.control)
    contenders = {m: scores[m] for m in record.rounds["contenders"] if m in scores}
    if control is None or not contenders or not number:
        return ()
    ended = plan.seeds[: plan.looks[number - 1]]
    return run_looks(contenders, control, plan, ended=ended)[:number]


def stored_looks(record: StudyRecord) -> tuple[Look, ...]:
    """Return the looks that a study has written, oldest first."""
    return tuple(Look.from_json(value) for value in record.looks)


def look_again(record: StudyRecord, number: int, replicates: int) -> Look | None:
    """Return further look ``number`` of ``--again`` over ``replicates``; None without scores.

    It covers the contenders without a verdict, and those that are new.
    """
    scores = method_scores(record, runs_by_method(record))
    plan, contenders = _plan_again(record, replicates), _unsettled(record, scores)
    if record.control not in scores or not contenders:
        return None
    single = replace(plan, alpha=again_alpha(number))
    looks = run_looks(contenders, scores[record.control], single, ended=plan.seeds)
    return looks[0] if looks else None


def study_comparisons(record: StudyRecord, scores: Mapping[str, Scores]) -> dict[str, Comparison]:
    """Return every contender's comparison, as its study's looks have left it.

    A verdict stands as it was given. Contenders without one are read from the last look of
    ``--again``, if there was one.
    """
    looks = stored_looks(record)
    stopped = (record.rounds or {}).get("stopped") == OUT_OF_TIME
    comparisons = {}
    if looks:
        comparisons = compare_rounds(looks, rounds_plan(record), out_of_time=stopped)
    if record.looks_again and record.control in scores:
        last = Look.from_json(record.looks_again[-1])
        contenders = {m: s for m, s in _unsettled(record, scores).items() if m in last.open}
        plan = _plan_again(record, last.replicates)
        number = len(record.looks_again)
        comparisons |= compare_again(contenders, scores[record.control], plan, number)
    return {m: c for m, c in comparisons.items() if m in record.methods}


def settled_contenders(looks: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the contenders that have a verdict, from stored looks."""
    return frozenset(
        method
        for look in looks
        for method, numbers in look["contenders"].items()
        if numbers["verdict"] not in (None, "inconclusive")
    )


def rounds_have_ended(record: StudyRecord) -> bool:
    """Return whether no further round is due, and no look of ``--again``."""
    if record.rounds is None:
        return False
    if len(record.test_reads) - record.rounds["inherited"] > len(record.looks_again):
        return False
    if record.looks_again or record.rounds.get("stopped"):
        return True
    looks = stored_looks(record)
    return bool(looks) and (len(looks) == len(record.rounds["looks"]) or not looks[-1].still_open)


def rounds_section(record: StudyRecord) -> dict[str, Any] | None:
    """Return the ``rounds`` of the report; None for studies of an older protocol."""
    if record.rounds is None:
        return None
    return {
        "mode": record.rounds["mode"],
        "planned": record.rounds["looks"],
        "looks": [_look_row(look) for look in stored_looks(record)],
        "again": [_look_row(Look.from_json(value)) for value in record.looks_again],
        "alpha": ALPHA,
        "reserve": RESERVE,
        "reserve_spent": sum(again_alpha(n + 1) for n in range(len(record.looks_again))),
        "stopped": record.rounds.get("stopped"),
    }


def _look_row(look: Look) -> dict[str, Any]:
    return {
        "number": look.number,
        "replicates": look.replicates,
        "open": list(look.open),
        "information": look.information,
        "spent": look.spent,
        "critical": look.critical,
        "clock": look.clock,
        "contenders": {
            method: {
                "estimate": numbers.estimate,
                "low": numbers.low,
                "high": numbers.high,
                "verdict": numbers.verdict,
                "reason": numbers.reason,
            }
            for method, numbers in look.contenders.items()
        },
    }


def _plan_again(record: StudyRecord, replicates: int) -> RoundsPlan:
    first = rounds_plan(record).seeds[0]
    seeds = tuple(first + i for i in range(replicates))
    # all contenders of the study: which of them are compared depends on what the test set showed
    others = {*record.methods, *(record.rounds or {}).get("contenders", ())} - {record.control}
    return RoundsPlan(
        seeds, (replicates,), record.margin, record.metric.better, n_contenders=max(1, len(others))
    )


def _unsettled(record: StudyRecord, scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Return the scores of the contenders that have no verdict yet."""
    settled = settled_contenders(record.looks)
    return {
        method: scores[method]
        for method in record.methods
        if method != record.control and method not in settled and method in scores
    }
