"""Recognise how a row holds its conversation or its instruction, and read it.

Forms: a column of messages (OpenAI, ShareGPT), prompt and completion that are both lists of
messages, and instruction, input and output (Alpaca). Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bakeoff.data.chat.messages import (
    ASSISTANT,
    DEVELOPER,
    SYSTEM,
    Message,
    check_answers,
    last_answer_index,
    read_messages,
    trim_conversation,
)
from bakeoff.data.chat.tool_calls import read_tools
from bakeoff.data.chat.turn_weights import ROW_MASKS, WEIGHT
from bakeoff.data.chat.unreadable import UnreadableConversation
from bakeoff.data.rows import LocatedRow, Row
from bakeoff.data.templates import columns_of, render_template

MESSAGES, TOOLS, DOCUMENTS, SYSTEM_TEXT = "messages", "tools", "documents", "system"
PROMPT_MESSAGES, ANSWER_MESSAGES = "prompt_messages", "completion_messages"
INSTRUCTION, INPUT, COMPLETION = "instruction", "input", "completion"
CONTEXT_COLUMNS = {
    TOOLS: (TOOLS, "functions"), DOCUMENTS: (DOCUMENTS,),
    SYSTEM_TEXT: (SYSTEM_TEXT, "system_prompt"),
}  # fmt: skip
"""What a conversation may have beside its messages -> the columns that hold it."""
MEDIA = ("images", "videos", "audios")
"""Columns beside messages whose placeholders are in the text of these."""
CONVERSATION_COLUMNS = ("conversations", "conversation", "chat", "dialogue", "dialog", "turns")
ALPACA_COLUMNS = (
    (INSTRUCTION, INPUT, "output"), (INSTRUCTION, "context", "response"),
    (INSTRUCTION, None, "output"),
)  # fmt: skip
PAIR_COLUMNS = (
    ("question", "answer"), ("prompt", "response"), ("input", "output"),
    (INSTRUCTION, "response"), ("query", "response"), ("question", "response"),
)  # fmt: skip
"""Other names of prompt and completion."""
CHANGES_THE_PROMPT = ("context", "passage", "document", "choices", "options", "history", "chosen")
"""Columns with which a pair of columns is not the whole prompt, or not the answer."""
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
"""Stanford Alpaca's prompts, with and without an input."""


@dataclass(frozen=True)
class Conversation:
    """The messages of a row up to its last supervised turn, and what its template gets besides."""

    messages: tuple[Message, ...]
    tools: list[dict[str, Any]] | None = None
    documents: list[Any] | None = None


class Exchange(NamedTuple):
    """A prompt and its answer, as plain text."""

    prompt: str
    answer: str


def first_values(rows: Iterable[Row]) -> dict[str, Any]:
    """Return a row with every column of some rows, each with its first value that is not empty."""
    found: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if name not in found or (found[name] in (None, "", []) and value is not None):
                found[name] = value
    return found


def recognise_columns(given: Mapping[str, str], row: Iterable[str]) -> dict[str, str] | None:
    """Return the column of each field of a conversation or an instruction; None if unclear.

    ``given`` are the user's ``[data.columns]``. ``row`` has the columns of all rows (see
    ``first_values``), or is their names.
    """
    names = {name: row[name] if isinstance(row, Mapping) else None for name in row}
    if given.keys() & {MESSAGES, *CONTEXT_COLUMNS}:
        return _with_context({MESSAGES: MESSAGES, **given}, names)
    if given.keys() & {INSTRUCTION, INPUT}:
        columns = {INSTRUCTION: INSTRUCTION, COMPLETION: "output", **given}
        return columns if INPUT in given or INPUT not in names else {**columns, INPUT: INPUT}
    pair = {"prompt": "prompt", COMPLETION: COMPLETION, **given}
    if set(pair) == {"prompt", COMPLETION} and all(_holds_messages(names, pair[f]) for f in pair):
        columns = {PROMPT_MESSAGES: pair["prompt"], ANSWER_MESSAGES: pair["completion"]}
        return _with_context(columns, names)
    if given:
        return None
    return _recognise_unnamed(names)


