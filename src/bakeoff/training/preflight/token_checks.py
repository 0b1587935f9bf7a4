"""Check tokenised rows: truncated or too long, nothing supervised, tokens without an embedding.

Issues name rows by their position in their split. The tokens are cached for the trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from bakeoff.core.errors import PreflightError
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import SPLITS, Row, read_rows
from bakeoff.tasks._base import Example, RowError, Task
from bakeoff.training.token_cache import store

UNKNOWN_SHARE = 0.01
"""Smallest share of unknown tokens in a split that is reported."""
TOO_LONG = "completion-too-long"


class BaseLimits(NamedTuple):
    """Limits of the base model that rows must keep."""

    embeddings: int | None
    """Number of tokens with an embedding vector."""
    positions: int | None
    """Most tokens of a row."""

    @classmethod
    def of(cls, model: Any) -> BaseLimits:
        """Return the limits of a loaded model."""
        inputs = model.get_input_embeddings()
        weight = getattr(inputs, "weight", None)
        count = getattr(inputs, "num_embeddings", None if weight is None else weight.shape[0])
        return cls(count, _usable_positions(model))


def _usable_positions(model: Any) -> int | None:
    """Return the number of usable positions; models like RoBERTa start after the padding index."""
    configured = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] == "position_embeddings" and isinstance(module, nn.Embedding):
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - skipped
    return configured


def check(data: Path, task: Task, tokenizer: Any, base: BaseLimits) -> list[DataIssue]:
    """Tokenise every split and cache the tokens; return the issues of tokenizer and rows."""
    issues = [*_tokenizer_issues(task, tokenizer, base)]
    if any(issue.fatal for issue in issues):
        return issues
    for split in SPLITS:
        rows = read_rows(data / f"{split}.jsonl")
        task_issues = task.token_issues(tokenizer, split, rows, base.positions)
        issues += task_issues
        if any(issue.fatal for issue in task_issues):
            continue
        try:
            full = task.without_length_limit().encode(tokenizer, rows)
        except RowError:
            issues += _unencodable_rows(task.without_length_limit(), tokenizer, split, rows)
            continue
        examples, length_issues = _truncate(task, tokenizer, split, rows, full, base.positions)
        issues += length_issues
        if not any(issue.fatal for issue in length_issues):
            issues += _row_issues(task, tokenizer, base, split, examples)
            store(task, tokenizer, data, split, examples)
    return issues


def _unencodable_rows(
    task: Task, tokenizer: Any, split: str, rows: Sequence[Row]
) -> list[DataIssue]:
    """Return an issue for each reason why the task cannot tokenise some rows."""
    first: dict[str, RowError] = {}
    positions: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        try:
            task.encode(tokenizer, [row])
        except RowError as error:
            first.setdefault(error.code, error)
            positions.setdefault(error.code, []).append(i)
    return [
        DataIssue.at(code, e.what, e.try_, split, positions[code], len(rows), fatal=True)
        for code, e in first.items()
    ]


def _tokenizer_issues(task: Task, tokenizer: Any, base: BaseLimits) -> Iterator[DataIssue]:
    if task.needs_end_token and tokenizer.eos_token_id is None:
        yield DataIssue(
            "no-end-token",
            "The tokenizer has no end token, so generation would never stop",
            "set `eos_token` in the base's tokenizer_config.json.",
            fatal=True,
        )
    pad = tokenizer.pad_token_id
    if pad is None:
        yield DataIssue(
            "no-pad-token",
            "The tokenizer has neither a padding nor an end token to pad batches with",
            "set `pad_token` in the base's tokenizer_config.json to a token of its vocabulary.",
            fatal=True,
        )
    elif base.embeddings is not None and pad >= base.embeddings:
        yield DataIssue(
            "token-beyond-embedding",
            f"The padding token {tokenizer.pad_token!r} is number {pad}; the base's embedding has "
            f"{base.embeddings} rows",
            "set `pad_token` to a token that the base has, or resize and save the base.",
            fatal=True,
        )


def _truncate(
    task: Task, tokenizer: Any, split: str, rows: Sequence[Row], full: Sequence[Example],
    positions: int | None,
) -> tuple[list[Example], list[DataIssue]]:  # fmt: skip
    """Return the examples cut to the length limit, and the issues of those that were cut."""
    limit = task.options["max_length"]
    examples, refused, cut = list(full), [], {}
    for i, example in enumerate(full):
        if len(example.tokens) <= limit:
            continue
        try:
            (examples[i],) = task.encode(tokenizer, [rows[i]])
        except PreflightError as error:
            if error.code != TOO_LONG:
                raise
            refused.append(i)
        else:
            cut[i] = example
    if refused:
        longest = max(count_supervised(full[i]) for i in refused)
        return examples, [
            DataIssue.at(
                TOO_LONG,
                f"The completion alone exceeds task.max_length = {limit} (up to {longest} tokens)",
                f"drop these rows: the base has {positions:,} positions."
                if positions is not None and longest >= positions
                else "raise task.max_length above that, with room for the prompt, or drop these "
                "rows.",
                split,
                refused,
                len(rows),
                fatal=True,
            )  # fmt: skip
        ]
    return examples, [*_truncation_issues(split, limit, cut, examples, positions)]


def _truncation_issues(
    split: str, limit: int, cut: Mapping[int, Example], examples: Sequence[Example],
    positions: int | None,
) -> Iterator[DataIssue]:  # fmt: skip
    answers = [
        i for i, whole in cut.items() if count_supervised(examples[i]) < count_supervised(whole)
    ]
    inputs = [i for i in cut if i not in set(answers)]
    most = max((len(e.tokens) for e in cut.values()), default=0)
    hint = f"task.max_length = {most} cuts nothing"
    if positions is not None and most > positions:
        hint = f"the base has {positions:,} positions"
    for code, found, what in (
        ("rows-cut", inputs, "tokens of their input, no supervised one,"),
        ("completions-cut", answers, "tokens, supervised ones among them,"),
    ):
        if found:
            lost = sum(len(cut[i].tokens) - len(examples[i].tokens) for i in found)
            longest = max(len(cut[i].tokens) for i in found)
            yield DataIssue.at(
                code,
                f"Over task.max_length = {limit} (up to {longest:,} tokens): {lost:,} {what} are "
                "cut off",
                f"{hint}; shorten or drop these rows if their end or beginning matters.",
                split, found, len(examples),
            )  # fmt: skip


def count_supervised(example: Example) -> int:
    """Return the number of supervised labels of an example."""
    return sum(label >= 0 for label in example.labels)


def _row_issues(
    task: Task, tokenizer: Any, base: BaseLimits, split: str, examples: Sequence[Example]
) -> Iterator[DataIssue]:
    def at(
        code: str, what: str, try_: str, found: Sequence[int], fatal: bool
    ) -> Iterator[DataIssue]:
        if found:
            yield DataIssue.at(code, what, try_, split, found, len(examples), fatal=fatal)

    yield from at(
        "nothing-supervised",
        "No supervised token (every token is masked)",
        "give it a completion, or drop the row.",
        [i for i, e in enumerate(examples) if not count_supervised(e)],
        True,
    )
    if base.positions is not None:
        long = [i for i, e in enumerate(examples) if len(e.tokens) > base.positions]
        longest = max((len(examples[i].tokens) for i in long), default=0)
        yield from at(
            "longer-than-positions",
            f"More tokens than the base has positions ({longest} of {base.positions})",
            f"task.max_length = {base.positions}, or less.",
            long,
            True,
        )
    if base.embeddings is not None:
        beyond = [i for i, e in enumerate(examples) if max(e.tokens, default=0) >= base.embeddings]
        if beyond:
            most = max(examples[beyond[0]].tokens)
            token = tokenizer.convert_ids_to_tokens(most)
            yield from at(
                "token-beyond-embedding",
                f"A token without an embedding ({token!r} is number {most}; the base's embedding "
                f"has {base.embeddings} rows)",
                "the tokenizer is another model's, or tokens were added: resize and save the base.",
                beyond,
                True,
            )
    yield from _supervision_issues(task, tokenizer, split, examples)


def _supervision_issues(
    task: Task, tokenizer: Any, split: str, examples: Sequence[Example]
) -> Iterator[DataIssue]:
    """Yield issues of rows from which a model cannot learn what they seem to teach."""
    unknown = tokenizer.unk_token_id
    if unknown is not None:
        counts = {i: e.tokens.count(unknown) for i, e in enumerate(examples)}
        found = [i for i, n in counts.items() if n]
        share = sum(counts.values()) / max(1, sum(len(e.tokens) for e in examples))
        if share >= UNKNOWN_SHARE:
            yield DataIssue.at(
                "unknown-tokens",
                f"Words or characters unknown to the tokenizer ({100 * share:.0f} % of all "
                f"tokens are {tokenizer.unk_token!r})",
                "the base cannot distinguish them: use a base that knows this script.",
                split, found, len(examples),
            )  # fmt: skip
    if task.needs_end_token:
        ends = set(task.end_tokens(tokenizer))
        found = [i for i, e in enumerate(examples) if ends.isdisjoint(e.labels)]
        if found:
            yield DataIssue.at(
                "end-not-supervised",
                f"The end token {tokenizer.eos_token!r} is not supervised",
                "answers will not stop there; compare the end token with the chat template.",
                split, found, len(examples),
            )  # fmt: skip
    if task.task_type == "SEQ_CLS":
        found = [i for i, e in enumerate(examples) if e.tokens[-1:] == (tokenizer.pad_token_id,)]
        if found:
            yield DataIssue.at(
                "ends-with-padding",
                f"The text ends with the padding token {tokenizer.pad_token!r}",
                "a decoder's classifier treats it as padding and uses the token before it.",
                split, found, len(examples),
            )  # fmt: skip
