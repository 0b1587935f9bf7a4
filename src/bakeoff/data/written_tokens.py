"""Special tokens that prompts and completions write as text: options, and issues to report.

What only the tokenizer tells is found out once, before anything is trained. From then on it is part
of the task's options, so that the parent process reads the same references as a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row
from bakeoff.data.special_tokens import (
    added_tokens,
    adds_space,
    special_ids,
    split_front,
    strip_end,
    token_texts,
    without_added,
)
from bakeoff.data.templates import render_template, text_between

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Splits = Mapping[str, Sequence[Row]]

_AT_ONCE = 1000
"""Texts that are tokenised in one call."""


def batched_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False
) -> Iterator[list[int]]:
    """Yield the tokens of each text; with ``special``, those that the tokenizer adds too."""
    for start in range(0, len(texts), _AT_ONCE):
        part = list(texts[start : start + _AT_ONCE])
        yield from tokenizer(part, add_special_tokens=special)["input_ids"]


def written_ends(
    splits: Splits, template: str, ends: Sequence[str]
) -> tuple[list[str], list[DataIssue]]:
    """Return the end tokens to take off completions, none if none is written, and the issues."""
    texts = [render_template(template, row) for rows in splits.values() for row in rows]
    found = sum(strip_end(text, ends) != text for text in texts)
    if not found:
        return [], []
    what = (
        f"{found:,} of {len(texts):,} completions end with an end token as text "
        f"({', '.join(ends)}): it is learnt once, and it is no part of the reference"
    )
    hint = "nothing has to change: each completion gets one."
    return list(ends), [DataIssue("end-token-written", what, hint)]


def kept_tokens(
    tokenizer: PreTrainedTokenizerBase, completions: Sequence[str], ends: Sequence[int]
) -> list[str]:
    """Return the special tokens that completions contain, which answers keep.

    Padding, begin and end tokens are never part of an answer, nor is the unknown token.
    """
    never = {*ends, tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    wanted = special_ids(tokenizer) - never - {tokenizer.unk_token_id}
    found = {i for ids in batched_tokens(tokenizer, completions) for i in ids if i in wanted}
    return token_texts(tokenizer, sorted(found))


def kept_issue(kept: Sequence[str]) -> DataIssue:
    """Return the issue that says which special tokens answers keep."""
    names = ", ".join(kept)
    what = f"Answers keep the special tokens that completions of train contain: {names}"
    return DataIssue("special-tokens-kept", what, "nothing has to change.")


def longest_in_tokens(
    tokenizer: PreTrainedTokenizerBase, completions: Sequence[str], longest: str, more: int = 0
) -> str:
    """Return the completion with the most tokens; ``longest`` if none has over ``more`` more."""
    first, *counts = (len(ids) for ids in batched_tokens(tokenizer, [longest, *completions]))
    most = max(counts, default=0)
    return completions[counts.index(most)] if most > first + more else longest


def prompt_changes(
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    template: str,
    is_cut: Callable[[str, int, int], bool] | None,
) -> tuple[dict[str, Any], list[DataIssue]]:
    """Return options for what is done to prompts, and the issues of special tokens in them.

    ``is_cut`` takes a split, a row's position and the number of tokens of its prompt; it is None
    for texts that nothing follows: the tokenizer's end token stays, and it truncates them itself.
    """
    added, repeated = added_tokens(tokenizer), 0
    issues: list[DataIssue] = []
    special = special_ids(tokenizer) - {tokenizer.unk_token_id}
    own = text_between(template)
    alone = is_cut is None
    changed = bool(added.after) and not alone
    for split, rows in splits.items():
        texts = [render_template(template, row) for row in rows]
        bare = [without_added(tokenizer, text, end=alone) for text in texts]
        repeated += sum(a != b for a, b in zip(texts, bare, strict=True))
        inside: dict[int, str] = {}
        for i, ids in enumerate(batched_tokens(tokenizer, bare)):
            front = split_front(tokenizer, ids).front
            size = len(added.before) + len(ids)
            if is_cut is not None and not changed and (added.before or front):
                changed = is_cut(split, i, size)
            names = token_texts(tokenizer, [t for t in ids[len(front) :] if t in special])
            if held := [name for name in names if name not in own]:
                inside[i] = held[0]
        issues += [*_special_token_issues(split, len(rows), inside)]
    if repeated:
        issues.insert(0, _begin_token_issue(tokenizer, repeated))
    options: dict[str, Any] = {}
    if changed or repeated:
        before, after = (token_texts(tokenizer, ids) for ids in added)
        options["added_tokens"] = {"before": before, "after": after if alone else []}
    return options, issues


def _begin_token_issue(tokenizer: PreTrainedTokenizerBase, count: int) -> DataIssue:
    names = " ".join(token_texts(tokenizer, added_tokens(tokenizer).before))
    what = f"{count:,} prompts begin with {names} as text, which the tokenizer adds: one is kept"
    hint = f"nothing has to change: each prompt has one {names}."
    return DataIssue("begin-token-written", what, hint)


def _special_token_issues(split: str, of: int, inside: Mapping[int, str]) -> Iterator[DataIssue]:
    if inside:
        names = ", ".join(dict.fromkeys(inside.values()))
        what = f"The prompt contains special tokens of the tokenizer as text ({names})"
        hint = (
            "right for prompts that are formatted already, where the model reads control tokens; "
            "take them out of any other text."
        )
        yield DataIssue.at("special-token-in-text", what, hint, split, list(inside), of)


def space_option(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the option that marks completions without the space that the tokenizer would add."""
    return {"without_added_space": True} if adds_space(tokenizer) else {}
