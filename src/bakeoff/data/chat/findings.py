"""Issues of conversations: those of the rows alone, and those of what a template does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from bakeoff.data.chat.forms import Conversation, left_out, read_conversation
from bakeoff.data.chat.messages import (
    DEVELOPER,
    REASONING,
    SYSTEM,
    TOOL,
    Message,
    supervised_turns,
    unread_keys,
)
from bakeoff.data.chat.template import Chat, UnusableConversation
from bakeoff.data.chat.unreadable import InvalidConversation, UnreadableConversation
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row

LEFT_OUT = {
    "after-last-answer": (
        "Turns after the last supervised assistant turn are ignored",
        "no supervised turn answers them.",
    ),
    "empty-system": (
        "An empty system message is left out",
        "the rest of the conversation is used.",
    ),
    "tools-in-system": (
        "The tools are written out in the system message, so that they are not passed to the chat "
        "template too",
        "remove them from one of the two, if both are meant.",
    ),
}
"""What the conversation of a readable row leaves out: its code -> cause and hint."""


def find_row_issues(split: str, rows: Sequence[Row], columns: Mapping[str, str]) -> list[DataIssue]:
    """Return the invalid conversations of a split, and what is left out of the others."""
    affected: dict[str, list[int]] = {}
    first: dict[str, InvalidConversation] = {}
    for i, row in enumerate(rows):
        try:
            read_conversation(row, columns)
            codes = list(left_out(row, columns))
        except UnreadableConversation as error:
            first.setdefault(error.reason.code, error.reason)
            codes = [error.reason.code]
        for code in codes:
            affected.setdefault(code, []).append(i)
    issues = [
        DataIssue.at(code, e.what, e.try_, split, affected[code], len(rows), fatal=True)
        for code, e in first.items()
    ]
    issues += [
        DataIssue.at(code, *LEFT_OUT[code], split, affected[code], len(rows))
        for code in LEFT_OUT
        if code in affected
    ]
    return issues


def find_history(split: str, rows: Sequence[Row]) -> list[DataIssue]:
    """Return an issue for Alpaca rows with earlier exchanges, which their prompt cannot hold."""
    found = [i for i, row in enumerate(rows) if row.get("history")]
    if not found:
        return []
    what = "Earlier exchanges ('history'), which Alpaca's prompt has no place for,"
    hint = "write these rows as `messages`, or remove the column `history`."
    return [DataIssue.at("history-unread", what, hint, split, found, len(rows), fatal=True)]


class _Found:
    """Rows in which a template does something that the user should know."""

    def __init__(self, split: str, of: int) -> None:
        self.split, self.of = split, of
        self._rows: dict[str, list[int]] = {}
        self._texts: dict[str, tuple[str, str]] = {}

    def add(self, row: int, code: str, what: str, try_: str) -> None:
        self._texts.setdefault(code, (what, try_))
        self._rows.setdefault(code, []).append(row)

    def issues(self) -> list[DataIssue]:
        return [
            DataIssue.at(code, *self._texts[code], self.split, rows, self.of)
            for code, rows in self._rows.items()
        ]


def find_template_issues(
    chat: Chat, split: str, conversations: Sequence[Conversation]
) -> list[DataIssue]:
    """Return what the chat template drops, rewrites or merges in these conversations.

    Conversations that it cannot render are left to ``Chat.encode``.
    """
    found, style = _Found(split, len(conversations)), _Once(chat)
    dated = [_DATED] if split == "train" and chat.writes_date() else []
    for i, conversation in enumerate(conversations):
        try:
            rendered = chat.turns(conversation)
        except UnusableConversation:
            continue
        if rendered.skipped:
            found.add(
                i,
                "earlier-turns-not-supervised",
                "Only the last assistant turn is supervised: the chat template renders earlier "
                "ones differently once more messages follow",
                '`supervise = "each"` under [task] trains on each turn as the last of a row of its '
                'own; `"last"` says that this is meant.',
            )
        for finding in _answer_findings(chat, conversation):
            found.add(i, *finding)
        for finding in style.findings(conversation):
            found.add(i, *finding)
    return [*dated, *found.issues()]


def _answer_findings(chat: Chat, conversation: Conversation) -> Iterator[tuple[str, str, str]]:
    message = conversation.messages[supervised_turns(conversation.messages)[-1]]
    own, thoughts = str(message["content"]).strip(), message.get(REASONING[0], "").strip()
    said = chat.answer(conversation).strip()
    written = thoughts or own.rpartition("</think>")[0].rpartition("<think>")[2].strip()
    if written:
        if written not in said:
            yield _DROPPED_THOUGHTS
    elif not message.get("tool_calls") and said != own:
        written = said.replace(own, "…") if own else said
        yield (
            "answer-rewritten",
            f"The chat template rewrites answers ({written[:60]!r}, where … is the row's), which "
            "is what is trained on",
            "`chat_template_kwargs` under [task], such as { enable_thinking = false }, or another "
            "`chat_template`, if this is not meant; thoughts are not compared.",
        )


_DATED = DataIssue(
    "date-in-prompt",
    "The chat template writes the date of the day into prompts (`strftime_now`): they change from "
    "day to day",
    '`chat_template_kwargs = { date_string = "26 Jul 2024" }` under [task], where the template '
    "knows it, or another `chat_template`.",
)
_DROPPED_THOUGHTS = (
    "thoughts-unwritten",
    "The chat template drops the thoughts of the last turn: nothing of them is trained on",
    "a `chat_template` under [task] that writes them, if they are to be learnt.",
)


class _Once:
    """What a template does with whole kinds of things, found once for each."""

    def __init__(self, chat: Chat) -> None:
        self._chat, self._known = chat, dict[str, bool]()

    def _is(self, name: str, probe: Callable[[], bool]) -> bool:
        if name not in self._known:
            self._known[name] = probe()
        return self._known[name]

    def findings(self, conversation: Conversation) -> Iterator[tuple[str, str, str]]:
        """Yield code, cause and hint of each thing in this conversation that is not as written."""
        style, messages = self._chat.style, conversation.messages
        if conversation.tools and not self._is("tools", style.writes_tools):
            yield (
                "tools-unwritten",
                "The chat template does not write the tools of the row: they are in no prompt",
                "a `chat_template` under [task] that uses `tools`.",
            )
        if conversation.documents and not self._is("documents", style.writes_documents):
            yield (
                "documents-unwritten",
                "The chat template does not write the documents of the row: they are in no prompt",
                "a `chat_template` under [task] that uses `documents`.",
            )
        yield from self._role_findings(messages)
        if keys := unread_keys(messages, self._chat.template).keys:
            yield (
                "message-keys-unread",
                f"Messages have keys that nothing reads ({', '.join(keys[:5])})",
                "remove them, if they say nothing about what is to be learnt.",
            )

    def _role_findings(self, messages: Sequence[Message]) -> Iterator[tuple[str, str, str]]:
        style = self._chat.style
        roles = {m["role"] for m in messages}
        if messages[0]["role"] in (SYSTEM, DEVELOPER) and not style.knows_system:
            yield (
                "system-merged",
                "The chat template refuses system messages: they stand in front of the first user "
                "message",
                "a `chat_template` under [task] with system messages, if this is not meant.",
            )
            roles -= {SYSTEM, DEVELOPER}
        for role in sorted(roles & {SYSTEM, TOOL}):
            if not self._is(role, partial(style.writes_role, role)):
                yield (
                    "role-unwritten",
                    f"The chat template does not write messages of the role {role}",
                    "a `chat_template` under [task] that does.",
                )
        if self._chat.renumbers(messages):
            yield (
                "call-ids-numbered",
                "The chat template demands ids of nine characters for tool calls: they are "
                "numbered",
                "give them such ids, if theirs matter.",
            )
