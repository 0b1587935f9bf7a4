"""Folders of any name: what is created lies inside, and every command finds it again."""

from __future__ import annotations

import json
import shlex
import sys
import unicodedata
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import live_study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bakeoff.cli import app
from bakeoff.core.errors import LockedError, UsageError
from bakeoff.core.names import expand_home, quote_path
from bakeoff.data import sources
from bakeoff.data.sources import hub
from bakeoff.study.setup.base_model import locate_base
from bakeoff.study.storage import lock, study_dir
from bakeoff.study.storage.database import Reader, Writer, migrate, rebuild, schema
from bakeoff.testing.tiny import rows, save_bert, write_jsonl

NAMES = (
    "a b", "c#1", "what?", "a%20b", "%00", "100%", "a&b=c", "[x]", "{x}", "*", "**", "it's",
    'say "hi"', "a;b", unicodedata.normalize("NFD", "café"), "café",
    "\N{SLIGHTLY SMILING FACE}", "-x", "--out", ".x", "x.", "x ", " x", "...", "n" * 255, "$HOME",
    "~", "~root", "back\\slash", "a:b", "file:x", "hub:x", "[red]x", "<b>", "%s", "{0}", "a|b",
)  # fmt: skip
WORST = "a%20b #1? [x] {y} *'\" -\N{SLIGHTLY SMILING FACE}~$HOME:é. "

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows allows few of the names")


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def make_database(folder: Path) -> None:
    """Create a study folder and its database, back it up, rebuild it, and read it."""
    study_dir.create(folder)
    path = folder / "study.db"
    with lock.hold_lock(folder), Writer(path):
        pass
    migrate.back_up(path, path.with_name("copy.bak"))
    rebuild(path)
    Reader(path).close()
    with closing(schema.connect(path, "ro")) as database:
        assert database.execute("select count(*) from trials").fetchone() == (0,)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_database_lies_in_its_folder(name: str, tmp_path: Path) -> None:
    make_database(tmp_path / name / "s")
    assert names_in(tmp_path) == [name]
    assert names_in(tmp_path / name) == ["s"]
    assert {"study.db", "copy.bak", "study.db.damaged"} <= files_in(tmp_path / name / "s")


TEXT = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/"),
    min_size=1,
    max_size=40,
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 255)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=TEXT)
def test_any_name(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("any")
    (top / name).mkdir()
    with Writer(top / name / "s.db"):
        pass
    assert names_in(top) == [name]
    assert names_in(top / name)[0].startswith("s.db")


def test_two_folders_two_databases(tmp_path: Path) -> None:
    """`a%20b` is not the folder `a b`: neither study reads the other's database."""
    for name in ("a b", "a%20b"):
        (tmp_path / name).mkdir()
        with Writer(tmp_path / name / "study.db") as writer:
            writer.set("me", name)
    for name in ("a b", "a%20b"):
        with Reader(tmp_path / name / "study.db") as reader:
            assert reader.values("me") == {"me": name}


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x7f", "a\udcffb"], ids=ascii)
def test_name_that_is_no_text_refused(name: str, tmp_path: Path) -> None:
    """Before anything is written, with a name that can be shown."""
    with pytest.raises(UsageError) as refused:
        study_dir.create(tmp_path / name / "s")
    assert refused.value.code == "path-malformed"
    assert str(refused.value).isprintable() or "\n" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["c#1", "a%20b", "[red]x", "-x", "what? [x] *", WORST], ids=ascii)
