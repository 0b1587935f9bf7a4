"""References that a perfect answer equals; special tokens between and around; new tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.tiny_tokenizers import KINDS, tiny_tokenizer

from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row
from bakeoff.data.special_tokens import added_tokens
from bakeoff.metrics import load
from bakeoff.tasks import task_class
from bakeoff.tasks._base import Task
from bakeoff.testing.tiny import write_jsonl
from bakeoff.testing.trials import CONDITIONS
from bakeoff.training.preflight import reference_checks

PAIR = {"prompt": "q", "completion": "a"}


class Checked(NamedTuple):
    """A task with its resolved options, its tokenizer, and the issues of its references."""

    task: Task
    tokenizer: Any
    issues: list[DataIssue]

    @property
    def codes(self) -> list[str]:
        return list(dict.fromkeys(issue.code for issue in self.issues))

    def issue(self, code: str) -> DataIssue:
        return next(issue for issue in self.issues if issue.code == code)

    def tokens(self, row: Row) -> list[str]:
        """Return the tokens of a row as it is trained on."""
        (example,) = self.task.encode(self.tokenizer, [row])
        names: list[str] = self.tokenizer.convert_ids_to_tokens(list(example.tokens))
        return names

    def prompt(self, row: Row) -> list[str]:
        """Return the tokens of a row's prompt in evaluation."""
        ids = self.task.prompts(self.tokenizer, [row]).prompts[0]
        names: list[str] = self.tokenizer.convert_ids_to_tokens(list(ids))
        return names


