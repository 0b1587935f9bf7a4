"""Render conversations with a chat template, and find the assistant's tokens to supervise.

The template's own ``{% generation %}`` marks say where assistant turns are, if it has them.
Without marks, a turn is the text that the template adds to the conversation before it (rendered
with a generation prompt). Both the conversation before and with the turn must be prefixes of the
whole text, or the row is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from bakeoff.core.clock import TimeLimitExceeded, time_limit
from bakeoff.core.errors import PreflightError
from bakeoff.data.chat.messages import (
    ASSISTANT,
    Message,
    drop_oldest_exchange,
    last_answer_index,
    single_exchange,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
RENDER_SECONDS = 10.0
"""Time limit of a template for one conversation: thousands of times what a working one takes."""
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class UnusableConversation(Exception):
    """A conversation that cannot be rendered for training: a stable code, cause and hint."""

    def __init__(self, code: str, what: str, try_: str) -> None:
        super().__init__(code, what, try_)
        self.code, self.what, self.try_ = code, what, try_


class TurnSpan(NamedTuple):
    """An assistant turn from ``start`` to before ``stop``, in characters or tokens."""

    start: int
    stop: int


class LabelledTokens(NamedTuple):
    """Token ids and their labels: the id itself in assistant turns, ``IGNORE`` elsewhere."""

    ids: list[int]
    labels: list[int]


class Chat:
    """The chat template of a tokenizer, or the study's own instead."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Choose the template; ``variables`` are passed to it in addition to the messages.

        Raises:
            PreflightError: ``no-chat-template``.
        """
        self.tokenizer = tokenizer
        if template is None and not tokenizer.chat_template:
            raise PreflightError(
                "no-chat-template",
                "The base's tokenizer has no chat template, and the rows are conversations.",
                '`chat_template = "template.jinja"` under [task], or the chat version of this '
                "base; or plain text: columns for `prompt` and `completion`.",
            )
        self.template: str = tokenizer.get_chat_template(template)
        self.variables = {**tokenizer.special_tokens_map, **(variables or {})}
        self.marked = _GENERATION_MARK.search(self.template) is not None
        special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        # the padding token may also end turns: padding is recognised by position
        no_end = {tokenizer.unk_token_id, tokenizer.bos_token_id}
        self._control = [text for text in special.values() if text]
        self._ends = (special.keys() - no_end) | {tokenizer.eos_token_id}

    def encode(self, messages: Sequence[Message], limit: int) -> LabelledTokens:
        """Return a conversation as at most ``limit`` tokens; all assistant turns are labelled.

        If it is too long, its oldest exchanges are dropped, then the beginning of its prompt; the
        last answer is never truncated.

        Raises:
            UnusableConversation: see ``turns`` and ``tokens``; ``completion-too-long``.
        """
        encoded = self.tokens(messages)
        while len(encoded.ids) > limit and (shorter := drop_oldest_exchange(messages)) is not None:
            messages = shorter
            encoded = self.tokens(messages)
        over = max(0, len(encoded.ids) - limit)
        first = next(i for i, label in enumerate(encoded.labels) if label != IGNORE)
        if over > first:
            raise UnusableConversation(
                "completion-too-long",
                f"The last answer has {len(encoded.ids) - first} tokens; "
                f"task.max_length is {limit}",
                f"task.max_length = {len(encoded.ids) - first + 32}, or drop the row.",
            )
        return LabelledTokens(encoded.ids[over:], encoded.labels[over:])

    def prompt(self, messages: Sequence[Message], limit: int) -> list[int]:
        """Return the tokens of the conversation up to the last answer, with generation prompt.

        If there are more than ``limit``, the oldest exchanges are dropped, then its beginning.
        """
        ids = self._prompt_ids(messages)
        while len(ids) > limit and (shorter := drop_oldest_exchange(messages)) is not None:
            messages = shorter
            ids = self._prompt_ids(messages)
        return ids[-limit:]

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        before = messages[: last_answer_index(messages)]
        return self._tokenize([self._render(before, opened=True)])[0]

    def end_tokens(self) -> list[int]:
        """Return the tokens that end an answer: the template's and the tokenizer's."""
        found = self.tokens(single_exchange("a", "b"))
        last = max(i for i, label in enumerate(found.labels) if label != IGNORE)
        ends = [found.labels[last], self.tokenizer.eos_token_id]
        return list(dict.fromkeys(e for e in ends if e is not None))

    def tokens(self, messages: Sequence[Message]) -> LabelledTokens:
        """Return all tokens of a conversation; each turn's end token is labelled, once.

        The text is tokenised as a whole if its prefixes give the same tokens by themselves (as in
        generation); otherwise piece by piece.

        Raises:
            UnusableConversation: ``chat-no-turn-end``; see ``turns``.
        """
        self._check_control_tokens(messages)
        text, turns = self.turns(messages)
        bounds = sorted({0, len(text), *(place for turn in turns for place in turn)})
        whole, *parts = self._tokenize([text, *(text[:b] for b in bounds)])
        places = {b: len(part) for b, part in zip(bounds, parts, strict=True)}
        if any(whole[: len(part)] != part for part in parts):
            pieces = self._tokenize([text[a:b] for a, b in pairwise(bounds)])
            whole, places = [], {0: 0}
            for piece, bound in zip(pieces, bounds[1:], strict=True):
                whole += piece
                places[bound] = len(whole)
        labels = [IGNORE] * len(whole)
        for turn in turns:
            span = self._trim_to_end_token(whole, TurnSpan(places[turn.start], places[turn.stop]))
            labels[span.start : span.stop] = whole[span.start : span.stop]
        return LabelledTokens(whole, labels)

    def turns(self, messages: Sequence[Message]) -> tuple[str, list[TurnSpan]]:
        """Return the rendered text, and the span of each assistant turn in it.

        Raises:
            UnusableConversation: ``chat-template-refused``, ``chat-marks``, ``chat-prefix-broken``,
                ``chat-answer-differs``.
        """
        answers = [i for i, m in enumerate(messages) if m["role"] == ASSISTANT]
        if self.marked:
            text, spans = self._marked_spans(messages, len(answers))
        else:
            text = self._render(messages)
            spans = [self._turn_span(text, messages, i) for i in answers]
        opened = self._prefix_length(text, messages[: answers[-1]], answers[-1], opened=True)
        said = self._strip_control_tokens(text[opened : spans[-1].stop])
        meant = str(messages[answers[-1]]["content"]).strip()
        if spans[-1].start > opened or said != meant:
            raise UnusableConversation(
                "chat-answer-differs",
                f"The chat template turns the answer {_shorten(meant)} into {_shorten(said)}: no "
                "prediction could equal its reference",
                "`chat_template_kwargs` under [task], such as { enable_thinking = false } where "
                "the template knows it; or another `chat_template`.",
            )
        return text, spans

    def _marked_spans(
        self, messages: Sequence[Message], answers: int
    ) -> tuple[str, list[TurnSpan]]:
        text, marked = self._render_with_marks(messages, opened=False, marks=True)
        spans = [TurnSpan(*pair) for pair in marked if pair[1] > pair[0]]
        if len(spans) != answers:
            raise UnusableConversation(
                "chat-marks",
                f"The chat template marks {len(spans)} stretches as generated where the "
                f"conversation has {answers} assistant turns",
                "one {% generation %} … {% endgeneration %} around each assistant turn, its end "
                "token inside.",
            )
        return text, spans

    def _turn_span(self, text: str, messages: Sequence[Message], turn: int) -> TurnSpan:
        start = self._prefix_length(text, messages[:turn], turn, opened=True)
        return TurnSpan(start, self._prefix_length(text, messages[: turn + 1], turn, opened=False))

    def _prefix_length(self, text: str, part: Sequence[Message], turn: int, opened: bool) -> int:
        """Return the length of the rendered ``part``, which must be a prefix of ``text``."""
        begins = self._render(part, opened)
        if not text.startswith(begins):
            at = next(
                (i for i, (a, b) in enumerate(zip(text, begins, strict=False)) if a != b), len(text)
            )
            raise UnusableConversation(
                "chat-prefix-broken",
                f"The chat template renders what comes before the end of message {turn + 1} "
                f"differently once more messages follow ({_shorten(begins[at:])} becomes "
                f"{_shorten(text[at:])}): which tokens are the assistant's cannot be told",
                "a `chat_template` under [task] with {% generation %} marks around what the "
                "assistant says, or rows that end with their first answer.",
            )
        return len(begins)

    def _trim_to_end_token(self, ids: Sequence[int], span: TurnSpan) -> TurnSpan:
        """Return the span of a turn up to and including its end token.

        Raises:
            UnusableConversation: ``chat-no-turn-end``.
        """
        stop = span.stop
        while stop > span.start and not self._decode(ids[stop - 1 : stop]).strip():
            stop -= 1  # the newline that many templates write after the end token
        if stop > span.start and ids[stop - 1] in self._ends:
            return TurnSpan(span.start, stop)
        if span.stop < len(ids) and ids[span.stop] in self._ends:
            return TurnSpan(span.start, span.stop + 1)
        raise UnusableConversation(
            "chat-no-turn-end",
            "The chat template ends an assistant turn with no end token: answers would never end",
            "a `chat_template` under [task] that writes {{ eos_token }} after each answer.",
        )

    def _check_control_tokens(self, messages: Sequence[Message]) -> None:
        for number, message in enumerate(messages, 1):
            held = next((c for c in self._control if c in str(message["content"])), None)
            if held is not None:
                raise UnusableConversation(
                    "control-token-in-text",
                    f"The text of message {number} holds the control token {held!r}, which the "
                    "chat template writes itself",
                    "take it out of the text: a turn would end, or begin, in its middle.",
                )

    def _strip_control_tokens(self, text: str) -> str:
        for token in self._control:
            text = text.replace(token, "")
        return text.strip()

    def _render(self, messages: Sequence[Message], opened: bool = False) -> str:
        return self._render_with_marks(messages, opened, marks=False)[0]

    def _render_with_marks(
        self, messages: Sequence[Message], opened: bool, marks: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with time_limit(RENDER_SECONDS):
                texts, indices = render_jinja_template(
                    conversations=[[dict(m) for m in messages]],
                    chat_template=self.template,
                    return_assistant_tokens_mask=marks,
                    add_generation_prompt=opened,
                    **self.variables,
                )
        except (
            TimeLimitExceeded
        ):  # due to the template, not the row: the next row would take as long
            raise PreflightError(
                "chat-template-slow",
                f"The chat template has not rendered a conversation of {len(messages)} messages "
                f"within {RENDER_SECONDS:g} s.",
                "another `chat_template` under [task]: this one may never end.",
            ) from None
        except Exception as error:  # whatever a template raises: its own checks, a missing key
            raise UnusableConversation(
                "chat-template-refused",
                f"The chat template cannot render it: {type(error).__name__}: {error}",
                "mend or drop these rows, or another `chat_template` under [task].",
            ) from error
        return texts[0], indices[0] if marks else []

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        # the template writes special tokens itself
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
