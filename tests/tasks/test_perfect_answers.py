"""For any rows, task, metric and tokenizer: right answers score 100 %, or the check refuses.

An oracle answers as a model would: with the tokens that follow its prompt in training, which are
cut and decoded as generated ones are. Another answers with a text that has nothing in common.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.tiny_tokenizers import KINDS, tiny_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bakeoff.data.issues import DataIssue
from bakeoff.data.rows import Row
from bakeoff.metrics import load
from bakeoff.metrics.run import MetricError
from bakeoff.tasks import task_class
from bakeoff.tasks._base import Task
from bakeoff.testing.tiny import write_jsonl
from bakeoff.testing.trials import CONDITIONS
from bakeoff.training.preflight import reference_checks

COLUMNS = {
    "sft": {"prompt": "q", "completion": "a"},
    "choice": {"prompt": "q", "choices": "c", "answer": "a"},
    "classify": {"text": "q", "label": "a"},
}
METRICS: dict[str, dict[str, Any]] = {
    "exact_match": {},
    "exact_match ignore_case ignore_spaces": {"ignore_case": True, "ignore_spaces": True},
    "contains": {},
    "token_f1": {},
    "chrf": {},
    "regex": {"pattern": r"(\w+)"},
    "numeric": {},
    "json_match": {},
    "json_fields": {},
}
NOTHING_IN_COMMON = "@"
"""No reference contains it, no metric finds a word, a number or JSON in it."""
BOUNDED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

words = st.sampled_from(
    ["fox", "Paris", "NO", "yes", "北京", "é", "Straße", "dog's", "U.S.", "🙂", "Ω", "ﬁ", "don't"]
)
marks = st.sampled_from(["", " ", "  ", "\n", ", ", ". ", " <POS> ", "<NEG>", "\t"])
endings = st.sampled_from(["", "", "", "</s>", "</s> \n", " ", "<pad>", "</s>x"])
starts = st.sampled_from(["", "", "<s>", "<s><s>", "<POS>", " "])
prompts = st.builds("{}{} is it?{}".format, starts, words, st.sampled_from(["", " ", "\nA:"]))
free_texts = st.builds("{}{}{}{}".format, marks, words, marks, words)
completions = {
    "numeric": st.builds("{} {}".format, words, st.integers(0, 10**6)),
    "json": st.dictionaries(words, st.one_of(words, st.integers(), st.booleans()), min_size=1).map(
        lambda value: json.dumps(value, ensure_ascii=False)
    ),
}


class Checked(NamedTuple):
    """A resolved task, its tokenizer and metric, and the issues of its references."""

    task: Task
    tokenizer: Any
    metric: Any
    issues: list[DataIssue]

    @property
    def refused(self) -> bool:
        return any(issue.fatal for issue in self.issues)

    @property
    def over_budget(self) -> bool:
        return any(issue.code == "reference-over-budget" for issue in self.issues)


def check(folder: Path, kind: str, task: str, metric: str, rows: Sequence[Row]) -> Checked:
    """Resolve the task on these rows for all splits, and check their references."""
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    (folder / "data").mkdir(exist_ok=True)
    for split in splits:
        write_jsonl(folder / "data" / f"{split}.jsonl", rows)
    plugin, tokenizer = task_class(task), tiny_tokenizer(kind)
    columns = COLUMNS[task]
    given_options = {"columns": columns, "max_length": 48, "max_new_tokens": None}
    checked = plugin.check(splits, {**given_options, **plugin.complete_options({})})
    if any(issue.fatal for issue in checked.issues):
        return Checked(plugin(checked.options), tokenizer, None, list(checked.issues))
    resolved = plugin(checked.options).resolve(tokenizer, splits)
    ready = plugin(resolved.options)
    c = dataclasses.replace(
        CONDITIONS,
        task=task,
        task_options=resolved.options,
        metric=metric.split()[0],
        metric_options=METRICS.get(metric, {}),
    )
    issues = [*resolved.issues, *ready.token_issues(tokenizer, "test", rows, None)]
    if not any(issue.fatal for issue in issues):
        try:
            issues += reference_checks.check(c, folder, ready, tokenizer)
        except MetricError as error:  # a reference that the metric itself cannot use
            issues.append(DataIssue(error.code, error.cause, error.try_, fatal=True))
    return Checked(ready, tokenizer, load.load_metric(c, folder), issues)


def generated(found: Checked, rows: Sequence[Row]) -> list[str]:
    """Return the answers of a model that continues each prompt as it is trained on."""
    whole = found.task.without_length_limit()
    request = whole.prompts(found.tokenizer, rows)
    tokens = []
    for example, prompt in zip(whole.encode(found.tokenizer, rows), request.prompts, strict=True):
        assert list(example.tokens[: len(prompt)]) == list(prompt), "a prompt as in training"
        tokens.append(request.trim(example.tokens[len(prompt) :]))
    return [answer.text for answer in found.task.answers(found.tokenizer, request, tokens)]


def generated_wrong(found: Checked, count: int) -> list[str]:
    """Return answers that have nothing in common with any reference."""
    ids = found.tokenizer(NOTHING_IN_COMMON, add_special_tokens=False)["input_ids"]
    return found.task.decode(found.tokenizer, [ids] * count)


@pytest.mark.parametrize("metric", METRICS)
@BOUNDED
@given(data=st.data())
def test_right_completions_score_fully(tmp_path: Path, metric: str, data: st.DataObject) -> None:
    """A perfect model's completions score 100 %, wrong ones 0 %, or the rows are refused."""
    kind = data.draw(st.sampled_from(list(KINDS)))
    texts = completions.get(metric.split("_")[0], free_texts)
    answers = st.builds("{}{}".format, texts, endings)
    rows = data.draw(
        st.lists(st.fixed_dictionaries({"q": prompts, "a": answers}), min_size=1, max_size=3)
    )
    found = check(tmp_path, kind, "sft", metric, rows)
    if found.refused or found.over_budget:
        return
    references = found.task.references(rows)
    right = found.metric.score(generated(found, rows), references, "test")
    assert right == pytest.approx([1.0] * len(rows))
    wrong = found.metric.score(generated_wrong(found, len(rows)), references, "test")
    assert wrong == [0.0] * len(rows)


