"""Multiple choice: predict the choice that a causal LM finds most likely after the prompt.

Trained on the tokens of the right choice. Nothing is generated: each choice is appended to the
prompt and the log-likelihood of its tokens is computed, without an end token, as in EleutherAI's
lm-evaluation-harness (``lm_eval/api/task.py::ConfigurableTask.process_results``). All choices of an
item follow exactly the same prompt tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bakeoff.data import written_tokens
from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row
from bakeoff.data.special_tokens import (
    PromptTokens,
    added_tokens,
    prompt_tokens,
    without_added,
)
from bakeoff.data.templates import cell_of, columns_of, render_template, text_between
from bakeoff.tasks._base import IGNORE, Answer, CausalTask, Example, TaskCheck, pad_id_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_WHOLE = re.compile(r"\d+")
_BETWEEN_COLUMNS = re.compile(r"[\s,|]*")


class InvalidChoices(Exception):
    """A row whose choices cannot be used: a code, a clause, and a hint."""

    def __init__(self, code: str, what: str, try_: str) -> None:
        super().__init__(code, what, try_)
        self.code, self.what, self.try_ = code, what, try_


class Choices(NamedTuple):
    """The texts of a row's choices, and their labels if the data has any."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @classmethod
    def parse(cls, field: str, row: Row) -> Choices:
        """Read the choices from columns ``{a}, {b}``, or from one column with a list.

        The list has texts, or objects with ``text`` and ``label``. It can also be an object with
        two such lists (ARC's form), or any of these as JSON text, as in a CSV cell.

        Raises:
            InvalidChoices: ``choices-not-a-list``, ``choices-too-few``, ``choice-empty``,
                ``choices-repeat``.
        """
        if columns_of(field) == (field,):
            choices = cls(*_parse_cell(cell_of(row, field)))
        else:
            cells = [cell_of(row, column) for column in columns_of(field)]
            choices = cls(*_parse_cell(cells))
        if len(choices.texts) < 2:
            raise InvalidChoices(
                "choices-too-few",
                "There are fewer than two choices",
                "every item needs a right choice and a wrong one.",
            )
        if not all(choices.texts):
            raise InvalidChoices("choice-empty", "A choice is empty", "drop it from the list.")
        if len(set(choices.texts)) < len(choices.texts):
            raise InvalidChoices(
                "choices-repeat",
                "A choice occurs twice",
                "one of two equal choices can be neither right nor wrong: keep one.",
            )
        return choices

    def index_of(self, answer: str, form: str) -> int | None:
        """Return the index of the choice that an answer in this form means, None for none."""
        names: Sequence[str] = ()
        if form == "text":
            names = self.texts
        elif form == "label":
            names = self.labels
        elif form == "letter" and (letter := _LETTER.fullmatch(answer)):
            return self._in_range(ord(letter[1].upper()) - ord("A"))
        elif form in ("index", "number") and _WHOLE.fullmatch(answer):
            return self._in_range(int(answer) - (form == "number"))
        return names.index(answer) if answer in names else None

    def _in_range(self, place: int) -> int | None:
        return place if 0 <= place < len(self.texts) else None


