"""Rows as they are trained on: `plan --show`, the examples of docs/data.md, ends, whole studies."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers.command import bakeoff

from bakeoff import api
from bakeoff.cli.display import token_view as printed
from bakeoff.core.errors import UsageError
from bakeoff.data import assets
from bakeoff.engine.loss import SupervisedPositions
from bakeoff.study.config import parse_spec
from bakeoff.tasks._base import load_tokenizer
from bakeoff.tasks.classify import Classify
from bakeoff.tasks.sft import IGNORE, SupervisedFineTuning
from bakeoff.testing.tiny import rows, write_jsonl
from bakeoff.training.preflight.row_preview import pieces

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
CHAT = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def chat_of(row: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "turn on"},
        {"role": "assistant", "content": "the lamp"},
        {"role": "user", "content": row["text"]},
        {"role": "assistant", "content": row["label"]},
    ]


@pytest.fixture
def chats(study_values: dict[str, Any], tmp_path: Path, tiny_llama: Path) -> dict[str, Any]:
    """A study of conversations of two exchanges."""
    write_jsonl(tmp_path / "chats.jsonl", [{"messages": chat_of(r)} for r in rows()])
    (tmp_path / "own.jinja").write_text(CHAT)
    study_values["base"]["model"] = str(tiny_llama)
    study_values["data"] = {"train": "chats.jsonl", "limit": {"test": 12, "validation": 12}}
    study_values["task"] = {"kind": "sft", "max_length": 64, "chat_template": "own.jinja"}
    study_values["methods"]["contenders"] = ["full"]
    study_values["method"] = {}
    return study_values


# --- plan --show ---------------------------------------------------------------------------------


def piped(folder: Path, study: dict[str, Any], count: int) -> str:
    """What ``bakeoff plan --show`` writes into a pipe."""
    (folder / "study.toml").write_text(tomli_w.dumps(study), encoding="utf-8")
    done = bakeoff("plan", "study.toml", "--no-time", "--show", str(count), cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_show_marks_supervised_without_colour(chats: dict[str, Any], tmp_path: Path) -> None:
    """`show` marks supervised tokens without colour."""
    out = piped(tmp_path, chats, 2)
    assert "\x1b" not in out
    heads = re.findall(
        r"^line (\d+) of chats.jsonl: (\d+) tokens, (\d+) supervised$", out, re.MULTILINE
    )
    assert len(heads) == 2
    for number, _, supervised in heads:
        row = rows()[int(number) - 1]
        after = out.split(f"line {number} of")[1].splitlines()[1:5]
        assert [line.split("│")[0].strip() for line in after] == ["context", "supervised"] * 2
        assert re.sub(r"\W", "", after[1]) == "supervisedthelampEOS"
        assert re.sub(r"\W", "", after[3]) == f"supervised{row['label']}EOS"
        assert int(supervised) == 3 + 2


def test_show_plain_values_match(chats: dict[str, Any], tmp_path: Path) -> None:
    """`show` gives the same as plain values."""
    (shown,) = api.overview(parse_spec(chats), tmp_path, show=1)["rows"]
    assert shown["tokens"] == sum(p["tokens"] for p in shown["pieces"])
    assert shown["supervised"] == sum(p["tokens"] for p in shown["pieces"] if p["supervised"])
    assert shown["where"].endswith("of chats.jsonl")
    assert api.overview(parse_spec(chats), tmp_path)["rows"] is None


def test_show_names_label(study_values: dict[str, Any], tmp_path: Path) -> None:
    """`show` names the label of a classified row."""
    shown = api.overview(parse_spec(study_values), tmp_path, show=3)["rows"]
    assert len(shown) == 3
    for row in shown:
        number = int(re.findall(r"\d+", row["where"])[0])
        assert row["label"] == rows()[number - 1]["label"]
        assert row["supervised"] == 0


def test_pieces_join_bytes_and_keep_spaces() -> None:
    """SmolLM's kind of tokens: one character of several tokens is one piece of so many."""
    from test_chat import tokenizer

    tok = tokenizer("chatml")
    text = "What is\n 🙂é two?"
    ids = tok(text, add_special_tokens=False)["input_ids"]
    found = pieces(tok, ids, [False] * len(ids))
    assert "".join(t for t, _, _ in found) == text
    assert sum(n for _, n, _ in found) == len(ids)
    assert ("é", 2, False) in found
    assert all("\ufffd" not in t for t, _, _ in found)


