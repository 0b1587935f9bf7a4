"""Labels: one form for equal values, the names of numbers, and the order of the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from bakeoff.data.issues import Place
from bakeoff.data.labels import sort_labels, unify_labels
from bakeoff.data.rows import LocatedRow, place_of
from bakeoff.study.config import parse_spec
from bakeoff.study.setup.splits import read_splits
from bakeoff.study.setup.validate_data import validate_rows
from bakeoff.tasks import task_class
from bakeoff.testing.tiny import write_jsonl


def unified(train: list[Any], test: list[Any] | None = None) -> tuple[list[Any], list[Any], str]:
    splits = {"train": [{"label": v} for v in train], "test": [{"label": v} for v in test or ()]}
    rows, notes = unify_labels(splits, "label")
    return [r["label"] for r in rows["train"]], [r["label"] for r in rows["test"]], " ".join(notes)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([1, 0, 1.0], [], [1, 0, 1]),
        ([1.0, 0.0], [0, 1], [1, 0, 0, 1]),
        (["1", "0"], [1.0, 0.0], ["1", "0", "1", "0"]),
        (["1.0", "2"], ["1.00"], [1, "2", 1]),
        ([True, False, True], ["true", "FALSE"], [True, False, True, True, False]),
    ],
)
def test_one_form_for_equal_labels(train: list[Any], test: list[Any], expected: list[Any]) -> None:
    """Forms of one number or boolean are one label, in all splits, and said."""
    rows, others, said = unified(train, test)
    assert [str(v) for v in (*rows, *others)] == [str(v) for v in expected]
    assert "one label" in said


@pytest.mark.parametrize(
    "labels",
    [[1.0, 2.0], ["1.10", "1.1"], ["01", "1"], ["pos", "Pos"], [True, 1], [0.5, "1"], [None, ""]],
)
def test_other_labels_stay(labels: list[Any]) -> None:
    """Uniform labels, codes, versions and words are left as they are."""
    rows, _, said = unified(labels)
    assert [(type(v), v) for v in rows] == [(type(v), v) for v in labels]
    assert not said


def test_unified_rows_keep_their_place() -> None:
    row = LocatedRow({"label": 1.0, "text": "a"}, Place("f.jsonl", "line", 7))
    rows, _ = unify_labels({"train": [row, {"label": 1, "text": "b"}]}, "label")
    assert rows["train"][0] == {"label": 1, "text": "a"}
    assert place_of(rows["train"][0], "train", 0).number == 7


def test_order_of_named_labels() -> None:
    assert sort_labels(["Business", "World"], ["World", "Sports", "Business"]) == [
        "World", "Business",
    ]  # fmt: skip
    assert sort_labels(["b", "a"], ["a"]) == ["b", "a"]


def study(data: dict[str, Any]) -> Any:
    return parse_spec(
        {
            "name": "s", "base": {"model": "m"}, "data": data, "task": {"kind": "classify"},
            "methods": {"contenders": ["ia3"]},
        }
    )  # fmt: skip


def test_label_names_reach_the_task(tmp_path: Path) -> None:
    """Numbered labels get their names, in the order of the numbers, also after a rename."""
    features = datasets.Features(
        {"t": datasets.Value("string"), "y": datasets.ClassLabel(names=["World", "Sports", "Art"])}
    )
    values = {"t": [f"text {i}" for i in range(60)], "y": [i % 3 for i in range(60)]}
    datasets.Dataset.from_dict(values, features=features).to_parquet(tmp_path / "a.parquet")
    spec = study({"train": "a.parquet", "rename": {"t": "text", "y": "label"}})
    splits = read_splits(spec, tmp_path)
    assert splits.origins["test"]["labels"] == {"label": ["World", "Sports", "Art"]}
    assert "0 = World" in splits.notes[0]
    options, _ = validate_rows(spec, tmp_path, task_class("classify"), splits)
    assert options["labels"] == ["World", "Sports", "Art"]


def test_label_forms_in_a_study(tmp_path: Path) -> None:
    """A test file with 1.0 for 1 is no test file with unknown labels."""
    texts = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
    write_jsonl(tmp_path / "train.jsonl", texts)
    others = [{**row, "text": f"other {i}", "label": float(i % 2)} for i, row in enumerate(texts)]
    write_jsonl(tmp_path / "test.jsonl", others)
    spec = study({"train": "train.jsonl", "test": "test.jsonl"})
    splits = read_splits(spec, tmp_path)
    options, issues = validate_rows(spec, tmp_path, task_class("classify"), splits)
    assert options["labels"] == ["0", "1"]
    assert "mixed-types" not in {issue.code for issue in issues}
    assert any("1, 1.0 are one label, 1" in note for note in splits.notes)
