"""Metrics in whole studies: one of the user's own, the loss, and one that fails halfway."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from helpers.command import bakeoff
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from bakeoff import api
from bakeoff.core.errors import BakeoffError
from bakeoff.data.rows import read_rows
from bakeoff.metrics import load
from bakeoff.study import replicates
from bakeoff.study.config import parse_spec

OWN = """
def score(prediction: str, reference: str, *, step: float = 1.0) -> float:
    return step * abs(len(prediction) - len(reference))
"""


@pytest.fixture
def sft(study_values: dict[str, Any], tiny_llama: Path) -> dict[str, Any]:
    study_values["base"]["model"] = str(tiny_llama)
    study_values["task"] = {"kind": "sft", "max_length": 64, "max_new_tokens": 4, "margin": 0.5}
    study_values["data"]["columns"] = {"prompt": "Command : {text} JSON", "completion": "{json}"}
    study_values["data"]["limit"] = {"test": 8, "validation": 8}
    study_values["budget"] |= {"steps": 2, "settings": 1, "seeds": 2, "extend": 0, "race": "off"}
    study_values["methods"]["contenders"] = ["vera"]
    del study_values["method"]
    return study_values


def refused(values: dict[str, Any], folder: Path) -> BakeoffError:
    with pytest.raises(BakeoffError) as error:
        api.run(parse_spec(values), folder, folder / "out")
    assert not list((folder / "out" / "trials").glob("*")), "something was trained"
    return error.value


def test_user_metric_frozen_and_scored(sft: dict[str, Any], tmp_path: Path) -> None:
    """A user's metric function is frozen and scores a study.

    Also by worker processes, and after the original file has gone.
    """
    sft["task"] |= {
        "metric": "mine/score.py:score",
        "metric_options": {"better": "lower", "unit": "characters", "low": 0, "step": 2.0},
    }
    sft["engine"]["executor"] = "process"
    (tmp_path / "mine").mkdir()
    own = tmp_path / "mine" / "score.py"
    own.write_text(OWN, encoding="utf-8")
    (tmp_path / "study.toml").write_text(tomli_w.dumps(sft))
    done = bakeoff("run", "study.toml", "--out", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["study"] | {"metric": "score.py:score", "unit": "characters"} == report["study"]
    assert report["study"]["better"] == "lower"
    record = api.read_record(tmp_path / "out")
    references = [r["json"] for r in read_rows(tmp_path / "out" / "data" / "test.jsonl")]
    scored = [r.splits["test"] for t, r in record.trials if r and "test" in r.splits]
    assert len(scored) == 4
    for split in scored:
        pairs = zip(split.predictions, references, strict=True)
        assert split.scores == tuple(2.0 * abs(len(p or "") - len(r)) for p, r in pairs)

    # frozen: the study goes on from its folder with the copy, whatever became of the original
    frozen = tmp_path / "out" / "metric" / "score.py"
    assert frozen.read_text() == OWN
    own.unlink()
    again = bakeoff("run", "out", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["methods"] == report["methods"]
    # another function under the same name is another study
    own.write_text(OWN.replace("step *", "2 * step *"), encoding="utf-8")
    other = bakeoff("run", "study.toml", "--out", "out", cwd=tmp_path)
    assert other.returncode == 3
    assert "metric.source" in other.stderr


def test_frozen_metric_verified(sft: dict[str, Any], tmp_path: Path) -> None:
    """The frozen copy of a metric is verified against its checksum."""
    from bakeoff.testing.trials import make_trial

    (tmp_path / "metric").mkdir()
    (tmp_path / "metric" / "score.py").write_text(OWN)
    known = {"metric": "score.py:score", "metric_source": load.code_digest(OWN.encode())}
    conditions = make_trial("lora", "sft", **known).conditions
    assert load.load_metric(conditions, tmp_path).score(["ab"], ["a"], "test") == [1.0]
    (tmp_path / "metric" / "score.py").write_text(OWN + "\n")
    with pytest.raises(BakeoffError, match="metric-changed"):
        load.load_metric(conditions, tmp_path)


def test_loss_metric_matches_plain_models(
    sft: dict[str, Any], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss metric needs no answers and is the model's own loss.

    Per token of each test item, in nats, against plain transformers and PEFT.
    """
    from bakeoff.tasks.sft import SupervisedFineTuning

    def never(*_: Any) -> Any:
        raise AssertionError("something was generated")

    monkeypatch.setattr(SupervisedFineTuning, "predict", never)
    sft["task"] |= {"metric": "loss", "margin": 0.05}
    sft["methods"]["contenders"] = ["ia3"]
    report = api.run(parse_spec(sft), tmp_path, tmp_path / "out")
    assert (report["study"]["better"], report["study"]["unit"]) == ("lower", "nats")
    record = api.read_record(tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "data" / "test.jsonl")
    words = AutoTokenizer.from_pretrained(tiny_llama)

    def losses(model: Any) -> list[float]:
        found = []
        for row in rows:
            prompt = words(f"Command : {row['text']} JSON")["input_ids"]
            answer = [*words(row["json"], add_special_tokens=False)["input_ids"], 2]
            ids = torch.tensor([prompt + answer])
            labels = torch.tensor([[-100] * len(prompt) + answer])
            with torch.no_grad():
                found.append(float(model(input_ids=ids, labels=labels).loss))
        return found

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert record.base_scores is not None
    assert record.base_scores.scores == pytest.approx(losses(base), abs=1e-4)
    lora = [
        t.id
        for t, r in record.trials
        if t.method.name == "lora" and r is not None and "test" in r.splits
    ]
    tuned = PeftModel.from_pretrained(base, tmp_path / "out" / "trials" / lora[0] / "adapter")
    results = {r.trial_id: r for _, r in record.trials if r}
    split = results[lora[0]].splits["test"]
    assert split.scores == pytest.approx(losses(tuned.eval()), abs=1e-4)
    assert set(split.predictions) == {None}
    assert len({round(x, 3) for x in split.scores}) > 1
    row = next(m for m in report["methods"] if m["method"] == "lora")
    assert row["gain"]["estimate"] < 0, "trained, its loss is below the base's"
    # the search compared by the metric, too: it is as cheap as the loss
    assert all(math.isfinite(s["validation_score"]) for s in row["settings"])


