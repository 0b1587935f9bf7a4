"""Conversations: rows of messages, and the chat template that turns them into tokens and labels.

``messages`` validates rows without a tokenizer; ``template`` renders and tokenises them and finds
the assistant's tokens.
"""

from __future__ import annotations

from bakeoff.data.chat.template import Chat, UnusableConversation

__all__ = ["Chat", "UnusableConversation"]
