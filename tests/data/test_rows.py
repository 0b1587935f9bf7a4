"""Rows in: formats, splits, and every way in which a file can be wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakeoff.core.errors import PreflightError
from bakeoff.data import rows as data_rows
from bakeoff.data import splits as data_splits
from bakeoff.data.sources.files import read_data_file
from bakeoff.data.splits import Splits
from bakeoff.study.config import parse_spec
from bakeoff.study.setup.splits import read_splits
from bakeoff.testing.tiny import write_jsonl


def code(error: pytest.ExceptionInfo[PreflightError]) -> str:
    return error.value.code


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"text": "x\\u2028y", "label": "1"}\n\n{"text": "z", "label": "2"}\n'),
        ("a.json", '[{"text": "x\\u2028y", "label": "1"}, {"text": "z", "label": "2"}]'),
        ("a.csv", 'text,label\r\n"x\u2028y",1\r\nz,2\r\n'),
        ("a.tsv", "\ufefftext\tlabel\nx\u2028y\t1\nz\t2\n"),
    ],
)
def test_formats_keep_line_separators(tmp_path: Path, name: str, text: str) -> None:
    """Every text format keeps U+2028 within a field."""
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    rows = read_data_file(tmp_path / name).rows
    assert rows == [{"text": "x\u2028y", "label": "1"}, {"text": "z", "label": "2"}]


def test_invalid_utf8_names_line(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are reported with their line."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(PreflightError) as error:
        data_rows.read_rows(tmp_path / "a.jsonl")
    assert code(error) == "data-not-utf8"
    assert "0xe9 in line 2" in error.value.cause


@pytest.mark.parametrize(
    ("name", "text", "expected", "says"),
    [
        ("a.jsonl", '{"text": 1}\n{broken\n', "data-broken", "line 2"),
        ("a.jsonl", "[1]\n", "data-broken", "line 1 is not an object"),
        ("a.json", '{"text": 1}', "data-broken", "not a list"),
        ("a.jsonl", "\n", "empty-split", "no rows"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "data-broken", "line 3 has more cells"),
        ("a.csv", "a,b\n1,2\n1\n", "data-broken", "line 3 has fewer cells"),
        ("a.xlsx", "x", "data-format", ".xlsx"),
    ],
)
def test_broken_files_are_refused(
    tmp_path: Path, name: str, text: str, expected: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PreflightError) as error:
        read_data_file(tmp_path / name)
    assert code(error) == expected
    assert says in error.value.cause


def test_missing_file_refused(tmp_path: Path) -> None:
    """A missing file is refused."""
    with pytest.raises(PreflightError) as error:
        data_rows.read_rows(tmp_path / "none.jsonl")
    assert code(error) == "data-not-found"


@given(
    st.lists(st.integers(0, 9), min_size=12, max_size=80),
    st.integers(0, 5),
)
def test_split_keeps_groups_and_rows(groups: list[int], seed: int) -> None:
    """Groups stay together and no row is lost."""
    rows = [{"group": g, "n": i} for i, g in enumerate(groups)]
    fractions = {"train": 0.6, "validation": 0.15, "test": 0.25}
    splits = data_splits.split_rows(rows, "group", fractions, random.Random(seed)).rows
    homes = {s: {r["group"] for r in part} for s, part in splits.items()}
    assert not homes["train"] & homes["test"]
    assert not homes["train"] & homes["validation"]
    assert not homes["validation"] & homes["test"]
    assert sorted(r["n"] for part in splits.values() for r in part) == list(range(len(rows)))


def test_split_hash_independent_of_writing(tmp_path: Path) -> None:
    """Frozen splits have the same hash before and after writing."""
    rows = [{"b": "ü", "a": 1}]
    written = data_rows.write_split(tmp_path / "x.jsonl", rows)
    assert (
        written
        == data_rows.canonical_digest(rows)
        == data_rows.canonical_digest([{"a": 1, "b": "ü"}])
    )
    assert (tmp_path / "x.jsonl").read_text(encoding="utf-8") == '{"a": 1, "b": "ü"}\n'
    assert data_rows.read_rows(write_jsonl(tmp_path / "y.jsonl", rows)) == rows


def places(path: Path) -> list[tuple[str, str, int]]:
    return [
        tuple(data_rows.place_of(r, "train", n)) for n, r in enumerate(read_data_file(path).rows)
    ]


def test_rows_keep_line_numbers(tmp_path: Path) -> None:
    """Rows keep their place in the file."""
    (tmp_path / "a.jsonl").write_text('{"t": 1}\n\n\n{"t": 2}\n')
    assert places(tmp_path / "a.jsonl") == [("a.jsonl", "line", 1), ("a.jsonl", "line", 4)]
    (tmp_path / "a.json").write_text('[{"t": 1},\n\n{"t": 2}]')
    assert places(tmp_path / "a.json") == [("a.json", "row", 1), ("a.json", "row", 2)]
    (tmp_path / "a.csv").write_text('t,u\n"one\nmore",x\n\n2,"y\n\nz"\n3,x\n')
    assert [n for _, _, n in places(tmp_path / "a.csv")] == [2, 5, 8]


def test_row_places_survive_split_unfrozen(tmp_path: Path) -> None:
    """A row's place survives sampling and splitting and is never frozen."""
    rows = data_rows.read_rows(write_jsonl(tmp_path / "a.jsonl", [{"n": n} for n in range(1, 41)]))
    splits = data_splits.split_rows(rows, None, {"train": 0.5, "test": 0.5}, random.Random(1)).rows
    kept = data_splits.sample_rows(splits["test"], 7, random.Random(2))
    assert [data_rows.place_of(r, "test", 0).number for r in kept] == [r["n"] for r in kept]
    assert data_rows.canonical_digest(kept) == data_rows.canonical_digest(
        [{"n": r["n"]} for r in kept]
    )
    data_rows.write_split(tmp_path / "test.jsonl", kept)
    frozen = data_rows.read_rows(tmp_path / "test.jsonl")
    assert data_rows.place_of(frozen[2], "test", 2) == ("test.jsonl", "line", 3)
    assert data_rows.place_of({"n": 1}, "test", 2) == ("the test split", "row", 3)


