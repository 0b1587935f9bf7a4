"""The thoughts in an answer, which are trained on and not compared."""

from __future__ import annotations

import re

_THOUGHTS = (
    re.compile(r"\A.*</think>\s*", re.DOTALL),
    re.compile(r"<\|channel\|>analysis<\|message\|>.*?<\|end\|>(<\|start\|>assistant)?", re.DOTALL),
    re.compile(r"<\|channel\|>final<\|message\|>"),
)
"""Up to the end of the thoughts; the analysis channel, and the heading of the final one."""
OPENING = re.compile(r"<think>\s*(</think>\s*)?\Z")
"""The beginning of thoughts that a template writes in front of an answer."""


def without_thoughts(text: str) -> str:
    """Return an answer without its thoughts; all of it if nothing else remains."""
    bare = text
    for pattern in _THOUGHTS:
        bare = pattern.sub("", bare)
    return bare if bare.strip() else text
