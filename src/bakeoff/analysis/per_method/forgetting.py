"""Forgetting: the change in loss on general text, and the divergence from the base model.

Both are in nats per token, ratios of sums over documents.
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

    A method is left out unless it was measured on all its final trials that succeeded.
    """
    measured = {
        m: by_seed for m, runs in by_method.items() if (by_seed := _forgetting_by_seed(runs))
    }
    change = {m: _per_token(by_seed, _loss_changes) for m, by_seed in measured.items()}
    distance = {m: _per_token(by_seed, _divergences) for m, by_seed in measured.items()}
    estimates = estimate_scores(change, rng)
    divergences = estimate_scores(distance, rng, low=0.0)
    rows = {}
    for method, by_seed in measured.items():
        first = next(iter(by_seed.values()))  # the documents and the base's losses are the same
        rows[method] = {
            **asdict(estimates[method]),
            "divergence": asdict(divergences[method]),
            "n_documents": len(first.tokens),
            "n_tokens": sum(first.tokens),
            "base_loss": sum(first.base_losses) / sum(first.tokens),
        }
    return rows


def _forgetting_by_seed(runs: MethodRuns) -> dict[int, Forgetting]:
    by_seed = {r.trial.seed: r.result.forgetting for r in runs.scored if r.result}
    measured = {seed: f for seed, f in by_seed.items() if f is not None}
    return measured if len(measured) == len(by_seed) else {}


def _loss_changes(forgetting: Forgetting) -> FloatArray:
    change: FloatArray = np.array(forgetting.losses) - np.array(forgetting.base_losses)
    return change


def _divergences(forgetting: Forgetting) -> FloatArray:
    return np.array(forgetting.divergences)


def _per_token(
    by_seed: Mapping[int, Forgetting], sums: Callable[[Forgetting], FloatArray]
) -> Scores:
    """Return ``[seeds, documents]`` scores whose mean over documents is the value per token.

    A ratio of two sums over documents becomes a mean over documents, which the bootstrap resamples.
    """
    rows = [sums(f) * len(f.tokens) / sum(f.tokens) for f in by_seed.values()]
    return Scores(tuple(by_seed), np.array(rows, dtype=np.float64))
