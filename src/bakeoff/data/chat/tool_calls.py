"""Read the tools of a row and the tool calls of a message into OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bakeoff.data.chat.unreadable import UnreadableConversation

_ASSISTANT = "assistant"
_CALL_SHAPE = '{"type": "function", "function": {"name": …, "arguments": {…}}}.'
_ARGUMENTS = ("arguments", "parameters", "input")


def read_tool_calls(number: int, role: str, message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tool calls of a message, each with a name and an object of arguments.

    Raises:
        UnreadableConversation: ``tool-call-malformed``.
    """
    given = message.get("tool_calls") or message.get("function_call")
    if isinstance(given, str):
        given = parse_json(given)
    if not given:
        return []
    if role != _ASSISTANT:
        raise UnreadableConversation(
            "tool-call-malformed",
            f"Message {number} ({role}) has tool calls, which only an assistant turn has",
            "give the turn the role assistant.",
        )
    calls = given if isinstance(given, list | tuple) else [given]
    return [_read_call(number, call) for call in calls]


def _read_call(number: int, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise UnreadableConversation(
            "tool-call-malformed", f"Message {number} has a tool call without a name", _CALL_SHAPE
        )
    arguments: Any = next((function[k] for k in _ARGUMENTS if function.get(k) is not None), {})
    if isinstance(arguments, str):
        arguments = parse_json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        raise UnreadableConversation(
            "tool-call-malformed",
            f"Message {number} calls the tool {name!r} with arguments that are not a JSON object",
            _CALL_SHAPE,
        )
    rest = {k: v for k, v in call.items() if k in ("id", "index") and v is not None}
    return {**rest, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return the tools of a row, each as ``{"type": "function", "function": ...}``.

    ``value`` is a list or its JSON text; functions may be bare. None without tools.

    Raises:
        UnreadableConversation: ``tools-malformed``.
    """
    if isinstance(value, str):
        if value.strip() in ("", "null"):
            return None
        value = parse_json(value)
        if value is None:
            raise _malformed_tools()
    tools = [value] if isinstance(value, Mapping) else value
    if not isinstance(tools, list | None):
        raise _malformed_tools()
    return [_without_nulls(_read_tool(tool)) for tool in tools] if tools else None


def _without_nulls(value: Any) -> Any:
    """Return a schema without the empty keys that Parquet adds for those of other rows' tools."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        k: _without_nulls(v) for k, v in value.items() if v is not None or k in ("default", "const")
    }


def _read_tool(value: Any) -> dict[str, Any]:
    tool = parse_json(value) if isinstance(value, str) else value
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _malformed_tools()
    bare = {k: v for k, v in function.items() if function is not tool or k != "type"}
    rest = {} if function is tool else {k: v for k, v in tool.items() if k != "function"}
    return {"type": "function", **rest, "function": bare}


def _malformed_tools() -> UnreadableConversation:
    return UnreadableConversation(
        "tools-malformed",
        "Tools that are not a list of functions with names",
        '[{"type": "function", "function": {"name": …, "parameters": {…}}}], or its JSON text.',
    )


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
