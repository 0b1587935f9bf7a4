"""Text helpers and an error that metrics share."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any


class UnusableReference(ValueError):
    """No prediction can match a reference; with ``options`` of the metric some could."""

    def __init__(self, what: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(what)
        self.options = dict(options or {})


def normalize(text: str, ignore_case: bool, ignore_spaces: bool = False) -> str:
    """Return a text in NFC without white space at its ends, case-folded if ``ignore_case``.

    With ``ignore_spaces`` there is no white space inside either.
    """
    composed = unicodedata.normalize("NFC", text).strip()
    if ignore_spaces:
        composed = "".join(composed.split())
    return composed.casefold() if ignore_case else composed