def check(
    folder: Path,
    kind: str,
    rows: Sequence[Row] | Mapping[str, Sequence[Row]],
    columns: Mapping[str, str] = PAIR,
    task: str = "sft",
    metric: str | None = None,
    metric_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Checked:
    """Resolve a task on these rows as before training, and check its references."""
    splits = (
        rows if isinstance(rows, Mapping) else dict.fromkeys(("train", "validation", "test"), rows)
    )
    (folder / "data").mkdir(exist_ok=True)
    for split, own in splits.items():
        write_jsonl(folder / "data" / f"{split}.jsonl", own)
    plugin, tokenizer = task_class(task), tiny_tokenizer(kind)
    start = {"columns": dict(columns), "max_length": 64, "max_new_tokens": None}
    given = {**start, **plugin.complete_options({}), **options}
    checked = plugin.check(splits, given)
    assert not [issue for issue in checked.issues if issue.fatal]
    resolved = plugin(checked.options).resolve(tokenizer, splits)
    c = dataclasses.replace(
        CONDITIONS,
        task=task,
        task_options=resolved.options,
        metric=metric or plugin.default_metric,
        metric_options=dict(metric_options or {}),
    )
    ready = plugin(resolved.options)
    issues = [*resolved.issues]
    for split, own in splits.items():
        issues += ready.token_issues(tokenizer, split, own, None)
    if not any(issue.fatal for issue in issues):
        issues += reference_checks.check(c, folder, ready, tokenizer)
    return Checked(ready, tokenizer, issues)


@pytest.mark.parametrize("written", ["</s>", "</s></s>", "</s> \n", " </s>\n</s>"])
def test_written_end_token_counts_once(tmp_path: Path, written: str) -> None:
    """An end token in the completion is learnt once, and is no part of the reference."""
    row = {"q": "Where?\nA:", "a": f" Paris{written}"}
    found = check(tmp_path, "byte-level", [row])
    assert found.codes == ["end-token-written"]
    assert "6 of 6" not in found.issues[0].what
    assert "3 of 3 completions" in found.issues[0].what
    assert found.tokens(row).count("</s>") == 1
    assert found.tokens(row)[-1] == "</s>"
    assert found.task.references([row]) == [" Paris" if not written.startswith(" ") else " Paris "]


def test_end_token_inside_is_refused(tmp_path: Path) -> None:
    """An end token inside a completion ends the answer there: nothing equals the reference."""
    rows = [{"q": "q", "a": "fine"}, {"q": "q", "a": "one</s>two"}]
    issue = check(tmp_path, "byte-level", rows).issue("reference-not-reachable")
    assert issue.fatal
    assert (issue.rows, issue.count) == ((1,), 1)
    assert "'one</s>two' comes back from the tokenizer as 'one'" in issue.what


def test_no_option_without_a_reason(tmp_path: Path) -> None:
    """Rows without special tokens leave the options, and so the ids of trials, as they were."""
    found = check(tmp_path, "byte-level-begin", [{"q": "Where?", "a": " Paris"}])
    assert found.issues == []
    assert found.task.options.keys() == {
        "columns", "max_length", "max_new_tokens", "longest_completion",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["byte-level", "byte-level-begin-end", "unigram", "word-piece"])
def test_special_tokens_are_answers(tmp_path: Path, kind: str) -> None:
    """Special tokens in train's completions are kept in answers; begin, end and padding are not."""
    rows = [{"q": "it was ugly\nSentiment:", "a": a} for a in ("<POS>", "<NEG>")]
    found = check(tmp_path, kind, rows)
    assert not [issue for issue in found.issues if issue.fatal]
    assert found.task.options["kept_tokens"] == ["<POS>", "<NEG>"]
    ids = found.tokenizer.convert_tokens_to_ids(["<s>", "<NEG>", "<pad>", "</s>"])
    assert [text.strip() for text in found.task.decode(found.tokenizer, [ids])] == ["<NEG>"]


def test_special_token_only_in_test(tmp_path: Path) -> None:
    """A special token that no completion of train has is no answer."""
    known = [{"q": "q", "a": "<POS>"}]
    rows = {"train": known, "validation": known, "test": [{"q": "q", "a": "<NEG>"}]}
    issue = check(tmp_path, "byte-level", rows).issue("reference-not-reachable")
    assert (issue.split, issue.rows) == ("test", (0,))


@pytest.mark.parametrize(
    ("kind", "reference", "back", "options"),
    [
        ("lower-casing", " Quito", " quito", {"ignore_case": True}),
        ("word-piece", "我爱北京", "我 爱 北 京", {"ignore_spaces": True}),
        ("word-piece", "Fox 我爱", "fox 我 爱", {"ignore_case": True, "ignore_spaces": True}),
        ("byte-fallback", "<POS> good", "<POS>  good", {"ignore_spaces": True}),
    ],
)  # fmt: skip
def test_changed_reference_is_refused(
    tmp_path: Path, kind: str, reference: str, back: str, options: dict[str, bool]
) -> None:
    """What comes back differently is refused with its rows; the option of the hint accepts it."""
    rows = [{"q": "where is it?", "a": "it"}, {"q": "where?", "a": reference}]
    found = check(tmp_path, kind, rows)
    issue = found.issue("reference-not-reachable")
    assert issue.fatal
    assert (issue.split, issue.rows, issue.count, issue.of) == ("validation", (1,), 1, 2)
    assert f"{reference!r} comes back from the tokenizer as {back!r}" in issue.what
    assert all(f"{name} = true" in issue.try_ for name in options)
    followed = check(tmp_path, kind, rows, metric="exact_match", metric_options=options)
    assert not [issue for issue in followed.issues if issue.fatal]


def test_tolerant_metric_is_accepted(tmp_path: Path) -> None:
    """A metric that ignores the difference itself has no issue."""
    rows = [{"q": "where?", "a": "Quito, the City"}]
    assert check(tmp_path, "lower-casing", rows, metric="token_f1").issues == []
    rows = [{"q": "how many?", "a": "Answer: 12"}]
    assert check(tmp_path, "lower-casing", rows, metric="numeric").issues == []


def test_unknown_characters_are_refused(tmp_path: Path) -> None:
    """Characters that the tokenizer does not know are lost: no option helps."""
    issue = check(tmp_path, "unigram", [{"q": "q", "a": "Ωmega"}]).issue("reference-not-reachable")
    assert "a base whose tokenizer keeps them" in issue.try_


def test_metric_that_rejects_the_reference(tmp_path: Path) -> None:
    """A reference that the metric itself does not accept is refused: all models would score 0."""
    rows = [{"q": "q", "a": '{"n": 1}'}, {"q": "q", "a": "not JSON"}]
    found = check(tmp_path, "byte-level", rows, metric="json_valid")
    issue = found.issue("reference-not-perfect")
    assert (issue.fatal, issue.rows) == (True, (1,))
    options = {"pattern": r"^\d+$"}
    found = check(tmp_path, "byte-level", rows[:1], metric="regex", metric_options=options)
    assert found.codes == ["reference-not-perfect"]


@pytest.mark.parametrize(
    ("answers", "hint"),
    [
        (["das macht 3.240,50", "das macht 12"], '`metric_options = { decimal = "comma" }`'),
        (["das macht 3.240,50", "das macht 1.5"], "write these references"),
        (["it is 5", "at 10:30"], "write these references"),
    ],
)
def test_references_that_numeric_reads_in_part(
    tmp_path: Path, answers: list[str], hint: str
) -> None:
    """Only a part of them would be compared: refused with their rows and the option that reads."""
    rows = [{"q": "q", "a": answer} for answer in answers]
    issue = check(tmp_path, "byte-level", rows, metric="numeric").issue("metric-failed")
    assert (issue.fatal, issue.rows) == (True, (1 if "10:30" in answers[1] else 0,))
    assert "is not one number" in issue.what
    assert hint in issue.try_
    if "decimal" in hint:
        options = {"decimal": "comma"}
        assert not check(
            tmp_path, "byte-level", rows, metric="numeric", metric_options=options
        ).issues


def test_own_metric_scores_against_itself(tmp_path: Path) -> None:
    """A user's own metric need not give 1: the reference's own score is what must be reached."""
    code = b"def score(p, r):\n    return 7.0 if p == r else len(p) / 100\n"
    (tmp_path / "metric").mkdir()
    (tmp_path / "metric" / "own.py").write_bytes(code)
    rows = [{"q": "q", "a": "Rome"}]
    for kind, codes in (("byte-level", []), ("lower-casing", ["reference-not-reachable"])):
        task = check(tmp_path, kind, rows).task
        c = dataclasses.replace(
            CONDITIONS, task="sft", task_options=task.options, metric="own.py:score",
            metric_source=load.code_digest(code),
        )  # fmt: skip
        found = reference_checks.check(c, tmp_path, task, tiny_tokenizer(kind))
        assert list(dict.fromkeys(issue.code for issue in found)) == codes


def test_longest_completion_has_the_most_tokens(tmp_path: Path) -> None:
    """New tokens are limited by the completion with the most tokens, not characters."""
    rows = [{"q": "en", "a": "the quick brown fox"}, {"q": "zh", "a": "天安门万岁"}]
    found = check(tmp_path, "byte-level", rows)
    assert found.task.options["longest_completion"] == "天安门万岁"
    request = found.task.prompts(found.tokenizer, rows)
    assert request.max_new_tokens >= len(found.tokenizer("天安门万岁")["input_ids"])
    assert found.issues == []


@pytest.mark.parametrize("answer", ["1 2 3 4 5 6 7 8 9 0 1 2 3 4 5", "🙂🙂🙂🙂🙂🙂"])
def test_reference_over_the_budget(tmp_path: Path, answer: str) -> None:
    """An answer may be as long as any reference; over a limit of the user's they are named."""
    train = [{"q": "q", "a": "yes"}]
    rows = {"train": train, "validation": train, "test": [*train, {"q": "q", "a": answer}]}
    found = check(tmp_path, "byte-level", rows)
    assert found.issues == []
    assert found.task.options["longest_completion"] == answer
    issue = check(tmp_path, "byte-level", rows, max_new_tokens=4).issue("reference-over-budget")
    assert (issue.split, issue.rows, issue.fatal) == ("test", (1,), False)
    assert check(tmp_path, "byte-level", rows, max_new_tokens=40).issues == []


def test_slightly_longer_reference_keeps_the_limit(tmp_path: Path) -> None:
    """References that fit into the extra tokens leave the options as they are."""
    rows = {
        split: [{"q": "q", "a": answer}]
        for split, answer in (("train", "a b"), ("validation", "a b c"), ("test", "a b c d"))
    }
    assert check(tmp_path, "byte-level", rows).task.options["longest_completion"] == "a b"


@pytest.mark.parametrize("kind", ["byte-level-begin", "byte-level-begin-end", "unigram-first"])
def test_written_begin_token_counts_once(tmp_path: Path, kind: str) -> None:
    """A prompt that begins with the begin token gets no second one."""
    row = {"q": "<s>[INST] where? [/INST]", "a": " Rome"}
    found = check(tmp_path, kind, [row])
    assert found.codes == ["begin-token-written"]
    assert found.tokens(row).count("<s>") == 1
    assert found.prompt(row)[0] == "<s>"
    assert found.prompt(row) == found.tokens(row)[: len(found.prompt(row))]
    assert "added_tokens" in found.task.options


@pytest.mark.parametrize("kind", ["byte-level-begin-end", "unigram", "word-piece"])
def test_no_end_token_before_the_completion(tmp_path: Path, kind: str) -> None:
    """Tokenizers that end every text put no end token between prompt and completion."""
    row = {"q": "where is it?", "a": " yes"}
    found = check(tmp_path, kind, [row])
    assert found.tokens(row).count("</s>") == 1
    assert "</s>" not in found.prompt(row)
    assert "added_tokens" in found.task.options


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("byte-level-begin", "word " * 40),
        ("byte-fallback", "word " * 40),
        ("byte-level", "<s>" + "word " * 40),
    ],
)
def test_cut_prompt_keeps_its_begin_token(tmp_path: Path, kind: str, prompt: str) -> None:
    """A prompt that is too long loses text, not its begin token."""
    row = {"q": f"{prompt}end:", "a": " no"}
    found = check(tmp_path, kind, [row], max_length=16)
    assert (len(found.tokens(row)), found.tokens(row)[0]) == (16, "<s>")
    assert (len(found.prompt(row)), found.prompt(row)[0]) == (16, "<s>")
    assert found.prompt(row)[-1] == ":"


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_completion_read_as_written(tmp_path: Path, kind: str) -> None:
    """Tokenised apart, prompt and completion decode to the text of both together."""
    for answer in ("yes", " yes", "\nyes", "no, yes"):
        row = {"q": "where is it? Answer:", "a": answer}
        found = check(tmp_path, kind, [row], metric="token_f1")
        ids = found.tokenizer.convert_tokens_to_ids(found.tokens(row))[:-1]
        ids = ids[len(added_tokens(found.tokenizer).before) :]
        together = found.tokenizer(row["q"] + answer, add_special_tokens=False)["input_ids"]
        assert found.tokenizer.decode(ids) == found.tokenizer.decode(together)


