"""Check that a perfect model would score 100 %: score its answers before anything is trained.

Every reference of validation and test is encoded as in training and decoded as an answer is. What
does not come back, such as a capital letter that the tokenizer lower-cases, no answer can equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from bakeoff.core.errors import UsageError
from bakeoff.core.trial import Conditions
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import read_rows
from bakeoff.metrics import load
from bakeoff.metrics.run import Metric, MetricError
from bakeoff.tasks._base import Answer, Task

SPLITS = ("validation", "test")
"""The splits that are scored."""
ROUNDING = 1e-9
"""Differences of scores that mean nothing."""
TOLERANT = ("ignore_case", "ignore_spaces")
"""Options with which a metric ignores what a tokenizer changes."""
OTHER_METRICS = ("exact_match", "token_f1")
"""Built-in metrics that can ignore it, the strictest first."""
_SHOWN = 60


class PerfectSplit(NamedTuple):
    """The references of a split, and what would be recorded for a perfect model."""

    split: str
    references: Sequence[str]
    answers: Sequence[Answer]


def check(c: Conditions, folder: Path, task: Task, tokenizer: Any) -> list[DataIssue]:
    """Return the issues of references that a perfect model's answers do not score fully against.

    Raises:
        MetricError: the metric cannot score an item, whatever is predicted.
    """
    metric = load.load_metric(c, folder)
    if metric.of_losses:
        return []
    found = []
    for split in SPLITS:
        rows = read_rows(folder / "data" / f"{split}.jsonl")
        answers = task.perfect_answers(tokenizer, rows)
        references = task.scored_references(tokenizer, rows)
        found.append(PerfectSplit(split, references, answers))
    issues = [i for part in found for i in _split_issues(metric, c, part)]
    if any(i.code == "reference-not-reachable" for i in issues):
        hint = _find_hint(metric, c, folder, found)
        issues = [
            replace(i, try_=hint) if i.code == "reference-not-reachable" else i for i in issues
        ]
    return issues


def _split_issues(metric: Metric, c: Conditions, part: PerfectSplit) -> Iterator[DataIssue]:
    """Yield the issues of one split: references that are wrong themselves, changed, or cut."""
    try:
        best = metric.score(part.references, part.references, part.split)
    except MetricError as error:
        if c.metric_source is not None or not isinstance(error.__cause__, ValueError):
            raise
        yield _unusable_issue(metric, part)
        return
    metric.score([""], part.references[:1], part.split)
    count = len(part.references)
    if c.metric_source is None and metric.info.high is not None:
        wrong = [i for i, score in enumerate(best) if score < metric.info.high - ROUNDING]
        if wrong:
            what = (
                f"The metric '{metric.info.name}' gives the reference itself "
                f"({_shorten(part.references[wrong[0]])}) {best[wrong[0]]:g} of "
                f"{metric.info.high:g}, so no answer can score more,"
            )
            hint = "correct these references, or another metric or option that accepts them."
            yield DataIssue.at(
                "reference-not-perfect", what, hint, part.split, wrong, count, fatal=True
            )
    lost = _lost(metric, part, best)
    changed = [i for i in lost if not part.answers[i].cut]
    if changed:
        at = changed[0]
        what = (
            "The reference cannot be reached by any answer: "
            f"{_shorten(part.references[at])} comes back from the tokenizer as "
            f"{_shorten(part.answers[at].text)}"
        )
        yield DataIssue.at(
            "reference-not-reachable", what, "", part.split, changed, count, fatal=True
        )
    cut = [i for i in lost if part.answers[i].cut]
    if cut:
        what = (
            "The reference has more tokens than an answer may have: of "
            f"{_shorten(part.references[cut[0]])}, {_shorten(part.answers[cut[0]].text)} is left, "
            "so no answer can score fully"
        )
        hint = (
            "a larger `max_new_tokens` under [task], or leave it out: its default is the longest "
        )
        hint += "completion of all splits, plus 8."
        yield DataIssue.at("reference-over-budget", what, hint, part.split, cut, count)


def _unusable_issue(metric: Metric, part: PerfectSplit) -> DataIssue:
    """Return the issue of references that a built-in metric cannot compare with anything."""
    errors: dict[int, BaseException | None] = {}
    for i, reference in enumerate(part.references):
        try:
            metric.score([reference], [reference], part.split)
        except MetricError as error:
            errors[i] = error.__cause__
    what = f"The metric '{metric.info.name}' cannot use references: {next(iter(errors.values()))},"
    hint = "write these references so that the metric reads them, or another metric."
    chosen = [getattr(error, "options", {}) for error in errors.values()]
    if chosen[0] and _accepts_all(replace(metric, options={**metric.options, **chosen[0]}), part):
        values = ", ".join(f"{name} = {json.dumps(value)}" for name, value in chosen[0].items())
        hint = f"`metric_options = {{ {values} }}` under [task], which reads every reference."
    return DataIssue.at(
        "metric-failed", what, hint, part.split, list(errors), len(part.references), fatal=True
    )


def _accepts_all(metric: Metric, part: PerfectSplit) -> bool:
    try:
        metric.score(part.references, part.references, part.split)
    except MetricError:
        return False
    return True


def _lost(metric: Metric, part: PerfectSplit, best: Sequence[float]) -> list[int]:
    """Return the rows whose perfect answer scores worse than the reference itself."""
    sign = 1 if metric.info.better == "higher" else -1
    scores = metric.score([a.text for a in part.answers], part.references, part.split)
    return [
        i for i, (a, b) in enumerate(zip(scores, best, strict=True)) if sign * (b - a) > ROUNDING
    ]


def _find_hint(metric: Metric, c: Conditions, folder: Path, parts: Sequence[PerfectSplit]) -> str:
    """Return the hint of the first metric, or option, with which every reference is reached."""
    names = [c.metric] if c.metric_source is None else []
    fitting = load.metrics_for_task(c.task, c.metric)
    names += [n for n in OTHER_METRICS if n in fitting and n not in names]
    for name in names:
        own = c.metric_options if name == c.metric else {}
        for size in range(len(TOLERANT) + 1):
            for chosen in combinations(TOLERANT, size):
                options = {**own, **dict.fromkeys(chosen, True)}
                if _reaches_all(replace(c, metric=name, metric_options=options), folder, parts):
                    return _metric_hint(name if name != c.metric else None, chosen)
    return (
        "write the references as the tokenizer gives them back (here and in train), or a base "
        "whose tokenizer keeps them as they are."
    )


def _reaches_all(c: Conditions, folder: Path, parts: Sequence[PerfectSplit]) -> bool:
    try:
        other = load.load_metric(replace(c, metric_source=None), folder)
        return not any(
            not part.answers[i].cut
            for part in parts
            for i in _lost(other, part, other.score(part.references, part.references, part.split))
        )
    except (MetricError, UsageError):  # it has no such option, or cannot score these rows
        return False


def _metric_hint(name: str | None, options: Sequence[str]) -> str:
    parts = [] if name is None else [f'`metric = "{name}"` under [task]']
    if options:
        values = ", ".join(f"{option} = true" for option in options)
        parts.append(f"`metric_options = {{ {values} }}` under [task]")
    return f"{' and '.join(parts)}, which ignores the difference."


def _shorten(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
