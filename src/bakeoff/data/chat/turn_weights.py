"""Read the keys with which formats say whether a turn is trained on.

OpenAI's ``weight``, axolotl's ``train``, ms-swift's ``loss`` and their kin hold 0 or 1. A masked
assistant turn stays in the conversation as context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.data.chat.unreadable import UnreadableConversation

WEIGHT = "weight"
"""The key under which a mask is kept."""
TRAINED = (
    WEIGHT, "train", "training", "trainable", "loss", "loss_mask", "loss_weight", "supervise",
    "supervised", "learn",
)  # fmt: skip
"""Keys whose 0 or false masks a turn."""
MASKED = ("mask", "masked", "ignore", "ignored", "no_loss")
"""Keys whose 1 or true masks a turn."""
DETAILS = ("train_detail", "training_detail", "loss_scale")
"""Keys that mask, or weigh, parts of a turn."""
ROW_MASKS = (
    "weight", "weights", "loss_mask", "loss_masks", "train_on_turn", "train_on_turns", "masks",
    "train_mask", "assistant_masks", "sample_weight", "loss_weight",
)  # fmt: skip
"""Columns beside a conversation that mask its turns or weigh the row."""


def read_weight(number: int, message: Mapping[str, Any], supervisable: bool) -> int | None:
    """Return 0 for a masked turn, 1 for one that is not, None without a key.

    Raises:
        UnreadableConversation: ``turn-weight`` for other values, keys that contradict each other,
            and a turn to train on that is not the assistant's.
    """
    detail = next((key for key in DETAILS if key in message), None)
    if detail is not None:
        raise UnreadableConversation(
            "turn-weight",
            f"Message {number} has `{detail}`, which weighs parts of a turn",
            f"`{WEIGHT}`: 0 or 1 for the whole turn.",
        )
    found: dict[str, int] = {}
    for key in (*TRAINED, *MASKED):
        if key not in message:
            continue
        value = message[key]
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise UnreadableConversation(
                "turn-weight",
                f"Message {number} has `{key}`: {value!r}, and a turn is trained on or not",
                f"`{WEIGHT}`: 0 or 1.",
            )
        found[key] = int(value) if key in TRAINED else 1 - int(value)
    if len(set(found.values())) > 1:
        raise UnreadableConversation(
            "turn-weight",
            f"Message {number} has keys that contradict each other ({', '.join(found)})",
            f"one of them, such as `{WEIGHT}`.",
        )
    weight = next(iter(found.values()), None)
    if weight == 1 and not supervisable:
        raise UnreadableConversation(
            "turn-weight",
            f"Message {number} is to be trained on (`{next(iter(found))}`), and is not an "
            "assistant turn",
            "remove that key from it: the loss is on assistant turns.",
        )
    return weight


def without_weight_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without the keys that mask it."""
    return {k: v for k, v in message.items() if k not in TRAINED and k not in MASKED}
