"""Chats in the forms in which people have them: ``chat/rows`` read, tokenised and answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_chat_templates import family_tokenizer

from bakeoff.core.errors import PreflightError
from bakeoff.data import checks
from bakeoff.data.chat.findings import find_row_issues
from bakeoff.data.chat.forms import (
    describe_columns,
    first_values,
    read_conversation,
    recognise_columns,
)
from bakeoff.data.chat.messages import find_conversation_error
from bakeoff.data.rows import SPLITS, Row, read_rows
from bakeoff.data.splits import Splits
from bakeoff.study.config import parse_spec
from bakeoff.study.setup.compatibility import comparable_spec
from bakeoff.study.setup.splits import split_turns
from bakeoff.tasks.sft import IGNORE, SupervisedFineTuning
from bakeoff.training.preflight.row_preview import pieces

ROWS = Path(__file__).parent / "chat" / "rows"
END = "<|im_end|>"


def call(**arguments: str) -> str:
    inner = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "weather", "arguments": {inner}}}\n</tool_call>'


NO_THOUGHTS = "<think>\n\n</think>\n\n"
SUPERVISED = {  # file -> for each row its supervised texts, the template's end token left out
    "openai": [
        ["four"],
        ["Hello!"],
        ["Good day."],
        ["uno"],
        ["YES"],
        ["house"],
        ["Left out."],
        ["Hi, Ann."],
        ["You are welcome."],
    ],
    "openai-tools": [
        [call(city="Köln")],
        [call(city="Rome"), "No, it is dry."],
        [call(city="Oslo"), "Yes."],
        ["Good morning!"],
        [f"I look.\n{call(city='Rome')}\n{call(city='Oslo')}", "Rome is dry, Oslo is not."],
    ],
    "sharegpt": [
        ["Paris"],
        ["You are welcome.", "Goodbye!"],
        [call(city="Bonn"), "Take an umbrella."],
        ["right"],
    ],
    "hermes": [[call(city="Kiel"), "Windy, but dry."], [call(city="Kiel")]],
    "reasoning": [
        ["<think>\ntwo and three\n</think>\n\n5"],
        ["<think>\ntwo and four\n</think>\n\n6"],
        ["<think>\ntwo and two\n</think>\n\n4"],
    ],
    "alpaca": [["fox"], ["Haus"], ["red"]],
    "prompt-completion": [["blue"], ["white"]],
    "json-text": [["pong"], ["tac"]],
}
RECOGNISED = {
    "openai": None,
    "openai-tools": "recognised in the rows: 'tools' for the chat template",
    "sharegpt": (
        "recognised in the rows: conversations in the column 'conversations', and 'tools' for the "
        "chat template"
    ),
    "hermes": (
        "recognised in the rows: conversations in the column 'conversations', and 'tools' for the "
        "chat template"
    ),
    "reasoning": None,
    "alpaca": "recognised in the rows: Alpaca's instructions (instruction, input, output)",
    "prompt-completion": (
        "recognised in the rows: messages in 'prompt', answered by those in 'completion'"
    ),
    "json-text": None,
}


def sft(rows: list[Row], tokenizer: Any, **chat: Any) -> SupervisedFineTuning:
    """The task with the options that a study of these rows has."""
    splits = dict.fromkeys(SPLITS, rows)
    columns = SupervisedFineTuning.columns({}, first_values(rows))
    options = {"columns": columns, "max_length": 4000, **({"chat": chat} if chat else {})}
    checked = SupervisedFineTuning.check(splits, options)
    assert not [i for i in checked.issues if i.fatal]
    resolved = SupervisedFineTuning(checked.options).resolve(tokenizer, splits)
    return SupervisedFineTuning(resolved.options)


def supervised(task: SupervisedFineTuning, tokenizer: Any, rows: list[Row]) -> list[list[str]]:
    """The supervised texts of each row as ``plan --show`` prints them, without the end token."""
    found = []
    for example in task.encode(tokenizer, rows):
        flags = [label != IGNORE for label in example.labels]
        texts, inside = [""], False
        for text, _, flag in pieces(tokenizer, example.tokens, flags):
            if flag:
                texts[-1] += text
            elif inside:
                texts.append("")
            inside = flag
        found.append([t.removesuffix(END) for t in texts if t])
    return found


@pytest.mark.parametrize("name", SUPERVISED)
def test_thirty_chats(name: str) -> None:
    """What is supervised in each row is what is written here; a perfect model scores 100 %."""
    tokenizer = family_tokenizer("qwen3" if name == "reasoning" else "qwen2.5")
    rows = read_rows(ROWS / f"{name}.jsonl")
    task = sft(rows, tokenizer, **({"pairs": True} if name == "alpaca" else {}))
    assert supervised(task, tokenizer, rows) == SUPERVISED[name]
    answers = [a.text for a in task.perfect_answers(tokenizer, rows)]
    assert answers == task.scored_references(tokenizer, rows)
    assert describe_columns({}, task.options["columns"]) == RECOGNISED[name]


def test_there_are_thirty() -> None:
    assert sum(map(len, SUPERVISED.values())) == 30


def test_parent_and_worker_agree_on_plain_references() -> None:
    """The parent process has no tokenizer; it reads the same references but for tool calls."""
    tokenizer = family_tokenizer("qwen3")
    rows = read_rows(ROWS / "reasoning.jsonl")
    task = sft(rows, tokenizer)
    assert task.references(rows) == task.scored_references(tokenizer, rows) == ["5", "6", "4"]


def test_alpaca_has_stanfords_prompts() -> None:
    """An empty input has the prompt without an input part, and is no issue."""
    tokenizer = family_tokenizer("qwen2.5")
    rows = read_rows(ROWS / "alpaca.jsonl")
    task = sft(rows, tokenizer)
    texts = [tokenizer.decode(e.tokens) for e in task.encode(tokenizer, rows)]
    assert texts[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName an animal.\n\n### Response:fox<|im_end|>"
    )
    assert "paired with an input" in texts[1]
    assert texts[1].endswith("\n\n### Input:\nhouse\n\n### Response:Haus<|im_end|>")
    assert texts[2] == texts[0].replace("an animal", "a colour").replace("fox", "red")
    assert not checks.find_blocking_issues(dict.fromkeys(SPLITS, rows), context(task))


def context(task: SupervisedFineTuning) -> checks.CheckContext:
    columns = task.options["columns"]
    return checks.CheckContext(
        columns, task.structured, lambda row: task.texts(row, columns), task.optional
    )


def test_each_turn_as_the_last() -> None:
    """``each`` gives a row for each assistant turn; thoughts of earlier turns are kept then."""
    tokenizer = family_tokenizer("qwen3")
    rows = read_rows(ROWS / "reasoning.jsonl")[2:]
    task = sft(rows, tokenizer, supervise="each")
    split = task.split_turns(rows, task.options["columns"])
    assert supervised(task, tokenizer, split) == [
        ["<think>\none and one\n</think>\n\n2"],
        ["<think>\ntwo and two\n</think>\n\n4"],
    ]
    assert task.split_turns(split, task.options["columns"]) == split, "frozen rows are read again"
    assert {row.place for row in split} == {rows[0].place}  # type: ignore[attr-defined]


def test_all_turns_are_refused_where_they_cannot_be_told() -> None:
    tokenizer = family_tokenizer("qwen3")
    rows = read_rows(ROWS / "reasoning.jsonl")[2:]
    assert supervised(sft(rows, tokenizer, supervise="last"), tokenizer, rows)
    with pytest.raises(PreflightError) as error:
        supervised(sft(rows, tokenizer, supervise="all"), tokenizer, rows)
    assert error.value.code == "chat-prefix-broken"
    assert 'supervise = "each"' in error.value.try_


# --- what is refused, and what is left out -------------------------------------------------------


def turn(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([turn("user"), turn("assistant", weight=0.5)], "turn-weight"),
        ([turn("user"), turn("assistant", weight="0")], "turn-weight"),
        ([turn("user"), turn("assistant", weight=0, train=True)], "turn-weight"),
        ([turn("user", weight=1), turn("assistant")], "turn-weight"),
        ([turn("user"), turn("assistant", train_detail=[{"begin_offset": 0}])], "turn-weight"),
        ([turn("user"), turn("assistant", weight=0)], "all-turns-masked"),
        ([turn("user"), turn("assistant", mask=True)], "all-turns-masked"),
        ([turn("user", [{"type": "image_url"}]), turn("assistant")], "content-part-unread"),
        ([turn("user"), turn("assistant", tool_calls=[{"arguments": {}}])], "tool-call-malformed"),
        (
            [turn("user"), turn("assistant", tool_calls=[{"name": "f", "arguments": "{"}])],
            "tool-call-malformed",
        ),
        ([turn("user", tool_calls=[{"name": "f"}]), turn("assistant")], "tool-call-malformed"),
        ([turn("user", thinking="hm"), turn("assistant")], "thoughts-unread"),
        ([turn("user"), turn("assistant", thinking=["a"])], "thoughts-unread"),
        (
            [{"from": "function_call", "value": "weather()"}, turn("assistant")],
            "tool-call-malformed",
        ),
    ],
)
def test_messages_that_are_refused(messages: list[Any], code: str) -> None:
    found = find_conversation_error(messages)
    assert found is not None
    assert (found.code, bool(found.try_)) == (code, True)


@pytest.mark.parametrize(
    "key", [{"weight": 0}, {"train": False}, {"trainable": 0}, {"loss_mask": 0}, {"loss": False},
            {"masked": True}, {"weight": 0.0}, {"weight": False}],
)  # fmt: skip
def test_masked_turns_are_context(key: dict[str, Any]) -> None:
    """Every key that masks a turn has the same effect; a masked last turn is left out."""
    tokenizer = family_tokenizer("qwen2.5")
    first = [turn("user"), turn("assistant", "no", **key), turn("user"), turn("assistant", "yes")]
    last = [turn("user"), turn("assistant", "yes"), turn("user"), turn("assistant", "no", **key)]
    rows: list[Row] = [{"messages": first}, {"messages": last}]
    task = sft(rows, tokenizer)
    assert supervised(task, tokenizer, rows) == [["yes"], ["yes"]]
    assert task.references(rows) == ["yes", "yes"]
    assert task.options["chat"]["read"] == ["weight"], "an older study has another trial id"
    assert [(i.code, i.rows) for i in find_row_issues("train", rows, {"messages": "messages"})] == [
        ("after-last-answer", (1,))
    ]


@pytest.mark.parametrize("value", [[0, 1], 0, 0.5])
def test_masks_beside_the_messages_are_refused(value: Any) -> None:
    row = {"messages": [turn("user"), turn("assistant")], "weights": value}
    (issue,) = find_row_issues("train", [row], {"messages": "messages"})
    assert (issue.code, issue.fatal) == ("row-mask-unread", True)
    plain = {**row, "weights": 1}
    assert not find_row_issues("train", [plain], {"messages": "messages"})


def test_images_beside_the_messages_are_refused() -> None:
    row = {"messages": [turn("user", "<image> What?"), turn("assistant")], "images": ["a.png"]}
    (issue,) = find_row_issues("train", [row], {"messages": "messages"})
    assert (issue.code, issue.fatal) == ("content-part-unread", True)
    assert not find_row_issues("train", [{**row, "images": []}], {"messages": "messages"})


@pytest.mark.parametrize("tools", ["[", {"type": "function"}, [{"parameters": {}}], 7, "7"])
def test_broken_tools_are_refused(tools: Any) -> None:
    row = {"messages": [turn("user"), turn("assistant")], "tools": tools}
    (issue,) = find_row_issues("train", [row], {"messages": "messages", "tools": "tools"})
    assert (issue.code, issue.fatal) == ("tools-malformed", True)


def test_empty_system_and_written_tools_are_counted() -> None:
    rows = [*read_rows(ROWS / "hermes.jsonl"), *read_rows(ROWS / "openai.jsonl")]
    columns = {"messages": "conversations", "tools": "tools"}
    (issue,) = find_row_issues("train", rows[:2], columns)
    assert (issue.code, issue.rows) == ("tools-in-system", (1,))
    assert read_conversation(rows[1], columns).tools is None
    found = {i.code: i.rows for i in find_row_issues("train", rows[2:], {"messages": "messages"})}
    assert found == {"after-last-answer": (3, 8), "empty-system": (6,)}


def test_alpacas_history_is_refused() -> None:
    rows: list[Row] = [{"instruction": "a", "output": "b", "history": [["c", "d"]]}]
    columns = SupervisedFineTuning.columns({}, rows[0])
    checked = SupervisedFineTuning.check(dict.fromkeys(SPLITS, rows), {"columns": columns})
    assert {i.code for i in checked.issues if i.fatal} == {"history-unread"}
    rows = [{"instruction": "a", "output": "b", "history": []}]
    assert not SupervisedFineTuning.check(dict.fromkeys(SPLITS, rows), {"columns": columns}).issues


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "a", "answer": "b"}, {"prompt": "question", "completion": "answer"}),
        ({"id": 1, "prompt": "a", "response": "b"}, {"prompt": "prompt", "completion": "response"}),
        ({"input": "a", "output": "b"}, {"prompt": "input", "completion": "output"}),
        (
            {"instruction": "a", "response": "b"},
            {"prompt": "instruction", "completion": "response"},
        ),
        (
            {"instruction": "a", "context": "", "response": "b"},
            {"instruction": "instruction", "completion": "response", "input": "context"},
        ),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "instruction", "completion": "output"},
        ),
        ({"question": "a", "answer": "b", "response": "c"}, None),
        ({"question": "a", "answer": "b", "context": "c"}, None),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, None),
        ({"prompt": "a", "completion": "b", "tools": []}, None),
        ({"text": "a", "label": "b"}, None),
        ({"conversations": "text"}, None),
    ],
)  # fmt: skip
def test_columns_are_recognised_where_they_are_clear(
    row: dict[str, Any], columns: dict[str, str] | None
) -> None:
    assert recognise_columns({}, row) == columns


def test_named_columns_come_first() -> None:
    row = {"chat": [turn("user")], "functions": [], "prompt": "a", "completion": "b"}
    assert recognise_columns({"messages": "chat"}, row) == {
        "messages": "chat", "tools": "functions",
    }  # fmt: skip
    assert recognise_columns({"prompt": "prompt"}, row) is None
    with pytest.raises(PreflightError) as error:
        SupervisedFineTuning.columns({"messages": "chat", "prompt": "prompt"}, row)
    assert error.value.code == "fields-mixed"


def test_system_beside_the_messages() -> None:
    rows: list[Row] = [
        {"conversations": [turn("user"), turn("assistant")], "system": "Be brief."},
        {"conversations": [turn("system", "own"), turn("user"), turn("assistant")], "system": "no"},
        {"conversations": [turn("user"), turn("assistant")], "system": None},
    ]
    columns = SupervisedFineTuning.columns({}, first_values(rows))
    assert columns == {"messages": "conversations", "system": "system"}
    first = [read_conversation(row, columns, "the study's").messages[0] for row in rows]
    assert [m["content"] for m in first] == ["Be brief.", "own", "the study's"]


def test_tools_of_parquet_have_no_empty_keys() -> None:
    """Parquet fills each tool with the keys of the others."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "default": None}, "b": None}}
    tools = [{"name": "f", "parameters": schema, "strict": None}]
    row = {"messages": [turn("user"), turn("assistant")], "tools": tools}
    (tool,) = read_conversation(row, {"messages": "messages", "tools": "tools"}).tools or []
    assert tool["function"] == {
        "name": "f",
        "parameters": {
            "type": "object", "properties": {"a": {"type": "string", "default": None}}
        },
    }  # fmt: skip


def test_a_study_splits_turns_of_train_only() -> None:
    values = {
        "name": "s", "base": {"model": "base"}, "data": {"train": "t.jsonl"},
        "task": {"kind": "sft", "supervise": "each"},
        "methods": {"control": "lora", "contenders": ["ia3"]},
    }  # fmt: skip
    rows = read_rows(ROWS / "sharegpt.jsonl")
    splits = Splits({"train": rows, "validation": rows, "test": rows}, {})
    found = split_turns(parse_spec(values), SupervisedFineTuning, splits)
    assert found.counts == {"train": 6, "validation": 4, "test": 4}
    values["task"] = {"kind": "sft"}
    assert split_turns(parse_spec(values), SupervisedFineTuning, splits) is splits
    assert "supervise" not in comparable_spec(parse_spec(values))["task"], "older studies go on"
