"""Multiple choice: how data is read, log-likelihoods by hand, all lanes at once, a whole study."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bakeoff import api
from bakeoff.core.errors import BakeoffError
from bakeoff.core.trial import Trial
from bakeoff.data.issues import as_error
from bakeoff.data.rows import place_of, read_rows
from bakeoff.engine.accelerators import Switches
from bakeoff.study.config import parse_spec
from bakeoff.tasks.choice import Choices, MultipleChoice
from bakeoff.testing.tiny import WORDS, rows, save_llama, write_jsonl
from bakeoff.testing.trials import build_tiny_setup, disable_dropout, make_trial, train_steps
from bakeoff.training.evaluate import predict_all

COLUMNS = {"prompt": "Command : {text} JSON", "choices": "choices", "answer": "answer"}
OPTIONS = {
    "columns": COLUMNS,
    "max_length": 64,
    "max_new_tokens": None,
    "normalise": "sum",
    "answer": "letter",
}
LABELS = sorted(WORDS)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that finds some tokens far likelier than others."""
    return save_llama(tmp_path_factory.mktemp("sharp"), width=64, spread=0.2)


def items() -> list[dict[str, Any]]:
    """The intents' names as choices, of one or more words, in an order that turns by row."""
    found = []
    for i, row in enumerate(rows()):
        turned = LABELS[i % 3 :] + LABELS[: i % 3]
        texts = [f"{name} in the kitchen" if name == "music" else name for name in turned]
        place = "ABC"[turned.index(row["label"])]
        found.append({**row, "choices": texts, "answer": place})
    return found


def task(**options: Any) -> MultipleChoice:
    return MultipleChoice({**OPTIONS, **options})


def checked(own: list[dict[str, Any]], **options: Any) -> Any:
    """Check rows as all three splits."""
    splits = {"train": own, "validation": own, "test": own}
    found = MultipleChoice.check(splits, {**OPTIONS, "answer": "auto", **options})
    refused = as_error(found.issues, lambda split, row: place_of(splits[split][row], split, row))
    if refused is not None:
        raise refused
    return found


@pytest.mark.parametrize(
    ("field", "cell", "labels"),
    [
        ("options", {"options": ["red", " green", 7]}, ()),
        ("options", {"options": '["red", "green", 7]'}, ()),
        ("options", {"options": {"text": ["red", "green", 7], "label": [1, 2, 3]}}, "123"),
        (
            "options",
            {
                "options": [
                    {"text": "red", "label": "A"},
                    {"text": "green", "label": "B"},
                    {"text": 7, "label": "C"},
                ]
            },
            "ABC",
        ),
        ("{a}, {b}, {c}", {"a": "red", "b": "green ", "c": 7}, ()),
    ],
)
def test_choices_from_list_or_columns(field: str, cell: dict[str, Any], labels: Any) -> None:
    """Choices are read from a list or from columns."""
    assert Choices.parse(field, cell) == Choices(("red", "green", "7"), tuple(labels))


@pytest.mark.parametrize(
    ("written", "form"),
    [
        (["A", "c", "(b)", "B."], "letter"),
        ([0, 2, 1, 1], "index"),
        (["1", "3", "2", "2"], "number"),
        (["red", "blue", "green", "green"], "text"),
    ],
)
def test_answer_notation_detected(written: list[Any], form: str) -> None:
    """The notation of the answers is detected."""
    own = [{"text": "x", "choices": ["red", "green", "blue"], "answer": a} for a in written]
    found = checked(own).options
    assert found["answer"] == form
    assert MultipleChoice(found).references(own) == ["red", "blue", "green", "green"]


def test_data_labels_precede_letters() -> None:
    """Labels in the data take precedence over letters.

    ARC names some items' choices 1 to 4 and others' A to D.
    """
    texts = ["red", "green"]
    own = [
        {"text": "x", "choices": {"text": texts, "label": ["1", "2"]}, "answer": "2"},
        {"text": "x", "choices": {"text": texts, "label": ["B", "A"]}, "answer": "A"},
    ]
    found = checked(own).options
    assert found["answer"] == "label"
    assert MultipleChoice(found).references(own) == ["green", "green"]


