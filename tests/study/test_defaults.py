"""Defaults that depend on the rows: the length limit, the steps, and the notes on them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers.study_runs import RecordingProgress
from transformers import RobertaConfig, RobertaModel

from bakeoff import api
from bakeoff.data.splits import Splits
from bakeoff.study.config import parse_spec
from bakeoff.study.dry_run import temporary_study_dir
from bakeoff.study.planning.defaults import (
    LENGTH_CAP,
    RowLengths,
    choose_max_length,
    choose_steps,
    short_pass_note,
)
from bakeoff.study.setup.defaults import restore_choices, unused_columns
from bakeoff.study.setup.open_study import check_study, open_study
from bakeoff.study.setup.study import Study
from bakeoff.testing.tiny import save_llama, tokenizer, write_jsonl
from bakeoff.training.preflight.row_lengths import count_row_lengths


def lengths(rows: Mapping[int, int], answer: int = 0, positions: int | None = None) -> RowLengths:
    return RowLengths(rows, answer, positions)


def test_length_covers_most_rows() -> None:
    """A few very long rows do not decide: they are cut, and counted."""
    chosen = choose_max_length(lengths({100: 600, 370: 560, 2310: 40}))
    assert chosen.max_length == 384
    assert chosen.note == "384: covers 96 % of 1,200 rows (longest 2,310 tokens; 40 rows are cut)"


def test_length_covers_all_if_cheap() -> None:
    """Rows that are at most twice as long as most others are not cut."""
    assert choose_max_length(lengths({20: 99, 41: 1})).max_length == 32
    assert choose_max_length(lengths({20: 99, 40: 1})).note == (
        "64: covers all 100 rows (longest 40 tokens)"
    )


def test_length_within_positions() -> None:
    """The base's positions are a limit, which is said."""
    chosen = choose_max_length(lengths({100: 50, 600: 50}, positions=510))
    assert chosen.max_length == 510
    assert chosen.note.endswith(
        "(longest 600 tokens; 50 rows are cut); the base has no more positions"
    )


def test_length_within_cap() -> None:
    """No more than the cap is chosen, which names the key to set."""
    chosen = choose_max_length(lengths({9000: 10}))
    assert chosen.max_length == LENGTH_CAP
    assert "set task.max_length" in chosen.note


@pytest.mark.parametrize("answer", [300, 6000])
def test_length_fits_every_completion(answer: int) -> None:
    """A completion that would be truncated is refused, so the longest one fits, with a prompt."""
    chosen = choose_max_length(lengths({50: 99, answer + 20: 1}, answer=answer))
    assert answer + 32 <= chosen.max_length < answer + 96


def test_length_completion_beyond_positions() -> None:
    """A completion that the base cannot hold does not raise the limit above the positions."""
    assert choose_max_length(lengths({50: 99, 900: 1}, answer=890, positions=512)).max_length == 512


@pytest.mark.parametrize(
    ("rows", "batch_size", "steps"),
    [
        (10, 16, 200), (50, 16, 200), (200, 16, 250), (240, 16, 300), (1200, 16, 300),
        (6400, 16, 400), (6401, 16, 401), (100_000, 64, 1563),
    ],
)  # fmt: skip
def test_steps_are_whole_passes(rows: int, batch_size: int, steps: int) -> None:
    """At least one pass and 300 steps; on few rows at most 20 passes, but 200 steps."""
    assert choose_steps(rows, batch_size, "cpu").steps == steps


def test_steps_note() -> None:
    """The steps are described as passes; a bound says what to set instead."""
    assert choose_steps(1200, 16, "cpu").note == (
        "300: 4.0 passes over 1,200 rows in batches of 16"
    )
    bounded = choose_steps(100_000, 16, "cpu")
    assert bounded.steps == 2000
    assert bounded.note.startswith(
        "2,000: 0.32 passes over 100,000 rows in batches of 16; one pass"
    )
    assert "6,250 steps" in bounded.note
    assert "budget.hours" in bounded.note
    assert choose_steps(100_000, 16, "cuda:1").steps == 6250


