"""chrF: the F-score of shared character n-grams, as sacrebleu computes it for one sentence.

Popović 2015, https://aclanthology.org/W15-3049. Scaled to 0..1. Both texts are compared
in Unicode's composed form (NFC). ``word_order = 2`` adds words and word bigrams: chrF++.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from bakeoff.core.record import MetricInfo

INFO = MetricInfo("chrf", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)
NEEDS = ("sacrebleu", "chrf")


def check(*, word_order: int = 0) -> None:
    """Refuse a word order below 0.

    Raises:
        ValueError: it is.
    """
    if word_order < 0:
        raise ValueError("`word_order` is 0 (chrF), 2 (chrF++) or another number from 0 on")


@lru_cache
def _chrf(word_order: int) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=word_order)


def score(prediction: str, reference: str, *, word_order: int = 0) -> float:
    """Return the sentence's chrF over 100, beta 2, character n-grams up to 6."""
    predicted, expected = (unicodedata.normalize("NFC", x) for x in (prediction, reference))
    percent: float = _chrf(word_order).sentence_score(predicted, [expected]).score
    return min(1.0, percent / 100)
