"""Item by item: counts, pairs, which examples are shown, texts cut, redacted and bounded."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.large_report import N_METHODS, big_items
from helpers.records import LOSS, Pair, make_record, make_result, make_trial

from bakeoff.analysis.per_method import items
from bakeoff.analysis.trial_runs import item_groups, runs_by_method, usable_scores
from bakeoff.core.record import ItemText, StudyRecord
from bakeoff.core.results import SplitScores
from bakeoff.data.rows import write_split
from bakeoff.study import test_texts

Rows = dict[int, Sequence[float]]


def trials(method: str, scores: Rows, answers: str = "x") -> list[Pair]:
    """Return final trials whose answer to item i under seed s is ``<answers> s i``."""
    made: list[Pair] = []
    for seed, row in scores.items():
        trial = make_trial(method, seed=seed, phase="final")
        result = make_result(trial)
        said = tuple(f"{answers} {seed} {i}" for i in range(len(row)))
        result.splits["test"] = SplitScores(tuple(row), said, None)
        made.append((trial, result))
    return made


def summed(record: StudyRecord) -> dict[str, Any]:
    by_method = runs_by_method(record)
    n = len(next(r for _, r in record.trials if r).splits["test"].scores)
    groups = item_groups(record, n)
    scores = {m: s for m, r in by_method.items() if (s := usable_scores(r, n, groups)) is not None}
    found = items.item_summary(record, by_method, scores)
    assert found is not None
    return found


def record(control: Rows, contender: Rows, **more: Any) -> StudyRecord:
    pairs = [*trials("lora", control, "c"), *trials("oft", contender, "o")]
    return make_record(pairs, ("lora", "oft"), **more)


def test_items_and_pairs_are_counted() -> None:
    found = summed(record({1: (1, 0, 1, 0), 2: (1, 0, 0, 0)}, {1: (1, 1, 0, 0), 2: (1, 1, 1, 0)}))
    (oft,) = found["methods"]
    # by item: same, better twice over, one each way, same
    assert (oft["better"], oft["same"], oft["worse"], oft["n_seeds"]) == (1, 3, 0, 2)
    assert oft["outcomes"] == {
        "pairs": 8, "both_right": 2, "only_control": 1, "only_contender": 3, "both_wrong": 2,
    }  # fmt: skip
    assert found["n_items"] == 4


def test_groups_are_counted_and_give_one_example_each() -> None:
    """Groups of two: gains (1, 1), (1, -1), (0, -1) are one better, one the same, one worse."""
    control, contender = {1: (0, 0, 0, 1, 1, 1)}, {1: (1, 1, 1, 0, 1, 0)}
    found = summed(record(control, contender, groups=(0, 0, 1, 1, 2, 2), group_source="column 'g'"))
    (oft,) = found["methods"]
    assert (oft["better"], oft["same"], oft["worse"]) == (3, 1, 2)
    assert oft["groups"] == {"better": 1, "same": 1, "worse": 1}
    wins, losses = ([e["item"] for e in oft[key]] for key in ("wins", "losses"))
    assert (len(wins), len(losses)) == (2, 2)
    assert wins[0] in (1, 2) or wins[1] in (1, 2)
    assert 3 in wins
    assert sorted(losses) == [4, 6]
    assert "groups" not in summed(record(control, contender))["methods"][0]


def test_lower_loss_wins_without_correctness() -> None:
    """A lower loss wins an item, and the item is neither right nor wrong."""
    made = record({1: (1.0, 0.2, 0.5)}, {1: (0.25, 0.7, 0.5)}, metric=LOSS)
    (oft,) = summed(made)["methods"]
    assert (oft["better"], oft["same"], oft["worse"]) == (1, 1, 1)
    assert oft["outcomes"] is None
    assert [e["item"] for e in oft["wins"]] == [1]
    assert oft["wins"][0]["gain"] == pytest.approx(0.75)
    assert oft["losses"][0]["gain"] == pytest.approx(-0.5)


def test_unpaired_seeds_compare_means() -> None:
    """Methods without common seeds are compared by their means only."""
    (oft,) = summed(record({1: (1, 0), 2: (0, 0)}, {7: (1, 1)}))["methods"]
    assert (oft["n_seeds"], oft["outcomes"], oft["better"]) == (0, None, 2)
    assert oft["wins"][0]["seed"] is None


def test_example_uses_most_different_seed() -> None:
    """An example shows the seed for which the two methods differ."""
    (oft,) = summed(record({1: (1, 0), 2: (1, 0), 3: (0, 0)},
                           {1: (0, 0), 2: (1, 1), 3: (0, 0)}))["methods"]  # fmt: skip
    (win,), (loss,) = oft["wins"], oft["losses"]
    assert (win["item"], win["seed"], win["control"], win["contender"]) == (2, 2, "c 2 1", "o 2 1")
    assert (win["control_score"], win["contender_score"]) == (0.0, pytest.approx(1 / 3))
    assert (loss["item"], loss["seed"], loss["contender"]) == (1, 1, "o 1 0")


def test_items_ordered_by_difference() -> None:
    """The largest differences come first, and ties are spread over the whole file."""
    n = 400
    gains = [0.5] * n
    gains[300] = 1.0
    metric = dataclasses.replace(LOSS, better="higher")
    made = record({1: [0.0] * n}, {1: gains}, metric=metric)
    wins = summed(made)["methods"][0]["wins"]
    assert len(wins) == items.MAX_EXAMPLES
    assert wins[0]["item"] == 301
    assert max(e["item"] for e in wins[1:]) > 200
    assert summed(made) == summed(made)


def test_texts_redacted_before_truncation() -> None:
    """Texts are shortened in the middle after secrets have been removed."""
    token = "hf_" + "a" * 40
    long = "begin " + "x" * 263 + token + "y" * 5_000 + " end"
    made = record({1: (0,)}, {1: (1,)}, asked=(ItemText(long, "right"),))
    (shown,) = summed(made)["asked"]
    assert len(shown["prompt"]) <= items.MAX_CHARACTERS
    assert shown["prompt"].startswith("begin x")
    assert shown["prompt"].endswith("y end")
    assert items.GAP.strip() in shown["prompt"]
    assert "aaa" not in shown["prompt"]
    assert shown["reference"] == "right"
    assert items.shorten("x" * items.MAX_CHARACTERS) == "x" * items.MAX_CHARACTERS


def test_without_examples_counts_only() -> None:
    """Without examples, the section has counts only."""
    found = summed(
        record({1: (0, 1)}, {1: (1, 0)}, examples=False, asked=(ItemText("p", "r"),) * 2)
    )
    assert found["methods"][0]["wins"] == found["methods"][0]["losses"] == found["asked"] == []
    assert found["methods"][0]["better"] == 1
    assert found["note"] == items.EXAMPLES_OMITTED
    assert not any(t in json.dumps(found) for t in ('"p"', '"r"', "c 1", "o 1"))


def test_no_comparison_is_none() -> None:
    """Without methods to compare, there is no item summary."""
    made = make_record(trials("lora", {1: (1, 0)}), ("lora", "oft"))
    by_method = runs_by_method(made)
    scores = usable_scores(by_method["lora"], 2)
    assert scores is not None
    assert items.item_summary(made, by_method, {"lora": scores}) is None
    assert items.item_summary(made, by_method, {}) is None


def test_sixty_methods_stay_bounded() -> None:
    """Sixty methods stay within the size limit and get equal shares of it."""
    found = big_items()
    texts = {a["item"]: a for a in found["asked"]}
    shown = [e for m in found["methods"] for k in ("wins", "losses") for e in m[k]]
    size = sum(
        len(html.escape(t).encode())
        for e in shown
        for t in (e["control"], e["contender"], *(texts[e["item"]][k] for k in
                  ("prompt", "reference")))
    )  # fmt: skip
    assert size <= items.MAX_BYTES
    assert len(found["methods"]) == N_METHODS - 1
    assert len({len(m[k]) for m in found["methods"] for k in ("wins", "losses")}) == 1


def scored(folder: Path, rows: list[dict[str, Any]], task: str, **options: Any) -> list[Pair]:
    digest = write_split(folder / "data" / "test.jsonl", rows)
    trial = make_trial("lora", phase="final")
    conditions = dataclasses.replace(
        trial.conditions, task=task, task_options=options, data={"test": digest}
    )
    trial = dataclasses.replace(trial, conditions=conditions)
    return [(trial, make_result(trial, test=[1.0] * len(rows)))]


def test_item_texts_from_frozen_rows(tmp_path: Path) -> None:
    """The texts of items come from the frozen rows."""
    rows = [{"q": "a?", "w": "A"}, {"q": "b?", "w": "B"}]
    columns = {"prompt": "Say: {q}\nNow: ", "completion": "{w}"}
    made = scored(tmp_path, rows, "sft", columns=columns)
    assert test_texts.load_test_texts(tmp_path, made).texts == (
        ItemText("a?", "A"),
        ItemText("b?", "B"),
    )
    rows = [{"messages": [{"role": "user", "content": "hi"},
                          {"role": "assistant", "content": "ho"}]}]  # fmt: skip
    made = scored(tmp_path, rows, "sft", columns={"messages": "messages"})
    assert test_texts.load_test_texts(tmp_path, made).texts == (ItemText("user: hi", "ho"),)
    rows = [{"prompt": "which?", "choices": ["this", "that"], "answer": "B"}]
    columns = {"prompt": "prompt", "choices": "choices", "answer": "answer"}
    made = scored(tmp_path, rows, "choice", columns=columns, answer="letter", normalise="sum")
    assert test_texts.load_test_texts(tmp_path, made).texts == (
        ItemText("which?\n- this\n- that", "that"),
    )
    columns = {"text": "t", "label": "l"}
    rows = [{"t": "some", "l": "yes"}]
    made = scored(tmp_path, rows, "classify", columns=columns, labels=["yes"])
    assert test_texts.load_test_texts(tmp_path, made).texts == (ItemText("some", "yes"),)


def test_changed_rows_not_shown(tmp_path: Path) -> None:
    """Rows other than those that were scored are never shown."""
    columns = {"prompt": "prompt", "completion": "completion"}
    made = scored(tmp_path, [{"prompt": "a", "completion": "b"}], "sft", columns=columns)
    file = tmp_path / "data" / "test.jsonl"
    file.write_text('{"prompt": "other", "completion": "b"}\n')
    found = test_texts.load_test_texts(tmp_path, made)
    assert found.texts == ()
    assert found.missing_reason == "data/test.jsonl is not the file that was scored"
    file.unlink()
    outside = tmp_path.parent / f"{tmp_path.name}.jsonl"
    outside.write_text("{}\n")
    file.symlink_to(outside)
    assert (
        test_texts.load_test_texts(tmp_path, made).missing_reason
        == "data/test.jsonl is not in the study folder"
    )
    assert test_texts.load_test_texts(tmp_path, []) == test_texts.ItemTexts()
