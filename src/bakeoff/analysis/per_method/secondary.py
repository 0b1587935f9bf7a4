"""Secondary metrics that are not a mean over items, such as macro-F1.

Such a number cannot be paired by item, so it decides nothing. Its interval comes from the
jackknife: an item's influence on the number takes the place of its score (Efron and Stein 1981,
https://doi.org/10.1214/aos/1176345462), and seeds and items are resampled as for any other score,
in groups where they have some.
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
    """Return the mean F1 score over the labels of predictions and references."""
    return float(_macro_f1(_label_counts(*_label_indices(predictions, references))))


def macro_f1_influences(
    predictions: Sequence[str | None], references: Sequence[str]
) -> NDArray[np.float64]:
    """Return jackknife pseudo-values, ``[items]``: their mean is ``macro_f1``.

    With F the macro-F1 of all n items and F_i that without item i, the item's influence is
    ``(n - 1)(F - F_i)``; its value is F plus the influence, centred over items.
    """
    predicted, true = _label_indices(predictions, references)
    counts, n = _label_counts(predicted, true), len(true)
    score = _macro_f1(counts)
    labels = counts.shape[1]
    # all items with the same prediction and label have the same influence: compute it once a pair
    pairs, pair_of_item = np.unique(predicted * labels + true, return_inverse=True)
    without = np.repeat(counts[None], len(pairs), 0)
    rows, predicted_label, true_label = np.arange(len(pairs)), pairs // labels, pairs % labels
    without[rows, 1, predicted_label] -= 1
    without[rows, 2, true_label] -= 1
    right = predicted_label == true_label
    without[rows[right], 0, predicted_label[right]] -= 1
    influence = ((n - 1) * (score - _macro_f1(without)))[pair_of_item]
    values: NDArray[np.float64] = score + influence - influence.mean()
    return values


def _label_indices(
    predictions: Sequence[str | None], references: Sequence[str]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    labels = {name: i for i, name in enumerate(dict.fromkeys([*references, *predictions]))}
    return np.array([labels[p] for p in predictions]), np.array([labels[r] for r in references])


def _label_counts(predicted: NDArray[np.intp], true: NDArray[np.intp]) -> Counts:
    """Return ``[3, labels]``: how often each label was right, was predicted, and was true."""
    labels = int(max(predicted.max(), true.max())) + 1
    parts = (predicted[predicted == true], predicted, true)
    return np.stack([np.bincount(x, minlength=labels) for x in parts]).astype(np.float64)


def _macro_f1(counts: Counts) -> NDArray[np.float64]:
    """Return macro-F1 of counts ``[..., 3, labels]``; labels without any count are ignored."""
    right, both = counts[..., 0, :], counts[..., 1, :] + counts[..., 2, :]
    per_label = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
    mean: NDArray[np.float64] = per_label.sum(-1) / np.maximum((both > 0).sum(-1), 1)
    return mean


INFLUENCES = {"macro_f1": macro_f1_influences}
"""Functions from predictions and references to values per item, by name of the metric."""


def secondary_rows(
    record: StudyRecord,
    by_method: Mapping[str, MethodRuns],
    scores: Mapping[str, Scores],
    rng: np.random.Generator,
) -> dict[str, dict[str, Any]]:
    """Return each method's secondary metrics, over the same trials as its score."""
    rows: dict[str, dict[str, Any]] = {method: {} for method in scores}
    for name in record.secondary:
        values: dict[str, Scores] = {}
        trials: dict[str, list[dict[str, Any]]] = {}
        for method, score in scores.items():
            results = {run.trial.seed: run.result for run in by_method[method].scored if run.result}
            used = [results[seed] for seed in score.seeds]
            answers = [r.splits["test"].predictions for r in used]
            if any(len(a) != len(record.references) or None in a for a in answers):
                continue
            values_by_item = np.array([INFLUENCES[name](a, record.references) for a in answers])
            values[method] = Scores(score.seeds, values_by_item, score.groups)
            trials[method] = [
                {"trial_id": r.trial_id, "seed": seed, "value": float(row.mean())}
                for r, seed, row in zip(used, score.seeds, values_by_item, strict=True)
            ]
        for method, interval in estimate_scores(values, rng, low=0.0, high=1.0).items():
            numbers = {"n_items": len(record.references), "n_seeds": len(trials[method])}
            rows[method][name] = {**asdict(interval), **numbers, "trials": trials[method]}
    return rows
