"""Why a conversation cannot be used: a stable code, a clause and a hint."""

from __future__ import annotations

from typing import NamedTuple


class InvalidConversation(NamedTuple):
    """Why a conversation is invalid: a stable code, a clause and a hint."""

    code: str
    what: str
    try_: str


class UnreadableConversation(Exception):
    """A row that is not a conversation as bakeoff reads them."""

    def __init__(self, code: str, what: str, try_: str) -> None:
        super().__init__(code, what, try_)
        self.reason = InvalidConversation(code, what, try_)
