"""Cuts and samples of a classification: every label stays in train, and what was done is said."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import configs

from bakeoff.core.errors import PreflightError
from bakeoff.data import splits
from bakeoff.study.config import parse_spec
from bakeoff.study.setup.splits import read_splits
from bakeoff.study.setup.validate_data import validate_rows
from bakeoff.tasks import task_class
from bakeoff.tasks.classify import label_order

FRACTIONS = {"train": 0.6, "validation": 0.15, "test": 0.25}


def label_of(row: Any) -> str | None:
    return str(row["label"]) if row.get("label") is not None else None


def long_tail(seed: int) -> list[dict[str, str]]:
    """Twenty labels, the rarest with one row."""
    draw = random.Random(seed)
    rows = [
        {"text": f"row {n} of {i}", "label": f"intent_{i}", "group": f"g{draw.randrange(40)}"}
        for i in range(20)
        for n in range(max(1, 60 >> i))
    ]
    draw.shuffle(rows)
    return rows


def labels(rows: list[dict[str, str]]) -> set[str]:
    return {row["label"] for row in rows}


@pytest.mark.parametrize("group", [None, "group"])
@pytest.mark.parametrize("seed", range(8))
def test_train_has_every_label(seed: int, group: str | None) -> None:
    """Whatever the random cut does, train gets a row of each label; groups stay whole."""
    rows = long_tail(seed)
    cut = splits.split_rows(rows, group, FRACTIONS, random.Random(seed), label_of)
    assert labels(cut.rows["train"]) == labels(rows)
    assert sum(map(len, cut.rows.values())) == len(rows)
    if group is not None:
        homes = [{row["group"] for row in part} for part in cut.rows.values()]
        assert sum(map(len, homes)) == len(set.union(*homes))
    plain = splits.split_rows(rows, group, FRACTIONS, random.Random(seed)).rows
    lost = labels(rows) - labels(plain["train"])
    assert bool(cut.notes) == bool(lost)
    if lost:
        assert f"{len(lost)} label" in cut.notes[0]
    # only what came back to train has moved
    moved = [row for row in cut.rows["train"] if row not in plain["train"]]
    assert all(row in cut.rows["train"] for row in plain["train"])
    assert len({row["group"] for row in moved}) <= len(lost) if group else len(moved) == len(lost)


def test_cut_is_the_former_one_if_no_label_is_lost() -> None:
    """A study that lost no label has the same rows as ever."""
    rows = [{"text": str(i), "label": "ab"[i % 2]} for i in range(60)]
    before = splits.split_rows(rows, None, FRACTIONS, random.Random(0)).rows
    after = splits.split_rows(rows, None, FRACTIONS, random.Random(0), label_of)
    assert after == splits.LabelledRows(before, ())


def test_single_row_of_a_label_never_leaves_train() -> None:
    """Labels of one row each: all of them are in train, also with one row in each group."""
    rows = [{"text": str(i), "label": str(i % 30), "group": str(i)} for i in range(45)]
    for group in (None, "group"):
        cut = splits.split_rows(rows, group, FRACTIONS, random.Random(3), label_of)
        assert len(labels(cut.rows["train"])) == 30


def test_limit_keeps_every_label() -> None:
    """A sample of train has its size and all labels; frequent labels give up the places."""
    rows = long_tail(0)
    sample = splits.sample_rows(rows, 30, random.Random(1))
    assert labels(sample) != labels(rows)
    full, (note,) = splits.add_missing_labels(sample, rows, label_of)
    assert len(full) == 30
    assert labels(full) == labels(rows)
    assert full == sorted(full, key=rows.index)
    assert f"{len(labels(rows) - labels(sample))} labels" in note
    assert splits.add_missing_labels(full, rows, label_of) == (full, ())


def test_limit_below_number_of_labels_refused() -> None:
    """A sample with fewer rows than labels cannot have them all; the hint's number works."""
    rows = long_tail(0)
    with pytest.raises(PreflightError) as refused:
        splits.add_missing_labels(splits.sample_rows(rows, 10, random.Random(1)), rows, label_of)
    assert refused.value.code == "limit-below-labels"
    assert "data.limit.train = 20" in refused.value.try_
    sample = splits.sample_rows(rows, 20, random.Random(1))
    full, _ = splits.add_missing_labels(sample, rows, label_of)
    assert Counter(map(label_of, full)) == Counter(labels(rows))


def study_splits(tmp_path: Path, rows: list[Any], kind: str = "classify", **data: Any) -> Any:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = parse_spec(configs.values(data={"train": "t.jsonl", **data}, task={"kind": kind}))
    return spec, read_splits(spec, tmp_path)


def test_study_with_rare_labels_is_not_refused(tmp_path: Path) -> None:
    """A file with a long tail of labels is cut so that it can be used, and the cut says so."""
    spec, found = study_splits(tmp_path, long_tail(5))
    options, _ = validate_rows(spec, tmp_path, task_class("classify"), found)
    assert len(options["labels"]) == 20
    assert any("without a row in train" in note for note in found.notes)


def test_limit_of_a_study(tmp_path: Path) -> None:
    """`data.limit` keeps every label too; other tasks are sampled as ever."""
    _, found = study_splits(tmp_path, long_tail(5), limit={"train": 25})
    assert len(found.rows["train"]) == 25
    assert len(labels(found.rows["train"])) == 20
    chats = [{"prompt": row["text"], "completion": row["label"]} for row in long_tail(5)]
    _, plain = study_splits(tmp_path, chats, "sft", limit={"train": 25})
    assert plain.notes == ()


def test_label_missing_in_own_train_file_stays_fatal(tmp_path: Path) -> None:
    """Splits of the user's own are not changed: the error names rows, and one file would do."""
    (tmp_path / "test.jsonl").write_text('{"text": "x", "label": "other"}\n')
    rows = [{"text": str(i), "label": "ab"[i % 2]} for i in range(60)]
    spec, found = study_splits(tmp_path, rows, test="test.jsonl")
    with pytest.raises(PreflightError) as refused:
        validate_rows(spec, tmp_path, task_class("classify"), found)
    assert refused.value.code == "label-not-in-train"
    assert "line 1 of test.jsonl" in str(refused.value)
    # following the hint: all rows in one file
    spec, found = study_splits(tmp_path, [*rows, {"text": "x", "label": "other"}])
    options, _ = validate_rows(spec, tmp_path, task_class("classify"), found)
    assert options["labels"] == ["a", "b", "other"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({str(i) for i in range(12)}, [str(i) for i in range(12)]),
        ({"10", "-1", "2"}, ["-1", "2", "10"]),
        ({"1.0", "10.0", "2.0"}, ["1.0", "2.0", "10.0"]),
        ({"10", "9", "b"}, ["10", "9", "b"]),
        ({"1.5", "10", "9"}, ["1.5", "10", "9"]),
        ({"²", "10", "9"}, ["10", "9", "²"]),
        ({"pos", "neg"}, ["neg", "pos"]),
    ],
)
def test_label_order(given: set[str], expected: list[str]) -> None:
    """Whole numbers are numbered by value, so that output k is label k; all else as text."""
    assert label_order(given) == expected


def test_integer_labels_number_the_outputs(tmp_path: Path) -> None:
    """Integer labels 0 to 11: the model's `id2label` has label k at output k."""
    rows = [{"text": str(i), "label": i % 12} for i in range(120)]
    spec, found = study_splits(tmp_path, rows)
    options, _ = validate_rows(spec, tmp_path, task_class("classify"), found)
    arguments = task_class("classify")(options).model_arguments()
    assert arguments["id2label"] == {i: str(i) for i in range(12)}
