"""Files as other tools write them: compressed, other encodings, shapes of JSON, Arrow."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import feather, parquet

from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError, UsageError
from bakeoff.data.rows import FileRows
from bakeoff.data.sources import arrow, compression, files
from bakeoff.data.sources.files import read_data_file
from bakeoff.study.config import parse_spec

ROWS = [{"text": "It’s “fine”", "label": "pos"}, {"text": "très bad", "label": "neg"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)


def read(path: Path, encoding: str | None = None) -> FileRows:
    return read_data_file(path, encoding)


def refused(path: Path, encoding: str | None = None) -> BakeoffError:
    with pytest.raises(BakeoffError) as error:
        read_data_file(path, encoding)
    return error.value


def file(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zipped(members: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return raw.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue().to_pybytes())


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


# --- compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(("kind", "text"), [("jsonl", JSONL), ("CSV", CSV)])
def test_compressed_files(suffix: str, kind: str, text: str, tmp_path: Path) -> None:
    path = file(tmp_path, f"rows.{kind}{suffix}", PACK[suffix](text.encode()))
    assert read(path).rows == ROWS
    assert refused(file(tmp_path, f"half.jsonl{suffix}", path.read_bytes()[:-9])).code in (
        "data-unreadable",
        "data-broken",
    )


@pytest.mark.parametrize("name", ["rows.zip", "rows.csv.zip", "Rows.ZIP"])
def test_zip_of_one_file(name: str, tmp_path: Path) -> None:
    members = {"../../evil/rows.csv": CSV.encode(), "__MACOSX/._rows.csv": b"x"}
    assert read(file(tmp_path, name, zipped(members))).rows == ROWS
    assert not (tmp_path.parent / "evil").exists()


def test_zip_of_several_files_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.zip", zipped({"a.csv": b"x", "b.csv": b"y"}))
    error = refused(path)
    assert (error.code, "2 files: a.csv, b.csv" in error.cause) == ("data-format", True)
    assert refused(file(tmp_path, "none.zip", zipped({}))).code == "data-format"
    inside = file(tmp_path, "xlsx.zip", zipped({"a.xlsx": b"x"}))
    assert refused(inside).code == "data-format"


@pytest.mark.parametrize("suffix", [*PACK, ".zip"])
def test_compressed_size_is_limited(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size limit holds for what is decompressed."""
    content = JSONL.encode() + b"\n" * 5_000_000
    raw = zipped({"a.jsonl": content}) if suffix == ".zip" else PACK[suffix](content)
    path = file(tmp_path, f"rows.jsonl{suffix}", raw)
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(files, "DATA_BYTES", 1_000_000)
    assert refused(path).code == "data-too-large"


def test_zstd_without_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, "rows.jsonl.zst", zstd(JSONL.encode()))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = refused(path)
    assert isinstance(error, EnvironmentProblem)
    assert "pip install 'bakeoff[parquet]'" in error.try_


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("a.xlsx", b"PK\x03\x04", "CSV UTF-8"),
        ("a.pkl", b"\x80\x04", "does not unpickle"),
        ("a.tar.gz", b"\x1f\x8b", "unpack it"),
        ("a.gz", b"\x1f\x8b", "rows.jsonl.gz"),
        ("a.txt", b"x", "one JSON object a line"),
        ("a.parquet.gz", b"\x1f\x8b", "decompress it"),
        ("a.csv", gzip.compress(b"a,b\n1,2\n", mtime=0), "rename it to a.csv.gz"),
        ("a.csv", b"PK\x03\x04....", "rename it"),
        ("a.jsonl", b"PAR1....PAR1", "rename it to a.parquet"),
    ],
)
def test_other_formats_have_advice(name: str, content: bytes, hint: str, tmp_path: Path) -> None:
    error = refused(file(tmp_path, name, content))
    assert (error.code, hint in error.try_) == ("data-format", True), error.try_


@pytest.mark.parametrize(
    "name", ["a.JSONL", "a.ndjson", "a.Json", "a.CSV", "a.TSV", "a.tab", "a.PARQUET"]
)
def test_suffixes_of_any_case(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.lower().endswith("parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        texts = {"csv": CSV, "tsv": CSV.replace(",", "\t"), "tab": CSV.replace(",", "\t")}
        kind = path.suffix[1:].lower()
        file(tmp_path, name, texts.get(kind, json.dumps(ROWS) if kind == "json" else JSONL))
    assert read(path).rows == ROWS


# --- encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark_decides(encoding: str, tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", CSV.encode(encoding))
    assert read(path).rows == ROWS
    assert read(path, "cp1252").rows == ROWS
    assert bool(read(path).notes) == (encoding != "utf-8-sig")


def test_windows_encoding_asked(tmp_path: Path) -> None:
    """Windows-1252 is named in the hint, and read when it is followed."""
    path = file(tmp_path, "a.csv", CSV.encode("cp1252"))
    error = refused(path)
    assert (error.code, 'encoding = "cp1252"' in error.try_) == ("data-not-utf8", True)
    assert read(path, "cp1252").rows == ROWS


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("gb18030", "这部电影很好看"), ("shift_jis", "とても良い映画"), ("cp1251", "хороший фильм")],
)
def test_no_western_encoding_for_other_scripts(encoding: str, text: str, tmp_path: Path) -> None:
    """The hint does not claim that Chinese, Japanese or Russian text is Western."""
    path = file(tmp_path, "a.csv", f"text,label\n{text},pos\n".encode(encoding))
    error = refused(path)
    assert error.code == "data-not-utf8"
    assert "cp1252" not in error.try_
    assert read(path, encoding).rows == [{"text": text, "label": "pos"}]


