"""Whether a method has learnt anything: is its test score surely better than without learning?

Two methods can agree because neither learnt anything, so the verdict asks here first. The
baselines are the base model without fine-tuning, where its task gives it a score, and the best
answer that is the same for every item (for a classifier the most common label; for multiple
choice a choice at random). A method has learnt if it is surely better than every known baseline:

- the 95 % interval of its gain, paired by item, over seeds and items (``estimate_scores``: not
  simultaneous over methods), lies on the better side of 0, or that of each of its seeds over the
  items does. Two seeds say so little about further seeds that the first alone would not find a gain
  of 30 points in a quarter of studies; but if each of the trained models is surely better, then the
  method has learnt;
- where fewer than ``FEWEST_ITEMS`` items (or groups of items) differ, an exact sign test over them
  finds it too, at 2.5 %. A handful of items that agree by chance leave hardly any variance, and so
  an interval without width.

So a method at a baseline is called learnt in at most 5 % of studies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from bakeoff.analysis.bootstrap import DRAWS, Scores
from bakeoff.analysis.compare import TIE, Comparison, Interval, Verdict, estimate_scores
from bakeoff.analysis.error_distribution import FloatArray
from bakeoff.analysis.evidence import FEWEST_ITEMS
from bakeoff.analysis.group_variance import group_sums
from bakeoff.core.record import MetricInfo, StudyRecord

SIGN_LEVEL = 0.025
BASE, CONSTANT = "base", "constant"
SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Baseline:
    """Scores that need no learning, ``[items]``.

    ``kind`` is ``base``, or the kind of a ``ConstantAnswer``, whose ``answer`` it then has.
    """

    kind: str
    scores: FloatArray
    answer: str | None = None


@dataclass(frozen=True)
class Learning:
    """Whether a method is surely better than all baselines, and the evidence.

    ``against`` is the baseline that is hardest to beat, ``baseline`` its mean score, and ``gain``
    the method's mean less that, in the metric's unit.
    """

    learnt: bool
    against: str
    answer: str | None
    baseline: float
    gain: Interval

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def find_baselines(record: StudyRecord) -> list[Baseline]:
    """Return the known baselines of a study.

    Imported results have none. A study of an earlier version has no constant answer until it is
    run again, which trains nothing: its verdicts stay as they were.
    """
    found = []
    if record.base_scores is not None and record.base_scores.scores:
        found.append(Baseline(BASE, np.array(record.base_scores.scores, dtype=np.float64)))
    if record.constant is not None:
        scores = np.array(record.constant.scores, dtype=np.float64)
        found.append(Baseline(record.constant.kind, scores, record.constant.answer))
    return found


def assess_learning(
    scores: Mapping[str, Scores],
    baselines: Sequence[Baseline],
    metric: MetricInfo,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> dict[str, Learning]:
    """Return by method whether it has learnt; methods without a comparable baseline are absent."""
    found: dict[str, list[Learning]] = {}
    for baseline in baselines:
        paired = {
            method: Scores(own.seeds, own.values - baseline.scores, own.groups)
            for method, own in scores.items()
            if own.values.shape[1] == len(baseline.scores)
        }
        for method, gain in estimate_scores(paired, rng, draws=draws).items():
            gains = [gain] if _is_gain(gain, metric.better) else []
            if not gains and len(paired[method].seeds) > 1:
                gains = list(
                    estimate_scores(_split_seeds(paired[method]), rng, draws=draws).values()
                )
            learnt = bool(gains) and all(_is_gain(g, metric.better) for g in gains)
            learnt = learnt and _passes_sign_test(paired[method], metric.better)
            mean = float(baseline.scores.mean())
            found.setdefault(method, []).append(
                Learning(learnt, baseline.kind, baseline.answer, mean, gain)
            )
    return {method: _hardest(known, metric.better) for method, known in found.items()}


def withhold_verdicts(
    comparisons: Mapping[str, Comparison], learning: Mapping[str, Learning], control: str
) -> dict[str, Comparison]:
    """Return the comparisons without the verdicts that mean nothing.

    Against a control that has not learnt, only ``better`` is a verdict, and only of a contender
    that has learnt.
    """
    if not has_not_learnt(learning.get(control)):
        return dict(comparisons)
    return {
        method: comparison
        if comparison.verdict is Verdict.BETTER and not has_not_learnt(learning.get(method))
        else dataclasses.replace(
            comparison, verdict=Verdict.NONE, items_needed=None, seeds_needed=None
        )
        for method, comparison in comparisons.items()
    }


def has_not_learnt(learning: Learning | None) -> bool:
    """Tell whether a method is known to have no sure gain; not so without a baseline."""
    return learning is not None and not learning.learnt


def describe_baseline(learning: Mapping[str, Any]) -> str:
    """Return the baseline of a method's ``learning`` as words for a sentence."""
    answer = learning["answer"]
    if learning["against"] == CONSTANT and answer is not None:
        shown = " ".join(str(answer).split())
        shown = shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}…"
        return f"always answering '{shown}'"
    words = {BASE: "the base model without fine-tuning", "chance": "choosing at random"}
    return words.get(str(learning["against"]), "giving each label its share of the training rows")


def _split_seeds(scores: Scores) -> dict[str, Scores]:
    """Return the scores of each seed as those of a method with one seed."""
    return {
        str(seed): Scores((seed,), values[None], scores.groups)
        for seed, values in zip(scores.seeds, scores.values, strict=True)
    }


def _is_gain(gain: Interval, better: str) -> bool:
    low, sign = (gain.low, 1.0) if better == "higher" else (gain.high, -1.0)
    return low is not None and sign * low > TIE


def _passes_sign_test(paired: Scores, better: str) -> bool:
    """Tell whether more items gain than lose beyond chance; with many differing items always.

    Grouped items count once a group, by the sign of the group's sum.
    """
    gains = (1.0 if better == "higher" else -1.0) * paired.values.mean(axis=0)
    if paired.groups is not None:
        gains = group_sums(gains[None], paired.groups)[0]
    wins, losses = int(np.sum(gains > TIE)), int(np.sum(gains < -TIE))
    if wins + losses >= FEWEST_ITEMS:
        return True
    p_value = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    return bool(p_value <= SIGN_LEVEL)


def _hardest(known: Sequence[Learning], better: str) -> Learning:
    """Return the comparison with the best baseline; one that is not surely beaten goes first."""
    sign = 1 if better == "higher" else -1
    return max(known, key=lambda x: (not x.learnt, sign * x.baseline))
