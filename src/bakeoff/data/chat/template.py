"""Render conversations with a chat template, and find the assistant's tokens to supervise.

The template's own ``{% generation %}`` marks say where assistant turns are, if it has them.
Without marks, a turn is the text that the template adds to the conversation before it (rendered
with a generation prompt). Both the conversation before and with the turn must be prefixes of the
whole text. Earlier turns for which this does not hold, as templates drop their thoughts, are not
supervised, unless every turn is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from bakeoff.core.clock import TimeLimitExceeded, time_limit
from bakeoff.core.errors import PreflightError
from bakeoff.data.chat.forms import Conversation
from bakeoff.data.chat.messages import (
    ASSISTANT,
    DEVELOPER,
    REASONING,
    SYSTEM,
    TOOL,
    Message,
    drop_oldest_exchange,
    last_answer_index,
    message_text,
    single_exchange,
    supervised_turns,
)
from bakeoff.data.chat.style import TemplateStyle, number_calls
from bakeoff.data.chat.thoughts import OPENING
from bakeoff.data.special_tokens import split_front, strip_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
RENDER_SECONDS = 10.0
"""Time limit of a template for one conversation: thousands of times what a working one takes."""
ALL, LAST, EACH = "all", "last", "each"
"""Supervise every turn, only the last, or each as the last of a row of its own."""
_PREFIX_BROKEN = "chat-prefix-broken"
_MARKS_IN_TEXT = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<tools>", "</tools>",
)  # fmt: skip
"""Marks of thoughts and tool calls, which data writes into the text of a turn."""
_CALL_ID = re.compile(r"[A-Za-z0-9]{9}")
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


class Rendered(NamedTuple):
    """A conversation as text, and which parts of it are supervised."""

    text: str
    spans: list[TurnSpan]
    opened: int
    """Where the last answer begins, after the generation prompt."""
    skipped: int = 0
    """Number of earlier turns that are not supervised, because they cannot be told."""


class Chat:
    """The chat template of a tokenizer, or the study's own instead."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        supervise: str | None = None,
    ) -> None:
        """Choose the template; ``variables`` are passed to it in addition to the messages.

        ``supervise`` is ``ALL`` or ``LAST``; None is all turns that can be told.

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
        self.supervise = supervise
        self.style = TemplateStyle(self.template, self._render_raw)

    @cached_property
    def _control(self) -> dict[int, str]:
        """The special tokens that the template writes, or that begin or end a text."""
        tokenizer = self.tokenizer
        special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        try:
            written = self._render_raw(single_exchange("a", "b"), {})
        except UnusableConversation:
            written = ""
        always = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        return {
            i: text
            for i, text in special.items()
            if text and (i in always or text in self.template or text in written)
        }

    @cached_property
    def _ends(self) -> set[int]:
        # the padding token may also end turns: padding is recognised by position
        no_end = {self.tokenizer.unk_token_id, self.tokenizer.bos_token_id}
        return (self._control.keys() - no_end) | {self.tokenizer.eos_token_id}

    def encode(self, chat: Conversation | Sequence[Message], limit: int) -> LabelledTokens:
        """Return a conversation as at most ``limit`` tokens; supervised turns are labelled.

        If it is too long, its oldest exchanges are dropped, then the beginning of its prompt behind
        the begin token; the last answer is never truncated.

        Raises:
            UnusableConversation: see ``turns`` and ``tokens``; ``completion-too-long``.
        """
        found = as_conversation(chat)
        encoded = self.tokens(found)
        while len(encoded.ids) > limit and (shorter := drop_oldest_exchange(found.messages)):
            found = replace(found, messages=tuple(shorter))
            encoded = self.tokens(found)
        over = max(0, len(encoded.ids) - limit)
        first = next(i for i, label in enumerate(encoded.labels) if label != IGNORE)
        front = len(split_front(self.tokenizer, encoded.ids).front)
        if over > max(0, first - front):
            raise UnusableConversation(
                "completion-too-long",
                f"The last answer has {len(encoded.ids) - first} tokens; "
                f"task.max_length is {limit}",
                f"task.max_length = {len(encoded.ids) - first + 32}, or drop the row.",
            )
        ids, labels = (x[:front] + x[front + over :] for x in encoded)
        return LabelledTokens(ids, labels)

    def prompt(self, chat: Conversation | Sequence[Message], limit: int) -> list[int]:
        """Return the tokens of the conversation up to the last answer, with generation prompt.

        If there are more than ``limit``, the oldest exchanges are dropped, then its beginning.
        """
        found = self._with_call_ids(as_conversation(chat))
        ids = self._prompt_ids(found)
        while len(ids) > limit and (shorter := drop_oldest_exchange(found.messages)):
            found = replace(found, messages=tuple(shorter))
            ids = self._prompt_ids(found)
        return split_front(self.tokenizer, ids).last(limit)

    def _prompt_ids(self, chat: Conversation) -> list[int]:
        text = self._render(chat, last_answer_index(chat.messages), opened=True)
        if OPENING.search(text):  # the template may not write it in front of the answer
            rendered = self.turns(chat)
            text = rendered.text[: rendered.opened]
        return self._tokenize([text])[0]

    def end_tokens(self, calls: bool = False) -> list[int]:
        """Return the tokens that end an answer: the template's and the tokenizer's.

        With ``calls``, also the template's end of a turn that calls a tool.
        """
        texts = [single_exchange("a", "b")]
        if calls and self.style.call_form is not None:
            function = {"name": "f", "arguments": {}}
            call = {"id": "abcdefghi", "type": "function", "function": function}
            texts.append([texts[0][0], {"role": ASSISTANT, "content": "", "tool_calls": [call]}])
        ends = []
        for messages in texts:
            found = self.tokens(messages)
            last = max(i for i, label in enumerate(found.labels) if label != IGNORE)
            ends.append(found.labels[last])
        ends.append(self.tokenizer.eos_token_id)
        return list(dict.fromkeys(e for e in ends if e is not None))

    def answer(self, chat: Conversation | Sequence[Message]) -> str:
        """Return the text of the last answer as the template writes it, without its end token.

        It is the message's own text, spaces included, where the template changes only these.
        """
        found = as_conversation(chat)
        rendered = self.turns(found)
        said = self._without_end(rendered.text[rendered.opened : rendered.spans[-1].stop])
        message = found.messages[last_answer_index(found.messages)]
        own = str(message["content"])
        return own if said.strip() == own.strip() else said

    def tokens(self, chat: Conversation | Sequence[Message]) -> LabelledTokens:
        """Return all tokens of a conversation; each turn's end token is labelled, once.

        The text is tokenised as a whole if its prefixes give the same tokens by themselves (as in
        generation); otherwise piece by piece.

        Raises:
            UnusableConversation: ``chat-no-turn-end``; see ``turns``.
        """
        found = as_conversation(chat)
        self._check_control_tokens(found.messages)
        text, turns, opened, _ = self.turns(found)
        bounds = sorted({0, opened, len(text), *(place for turn in turns for place in turn)})
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

    def turns(self, chat: Conversation | Sequence[Message]) -> Rendered:
        """Return the rendered text, and the span of each supervised turn in it.

        Raises:
            UnusableConversation: ``chat-template-refused``, ``chat-marks``, ``chat-prefix-broken``,
                ``chat-answer-differs``, ``tool-messages``.
        """
        found = self._with_call_ids(as_conversation(chat))
        answers = supervised_turns(found.messages)
        last, skipped = answers[-1], 0
        earlier = [] if self.supervise in (LAST, EACH) else answers[:-1]
        if any(m.get("tool_calls") for m in found.messages) and self.style.call_form is None:
            raise UnusableConversation(
                "tool-messages",
                "The chat template does not write tool calls: neither a model's nor the answers' "
                "would be trained on",
                "a `chat_template` under [task] that writes `tool_calls`, or calls as text of the "
                "turns.",
            )
        if self.marked:
            text, marked = self._marked_spans(found)
            spans = [marked[i] for i in (*earlier, last)]
            opened = self._opening(text, found, last)
        else:
            text, opened = self._last_turn(found, last)
            spans = []
            for turn in earlier:
                try:
                    spans.append(self._turn_span(text, found, turn))
                except UnusableConversation as error:
                    if error.code != _PREFIX_BROKEN or self.supervise == ALL:
                        raise
                    skipped += 1
            spans.append(TurnSpan(opened, len(text)))
        if spans[-1].stop <= opened:
            raise UnusableConversation(
                "chat-marks",
                "The {% generation %} marks of the chat template end before the last answer begins",
                "marks around what the assistant says, its end token inside.",
            )
        if spans[-1].start > opened:
            raise UnusableConversation(
                "chat-answer-differs",
                f"The chat template writes {_shorten(text[opened : spans[-1].start])} in front of "
                "the last answer, outside of its {% generation %} marks: no prediction could begin "
                "like it",
                "`chat_template_kwargs` under [task], such as { enable_thinking = false } where "
                "the template knows it; or another `chat_template`.",
            )
        return Rendered(text, spans, opened, skipped)

    def _marked_spans(self, chat: Conversation) -> tuple[str, dict[int, TurnSpan]]:
        """Return the text, and the span of each assistant turn by its position."""
        answers = [i for i, m in enumerate(chat.messages) if m["role"] == ASSISTANT]
        text, marked = self._render_with_marks(chat, len(chat.messages), opened=False, marks=True)
        spans = [TurnSpan(*pair) for pair in marked if pair[1] > pair[0]]
        if len(spans) != len(answers):
            raise UnusableConversation(
                "chat-marks",
                f"The chat template marks {len(spans)} stretches as generated where the "
                f"conversation has {len(answers)} assistant turns",
                "one {% generation %} … {% endgeneration %} around each assistant turn, its end "
                "token inside.",
            )
        return text, dict(zip(answers, spans, strict=True))

    def _last_turn(self, chat: Conversation, last: int) -> tuple[str, int]:
        """Return the text, and where its last turn begins.

        Some templates write the system message only in front of the last question, and not at all
        once an answer follows. The turn is then rendered without it, behind its prompt.
        """
        text = self._render(chat, last + 1)
        try:
            return text, self._opening(text, chat, last)
        except UnusableConversation:
            bare = replace(chat, messages=chat.messages[1:])
            if chat.messages[0]["role"] not in (SYSTEM, DEVELOPER) or last < 2:
                raise
            alone = self._render(bare, last)
            turn = alone[self._opening(alone, bare, last - 1) :]
            begins = self._render(chat, last, opened=True)
            return begins + turn, len(begins)

    def _turn_span(self, text: str, chat: Conversation, turn: int) -> TurnSpan:
        start = self._opening(text, chat, turn)
        begins = self._render(chat, turn + 1)
        return TurnSpan(start, self._prefix_length(text, begins, turn))

    def _opening(self, text: str, chat: Conversation, turn: int) -> int:
        """Return where a turn begins in the text.

        The beginning of thoughts in the generation prompt is left out where the template does not
        write it in front of the answer.
        """
        begins = self._render(chat, turn, opened=True)
        bare = OPENING.sub("", begins)
        if not text.startswith(begins) and text.startswith(bare):
            return len(bare)
        return self._prefix_length(text, begins, turn, last=turn == len(chat.messages) - 1)

    def _prefix_length(self, text: str, begins: str, turn: int, last: bool = False) -> int:
        """Return the length of ``begins``, which must be a prefix of ``text``."""
        if not text.startswith(begins):
            at = next(
                (i for i, (a, b) in enumerate(zip(text, begins, strict=False)) if a != b), len(text)
            )
            raise UnusableConversation(
                _PREFIX_BROKEN,
                f"The chat template renders what comes before the end of message {turn + 1} "
                f"differently once more messages follow ({_shorten(begins[at:])} becomes "
                f"{_shorten(text[at:])}): which tokens are the assistant's cannot be told",
                ("" if last else f'`supervise = "{EACH}"` under [task]; or ')
                + "a `chat_template` with {% generation %} marks around what the assistant says.",
            )
        return len(begins)

    def writes_date(self) -> bool:
        """Tell whether prompts have the date of the day, unless a variable sets another."""
        return "strftime_now(" in self.template and "date_string" not in self.variables

    def renumbers(self, messages: Sequence[Message]) -> bool:
        """Tell whether tool calls get other ids, because the template demands such."""
        ids = [c.get("id") for m in messages for c in m.get("tool_calls", ())]
        ids += [m.get("tool_call_id") for m in messages if m["role"] == TOOL]
        fit = all(isinstance(i, str) and _CALL_ID.fullmatch(i) for i in ids)
        return not fit and self.style.demands_ids

    def _with_call_ids(self, chat: Conversation) -> Conversation:
        if not self.renumbers(chat.messages):
            return chat
        return replace(chat, messages=tuple(number_calls(chat.messages)))

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
        control = [c for c in self._control.values() if c not in _MARKS_IN_TEXT]
        for number, message in enumerate(messages, 1):
            text = f"{message_text(message)} {message.get(REASONING[0], '')}"
            held = next((c for c in control if c in text), None)
            if held is not None:
                raise UnusableConversation(
                    "control-token-in-text",
                    f"The text of message {number} holds the control token {held!r}, which the "
                    "chat template writes itself",
                    "take it out of the text: a turn would end, or begin, in its middle.",
                )

    def _without_end(self, text: str) -> str:
        ends = [self._control[i] for i in self._ends if i in self._control]
        return strip_end(text, ends)

    def _render(self, chat: Conversation, stop: int, opened: bool = False) -> str:
        return self._render_with_marks(chat, stop, opened, marks=False)[0]

    def _render_with_marks(
        self, chat: Conversation, stop: int, opened: bool, marks: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of the messages before ``stop``, and the stretches that are marked."""
        more = {"tools": chat.tools, "documents": chat.documents}
        return self._call_template(
            self.style.prepare(chat.messages[:stop]),
            {k: v for k, v in more.items() if v is not None},
            opened,
            marks,
        )

    def _render_raw(self, messages: Sequence[Message], more: Mapping[str, Any]) -> str:
        return self._call_template(messages, more, opened=False, marks=False)[0]

    def _call_template(
        self, messages: Sequence[Message], more: Mapping[str, Any], opened: bool, marks: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with time_limit(RENDER_SECONDS):
                texts, indices = render_jinja_template(
                    conversations=[[dict(m) for m in messages]],
                    chat_template=self.template,
                    return_assistant_tokens_mask=marks,
                    add_generation_prompt=opened,
                    **{**self.variables, **more},
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


def as_conversation(chat: Conversation | Sequence[Message]) -> Conversation:
    """Return messages as a conversation up to its last supervised turn."""
    if isinstance(chat, Conversation):
        return chat
    return Conversation(tuple(chat[: last_answer_index(chat) + 1]))
