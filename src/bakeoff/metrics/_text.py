"""Text helpers shared by metrics."""

from __future__ import annotations

import unicodedata


def normalize(text: str, ignore_case: bool, ignore_spaces: bool = False) -> str:
    """Return a text in NFC without white space at its ends, case-folded if ``ignore_case``.

    With ``ignore_spaces`` there is no white space inside either.
    """
    composed = unicodedata.normalize("NFC", text).strip()
    if ignore_spaces:
        composed = "".join(composed.split())
    return composed.casefold() if ignore_case else composed
