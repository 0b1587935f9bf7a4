"""Supervised fine-tuning of a causal LM, on prompt and completion or on conversations.

The loss is on completions, or on every assistant turn. In evaluation the last turn is the reference
and what precedes it the prompt; completions are generated greedily.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bakeoff.core.errors import PreflightError
from bakeoff.data import written_tokens
from bakeoff.data.chat import Chat, UnusableConversation
from bakeoff.data.chat.findings import find_history, find_row_issues, find_template_issues
from bakeoff.data.chat.forms import (
    ANSWER_MESSAGES,
    CONTEXT_COLUMNS,
    INPUT,
    INSTRUCTION,
    PROMPT_MESSAGES,
    Conversation,
    describe_columns,
    is_conversation,
    one_row_per_turn,
    read_conversation,
    read_exchange,
    read_question,
    read_turns,
    recognise_columns,
)
from bakeoff.data.chat.messages import (
    as_text,
    last_answer_index,
    message_text,
    single_exchange,
    trim_conversation,
)
from bakeoff.data.chat.thoughts import without_thoughts
from bakeoff.data.chat.turn_weights import WEIGHT
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row
from bakeoff.data.special_tokens import (
    PromptTokens,
    continuation_text,
    continuation_tokens,
    decode,
    prompt_tokens,
    special_ids,
    strip_end,
    token_texts,
)
from bakeoff.data.templates import render_template
from bakeoff.tasks._base import (
    IGNORE,
    NO_LIMIT,
    Answer,
    CausalTask,
    Example,
    RowError,
    TaskCheck,
    pad_id_of,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from bakeoff.engine.generation.generate import GenerationRequest

LONGEST = 100
"""How many of a split's longest conversations are looked at for truncation."""
EXTRA_NEW_TOKENS = 8
"""Tokens that a completion may have beyond the longest one."""