def test_stated_steps_below_one_pass() -> None:
    """Steps that do not reach every row are noted; others are not."""
    assert short_pass_note(75, 1200, 16) is None
    note = short_pass_note(60, 1200, 16)
    assert note is not None
    assert note.startswith("steps 60: 0.8 passes")
    assert "240" in note


def test_unused_columns_named_once() -> None:
    """Columns of templates, of paths and of the groups are used; all others are listed."""
    rows: list[dict[str, Any]] = [
        {"id": 1, "q": "a", "en": {"text": "b"}, "label": "x", "author": "y"},
        {"id": 2, "q": "a", "en": {"text": "b"}, "label": "x", "author": "y", "lang": "en"},
    ]
    splits = Splits({"train": rows, "validation": [], "test": []}, {})
    fields = {"text": "{q} {en.text}", "label": "label"}
    assert unused_columns(splits, fields, "author") == ("id", "lang")
    assert unused_columns(splits, fields, None) == ("id", "author", "lang")


def request(folder: Path, base: Path, task: str, rows: list[dict[str, Any]], **options: Any) -> Any:
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        write_jsonl(folder / "data" / f"{split}.jsonl", rows)
    return {
        "folder": str(folder), "trials": [], "base_path": str(base), "revision": None,
        "trusted": False, "task": task, "options": {"max_length": None, **options},
    }  # fmt: skip


def test_lengths_of_prompt_and_completion(tiny_llama: Path, tmp_path: Path) -> None:
    """A row is its prompt, its completion and the end token; the completion must fit whole."""
    rows = [{"prompt": "play a song", "completion": "the lamp"}]
    rows += [{"prompt": "turn on the lamp in the hall", "completion": "play a song in the attic"}]
    found = count_row_lengths(
        request(
            tmp_path,
            tiny_llama,
            "sft",
            rows,
            columns={"prompt": "prompt", "completion": "completion"},
            longest_completion="play a song in the attic",
        )  # fmt: skip
    )
    assert found["rows"] == [(6, 1), (14, 1)]
    assert found["answer"] == 7
    assert found["positions"] == 128


def test_lengths_of_wrong_choices(tiny_llama: Path, tmp_path: Path) -> None:
    """All choices of a row are scored: the longest one counts, right or wrong."""
    rows = [{"prompt": "the lamp", "choices": ["off", "play a song in the attic"], "answer": "off"}]
    found = count_row_lengths(
        request(
            tmp_path,
            tiny_llama,
            "choice",
            rows,
            answer="text",
            normalise="sum",
            columns={"prompt": "prompt", "choices": "choices", "answer": "answer"},
        )  # fmt: skip
    )
    assert found["rows"] == [(8, 1)]
    assert found["answer"] == 6


def opened(values: dict[str, Any], folder: Path) -> tuple[Study, list[str]]:
    progress = RecordingProgress()
    return open_study(parse_spec(values), folder, folder / "out", progress), progress.lines


