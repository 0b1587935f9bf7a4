"""Validate and trim the messages of a row.

A message is ``{"role": ..., "content": ...}``; roles are system, user and assistant. Standard
library only, so that rows are checked before a tokenizer is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bakeoff.core.errors import near_match

Message = Mapping[str, Any]
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)
ROLE_ALIASES = {
    "human": USER, "prompter": USER, "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT,
    "chatgpt": ASSISTANT, "developer": SYSTEM,
}  # fmt: skip
"""Names of the roles in other formats."""
_TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
_TOOL_ROLES = ("tool", "function", "ipython", "observation")


class InvalidConversation(NamedTuple):
    """Why a conversation is invalid: a stable code, a clause and a hint."""

    code: str
    what: str
    try_: str


def find_conversation_error(value: Any) -> InvalidConversation | None:
    """Return why a cell is not a conversation with an answer; None if it is one."""
    shape = 'a list of {"role": …, "content": …}, one for each message.'
    if not isinstance(value, list | tuple) or not value:
        return InvalidConversation(
            "messages-malformed", "A conversation that is not a list of messages", shape
        )
    for number, message in enumerate(value, 1):
        error = _find_message_error(number, message, shape)
        if error is not None:
            return error
    roles = [m["role"] for m in value]
    if ASSISTANT not in roles:
        return InvalidConversation(
            "no-assistant-turn",
            "A conversation without an assistant turn: there is nothing to train on",
            "drop these rows, or add an answer.",
        )
    if roles[0] == ASSISTANT:
        return InvalidConversation(
            "assistant-first",
            "A conversation that starts with the assistant: its first turn answers nothing",
            "drop that turn, or add the prompt that it answers.",
        )
    return None


def _find_message_error(number: int, message: Any, shape: str) -> InvalidConversation | None:
    if not isinstance(message, Mapping):
        what = f"Message {number} is not an object"
        return InvalidConversation("messages-malformed", what, shape)
    if {"from", "value"} <= message.keys() and "role" not in message:
        try_ = "rename `from` to `role` and `value` to `content`; human is user, gpt assistant."
        return InvalidConversation("messages-malformed", f"Message {number} has no 'role'", try_)
    role, content = message.get("role"), message.get("content")
    if role in _TOOL_ROLES or any(message.get(key) for key in _TOOL_KEYS):
        return InvalidConversation(
            "tool-messages",
            f"Message {number} is a tool call or a tool result, which bakeoff does not train on",
            "drop these rows, or write calls and results as text of the turns.",
        )
    if role not in ROLES:
        near = ROLE_ALIASES.get(str(role).lower()) or near_match(str(role), ROLES)
        hint = f"did you mean '{near}'? " if near else ""
        known = ", ".join(ROLES)
        what = (
            f"Message {number} has the role {role!r}" if role else f"Message {number} has no role"
        )
        return InvalidConversation("unknown-role", what, f"{hint}Roles are {known}.")
    if isinstance(content, list):
        what = f"The content of message {number} is a list of parts, not text"
        return InvalidConversation(
            "messages-malformed", what, "join the text parts; images are not read."
        )
    if not isinstance(content, str) or not content.strip():
        what = f"Message {number} ({role}) has no content"
        return InvalidConversation("empty-message", what, "drop these rows, or fill the message.")
    return None


def trim_conversation(value: Sequence[Message], system: str | None = None) -> list[dict[str, Any]]:
    """Return a row's messages up to the last assistant turn, with all of their keys.

    ``system`` is put in front unless the row has its own system message.
    """
    kept = [
        {k: v for k, v in m.items() if v is not None} for m in value[: last_answer_index(value) + 1]
    ]
    if system is not None and kept[0]["role"] != SYSTEM:
        kept.insert(0, {"role": SYSTEM, "content": system})
    return kept


def single_exchange(prompt: str, answer: str) -> list[Message]:
    """Return a conversation of one prompt and its answer."""
    return [{"role": USER, "content": prompt}, {"role": ASSISTANT, "content": answer}]


def as_text(messages: Sequence[Message]) -> str:
    """Return messages as plain text, each after its role."""
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def last_answer_index(messages: Sequence[Message]) -> int:
    """Return the position of the last assistant turn."""
    return max(i for i, m in enumerate(messages) if m["role"] == ASSISTANT)


def drop_oldest_exchange(messages: Sequence[Message]) -> list[Message] | None:
    """Return a conversation without its oldest exchange; None if it has only one.

    Leading system messages stay; the next message is a user's.
    """
    lead = next((i for i, m in enumerate(messages) if m["role"] != SYSTEM), len(messages))
    for i, message in enumerate(messages):
        if i > lead and message["role"] == USER:
            return [*messages[:lead], *messages[i:]]
    return None