def test_commands_find_the_study(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status, report and doctor read the same folder and write nothing beside it."""
    live_study.write_study(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for command in ("status", "report", "doctor"):
        words = shlex.split(f"{command} {quote_path(name)} --json")
        told = CliRunner().invoke(app, words)
        expected = 6 if command == "doctor" else 0  # the folders of its trials are not there
        assert told.exit_code == expected, (command, told.output, told.exception)
        json.loads(told.stdout)
    assert names_in(tmp_path) == [name]
    page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert 'href="file:' not in page
    shown = CliRunner().invoke(app, ["report", f"./{name}"])
    assert name.split()[0] in shown.output  # rich's markup does not swallow a part of it


@pytest.mark.parametrize("name", ["a b; touch x", "$HOME", "-x", "it's"])
def test_hints_quote_folders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of a hint, in a shell's words, is about the folder of the error."""
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    live_study.write_study(folder)
    with lock.hold_lock(folder), pytest.raises(LockedError) as refused, lock.hold_lock(folder):
        pass
    command = refused.value.try_.split("`")[1]
    program, *words = shlex.split(command)
    assert program == "bakeoff"
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert name in told.output


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_data_folder(name: str, tmp_path: Path) -> None:
    """A file and a folder are read as they are named, and no other one is."""
    for folder, text in ((name, "mine"), ("ab", "another's"), ("x", "another's")):
        (tmp_path / folder).mkdir()
        row = {"text": text, "label": "a"}
        (tmp_path / folder / "train.jsonl").write_text(json.dumps(row), encoding="utf-8")
    for reference in (f"./{name}/train.jsonl", f"./{name}"):
        found = sources.load_splits({"train": reference}, tmp_path)["train"].rows
        assert [row["text"] for row in found] == ["mine"]


@pytest.mark.parametrize(
    ("reference", "folder", "split"),
    [
        ("hub:./a:b", "a:b", ""),
        ("hub:./a:b:train", "a:b", "train"),
        ("hub:./a", "a", ""),
        ("hub:./a:train[:10]", "a", "train[:10]"),
        ("hub:./~:test", "~", "test"),
    ],
)
def test_colons_of_hub_references(reference: str, folder: str, split: str, tmp_path: Path) -> None:
    for name in ("a", "a:b", "~"):
        (tmp_path / name).mkdir()
    parsed = hub.Dataset.parse(reference, "validation", tmp_path)
    assert (Path(parsed.path), parsed.split) == (tmp_path / folder, split or "validation")


def test_pattern_as_a_folder_of_datasets_refused(tmp_path: Path) -> None:
    """`datasets` would read the rows of every folder that fits `a*b`."""
    (tmp_path / "a*b").mkdir()
    with pytest.raises(UsageError) as refused:
        hub.load(hub.Dataset.parse("hub:./a*b", "train", tmp_path), None, None)
    assert refused.value.code == "path-malformed"


def test_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    found = [expand_home(text) for text in ("~/x", "./~/x", "~", "a/~")]
    assert found == [Path("/h/x"), Path("~/x"), Path("/h"), Path("a/~")]


@pytest.mark.parametrize("name", ["a b", "-x", "it's", "$HOME", "~", "a;b", "plain"])
def test_quoted_path(name: str) -> None:
    (word,) = shlex.split(quote_path(name))
    assert Path(word) == Path(name)
    assert not word.startswith(("-", "~", "$")) or quote_path(name).startswith("'")


def test_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("c#1", "a%20b", "[x]", WORST):
        save_bert(tmp_path / name)
        found = locate_base(f"./{name}", lambda _: None)
        assert Path(found.path) == (tmp_path / name).resolve()
        assert found.fingerprint is not None


@pytest.mark.usefixtures("costs_are_known")
def test_study_in_the_worst_folder(
    make_study: Callable[[Path], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Study, data and model in such folders: it runs, resumes, and is exported into one."""
    monkeypatch.chdir(tmp_path)
    here = tmp_path / WORST
    values = make_study(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    data, model = here / "d" / WORST / "rows.jsonl", here / "m" / WORST
    data.parent.mkdir(parents=True)
    write_jsonl(data, rows())
    save_bert(model)
    values["base"]["model"], values["data"]["train"] = str(model), str(data)
    values["budget"] |= {"steps": 2, "settings": 1}
    file = here / "study.toml"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    out = here / "runs" / WORST
    for _ in range(2):  # the second time it has nothing left to do
        ran = CliRunner().invoke(app, ["run", str(file), "--out", str(out)])
        assert ran.exit_code == 0, (ran.output, ran.exception)
    target = here / "made" / ("n" * 255)
    made = CliRunner().invoke(
        app, ["export", str(out), "--method", "lora", "--out", str(target), "--json"]
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["folder"] == str(target)
    assert names_in(tmp_path) == [WORST]
    assert names_in(here) == ["d", "m", "made", "runs", "study.toml"]
    assert names_in(here / "runs") == [WORST]
    assert (out / "study.db").is_file()