def test_open_study_chooses(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A study file without length and steps gets both, in the trials' conditions too."""
    del study_values["task"]["max_length"], study_values["budget"]["steps"]
    study, lines = opened(study_values, tmp_path)
    assert (study.spec.task.max_length, study.spec.budget.steps) == (32, 200)
    assert study.conditions.task_options["max_length"] == 32
    assert study.conditions.steps == 200
    assert "row_lengths" not in study.machine
    assert "  max_length 32: covers all 58 rows (longest 8 tokens)" in lines
    assert "  steps 200: 27.6 passes over 58 rows in batches of 8" in lines
    assert "Columns that are not used: json, template" in lines
    assert len(lines) == len(set(lines))


def test_open_study_states_nothing_twice(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Stated values stay, and are not described; steps below one pass are."""
    study, lines = opened(study_values, tmp_path)
    assert (study.spec.task.max_length, study.spec.budget.steps) == (32, 6)
    assert not any("max_length" in line for line in lines)
    assert any(line.startswith("steps 6: 0.83 passes over 58 rows") for line in lines)


def test_hours_leave_steps_open(study_values: dict[str, Any], tmp_path: Path) -> None:
    """With a time budget the length is chosen, and the steps are not."""
    del study_values["task"]["max_length"], study_values["budget"]["steps"]
    study_values["budget"]["hours"] = 1
    study, lines = opened(study_values, tmp_path)
    assert study.spec.task.max_length == 32
    assert study.spec.budget.steps is None
    assert not any(line.strip().startswith("steps") for line in lines)


def test_roberta_positions(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Positions that a base keeps for itself are not offered to rows."""
    rows = [{"text": "lamp " * n, "label": "ab"[n % 2]} for n in (2, 3, 300, 301, 302, 303)] * 4
    words = tokenizer()
    config = RobertaConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    for part in (RobertaModel(config), words):
        part.save_pretrained(tmp_path / "base")
    study_values["base"]["model"] = str(tmp_path / "base")
    study_values["data"]["train"] = str(write_jsonl(tmp_path / "long.jsonl", rows))
    del study_values["task"]["max_length"]
    study, lines = opened(study_values, tmp_path)
    assert study.spec.task.max_length == 64
    with temporary_study_dir(study) as temporary:
        warnings = check_study(temporary, RecordingProgress()).warnings
    (cut,) = [w for w in warnings if "rows-cut" in w and "of train" in w]
    assert "he base has 64 positions" in cut, "no length is advised that would be refused"
    assert any("the base has no more positions" in line for line in lines)


def test_virtual_tokens_keep_their_positions(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A method with virtual tokens can train at the chosen length."""
    rows = [{"prompt": "lamp " * 200, "completion": "song"} for _ in range(30)]
    study_values["base"]["model"] = str(save_llama(tmp_path / "base"))
    study_values["data"]["train"] = str(write_jsonl(tmp_path / "long.jsonl", rows))
    study_values["task"] = {"kind": "sft"}
    study_values["methods"]["contenders"] = ["prompt_tuning"]
    study_values["method"] = {"prompt_tuning": {"config": {"num_virtual_tokens": 20}}}
    study, _ = opened(study_values, tmp_path)
    assert study.spec.task.max_length is not None
    assert study.spec.task.max_length <= 128 - 20


@pytest.mark.usefixtures("costs_are_known")
def test_resume_and_older_study_keep_their_values(
    study_values: dict[str, Any], tmp_path: Path, trained: list[str]
) -> None:
    """The same file resumes with the values that were chosen, or with an older version's defaults.

    The report has the notes on what was chosen.
    """
    study_values["budget"] |= {"steps": 6, "settings": 1, "seeds": 1, "race": "off"}
    study_values["methods"]["contenders"] = ["head"]
    study_values["method"] = {}
    del study_values["task"]["max_length"]
    out = tmp_path / "out"
    first = api.run(parse_spec(study_values), tmp_path, out)
    assert first["provenance"]["chosen"]["max_length"].startswith("32: covers all")
    assert first["provenance"]["columns_not_used"] == ["json", "template"]
    assert "max_length = 32" in (out / "study.toml").read_text()

    del study_values["budget"]["steps"]
    count, progress = len(trained), RecordingProgress()
    again = api.run(parse_spec(study_values), tmp_path, out, progress)
    assert len(trained) == count, "nothing is trained again"
    assert again["provenance"]["chosen"] == first["provenance"]["chosen"]
    assert progress.lines[0].startswith("max_length 32, steps 6: as when the study in")

    # a study of an older version: its defaults, 256 and 300, are among its frozen values
    with closing(sqlite3.connect(out / "study.db")) as database, database:
        (text,) = database.execute("select value from study where key = 'frozen'").fetchone()
        frozen = json.loads(text)
        frozen["spec"]["task"]["max_length"] = 256
        database.execute("update study set value = ? where key = 'frozen'", [json.dumps(frozen)])
    spec = restore_choices(parse_spec(study_values), out, RecordingProgress())
    assert (spec.task.max_length, spec.budget.steps) == (256, 6)
