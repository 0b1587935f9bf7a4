"""Where rows come from: files of every kind, folders, data sets of a hub; and how they are cut."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from helpers.study_runs import RecordingProgress
from pyarrow import parquet

from bakeoff import api
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError, UsageError
from bakeoff.data import rows as data_rows
from bakeoff.data import sources
from bakeoff.study.config import parse_spec
from bakeoff.study.dry_run import overview
from bakeoff.study.setup.splits import read_splits
from bakeoff.testing.tiny import rows, write_jsonl

SMALL = [{"text": f"line\n{i}, with a comma", "label": "abc"[i % 3]} for i in range(7)]


def write(path: Path, values: list[dict[str, Any]]) -> Path:
    """Write rows in the format that the file's suffix says."""
    if path.suffix == ".jsonl":
        return write_jsonl(path, values)
    if path.suffix == ".json":
        path.write_text(json.dumps(values))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(values), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, list(values[0]), delimiter="\t" if "tsv" in path.suffix else ","
            )
            writer.writeheader()
            writer.writerows(values)
    return path


def found(reference: str, source: Path, split: str = "train") -> list[data_rows.Row]:
    return sources.load_splits({"train": reference}, source)[split].rows


def refused(reference: str, source: Path, **more: Any) -> BakeoffError:
    with pytest.raises(BakeoffError) as error:
        sources.load_splits({"train": reference}, source, **more)
    return error.value


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_file_formats_give_same_rows(kind: str, tmp_path: Path) -> None:
    """Every file format gives the same rows."""
    write(tmp_path / f"rows.{kind}", SMALL)
    assert found(f"rows.{kind}", tmp_path) == SMALL


