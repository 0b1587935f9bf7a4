"""Methods with identical results, and settings without an effect, are called out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers.records import final, hits, make_record, make_result, make_trial
from helpers.summaries import summarise_checked

from bakeoff.core.results import SplitScores, TrialResult

Pair = tuple[Any, TrialResult | None]
LOSSES = (1.25, 0.75, 0.5)


def seed_scores(right: int = 120) -> dict[int, Any]:
    return {1: hits(right, 200), 2: hits(right - 1, 200)}


def twins(name: str) -> list[Pair]:
    return [t for m in ("lora", name) for t in final(m, seed_scores(), losses=LOSSES)]


def with_test(pairs: list[Pair], scores: list[float], answers: list[str]) -> list[Pair]:
    """Give every trial these scores and answers, and no curve."""
    split = SplitScores(tuple(scores), tuple(answers), None)
    changed = []
    for trial, result in pairs:
        assert result is not None
        splits = {**result.splits, "test": split}
        changed.append((trial, dataclasses.replace(result, splits=splits, curve=())))
    return changed


def found(trials: list[Pair], names: tuple[str, ...], **more: Any) -> list[dict[str, Any]]:
    return summarise_checked(make_record(trials, names, **more)).get("identical", [])


def test_same_curves_are_called_out() -> None:
    """A method whose configuration equals LoRA's is named in the report and in its warnings."""
    trials = final("lora", seed_scores(), losses=LOSSES) + final(
        "mine", seed_scores(), losses=LOSSES
    )
    trials += final("oft", seed_scores(), losses=(1.25, 0.75, 0.51))
    made = summarise_checked(make_record(trials, ("lora", "mine", "oft")))
    (group,) = made["identical"]
    assert (group["methods"], group["same"]) == (["lora", "mine"], "curves")
    assert made["warnings"][0].startswith("LoRA and mine gave identical results (the same losses")
    assert "2 seeds" in group["sentence"]
    assert "Check the configuration of mine" in group["sentence"]
    assert made["warnings"][0].endswith("[identical-results]")


def test_three_identical_methods_are_one_group() -> None:
    trials = [t for m in ("lora", "a", "b") for t in final(m, seed_scores(), losses=LOSSES)]
    (group,) = found(trials, ("lora", "a", "b"))
    assert group["methods"] == ["lora", "a", "b"]


@pytest.mark.parametrize("right", [0, 200])
def test_equal_scores_alone_are_no_identity(right: int) -> None:
    """All right, or all wrong, is an honest coincidence if the losses differ."""
    trials = final("lora", seed_scores(right or 1), losses=LOSSES)
    trials += final("ia3", seed_scores(right or 1), losses=(1.3, 0.75, 0.5))
    assert found(trials, ("lora", "ia3")) == []


def test_one_differing_seed_is_no_identity() -> None:
    trials = final("lora", seed_scores(), losses=LOSSES) + final(
        "ia3", seed_scores(), losses=LOSSES
    )
    trial, result = trials[-1]
    trials[-1] = (trial, make_result(trial, test=hits(50, 200), losses=LOSSES))
    assert found(trials, ("lora", "ia3")) == []


def test_same_weights_are_called_out() -> None:
    """Equal weights are identical even if a reading of the losses differs."""
    trials = final("lora", seed_scores(), losses=LOSSES) + final(
        "dora", seed_scores(119), losses=(1.0, 0.5)
    )
    weights = {trial.id: str(trial.seed) for trial, _ in trials}
    (group,) = found(trials, ("lora", "dora"), weights=weights)
    assert group["same"] == "weights"
    some = {trial.id: str(i) for i, (trial, _) in enumerate(trials)}
    assert found(trials, ("lora", "dora"), weights=some) == []


@pytest.mark.parametrize(("wrong", "identical"), [(12, True), (3, False)])
def test_answers_count_without_curves(wrong: int, identical: bool) -> None:
    """Without curves, the same wrong answers are evidence if there are enough different ones."""
    answers = [f"wrong {i}" for i in range(wrong)] + ["yes"] * (40 - wrong)
    scores = [0.0] * wrong + [1.0] * (40 - wrong)
    trials = [t for m in ("lora", "ia3") for t in final(m, {1: scores})]
    trials = with_test(trials, scores, answers)
    assert bool(found(trials, ("lora", "ia3"))) is identical


def test_continuous_scores_count_without_curves() -> None:
    """The same unrounded score of every item is no coincidence."""
    scores = [0.001 * i * i for i in range(40)]
    trials = [t for m in ("lora", "ia3") for t in final(m, {1: scores})]
    trials = with_test(trials, scores, ["x"] * 40)
    assert found(trials, ("lora", "ia3"))[0]["same"] == "answers"


def test_setting_without_effect() -> None:
    """Two learning rates with the same losses: the table of rates was not applied."""
    trials = [
        (t := make_trial("mine", rate), make_result(t, losses=LOSSES)) for rate in (1e-4, 1e-3)
    ]
    trials += final("mine", seed_scores(), losses=(9.0, 8.0))
    made = summarise_checked(make_record(trials, ("mine",)))
    (warning,) = [w for w in made["warnings"] if w.endswith("[setting-not-applied]")]
    assert "identical losses with learning rate 0.0001 and with learning rate 0.001" in warning
