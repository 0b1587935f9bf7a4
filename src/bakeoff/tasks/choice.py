"""Multiple choice: of an item's choices, the one that a causal LM finds likeliest after the prompt.

Trained on the tokens of the right choice. Nothing is generated for an answer: each choice is put
behind the prompt and its tokens' log-likelihood is taken, without an end token, as EleutherAI's
lm-evaluation-harness does (``lm_eval/api/task.py::ConfigurableTask.process_results``). All choices
of an item follow the very same prompt tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row, columns_of, render_template
from bakeoff.tasks._base import IGNORE, CausalTask, Example, TaskCheck

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_WHOLE = re.compile(r"\d+")
_BETWEEN_COLUMNS = re.compile(r"[\s,|]*")


class InvalidChoices(Exception):
    """What is wrong with a row: a code, a clause, and what to do."""

    def __init__(self, code: str, what: str, try_: str) -> None:
        super().__init__(code, what, try_)
        self.code, self.what, self.try_ = code, what, try_


class Choices(NamedTuple):
    """The texts of a row's choices, and the labels that the data gives them, where it does."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, field: str, row: Row) -> Choices:
        """Read them from the columns ``{a}, {b}``, or from one column that holds a list.

        A list of texts, or of objects with ``text`` and ``label``; an object of two such lists
        (ARC's form); or any of these written as JSON, as a CSV cell has it.

        Raises:
            Unreadable: ``choices-not-a-list``, ``choices-too-few``, ``choice-empty``,
                ``choices-repeat``.
        """
        if columns_of(field) == (field,):
            found = cls(*_parse_cell(row[field]))
        else:
            cells = [row[column] for column in columns_of(field)]
            found = cls(*_parse_cell(cells))
        if len(found.texts) < 2:
            raise InvalidChoices(
                "choices-too-few",
                "There are fewer than two choices",
                "every item needs its right choice and a wrong one.",
            )
        if not all(found.texts):
            raise InvalidChoices("choice-empty", "A choice is empty", "drop it from the list.")
        if len(set(found.texts)) < len(found.texts):
            raise InvalidChoices(
                "choices-repeat",
                "The same choice stands there twice",
                "one of two equal choices can be neither right nor wrong: keep one.",
            )
        return found

    def index_of(self, answer: str, form: str) -> int | None:
        """Return which choice, from 0, an answer written in this form means; None for none."""
        names: Sequence[str] = ()
        if form == "text":
            names = self.texts
        elif form == "label":
            names = self.labels
        elif form == "letter" and (letter := _LETTER.fullmatch(answer)):
            return self._within(ord(letter[1].upper()) - ord("A"))
        elif form in ("index", "number") and _WHOLE.fullmatch(answer):
            return self._within(int(answer) - (form == "number"))
        return names.index(answer) if answer in names else None

    def _within(self, place: int) -> int | None:
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
        "The choices are no list of texts",
        '`choices = "options"` names a column with a list, `choices = "{a}, {b}, {c}"` columns '
        "with a text each.",
    )