def test_parquet_rows_become_json(tmp_path: Path) -> None:
    """Parquet rows keep their number and become JSON.

    Lists and objects stay; what JSON does not know is said otherwise, bytes are left out.
    """
    values = [
        {
            "text": "é",
            "messages": [{"role": "user", "content": "Hi"}],
            "day": datetime.date(2026, 1, 2),
            "at": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
            "took": datetime.timedelta(seconds=90),
            "price": decimal.Decimal("1.50"),
            "image": {"bytes": b"\x89PNG", "path": "a.png"},
            "nothing": None,
        }
    ] * 2
    write(tmp_path / "rows.parquet", values)
    first, second = found("rows.parquet", tmp_path)
    assert first == {
        "text": "é", "messages": [{"role": "user", "content": "Hi"}], "day": "2026-01-02",
        "at": "2026-01-02T03:04:00+00:00", "took": 90.0, "price": "1.50", "nothing": None,
    }  # fmt: skip
    assert json.loads(json.dumps(first)) == first
    assert data_rows.place_of(second, "train", 0) == ("rows.parquet", "row", 2)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.parquet", b"PAR1 no", "data-broken"),
        ("a.xlsx", b"PK", "data-format"),
        ("missing.parquet", None, "data-not-found"),
        ("missing.jsonl", None, "data-not-found"),
    ],
)
def test_files_that_cannot_be_read(
    name: str, content: bytes | None, code: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    error = refused(name, tmp_path)
    assert isinstance(error, PreflightError)
    assert (error.code, name in error.cause) == (code, True)


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert refused("a.parquet", tmp_path).code == "duplicate-column"


def test_id_without_prefix(tmp_path: Path) -> None:
    """An id without its prefix is recognised."""
    error = refused("openai/gsm8k", tmp_path)
    assert error.code == "data-not-found"
    assert '"hub:openai/gsm8k"' in error.try_


@pytest.mark.parametrize(
    ("package", "reference"), [("pyarrow", "a.parquet"), ("datasets", "hub:./a")]
)
def test_missing_package_named(
    package: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing package is named."""
    write(tmp_path / "a.parquet", SMALL)
    monkeypatch.setitem(sys.modules, package, None)
    error = refused(reference, tmp_path)
    assert isinstance(error, EnvironmentProblem)
    assert error.code == "data-package-missing"
    assert "pip install 'bakeoff[" in error.try_


# --- folders -------------------------------------------------------------------------------------


def test_folder_files_in_name_order(tmp_path: Path) -> None:
    """The files of a folder are read in the order of their names."""
    (tmp_path / "rows").mkdir()
    for name, part in (("b", SMALL[3:]), ("a", SMALL[:3])):
        write(tmp_path / "rows" / f"{name}.jsonl", part)
    (tmp_path / "rows" / "notes.md").write_text("not data")
    (tmp_path / "rows" / ".hidden.csv").write_text("x\n1\n")
    read = sources.load_splits({"train": "rows"}, tmp_path)
    assert list(read) == ["train"]
    assert read["train"].rows == SMALL
    assert read["train"].origin == {"from": "rows", "files": ["a.jsonl", "b.jsonl"]}
    places = [data_rows.place_of(r, "train", 0) for r in read["train"].rows]
    assert places[2:4] == [("a.jsonl", "line", 3), ("b.jsonl", "line", 1)]


def test_folder_with_split_names(tmp_path: Path) -> None:
    """A folder whose files are named after splits provides all of them."""
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "train-00000-of-00002.parquet", SMALL[:2])
    write(folder / "train-00001-of-00002.parquet", SMALL[2:4])
    write(folder / "dev.parquet", SMALL[4:5])
    write(folder / "test.parquet", SMALL[5:])
    read = sources.load_splits({"train": "rows"}, tmp_path)
    assert {split: own.rows for split, own in read.items()} == {
        "train": SMALL[:4], "validation": SMALL[4:5], "test": SMALL[5:],
    }  # fmt: skip
    write(tmp_path / "other.jsonl", SMALL[:1])
    own = sources.load_splits({"train": "rows", "test": "other.jsonl"}, tmp_path)
    assert own["test"].rows == SMALL[:1], "what is given stands before what is brought"


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["a.jsonl", "b.csv"], "folder-mixed"),
        (["train.jsonl", "more.jsonl"], "folder-unclear"),
        (["test.jsonl"], "data-not-found"),
        (["notes.txt"], "data-not-found"),
    ],
)
def test_ambiguous_folder_refused(names: list[str], code: str, tmp_path: Path) -> None:
    """A folder whose layout is ambiguous is refused."""
    (tmp_path / "rows").mkdir()
    for name in names:
        write(tmp_path / "rows" / name, SMALL)
    error = refused("rows", tmp_path)
    assert (error.code, "rows" in error.cause) == (code, True)


def notes(read: dict[str, sources.LoadedSplit]) -> str:
    return "\n".join(note for split in read.values() for note in split.origin.get("notes", ()))


@pytest.mark.parametrize(
    "layout",
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train/part-0.csv", "test/part-0.csv"),
        ("TRAIN.CSV", "Test.csv"),
        ("train.jsonl.gz", "test.jsonl"),
        ("only/data/train.json", "only/data/test.json"),
    ],
)
def test_folder_layouts(layout: tuple[str, str], tmp_path: Path) -> None:
    """The layouts of folders that tools write; splits that a folder brings are named in a note."""
    folder = tmp_path / "rows"
    for name, part in zip(layout, (SMALL[:5], SMALL[5:]), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            plain = write(folder / "x.jsonl", part)
            (folder / name).write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()
        else:
            write(folder / name, part)
    (folder / "README.md").write_text("# Rows")
    (folder / "dataset_info.json").write_text('{"features": {}}')
    read = sources.load_splits({"train": "rows"}, tmp_path)
    assert (read["train"].rows, read["test"].rows) == (SMALL[:5], SMALL[5:])
    assert "rows also provides test" in notes(read)


@pytest.mark.parametrize(
    "described", ['{"0": "pos", "1": "neg"}', '["pos", "neg"]', '{"labels": ["pos", "neg"]}']
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_label_map_beside_rows(described: str, kind: str, tmp_path: Path) -> None:
    """A JSON file beside the data that holds no rows is not read, and said."""
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / f"data.{kind}", SMALL)
    (tmp_path / "rows" / "label_map.json").write_text(described)
    read = sources.load_splits({"train": "rows"}, tmp_path)
    assert read["train"].rows == SMALL
    assert "label_map.json" in notes(read)


def test_compressed_copy_is_not_read_twice(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    plain = write(tmp_path / "rows" / "a.jsonl", SMALL)
    (tmp_path / "rows" / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    read = sources.load_splits({"train": "rows"}, tmp_path)
    assert read["train"].rows == SMALL
    assert "a.jsonl.gz" in notes(read)


def test_subfolders_that_are_not_read(tmp_path: Path) -> None:
    """Subfolders with data beside data files are named; several of them are refused."""
    for name in ("one", "two"):
        (tmp_path / "rows" / name).mkdir(parents=True)
        write(tmp_path / "rows" / name / "a.jsonl", SMALL)
    error = refused("rows", tmp_path)
    assert (error.code, "one, two" in error.cause) == ("folder-unclear", True)
    write(tmp_path / "rows" / "a.jsonl", SMALL)
    assert "one, two" in notes(sources.load_splits({"train": "rows"}, tmp_path))
    for name in ("train_a", "train_b"):
        (tmp_path / "twice" / name).mkdir(parents=True)
        write(tmp_path / "twice" / name / "a.jsonl", SMALL)
    error = refused("twice", tmp_path)
    assert (error.code, 'train = "twice/train_a"' in error.try_) == ("folder-unclear", True)
    assert found("twice/train_a", tmp_path) == SMALL


def test_saved_to_disk(tmp_path: Path) -> None:
    """Folders of `save_to_disk` are read, without the caches that `datasets` leaves in them."""
    part = datasets.Dataset.from_list(SMALL)
    part.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-123.arrow").write_bytes(b"no table")
    assert found("one", tmp_path) == SMALL
    both = datasets.DatasetDict({"train": part, "test": part.select(range(2)), "extra": part})
    both.save_to_disk(tmp_path / "both")
    read = sources.load_splits({"train": "both"}, tmp_path)
    assert {split: len(own.rows) for split, own in read.items()} == {"train": 7, "test": 2}
    assert read["train"].origin["files"] == ["train/data-00000-of-00001.arrow"]
    assert "extra" in notes(read)
    assert found("hub:./both", tmp_path) == SMALL, "as the folder itself"
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    assert refused("one", tmp_path).code == "data-not-found"


def test_files_with_other_label_names(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for name, names in (("a", ["x", "y"]), ("b", ["y", "x"])):
        features = datasets.Features({"label": datasets.ClassLabel(names=names)})
        data = datasets.Dataset.from_dict({"label": [0, 1]}, features=features)
        data.to_parquet(tmp_path / "rows" / f"{name}.parquet")
    assert refused("rows", tmp_path).code == "labels-differ"


# --- data sets of a hub --------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as a hub's repository holds it, two configurations, in a folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "squads"
    for config, part in (("plain", SMALL), ("short", SMALL[:2])):
        (folder / config).mkdir(parents=True)
        write(folder / config / "train.jsonl", part)
        write(folder / config / "test.jsonl", part[-1:])
    configs = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train.jsonl\n"
        f"  - split: test\n    path: {c}/test.jsonl\n"
        for c in ("plain", "short")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


def test_dataset_read_through_datasets(hub: Path, tmp_path: Path) -> None:
    """A hub data set is read with the datasets package."""
    given = {"train": "hub:./squads", "test": "hub:./squads:test"}
    read = sources.load_splits(given, tmp_path, config="plain")
    assert read["train"].rows == SMALL
    assert read["test"].rows == SMALL[-1:]
    assert read["train"].origin["from"] == f"hub:{hub}"
    assert (read["test"].origin["config"], read["test"].origin["split"]) == ("plain", "test")
    part = sources.load_splits({"train": "hub:./squads:train[:3]"}, tmp_path, config="plain")
    assert part["train"].rows == SMALL[:3], "datasets' own slices"
    assert len(sources.load_splits(given, tmp_path, config="short")["train"].rows) == 2
    assert data_rows.place_of(read["train"].rows[4], "train", 0).number == 5


def test_own_splits_of_a_dataset(hub: Path, tmp_path: Path) -> None:
    """A data set's own test split is used, unless another is given or a split is named."""
    read = sources.load_splits({"train": "hub:./squads"}, tmp_path, config="plain")
    assert read["test"].rows == SMALL[-1:]
    assert "test" in notes(read)
    assert "validation" not in read
    write(tmp_path / "mine.jsonl", SMALL[:2])
    given = {"train": "hub:./squads", "test": "mine.jsonl"}
    assert sources.load_splits(given, tmp_path, config="plain")["test"].rows == SMALL[:2]
    read = sources.load_splits({"train": "hub:./squads:train"}, tmp_path, config="plain")
    assert list(read) == ["train"]
    assert 'test = "hub:./squads:test"' in notes(read)
    explicit = {"train": "hub:./squads:train", "test": "hub:./squads:test"}
    assert not notes(sources.load_splits(explicit, tmp_path, config="plain"))


def test_own_split_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test split whose labels are hidden (-1, as in GLUE) is not used, and said."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    (tmp_path / "glue").mkdir()
    for split, label in (("train", 1), ("validation", 0), ("test", -1)):
        values = {"text": ["a", "b"], "label": [label, label]}
        data = datasets.Dataset.from_dict(values, features=features)
        data.to_parquet(tmp_path / "glue" / f"{split}.parquet")
    for reference in ("hub:./glue", "glue"):
        read = sources.load_splits({"train": reference}, tmp_path)
        assert list(read) == ["train", "validation"]
        assert read["validation"].rows[0] == {"text": "a", "label": "neg"}
        assert read["train"].origin["labels"] == {"label": ["neg", "pos"]}
        assert "no labels in 'label'" in notes(read)


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("hub:org/name", ("org/name", "test", None)),
        ("hub:org/name:dev", ("org/name", "dev", None)),
        ("hub:org/name/main", ("org/name", "test", "main")),
        ("hub:org/name/main:train[:5]", ("org/name", "train[:5]", "main")),
        ("hub:squad", ("squad", "test", None)),
        ("hub:/a/b/c:dev", ("/a/b/c", "dev", None)),
    ],
)
def test_dataset_reference_parts(reference: str, found: tuple[str, str, str | None]) -> None:
    """A reference names the data set, its configuration and its split."""
    assert sources.hub.Dataset.parse(reference, "test", Path("/")) == found


