"""The F1 score of the words that prediction and reference share, as in SQuAD.

Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250: lower case, without punctuation and
articles (a, an, the), words separated by white space and counted as often as they occur. Beyond
SQuAD's ASCII punctuation, all Unicode punctuation is removed. A text without spaces is one word;
``chrf`` suits such languages better.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._text import normalize

INFO = MetricInfo("token_f1", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("sft",)


def _words(text: str) -> list[str]:
    """Return the normalised words of a text."""
    kept = "".join(
        c
        for c in normalize(text, ignore_case=False).lower()
        if c not in string.punctuation and not unicodedata.category(c).startswith("P")
    )
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def score(prediction: str, reference: str) -> float:
    """Return the F1 score; if one side has no words, 1.0 if neither has any."""
    predicted, expected = _words(prediction), _words(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))