class MultipleChoice(CausalTask):
    """Multiple choice by log-likelihood."""

    fields = {"prompt": "prompt", "choices": "choices", "answer": "answer"}
    structured = frozenset({"choices"})
    metrics = ("accuracy", "loss")
    own_options = {
        "normalise": ("sum", "per_token", "per_character", "per_byte"),
        "answer": ("auto", "label", "text", "letter", "index", "number"),
    }
    scores_validation = True

    @classmethod
    def texts(cls, row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
        """Return the prompt's columns and the choices', and the answer as it is written."""
        asked = [*columns_of(columns["prompt"]), *columns_of(columns["choices"])]
        return "\n".join(str(row[c]) for c in asked), render_template(columns["answer"], row)

    def question(self, row: Row) -> str:
        """Return the prompt's columns, and the choices a line each."""
        prompt = (str(row[c]) for c in columns_of(self.options["columns"]["prompt"]))
        return "\n".join([*prompt, *(f"- {text}" for text in self._choices(row).texts)])

    @classmethod
    def check(cls, splits: Mapping[str, Sequence[Row]], options: dict[str, Any]) -> TaskCheck:
        """Read every row's choices; find out how answers are written, if nobody says so."""
        columns = options["columns"]
        faults = _check_columns(columns["choices"])
        if faults:
            return TaskCheck(options, faults)
        read, faults = _read_choices(splits, columns["choices"])
        if faults:
            return TaskCheck(options, faults)
        answers = {
            s: [render_template(columns["answer"], r).strip() for r in splits[s]] for s in splits
        }
        form = options["answer"]
        if form == "auto":
            form, faults = _detect_answer_form(read, answers)
        faults = faults or _unknown_answers(read, answers, form)
        if not faults and options["normalise"] == "sum":
            faults = _prefix_issues(read["test"], answers["test"], form)
        return TaskCheck({**options, "answer": form}, faults)

    def _choices(self, row: Row) -> Choices:
        return Choices.of(self.options["columns"]["choices"], row)

    def _right(self, row: Row) -> int:
        answer = render_template(self.options["columns"]["answer"], row).strip()
        place = self._choices(row).index_of(answer, self.options["answer"])
        assert place is not None, "the check has read every answer"
        return place

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Example]:
        """Tokenise prompt and right choice; label the choice."""
        return [self.candidates(tokenizer, row)[self._right(row)] for row in rows]

    def candidates(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> list[Example]:
        """Tokenise the prompt with each choice behind it; label the choice.

        White space at the prompt's end belongs to the choice, and is one space where there is none.
        A prompt that is too long loses its start, the same for all choices: the longest must fit.

        Raises:
            Unreadable: ``prompt-without-token``, ``choice-too-long``.
        """
        prompt = render_template(self.options["columns"]["prompt"], row)
        stem = prompt.rstrip()
        space = prompt[len(stem) :] or " "
        alone: list[int] = tokenizer(stem)["input_ids"]
        texts = [stem + space + text for text in self._choices(row).texts]
        whole: list[list[int]] = tokenizer(texts)["input_ids"]
        # not just len(alone): a token may reach over the end of the prompt
        shared = min(_common_prefix(alone, ids) for ids in whole)
        if shared == 0:
            raise InvalidChoices(
                "prompt-without-token",
                "The prompt gives no token that the choices could follow",
                "a longer prompt; a base without a begin token needs one in front of all choices.",
            )
        limit, longest = self.options["max_length"], max(map(len, whole)) - shared
        if longest >= limit:
            raise InvalidChoices(
                "choice-too-long",
                f"A choice alone exceeds task.max_length = {limit} (it has {longest} tokens)",
                "raise task.max_length above that, with room for the prompt, or drop these rows.",
            )
        start = max(0, shared + longest - limit)
        return [
            Example(tuple(ids[start:]), (IGNORE,) * (shared - start) + tuple(ids[shared:]))
            for ids in whole
        ]

    def token_issues(
        self,
        tokenizer: PreTrainedTokenizerBase,
        split: str,
        rows: Sequence[Row],
        positions: int | None,
    ) -> list[DataIssue]:
        """Tokenise all choices of all rows: the wrong ones are read too, though never learnt."""

        def fit(row: Row) -> None:
            longest = max(len(e.tokens) for e in self.candidates(tokenizer, row))
            if positions is not None and longest > positions:
                raise InvalidChoices(
                    "longer-than-positions",
                    f"More tokens than the base has positions ({longest} of {positions})",
                    f"task.max_length = {positions}, or less.",
                )

        return _collect_issues(fit, split, rows)[1]

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        device: str,
    ) -> list[str]:
        """Return the likeliest choice of each row, by its log-likelihood over its size.

        The size is 1 (lm-evaluation-harness's ``acc``), or the choice's tokens, characters (its
        ``acc_norm``) or UTF-8 bytes, as ``normalise`` says; of equally likely ones the first.
        """
        # every lane asks for the same rows: each is tokenised once
        distinct = {id(row): row for row in rows}
        once = {key: self.candidates(tokenizer, row) for key, row in distinct.items()}
        examples = [e for row in rows for e in once[id(row)]]
        batch = self.batch(examples, int(tokenizer.pad_token_id or 0), device)
        sums, counts = (x.tolist() for x in self.item_losses(model, batch))
        answers, first = [], 0
        for row in rows:
            texts = self._choices(row).texts
            stop = first + len(texts)
            sizes = self._sizes(texts, counts[first:stop])
            losses = [loss / size for loss, size in zip(sums[first:stop], sizes, strict=True)]
            answers.append(texts[losses.index(min(losses))])
            first = stop
        return answers

    def _sizes(self, texts: Sequence[str], tokens: Sequence[float]) -> Sequence[float]:
        by: dict[str, Sequence[float]] = {
            "sum": [1] * len(texts),
            "per_token": tokens,
            "per_character": [len(t) for t in texts],
            "per_byte": [len(t.encode()) for t in texts],
        }
        return by[self.options["normalise"]]

    def batch_rows(self, rows: Sequence[Row]) -> int:
        """Return how many choices these rows have: each is a row of a batch."""
        return sum(len(self._choices(row).texts) for row in rows)

    def references(self, rows: Sequence[Row]) -> list[str]:
        """Return the texts of the right choices."""
        return [self._choices(row).texts[self._right(row)] for row in rows]


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two rows begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