def test_ambiguous_answers_refused() -> None:
    """Answers with two possible meanings are refused until the notation is given.

    Of three choices, 1 and 2 alone may count from 0 or from 1.
    """
    own = [{"text": "x", "choices": ["a", "b", "c"], "answer": n} for n in (1, 2)]
    with pytest.raises(BakeoffError) as error:
        checked(own)
    assert error.value.code == "answer-ambiguous"
    assert "rows 1 and 2" in error.value.cause
    for form, expected in (("index", ["b", "c"]), ("number", ["a", "b"])):
        assert MultipleChoice(checked(own, answer=form).options).references(own) == expected


BAD = {
    "answer-unknown": ({"answer": "D"}, {}),
    "choices-not-a-list": ({"choices": "red or green"}, {}),
    "choices-too-few": ({"choices": ["red"]}, {}),
    "choice-empty": ({"choices": ["red", "", "blue"]}, {}),
    "choices-repeat": ({"choices": ["red", "blue", "red "]}, {}),
    "choices-columns": ({}, {"columns": {**COLUMNS, "choices": "{text} or {answer}"}}),
}


@pytest.mark.parametrize("code", BAD)
def test_unusable_rows_named(code: str, tmp_path: Path) -> None:
    """Rows that cannot be used are named."""
    change, options = BAD[code]
    good = {"text": "x", "choices": ["red", "green", "blue"], "answer": "B"}
    own = read_rows(write_jsonl(tmp_path / "mine.jsonl", [good, good, {**good, **change}]))
    with pytest.raises(BakeoffError) as error:
        checked(own, **options)
    assert error.value.code == code
    assert code == "choices-columns" or "line 3 of mine.jsonl" in error.value.cause


@pytest.mark.parametrize(("form", "beyond"), [("index", 3), ("number", 4), ("number", 0)])
def test_index_beyond_choices_refused(form: str, beyond: int) -> None:
    """An index beyond the choices is refused."""
    good = {"text": "x", "choices": ["red", "green", "blue"], "answer": 1}
    with pytest.raises(BakeoffError, match="row 2 of the train split") as error:
        checked([good, {**good, "answer": beyond}], answer=form)
    assert error.value.code == "answer-unknown"


def test_shared_prefix_warns() -> None:
    """A correct choice that begins like a wrong one gives a warning."""
    own = [{"text": "x", "choices": ["the lamp", "the lamp bright"], "answer": "B"}]
    (fault,) = checked(own).issues
    assert (fault.code, fault.split, fault.rows) == ("choice-begins-alike", "test", (0,))
    assert not checked(own, normalise="per_token").issues


@pytest.mark.parametrize(
    ("options", "code"),
    [({"normalize": "per_token"}, "task-option-unknown"), ({"normalise": "bytes"}, "task-option")],
)
def test_wrong_options_are_refused(
    options: dict[str, Any], code: str, study_values: dict[str, Any], tmp_path: Path
) -> None:
    study_values["task"] |= {"kind": "choice", "options": options}
    with pytest.raises(BakeoffError) as error:
        api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    assert error.value.code == code
    assert "normalise" in str(error.value)


def log_likelihoods(
    model: Any, words: Any, row: dict[str, Any]
) -> list[tuple[float, int, int, int]]:
    """Return each choice's log-likelihood, tokens, characters and bytes, by plain transformers."""
    found = []
    for text in row["choices"]:
        prompt = words(f"Command : {row['text']} JSON")["input_ids"]
        choice = words(text)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + choice])).logits[0]
        each = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        total = sum(float(each[i, token]) for i, token in enumerate(choice))
        found.append((total, len(choice), len(text), len(text.encode())))
    return found