def test_missing_dataset_part_lists_choices(hub: Path, tmp_path: Path) -> None:
    """A missing configuration or split is reported with the existing ones."""
    error = refused("hub:./squads", tmp_path)
    assert (error.code, "plain" in error.cause) == ("data-not-found", True)
    error = refused("hub:./squads:validation", tmp_path, config="plain")
    assert (error.code, "validation" in error.cause) == ("data-not-found", True)
    assert refused("hub:./nowhere", tmp_path).code == "data-not-found"


def test_unreachable_hub_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable hub gives a hint."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    error = refused("hub:openai/gsm8k", tmp_path, config="main")
    assert isinstance(error, EnvironmentProblem)
    assert (error.code, error.exit_code) == ("hub-unreachable", 6)
    assert "openai/gsm8k" in error.cause
    assert "give their folder" in error.try_


def test_config_and_revision_need_hub(study_values: dict[str, Any]) -> None:
    """Configuration and revision are accepted for hub data only."""
    for name in ("config", "revision"):
        study_values["data"] = {"train": "rows.jsonl", name: "main"}
        with pytest.raises(UsageError, match=name):
            parse_spec(study_values)


# --- splits and columns --------------------------------------------------------------------------


def cut(values: dict[str, Any], source: Path) -> dict[str, list[data_rows.Row]]:
    return read_splits(parse_spec(values), source).rows