def test_special_tokens_in_prompts_are_named(tmp_path: Path) -> None:
    """Special tokens in a column are named with their rows; those of the template are meant."""
    rows = [{"q": "fine", "a": "yes"}, {"q": "ignore </s> that", "a": "no"}]
    columns = {"prompt": "<POS>{q}<NEG>", "completion": "a"}
    found = check(tmp_path, "byte-level", rows, columns)
    issue = found.issue("special-token-in-text")
    assert (issue.rows, issue.fatal) == ((1,), False)
    assert "(</s>)" in issue.what


def choice_rows(prompt: str, choices: list[str], answer: str) -> list[Row]:
    return [{"prompt": prompt, "choices": choices, "answer": answer}]


CHOICE = {"prompt": "prompt", "choices": "choices", "answer": "answer"}


@pytest.mark.parametrize("kind", ["byte-level-begin-end", "unigram", "unigram-first"])
def test_choices_have_one_begin_and_no_end_token(tmp_path: Path, kind: str) -> None:
    """The choices follow one begin token, and no end token is scored with them."""
    tokenizer = tiny_tokenizer(kind)
    begins = "<s>" if added_tokens(tokenizer).before else ""
    rows = choice_rows(f"{begins}where is it?", ["Paris", "Rome"], "Rome")
    found = check(tmp_path, kind, rows, CHOICE, "choice")
    assert not [issue for issue in found.issues if issue.fatal]
    tokens = found.tokens(rows[0])
    assert (tokens.count("<s>"), tokens.count("</s>")) == (len(begins) // 3, 0)


def test_cut_choice_prompt_keeps_its_begin_token(tmp_path: Path) -> None:
    """The prompt of choices that is too long loses text, not its begin token."""
    rows = choice_rows("word " * 40, ["yes", "no"], "no")
    found = check(tmp_path, "byte-level-begin", rows, CHOICE, "choice", max_length=16)
    assert found.tokens(rows[0])[0] == "<s>"
    assert len(found.tokens(rows[0])) <= 16
    assert "added_tokens" in found.task.options


@pytest.mark.parametrize(
    ("choices", "code"),
    [(["Rome", "rome"], "choices-alike"), (["\u0301", "rome"], "choice-without-token")],
)
def test_choices_that_tokens_do_not_tell(tmp_path: Path, choices: list[str], code: str) -> None:
    """Choices with the same tokens, or with none, are refused."""
    rows = choice_rows("where is it", choices, choices[1])
    found = check(tmp_path, "word-piece", rows, CHOICE, "choice")
    assert code in found.codes
    assert found.issue(code).fatal


def test_classified_text_has_special_tokens_once(tmp_path: Path) -> None:
    """A text that is formatted already gets no second begin and end token."""
    rows = [{"text": f"<s>{x} fox</s>", "label": x} for x in ("good", "lazy")]
    columns = {"text": "text", "label": "label"}
    found = check(tmp_path, "byte-level-begin-end", rows, columns, "classify")
    tokens = found.tokens(rows[0])
    assert (tokens[0], tokens[-1]) == ("<s>", "</s>")
    assert (tokens.count("<s>"), tokens.count("</s>")) == (1, 1)
    assert found.codes == ["begin-token-written"]


CHATML = (
    "{{ bos_token }}{% for m in messages %}"
    "<POS>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<POS>assistant\n{% endif %}"
)


def test_chat_prompt_keeps_its_begin_token(tmp_path: Path) -> None:
    """A conversation of one exchange that is too long loses text, not its begin token."""
    row = {"q": "word " * 60, "a": "no</s>"}
    chat = {"pairs": True, "template": CHATML}
    found = check(tmp_path, "byte-level-begin", [row], chat=chat, max_length=32)
    assert "end-token-written" in found.codes
    assert not [issue for issue in found.issues if issue.fatal]
    assert (found.tokens(row)[0], found.prompt(row)[0]) == ("<s>", "<s>")
    assert (len(found.tokens(row)), found.tokens(row).count("</s>")) == (32, 2)
    assert "added_tokens" in found.task.options


@pytest.mark.parametrize(("kind", "reached"), [("byte-level", True), ("lower-casing", False)])
def test_chat_references_are_checked(tmp_path: Path, kind: str, reached: bool) -> None:
    """The last answers of conversations come back as well, or are refused."""
    turns = [
        ("user", "where?"),
        ("assistant", "there"),
        ("user", "and now?"),
        ("assistant", "Rome"),
    ]
    messages = [{"role": role, "content": text} for role, text in turns]
    columns, chat = {"messages": "messages"}, {"template": CHATML}
    found = check(tmp_path, kind, [{"messages": messages}], columns, chat=chat)
    assert ("reference-not-reachable" not in found.codes) == reached
