"""Special tokens of a tokenizer: those that it adds around a text, and those that a text contains.

A tokenizer can put a begin token before every text and an end token after it. A prompt keeps one
begin token, also when it is truncated; an end token must not stand between prompt and completion.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from bakeoff.core.errors import PreflightError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = ("a", "0", "A b")
"""Texts that most tokenizers can read; what one adds must be the same around all of them."""
_ANCHORS = ("\n", ":", "a", "0")
"""Texts in front of a completion while it is tokenised; one of them does not merge with it."""


class AddedTokens(NamedTuple):
    """The tokens that a tokenizer puts before and after every text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


_added: WeakKeyDictionary[PreTrainedTokenizerBase, AddedTokens] = WeakKeyDictionary()
_spaces: WeakKeyDictionary[PreTrainedTokenizerBase, bool] = WeakKeyDictionary()


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> AddedTokens:
    """Return the tokens that the tokenizer puts around every text.

    Raises:
        PreflightError: ``added-tokens-unclear``.
    """
    if tokenizer not in _added:
        _added[tokenizer] = _probe_added_tokens(tokenizer)
    return _added[tokenizer]


def _probe_added_tokens(tokenizer: PreTrainedTokenizerBase) -> AddedTokens:
    special = special_ids(tokenizer)
    own = (i for i in range(len(tokenizer)) if i not in special)
    # words of its own too: a small vocabulary may read none of the usual ones
    texts = [*_PROBES, *token_texts(tokenizer, islice(own, len(_PROBES)))]
    found = {_added_around(tokenizer, text) for text in texts if _plain(tokenizer, text)}
    if len(found) == 1 and (added := found.pop()) is not None:
        return added
    raise PreflightError(
        "added-tokens-unclear",
        "The base's tokenizer does not put the same special tokens around every text.",
        "check the `post_processor` in the base's tokenizer.json: its `single` template may only "
        "hold special tokens around $A.",
    )


def _added_around(tokenizer: PreTrainedTokenizerBase, text: str) -> AddedTokens | None:
    """Return the tokens around this text, None if its own tokens are not in between."""
    whole: list[int] = tokenizer(text)["input_ids"]
    own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(own) + 1):
        stop = start + len(own)
        if whole[start:stop] == own:
            return AddedTokens(tuple(whole[:start]), tuple(whole[stop:]))
    return None


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    """Return the text of each token, as it would be written."""
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in ids]


def without_added(tokenizer: PreTrainedTokenizerBase, text: str, end: bool = False) -> str:
    """Return a text without the tokens that the tokenizer adds before it anyway.

    With ``end``, also without those that it adds after it.
    """
    before, after = added_tokens(tokenizer)
    written = "".join(token_texts(tokenizer, before))
    while written and text.startswith(written):
        text = text.removeprefix(written)
    written = "".join(token_texts(tokenizer, after)) if end else ""
    while written and text.endswith(written):
        text = text.removesuffix(written)
    return text


class PromptTokens(NamedTuple):
    """A prompt as tokens: those in ``front`` are kept when it is truncated."""

    front: tuple[int, ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of all tokens."""
        return len(self.front) + len(self.ids)

    def last(self, limit: int) -> list[int]:
        """Return at most ``limit`` tokens: the front, and the end of the rest."""
        front = self.front[: max(0, limit)]
        room = max(0, limit - len(front))
        return [*front, *self.ids[max(0, len(self.ids) - room) :]]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> PromptTokens:
    """Tokenise a prompt, which text follows: with one begin token and without an end token."""
    before, after = added_tokens(tokenizer)
    ids: list[int] = tokenizer(without_added(tokenizer, text))["input_ids"]
    return split_front(tokenizer, ids[: len(ids) - len(after)], len(before))


def split_front(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], added: int = 0
) -> PromptTokens:
    """Split tokens into those that truncation keeps and the rest.

    Kept are the first ``added`` tokens, or a begin token that the text itself starts with.
    """
    if not added and ids and ids[0] == tokenizer.bos_token_id:
        added = 1
    return PromptTokens(tuple(ids[:added]), tuple(ids[added:]))


def continuation_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise a text that follows another one, without special tokens.

    Some tokenizers put a space in front of every text (SentencePiece's dummy prefix), which would
    be one more than written. Such a text is tokenised behind an anchor, whose tokens are removed.
    """
    alone = _plain(tokenizer, text)
    if not adds_space(tokenizer):
        return alone
    for anchor in _ANCHORS:
        before, both = _plain(tokenizer, anchor), _plain(tokenizer, anchor + text)
        # an unknown anchor could merge with unknown characters of the text
        known = before and tokenizer.unk_token_id not in before
        if known and both[: len(before)] == before:
            return both[len(before) :]
    return alone


def continuation_text(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], dropped: frozenset[int]
) -> str:
    """Decode tokens that follow others, without the tokens in ``dropped``.

    Many tokenizers drop the leading space of a text, which is kept here.
    """
    kept = [i for i in ids if i not in dropped]
    if not adds_space(tokenizer):
        return decode(tokenizer, kept)
    anchor = _plain(tokenizer, _ANCHORS[1])
    return decode(tokenizer, [*anchor, *kept]).removeprefix(decode(tokenizer, anchor))


def adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer puts a space in front of a text that can be avoided."""
    if tokenizer not in _spaces:
        _spaces[tokenizer] = _probe_space(tokenizer)
    return _spaces[tokenizer]


def _probe_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    anchor = _ANCHORS[1]
    before, alone = _plain(tokenizer, anchor), _plain(tokenizer, "a")
    both = _plain(tokenizer, anchor + "a")
    behind = both[len(before) :]
    if not before or both[: len(before)] != before or behind == alone:
        return False
    joined = decode(tokenizer, both)
    return decode(tokenizer, [*before, *alone]) != joined


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all special tokens, which decoding can leave out."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode tokens, special tokens included."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def strip_end(text: str, ends: Sequence[str]) -> str:
    """Return a completion without the end tokens at its end, and white space after these."""
    while (bare := text.rstrip()) and (end := next((e for e in ends if bare.endswith(e)), None)):
        text = bare.removesuffix(end)
    return text


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