@pytest.mark.parametrize(
    ("name", "raw", "expected", "says"),
    [
        ("a.jsonl", b'{"t": 1}\n{\n[]\n{"t": 2}\nx\n', "data-broken", "broken too: lines 3 and 5"),
        ("a.jsonl", b'{"t": ' + b"[" * 100_000 + b"\n", "data-broken", "line 1: "),
        ("a.jsonl", b'{"t": ' + b"9" * 5000 + b"}\n", "data-broken", "line 1: "),
        ("a.jsonl", b"\xe9\n\xe9\nok\n\xe9\n", "data-not-utf8", "0xe9 in lines 1, 2 and 4"),
        ("a.csv", b"\xef\xbb\xbf\xef\xbb\xbft,l\na,b\n", "data-bom", "in line 1"),
        ("a.csv", b"t,\xef\xbb\xbfl\na,b\n", "data-bom", "in line 1"),
        ("a.csv", b"t,l\na,b\n\xef\xbb\xbft,l\n", "data-bom", "in line 3"),
        ("a.jsonl", b'{"t": 1}\n\xef\xbb\xbf{"t": 2}\n', "data-bom", "in line 2"),
        ("a.csv", b"t,l,t\na,b,c\n", "duplicate-column", "'t' more than once"),
        ("a.csv", b"t,l\n1,2\n1,2,3\n1,2\n1,2,3\n", "data-broken", "broken too: line 5"),
    ],
)
def test_broken_lines_grouped_by_kind(
    tmp_path: Path, name: str, raw: bytes, expected: str, says: str
) -> None:
    """All broken lines of a kind are reported at once."""
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(PreflightError) as error:
        read_data_file(tmp_path / name)
    assert code(error) == expected
    assert says in error.value.cause


def test_long_csv_cell(tmp_path: Path) -> None:
    """A cell may exceed the field limit of Python's csv module."""
    (tmp_path / "a.csv").write_text(f"t,l\n{'x' * 200_000},b\n")
    assert len(read_data_file(tmp_path / "a.csv").rows[0]["t"]) == 200_000


def _splits(folder: Path, rename: dict[str, str], **rows: list[dict[str, str]]) -> Splits:
    for split, values in rows.items():
        write_jsonl(folder / f"{split}.jsonl", values)
    named = {split: f"{split}.jsonl" for split in rows}
    value = {
        "name": "n",
        "base": {"model": "m"},
        "data": {**named, "rename": rename},
        "task": {"kind": "sft"},
        "methods": {"contenders": ["ia3"]},
    }
    return read_splits(parse_spec(value), folder)


OURS, THEIRS = [{"query": "1", "response": "a"}], [{"question": "2", "answer": "b", "id": "7"}]
NAMES = {"question": "query", "answer": "response"}


def test_rename_applies_to_present_columns(tmp_path: Path) -> None:
    """Columns are renamed in the splits that have them."""
    splits = _splits(tmp_path, NAMES, train=OURS, validation=THEIRS, test=THEIRS)
    assert splits.rows["train"] == OURS
    assert splits.rows["test"] == [{"query": "2", "response": "b", "id": "7"}]
    assert splits.place("test", 0).file == "test.jsonl", "its place is kept"


@pytest.mark.parametrize(
    ("rename", "expected", "says"),
    [
        ({"question": "query", "id": "answer"}, "rename-taken", "one 'answer' of several columns"),
        ({"question": "x", "id": "x"}, "rename-taken", "one 'x' of several.*row.*of test.jsonl"),
        ({"qestion": "query"}, "column-missing", "No row of any split has the column 'qestion'"),
    ],
)
def test_bad_rename_refused(
    tmp_path: Path, rename: dict[str, str], expected: str, says: str
) -> None:
    """A rename that loses a column or matches none is refused."""
    with pytest.raises(PreflightError, match=f"(?s){says}") as error:
        _splits(tmp_path, rename, train=OURS, validation=OURS, test=THEIRS)
    assert code(error) == expected