def test_likeliest_choice_by_normalisation(sharp: Path) -> None:
    """The likeliest choice is the answer under each normalisation."""
    words: Any = AutoTokenizer.from_pretrained(sharp)
    model: Any = AutoModelForCausalLM.from_pretrained(sharp).eval()
    rng = random.Random(0)
    texts = [row["text"].split() for row in rows()]
    own = [
        {"text": " ".join(text), "choices": [" ".join(rng.choice(texts)[:n]) for n in (1, 2, 3, 5)]}
        for text in texts[::4]
    ]
    for row in own:  # a word of few characters and many bytes
        row["choices"][0] += " ありがとう"
    own = [row for row in own if len(set(row["choices"])) == 4]
    by_hand = [log_likelihoods(model, words, row) for row in own]
    sizes = {
        "sum": lambda _: 1,
        "per_token": lambda x: x[1],
        "per_character": lambda x: x[2],
        "per_byte": lambda x: x[3],
    }
    examples = [e for row in own for e in task().candidates(words, row)]
    with torch.no_grad():
        losses = task().item_losses(model, task().batch(examples, 0, "cpu"))
    totals = [total for item in by_hand for total, *_ in item]
    assert losses.sums.tolist() == pytest.approx([-x for x in totals], rel=1e-5)
    said = {}
    for name, size in sizes.items():
        with torch.no_grad():
            said[name] = task(normalise=name).predict(model, words, own, "cpu")
        scores = [[x[0] / size(x) for x in item] for item in by_hand]
        assert said[name] == [
            row["choices"][s.index(max(s))] for row, s in zip(own, scores, strict=True)
        ]
    assert len({tuple(answers) for answers in said.values()}) == 4, "they tell nothing apart"


def test_correct_choice_is_supervised(tiny_llama: Path) -> None:
    """The supervised tokens are those of the correct choice."""
    words: Any = AutoTokenizer.from_pretrained(tiny_llama)
    row = {"text": "dim the lamp", "choices": ["music", "lights in the attic"], "answer": "B"}
    (example,) = task().encode(words, [row])
    prompt = words("Command : dim the lamp JSON")["input_ids"]
    right = words("lights in the attic")["input_ids"]
    assert example.tokens == (*prompt, *right)
    assert example.labels == (*[-100] * len(prompt), *right)


def test_prompt_truncated_equally(tiny_llama: Path) -> None:
    """A long prompt is truncated equally for every choice."""
    words: Any = AutoTokenizer.from_pretrained(tiny_llama)
    row = {"text": "dim the lamp", "choices": ["music", "lights in the attic"], "answer": "A"}
    short, long = task(max_length=7).candidates(words, row)
    prompt = tuple(words("Command : dim the lamp JSON")["input_ids"][-3:])
    assert (short.tokens[:-1], long.tokens[:-4]) == (prompt, prompt)


