"""Hints (`Try:`) that are followed word for word, and then work; docs/errors.md names the tests."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import live_study
from typer.testing import CliRunner, Result

from bakeoff.cli import app
from bakeoff.core.errors import BakeoffError
from bakeoff.data import sources
from bakeoff.data.rows import read_rows
from bakeoff.metrics.load import MetricSource
from bakeoff.study.config import parse_spec, read_spec
from bakeoff.study.setup.splits import read_splits
from bakeoff.study.storage import study_dir
from bakeoff.study.storage.database import Writer


def bakeoff(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def refused(do: Callable[[], Any], code: str) -> str:
    """Return the hint of an error."""
    with pytest.raises(BakeoffError) as error:
        do()
    assert error.value.code == code
    return error.value.try_


def told(result: Result, code: str) -> str:
    """Return the hint of a command's error."""
    assert isinstance(result.exception, BakeoffError), result.output
    assert result.exception.code == code
    return result.exception.try_


def quoted(hint: str) -> list[str]:
    return re.findall(r"`([^`]+)`", hint)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(hint: str, which: int = 0) -> Result:
    """Run a command of bakeoff that a hint names."""
    program, *words = shlex.split(quoted(hint)[which])
    assert program == "bakeoff"
    result = bakeoff(*words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result


def test_study_file(here: Path) -> None:
    hint = refused(lambda: read_spec(here / "study.toml"), "study-not-found")
    follow(hint)
    read_spec(here / "study.toml")


@pytest.mark.parametrize("name", ["link", "a b'#"])
def test_link(here: Path, name: str) -> None:
    folder = here / "s"
    folder.mkdir()
    (folder / name).symlink_to(here)
    hint = refused(lambda: study_dir.create(folder), "folder-link")
    subprocess.run(["sh", "-c", quoted(hint)[0]], check=True)
    study_dir.create(folder)
    assert here.is_dir()


def test_origins(here: Path, study_values: dict[str, Any]) -> None:
    spec = parse_spec(study_values)
    study_dir.freeze_data(here / "a b", read_splits(spec, here))
    frozen = parse_spec(study_values | {"data": dict(study_dir.FROZEN_FILES)})
    origins = here / "a b" / study_dir.ORIGINS_FILE
    origins.write_text("{", encoding="utf-8")
    hint = refused(lambda: read_splits(frozen, here / "a b"), "origins-broken")
    subprocess.run(["sh", "-c", quoted(hint)[0]], check=True)
    read_splits(frozen, here / "a b")


@pytest.mark.skipif(shutil.which("sed") is None, reason="sed is not installed")
def test_byte_order_marks(here: Path) -> None:
    path = here / "rows x.jsonl"
    path.write_bytes(b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
    hint = refused(lambda: read_rows(path), "data-bom")
    subprocess.run(["sh", "-c", quoted(hint)[0]], check=True)
    assert [row["text"] for row in read_rows(path)] == ["a", "b"]


def test_hub_id_without_prefix(here: Path) -> None:
    hint = refused(lambda: sources.load_splits({"train": "org/name"}, here), "data-not-found")
    (reference,) = re.findall(r'"([^"]+)"', hint)
    assert sources.locate(reference, here) is None


def test_pattern_folder(here: Path) -> None:
    """Without `hub:` the same folder is read as it is."""
    pytest.importorskip("datasets")
    (here / "a*b").mkdir()
    (here / "a*b" / "train.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    load = sources.load_splits
    assert "without `hub:`" in refused(lambda: load({"train": "hub:./a*b"}, here), "path-malformed")
    assert load({"train": "./a*b"}, here)["train"].rows == [{"text": "a"}]


def test_metric_function(here: Path) -> None:
    hint = refused(lambda: MetricSource.parse("score.py", here), "metric-function-unnamed")
    (value,) = re.findall(r'"([^"]+)"', hint)
    assert MetricSource.parse(value, here).function == "score"


def test_misspelt_names(here: Path) -> None:
    """`did you mean` is a name that is known."""
    hint = told(bakeoff("methods", "lroa"), "unknown-method")
    (near,) = re.findall(r"did you mean '(\w+)'", hint)
    assert bakeoff("methods", near).exit_code == 0


def test_method_file(here: Path) -> None:
    shown = follow(told(bakeoff("methods", "--toml"), "no-method-named"))
    (here / "mine.toml").write_text(shown.stdout, encoding="utf-8")
    assert bakeoff("methods", str(here / "mine.toml")).exit_code in (0, 1)


def test_new_folder_for_foreign_database(here: Path) -> None:
    """A database of another program is not changed; `--out` takes the study elsewhere."""
    import sqlite3

    folder = here / "s"
    folder.mkdir()
    with sqlite3.connect(folder / "study.db") as database:
        database.execute("create table other (a)")
    hint = refused(lambda: Writer(folder / "study.db"), "database-foreign")
    assert quoted(hint) == ["--out DIR"]
    Writer((study_dir.create(here / "new") or here / "new") / "study.db").close()


def test_damaged_database_repaired(here: Path) -> None:
    folder = live_study.write_study(here / "a b;c", finals=False)
    path = folder / "study.db"
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    raw = bytearray(path.read_bytes())
    raw[4096 : 4096 + 2048] = b"\xff" * 2048
    path.write_bytes(bytes(raw))
    hint = told(bakeoff("report", str(folder)), "database-damaged")
    program, *words = shlex.split(quoted(hint)[0])
    assert (program, words) == ("bakeoff", ["doctor", str(folder), "--repair"])
    repaired = bakeoff(*words)
    assert repaired.exit_code in (0, 6), repaired.output
    assert (folder / "study.db.damaged").is_file()
    again = bakeoff("report", str(folder))
    assert getattr(again.exception, "code", "") != "database-damaged"


@pytest.mark.parametrize(
    ("options", "code", "which"),
    [
        (["--table", "methods"], "table-without-csv", 0),
        (["--format", "csv"], "csv-without-out", 0),
        (["--out", "x"], "out-without-hf-json", 0),
    ],
)
def test_report_options(here: Path, options: list[str], code: str, which: int) -> None:
    """The options that the hint names are taken."""
    live_study.write_study(here / "s")
    hint = told(bakeoff("report", "s", *options), code)
    more = shlex.split(quoted(hint)[which].replace("DIR", "tables"))
    kept = [] if more[0] in options else options
    if code == "table-without-csv":
        kept = []
    followed = bakeoff("report", "s", *kept, *more)
    assert followed.exit_code == 0, (followed.output, followed.exception)


def test_columns_of_a_run(here: Path) -> None:
    """`--column` as the hints say: a malformed one, and columns whose task is unclear."""
    row = {"a": "x", "b": "y"}
    (here / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    run = ["run", "--model", "m", "--data", "rows.jsonl", "--steps", "0"]
    hint = told(bakeoff(*run, "--column", "text"), "column-malformed")
    assert hint.split("=")[0] == "--column label"
    hint = told(bakeoff(*run), "task-unclear")
    named = shlex.split(quoted(hint)[0].replace("text=COLUMN", "text=a").replace("=COLUMN", "=b"))
    result = bakeoff(*run, *named)
    assert told(result, "study-invalid")  # the columns are understood, 0 steps are not


def test_study_in_another_encoding(here: Path, study_values: dict[str, Any]) -> None:
    path = here / "study.toml"
    path.write_bytes(tomli_w.dumps(study_values | {"name": "n"}).encode("utf-16"))
    hint = refused(lambda: read_spec(path), "study-unreadable")
    assert "UTF-8" in hint
    path.write_text(path.read_text(encoding="utf-16"), encoding="utf-8")
    assert read_spec(path).name == "n"
