"""Supervised fine-tuning of a causal LM: prompt -> completion, or what an assistant says in chats.

The loss is on completions, and on every assistant turn, alone. In evaluation the last turn is the
reference and what is before it the prompt.

Answers are generated greedily (``engine.generate``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bakeoff.data.chat import Chat, Unusable
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
from bakeoff.tasks._base import IGNORE, CausalTask, Example, RowError, TaskCheck

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from bakeoff.engine.generation.generate import GenerationRequest

EXTRA_NEW_TOKENS = 8


class SupervisedFineTuning(CausalTask):
    """Causal language modelling on completions, or on what the assistant says."""

    fields = {"prompt": "prompt", "completion": "completion"}
    other_fields = ({"messages": "messages"},)
    structured = frozenset({"messages"})
    metrics = (
        "exact_match", "contains", "regex", "numeric", "token_f1", "chrf", "json_match",
        "json_fields", "json_valid", "loss",
    )  # fmt: skip
    needs_end_token = True
    scores_validation = False
    generates = True

    _chat: Chat | None = None

    @classmethod
    def texts(cls, row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
        """Return what a row asks and answers; of a conversation, what its last turn answers."""
        if "messages" not in columns:
            return super().texts(row, columns)
        messages = trim_conversation(row[columns["messages"]])
        return as_text(messages[:-1]), messages[-1]["content"]

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> TaskCheck:
        """Look at conversations; note train's longest completion.

        It bounds how many tokens are generated, so nothing of the test set does.
        """
        columns, chat = options["columns"], options.get("chat") or {}
        if "messages" in columns:
            faults = [
                f
                for split, rows in splits.items()
                for f in _conversation_issues(split, rows, columns)
            ]
        elif chat and not chat.get("pairs"):
            faults = [_CHAT_WITHOUT_CHAT]
        else:
            faults = []
        if any(f.fatal for f in faults):
            return TaskCheck(options, tuple(faults))
        longest = max((cls(options).references(splits["train"])), key=len)
        return TaskCheck({**options, "longest_completion": longest}, tuple(faults))

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Example]:
        """Tokenise rows, end tokens included; label completions, or all that the assistant says.

        A row that is too long loses the start of its prompt, never its completion; a conversation
        its oldest exchanges first (see ``Chat.encode``).

        Raises:
            RowError: ``completion-too-long``, and what ``Chat`` refuses.
            PreflightError: ``no-chat-template``.
        """
        one = self._conversation if self._is_chat else self._pair
        return [one(tokenizer, position, row) for position, row in enumerate(rows)]

    def _pair(self, tokenizer: PreTrainedTokenizerBase, position: int, row: Row) -> Example:
        """Tokenise prompt and completion apart, as they are when an answer is generated."""
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

    def _conversation(self, tokenizer: PreTrainedTokenizerBase, position: int, row: Row) -> Example:
        try:
            found = self._template(tokenizer).encode(
                self._messages(row), self.options["max_length"]
            )
        except Unusable as error:
            raise RowError(position, error.code, error.what, error.try_) from error
        return Example(tuple(found.ids), tuple(found.labels))

    @property
    def _is_chat(self) -> bool:
        chat = self.options.get("chat") or {}
        return "messages" in self.options["columns"] or bool(chat.get("pairs"))

    def _template(self, tokenizer: PreTrainedTokenizerBase) -> Chat:
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
        """Return the tokens that end an answer, the chat template's among them."""
        if self._is_chat:
            return self._template(tokenizer).end_tokens()
        return super().end_tokens(tokenizer)

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> list[int]:
        if self._is_chat:
            return self._template(tokenizer).prompt(self._messages(row), self.options["max_length"])
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
        """Generate greedily by plain ``generate``, all prompts of the batch padded on the left."""
        from bakeoff.engine.generation.generate import generate_plain

        return self.decode(tokenizer, generate_plain(model, self.prompts(tokenizer, rows)))

    def prompts(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> GenerationRequest:
        """Return the prompts, cut at their start to ``max_length``; an end token ends an answer."""
        from bakeoff.engine.generation.generate import GenerationRequest

        limit = self.options["max_length"]
        return GenerationRequest(
            prompts=[self._prompt(tokenizer, r)[-limit:] for r in rows],
            ends=tuple(self.end_tokens(tokenizer)),
            most=self._new_tokens(tokenizer),
            pad=int(tokenizer.pad_token_id or 0),
        )

    def decode(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]
    ) -> list[str]:
        """Return the answers without their special tokens."""
        answers: list[str] = tokenizer.batch_decode(list(tokens), skip_special_tokens=True)
        return answers

    def _new_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        given = self.options.get("max_new_tokens")
        if given is not None:
            return int(given)
        longest = len(self._tokens(tokenizer, self.options["longest_completion"]))
        return longest + EXTRA_NEW_TOKENS

    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the true completions; of conversations, the last assistant turns."""
        columns = self.options["columns"]
        if "messages" not in columns:
            return [render_template(columns["completion"], r) for r in rows]
        found = (r[columns["messages"]] for r in rows)
        return [str(messages[last_answer_index(messages)]["content"]) for messages in found]


_CHAT_WITHOUT_CHAT = DataIssue(
    "chat-without-chat",
    "[task] says how conversations are rendered, and the rows are plain prompts and completions",
    "`chat = true` renders them as conversations of one question and one answer.",
    fatal=True,
)


def _conversation_issues(
    split: str, rows: Sequence[Row], columns: Mapping[str, str]
) -> list[DataIssue]:
    """Return what is wrong with the conversations of a split, and which lose their end."""
    found: dict[str, list[int]] = {}
    first: dict[str, InvalidConversation] = {}
    open_ended = []
    for i, row in enumerate(rows):
        messages = row[columns["messages"]]
        fault = find_conversation_error(messages)
        if fault is not None:
            first.setdefault(fault.code, fault)
            found.setdefault(fault.code, []).append(i)
        elif last_answer_index(messages) != len(messages) - 1:
            open_ended.append(i)
    faults = [
        DataIssue.at(code, f.what, f.try_, split, found[code], len(rows), fatal=True)
        for code, f in first.items()
    ]
    if open_ended:
        faults.append(
            DataIssue.at(
                "after-last-answer",
                "What follows the last assistant turn is left out",
                "nobody answers it there.",
                split,
                open_ended,
                len(rows),
            )  # fmt: skip
        )
    return faults


TASK = SupervisedFineTuning