def test_overlong_choice_refused(
    study_values: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """A choice that is too long is refused even if it is a wrong one."""
    own = items()
    assert own[7]["answer"] == "C"
    own[7]["choices"] = ["lamp " * 31, "timer", "lights"]
    study_values["base"]["model"] = str(tiny_llama)
    study_values["data"] = {
        "train": str(write_jsonl(tmp_path / "items.jsonl", own)),
        "columns": {"prompt": COLUMNS["prompt"]},
    }
    study_values["task"] = {"kind": "choice", "max_length": 31}
    study_values["method"] = {}
    with pytest.raises(BakeoffError, match=r"line 8 of items\.jsonl") as error:
        api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    assert error.value.code == "choice-too-long"
    words: Any = AutoTokenizer.from_pretrained(tiny_llama)
    (fault,) = task(max_length=64).token_issues(words, "test", own, 33)
    assert (fault.code, fault.rows, fault.fatal) == ("longer-than-positions", (7,), True)
    assert not task(max_length=64).token_issues(words, "test", own, None)


def choice_trial(method: str, **given: Any) -> Trial:
    trial = make_trial(method, "sft", **given)
    conditions = dataclasses.replace(trial.conditions, task="choice", task_options=OPTIONS)
    config = trial.method.config
    if "r" in config:  # the rates of these tests are too large for a higher rank
        config = {**config, "r": 8, "lora_alpha": 16}
    small = dataclasses.replace(trial.method, config=config)
    return dataclasses.replace(trial, conditions=conditions, method=small)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_lanes_score_choices_together(
    method: str, sharp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All lanes are scored in one pass and answer as they do sequentially."""
    monkeypatch.setattr("bakeoff.testing.tiny.rows", items)
    on = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False)
    trials = [choice_trial(method, seed=s, rate=r) for s, r in enumerate((1e-4, 3e-2, 3e-1))]
    # two choices and three: the lanes' parts of a batch are no multiple of the rows
    own = [{**r, "choices": r["choices"][: 2 + i % 2]} for i, r in enumerate(items()[::7])]
    together = disable_dropout(build_tiny_setup(trials, sharp, tmp_path, on))
    train_steps(together, 12)
    widths = []
    ride = together.lanes.run_lanes

    def watched(first: int, width: int, rows: int) -> None:
        widths.append((width, width * rows))
        ride(first, width, rows)

    monkeypatch.setattr(together.lanes, "run_lanes", watched)
    laned = predict_all(together, own)
    assert {width for width, _ in widths} == {3}
    # eight rows a batch hold no item of three choices for each of three lanes: one item at a time
    assert len(widths) == len(own)
    assert {n for _, n in widths} == {6, 9}
    for trial, found in zip(trials, laned, strict=True):
        alone = disable_dropout(build_tiny_setup(trial, sharp, tmp_path))
        train_steps(alone, 12)
        assert predict_all(alone, own) == [found]
    assert len({tuple(found) for found in laned}) > 1, "the lanes all say the same"


def test_study_improves_accuracy_in_peft(
    study_values: dict[str, Any], sharp: Path, tmp_path: Path
) -> None:
    """A study improves accuracy, and its adapter answers in plain PEFT."""
    study_values["base"]["model"] = str(sharp)
    study_values["data"]["train"] = str(write_jsonl(tmp_path / "items.jsonl", items()))
    study_values["data"]["columns"] = {"prompt": COLUMNS["prompt"]}
    study_values["task"] = {"kind": "choice"}
    study_values["methods"] = {"control": "lora", "contenders": ["ia3"]}
    study_values["budget"] |= {"steps": 20, "settings": 1, "seeds": 1, "race": "off", "extend": 0}
    rates = {"lora": {"learning_rates": [1e-2]}, "ia3": {"learning_rates": [3e-2]}}
    study_values["method"] = rates
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    jsonable = json.loads(json.dumps(report))
    found = {m["method"]: m for m in jsonable["methods"]}
    assert jsonable["study"]["metric"] == "accuracy"
    assert jsonable["base"]["score"]["estimate"] < 0.6, "three choices, a third each"
    assert found["lora"]["score"]["estimate"] > 0.9
    assert found["lora"]["gain"]["low"] > 0
    assert {"lanes", "packing", "loss"} <= set(found["lora"]["engine"]["on"])

    test = read_rows(tmp_path / "out" / "data" / "test.jsonl")
    finals = [(t, r) for t, r in api.read_trials(tmp_path / "out") if r and "test" in r.splits]
    result = next(r for t, r in finals if t.method.name == "lora")
    split = result.splits["test"]
    right = [row["choices"]["ABC".index(row["answer"])] for row in test]
    pairs = zip(split.predictions, right, strict=True)
    assert split.scores == tuple(float(a == b) for a, b in pairs)
    words: Any = AutoTokenizer.from_pretrained(sharp)
    base = AutoModelForCausalLM.from_pretrained(sharp)
    place = tmp_path / "out" / "trials" / result.trial_id / "adapter"
    model = peft.PeftModel.from_pretrained(base, place).eval()
    for row, answer in zip(test, split.predictions, strict=True):
        totals = [total for total, *_ in log_likelihoods(model, words, row)]
        assert answer == row["choices"][totals.index(max(totals))]
