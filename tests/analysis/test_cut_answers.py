"""Answers that the limit of new tokens cut off: counted for each trial, kept, warned of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers.records import final, hits, make_record
from helpers.summaries import row, summarise_checked

from bakeoff.core.record import StudyRecord
from bakeoff.core.results import TrialResult
from bakeoff.engine.generation.generate import GenerationRequest
from bakeoff.study.storage.database import Reader, Writer


def study(cut: dict[str, int | None]) -> StudyRecord:
    """Return a study of 100 items and 3 seeds, with so many answers cut in each trial."""
    trials = []
    for name, count in cut.items():
        for trial, result in final(name, {seed: hits(60, 100) for seed in range(3)}):
            assert result is not None
            test = dataclasses.replace(result.splits["test"], cut=count)
            splits = {**result.splits, "test": test}
            trials.append((trial, dataclasses.replace(result, splits=splits)))
    return make_record(trials, tuple(cut))


@pytest.mark.parametrize(("cut", "warned"), [(0, False), (1, False), (24, True)])
def test_cut_answers_are_counted_and_warned_of(cut: int, warned: bool) -> None:
    """The report has the count of each seed, and a warning from a share of 2 % on."""
    report = summarise_checked(study({"lora": cut, "ia3": 0}))
    assert [seed["cut_answers"] for seed in row(report, "lora")["seeds"]] == [cut] * 3
    found = [w for w in report["warnings"] if "[answers-cut]" in w]
    assert bool(found) == warned
    if warned:
        assert "LoRA" in found[0]
        assert "72 of 300, 24 %" in found[0]


def test_no_count_without_generation() -> None:
    """Where nothing is generated there is no count."""
    report = summarise_checked(study({"lora": None, "ia3": None}))
    assert all("cut_answers" not in seed for seed in row(report, "ia3")["seeds"])


def test_count_is_kept(tmp_path: Path) -> None:
    """The database and JSON keep the count; results of earlier versions have none."""
    record = study({"lora": 7})
    with Writer(tmp_path / "study.db") as store:
        store.add_trials([trial for trial, _ in record.trials])
        for _, result in record.trials:
            assert result is not None
            store.save(result)
    with Reader(tmp_path / "study.db") as reader:
        kept = [result for _, result in reader.trials()]
    assert [result and result.splits["test"].cut for result in kept] == [7, 7, 7]
    value = record.trials[0][1].to_json()  # type: ignore[union-attr]
    del value["splits"]["test"]["cut"]
    assert TrialResult.from_json(value).splits["test"].cut is None


def test_which_completion_is_cut() -> None:
    """A completion is cut if the limit ended it, not its end token."""
    request = GenerationRequest([], end_tokens=(2,), max_new_tokens=3, pad_id=0)
    cases = {(5, 2): False, (5, 6, 2): False, (5, 6, 7): True, (): False}
    assert {tokens: request.is_cut(tokens) for tokens in cases} == cases
    assert request.trim([5, 2, 9]) == [5, 2]
    assert request.trim([5, 6, 7, 2]) == [5, 6, 7]