def test_show_breaks_lines_between_tokens() -> None:
    """A line is broken between tokens and shows unprintable characters."""
    lines = list(printed._lines(["abcd", "ef", "ghi"], 9))
    assert lines == ["│abcd│ef│", "│ghi│"]
    piece = {"text": "a\n\t\x1b[31m", "tokens": 1}
    assert printed._text(piece) == "a⏎⇥\\x1b[31m"
    assert printed._text({"text": "é", "tokens": 2}) == "é×2"


# --- the page ------------------------------------------------------------------------------------


LEGS = {
    "spider": "Eight", "cat": "Four", "bee": "Six", "hen": "Two", "ant": "Six", "crab": "Ten",
    "horse": "Four", "owl": "Two", "fly": "Six", "dog": "Four", "wasp": "Six", "duck": "Two",
}  # fmt: skip


@pytest.mark.parametrize("name", ["questions", "chats"])
def test_docs_examples_print_as_shown(name: str, tmp_path: Path) -> None:
    """The examples of the docs page print what it shows."""
    model = "smollm2-135m-instruct"
    if assets.locate(model) is None:
        pytest.skip(f"{model} is not prepared")
    asked = {a: f"How many legs has a {a}?" for a in LEGS}
    write_jsonl(
        tmp_path / "questions.jsonl",
        [{"question": asked[a], "answer": n} for a, n in LEGS.items()],
    )
    hello = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    write_jsonl(
        tmp_path / "chats.jsonl",
        [
            {"messages": [*hello, {"role": "user", "content": asked[a]},
                          {"role": "assistant", "content": f"{n} 🙂"}]}
            for a, n in LEGS.items()
        ],
    )  # fmt: skip
    (example,) = [b for b in blocks("toml") if f'train = "{name}' in b and "[task]" in b]
    study = tomllib.loads(example) | {
        "name": "page",
        "base": {"model": f"asset:{model}"},
        "methods": {"control": "lora", "contenders": ["ia3"]},
        "budget": {"steps": 20, "batch_size": 2},
    }
    (expected,) = [b for b in blocks("text") if f"{name}.jsonl" in b]
    assert expected in piped(tmp_path, study, 1) + "\n"


def test_docs_study_files_are_valid(study_values: dict[str, Any]) -> None:
    """Every study file on the docs page is valid."""
    for block in blocks("toml"):
        value = tomllib.loads(block)
        task = {**study_values["task"], **value.pop("task", {})}
        parse_spec({**study_values, **value, "task": task})


# --- ends and padding ----------------------------------------------------------------------------


def test_pad_as_end_token_supervised(tiny_llama: Path) -> None:
    """A padding token that is also the end token keeps its label.

    Padded to 40, each row still learns its end, and no padding.
    """
    tokenizer = load_tokenizer(str(tiny_llama), None)
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    options = {"columns": {"prompt": "text", "completion": "label"}, "max_length": 64}
    task = SupervisedFineTuning(options)
    examples = task.encode(tokenizer, rows()[:3])
    for example in examples:
        assert example.tokens[-1] == example.labels[-1] == end
        assert example.labels.count(IGNORE) == len(example.labels) - 2
    batch = task.batch(examples, end, "cpu", length=40)
    assert isinstance(batch.targets, SupervisedPositions)
    assert batch.inputs["input_ids"].shape == (3, 40)
    assert batch.inputs["attention_mask"].sum(1).tolist() == [len(e.tokens) for e in examples]
    learnt = [int(t) for t in batch.targets.targets if t >= 0]
    assert sum(t == end for t in learnt) == 3
    assert len(learnt) == 6


def test_long_prompt_loses_beginning_only(tiny_llama: Path) -> None:
    """A long prompt loses its beginning and never its answer."""
    tokenizer = load_tokenizer(str(tiny_llama), None)
    options = {"columns": {"prompt": "text", "completion": "json"}, "max_length": 500}
    (whole,) = SupervisedFineTuning(options).encode(tokenizer, rows()[:1])
    options["max_length"] = len(whole.tokens) - 3
    (cut,) = SupervisedFineTuning(options).encode(tokenizer, rows()[:1])
    assert (cut.tokens, cut.labels) == (whole.tokens[3:], whole.labels[3:])