def _recognise_unnamed(names: Mapping[str, Any]) -> dict[str, str] | None:
    if {"prompt", "completion"} <= names.keys():
        return None
    if MESSAGES in names:
        return _with_context({MESSAGES: MESSAGES}, names)
    chats = [c for c in CONVERSATION_COLUMNS if _holds_messages(names, c)]
    if len(chats) == 1:
        return _with_context({MESSAGES: chats[0]}, names)
    for instruction, context, output in ALPACA_COLUMNS:
        if {instruction, output, *([context] if context else [])} <= names.keys():
            columns = {INSTRUCTION: instruction, COMPLETION: output}
            return {**columns, INPUT: context} if context else columns
    if names.keys() & set(CHANGES_THE_PROMPT):
        return None
    pairs = [p for p in PAIR_COLUMNS if set(p) <= names.keys()]
    if len(pairs) == 1 and not names.keys() & ({"prompt", "completion"} - set(pairs[0])):
        return {"prompt": pairs[0][0], "completion": pairs[0][1]}
    return None


def _holds_messages(names: Mapping[str, Any], column: str) -> bool:
    value = names.get(column)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, Mapping) and m.keys() & {"role", "from"} for m in value)
    )


def _with_context(columns: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    present = set(names)
    context = {
        field: next(c for c in choices if c in present)
        for field, choices in CONTEXT_COLUMNS.items()
        if present & set(choices)
    }
    return {**columns, **{f: c for f, c in context.items() if f not in columns}}


def describe_columns(given: Mapping[str, str], columns: Mapping[str, str]) -> str | None:
    """Return one line on columns that were recognised and not named; None if none were."""
    if MESSAGES in columns:
        parts = (
            []
            if given or columns[MESSAGES] == MESSAGES
            else [f"conversations in the column '{columns[MESSAGES]}'"]
        )
    elif PROMPT_MESSAGES in columns:
        parts = [
            f"messages in '{columns[PROMPT_MESSAGES]}', answered by those in "
            f"'{columns[ANSWER_MESSAGES]}'"
        ]
    elif INSTRUCTION in columns:
        fields = ", ".join(columns[f] for f in (INSTRUCTION, INPUT, COMPLETION) if f in columns)
        parts = [] if given else [f"Alpaca's instructions ({fields})"]
    elif columns.get("prompt") == "prompt" and columns.get("completion") == "completion":
        parts = []
    else:
        parts = (
            []
            if given or "prompt" not in columns
            else [f"prompt = '{columns['prompt']}', completion = '{columns['completion']}'"]
        )
    for field, use in ((TOOLS, "chat template"), (DOCUMENTS, "chat template"), (SYSTEM_TEXT, None)):
        if field in columns and field not in given:
            parts.append(f"'{columns[field]}' for the {use or 'system message'}")
    return f"recognised in the rows: {', and '.join(parts)}" if parts else None


def is_conversation(columns: Mapping[str, str]) -> bool:
    """Tell whether rows hold messages."""
    return MESSAGES in columns or PROMPT_MESSAGES in columns


def read_turns(row: Row, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return all messages of a row that holds messages; those of a prompt are context.

    Raises:
        UnreadableConversation: see ``read_messages`` and ``check_answers``.
    """
    if MESSAGES in columns:
        messages = read_messages(row[columns[MESSAGES]])
    else:
        prompt = read_messages(row[columns[PROMPT_MESSAGES]])
        masked = [{**m, WEIGHT: 0} if m["role"] == ASSISTANT else m for m in prompt]
        messages = [*masked, *read_messages(row[columns[ANSWER_MESSAGES]])]
    check_answers(messages)
    return messages


def read_conversation(
    row: Row, columns: Mapping[str, str], system: str | None = None
) -> Conversation:
    """Return the conversation of a row that holds messages.

    Raises:
        UnreadableConversation: see ``read_turns``; ``row-mask-unread``, ``content-part-unread``,
            ``tools-malformed``.
    """
    masks = [c for c in ROW_MASKS if c in row and row[c] not in (None, 1, True)]
    if masks:
        raise UnreadableConversation(
            "row-mask-unread",
            f"A column '{masks[0]}' beside the messages, which weighs or masks them",
            f"`{WEIGHT}`: 0 on the turns that are not to be trained on, or remove the column.",
        )
    media = next((c for c in MEDIA if isinstance(row.get(c), list) and row[c]), None)
    if media is not None:
        raise UnreadableConversation(
            "content-part-unread",
            f"A column '{media}' beside the messages, which are more than text then",
            "drop these rows, or remove the column: only text is trained on.",
        )
    own = str(row.get(columns.get(SYSTEM_TEXT, "")) or "")
    messages = tuple(trim_conversation(read_turns(row, columns), own if own.strip() else system))
    tools = read_tools(row.get(columns[TOOLS])) if TOOLS in columns else None
    if tools and any(_lists_tools(m) for m in messages):
        tools = None
    documents = row.get(columns[DOCUMENTS]) if DOCUMENTS in columns else None
    return Conversation(messages, tools, documents or None)


def _lists_tools(message: Message) -> bool:
    """Tell whether a system message has the tools written out, as Hermes' data has."""
    return message["role"] in (SYSTEM, DEVELOPER) and "<tools>" in message["content"]


def left_out(row: Row, columns: Mapping[str, str]) -> Iterable[str]:
    """Yield a code for each thing in a readable row that its conversation leaves out."""
    messages = read_turns(row, columns)
    if last_answer_index(messages) != len(messages) - 1:
        yield "after-last-answer"
    if any(m["role"] in (SYSTEM, DEVELOPER) and not m["content"].strip() for m in messages):
        yield "empty-system"
    if TOOLS in columns and row.get(columns[TOOLS]) and any(map(_lists_tools, messages)):
        yield "tools-in-system"


def read_exchange(row: Row, columns: Mapping[str, str]) -> Exchange:
    """Return prompt and completion of a row without messages, Alpaca's prompt included."""
    if INSTRUCTION not in columns:
        return Exchange(
            render_template(columns["prompt"], row), render_template(columns[COMPLETION], row)
        )
    instruction, context = _instruction(row, columns)
    text = ALPACA_WITH_INPUT if context.strip() else ALPACA
    # one pass: an instruction may hold braces
    prompt = render_template(text, {INSTRUCTION: instruction, INPUT: context})
    return Exchange(prompt, render_template(columns[COMPLETION], row))


def read_question(row: Row, columns: Mapping[str, str]) -> str:
    """Return the prompt of a row without messages as a user's message, and as its question."""
    if INSTRUCTION not in columns:
        return read_exchange(row, columns).prompt
    return "\n\n".join(filter(str.strip, _instruction(row, columns)))


def _instruction(row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
    context = render_template(columns[INPUT], row) if INPUT in columns else ""
    return render_template(columns[INSTRUCTION], row), context


def one_row_per_turn(row: Row, columns: Mapping[str, str]) -> list[Row]:
    """Return the row once for each supervised turn, as a conversation that ends with it.

    Earlier turns are masked, so that the rows of such a row are that row. An unreadable row is
    returned as it is.
    """
    field = MESSAGES if MESSAGES in columns else ANSWER_MESSAGES
    try:
        messages = read_messages(row[columns[field]])
        read_turns(row, columns)
    except (UnreadableConversation, KeyError):
        return [row]  # the checks of the rows refuse it
    rows: list[Row] = []
    for i, message in enumerate(messages):
        if message["role"] == ASSISTANT and message.get(WEIGHT, 1) != 0:
            masked = [{**m, WEIGHT: 0} if m["role"] == ASSISTANT else m for m in messages[:i]]
            content = {**row, columns[field]: [*masked, message]}
            rows.append(LocatedRow(content, row.place) if isinstance(row, LocatedRow) else content)
    return rows


def used_columns(columns: Mapping[str, str]) -> Sequence[str]:
    """Return the columns of a row that its fields are read from."""
    return [column for template in columns.values() for column in columns_of(template)]
