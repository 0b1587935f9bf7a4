"""Test items on which a contender does better or worse than the control, with examples.

Nothing here affects a verdict. The examples are chosen by score alone.
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
from bakeoff.analysis.group_variance import IntArray, group_sums
from bakeoff.analysis.trial_runs import MethodRuns
from bakeoff.core.record import StudyRecord
from bakeoff.core.redact import redact

FloatArray = NDArray[np.float64]
Predictions = Mapping[str, Mapping[int, Sequence[str | None]]]

MAX_EXAMPLES = 10
"""Most wins, and most losses, that are shown of each contender."""
MAX_CHARACTERS = 300
"""Length of a text that is shown; the middle of a longer one is left out."""
MAX_BYTES = 1_500_000
"""Size of all texts in the HTML page, so that a report on sixty methods still opens."""
GAP = " […] "
EXAMPLES_OMITTED = "Test items and predictions were left out of this report (--no-examples)."


@dataclass(frozen=True)
class PairedScores:
    """Scores of a contender and of the control on the same items, ``[seeds, items]`` each.

    ``gain`` is ``[items]``: how much better the contender is, in the mean over seeds. ``seeds`` is
    empty if the two have no seed in common.
    """

    method: str
    contender: FloatArray
    control: FloatArray
    seeds: tuple[int, ...]
    gain: FloatArray

    @classmethod
    def from_scores(
        cls, method: str, contender: Scores, control: Scores, better: str
    ) -> PairedScores:
        """Pair equal seeds; without a common seed use all seeds of both."""
        seeds = tuple(s for s in contender.seeds if s in control.seeds)
        ours, theirs = contender.values, control.values
        if seeds:
            ours = ours[[contender.seeds.index(s) for s in seeds]]
            theirs = theirs[[control.seeds.index(s) for s in seeds]]
        gain = ours.mean(axis=0) - theirs.mean(axis=0)
        return cls(method, ours, theirs, seeds, gain if better == "higher" else -gain)


def item_summary(
    record: StudyRecord, by_method: Mapping[str, MethodRuns], scores: Mapping[str, Scores]
) -> dict[str, Any] | None:
    """Return wins and losses of every contender by item; None if nothing can be compared."""
    if record.control not in scores or len(scores) < 2:
        return None
    control, better = scores[record.control], record.metric.better
    pairs = [
        PairedScores.from_scores(method, contender, control, better)
        for method, contender in scores.items()
        if method != record.control
    ]
    texts = _Texts(record, {m: _predictions_by_seed(by_method[m]) for m in scores})
    groups = control.groups
    examples: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [([], []) for _ in pairs]
    if record.examples:
        examples = _select_examples(pairs, texts, groups)
    used = sorted({e["item"] for both in examples for part in both for e in part})
    unknown = record.asked_unknown
    note = None if unknown is None else f"The texts of the items are not known: {unknown}."
    return {
        "n_items": int(control.values.shape[1]),
        "examples": record.examples,
        "note": note if record.examples else EXAMPLES_OMITTED,
        "methods": [
            {**_outcome_counts(pair, better, groups), "wins": wins, "losses": losses}
            for pair, (wins, losses) in zip(pairs, examples, strict=True)
        ],
        "asked": [texts.item_row(item) for item in used],
    }


def _outcome_counts(pair: PairedScores, better: str, groups: IntArray | None) -> dict[str, Any]:
    """Count items by which method is better, and item-seed pairs by which method is right.

    Groups of items, where there are some, are counted by the sum of their items.
    """
    sums = None if groups is None else group_sums(pair.gain[None], groups)[0]
    return {
        "method": pair.method,
        "n_seeds": len(pair.seeds),
        **_sign_counts(pair.gain),
        **({} if sums is None else {"groups": _sign_counts(sums)}),
        "outcomes": _paired_table(pair) if better == "higher" else None,
    }


def _sign_counts(gain: FloatArray) -> dict[str, int]:
    up, down = int((gain > TIE).sum()), int((gain < -TIE).sum())
    return {"better": up, "same": len(gain) - up - down, "worse": down}


def _paired_table(pair: PairedScores) -> dict[str, int] | None:
    """Return the 2 x 2 table of paired outcomes; None if unpaired or not binary.

    A pair is one item at one seed, at which both methods saw the same batches.
    """
    both = np.stack([pair.contender, pair.control]) if pair.seeds else np.empty(0)
    if not both.size or not np.isin(both, (0.0, 1.0)).all():
        return None
    contender, control = both == 1.0
    return {
        "pairs": int(contender.size),
        "both_right": int((contender & control).sum()),
        "only_control": int((~contender & control).sum()),
        "only_contender": int((contender & ~control).sum()),
        "both_wrong": int((~contender & ~control).sum()),
    }


def _predictions_by_seed(runs: MethodRuns) -> dict[int, Sequence[str | None]]:
    return {
        run.trial.seed: run.result.splits["test"].predictions
        for run in runs.scored
        if run.result is not None and "test" in run.result.splits
    }


class _Texts:
    """Texts of examples, redacted before they are shortened: half a secret matches no pattern."""

    def __init__(self, record: StudyRecord, predictions: Predictions) -> None:
        self._items, self._predictions, self._control = record.asked, predictions, record.control
        self._shortened: dict[str, str] = {}

    def item_row(self, item: int) -> dict[str, Any]:
        """Return prompt and reference of an item (counted from 1)."""
        text = self._items[item - 1] if item <= len(self._items) else None
        return {
            "item": item,
            "prompt": self._shorten(text.prompt if text else None),
            "reference": self._shorten(text.reference if text else None),
        }

    def example(self, pair: PairedScores, position: int) -> dict[str, Any]:
        """Return an item with both predictions, at the seed where the scores differ most."""
        seed = None
        if pair.seeds:
            difference = pair.contender[:, position] - pair.control[:, position]
            seed = pair.seeds[int((np.sign(difference.mean()) * difference).argmax())]
        return {
            "item": position + 1,
            "seed": seed,
            "gain": float(pair.gain[position]),
            "control_score": float(pair.control[:, position].mean()),
            "contender_score": float(pair.contender[:, position].mean()),
            "control": self._prediction(self._control, seed, position),
            "contender": self._prediction(pair.method, seed, position),
        }

    def _prediction(self, method: str, seed: int | None, position: int) -> str | None:
        by_seed = self._predictions[method]
        seed = next(iter(by_seed), None) if seed is None else seed
        texts = None if seed is None else by_seed.get(seed)
        return self._shorten(texts[position] if texts and position < len(texts) else None)

    def _shorten(self, text: str | None) -> str | None:
        if text is None:
            return None
        if text not in self._shortened:
            self._shortened[text] = shorten(redact(text))
        return self._shortened[text]


def shorten(text: str) -> str:
    """Return beginning and end of a text, at most ``MAX_CHARACTERS`` long."""
    if len(text) <= MAX_CHARACTERS:
        return text
    room = MAX_CHARACTERS - len(GAP)
    return text[: room - room // 3].rstrip() + GAP + text[-(room // 3) :].lstrip()


def _select_examples(
    pairs: Sequence[PairedScores], texts: _Texts, groups: IntArray | None
) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Choose each contender's wins and losses, the same number each, within ``MAX_BYTES``.

    Of each group of items only the largest is an example.
    """
    n_items = len(pairs[0].gain)
    # One random order for all methods breaks ties: adjacent rows in a file are often alike, and all
    # methods then show the same items.
    order = np.random.default_rng(0).permutation(n_items)
    examples = []
    for pair in pairs:
        both = [_largest_gains(gain, order, groups) for gain in (pair.gain, -pair.gain)]
        examples.append([[texts.example(pair, i) for i in part] for part in both])
    most = MAX_EXAMPLES
    while most and sum(_text_bytes(e, texts) for e in _first_examples(examples, most)) > MAX_BYTES:
        most -= 1
    return [(wins[:most], losses[:most]) for wins, losses in examples]


def _largest_gains(
    gain: FloatArray, order: NDArray[np.int64], groups: IntArray | None
) -> list[int]:
    ranked = order[np.argsort(-np.round(gain[order], 12), kind="stable")]
    if groups is not None:
        ranked = ranked[np.sort(np.unique(groups[ranked], return_index=True)[1])]
    return [int(i) for i in ranked[:MAX_EXAMPLES] if gain[i] > TIE]


def _first_examples(
    examples: Sequence[Sequence[Sequence[dict[str, Any]]]], most: int
) -> Iterable[dict[str, Any]]:
    return (e for both in examples for part in both for e in part[:most])


def _text_bytes(example: dict[str, Any], texts: _Texts) -> int:
    """Return the size in bytes of an example's texts in the HTML page."""
    item = texts.item_row(example["item"])
    parts = (item["prompt"], item["reference"], example["control"], example["contender"])
    return sum(len(html.escape(p).encode(errors="replace")) for p in parts if p)
