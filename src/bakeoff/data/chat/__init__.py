"""Conversations: rows of messages, and the chat template that turns them into tokens and labels.

Used by tasks whose rows can be conversations. ``messages`` reads a row and says what is wrong with
it, without a tokenizer; ``template`` renders, tokenises and finds what the assistant says.
"""

from __future__ import annotations

from bakeoff.data.chat.template import Chat, UnusableConversation

__all__ = ["Chat", "UnusableConversation"]
