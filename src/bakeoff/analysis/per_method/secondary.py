"""Numbers beside the verdict's metric that are no mean over items, from answers and references.

Stands beside ``compare`` in analysis: what a study's trials answered on test and the true answers
in, ``secondary`` of the report dict's rows out. Such a number cannot be paired by item, so it
decides nothing. Its interval comes from the jackknife: an item's influence on the number takes the
place of its score (Efron and Stein 1981, https://doi.org/10.1214/aos/1176345462), and seeds and
items are resampled as for any other score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import estimate_scores
from bakeoff.analysis.trial_runs import MethodRuns
from bakeoff.core.record import StudyRecord

Counts = NDArray[np.float64]


def macro_f1(predictions: Sequence[str | None], references: Sequence[str]) -> float:
    """Return the mean over labels of each label's F1 score; labels are those of either side."""
    return float(_macro_f1(_label_counts(*_label_indices(predictions, references))))


def macro_f1_influences(
    predictions: Sequence[str | None], references: Sequence[str]
) -> NDArray[np.float64]:
    """Return a value for each item; they average to ``macro_f1`` and vary as it does.

    An item's value is the number plus the item's influence: ``n - 1`` times what the number would
    lose without it, less the items' mean of that.
    """
    said, true = _label_indices(predictions, references)
    counts, n = _label_counts(said, true), len(true)
    whole = _macro_f1(counts)
    labels = counts.shape[1]
    pairs, where = np.unique(said * labels + true, return_inverse=True)
    without = np.repeat(counts[None], len(pairs), 0)
    rows, of, is_ = np.arange(len(pairs)), pairs // labels, pairs % labels
    without[rows, 1, of] -= 1
    without[rows, 2, is_] -= 1
    hit = of == is_
    without[rows[hit], 0, of[hit]] -= 1
    influence = ((n - 1) * (whole - _macro_f1(without)))[where]
    found: NDArray[np.float64] = whole + influence - influence.mean()
    return found


def _label_indices(
    predictions: Sequence[str | None], references: Sequence[str]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    labels = {name: i for i, name in enumerate(dict.fromkeys([*references, *predictions]))}
    return np.array([labels[p] for p in predictions]), np.array([labels[r] for r in references])


def _label_counts(said: NDArray[np.intp], true: NDArray[np.intp]) -> Counts:
    """Return ``[3, labels]``: how often each label was right, was said, and was true."""
    labels = int(max(said.max(), true.max())) + 1
    parts = (said[said == true], said, true)
    return np.stack([np.bincount(x, minlength=labels) for x in parts]).astype(np.float64)


def _macro_f1(counts: Counts) -> NDArray[np.float64]:
    """Return macro-F1 of counts ``[..., 3, labels]``; a label that is on neither side is none."""
    right, both = counts[..., 0, :], counts[..., 1, :] + counts[..., 2, :]
    each = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
    found: NDArray[np.float64] = each.sum(-1) / np.maximum((both > 0).sum(-1), 1)
    return found


INFLUENCES = {"macro_f1": macro_f1_influences}
"""Name of a secondary number -> its value for each item."""


def secondary_rows(
    record: StudyRecord,
    by_method: Mapping[str, MethodRuns],
    scores: Mapping[str, Scores],
    rng: np.random.Generator,
) -> dict[str, dict[str, Any]]:
    """Return each method's secondary numbers, of the trials that its score is made of."""
    found: dict[str, dict[str, Any]] = {method: {} for method in scores}
    for name in record.secondary:
        values: dict[str, Scores] = {}
        trials: dict[str, list[dict[str, Any]]] = {}
        for method, own in scores.items():
            results = {run.trial.seed: run.result for run in by_method[method].scored if run.result}
            used = [results[seed] for seed in own.seeds]
            answers = [r.splits["test"].predictions for r in used]
            if any(len(a) != len(record.references) or None in a for a in answers):
                continue
            each = np.array([INFLUENCES[name](a, record.references) for a in answers])
            values[method] = Scores(own.seeds, each)
            trials[method] = [
                {"trial_id": r.trial_id, "seed": seed, "value": float(row.mean())}
                for r, seed, row in zip(used, own.seeds, each, strict=True)
            ]
        for method, interval in estimate_scores(values, rng, low=0.0, high=1.0).items():
            numbers = {"n_items": len(record.references), "n_seeds": len(trials[method])}
            found[method][name] = {**asdict(interval), **numbers, "trials": trials[method]}
    return found
