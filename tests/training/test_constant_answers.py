"""Answers that need no learning: the best constant one, a label's share, a choice at random."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from bakeoff.core.record import MetricInfo
from bakeoff.metrics.builtin import exact_match
from bakeoff.metrics.run import Metric
from bakeoff.tasks.choice import MultipleChoice
from bakeoff.training.constant_answers import _best_constant, _frequency_losses

EXACT = Metric(exact_match.INFO, lambda said, right: float(said == right))
DISTANCE = Metric(
    MetricInfo("distance", "lower", "units"), lambda said, right: abs(int(said) - int(right))
)
LOSS = Metric(MetricInfo("loss", "lower", "nats"), lambda total, n: total / n, of_losses=True)


def test_best_constant_on_test() -> None:
    """Of the three most common training answers the one that scores best on test is taken."""
    train = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2
    found = _best_constant(EXACT, train, ["b", "b", "a", "d", "d", "d"])
    assert found == {"kind": "constant", "answer": "b", "scores": [1, 1, 0, 0, 0, 0]}


def test_best_constant_where_lower_is_better() -> None:
    found = _best_constant(DISTANCE, ["1", "1", "1", "5", "5"], ["5", "4"])
    assert (found["answer"], found["scores"]) == ("5", [0.0, 1.0])


def test_no_constant_among_unique_answers() -> None:
    assert _best_constant(EXACT, ["a", "b", "c"], ["a"])["kind"] is None


@pytest.mark.parametrize("heads", [("classifier",), ()])
def test_loss_of_label_shares(heads: tuple[str, ...]) -> None:
    """With labels a, a, b the smoothed shares are 3/5 and 2/5; a generated loss has no shares."""
    task: Any = SimpleNamespace(heads=heads)
    found = _frequency_losses(task, LOSS, ["a", "a", "b"], ["a", "b"])
    expected = [-math.log(3 / 5), -math.log(2 / 5)] if heads else []
    assert found["scores"] == pytest.approx(expected)


def test_choice_at_random() -> None:
    task = MultipleChoice({"columns": {"prompt": "p", "choices": "c", "answer": "a"}})
    rows = [{"p": "?", "c": ["x", "y"], "a": "x"}, {"p": "?", "c": ["1", "2", "3", "4"], "a": "2"}]
    assert task.chance(rows) == [0.5, 0.25]
