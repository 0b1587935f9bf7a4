"""The messages of a row: what a conversation must look like, and what of it is used.

Part of ``chat``. A message is ``{"role": ..., "content": ...}``; roles are system, user and
assistant. Standard library only, so that a row is refused before a tokenizer is looked for.
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
"""What other formats call the roles."""
_TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
_TOOL_ROLES = ("tool", "function", "ipython", "observation")


class InvalidConversation(NamedTuple):
    """What is wrong with a conversation: a stable code, a clause, a way out."""

    code: str
    what: str
    try_: str


def find_conversation_error(value: Any) -> InvalidConversation | None:
    """Return what keeps a cell from being a conversation with an answer; None where it is one."""
    shape = 'a list of {"role": …, "content": …}, one for each message.'
    if not isinstance(value, list | tuple) or not value:
        return InvalidConversation(
            "messages-malformed", "A conversation that is no list of messages", shape
        )
    for number, message in enumerate(value, 1):
        found = _find_message_error(number, message, shape)
        if found is not None:
            return found
    roles = [m["role"] for m in value]
    if ASSISTANT not in roles:
        return InvalidConversation(
            "no-assistant-turn",
            "A conversation without an assistant turn: nothing can be learnt from it",
            "drop these rows, or give them an answer.",
        )
    if roles[0] == ASSISTANT:
        return InvalidConversation(
            "assistant-first",
            "A conversation that the assistant opens: its first turn answers nothing",
            "drop that turn, or put what it answers before it.",
        )
    return None


def _find_message_error(number: int, message: Any, shape: str) -> InvalidConversation | None:
    if not isinstance(message, Mapping):
        return InvalidConversation("messages-malformed", f"Message {number} is no object", shape)
    if {"from", "value"} <= message.keys() and "role" not in message:
        try_ = "rename `from` to `role` and `value` to `content`; human is user, gpt assistant."
        return InvalidConversation("messages-malformed", f"Message {number} has no 'role'", try_)
    role, content = message.get("role"), message.get("content")
    if role in _TOOL_ROLES or any(message.get(key) for key in _TOOL_KEYS):
        return InvalidConversation(
            "tool-messages",
            f"Message {number} calls a tool or holds a tool's result, which is not trained on",
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
    """Return a row's messages up to the last assistant turn, with what else they hold.

    ``system`` is put in front, unless the row has a system message of its own.
    """
    kept = [
        {k: v for k, v in m.items() if v is not None} for m in value[: last_answer_index(value) + 1]
    ]
    if system is not None and kept[0]["role"] != SYSTEM:
        kept.insert(0, {"role": SYSTEM, "content": system})
    return kept


def single_exchange(asked: str, answer: str) -> list[Message]:
    """Return the conversation of one question and its answer."""
    return [{"role": USER, "content": asked}, {"role": ASSISTANT, "content": answer}]


def as_text(messages: Sequence[Message]) -> str:
    """Return messages as plain text, a line that names the role before each."""
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def last_answer_index(messages: Sequence[Message]) -> int:
    """Return the position of the last assistant turn."""
    return max(i for i, m in enumerate(messages) if m["role"] == ASSISTANT)


def drop_oldest_exchange(messages: Sequence[Message]) -> list[Message] | None:
    """Return a conversation without its oldest exchange; None where only one is left.

    System messages that lead stay; what is left begins with a user.
    """
    lead = next((i for i, m in enumerate(messages) if m["role"] != SYSTEM), len(messages))
    for i, message in enumerate(messages):
        if i > lead and message["role"] == USER:
            return [*messages[:lead], *messages[i:]]
    return None
