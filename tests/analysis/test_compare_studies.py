"""Two studies side by side: the pure comparison on records made by hand, the verb on tiny ones."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from helpers.command import bakeoff
from helpers.records import final, finished_record, hits, make_cost, make_record, search

from bakeoff import api
from bakeoff.analysis.compare_studies import (
    Agreement,
    ComparedStudy,
    compare_studies,
    verdict_agreement,
)
from bakeoff.analysis.summary import summarise
from bakeoff.core.errors import UsageError
from bakeoff.core.record import StudyRecord

FROZEN = {
    "spec.name": "a",
    "spec.seed": 0,
    "data.test": "aa",
    "base": "b1",
    "machine.versions.peft": "0.21.2",
    "machine.device": "cpu",
    "methods.oft.title": "OFT",
    "methods.oft.config.r": 8,
    "methods.full.config.x": 1,
}


def side(record: StudyRecord, folder: str, **frozen: Any) -> ComparedStudy:
    return ComparedStudy(folder, summarise(record, np.random.default_rng(0)), {**FROZEN, **frozen})


def other() -> StudyRecord:
    """OFT at another rate is worse now, IA3 the same, DoRA is new, full fine-tuning is gone."""
    rates = {1e-4: 0.9, 1e-3: 0.5}
    trials = [pair for m in ("lora", "ia3", "dora") for pair in search(m, rates)]
    trials += search("oft", {1e-4: 0.4, 1e-3: 0.5})
    for method, right in (("lora", 120), ("ia3", 120), ("dora", 120)):
        trials += final(method, {seed: hits(right, 200) for seed in (1, 2, 3)})
    trials += final("oft", {seed: hits(60, 200) for seed in (1, 2, 3)}, rate=1e-4)
    methods = ("lora", "oft", "ia3", "dora")
    return make_record(trials, methods, name="other", costs={m: make_cost(m) for m in methods})


def found(first: ComparedStudy, second: ComparedStudy) -> dict[str, Any]:
    made = compare_studies(first, second)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    return made


def test_identical_copy_has_no_differences() -> None:
    """A study compared with its own copy has no differences."""
    made = found(
        side(finished_record(), "a"), side(finished_record(), "b", **{"spec.name": "copy"})
    )
    assert made["differences"] == []
    assert made["cautions"] == []
    assert {m["method"]: m["agreement"] for m in made["methods"]} == {
        "lora": "control", "oft": "agree", "ia3": "agree", "full": "no_verdict",
    }  # fmt: skip
    assert made["agreement"]["agree"] == 2


def test_differences_are_named() -> None:
    """Differing verdicts, settings and methods are named."""
    made = found(side(finished_record(), "a"), side(other(), "b"))
    rows = {m["method"]: m for m in made["methods"]}
    assert {name: row["agreement"] for name, row in rows.items()} == {
        "lora": "control", "oft": "disagree", "ia3": "agree",
        "full": "only_in_first", "dora": "only_in_second",
    }  # fmt: skip
    oft = rows["oft"]
    assert (oft["first"]["verdict"], oft["second"]["verdict"]) == ("better", "worse")
    assert oft["first"]["difference"]["estimate"] == pytest.approx(0.2)
    assert oft["second"]["difference"]["estimate"] == pytest.approx(-0.3)
    assert oft["first"]["difference"]["low"] > 0 > oft["second"]["difference"]["high"]
    assert rows["full"]["second"] is None
    assert made["differences"] == [
        {"what": "setting", "key": "oft.learning_rate", "first": 1e-3, "second": 1e-4}
    ]


def test_frozen_differences_named_by_subject() -> None:
    """Differing frozen values are named after their subject."""
    changed = {
        "spec.seed": 1, "data.test": "bb", "base": "b2", "machine.versions.peft": "0.22",
        "machine.device": "cuda", "methods.oft.config.r": 16, "methods.oft.title": "Oft",
        "methods.boft.config.r": 8, "methods.full.config.x": 2,
    }  # fmt: skip
    made = found(side(other(), "a"), side(other(), "b", **changed))
    assert {(d["what"], d["key"]) for d in made["differences"]} == {
        ("spec", "spec.seed"),
        ("data", "data.test"),
        ("base", "base"),
        ("version", "machine.versions.peft"),
        ("machine", "machine.device"),
        ("method", "methods.oft.config.r"),
    }, "prose and methods that one study has alone are no differences of conditions"
    assert made["cautions"] == ["The test sets differ, so the scores are over different items."]


def test_incomparable_studies_caution() -> None:
    """Another control, another margin or an unfinished study gives a caution."""
    record = finished_record()
    unfinished = dataclasses.replace(
        record, control="oft", methods=("oft", "lora", "ia3", "full"), margin=0.05,
        trials=(*record.trials, *search("ia3", {1.0: None})),
    )  # fmt: skip
    made = found(side(record, "a"), side(unfinished, "b"))
    assert {m["agreement"] for m in made["methods"]} == {"other_control"}
    assert made["cautions"] == [
        "The controls differ (lora, oft): the verdicts answer different questions.",
        "The margins differ (0.01, 0.05).",
        "b is not finished: its verdicts may still change.",
    ]
    assert [s["complete"] for s in made["studies"]] == [True, False]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ("better", "better", Agreement.AGREE),
        ("inconclusive", "inconclusive", Agreement.AGREE),
        ("better", "worse", Agreement.DISAGREE),
        ("equivalent", "better", Agreement.DISAGREE),
        ("inconclusive", "better", Agreement.OPEN),
        ("none", "better", Agreement.NO_VERDICT),
        ("control", "control", Agreement.CONTROL),
    ],
)
def test_agreement(one: str, two: str, expected: Agreement) -> None:
    rows = {"verdict": one}, {"verdict": two}
    assert verdict_agreement(*rows, same_control=True) is expected
    assert verdict_agreement(*reversed(rows), same_control=True) is expected


def test_older_protocol_is_a_caution() -> None:
    """Two studies of which only one repeats the search for each seed cannot be set side by side."""
    first, second = side(finished_record(), "one"), side(finished_record(), "two")
    older = dataclasses.replace(second, report={**second.report, "rounds": None})
    assert found(first, older)["cautions"] == []
    newer = dataclasses.replace(second, report={**second.report, "rounds": {"mode": "rounds"}})
    (caution,) = found(first, newer)["cautions"]
    assert caution.startswith("one did not repeat the search for each seed")


def test_command_compares_two_studies(study_values: dict[str, Any], tmp_path: Path) -> None:
    """The command compares two studies."""
    second = copy.deepcopy(study_values)
    second["name"], second["seed"] = "tiny-2", 1
    second["methods"]["contenders"] = ["head"]
    del second["method"]
    for values in (study_values, second):
        (tmp_path / "study.toml").write_text(tomli_w.dumps(values))
        done = bakeoff("run", "study.toml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "runs").rglob("report.*"))
    done = bakeoff("compare", "tiny", "runs/tiny-2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert ("spec", "spec.seed", 0, 1) in {
        (d["what"], d["key"], d["first"], d["second"])
        for d in made["differences"]
        if d["key"] == "spec.seed"
    }
    assert {"data.test", "spec.methods.contenders"} <= {d["key"] for d in made["differences"]}
    assert {m["method"]: m["agreement"] for m in made["methods"]} == {
        "lora": "control", "ia3": "only_in_first", "head": "only_in_second",
    }  # fmt: skip
    after = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "runs").rglob("report.*"))
    assert before == after, "comparing wrote a report"
    shown = bakeoff("compare", "tiny", "tiny-2", cwd=tmp_path)
    assert "only in first" in shown.stdout
    assert "spec.seed" in shown.stdout
    assert "caution: The test sets differ" in shown.stderr

    same = bakeoff("compare", "tiny", "runs/tiny", cwd=tmp_path)
    assert (same.returncode, "[same-study]" in same.stderr, "Try:" in same.stderr) == (
        2,
        True,
        True,
    )
    none = bakeoff("compare", "tiny", "nowhere", cwd=tmp_path)
    assert (none.returncode, "[no-study]" in none.stderr) == (2, True)


def test_same_folder_refused(tmp_path: Path) -> None:
    """Comparing a folder with itself is refused."""
    with pytest.raises(UsageError) as caught:
        api.compare(tmp_path, tmp_path / "." / ".." / tmp_path.name)
    assert caught.value.code == "same-study"