@BOUNDED
@given(data=st.data())
def test_right_choices_score_fully(tmp_path: Path, data: st.DataObject) -> None:
    """The most likely choice is the right one where only its tokens are likely, else refused."""
    kind = data.draw(st.sampled_from(list(KINDS)))
    texts = data.draw(st.lists(words, min_size=2, max_size=4, unique=True))
    right = data.draw(st.integers(0, len(texts) - 1))
    rows = [{"q": data.draw(prompts), "c": texts, "a": texts[right]}]
    found = check(tmp_path, kind, "choice", "accuracy", rows)
    if found.refused:
        return
    candidates = found.task.candidates(found.tokenizer, rows[0])  # type: ignore[attr-defined]
    for likely, text in enumerate(texts):
        sums = [0.0 if e.tokens == candidates[likely].tokens else 9.0 for e in candidates]
        counts = [float(sum(label >= 0 for label in e.labels)) for e in candidates]
        said = found.task._most_likely(rows[0], sums, counts)  # type: ignore[attr-defined]
        assert said == text
        score = found.metric.score([said], found.task.references(rows), "test")
        assert score == [float(likely == right)]


@BOUNDED
@given(data=st.data())
def test_right_labels_score_fully(tmp_path: Path, data: st.DataObject) -> None:
    """The label of a row's number is right, any other one is wrong."""
    kind = data.draw(st.sampled_from(list(KINDS)))
    labels = data.draw(st.lists(words, min_size=2, max_size=4, unique=True))
    rows = [{"q": data.draw(prompts), "a": label} for label in labels]
    found = check(tmp_path, kind, "classify", "accuracy", rows)
    if found.refused:
        return
    examples = found.task.encode(found.tokenizer, rows)
    said = [found.task.options["labels"][example.labels[0]] for example in examples]
    references = found.task.references(rows)
    assert found.metric.score(said, references, "test") == [1.0] * len(rows)
    turned = said[1:] + said[:1]
    assert found.metric.score(turned, references, "test") == [0.0] * len(rows)