def _parse_cell(cell: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the texts and the labels of a cell."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            cell = None
    if isinstance(cell, dict):
        parts = [cell.get("text"), cell.get("label", [])]
    elif isinstance(cell, list) and cell and all(isinstance(x, dict) for x in cell):
        parts = [[x.get("text") for x in cell], [x["label"] for x in cell if "label" in x]]
    else:
        parts = [cell, []]
    texts, labels = parts
    if (
        not isinstance(texts, list)
        or not isinstance(labels, list)
        or not _all_scalars(texts + labels)
    ):
        raise _not_a_list()
    if labels and len(labels) != len(texts):
        raise _not_a_list()
    return tuple(str(x).strip() for x in texts), tuple(str(x).strip() for x in labels)


def _all_scalars(values: Iterable[Any]) -> bool:
    return all(isinstance(x, str | int | float) for x in values)


def _not_a_list() -> InvalidChoices:
    return InvalidChoices(
        "choices-not-a-list",
        "The choices are not a list of texts",
        '`choices = "options"` names a column with a list, `choices = "{a}, {b}, {c}"` columns '
        "with a text each.",
    )


class MultipleChoice(CausalTask):
    """Multiple choice by log-likelihood."""

    fields = {"prompt": "prompt", "choices": "choices", "answer": "answer"}
    structured = frozenset({"choices"})
    default_metric = "accuracy"
    option_values = {
        "normalise": ("sum", "per_token", "per_character", "per_byte"),
        "answer": ("auto", "label", "text", "letter", "index", "number"),
    }
    scores_validation = True

    @classmethod
    def texts(cls, row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
        """Return the columns of the prompt and the choices, and the answer as written."""
        used = [*columns_of(columns["prompt"]), *columns_of(columns["choices"])]
        texts = (str(cell_of(row, column)) for column in used)
        return "\n".join(texts), render_template(columns["answer"], row)

    def question(self, row: Row) -> str:
        """Return the prompt's columns, followed by the choices on a line each."""
        prompt = (str(cell_of(row, c)) for c in columns_of(self.options["columns"]["prompt"]))
        return "\n".join([*prompt, *(f"- {text}" for text in self._choices(row).texts)])

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> TaskCheck:
        """Parse every row's choices; detect how answers are written if it is not configured."""
        columns = options["columns"]
        issues = _check_columns(columns["choices"])
        if issues:
            return TaskCheck(options, issues)
        read, issues = _read_choices(splits, columns["choices"])
        if issues:
            return TaskCheck(options, issues)
        answers = {
            s: [render_template(columns["answer"], r).strip() for r in splits[s]] for s in splits
        }
        form = options["answer"]
        if form == "auto":
            form, issues = _detect_answer_form(read, answers)
        issues = issues or _unknown_answers(read, answers, form)
        if not issues and options["normalise"] == "sum":
            issues = _prefix_issues(read["test"], answers["test"], form)
        return TaskCheck({**options, "answer": form}, issues)

    def _choices(self, row: Row) -> Choices:
        return Choices.parse(self.options["columns"]["choices"], row)

    def _right_index(self, row: Row) -> int:
        answer = render_template(self.options["columns"]["answer"], row).strip()
        place = self._choices(row).index_of(answer, self.options["answer"])
        assert place is not None, "the check parsed every answer"
        return place

    def resolve(
        self, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Sequence[Row]]
    ) -> TaskCheck:
        """Report special tokens in prompts; each keeps one begin token, and no end token."""
        whole, limit = self.without_length_limit(), self.options["max_length"]

        def is_cut(split: str, position: int, _: int) -> bool:
            try:
                candidates = whole.candidates(tokenizer, splits[split][position])
            except InvalidChoices:  # reported with the other rows of its kind
                return False
            return bool(max(len(e.tokens) for e in candidates) > limit)

        changes, issues = written_tokens.prompt_changes(
            tokenizer, splits, self.options["columns"]["prompt"], is_cut
        )
        return TaskCheck({**self.options, **changes}, tuple(issues))

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Example]:
        """Tokenise the prompt and the right choice; label the choice."""
        return [self.candidates(tokenizer, row)[self._right_index(row)] for row in rows]

    def candidates(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> list[Example]:
        """Tokenise the prompt followed by each choice; label the choice.

        White space at the end of the prompt belongs to the choice; without any, a space is added. A
        prompt that is too long loses its start, the same for all choices: the longest must fit.

        Raises:
            InvalidChoices: ``prompt-without-token``, ``choice-without-token``, ``choice-too-long``.
        """
        prompt = without_added(tokenizer, render_template(self.options["columns"]["prompt"], row))
        stem = prompt.rstrip()
        space = prompt[len(stem) :] or " "
        front, rest = prompt_tokens(tokenizer, stem)
        prompt_ids, after = [*front, *rest], len(added_tokens(tokenizer).after)
        choices = self._choices(row).texts
        tokenised: list[list[int]] = tokenizer([stem + space + text for text in choices])[
            "input_ids"
        ]
        whole = [ids[: len(ids) - after] for ids in tokenised]
        # not just len(prompt_ids): a token may extend over the end of the prompt
        shared = min(_common_prefix(prompt_ids, ids) for ids in whole)
        if shared == 0:
            raise InvalidChoices(
                "prompt-without-token",
                "The prompt has no token that the choices could follow",
                "a longer prompt; a base without a begin token needs a token before all choices.",
            )
        empty = next((c for c, ids in zip(choices, whole, strict=True) if len(ids) == shared), None)
        if empty is not None:
            raise InvalidChoices(
                "choice-without-token",
                f"The tokenizer gives the choice {empty!r} no token of its own: its "
                "log-likelihood would always be the largest",
                "other words for this choice, or a base whose tokenizer knows them.",
            )
        limit, longest = self.options["max_length"], max(map(len, whole)) - shared
        if longest >= limit:
            raise InvalidChoices(
                "choice-too-long",
                f"A choice exceeds task.max_length = {limit} (it has {longest} tokens)",
                "raise task.max_length above that, with room for the prompt, or drop these rows.",
            )
        start = whole[0][:shared]
        kept = tuple(PromptTokens(front, tuple(start[len(front) :])).last(limit - longest))
        return [
            Example((*kept, *ids[shared:]), (IGNORE,) * len(kept) + tuple(ids[shared:]))
            for ids in whole
        ]

    def token_issues(
        self,
        tokenizer: PreTrainedTokenizerBase,
        split: str,
        rows: Sequence[Row],
        positions: int | None,
    ) -> list[DataIssue]:
        """Tokenise all choices of all rows: evaluation needs the wrong ones too."""

        def check_fits(row: Row) -> None:
            candidates = self.candidates(tokenizer, row)
            if split != "train" and (alike := self._find_alike(candidates, row)):
                raise InvalidChoices(
                    "choices-alike",
                    f"The tokenizer gives two choices the same tokens ({alike[0]!r} and "
                    f"{alike[1]!r})",
                    "other words for one of them, or a base whose tokenizer tells them apart.",
                )
            longest = max(len(e.tokens) for e in candidates)
            if positions is not None and longest > positions:
                raise InvalidChoices(
                    "longer-than-positions",
                    f"More tokens than the base has positions ({longest} of {positions})",
                    f"task.max_length = {positions}, or less.",
                )

        return _collect_issues(check_fits, split, rows)[1]

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        device: str,
    ) -> list[str]:
        """Return the most likely choice of each row, by log-likelihood divided by its size.

        With ``normalise`` the size is 1 (lm-evaluation-harness's ``acc``), or the choice's number
        of tokens, characters (its ``acc_norm``) or UTF-8 bytes. Ties go to the first choice.
        """
        # every lane has the same rows: tokenise each of them once
        distinct = {id(row): row for row in rows}
        encoded = {key: self.candidates(tokenizer, row) for key, row in distinct.items()}
        examples = [e for row in rows for e in encoded[id(row)]]
        batch = self.batch(examples, pad_id_of(tokenizer), device)
        sums, counts = (x.tolist() for x in self.item_losses(model, batch))
        predictions, first = [], 0
        for row in rows:
            stop = first + len(self._choices(row).texts)
            predictions.append(self._most_likely(row, sums[first:stop], counts[first:stop]))
            first = stop
        return predictions

    def _most_likely(self, row: Row, sums: Sequence[float], counts: Sequence[float]) -> str:
        """Return the choice with the smallest loss for its size, the first of equal ones."""
        texts = self._choices(row).texts
        sizes = self._sizes(texts, counts)
        losses = [loss / size for loss, size in zip(sums, sizes, strict=True)]
        return texts[losses.index(min(losses))]

    def perfect_answers(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> list[Answer]:
        """Return the prediction where only the tokens of the right choice are likely."""
        answers = []
        for row in rows:
            candidates = self.candidates(tokenizer, row)
            right = candidates[self._right_index(row)]
            sums = [float(e.tokens != right.tokens) for e in candidates]
            counts = [float(sum(label != IGNORE for label in e.labels)) for e in candidates]
            answers.append(Answer(self._most_likely(row, sums, counts)))
        return answers

    def _find_alike(self, candidates: Sequence[Example], row: Row) -> tuple[str, str] | None:
        """Return two choices with the same tokens, None if there are none."""
        seen: dict[tuple[int, ...], str] = {}
        for example, text in zip(candidates, self._choices(row).texts, strict=True):
            if example.tokens in seen:
                return seen[example.tokens], text
            seen[example.tokens] = text
        return None

    def _sizes(self, texts: Sequence[str], tokens: Sequence[float]) -> Sequence[float]:
        """Return the size of each choice that its log-likelihood is divided by."""
        by: dict[str, Sequence[float]] = {
            "sum": [1] * len(texts),
            "per_token": tokens,
            "per_character": [len(t) for t in texts],
            "per_byte": [len(t.encode()) for t in texts],
        }
        return by[self.options["normalise"]]

    def batch_rows(self, rows: Sequence[Row]) -> int:
        """Return the number of choices of these rows: each is a row of a batch."""
        return sum(len(self._choices(row).texts) for row in rows)

    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the texts of the right choices."""
        return [self._choices(row).texts[self._right_index(row)] for row in rows]

    def chance(self, rows: Sequence[Row]) -> list[float]:
        """Return one over the number of each item's choices."""
        return [1 / len(self._choices(row).texts) for row in rows]


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


ChoicesBySplit = Mapping[str, Sequence[Choices]]
AnswersBySplit = Mapping[str, Sequence[str]]
_error_at = partial(DataIssue.at, fatal=True)
T = TypeVar("T")


def _check_columns(field: str) -> tuple[DataIssue, ...]:
    """Refuse text between the columns: a choice is one column, unchanged."""
    if columns_of(field) == (field,) or _BETWEEN_COLUMNS.fullmatch(text_between(field)):
        return ()
    what = f"[data.columns] choices = {field!r} contains text other than columns"
    hint = 'only the columns: choices = "{a}, {b}, {c}"; further text belongs in `prompt`.'
    return (DataIssue("choices-columns", what, hint, fatal=True),)


def _collect_issues(
    read: Callable[[Row], T], split: str, rows: Sequence[Row]
) -> tuple[list[T], list[DataIssue]]:
    """Return what is read from each valid row, and an issue for each kind of invalid row."""
    values: list[T] = []
    first: dict[str, InvalidChoices] = {}
    affected: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        try:
            values.append(read(row))
        except InvalidChoices as error:
            first.setdefault(error.code, error)
            affected.setdefault(error.code, []).append(i)
    return values, [
        _error_at(code, e.what, e.try_, split, affected[code], len(rows))
        for code, e in first.items()
    ]


def _read_choices(
    splits: Mapping[str, Sequence[Row]], field: str
) -> tuple[ChoicesBySplit, tuple[DataIssue, ...]]:
    """Return the choices of every row, and the issues of rows without valid ones."""
    read = {
        s: _collect_issues(partial(Choices.parse, field), s, rows) for s, rows in splits.items()
    }
    issues = tuple(issue for _, of_split in read.values() for issue in of_split)
    return {split: choices for split, (choices, _) in read.items()}, issues


def _answer_indices(
    read: ChoicesBySplit, answers: AnswersBySplit, form: str
) -> dict[str, list[int | None]]:
    """Return the index of the choice that each answer means in this form, by split."""
    return {
        split: [c.index_of(a, form) for c, a in zip(read[split], answers[split], strict=True)]
        for split in read
    }


def _detect_answer_form(
    read: ChoicesBySplit, answers: AnswersBySplit
) -> tuple[str, tuple[DataIssue, ...]]:
    """Return the form that fits all answers; if none does, the one that fits most.

    Two forms that fit all answers but mean different choices are an error, ``answer-ambiguous``.
    """
    forms = MultipleChoice.option_values["answer"][1:]
    indices = {form: _answer_indices(read, answers, form) for form in forms}
    fitting = [f for f in forms if not any(None in split for split in indices[f].values())]
    if not fitting:
        fits = {
            f: sum(i is not None for split in indices[f].values() for i in split) for f in forms
        }
        return max(forms, key=fits.__getitem__), ()
    one, *others = fitting
    if one == "label":  # labels in the data are unambiguous
        return one, ()
    for other in others:
        for split, chosen in indices[one].items():
            pairs = zip(chosen, indices[other][split], strict=True)
            differ = [i for i, (a, b) in enumerate(pairs) if a != b]
            if differ:
                answer = answers[split][differ[0]]
                what = f"The answer '{answer}' can mean a choice as {one} or as {other}"
                hint = f'`answer = "{one}"` or `answer = "{other}"` under [task.options].'
                return one, (_error_at("answer-ambiguous", what, hint, split, differ, len(chosen)),)
    return one, ()


def _unknown_answers(
    read: ChoicesBySplit, answers: AnswersBySplit, form: str
) -> tuple[DataIssue, ...]:
    """Return the issues of answers that are not a choice of their row."""
    issues = []
    for split, indices in _answer_indices(read, answers, form).items():
        wrong = [i for i, index in enumerate(indices) if index is None]
        if wrong:
            what = f"The answer '{answers[split][wrong[0]]}', read as {form}, is not a choice"
            hint = (
                "a label of the choices, a choice's text, a letter (A is the first), an index "
                "(from 0) or a number (from 1), the same in all rows; set `answer` under "
                "[task.options]."
            )
            issues.append(_error_at("answer-unknown", what, hint, split, wrong, len(indices)))
    return tuple(issues)


def _prefix_issues(
    read: Sequence[Choices], answers: Sequence[str], form: str
) -> tuple[DataIssue, ...]:
    """Warn of test items whose right choice starts with another choice.

    The sum of log-likelihoods over a prefix is always larger, so such an item is never right.
    """
    affected = []
    for i, (choices, answer) in enumerate(zip(read, answers, strict=True)):
        right = choices.texts[choices.index_of(answer, form) or 0]
        if any(right != text and right.startswith(f"{text} ") for text in choices.texts):
            affected.append(i)
    if not affected:
        return ()
    what = "The right choice starts with another choice, which is then always more likely,"
    hint = '[task.options] normalise = "per_token" compares means.'
    return (DataIssue.at("choice-begins-alike", what, hint, "test", affected, len(read)),)


TASK = MultipleChoice
