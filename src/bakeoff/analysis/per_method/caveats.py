"""What weakens the evidence for one method: few seeds, unusable scores, a rate at the edge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bakeoff.analysis.learning import describe_baseline
from bakeoff.analysis.per_method.best_weights import weights_problem
from bakeoff.analysis.per_method.method_rows import Evidence, count_cut_answers
from bakeoff.analysis.trial_runs import MethodRuns
from bakeoff.core.format import format_setting_in_words
from bakeoff.core.record import StudyRecord
from bakeoff.core.warning_codes import LIBRARY, Caveat

FEWEST_SEEDS = 3
"""Fewer cannot tell seed noise from a difference."""
TRIAL_CODES = {
    "trained sequentially, not in lanes": "lanes-failed",
    "forgetting was not measured": "forgetting-not-measured",
    "the trial's folder could not be written": "trial-not-written",
}
"""The codes of the warnings that bakeoff adds to a trial, by how they begin."""
CUT_SHARE = 0.02
"""Smallest share of test answers cut off by the limit of new tokens that is a caveat."""


def row_caveats(row: Mapping[str, Any], runs: MethodRuns, evidence: Evidence) -> list[Caveat]:
    """Return the caveats of a method's row of the report."""
    title, rate = row["title"], (row["setting"] or {}).get("learning_rate")
    found = [*_seed_caveats(row, runs, evidence)]
    if (picked := row["picked"]) is not None and not picked["agree"]:
        text = _disagreement_text(title, picked)
        found.append(_single("selection-disagrees", text))
    if row["best_setting_on_edge"]:
        found.append(
            Caveat(
                "rate-at-edge",
                f"The best learning rate of {title}, {rate:g}, is at the edge of those tried.",
                "The best learning rates of {} are at the edge of those tried.",
                f"{title} ({rate:g})",
            )
        )
    unusable = len(runs.scored) - row["n_seeds"]
    if unusable:
        text = f"{title}: the test scores of {unusable} finished trials cannot be used."
        found.append(_single("scores-unusable", text))
    found += _cut_answer_caveats(title, runs)
    if (artifact := row["artifact"]) is not None:
        problem = weights_problem(title, artifact)
        found += [] if problem is None else [_single("weights-differ", f"{problem}.")]
    for warning in (w for r in runs.all if r.result for w in r.result.warnings):
        # a brace of the text is no place for names
        many = "{}: " + warning.replace("{", "{{").replace("}", "}}")
        found.append(Caveat(_trial_code(warning), f"{title}: {warning}", many, title))
    return found


def _trial_code(warning: str) -> str:
    """Return the code of a trial's warning: one of ours, or what a library warned of."""
    return next((c for start, c in TRIAL_CODES.items() if warning.startswith(start)), LIBRARY)


def _cut_answer_caveats(title: str, runs: MethodRuns) -> Iterator[Caveat]:
    """Yield a caveat if the limit of new tokens ended many of a method's test answers."""
    cut = answers = 0
    for run in runs.scored:
        if run.result is not None and (count := count_cut_answers(run)) is not None:
            cut += count
            answers += len(run.result.splits["test"].scores)
    if not answers or cut / answers < CUT_SHARE:
        return
    share = f"{cut:,} of {answers:,}, {100 * cut / answers:.0f} %"
    yield Caveat(
        "answers-cut",
        f"Test answers of {title} were cut off at the limit of new tokens ({share}): raise "
        "`max_new_tokens` under [task] if they are right so far.",
        "Test answers were cut off at the limit of new tokens: raise `max_new_tokens` under [task] "
        "if they are right so far. {}.",
        f"{title} ({share})",
    )


def not_learnt_caveat(record: StudyRecord, row: Mapping[str, Any]) -> Caveat | None:
    """Return the caveat of a method that is not surely better than without learning."""
    learning = row.get("learning")
    if learning is None or learning["learnt"]:
        return None
    baseline = describe_baseline(learning)
    return Caveat(
        "not-learnt",
        f"{row['title']} is not surely better than {baseline}: it may have learnt nothing.",
        "{} are not surely better than "
        + baseline.replace("{", "{{").replace("}", "}}")
        + ": they may have learnt nothing.",
        row["title"],
    )


def _seed_caveats(row: Mapping[str, Any], runs: MethodRuns, evidence: Evidence) -> Iterator[Caveat]:
    title, seeds = row["title"], row["n_seeds"]
    if row["reported"] is not None:
        pass  # one warning covers the whole import
    elif seeds == 1:
        yield Caveat(
            "one-seed",
            f"{title} has one seed: its seed noise is unknown and in no interval.",
            "{} have one seed each: their seed noise is unknown and in no interval.",
            title,
        )
    elif 0 < seeds < FEWEST_SEEDS:
        few = f"{seeds} seeds, fewer than {FEWEST_SEEDS}."
        yield Caveat("few-seeds", f"{title} has {few}", "{} have " + few, title)
    comparison = evidence.comparisons.get(row["method"])
    if comparison and comparison.n_seeds < seeds:
        text = f"{title} is compared over {comparison.n_seeds} of its {seeds} seeds."
        yield _single("seeds-not-shared", text)


def _single(code: str, text: str) -> Caveat:
    """Return a caveat that is not merged with others."""
    return Caveat(code, text, text, "")


def _disagreement_text(title: str, picked: Mapping[str, Any]) -> str:
    by_loss, by_metric = (format_setting_in_words(picked[key]) for key in ("by_loss", "by_metric"))
    return (
        f"{title}: validation loss and metric disagree on the best of {picked['compared']} "
        f"settings at step {picked['step']}: {by_loss} by loss, {by_metric} by metric."
    )
