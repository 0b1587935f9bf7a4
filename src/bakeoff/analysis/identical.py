"""Methods that gave identical results: one of them did nothing else than the other.

A user's method whose configuration silently equals LoRA's, or a method that fell back to another,
gives the same numbers to the bit. Scores alone prove nothing: two good methods can both be right on
every item. So methods are identical if, in every final seed that they share,

- their saved weights are the same, or
- their curves are the same at every point, and their scores and answers on test too, or
- neither has a curve, and their scores and answers are the same and vary: many different scores,
  or wrong answers that differ from each other.

Likewise a setting was not applied if two settings of a method have the same curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from bakeoff.analysis.trial_runs import MethodRuns, TrialRun, setting_key
from bakeoff.core.format import format_setting_in_words, plural
from bakeoff.core.record import StudyRecord
from bakeoff.core.results import TrialResult
from bakeoff.core.warning_codes import list_names

WEIGHTS, CURVES, ANSWERS = "weights", "curves", "answers"
FEWEST_VALUES = 10
"""Different scores, or different wrong answers, from which equal ones are no coincidence."""
SAME = {
    WEIGHTS: "the same saved weights",
    CURVES: "the same losses at every step that was read, and the same test scores and answers",
    ANSWERS: "the same test scores and answers on every item",
}

Curve = tuple[tuple[int, float | None, float | None], ...]


def find_identical(
    record: StudyRecord, by_method: Mapping[str, MethodRuns]
) -> list[dict[str, Any]]:
    """Return each group of methods with identical results: ``methods``, what is ``same``, text."""
    groups: list[dict[str, Any]] = []
    for first, second in combinations(by_method, 2):
        same = _shared_results(record, by_method[first], by_method[second])
        if same is None:
            continue
        known = next((g for g in groups if first in g["methods"] and g["same"] == same), None)
        if known is None:
            groups.append({"methods": [first, second], "same": same})
        elif second not in known["methods"]:
            known["methods"].append(second)
    for group in groups:
        group["sentence"] = _identity_sentence(record, by_method, group)
    return groups


def unapplied_settings(record: StudyRecord, runs: MethodRuns) -> str | None:
    """Return a sentence on settings of a method with the same curves; None if there are none."""
    curves: dict[tuple[int, Curve], dict[str, dict[str, Any]]] = {}
    for run in runs.search:
        curve = _curve(run)
        if len(curve) > 1:
            settings = curves.setdefault((run.trial.seed, curve), {})
            settings.setdefault(setting_key(run.trial.setting), run.trial.setting)
    twins = next((list(s.values()) for s in curves.values() if len(s) > 1), None)
    if twins is None:
        return None
    title = record.titles.get(runs.method, runs.method)
    one, other = (format_setting_in_words(s) for s in twins[:2])
    return (
        f"{title} gave identical losses with {one} and with {other}: the setting has no effect. "
        "Check that the method trains any weights with it."
    )


def _shared_results(record: StudyRecord, one: MethodRuns, other: MethodRuns) -> str | None:
    """Return which results two methods share in all common seeds; None if they differ."""
    runs = {run.trial.seed: run for run in one.scored}
    pairs = [(runs[r.trial.seed], r) for r in other.scored if r.trial.seed in runs]
    if not pairs:
        return None
    hashes = [tuple(record.weights.get(r.trial.id) for r in pair) for pair in pairs]
    if all(a is not None and a == b for a, b in hashes):
        return WEIGHTS
    if not all(_same_test(a.result, b.result) for a, b in pairs):
        return None
    curves = [(_curve(a), _curve(b)) for a, b in pairs]
    if all(a and a == b for a, b in curves):
        return CURVES
    if any(a or b for a, b in curves):
        return None
    return ANSWERS if all(_varies(a.result) for a, _ in pairs) else None


def _same_test(one: TrialResult | None, other: TrialResult | None) -> bool:
    if one is None or other is None:
        return False
    a, b = one.splits.get("test"), other.splits.get("test")
    if a is None or b is None:
        return False
    return a.scores == b.scores and a.predictions == b.predictions


def _curve(run: TrialRun) -> Curve:
    """Return a trial's losses by step; empty unless it has a validation loss."""
    points = run.result.curve if run.result else ()
    if all(p.validation_loss is None for p in points):
        return ()
    return tuple((p.step, p.train_loss, p.validation_loss) for p in points)


def _varies(result: TrialResult | None) -> bool:
    """Tell whether equal scores and answers are no coincidence."""
    if result is None:
        return False
    test = result.splits["test"]
    wrong = {p for p, s in zip(test.predictions, test.scores, strict=True) if p and s != 1}
    return max(len(set(test.scores)), len(wrong)) >= FEWEST_VALUES


def _identity_sentence(
    record: StudyRecord, by_method: Mapping[str, MethodRuns], group: Mapping[str, Any]
) -> str:
    names: Sequence[str] = group["methods"]
    titles = [record.titles.get(name, name) for name in names]
    seeds = set.intersection(*({r.trial.seed for r in by_method[n].scored} for n in names))
    changed = [t for n, t in zip(names, titles, strict=True) if n != record.control]
    return (
        f"{list_names(titles)} gave identical results ({SAME[group['same']]}, "
        f"{plural(len(seeds), 'seed')}): one of them did nothing else than the other. Check the "
        f"configuration of {list_names(changed)} (`bakeoff methods`, [method.<name>.config])."
    )
