"""What a method forgot: the change in loss on general text, and its distance from the base.

Stands beside ``base`` in analysis: each final trial's sums over documents in, ``forgetting`` of the
report's rows out. Both numbers are nats per token, ratios of sums over documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import estimate_scores
from bakeoff.analysis.trial_runs import MethodRuns
from bakeoff.core.results import Forgetting

FloatArray = NDArray[np.float64]


def forgetting_rows(
    by_method: Mapping[str, MethodRuns], rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Return each method's forgetting with 95 % intervals over seeds and documents.

    A method of which a scored trial was not measured is left out.
    """
    known = {m: found for m, runs in by_method.items() if (found := _forgetting_by_seed(runs))}
    change = {m: _per_token(found, _loss_changes) for m, found in known.items()}
    distance = {m: _per_token(found, _divergences) for m, found in known.items()}
    estimates = estimate_scores(change, rng)
    divergences = estimate_scores(distance, rng, low=0.0)
    return {
        m: {
            **asdict(estimates[m]),
            "divergence": asdict(divergences[m]),
            "n_documents": len(first.tokens),
            "n_tokens": sum(first.tokens),
            "base_loss": sum(first.base_losses) / sum(first.tokens),
        }
        for m, found in known.items()
        for first in (next(iter(found.values())),)
    }


def _forgetting_by_seed(runs: MethodRuns) -> dict[int, Forgetting]:
    found = {r.trial.seed: r.result.forgetting for r in runs.scored if r.result}
    whole = {seed: f for seed, f in found.items() if f is not None}
    return whole if len(whole) == len(found) else {}


def _loss_changes(found: Forgetting) -> FloatArray:
    change: FloatArray = np.array(found.losses) - np.array(found.base_losses)
    return change


def _divergences(found: Forgetting) -> FloatArray:
    return np.array(found.divergences)


def _per_token(found: Mapping[int, Forgetting], sums: Callable[[Forgetting], FloatArray]) -> Scores:
    """Return ``[seeds, documents]``, scaled so that a row's mean is its sum over all tokens.

    The ratio of two sums over documents, as the mean of one number a document: what is resampled.
    """
    rows = [sums(f) * len(f.tokens) / sum(f.tokens) for f in found.values()]
    return Scores(tuple(found), np.array(rows, dtype=np.float64))