class SupervisedFineTuning(CausalTask):
    """Causal language modelling on completions, or on assistant turns."""

    fields = {"prompt": "prompt", "completion": "completion"}
    other_fields = ({"messages": "messages"}, {INSTRUCTION: INSTRUCTION, "completion": "output"})
    optional = frozenset({*CONTEXT_COLUMNS, INPUT})
    structured = frozenset({"messages", PROMPT_MESSAGES, ANSWER_MESSAGES, *CONTEXT_COLUMNS})
    default_metric = "exact_match"
    needs_end_token = True
    scores_validation = False
    generates = True

    _chat: Chat | None = None

    @classmethod
    def columns(cls, given: Mapping[str, str], present: Iterable[str] = ()) -> dict[str, str]:
        """Return the column of each field; conversations and Alpaca's rows are recognised.

        Raises:
            PreflightError: ``unknown-field``, ``fields-mixed``.
        """
        required = {name: c for name, c in given.items() if name not in cls.optional}
        named = super().columns(required, present)
        return recognise_columns(given, present) or named

    @classmethod
    def describe_columns(cls, given: Mapping[str, str], columns: Mapping[str, str]) -> str | None:
        """Return one line on columns that were recognised."""
        return describe_columns(given, columns)

    @classmethod
    def split_turns(cls, rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
        """Return each conversation once for each supervised turn; unreadable ones as they are."""
        return [part for row in rows for part in one_row_per_turn(row, columns)]

    @classmethod
    def texts(cls, row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
        """Return a row's prompt and completion; for a conversation, its last turn and the rest."""
        if is_conversation(columns):
            messages = read_conversation(row, columns).messages
            return as_text(messages[:-1]), message_text(messages[-1])
        if INSTRUCTION in columns:
            return read_question(row, columns), read_exchange(row, columns).answer
        return super().texts(row, columns)

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> TaskCheck:
        """Validate conversations, and record the longest completion of train.

        ``resolve`` replaces it if a completion of any split has more tokens.
        """
        columns, chat = options["columns"], options.get("chat") or {}
        if is_conversation(columns):
            issues = [f for s, rows in splits.items() for f in find_row_issues(s, rows, columns)]
        elif chat and not chat.get("pairs"):
            issues = [_CHAT_WITHOUT_CONVERSATIONS]
        elif INSTRUCTION in columns:
            issues = [f for s, rows in splits.items() for f in find_history(s, rows)]
        else:
            issues = []
        if any(x.fatal for x in issues):
            return TaskCheck(options, tuple(issues))
        if is_conversation(columns) and (read := _read_keys(splits, columns)):
            options = {**options, "chat": {**chat, "read": read}}
        longest = max((cls(options).references(splits["train"])), key=len)
        return TaskCheck({**options, "longest_completion": longest}, tuple(issues))

    def resolve(
        self, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Sequence[Row]]
    ) -> TaskCheck:
        """Find out which end and special tokens completions contain, and what changes in prompts.

        The longest completion, which limits new tokens, becomes the one with the most tokens in any
        split: otherwise no answer could equal a longer reference.
        """
        options, columns = dict(self.options), self.options["columns"]
        issues: list[DataIssue] = []
        ends = self.end_tokens(tokenizer)
        if not is_conversation(columns):
            texts = token_texts(tokenizer, ends)
            written, issues = written_tokens.written_ends(splits, columns["completion"], texts)
            options |= {"end_tokens": written} if written else {}
        if self._is_chat:
            bare = type(self)(options)
            options |= bare._answer_options(tokenizer, splits)
            options |= bare._begin_token_option(tokenizer, splits)
        written_as = type(self)(options)
        answers = written_as._whole_answers(tokenizer, splits["train"])
        if kept := written_tokens.kept_tokens(tokenizer, answers, ends):
            options["kept_tokens"] = kept
            issues = [*issues, written_tokens.kept_issue(kept)]
        if options.get("max_new_tokens") is None:
            longest = strip_end(options["longest_completion"], options.get("end_tokens", ()))
            longest = written_tokens.longest_in_tokens(tokenizer, answers, longest)
            for rows in (rows for split, rows in splits.items() if split != "train"):
                others = written_as._whole_answers(tokenizer, rows)
                # room for the end token; within it, ids of older studies stay as they are
                more = EXTRA_NEW_TOKENS - 1
                longest = written_tokens.longest_in_tokens(tokenizer, others, longest, more)
            options["longest_completion"] = longest
        if not self._is_chat:
            whole = type(self)({**options, "max_length": NO_LIMIT})
            sizes = {
                split: [1 + len(whole._completion_tokens(tokenizer, row)) for row in rows]
                for split, rows in splits.items()
            }
            limit = self.options["max_length"]
            prompts = splits
            if INSTRUCTION in columns:
                prompts = {
                    split: [{"prompt": read_exchange(row, columns).prompt} for row in rows]
                    for split, rows in splits.items()
                }
            changes, found = written_tokens.prompt_changes(
                tokenizer, prompts, columns.get("prompt", "prompt"),
                lambda s, i, n: n + sizes[s][i] > limit,
            )  # fmt: skip
            options |= {**changes, **written_tokens.space_option(tokenizer)}
            issues += found
        return TaskCheck(options, tuple(issues))

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
        answer = [*self._completion_tokens(tokenizer, row), int(tokenizer.eos_token_id or 0)]
        limit = self.options["max_length"]
        if len(answer) >= limit:
            raise RowError(
                position,
                "completion-too-long",
                f"The completion has {len(answer)} tokens, and task.max_length is {limit},",
                f"task.max_length = {len(answer) + 32}, or drop the row.",
            )
        prompt = self._plain_prompt(tokenizer, row).last(limit - len(answer))
        labels = [IGNORE] * len(prompt) + answer
        return Example(tuple(prompt + answer), tuple(labels))

    def _encode_conversation(
        self, tokenizer: PreTrainedTokenizerBase, position: int, row: Row
    ) -> Example:
        try:
            encoded = self._chat_template(tokenizer).encode(
                self._conversation(row), self.options["max_length"]
            )
        except UnusableConversation as error:
            raise RowError(position, error.code, error.what, error.try_) from error
        return Example(tuple(encoded.ids), tuple(encoded.labels))

    @property
    def _is_chat(self) -> bool:
        chat = self.options.get("chat") or {}
        return is_conversation(self.options["columns"]) or bool(chat.get("pairs"))

    def _chat_template(self, tokenizer: PreTrainedTokenizerBase) -> Chat:
        if self._chat is None or self._chat.tokenizer is not tokenizer:
            chat = self.options.get("chat") or {}
            self._chat = Chat(
                tokenizer, chat.get("template"), chat.get("variables"), chat.get("supervise")
            )
        return self._chat

    def _conversation(self, row: Row) -> Conversation:
        columns, chat = self.options["columns"], self.options.get("chat") or {}
        if is_conversation(columns):
            return read_conversation(row, columns, chat.get("system"))
        exchange = single_exchange(read_question(row, columns), self._completion(row))
        return Conversation(tuple(trim_conversation(exchange, chat.get("system"))))

    def _answer_options(
        self, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Sequence[Row]]
    ) -> dict[str, Any]:
        """Return options for answers that the template rewrites, and for those with thoughts."""
        found: dict[str, str] = {}
        for rows in splits.values():
            whole = self._whole_answers(tokenizer, rows, rendered=True)
            if whole != self._whole_answers(tokenizer, rows):
                found["answers"] = "as rendered"
            if any(without_thoughts(text) != text for text in whole):
                found["thoughts"] = "not compared"
        return {"chat": {**(self.options.get("chat") or {}), **found}} if found else {}

    def _begin_token_option(
        self, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Sequence[Row]]
    ) -> dict[str, Any]:
        """Return the option that marks truncated conversations which keep their begin token.

        Only the longest rows are looked at: earlier versions cut the token off.
        """
        limit, whole = self.options["max_length"], self.without_length_limit()
        for rows in splits.values():
            for row in sorted(rows, key=lambda r: len(str(r)), reverse=True)[:LONGEST]:
                try:
                    (example,) = self.encode(tokenizer, [row])
                    begins = example.tokens[0] == tokenizer.bos_token_id
                    if not begins or len(example.tokens) < limit:
                        continue
                    if len(whole.encode(tokenizer, [row])[0].tokens) > limit:
                        return {"added_tokens": {"before": [tokenizer.bos_token], "after": []}}
                except RowError:  # the check of the tokens refuses the row
                    continue
        return {}

    def _whole_answers(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], rendered: bool = False
    ) -> list[str]:
        """Return the answers that are trained on, thoughts included."""
        if not self._is_chat:
            return self.references(rows)
        if not rendered and not (self.options.get("chat") or {}).get("answers"):
            return [self._plain_answer(row) for row in rows]
        chat, texts = self._chat_template(tokenizer), []
        for row in rows:
            try:
                texts.append(chat.answer(self._conversation(row)))
            except UnusableConversation:  # the check of the tokens refuses the row
                texts.append(self._plain_answer(row))
        return texts

    def _plain_answer(self, row: Row) -> str:
        if not is_conversation(self.options["columns"]):
            return self._completion(row)
        messages = self._conversation(row).messages
        return message_text(messages[last_answer_index(messages)])

    def _bare(self, text: str) -> str:
        """Return an answer as it is compared."""
        drops = (self.options.get("chat") or {}).get("thoughts")
        return without_thoughts(text) if drops else text

    def token_issues(
        self,
        tokenizer: PreTrainedTokenizerBase,
        split: str,
        rows: Sequence[Row],
        positions: int | None,
    ) -> list[DataIssue]:
        """Return what the chat template drops, rewrites or merges."""
        if not self._is_chat:
            return []
        conversations = [self._conversation(row) for row in rows]
        return find_template_issues(self._chat_template(tokenizer), split, conversations)

    def added_tokens_text(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return a sentence on the special tokens around a prompt; a template writes its own."""
        return None if self._is_chat else super().added_tokens_text(tokenizer)

    def end_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the tokens that end a completion, including the chat template's.

        Raises:
            PreflightError: the template cannot render a question and its answer.
        """
        if self._is_chat:
            read = (self.options.get("chat") or {}).get("read", ())
            try:
                return self._chat_template(tokenizer).end_tokens(calls="tool_calls" in read)
            except UnusableConversation as error:
                raise PreflightError(error.code, f"{error.what}.", error.try_) from error
        return super().end_tokens(tokenizer)

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> list[int]:
        if self._is_chat:
            return self._chat_template(tokenizer).prompt(
                self._conversation(row), self.options["max_length"]
            )
        return self._plain_prompt(tokenizer, row).last(self.options["max_length"])

    def _plain_prompt(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> PromptTokens:
        return prompt_tokens(tokenizer, read_exchange(row, self.options["columns"]).prompt)

    def _completion(self, row: Row) -> str:
        """Return a row's completion without the end tokens that the data writes."""
        text = render_template(self.options["columns"]["completion"], row)
        return strip_end(text, self.options.get("end_tokens", ()))

    def _completion_tokens(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> list[int]:
        return continuation_tokens(tokenizer, self._completion(row))

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
        """Return the prompts, truncated to ``max_length`` behind their begin token."""
        from bakeoff.engine.generation.generate import GenerationRequest

        return GenerationRequest(
            prompts=[self._prompt(tokenizer, r) for r in rows],
            end_tokens=tuple(self.end_tokens(tokenizer)),
            max_new_tokens=self._max_new_tokens(tokenizer),
            pad_id=pad_id_of(tokenizer),
        )

    def decode(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]
    ) -> list[str]:
        """Return the completions without special tokens, but for those of train's completions."""
        kept = tokenizer.convert_tokens_to_ids(self.options.get("kept_tokens", []))
        dropped = special_ids(tokenizer) - set(kept)
        if self._is_chat:
            texts = (decode(tokenizer, [i for i in ids if i not in dropped]) for ids in tokens)
            return [self._bare(text) for text in texts]
        return [continuation_text(tokenizer, ids, dropped) for ids in tokens]

    def perfect_answers(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> list[Answer]:
        """Return what would be recorded for a model that learnt every row perfectly."""
        whole = self.without_length_limit()
        request, completions = whole.prompts(tokenizer, rows), []
        for example, prompt in zip(whole.encode(tokenizer, rows), request.prompts, strict=True):
            start = len(prompt)
            if list(example.tokens[:start]) != list(prompt):  # the last supervised tokens then
                last = max(i for i, label in enumerate(example.labels) if label != IGNORE)
                start = 1 + max((i for i in range(last) if example.labels[i] == IGNORE), default=-1)
            completions.append(request.trim(example.tokens[start:]))
        return self.answers(tokenizer, request, completions)

    def _max_new_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        limit = self.options.get("max_new_tokens")
        if limit is not None:
            return int(limit)
        longest = self.options["longest_completion"]
        ids: list[int] = tokenizer(longest, add_special_tokens=False)["input_ids"]
        return len(ids) + EXTRA_NEW_TOKENS

    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the true completions; for conversations, the last assistant turns.

        Tool calls are JSON here, and ``scored_references`` has them as the template writes them.
        """
        if not is_conversation(self.options["columns"]):
            return [self._completion(r) for r in rows]
        return [self._bare(self._plain_answer(r)) for r in rows]

    def scored_references(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> list[str]:
        """Return the references as a model that learnt them would write them, without thoughts."""
        return [self._bare(text) for text in self._whole_answers(tokenizer, rows)]


_CHAT_WITHOUT_CONVERSATIONS = DataIssue(
    "chat-without-chat",
    "[task] configures how conversations are rendered, but the rows are prompts and completions",
    "`chat = true` renders them as conversations of one question and one answer.",
    fatal=True,
)


def _read_keys(splits: Mapping[str, Sequence[Row]], columns: Mapping[str, str]) -> list[str]:
    """Return the keys of messages that change what is trained on, which older versions ignored."""
    keys = {WEIGHT, "tool_calls"}
    found = {
        key
        for rows in splits.values()
        for row in rows
        for message in read_turns(row, columns)
        for key in message.keys() & keys
    }
    return sorted(found)


TASK = SupervisedFineTuning