ChoicesBySplit = Mapping[str, Sequence[Choices]]
AnswersBySplit = Mapping[str, Sequence[str]]
_error_at = partial(DataIssue.at, fatal=True)
T = TypeVar("T")


def _check_columns(field: str) -> tuple[DataIssue, ...]:
    """Refuse texts between the columns: a choice is one column as it is."""
    rest = re.sub(r"\{\w+\}", "", field)
    if columns_of(field) == (field,) or _BETWEEN_COLUMNS.fullmatch(rest):
        return ()
    what = f"[data.columns] choices = {field!r} has text beside its columns"
    hint = 'only the columns: choices = "{a}, {b}, {c}"; what the model reads goes into `prompt`.'
    return (DataIssue("choices-columns", what, hint, fatal=True),)


def _collect_issues(
    read: Callable[[Row], T], split: str, rows: Sequence[Row]
) -> tuple[list[T], list[DataIssue]]:
    """Return what is read from each row, and a fault for each reason why some cannot be."""
    found: list[T] = []
    first: dict[str, InvalidChoices] = {}
    wrong: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        try:
            found.append(read(row))
        except InvalidChoices as error:
            first.setdefault(error.code, error)
            wrong.setdefault(error.code, []).append(i)
    return found, [
        _error_at(code, e.what, e.try_, split, wrong[code], len(rows)) for code, e in first.items()
    ]


def _read_choices(
    splits: Mapping[str, Sequence[Row]], field: str
) -> tuple[ChoicesBySplit, tuple[DataIssue, ...]]:
    tried = {s: _collect_issues(partial(Choices.of, field), s, rows) for s, rows in splits.items()}
    faults = tuple(fault for _, own in tried.values() for fault in own)
    return {split: found for split, (found, _) in tried.items()}, faults


def _answer_indices(
    read: ChoicesBySplit, answers: AnswersBySplit, form: str
) -> dict[str, list[int | None]]:
    """Return which choice each answer means, split by split, if answers are written so."""
    return {
        split: [c.index_of(a, form) for c, a in zip(read[split], answers[split], strict=True)]
        for split in read
    }


def _detect_answer_form(
    read: ChoicesBySplit, answers: AnswersBySplit
) -> tuple[str, tuple[DataIssue, ...]]:
    """Return the form in which all answers are written; that of most where none fits all.

    Two forms that fit all and mean different choices are a fault, ``answer-ambiguous``.
    """
    forms = MultipleChoice.own_options["answer"][1:]
    places = {form: _answer_indices(read, answers, form) for form in forms}
    fitting = [f for f in forms if not any(None in own for own in places[f].values())]
    if not fitting:
        known = {f: sum(p is not None for own in places[f].values() for p in own) for f in forms}
        return max(forms, key=known.__getitem__), ()
    one, *others = fitting
    if one == "label":  # the data itself says so
        return one, ()
    for other in others:
        for split, own in places[one].items():
            pairs = zip(own, places[other][split], strict=True)
            differ = [i for i, (a, b) in enumerate(pairs) if a != b]
            if differ:
                said = answers[split][differ[0]]
                what = f"The answer '{said}' can be meant as {one} or as {other}"
                hint = f'`answer = "{one}"` or `answer = "{other}"` under [task.options].'
                return one, (_error_at("answer-ambiguous", what, hint, split, differ, len(own)),)
    return one, ()


def _unknown_answers(
    read: ChoicesBySplit, answers: AnswersBySplit, form: str
) -> tuple[DataIssue, ...]:
    """Refuse answers that name no choice of their row."""
    faults = []
    for split, places in _answer_indices(read, answers, form).items():
        wrong = [i for i, place in enumerate(places) if place is None]
        if wrong:
            what = f"The answer '{answers[split][wrong[0]]}', read as {form}, is no choice"
            hint = (
                "a label of the choices, a choice's text, a letter (A is the first), an index "
                "(from 0) or a number (from 1), the same in all rows; `answer` under "
                "[task.options] says which."
            )
            faults.append(_error_at("answer-unknown", what, hint, split, wrong, len(places)))
    return tuple(faults)


def _prefix_issues(
    read: Sequence[Choices], answers: Sequence[str], form: str
) -> tuple[DataIssue, ...]:
    """List test items whose right choice goes on where another ends: that one is likelier."""
    lost = []
    for i, (choices, answer) in enumerate(zip(read, answers, strict=True)):
        right = choices.texts[choices.index_of(answer, form) or 0]
        if any(right != text and right.startswith(f"{text} ") for text in choices.texts):
            lost.append(i)
    if not lost:
        return ()
    what = "The right choice begins as another one is, which is always likelier then,"
    hint = '[task.options] normalise = "per_token" goes by the mean.'
    return (DataIssue.at("choice-begins-alike", what, hint, "test", lost, len(read)),)


TASK = MultipleChoice
