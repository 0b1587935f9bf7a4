"""Supervised fine-tuning of a causal LM, on prompt and completion or on conversations.

The loss is on completions, or on every assistant turn. In evaluation the last turn is the reference
and what precedes it the prompt; completions are generated greedily.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bakeoff.data.chat import Chat, UnusableConversation
from bakeoff.data.chat.messages import (
    InvalidConversation,
    as_text,
    find_conversation_error,
    last_answer_index,
    single_exchange,
    trim_conversation,
)
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row, render_template
from bakeoff.tasks._base import IGNORE, CausalTask, Example, RowError, TaskCheck, pad_id_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from bakeoff.engine.generation.generate import GenerationRequest

EXTRA_NEW_TOKENS = 8
"""Tokens that a completion may have beyond the longest one of train."""


class SupervisedFineTuning(CausalTask):
    """Causal language modelling on completions, or on assistant turns."""

    fields = {"prompt": "prompt", "completion": "completion"}
    other_fields = ({"messages": "messages"},)
    structured = frozenset({"messages"})
    default_metric = "exact_match"
    needs_end_token = True
    scores_validation = False
    generates = True

    _chat: Chat | None = None

    @classmethod
    def texts(cls, row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
        """Return a row's prompt and completion; for a conversation, its last turn and the rest."""
        if "messages" not in columns:
            return super().texts(row, columns)
        messages = trim_conversation(row[columns["messages"]])
        return as_text(messages[:-1]), messages[-1]["content"]

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> TaskCheck:
        """Validate conversations, and record the longest completion of train.

        It limits the number of generated tokens, so that the test set has no influence on it.
        """
        columns, chat = options["columns"], options.get("chat") or {}
        if "messages" in columns:
            issues = [
                f
                for split, rows in splits.items()
                for f in _conversation_issues(split, rows, columns)
            ]
        elif chat and not chat.get("pairs"):
            issues = [_CHAT_WITHOUT_CONVERSATIONS]
        else:
            issues = []
        if any(x.fatal for x in issues):
            return TaskCheck(options, tuple(issues))
        longest = max((cls(options).references(splits["train"])), key=len)
        return TaskCheck({**options, "longest_completion": longest}, tuple(issues))

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Example]:
        """Tokenise rows with end tokens; label completions, or all assistant turns.

        A row that is too long is truncated at the start of its prompt, never in its completion; a
        conversation loses its oldest exchanges first (see ``Chat.encode``).

        Raises:
            RowError: ``completion-too-long``, and what ``Chat`` refuses.
            PreflightError: ``no-chat-template``.
        """
        encode_row = self._encode_conversation if self._is_chat else self._encode_pair
        return [encode_row(tokenizer, position, row) for position, row in enumerate(rows)]

    def _encode_pair(self, tokenizer: PreTrainedTokenizerBase, position: int, row: Row) -> Example:
        """Tokenise prompt and completion separately, as in generation."""
        prompt = self._prompt(tokenizer, row)
        answer = self._tokens(
            tokenizer, render_template(self.options["columns"]["completion"], row)
        )
        answer = [*answer, int(tokenizer.eos_token_id or 0)]
        limit = self.options["max_length"]
        if len(answer) >= limit:
            raise RowError(
                position,
                "completion-too-long",
                f"The completion has {len(answer)} tokens, and task.max_length is {limit},",
                f"task.max_length = {len(answer) + 32}, or drop the row.",
            )
        prompt = prompt[len(answer) - limit :]
        labels = [IGNORE] * len(prompt) + answer
        return Example(tuple(prompt + answer), tuple(labels))

    def _encode_conversation(
        self, tokenizer: PreTrainedTokenizerBase, position: int, row: Row
    ) -> Example:
        try:
            encoded = self._chat_template(tokenizer).encode(
                self._messages(row), self.options["max_length"]
            )
        except UnusableConversation as error:
            raise RowError(position, error.code, error.what, error.try_) from error
        return Example(tuple(encoded.ids), tuple(encoded.labels))

    @property
    def _is_chat(self) -> bool:
        chat = self.options.get("chat") or {}
        return "messages" in self.options["columns"] or bool(chat.get("pairs"))

    def _chat_template(self, tokenizer: PreTrainedTokenizerBase) -> Chat:
        if self._chat is None or self._chat.tokenizer is not tokenizer:
            chat = self.options.get("chat") or {}
            self._chat = Chat(tokenizer, chat.get("template"), chat.get("variables"))
        return self._chat

    def _messages(self, row: Row) -> list[dict[str, Any]]:
        columns, chat = self.options["columns"], self.options.get("chat") or {}
        if "messages" in columns:
            messages = row[columns["messages"]]
        else:
            messages = single_exchange(
                render_template(columns["prompt"], row), render_template(columns["completion"], row)
            )
        return trim_conversation(messages, chat.get("system"))

    def end_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the tokens that end a completion, including the chat template's."""
        if self._is_chat:
            return self._chat_template(tokenizer).end_tokens()
        return super().end_tokens(tokenizer)

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> list[int]:
        if self._is_chat:
            return self._chat_template(tokenizer).prompt(
                self._messages(row), self.options["max_length"]
            )
        text = render_template(self.options["columns"]["prompt"], row)
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids

    @staticmethod
    def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        device: str,
    ) -> list[str]:
        """Generate greedily with ``generate``, all prompts of the batch padded on the left."""
        from bakeoff.engine.generation.generate import generate_plain

        return self.decode(tokenizer, generate_plain(model, self.prompts(tokenizer, rows)))

    def prompts(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> GenerationRequest:
        """Return the prompts, truncated at their start to ``max_length``."""
        from bakeoff.engine.generation.generate import GenerationRequest

        limit = self.options["max_length"]
        return GenerationRequest(
            prompts=[self._prompt(tokenizer, r)[-limit:] for r in rows],
            end_tokens=tuple(self.end_tokens(tokenizer)),
            max_new_tokens=self._max_new_tokens(tokenizer),
            pad_id=pad_id_of(tokenizer),
        )

    def decode(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]
    ) -> list[str]:
        """Return the completions without special tokens."""
        texts: list[str] = tokenizer.batch_decode(list(tokens), skip_special_tokens=True)
        return texts

    def _max_new_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        limit = self.options.get("max_new_tokens")
        if limit is not None:
            return int(limit)
        longest = len(self._tokens(tokenizer, self.options["longest_completion"]))
        return longest + EXTRA_NEW_TOKENS

    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the true completions; for conversations, the last assistant turns."""
        columns = self.options["columns"]
        if "messages" not in columns:
            return [render_template(columns["completion"], r) for r in rows]
        conversations = (r[columns["messages"]] for r in rows)
        return [str(messages[last_answer_index(messages)]["content"]) for messages in conversations]


_CHAT_WITHOUT_CONVERSATIONS = DataIssue(
    "chat-without-chat",
    "[task] configures how conversations are rendered, but the rows are prompts and completions",
    "`chat = true` renders them as conversations of one question and one answer.",
    fatal=True,
)


def _conversation_issues(
    split: str, rows: Sequence[Row], columns: Mapping[str, str]
) -> list[DataIssue]:
    """Return the invalid conversations of a split, and those with turns after the last answer."""
    affected: dict[str, list[int]] = {}
    first: dict[str, InvalidConversation] = {}
    open_ended = []
    for i, row in enumerate(rows):
        messages = row[columns["messages"]]
        error = find_conversation_error(messages)
        if error is not None:
            first.setdefault(error.code, error)
            affected.setdefault(error.code, []).append(i)
        elif last_answer_index(messages) != len(messages) - 1:
            open_ended.append(i)
    issues = [
        DataIssue.at(code, e.what, e.try_, split, affected[code], len(rows), fatal=True)
        for code, e in first.items()
    ]
    if open_ended:
        issues.append(
            DataIssue.at(
                "after-last-answer",
                "Turns after the last assistant turn are ignored",
                "no assistant turn answers them.",
                split,
                open_ended,
                len(rows),
            )  # fmt: skip
        )
    return issues


TASK = SupervisedFineTuning