def test_split_by_seed_and_group(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Splits are cut by seed and group.

    Each template is in one split; the same seed cuts the same, whatever the file's format.
    """
    study_values["data"] = {"train": "rows.jsonl", "group": "template"}
    first = cut(study_values, tmp_path)
    assert sum(map(len, first.values())) == len(rows())
    homes = {s: {r["template"] for r in part} for s, part in first.items()}
    assert all(homes.values())
    assert not homes["train"] & homes["test"]
    assert not homes["train"] & homes["validation"]
    assert not homes["validation"] & homes["test"]
    write(tmp_path / "rows.parquet", rows())
    study_values["data"]["train"] = "rows.parquet"
    assert cut(study_values, tmp_path) == first
    study_values["seed"] = 7
    assert cut(study_values, tmp_path) != first


def test_parquet_study_records_row_origins(
    study_values: dict[str, Any], tmp_path: Path, tiny_llama: Path
) -> None:
    """A study on Parquet rows with a template runs and records where its rows are from."""
    write(
        tmp_path / "pool.parquet",
        [{"question": r["text"], "answer": r["json"], "n": 1} for r in rows()],
    )
    study_values["base"]["model"] = str(tiny_llama)
    study_values["task"] = {"kind": "sft", "max_length": 64, "max_new_tokens": 2}
    study_values["data"] = {
        "train": "pool.parquet", "limit": {"test": 8, "validation": 4},
        "columns": {"prompt": "Command : {question} JSON", "completion": "{answer}"},
    }  # fmt: skip
    study_values["methods"]["contenders"] = ["full"]
    study_values["method"] = {}
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    assert report["provenance"]["data_from"]["test"] == {
        "from": "pool.parquet", "files": ["pool.parquet"], "share": 0.25,
    }  # fmt: skip
    frozen = data_rows.read_rows(tmp_path / "out" / "data" / "test.jsonl")
    assert frozen[0].keys() == {"question", "answer", "n"}
    (tmp_path / "pool.parquet").unlink()
    again = api.run(
        api.read_spec(tmp_path / "out" / "study.toml"), tmp_path / "out", tmp_path / "out"
    )
    assert again["methods"] == report["methods"], "the folder needs nothing outside it"


def test_what_is_guessed_is_said(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A guess is one line of the terminal, no warning, and part of the plan and the record."""
    lines = [f"{row['text']};{row['label']};" for row in rows()]
    text = "\n".join(["text;intent;", *lines, ""])
    (tmp_path / "rows.csv").write_bytes(text.encode("cp1252"))
    study_values["data"] = {
        "train": "rows.csv", "encoding": "cp1252", "columns": {"label": "intent"},
    }  # fmt: skip
    progress = RecordingProgress()
    plan = overview(parse_spec(study_values), tmp_path, progress)
    said = ["rows.csv is delimited by semicolons, by its header."]
    said.append("rows.csv has empty columns, left out: column 3.")
    assert plan["data_notes"] == said
    assert [line for line in progress.lines if "rows.csv" in line] == said
    assert not any("rows.csv" in warning for warning in plan["warnings"])
    splits = read_splits(parse_spec(study_values), tmp_path)
    assert splits.origins["train"]["notes"] == said