def test_failing_metric_fails_one_trial(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A metric that fails on an answer fails only that trial.

    A metric that takes the references and not one method's answers; nothing is trained twice.
    """
    source = """
import pathlib
seen = pathlib.Path(__file__).with_name("seen")

def score(prediction, reference):
    if prediction and seen.exists():
        raise RuntimeError("no such answer")
    return float(prediction == reference)
"""
    (tmp_path / "score.py").write_text(source)
    study_values["task"] |= {"metric": "score.py:score"}
    study_values["budget"] |= {"steps": 2, "settings": 2, "extend": 0, "race": "off"}
    values = parse_spec(study_values)
    out = tmp_path / "out"

    real = replicates._choose_finalists

    def then_fails(*given: Any) -> Any:
        (out / "metric" / "seen").touch()
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicates, "_choose_finalists", then_fails)
        report = api.run(values, tmp_path, out)
    failed = report["failures"]
    assert len(failed) == 4
    for row in failed:
        assert row["status"] == "failed"
        assert row["reason"].startswith(
            "[metric-failed] The metric 'score.py:score' failed on item"
        )
        assert "of test" in row["reason"]
        assert "no such answer" in row["reason"]
    assert len(api.read_record(out).looks) == 0, "there is nothing to compare"
    assert report["complete"] is True


def test_unusable_reference_named(sft: dict[str, Any], tmp_path: Path) -> None:
    """References that the metric cannot use are refused with their rows."""
    sft["task"] |= {"metric": "numeric"}
    error = refused(sft, tmp_path)
    assert error.code == "metric-failed"
    assert "no number" in error.cause
    assert "rows of validation: " in error.cause


@pytest.mark.parametrize(
    ("task", "code", "said"),
    [
        ({"metric": "exact-match"}, "metric-not-for-task", "did you mean 'exact_match'?"),
        ({"metric": "accuracy"}, "metric-not-for-task", "One of: exact_match"),
        ({"metric": "score.py:score"}, "metric-file-missing", "relative to the study file"),
        ({"metric": "regex"}, "metric-option-missing", "`pattern = …`"),
        (
            {"metric": "regex", "metric_options": {"patern": "a"}},
            "metric-option-unknown", "did you mean 'pattern'?",
        ),
        ({"metric": "regex", "metric_options": {"pattern": "["}}, "metric-option", "docs"),
    ],
)  # fmt: skip
def test_metric_errors_come_first(
    task: dict[str, Any], code: str, said: str, sft: dict[str, Any], tmp_path: Path
) -> None:
    """Errors in a metric are reported before training."""
    sft["task"] |= task
    error = refused(sft, tmp_path)
    assert (error.code, error.exit_code) == (code, 2)
    assert said in error.try_