def test_encoding_that_does_not_fit(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", b"text,label\nok,a\n\x81,b\n")
    error = refused(path, "cp1252")
    assert "0x81 in line 3" in error.cause
    mixed = file(tmp_path, "b.csv", "text,label\né,a\n".encode() + b"caf\xe9,b\n")
    assert "Its other lines are" in refused(mixed).cause


def test_utf8_beside_another_encoding(tmp_path: Path) -> None:
    """A UTF-8 file stays UTF-8 where another file of the study needs an encoding; it is said."""
    got = read(file(tmp_path, "a.csv", CSV), "cp1252")
    assert got.rows == ROWS
    assert "not applied" in got.notes[0]


def test_nul_bytes(tmp_path: Path) -> None:
    error = refused(file(tmp_path, "a.csv", CSV.encode("utf-16-le")))
    assert 'encoding = "utf-16-le"' in error.try_
    assert read(tmp_path / "a.csv", "utf-16-le").rows == ROWS
    error = refused(file(tmp_path, "b.csv", b"text,label\n" + b"fine,pos\n" * 40 + b"a\0b,neg\n"))
    assert (error.code, "line 42" in error.cause) == ("data-nul", True)


@pytest.mark.parametrize("name", ["nope", "base64", "rot13", "idna", "unicode_escape", "mbcs"])
def test_unknown_encoding(name: str, study_values: dict[str, Any]) -> None:
    study_values["data"] = {"train": "a.csv", "encoding": name}
    with pytest.raises(UsageError, match=r"data.encoding: '.*' is no encoding"):
        parse_spec(study_values)


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", JSONL, "on each line"),
        ("a.json", json.dumps({"data": ROWS}), "under 'data'"),
        ("a.json", json.dumps({"version": "1.1", "rows": ROWS}), "left out: version"),
        ("a.jsonl", json.dumps(ROWS, indent=1), "one JSON list"),
        ("a.jsonl", JSONL.replace("\n", "\r"), ""),
        ("a.jsonl", JSONL.replace("\n", "\r\n").rstrip(), ""),
    ],
)
def test_json_shapes(name: str, text: str, said: str, tmp_path: Path) -> None:
    got = read(file(tmp_path, name, text))
    assert got.rows == ROWS
    assert said in " ".join(got.notes)


