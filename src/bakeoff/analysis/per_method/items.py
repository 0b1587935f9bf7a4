"""Item by item: on which test items a contender does better or worse than the control.

Stands beside ``compare`` in analysis: scores per item and answers in, ``items`` of the report dict
out. Nothing here decides anything: a mean difference is made of these wins and losses, and a reader
wants to see some. Which are shown follows a rule that looks at scores alone.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.compare import TIE
from bakeoff.analysis.trial_runs import MethodRuns
from bakeoff.core.record import StudyRecord
from bakeoff.core.redact import redact

FloatArray = NDArray[np.float64]
Predictions = Mapping[str, Mapping[int, Sequence[str | None]]]

MAX_EXAMPLES = 10
"""Wins, and losses, that are shown of each contender at most."""
MAX_CHARACTERS = 300
"""Of a text that is shown; what is between its beginning and its end is left out."""
MAX_BYTES = 1_500_000
"""Of all texts as they stand in the page, so that sixty methods are a page that opens."""
GAP = " […] "
EXAMPLES_OMITTED = (
    "Test items and answers were left out when this report was written (--no-examples)."
)


@dataclass(frozen=True)
class PairedScores:
    """A contender and the control on the same items; rows of both are ``seeds``, where paired.

    ``gain`` is ``[items]``: how much better the contender is, by the mean over seeds.
    """

    method: str
    own: FloatArray
    control: FloatArray
    seeds: tuple[int, ...]
    gain: FloatArray

    @classmethod
    def of(cls, method: str, own: Scores, control: Scores, better: str) -> PairedScores:
        """Pair equal seeds; without a common one, ``seeds`` is empty and all of both are used."""
        seeds = tuple(s for s in own.seeds if s in control.seeds)
        mine, theirs = own.values, control.values
        if seeds:
            mine = mine[[own.seeds.index(s) for s in seeds]]
            theirs = theirs[[control.seeds.index(s) for s in seeds]]
        gain = mine.mean(axis=0) - theirs.mean(axis=0)
        return cls(method, mine, theirs, seeds, gain if better == "higher" else -gain)


def item_summary(
    record: StudyRecord, by_method: Mapping[str, MethodRuns], scores: Mapping[str, Scores]
) -> dict[str, Any] | None:
    """Return wins and losses of every contender by item; None where nothing can be paired."""
    if record.control not in scores or len(scores) < 2:
        return None
    control, better = scores[record.control], record.metric.better
    pairs = [
        PairedScores.of(method, own, control, better)
        for method, own in scores.items()
        if method != record.control
    ]
    texts = _Texts(record, {m: _predictions_by_seed(by_method[m]) for m in scores})
    shown = _select_examples(pairs, texts) if record.examples else [([], []) for _ in pairs]
    used = sorted({e["item"] for both in shown for part in both for e in part})
    unknown = record.asked_unknown
    note = None if unknown is None else f"What the items ask is not known: {unknown}."
    return {
        "n_items": int(control.values.shape[1]),
        "examples": record.examples,
        "note": note if record.examples else EXAMPLES_OMITTED,
        "methods": [
            {**_outcome_counts(pair, better), "wins": wins, "losses": losses}
            for pair, (wins, losses) in zip(pairs, shown, strict=True)
        ],
        "asked": [texts.asked(item) for item in used],
    }


def _outcome_counts(pair: PairedScores, better: str) -> dict[str, Any]:
    """Count items by who is better, and pairs of item and seed by who is right."""
    up, down = int((pair.gain > TIE).sum()), int((pair.gain < -TIE).sum())
    return {
        "method": pair.method,
        "n_seeds": len(pair.seeds),
        "better": up,
        "same": len(pair.gain) - up - down,
        "worse": down,
        "outcomes": _paired_table(pair) if better == "higher" else None,
    }


def _paired_table(pair: PairedScores) -> dict[str, int] | None:
    """Return the four fields of the paired table; None where scores are not 0 and 1, or unpaired.

    A pair is an item under a seed: that seed's answers of both, which share its batches.
    """
    both = np.stack([pair.own, pair.control]) if pair.seeds else np.empty(0)
    if not both.size or not np.isin(both, (0.0, 1.0)).all():
        return None
    own, control = both == 1.0
    return {
        "pairs": int(own.size),
        "both_right": int((own & control).sum()),
        "only_control": int((~own & control).sum()),
        "only_contender": int((own & ~control).sum()),
        "both_wrong": int((~own & ~control).sum()),
    }


def _predictions_by_seed(runs: MethodRuns) -> dict[int, Sequence[str | None]]:
    return {
        run.trial.seed: run.result.splits["test"].predictions
        for run in runs.scored
        if run.result is not None and "test" in run.result.splits
    }


class _Texts:
    """The texts of examples, redacted before they are cut: half a secret is none to a pattern."""

    def __init__(self, record: StudyRecord, answers: Predictions) -> None:
        self._asked, self._answers, self._control = record.asked, answers, record.control
        self._known: dict[str, str] = {}

    def asked(self, item: int) -> dict[str, Any]:
        """Return what an item (from 1) asks."""
        there = self._asked[item - 1] if item <= len(self._asked) else None
        return {
            "item": item,
            "prompt": self._cut(there.prompt if there else None),
            "reference": self._cut(there.reference if there else None),
        }

    def example(self, pair: PairedScores, position: int) -> dict[str, Any]:
        """Return an item with both answers, under the seed where they differ most."""
        seed = None
        if pair.seeds:
            apart = pair.own[:, position] - pair.control[:, position]
            seed = pair.seeds[int((np.sign(apart.mean()) * apart).argmax())]
        return {
            "item": position + 1,
            "seed": seed,
            "gain": float(pair.gain[position]),
            "control_score": float(pair.control[:, position].mean()),
            "contender_score": float(pair.own[:, position].mean()),
            "control": self._answer(self._control, seed, position),
            "contender": self._answer(pair.method, seed, position),
        }

    def _answer(self, method: str, seed: int | None, position: int) -> str | None:
        by_seed = self._answers[method]
        found = by_seed.get(next(iter(by_seed)) if seed is None else seed) if by_seed else None
        return self._cut(found[position] if found and position < len(found) else None)

    def _cut(self, text: str | None) -> str | None:
        if text is None:
            return None
        if text not in self._known:
            self._known[text] = shorten(redact(text))
        return self._known[text]


def shorten(text: str) -> str:
    """Return at most ``CHARACTERS`` of a text: an answer's end says as much as its beginning."""
    if len(text) <= MAX_CHARACTERS:
        return text
    room = MAX_CHARACTERS - len(GAP)
    return text[: room - room // 3].rstrip() + GAP + text[-(room // 3) :].lstrip()


def _select_examples(
    pairs: Sequence[PairedScores], texts: _Texts
) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Choose each contender's wins and losses; as many of everybody's as fit into ``BYTES``."""
    n_items = len(pairs[0].gain)
    # One order for all: neighbours in a file are often alike, and methods are compared on the same
    # items where they tie.
    order = np.random.default_rng(0).permutation(n_items)
    made = []
    for pair in pairs:
        both = (_largest_gains(pair.gain, order), _largest_gains(-pair.gain, order))
        made.append([[texts.example(pair, i) for i in part] for part in both])
    most = MAX_EXAMPLES
    while most and sum(_text_bytes(e, texts) for e in _first_examples(made, most)) > MAX_BYTES:
        most -= 1
    return [(wins[:most], losses[:most]) for wins, losses in made]


def _largest_gains(gain: FloatArray, order: NDArray[np.int64]) -> list[int]:
    ranked = order[np.argsort(-np.round(gain[order], 12), kind="stable")]
    return [int(i) for i in ranked[:MAX_EXAMPLES] if gain[i] > TIE]


def _first_examples(
    made: Sequence[Sequence[Sequence[dict[str, Any]]]], most: int
) -> Iterable[dict[str, Any]]:
    return (e for both in made for part in both for e in part[:most])


def _text_bytes(example: dict[str, Any], texts: _Texts) -> int:
    """Return the bytes that an example's texts take in the page."""
    asked = texts.asked(example["item"])
    parts = (asked["prompt"], asked["reference"], example["control"], example["contender"])
    return sum(len(html.escape(p).encode(errors="replace")) for p in parts if p)