# --- whole studies -------------------------------------------------------------------------------


def test_conversation_study_is_self_contained(chats: dict[str, Any], tmp_path: Path) -> None:
    """A study of conversations runs and needs nothing outside its folder."""
    report = api.run(parse_spec(chats), tmp_path, tmp_path / "out")
    assert {m["status"] for m in report["methods"]} == {"done"}
    (tmp_path / "own.jinja").unlink()
    out = tmp_path / "out"
    again = api.run(api.read_spec(out / "study.toml"), out, out)
    assert again["methods"] == report["methods"]
    (tmp_path / "own.jinja").write_text(CHAT.replace(" : ", " Command "))
    with pytest.raises(Exception, match="chat_template"):
        api.run(parse_spec(chats), tmp_path, out)


def test_prompt_and_completion_as_a_conversation(chats: dict[str, Any], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "chats.jsonl", rows())
    chats["data"]["columns"] = {"prompt": "{text}", "completion": "label"}
    chats["task"] |= {"chat": True, "system": "Command"}
    (shown,) = api.overview(parse_spec(chats), tmp_path, show=1)["rows"]
    text = "".join(p["text"] for p in shown["pieces"])
    number = int(re.findall(r"\d+", shown["where"])[0])
    row = rows()[number - 1]
    expected = f"[UNK] : Command [UNK] : {row['text']} [UNK] : {row['label']} [EOS]"
    assert "".join(text.split()) == "".join(expected.split())


def test_references_are_last_answers() -> None:
    task = SupervisedFineTuning({"columns": {"messages": "messages"}})
    given = [{"messages": [*chat_of(r), {"role": "user", "content": "thanks"}]} for r in rows()[:2]]
    assert task.references(given) == [r["label"] for r in rows()[:2]]


@pytest.mark.parametrize(
    ("given", "present", "columns"),
    [
        ({}, ("messages",), {"messages": "messages"}),
        ({}, ("prompt", "completion"), {"prompt": "prompt", "completion": "completion"}),
        ({"messages": "chat"}, ("chat", "prompt"), {"messages": "chat"}),
        ({"prompt": "q"}, ("q", "completion"), {"prompt": "q", "completion": "completion"}),
    ],
)
def test_field_kinds_detected(
    given: dict[str, str], present: tuple[str, ...], columns: dict[str, str]
) -> None:
    """The kinds of fields are detected from the rows."""
    assert SupervisedFineTuning.columns(given, present) == columns


def test_conflicting_fields_refused() -> None:
    """Conflicting fields are refused."""
    with pytest.raises(Exception, match="fields-mixed"):
        SupervisedFineTuning.columns({"prompt": "a", "messages": "b"})
    with pytest.raises(Exception, match="unknown-field"):
        Classify.columns({"messages": "b"})


def test_unreadable_template_refused(chats: dict[str, Any], tmp_path: Path) -> None:
    """A template that cannot be read is refused."""
    chats["task"]["chat_template"] = "nowhere.jinja"
    with pytest.raises(UsageError) as error:
        api.overview(parse_spec(chats), tmp_path)
    assert error.value.code == "chat-template-unreadable"


def test_system_message_needs_conversations(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A task without conversations accepts no system message."""
    study_values["task"]["system"] = "Be brief."
    with pytest.raises(UsageError) as error:
        api.overview(parse_spec(study_values), tmp_path)
    assert error.value.code == "chat-not-for-task"


@pytest.mark.parametrize("form", ["chats.jsonl", "folder", "hub:./folder"])
def test_conversations_detected_without_options(
    form: str, chats: dict[str, Any], tmp_path: Path
) -> None:
    """The command line detects conversations without options."""
    from bakeoff.cli.run import write_study

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_bytes((tmp_path / "chats.jsonl").read_bytes())
    reference = f"hub:{tmp_path}/folder" if form.startswith("hub:") else str(tmp_path / form)
    path = write_study(tmp_path / "out", chats["base"]["model"], reference, [], "lora,full", 5)
    value = tomllib.loads(path.read_text())
    assert value["task"]["kind"] == "sft"
    assert value["data"]["train"] == reference
    assert json.loads(json.dumps(value))["budget"]["steps"] == 5
