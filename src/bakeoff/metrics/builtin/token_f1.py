"""The F1 score of the words that answer and reference share, as SQuAD counts them.

Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250: lower case, no punctuation, no articles
(a, an, the), words cut at white space, each counted as often as it stands. Beyond SQuAD's ASCII
punctuation any that Unicode knows is dropped; texts without spaces are one word: ``chrf`` suits
them better.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

from bakeoff.core.record import MetricInfo
from bakeoff.metrics._text import normalize

INFO = MetricInfo("token_f1", better="higher", unit="fraction", low=0.0, high=1.0)


def _words(text: str) -> list[str]:
    kept = "".join(
        c
        for c in normalize(text, ignore_case=False).lower()
        if c not in string.punctuation and not unicodedata.category(c).startswith("P")
    )
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def score(prediction: str, reference: str) -> float:
    """Return the F1 score; where one side has no words, 1.0 if neither has."""
    own, wanted = _words(prediction), _words(reference)
    if not own or not wanted:
        return float(own == wanted)
    shared = (Counter(own) & Counter(wanted)).total()
    return 2 * shared / (len(own) + len(wanted))
