"""The sentence that recommends a method in a study of replicates."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers.records import finished_record

from bakeoff.analysis.compare import Verdict
from bakeoff.analysis.evidence import describe_sample
from bakeoff.analysis.recommendation.replicated import better_sentence, keep_sentence

RECORD = dataclasses.replace(finished_record(), margin=0.03, rounds={"mode": "rounds"})
CONTROL = {"title": "LoRA", "n_seeds": 8}


def row(verdict: Verdict = Verdict.INCONCLUSIVE, low: float | None = -0.01) -> dict[str, Any]:
    high = None if low is None else 0.05
    difference = {"estimate": 0.02, "low": low, "high": high}
    return {"title": "OFT", "verdict": verdict, "difference": difference, "n_seeds": 5}


@pytest.mark.parametrize(
    ("low", "n_better", "said"),
    [
        (0.004, 1, "Use OFT: it is better than LoRA by 2.0 points (95 % interval +0.4 to +5.0). "
         "The true difference may be less than 3.0 points, your margin."),
        (0.031, 2, "Use OFT: it is better than LoRA by 2.0 points (95 % interval +3.1 to +5.0). "
         "1 other contender is better than LoRA, too."),
    ],
    ids=["maybe below the margin", "two are better"],
)  # fmt: skip
def test_better_contender_is_recommended(low: float, n_better: int, said: str) -> None:
    assert better_sentence(RECORD, CONTROL, row(Verdict.BETTER, low), n_better) == said


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ("", "no contender has a test score to compare."),
        ("i", "for now: the contender is not shown to be better, equivalent or worse."),
        ("ii", "for now: none of the 2 contenders is shown to be better, equivalent or worse."),
        ("e", "the contender is equivalent (less than 3.0 points apart)."),
        ("ww", "all 2 contenders are worse."),
        ("eewi", "none of the 4 contenders is better. 2 are equivalent (less than 3.0 points "
         "apart), 1 is worse and 1 is not settled."),
    ],
    ids=["none", "one open", "all open", "one equivalent", "all worse", "mixed"],
)  # fmt: skip
def test_control_is_kept_with_counts(verdicts: str, said: str) -> None:
    kinds = {"e": Verdict.EQUIVALENT, "w": Verdict.WORSE, "i": Verdict.INCONCLUSIVE}
    text = keep_sentence(RECORD, CONTROL, [row(kinds[v]) for v in verdicts])
    joint = " " if said.startswith("for now") else ": "
    assert text == f"Keep LoRA{joint}{said}"


def test_evidence_counts_replicates() -> None:
    assert describe_sample(RECORD, CONTROL, row()).startswith("5 replicates")
    older = dataclasses.replace(RECORD, rounds=None)
    assert describe_sample(older, CONTROL, row()).startswith("5 seeds")
