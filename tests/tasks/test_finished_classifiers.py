"""A study on a finished classifier of other labels: its head is new, saved and reloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.classifiers import make_classifier
from transformers import AutoModelForSequenceClassification

from bakeoff import api
from bakeoff.core.errors import BakeoffError
from bakeoff.integrations.export_weights import export_weights
from bakeoff.study.config import parse_spec
from bakeoff.study.storage.database import Writer
from bakeoff.study.storage.study_dir import DATABASE
from bakeoff.testing.tiny import tokenizer

pytestmark = pytest.mark.usefixtures("costs_are_known")


def save_base(folder: Path, labels: int) -> Path:
    """Write a finished DistilBERT with the tiny tokenizer."""
    words = tokenizer()
    make_classifier("distilbert", labels, len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_head_of_finished_classifier(study_values: dict[str, Any], tmp_path: Path) -> None:
    """Five labels in the base, three in the data: LoRA trains a new head of two layers."""
    study_values["base"]["model"] = str(save_base(tmp_path / "base", 5))
    study_values["budget"] |= {"steps": 4, "settings": 1, "seeds": 1}
    study_values["methods"]["contenders"] = ["head"]
    study_values.pop("method", None)
    folder = tmp_path / "study"
    report = api.run(parse_spec(study_values), tmp_path, folder)
    assert {m["method"]: m["status"] for m in report["methods"]} == {"lora": "done", "head": "done"}
    (warning,) = [w for w in report["warnings"] if "head-replaced" in w]
    assert "pre_classifier, classifier" in warning
    for method in report["methods"]:
        assert method["artifact"]["same"], method["artifact"]
    trials = [trial for trial, _ in api.read_trials(folder)]
    assert trials[0].conditions.task_options["head"]["replaced"]
    export_weights(folder, tmp_path / "merged", "lora", "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert model.config.id2label == {0: "lights", 1: "music", 2: "timer"}

    # the same study, as if an older version had started it: its trials had the base's own head
    with Writer(folder / DATABASE) as writer:
        frozen = api.read_values(folder)["frozen"]
        assert frozen.pop("head") == {"modules": ["pre_classifier", "classifier"], "replaced": True}
        writer.set_all({"frozen": frozen})
    with pytest.raises(BakeoffError) as refused:
        api.run(parse_spec(study_values), tmp_path, folder)
    assert refused.value.code == "study-differs"
    assert "head" in refused.value.cause