SQUAD = {"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}
CHATS = {"data": [{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}]}


@pytest.mark.parametrize(
    ("name", "text", "code", "says"),
    [
        ("a.json", json.dumps(SQUAD), "data-nested", "data -> paragraphs -> qas"),
        ("a.json", json.dumps({"train": ROWS, "test": ROWS}), "data-broken", "train, test"),
        ("a.json", json.dumps({"text": ["a", "b"], "label": [0, 1]}), "data-broken", "columns"),
        ("a.json", '{"text": "a"}', "data-broken", "not a list"),
        ("a.json", "3", "data-broken", "not a list"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', "data-broken", "'text' occurs more than once"),
        ("a.json", '[{"m": {"r": 1, "r": 2}}]', "data-broken", "'r' occurs more than once"),
        ("a.json", JSONL + '{"text": ', "data-broken", "line 3"),
    ],
)
def test_json_refused(name: str, text: str, code: str, says: str, tmp_path: Path) -> None:
    error = refused(file(tmp_path, name, text))
    assert (error.code, says in error.cause) == (code, True), error.cause


def test_nested_chats_are_rows(tmp_path: Path) -> None:
    assert read(file(tmp_path, "a.json", json.dumps(CHATS))).rows == CHATS["data"]


# --- Parquet and Arrow ---------------------------------------------------------------------------


def as_parquet(folder: Path, columns: dict[str, Any], **more: Any) -> Path:
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.table(columns), path, **more)
    return path


def test_parquet_types_become_json(tmp_path: Path) -> None:
    """UUIDs, maps, dictionaries, nanoseconds and nested values are read as JSON."""
    own = uuid.UUID(int=7)
    struct = pyarrow.struct([("raw", pyarrow.binary()), ("name", pyarrow.string())])
    path = as_parquet(
        tmp_path,
        {
            "id": pyarrow.array([own.bytes], pyarrow.uuid()),
            "map": pyarrow.array(
                [[("a", 1), ("b", None)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())
            ),
            "numbers": pyarrow.array([[(1, "x")]], pyarrow.map_(pyarrow.int64(), pyarrow.string())),
            "category": pyarrow.array(["pos"]).dictionary_encode(),
            "large": pyarrow.array(["text"], pyarrow.large_string()),
            "doc": pyarrow.array([{"raw": b"\x00", "name": "n"}], struct),
            "bytes": pyarrow.array([b"\x00"], pyarrow.binary()),
            "list": pyarrow.array([[[1], None, []]], pyarrow.list_(pyarrow.list_(pyarrow.int64()))),
            "when": pyarrow.array([0], pyarrow.timestamp("ns")),
            "nothing": pyarrow.nulls(1),
        },
    )
    got = read(path)
    assert got.rows == [
        {
            "id": str(own), "map": {"a": 1, "b": None}, "numbers": [[1, "x"]], "category": "pos",
            "large": "text", "doc": {"name": "n"}, "list": [[1], None, []],
            "when": "1970-01-01T00:00:00", "nothing": None,
        }
    ]  # fmt: skip
    assert got.notes == ("rows.parquet has columns of bytes, left out: doc.raw, bytes.",)
    json.dumps(got.rows)


def test_parquet_uuid_without_arrow_schema(tmp_path: Path) -> None:
    """A UUID column of another tool, which stores no Arrow schema, is text too."""
    values = pyarrow.array([uuid.UUID(int=n).bytes for n in (1, 2)], pyarrow.uuid())
    path = as_parquet(tmp_path, {"id": values}, store_schema=False)
    assert [row["id"] for row in read(path).rows] == [str(uuid.UUID(int=n)) for n in (1, 2)]


def test_parquet_map_with_a_key_twice(tmp_path: Path) -> None:
    maps = pyarrow.array([[("a", 1), ("a", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    assert "a key twice" in refused(as_parquet(tmp_path, {"map": maps})).cause


FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["World", "Sports", "Business"]),
        "tags": datasets.List(datasets.ClassLabel(names=["x", "y"])),
        "inner": {"kind": datasets.ClassLabel(names=["u", "v"])},
    }
)
NUMBERED = {
    "text": ["a", "b", "c"], "label": [2, 0, -1], "tags": [[0, 1], [], [1]],
    "inner": [{"kind": 1}, {"kind": 0}, {"kind": 0}],
}  # fmt: skip
NAMED = [
    {"text": "a", "label": "Business", "tags": ["x", "y"], "inner": {"kind": "v"}},
    {"text": "b", "label": "World", "tags": [], "inner": {"kind": "u"}},
    {"text": "c", "label": None, "tags": ["y"], "inner": {"kind": "u"}},
]


def test_label_names_in_parquet(tmp_path: Path) -> None:
    """Numbered labels get the names that `datasets` wrote beside them; -1 is no label."""
    datasets.Dataset.from_dict(NUMBERED, features=FEATURES).to_parquet(tmp_path / "a.parquet")
    got = read(tmp_path / "a.parquet")
    assert got.rows == NAMED
    assert got.labels == {"label": ["World", "Sports", "Business"]}
    assert "0 = World, 1 = Sports, 2 = Business" in got.notes[0]


def test_arrow_file_of_save_to_disk(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict(NUMBERED, features=FEATURES)
    data.save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("*.arrow")
    assert read(path).rows == NAMED


def test_arrow_file_format(tmp_path: Path) -> None:
    feather.write_feather(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.arrow", "uncompressed")
    assert read(tmp_path / "a.arrow").rows == ROWS
    for method in ("lz4", "zstd"):
        feather.write_feather(pyarrow.Table.from_pylist(ROWS), tmp_path / "b.arrow", method)
        error = refused(tmp_path / "b.arrow")
        assert (error.code, "to_parquet" in error.try_) == ("data-format", True)
    assert refused(file(tmp_path, "c.arrow", b"ARROW1\0\0no")).code == "data-broken"
    assert refused(file(tmp_path, "d.arrow", b"nothing at all")).code == "data-broken"


def test_dictionary_size_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that many rows share through a dictionary counts for each of them."""
    column = pyarrow.array(["x" * 100_000] * 1000).dictionary_encode()
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", pyarrow.schema([("t", column.type)])) as out:
        out.write_batch(pyarrow.record_batch({"t": column}))
    assert (tmp_path / "a.arrow").stat().st_size < 200_000
    monkeypatch.setattr(arrow, "DATA_BYTES", 10_000_000)
    assert refused(tmp_path / "a.arrow").code == "data-too-large"


def test_rows_survive_formats(tmp_path: Path) -> None:
    """The same rows are read from every format, compressed or not."""
    rows = [{"a": f"line\n{i}, with “quotes”", "b": str(i)} for i in range(5)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["a", "b"])
    writer.writeheader()
    writer.writerows(rows)
    contents = {
        "a.csv.gz": gzip.compress(text.getvalue().encode()),
        "a.json.xz": lzma.compress(json.dumps({"data": rows}).encode()),
        "a.jsonl.zip": zipped({"x": "".join(json.dumps(r) + "\n" for r in rows).encode()}),
    }
    for name, content in contents.items():
        assert read(file(tmp_path, name, content)).rows == rows, name


def test_hint_names_real_suffixes() -> None:
    assert isinstance(compression.unknown_format(Path("a.rar"), files.KINDS), PreflightError)
