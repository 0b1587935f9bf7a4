"""Warnings: a code at the end of each, and their order, the most important first.

A warning is one text that ends with its code in brackets, such as ``… [one-seed]``. The order
starts with what changes the meaning of the verdict. Codes that are not listed here are issues of
the data or the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

LIBRARY = "library-warning"
"""What a library warned of in a trial: the report lists it, a terminal only with `--verbose`."""
VERDICT, SETTINGS, DATA, OTHER = "verdict", "settings", "data", "other"
GROUPS = {
    VERDICT: (
        "control-without-score",
        "imported-once",
        "imported-no-intervals",
        "imported-counts",
        "imported-settings",
        "imported-differences",
        "imported-versions",
        "imported-times",
        "identical-results",
        "head-rate-matters",
        "not-learnt",
        "test-evaluated-again",
        "test-in-train",
        "test-in-validation",
        "group-in-train-and-test",
        "scores-unusable",
        "reference-over-budget",
        "answers-cut",
        "weights-differ",
        "test-too-small",
        "few-groups",
        "one-test-group",
        "no-test-groups",
        "test-groups-cut-short",
        "test-group-missing",
        "one-seed",
        "few-seeds",
        "seeds-not-shared",
        "near-duplicates",
    ),
    SETTINGS: (
        "setting-not-applied",
        "validation-in-train",
        "early-rungs",  # stored by studies of earlier versions
        "rate-at-edge",
        "selection-disagrees",
    ),
    DATA: (),
    OTHER: (
        "end-token-written",
        "begin-token-written",
        "special-tokens-kept",
        "base-commit-unknown",
        "base-code",
        "db-rebuilt",
        "forgetting-not-measured",
        "trial-not-written",
        "base-generate",
        "lanes-failed",
        LIBRARY,
    ),
}
"""The codes of each group, both in order of importance; every other code belongs to ``data``."""
_CODE = re.compile(r"\[([a-z0-9]+(?:-[a-z0-9]+)*)\]\s*$")
_PLACES = {code: (group, i) for group, codes in GROUPS.items() for i, code in enumerate(codes)}


class Caveat(NamedTuple):
    """A warning about one method, which is merged with those of the same kind.

    ``text`` is the sentence for this method only; ``many`` that for several, with ``{}`` for their
    names; ``name`` is how this method is listed there.
    """

    code: str
    text: str
    many: str
    name: str


MAX_NAMES = 6
"""How many names one warning lists; further ones are counted."""


def with_code(text: str, code: str) -> str:
    """Return a warning with its code at the end."""
    return f"{text} [{code}]"


def code_of(text: str) -> str | None:
    """Return the code of a warning, None if it has none (studies of earlier versions)."""
    found = _CODE.search(text)
    return found[1] if found else None


def group_of(text: str) -> str:
    """Return the group of a warning: ``verdict``, ``settings``, ``data`` or ``other``."""
    code = code_of(text)
    return OTHER if code is None else _PLACES.get(code, (DATA, 0))[0]


def sort_warnings(texts: Iterable[str]) -> list[str]:
    """Return each warning once, the most important first.

    A study of an earlier version may hold a warning without the code that it has now.
    """
    groups = list(GROUPS)

    def place(text: str) -> tuple[int, int]:
        group, i = _PLACES.get(code_of(text) or "", (group_of(text), len(_PLACES)))
        return groups.index(group), i

    once: dict[str, str] = {}
    for text in texts:
        plain = _CODE.sub("", text).strip()
        if plain not in once or code_of(once[plain]) is None:
            once[plain] = text
    return sorted(once.values(), key=place)


def merge_caveats(caveats: Iterable[Caveat]) -> list[str]:
    """Return one warning for each kind of caveat, with the names of all methods that have it."""
    kinds: dict[tuple[str, str], dict[str, Caveat]] = {}
    for caveat in caveats:
        kinds.setdefault((caveat.code, caveat.many), {}).setdefault(caveat.name, caveat)
    merged = []
    for (code, many), found in kinds.items():
        (first, *others) = found.values()
        text = many.format(list_names(list(found))) if others else first.text
        merged.append(with_code(text, code))
    return merged


def list_names(names: list[str], limit: int = MAX_NAMES) -> str:
    """Return names as text: ``LoRA, IA3 and VeRA``, or the first few and the number of others."""
    if len(names) > limit:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
