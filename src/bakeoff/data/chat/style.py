"""Find out how a chat template takes its messages: system prompts, roles, tool calls.

Templates differ in what they know, and some drop silently what they do not know. Each property is
found by rendering a short conversation with words that occur nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from bakeoff.core.errors import PreflightError
from bakeoff.data.chat.messages import (
    ASSISTANT,
    DEVELOPER,
    REASONING,
    SYSTEM,
    TOOL,
    USER,
    Message,
)
from bakeoff.data.chat.turn_weights import WEIGHT

Render = Callable[[Sequence[Message], Mapping[str, Any]], str]
"""Messages and further variables -> the template's text; raises what the template raises."""
_TOOL_ROLES = (TOOL, "ipython", "observation", "function", "tool_response")
_WORD = "zqxw"
_EXCHANGE = ({"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "b"})
_CALL_ID = "abcdefghi"
_RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
_WRITTEN_THOUGHTS = re.compile(r"\s*<think>\s*(.*?)\s*</think>\s*(.*)", re.DOTALL)
_EMPTY_CONTENTS = ("", None)


class TemplateStyle:
    """How one chat template takes its messages."""

    def __init__(self, template: str, render: Render) -> None:
        self.template = template
        self._render = render

    @cached_property
    def knows_system(self) -> bool:
        """Whether the template accepts a system message; one that refuses it gets it merged."""
        system = {"role": SYSTEM, "content": _WORD}
        return self._try([system, *_EXCHANGE]) is not None or self._try(_EXCHANGE) is None

    @cached_property
    def _tool_role(self) -> str:
        known = (role for role in _TOOL_ROLES if re.search(rf"['\"]{role}['\"]", self.template))
        return next(known, TOOL)

    @cached_property
    def call_form(self) -> tuple[str | None, bool] | None:
        """How calls are passed: the empty content, and whether arguments are JSON text.

        None if the template does not write tool calls.
        """
        for as_text in (False, True):
            for empty in _EMPTY_CONTENTS:
                call = _call({_WORD: f"{_WORD}b"}, as_text)
                turn = {"role": ASSISTANT, "content": empty, "tool_calls": [call]}
                text = self._try([_EXCHANGE[0], turn], {"tools": [_tool()]})
                if text is not None and f"{_WORD}f" in text and self._has_arguments(text):
                    return empty, as_text
        return None

    @staticmethod
    def _has_arguments(text: str) -> bool:
        return f"{_WORD}b" in text and f"'{_WORD}'" not in text and r"\"" not in text

    @cached_property
    def demands_ids(self) -> bool:
        """Whether the template refuses tool calls whose ids are not nine letters or digits."""
        if self.call_form is None:
            return False
        empty, as_text = self.call_form
        call = {**_call({}, as_text), "id": "1"}
        turn = {"role": ASSISTANT, "content": empty, "tool_calls": [call]}
        return self._try([_EXCHANGE[0], turn]) is None

    def writes_role(self, role: str) -> bool:
        """Whether the text of a message with this role is in the template's text."""
        messages: list[Message] = [{"role": role, "content": _WORD}, *_EXCHANGE]
        if role == TOOL:
            calling: Message = _EXCHANGE[1]
            if self.call_form is not None:
                call = _call({}, as_text=self.call_form[1])
                calling = {
                    "role": ASSISTANT, "content": self.call_form[0], "tool_calls": [call]
                }  # fmt: skip
            result = {"role": self._tool_role, "content": _WORD, "name": f"{_WORD}f"}
            messages = [
                _EXCHANGE[0], calling, {**result, "tool_call_id": _CALL_ID}, _EXCHANGE[1]
            ]  # fmt: skip
        text = self._try(messages)
        return text is None or _WORD in text.replace(f"{_WORD}f", "")

    def writes_tools(self) -> bool:
        """Whether the template writes the tools that it gets."""
        text = self._try(_EXCHANGE, {"tools": [_tool()]})
        return text is None or f"{_WORD}f" in text

    def writes_documents(self) -> bool:
        """Whether the template writes the documents that it gets."""
        text = self._try(_EXCHANGE, {"documents": [{"title": _WORD, "text": _WORD}]})
        return text is None or _WORD in text

    @cached_property
    def writes_thoughts(self) -> bool:
        """Whether the template writes the thoughts of the last turn."""
        turn = {**_EXCHANGE[1], **dict.fromkeys(REASONING, _WORD)}
        text = self._try([_EXCHANGE[0], turn])
        return text is None or _WORD in text

    def _try(
        self, messages: Sequence[Message], more: Mapping[str, Any] | None = None
    ) -> str | None:
        try:
            return self._render(messages, more or {})
        except PreflightError:  # the template never ends
            raise
        except Exception:  # whatever a template raises
            return None

    def prepare(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return messages in the form that the template takes."""
        prepared = [self._prepare_message(m) for m in messages]
        if prepared and prepared[0]["role"] == SYSTEM and not self.knows_system:
            prepared = _merge_system(prepared)
        return prepared

    def _prepare_message(self, message: Message) -> dict[str, Any]:
        made = {k: v for k, v in message.items() if k != WEIGHT}
        role = made["role"]
        if role == DEVELOPER and not re.search(r"['\"]developer['\"]", self.template):
            made["role"] = SYSTEM
        if role == TOOL:
            made["role"] = self._tool_role
            inner = _RESULT.fullmatch(made["content"])
            if inner and "<tool_response>" not in inner[1] and "<tool_response>" in self.template:
                made["content"] = inner[1]
        if role == ASSISTANT:
            self._place_thoughts(made)
        if (calls := made.get("tool_calls")) and self.call_form is not None:
            empty, as_text = self.call_form
            made["content"] = made["content"] or empty
            if as_text:
                made["tool_calls"] = [_with_text_arguments(c) for c in calls]
        return made

    def _place_thoughts(self, message: dict[str, Any]) -> None:
        """Put the thoughts of a turn where the template reads them: in a key, or in the content."""
        written = _WRITTEN_THOUGHTS.fullmatch(message["content"])
        in_content = "</think>" in self.template
        if written and not in_content and self.writes_thoughts:
            message[REASONING[0]], message["content"] = written[1], written[2]
        thoughts = message.get(REASONING[0])
        if thoughts and in_content and not self.writes_thoughts:
            message["content"] = f"<think>\n{thoughts.strip()}\n</think>\n\n{message['content']}"
        elif thoughts:
            message |= dict.fromkeys(REASONING, thoughts)


def number_calls(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose tool calls and results have ids of nine digits, in their order.

    Some templates demand such ids, and data of other models has none, or longer ones.
    """
    names: dict[Any, str] = {}
    open_calls: list[str] = []
    numbered: list[Message] = []
    count = 0
    for message in messages:
        made = dict(message)
        if made.get("tool_calls"):
            calls, open_calls = [], []
            for call in made["tool_calls"]:
                count += 1
                open_calls.append(f"{count:09d}")
                names[call.get("id")] = open_calls[-1]
                calls.append({**call, "id": open_calls[-1]})
            made["tool_calls"] = calls
        elif made["role"] == TOOL:
            own = made.get("tool_call_id")
            known = names.get(own) if own is not None else None
            if known is None and open_calls:
                known = open_calls[0]
            if known in open_calls:
                open_calls.remove(known)
            made["tool_call_id"] = known or f"{count:09d}"
        numbered.append(made)
    return numbered


def _merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with the leading system message in front of the first user message."""
    system, rest = messages[0], messages[1:]
    first = next((i for i, m in enumerate(rest) if m["role"] == USER), None)
    if first is None:
        return messages
    text = f"{system['content'].strip()}\n\n{rest[first]['content']}"
    return [*rest[:first], {**rest[first], "content": text}, *rest[first + 1 :]]


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _call(arguments: dict[str, Any], as_text: bool) -> dict[str, Any]:
    function = {"name": f"{_WORD}f", "arguments": arguments}
    call = {"id": _CALL_ID, "type": "function", "function": function}
    return _with_text_arguments(call) if as_text else call


def _tool() -> dict[str, Any]:
    parameters = {"type": "object", "properties": {_WORD: {"type": "string"}}, "required": []}
    function = {"name": f"{_WORD}f", "description": "c", "parameters": parameters}
    return {"type": "function", "function": function}
