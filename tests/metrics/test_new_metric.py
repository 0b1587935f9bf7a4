"""A metric is one new file in the plug-in package; nothing else changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bakeoff import api
from bakeoff.core.errors import UsageError
from bakeoff.core.plugins import list_plugins
from bakeoff.metrics import builtin
from bakeoff.metrics.load import metrics_for_task
from bakeoff.tasks import task_class

ENDS_WITH = '''
"""1 if the prediction ends with the reference, else 0."""

from bakeoff.core.record import MetricInfo

INFO = MetricInfo("ends_with", better="higher", unit="fraction", low=0.0, high=1.0)
TASKS = ("classify",)


def score(prediction: str, reference: str) -> float:
    """Return the score of one item."""
    return float(prediction.endswith(reference))
'''


@pytest.fixture
def ends_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Add a folder with one metric file to the package of metrics."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "ends_with.py").write_text(ENDS_WITH, encoding="utf-8")
    monkeypatch.setattr(builtin, "__path__", [*builtin.__path__, str(folder)])
    yield "ends_with"
    sys.modules.pop("bakeoff.metrics.builtin.ends_with", None)


def test_new_metric_is_one_file(
    ends_with: str, study_values: dict[str, Any], tmp_path: Path
) -> None:
    """A study is scored with a metric that only its own file declares."""
    study_values["task"]["metric"] = ends_with
    report = api.run(api.parse_spec(study_values), tmp_path, tmp_path / "out")
    assert report["complete"]
    assert report["study"]["metric"] == ends_with
    assert all(m["score"] for m in report["methods"])


def test_new_metric_not_for_other_tasks(
    ends_with: str, study_values: dict[str, Any], tmp_path: Path
) -> None:
    """A task that the metric does not declare refuses it."""
    study_values["task"] |= {"kind": "sft", "metric": ends_with}
    study_values["task"].pop("head_learning_rate", None)
    study_values["data"]["columns"] = {"prompt": "text", "completion": "json"}
    with pytest.raises(UsageError) as error:
        api.run(api.parse_spec(study_values), tmp_path, tmp_path / "out")
    assert error.value.code == "metric-not-for-task"


def test_metrics_of_each_task() -> None:
    """Every task has its default metric first, which declares the task."""
    fitting = {k: metrics_for_task(k, task_class(k).default_metric) for k in list_plugins("tasks")}
    assert fitting == {
        "choice": ("accuracy", "loss"),
        "classify": ("accuracy", "loss"),
        "sft": (
            "exact_match", "chrf", "contains", "json_fields", "json_match", "json_valid", "loss",
            "numeric", "regex", "token_f1",
        ),
    }  # fmt: skip
