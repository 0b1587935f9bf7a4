"""Read the messages of a row into one form, whatever format they are in.

A message is ``{"role": ..., "content": ...}``; roles are system, developer, user, assistant and
tool. ``from`` and ``value`` (ShareGPT), parts of text, tool calls in OpenAI's forms, thoughts and
keys that mask a turn (``weight``) are read too. Standard library only, so that rows are checked
before a tokenizer is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bakeoff.core.errors import near_match
from bakeoff.data.chat.tool_calls import parse_json, read_tool_calls
from bakeoff.data.chat.turn_weights import WEIGHT, read_weight, without_weight_keys
from bakeoff.data.chat.unreadable import InvalidConversation, UnreadableConversation

Message = Mapping[str, Any]
SYSTEM, DEVELOPER, USER, ASSISTANT, TOOL = "system", "developer", "user", "assistant", "tool"
ROLES = (SYSTEM, DEVELOPER, USER, ASSISTANT, TOOL)
FUNCTION_CALL = "function_call"
"""ShareGPT's role of a turn whose text is a tool call in JSON."""
ROLE_ALIASES = {
    "human": USER, "prompter": USER, "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT,
    "chatgpt": ASSISTANT, "function": TOOL, "ipython": TOOL, "observation": TOOL,
    "tool_response": TOOL, "function_response": TOOL, "tool_call": FUNCTION_CALL,
}  # fmt: skip
"""Names of the roles in other formats."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of an assistant's thoughts; the first is the one that is kept."""
PLAIN_KEYS = frozenset(
    {"role", "content", "tool_calls", REASONING[0], WEIGHT, "tool_call_id", "name", "id",
     "timestamp", "created_at", "create_time", "date", "index", "turn", "turn_id", "message_id",
     "parent_id", "conversation_id", "author", "lang", "language", "source", "model", "refusal",
     "annotations", "audio"}
)  # fmt: skip
"""Keys that are read, or that say nothing about what is trained on."""
_SHAPE = 'a list of {"role": …, "content": …}, one for each message.'
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")


def read_messages(value: Any) -> list[dict[str, Any]]:
    """Return the messages of a cell in one form; a cell may be JSON text.

    Raises:
        UnreadableConversation: with a stable code, a clause and a hint.
    """
    if isinstance(value, str):
        value = parse_json(value)
    if not isinstance(value, list | tuple) or not value:
        raise UnreadableConversation(
            "messages-malformed", "A conversation that is not a list of messages", _SHAPE
        )
    return [_read_message(number, message) for number, message in enumerate(value, 1)]


def find_conversation_error(value: Any) -> InvalidConversation | None:
    """Return why a cell is not a conversation with an answer; None if it is one."""
    try:
        check_answers(read_messages(value))
    except UnreadableConversation as error:
        return error.reason
    return None


def check_answers(messages: Sequence[Message]) -> None:
    """Check that a conversation has an assistant turn to supervise, after a prompt.

    Raises:
        UnreadableConversation: ``no-assistant-turn``, ``assistant-first``, ``all-turns-masked``.
    """
    roles = [m["role"] for m in messages]
    if ASSISTANT not in roles:
        raise UnreadableConversation(
            "no-assistant-turn",
            "A conversation without an assistant turn: there is nothing to train on",
            "drop these rows, or add an answer.",
        )
    if roles[0] == ASSISTANT:
        raise UnreadableConversation(
            "assistant-first",
            "A conversation that starts with the assistant: its first turn answers nothing",
            "drop that turn, or add the prompt that it answers.",
        )
    if not supervised_turns(messages):
        raise UnreadableConversation(
            "all-turns-masked",
            f"A conversation whose assistant turns are all masked ({WEIGHT} 0 or the like): there "
            "is nothing to train on",
            "drop these rows, or remove the mask from an answer.",
        )


def _read_message(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UnreadableConversation(
            "messages-malformed", f"Message {number} is not an object", _SHAPE
        )
    kept = {k: v for k, v in message.items() if v is not None}
    if "role" not in kept and "from" in kept:
        kept["role"] = kept.pop("from")
        if "content" not in kept and "value" in kept:
            kept["content"] = kept.pop("value")
    role = kept["role"] = _read_role(number, kept.get("role"))
    if role == FUNCTION_CALL:
        role = kept["role"] = ASSISTANT
        kept["tool_calls"] = parse_json(str(kept.pop("content", "")))
        if kept["tool_calls"] is None:
            raise UnreadableConversation(
                "tool-call-malformed",
                f"Message {number} is a function call whose text is not JSON",
                '{"name": …, "arguments": {…}}.',
            )
    weight = read_weight(number, kept, supervisable=role == ASSISTANT)
    kept = without_weight_keys(kept)
    if weight == 0:
        kept[WEIGHT] = 0
    calls = read_tool_calls(number, role, kept)
    if calls:
        kept["tool_calls"] = calls
    else:
        kept.pop("tool_calls", None)
    kept.pop("function_call", None)
    _read_thoughts(number, role, kept)
    _read_content(number, role, kept)
    return kept


def _read_role(number: int, role: Any) -> str:
    name = ROLE_ALIASES.get(str(role).lower(), role)
    if name not in (*ROLES, FUNCTION_CALL):
        near = near_match(str(role), ROLES) if role else None
        hint = f"did you mean '{near}'? " if near else ""
        what = (
            f"Message {number} has the role {role!r}" if role else f"Message {number} has no role"
        )
        raise UnreadableConversation("unknown-role", what, f"{hint}Roles are {', '.join(ROLES)}.")
    return str(name)


def _read_thoughts(number: int, role: str, message: dict[str, Any]) -> None:
    """Keep an assistant's thoughts under one key.

    Raises:
        UnreadableConversation: ``thoughts-unread``.
    """
    given = {key: message.pop(key) for key in REASONING if key in message}
    texts = {value for value in given.values() if isinstance(value, str)}
    if any(not isinstance(v, str) for v in given.values()) or len(texts) > 1:
        raise UnreadableConversation(
            "thoughts-unread",
            f"Message {number} has thoughts that are not one text ({', '.join(given)})",
            f"one text in `{REASONING[0]}`.",
        )
    if texts and (text := texts.pop()).strip():
        if role != ASSISTANT:
            raise UnreadableConversation(
                "thoughts-unread",
                f"Message {number} ({role}) has thoughts, which only an assistant turn has",
                f"remove `{next(iter(given))}` from it.",
            )
        message[REASONING[0]] = text


def _read_content(number: int, role: str, message: dict[str, Any]) -> None:
    content = message.get("content")
    if isinstance(content, list):
        content = _join_parts(number, content, message)
    elif isinstance(content, Mapping) and role == TOOL:
        content = json.dumps(content, ensure_ascii=False)
    if content is None and (message.get("tool_calls") or role == TOOL):
        content = ""
    may_be_empty = role in (SYSTEM, DEVELOPER, TOOL) or message.get("tool_calls")
    if not isinstance(content, str) or not (content.strip() or may_be_empty):
        what = f"Message {number} ({role}) has no content"
        if content is not None and not isinstance(content, str):
            what = f"The content of message {number} ({role}) is not text"
        raise UnreadableConversation("empty-message", what, "drop these rows, or fill the message.")
    message["content"] = content


def _join_parts(number: int, parts: Sequence[Any], message: dict[str, Any]) -> str:
    """Return the joined text of a content's parts; parts of thoughts go to the thoughts."""
    texts, thoughts = [], []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part if isinstance(part, str) else None
        if isinstance(part, Mapping):
            text = part.get("text", part.get(kind))
        if isinstance(text, str) and kind in _TEXT_PARTS:
            texts.append(text)
        elif isinstance(text, str) and kind in _THOUGHT_PARTS:
            thoughts.append(text)
        else:
            raise UnreadableConversation(
                "content-part-unread",
                f"The content of message {number} has a part of the type {kind!r}, which is not "
                "text",
                "drop these rows, or remove the part: only text is trained on.",
            )
    if thoughts and message["role"] == ASSISTANT:
        message.setdefault(REASONING[0], "".join(thoughts))
    return "".join(texts)


def supervised_turns(messages: Sequence[Message]) -> list[int]:
    """Return the positions of the assistant turns that are not masked."""
    return [i for i, m in enumerate(messages) if m["role"] == ASSISTANT and m.get(WEIGHT, 1) != 0]


def trim_conversation(value: Sequence[Message], system: str | None = None) -> list[dict[str, Any]]:
    """Return a row's messages up to the last supervised turn, with all of their keys.

    Empty system messages are left out. ``system`` is put in front unless the row has its own.
    """
    kept = [
        {k: v for k, v in m.items() if v is not None}
        for m in value[: last_answer_index(value) + 1]
        if m["role"] not in (SYSTEM, DEVELOPER) or m["content"].strip()
    ]
    if system is not None and kept[0]["role"] not in (SYSTEM, DEVELOPER):
        kept.insert(0, {"role": SYSTEM, "content": system})
    return kept


def single_exchange(prompt: str, answer: str) -> list[Message]:
    """Return a conversation of one prompt and its answer."""
    return [{"role": USER, "content": prompt}, {"role": ASSISTANT, "content": answer}]


def as_text(messages: Sequence[Message]) -> str:
    """Return messages as plain text, each after its role."""
    return "\n".join(f"{m['role']}: {message_text(m)}" for m in messages)


def message_text(message: Message) -> str:
    """Return the content of a message, followed by its tool calls in JSON."""
    calls = [json.dumps(c["function"], ensure_ascii=False) for c in message.get("tool_calls", ())]
    return "\n".join(filter(None, [str(message["content"]), *calls]))


def last_answer_index(messages: Sequence[Message]) -> int:
    """Return the position of the last supervised turn; of the last one if all are masked."""
    turns = supervised_turns(messages)
    return max(turns or (i for i, m in enumerate(messages) if m["role"] == ASSISTANT))


def drop_oldest_exchange(messages: Sequence[Message]) -> list[Message] | None:
    """Return a conversation without its oldest exchange; None if nothing can be dropped.

    Leading system messages stay; the next message is a user's, and a supervised turn remains.
    """
    lead = next(
        (i for i, m in enumerate(messages) if m["role"] not in (SYSTEM, DEVELOPER)), len(messages)
    )
    for i, message in enumerate(messages):
        if i > lead and message["role"] == USER:
            return [*messages[:lead], *messages[i:]]
    return None


class UnreadKeys(NamedTuple):
    """Keys of a row's messages that nothing reads."""

    keys: tuple[str, ...]


def unread_keys(messages: Sequence[Message], template: str) -> UnreadKeys:
    """Return the keys of messages that neither bakeoff nor the chat template reads."""
    keys = {str(k) for m in messages for k in m} - PLAIN_KEYS
    return UnreadKeys(tuple(sorted(k for k in keys if k not in template)))
